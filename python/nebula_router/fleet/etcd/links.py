"""Which endpoint is asked: the one that answered last, or the next that does."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nebula_router.fleet.etcd.link import Link, RefusedError
from nebula_router.fleet.etcd.rpc import grpc, message
from nebula_router.fleet.store import StoreDownError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nebula_router.fleet.settings import StoreSettings

MOST_BYTES: Final = 64 * 1024 * 1024
"""Of one answer; gRPC's own bound is 4 MiB, which a long list may pass."""
_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    # A new connection starts without the waits that an older one to the same address has run up.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # etcd is in the fleet's own network, as engines are; and what is sent is sent once.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


class Links:
    """At most one connection at a time."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._link: Link | None = None
        self._making = asyncio.Lock()
        self._turn = 0

    async def current(self, deadline_s: float) -> Link:
        """A connection on which etcd has answered; it is made if there is none.

        Raises:
            StoreDownError: No endpoint answers.
            StoreError: One refused, or a file for TLS cannot be read.
        """
        async with self._making:
            if self._link is None or self._link.given_up is not None:
                self._link = await self._made(deadline_s)
            return self._link

    async def probe(self, deadline_s: float) -> None:
        """Give the connection up if etcd is silent on it.

        A gRPC keepalive could not tell within seconds: etcd refuses any that come more often than each 5 s. And an
        answer to this needs etcd's leader: a member that lost the others is silent, too.
        """
        if self._link is not None and self._link.given_up is None:
            await self._asked(self._link, deadline_s)

    async def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            await self._link.give_up("the store was closed")
            # gRPC's own thread lives as long as any channel.
            self._link = None

    async def _made(self, deadline_s: float) -> Link:
        """The first connection that answers, each endpoint having an equal share of the time."""
        endpoints = self._settings.endpoints
        failures: list[str] = []
        # The one that was given up comes last.
        self._turn += self._link is not None
        for left in range(len(endpoints), 0, -1):
            link = self._opened(endpoints[self._turn % len(endpoints)])
            now_s = time.monotonic()
            try:
                await self._greeted(link, now_s + (deadline_s - now_s) / left)
            except StoreDownError as error:
                self._turn += 1
                failures.append(str(error))
            except BaseException:
                self._turn += 1
                await link.give_up("the connection did not come about")
                raise
            else:
                return link
        raise StoreDownError("; ".join(failures))

    async def _greeted(self, link: Link, deadline_s: float) -> None:
        try:
            await link.sign_in(deadline_s)
            await self._asked(link, deadline_s)
        except StoreDownError as error:
            await link.give_up(str(error))
            raise

    async def _asked(self, link: Link, deadline_s: float) -> None:
        key = f"{self._settings.etcd_prefix}/".encode()
        try:
            await link.ask("Range", message("RangeRequest")(key=key, count_only=True), deadline_s)
        except RefusedError as error:
            # To a user who may not read just this key, that is an answer as good as any.
            if error.code is not grpc.StatusCode.PERMISSION_DENIED:
                raise

    def _opened(self, endpoint: str) -> Link:
        url = urlsplit(endpoint)
        if url.scheme == "https":
            channel = grpc.aio.secure_channel(url.netloc, self._credentials(), options=_OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(url.netloc, options=_OPTIONS)
        name, password = self._settings.etcd_user, self._settings.etcd_password
        user = None if name is None else (name, "" if password is None else password.get_secret_value())
        return Link(endpoint, channel, user, self._settings.timeout_s / 4)

    def _credentials(self) -> grpc.ChannelCredentials:
        files = {name: getattr(self._settings, name) for name in ("etcd_ca_file", "etcd_key_file", "etcd_cert_file")}
        return grpc.ssl_channel_credentials(*(path and _read(name, path) for name, path in files.items()))


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"{name}: {path} cannot be read: {error.strerror}") from None
