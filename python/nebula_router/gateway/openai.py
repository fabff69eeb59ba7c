"""The paths that reach an engine: raw ASGI, one crossing into the core per request and one per wake-up back."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nebula_router.config import MB
from nebula_router.core import ClientLeft, NebulaError
from nebula_router.gateway.auth import NEEDS_KEY, Keys, without_authorization
from nebula_router.gateway.errors import FAULT, error_body, send_error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from nebula_router.config import Settings
    from nebula_router.core import Core, Reply

_LOG: Final = logging.getLogger(__name__)

WATCH_AFTER_S: Final = 0.02
"""From this age on a request's client is watched. Most short requests end before, and the watch costs a task."""

LINGER_S: Final = 5.0
"""How long the rest of a refused body is read at most."""
LINGER_IDLE_S: Final = 0.5
"""How long nothing of it has to come until its client is taken to have stopped sending."""


class BodyTooLargeError(Exception):
    """The request's body is above the limit."""


class Proxy:
    """The endpoint of every path that reaches an engine."""

    def __init__(self, core: Core, settings: Settings) -> None:
        """Send requests through `core`."""
        self._core = core
        self._keys = Keys(settings.gateway.api_keys)
        self._max_body = settings.gateway.max_body_mb * MB
        self.active = 0
        """Requests whose last byte has not been handed to the server."""
        self._idle: asyncio.Event | None = None

    async def idle(self) -> None:
        """Return once no request is active."""
        self._idle = asyncio.Event()
        if self.active:
            await self._idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] != "POST":
            body = error_body(405, f"{scope['method']} is not allowed here; use POST")
            return await refuse_unread(receive, send, 405, body, (b"allow", b"POST"))
        headers = scope["headers"]
        if self._keys:
            if not self._keys.admit(headers):
                body = error_body(401, NEEDS_KEY)
                return await refuse_unread(receive, send, 401, body, (b"www-authenticate", b"Bearer"))
            headers = without_authorization(headers)
        self.active += 1
        try:
            body = await read_body(headers, receive, self._max_body)
            reply = self._core.dispatch(scope["path"], scope["query_string"], headers, body)
            await self._relay(reply, receive, send)
        except BodyTooLargeError:
            limit = f"the request body is larger than {self._max_body // MB} MB (setting gateway.max_body_mb)"
            await refuse_unread(receive, send, 413, error_body(413, limit), (b"connection", b"close"))
        except ValueError as error:
            await send_error(send, 400, error_body(400, str(error)))
        except (ClientLeft, asyncio.CancelledError):
            pass
        except NebulaError:
            # The server closes the connection short of the promised length: the client sees the break.
            raise
        except Exception:  # noqa: BLE001 - logged; the client gets an error body like any other
            _LOG.exception("%s %s", FAULT, scope["path"])
            await send_error(send, 500, error_body(500, FAULT))
        finally:
            self.active -= 1
            if self._idle is not None and not self.active:
                self._idle.set()
        return None

    async def _relay(self, reply: Reply, receive: Receive, send: Send) -> None:
        watch = Watch(reply, receive)
        try:
            try:
                part = await reply.part()
            except NebulaError as error:
                return await send_refusal(send, error, reply.request_id)
            await send({"type": "http.response.start", "status": part.status, "headers": part.headers})
            while not part.end:
                await send({"type": "http.response.body", "body": part.body, "more_body": True})
                part = await reply.part()
            await send({"type": "http.response.body", "body": part.body, "more_body": False})
        finally:
            watch.stop()
            reply.cancel()
        return None


class Watch:
    """Stops the engine's work as soon as nobody waits for it any more."""

    __slots__ = ("_receive", "_reply", "_request", "_task", "_timer")

    def __init__(self, reply: Reply, receive: Receive) -> None:
        """Begin once the request is `WATCH_AFTER_S` old."""
        self._reply = reply
        self._receive = receive
        self._request = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def stop(self) -> None:
        """End the watch; the request is over."""
        self._timer.cancel()
        # Let go of it: a cancelled task's traceback holds this object, and a ring of the two waits for the collector.
        task, self._task, self._request = self._task, None, None
        if task is not None:
            task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._reply.cancel()
        # The server never takes what is left for a client that stopped reading before it left.
        if self._request is not None:
            self._request.cancel()


async def read_body(headers: list[tuple[bytes, bytes]], receive: Receive, limit: int) -> bytes:
    """Return the whole body.

    A body of known length is complete once that many bytes are there: asking again would cost another round through
    the server for an empty last message.

    Raises:
        BodyTooLargeError: above `limit`; nothing is read if the headers say so.
        ClientLeft: before the body was complete.

    """
    expected = content_length(headers)
    if expected is not None and expected > limit:
        raise BodyTooLargeError
    chunks: list[bytes] = []
    size = 0
    more = True
    while more and size != expected:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLargeError
        chunks.append(chunk)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def content_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length that the headers promise."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


async def refuse_unread(receive: Receive, send: Send, status: int, body: bytes, *extra: tuple[bytes, bytes]) -> None:
    """Answer before the request's body has been read, then read it to nowhere while it comes.

    A connection that closes on unread bytes is reset, and a client that sends before it reads never sees the answer.
    So the answer has no length: the server would take a complete one for the end of the connection.
    """
    headers = [(b"content-type", b"application/json"), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    now = asyncio.get_running_loop().time
    until, more = now() + LINGER_S, True
    with suppress(asyncio.TimeoutError):
        while more and now() < until:
            more = (await asyncio.wait_for(receive(), LINGER_IDLE_S)).get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_refusal(send: Send, error: NebulaError, request_id: bytes) -> None:
    """Answer with the core's own error body and status."""
    extra = [(b"x-request-id", request_id)]
    if error.retry_after_s is not None:
        extra.append((b"retry-after", str(error.retry_after_s).encode()))
    if error.code == "stopping":
        extra.append((b"connection", b"close"))
    await send_error(send, error.status, error.body, *extra)
