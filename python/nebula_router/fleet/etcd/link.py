"""One connection to one of etcd's endpoints, and what its errors mean."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from nebula_router.fleet.etcd.rpc import grpc, message, methods
from nebula_router.fleet.store import StoreDownError, StoreError, WatchLostError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

_Metadata = tuple[tuple[str, str], ...]
_SERVICES: Final = ("KV", "Watch", "Lease", "Auth")
_LEADER: Final = ("hasleader", "true")
"""Asks etcd to end a watch when the member that serves it has lost touch with the others."""


_LATE: Final = frozenset({"context deadline exceeded", "context canceled"})
"""How a member without a leader words, as an unknown error, that the deadline which it was given is over."""


class RefusedError(StoreError):
    """What etcd said in place of an answer."""

    def __init__(self, text: str, code: grpc.StatusCode) -> None:
        super().__init__(text)
        self.code = code


class Link:
    """Requests over one channel. It is given up, with all that runs on it, as soon as etcd is silent.

    Args:
        endpoint: Where it leads.
        channel: Its own from now on.
        user: Name and password, if etcd asks for them.
        fair_s: Silence shorter than that means nothing.
    """

    def __init__(self, endpoint: str, channel: grpc.aio.Channel, user: tuple[str, str] | None, fair_s: float) -> None:
        self.endpoint = endpoint
        self.given_up: str | None = None
        """Why it cannot be used any more."""
        self._channel = channel
        self._methods = {name: method for service in _SERVICES for name, method in methods(channel, service).items()}
        self._user = user
        self._fair_s = fair_s
        self._metadata: _Metadata = ()
        self._heard_s = 0.0

    async def ask(self, name: str, request: object, deadline_s: float) -> Any:  # noqa: ANN401 - made at run time
        """The answer of one of etcd's methods.

        Raises:
            StoreDownError: It did not come in time.
            RefusedError: etcd refused.
        """
        try:
            return await self._sent(name, request, deadline_s, self._metadata)
        except RefusedError as error:
            if self._user is None or not _is_stale_token(error):
                raise
        # Nothing came of the request: the token was too old.
        await self.sign_in(deadline_s)
        return await self._sent(name, request, deadline_s, self._metadata)

    async def sign_in(self, deadline_s: float) -> None:
        """Get a token, where there is a user. The same errors."""
        if self._user is not None:
            name, password = self._user
            request = message("AuthenticateRequest")(name=name, password=password)
            answer = await self._sent("Authenticate", request, deadline_s, ())
            self._metadata = (("token", answer.token),)

    async def keep_alive(self, lease: int, deadline_s: float) -> int:
        """The seconds that a lease has from now on; 0 where it is gone. The same errors."""
        async with self._judged():
            call = self._methods["LeaseKeepAlive"](timeout=_left_s(deadline_s), metadata=self._metadata)
            try:
                await call.write(message("LeaseKeepAliveRequest")(ID=lease))
                answer = await call.read()
            finally:
                call.cancel()
        if answer is grpc.aio.EOF:
            raise self._down("it ended the call")
        return int(answer.TTL)

    async def watch(self, request: object) -> AsyncGenerator[Any, None]:
        """Yield etcd's answers to a request for a watch. Closing the generator ends the watch.

        Raises:
            WatchLostError: The connection is gone.
        """
        call = self._methods["Watch"](metadata=(*self._metadata, _LEADER))
        try:
            async with self._judged():
                await call.write(message("WatchRequest")(create_request=request))
            while True:
                async with self._judged():
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise WatchLostError(f"etcd at {self.endpoint} ended the watch")
                yield answer
        except (StoreDownError, RefusedError) as error:
            raise WatchLostError(str(error)) from None
        finally:
            call.cancel()

    async def give_up(self, why: str) -> None:
        """Close the connection and end all that runs on it."""
        if self.given_up is None:
            self.given_up = why
            await self._channel.close()

    async def _sent(self, name: str, request: object, deadline_s: float, metadata: _Metadata) -> Any:  # noqa: ANN401
        async with self._judged():
            return await self._methods[name](request, timeout=_left_s(deadline_s), metadata=metadata)

    @asynccontextmanager
    async def _judged(self) -> AsyncIterator[None]:
        """Whatever gRPC raises within becomes what it means."""
        began_s = time.monotonic()
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise await self._told(error, began_s) from None
        except asyncio.CancelledError:
            # A channel that is closed cancels its calls.
            if self.given_up is None:
                raise
            raise self._down(self.given_up) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            # What it says on a call that has ended, and after that.
            raise self._down(self.given_up or "the call ended early") from None
        self._heard_s = time.monotonic()

    async def _told(self, error: grpc.aio.AioRpcError, began_s: float) -> StoreError:
        code, details = error.code(), error.details() or ""
        if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
            await self.give_up(details)
            return self._down(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or details in _LATE:
            took_s = time.monotonic() - began_s
            why = f"no answer within {took_s:.1f} s"
            # One slow answer beside others that came is no reason to break every watch.
            if self._heard_s <= began_s and took_s >= self._fair_s:
                await self.give_up(why)
            return self._down(why)
        return RefusedError(f"etcd at {self.endpoint} refused: {details}{self._advice(code)}", code)

    def _down(self, why: str) -> StoreDownError:
        return StoreDownError(
            f"etcd at {self.endpoint} does not answer ({why}): is it running there? --etcd-endpoint says where it is"
        )

    def _advice(self, code: grpc.StatusCode) -> str:
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return f"; user {self._user[0]!r} needs a role with the keys under etcd_prefix" if self._user else ""
        if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED}:
            return "; it may want etcd_user and etcd_password" if self._user is None else "; check etcd_password"
        return ""


def _is_stale_token(error: RefusedError) -> bool:
    return error.code is grpc.StatusCode.UNAUTHENTICATED or "auth store is old" in str(error)


def _left_s(deadline_s: float) -> float:
    return max(deadline_s - time.monotonic(), 0.001)
