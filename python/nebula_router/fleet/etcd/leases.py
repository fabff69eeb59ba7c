"""What the life of a key hangs on: one lease for each ttl, kept alive until the store is closed.

The keeping is done on the I/O thread, so that a short hang of the caller's event loop costs no key. But a loop that
has not turned for `HANG_S` counts as dead: a node that does nothing any more must not look alive for ever.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Final, TypeVar

from nebula_router.fleet.etcd.link import RefusedError
from nebula_router.fleet.etcd.rpc import grpc, message
from nebula_router.fleet.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nebula_router.fleet.etcd.client import Client

T = TypeVar("T")

HANG_S: Final = 30.0
"""Time without a turn of the caller's event loop after which nothing of it is kept alive."""
_RETRY_S: Final = 0.5
"""Wait before an etcd that did not answer is asked again."""

_log = logging.getLogger(__name__)


class Leases:
    """The leases of one store object, by their whole seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._leases: dict[int, int] = {}
        self._granting = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._turned_s = 0.0

    async def use(self, ttl_s: float, home: asyncio.AbstractEventLoop, write: Callable[[int], Awaitable[T]]) -> T:
        """What the write returns, to which a lease with the ttl is given; a lease that is gone is granted anew.

        `home` is the event loop that must turn for the lease to be kept alive.
        """
        self._home, self._turned_s = home, time.monotonic()
        seconds = max(1, math.ceil(ttl_s))
        lease = await self._granted(seconds)
        try:
            return await write(lease)
        except RefusedError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
        self._forget(seconds, lease)
        return await write(await self._granted(seconds))

    async def close(self) -> None:
        """End all leases, and with them their keys; where etcd does not answer, they end by themselves."""
        if self._keeper is not None:
            self._keeper.cancel()
        ends = (self._client.ask("LeaseRevoke", message("LeaseRevokeRequest")(ID=id_)) for id_ in self._leases.values())
        for error in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(error, StoreError):
                _log.info("keys of this process stay until their time is over: %s", error)
        self._leases.clear()

    async def _granted(self, seconds: int) -> int:
        async with self._granting:
            if seconds not in self._leases:
                answer = await self._client.ask("LeaseGrant", message("LeaseGrantRequest")(TTL=seconds))
                self._leases[seconds] = answer.ID
            if self._keeper is None:
                self._keeper = asyncio.get_running_loop().create_task(self._keep())
            return self._leases[seconds]

    def _forget(self, seconds: int, lease: int) -> None:
        if self._leases.get(seconds) == lease:
            del self._leases[seconds]

    async def _keep(self) -> None:
        answered = True
        while True:
            # A third leaves two more tries before a lease is over.
            wait_s = min(self._leases, default=1) / 3
            await asyncio.sleep(wait_s if answered else min(wait_s, _RETRY_S))
            if self._home_turns():
                kept = [self._kept(seconds, lease) for seconds, lease in self._leases.items()]
                answered = all(await asyncio.gather(*kept))

    async def _kept(self, seconds: int, lease: int) -> bool:
        """Whether etcd answered."""
        try:
            left_s = await self._client.keep_alive(lease)
        except StoreError as error:
            _log.debug("a lease could not be kept alive: %s", error)
            return False
        if left_s <= 0:
            _log.warning("etcd ended a lease of %d s: its keys are gone until they are put again", seconds)
            self._forget(seconds, lease)
        return True

    def _home_turns(self) -> bool:
        if self._home is not None and not self._home.is_closed():
            try:
                self._home.call_soon_threadsafe(self._turn)
            except RuntimeError:
                _log.debug("the event loop was closed, but not its store")
        return time.monotonic() - self._turned_s < HANG_S

    def _turn(self) -> None:
        self._turned_s = time.monotonic()
