"""From the I/O thread to a consumer on another event loop: in order, at once, and never more than there is room for."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from nebula_router.fleet.store import StoreClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from concurrent.futures import Future

T = TypeVar("T")

MOST_BATCHES: Final = 256
"""That wait for a consumer. More stay with gRPC, and so with etcd, until there is room: nothing is lost by that."""


class Feed(Generic[T]):
    """Batches of things that `pump` brings and `next` takes. Made on the consumer's event loop."""

    def __init__(self) -> None:
        self._batches: deque[Sequence[T]] = deque()
        self._error: BaseException | None = None
        self._home = asyncio.get_running_loop()
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._io: asyncio.AbstractEventLoop | None = None

    async def pump(self, source: AsyncGenerator[Sequence[T], None]) -> None:
        """Bring what the source has, on the I/O thread, until it fails or the consumer's event loop is gone."""
        self._io = asyncio.get_running_loop()
        async with aclosing(source):
            async for batch in source:
                self._batches.append(batch)
                if not self._wake():
                    return
                while len(self._batches) >= MOST_BATCHES:
                    await self._room.wait()
                    self._room.clear()

    def end(self, pumped: Future[None]) -> None:
        """Tell the consumer, after all the rest, how pumping ended. Called on any thread."""
        closed = StoreClosedError("the store was closed")
        self._error = closed if pumped.cancelled() else pumped.exception() or closed
        self._wake()

    async def next(self) -> list[T]:
        """All that is there, once something is."""
        while not self._batches:
            if self._error is not None:
                raise self._error
            self._some.clear()
            await self._some.wait()
        taken: list[T] = []
        was_full = len(self._batches) >= MOST_BATCHES
        while self._batches:
            taken += self._batches.popleft()
        if was_full and self._io is not None:
            self._io.call_soon_threadsafe(self._room.set)
        return taken

    def _wake(self) -> bool:
        try:
            self._home.call_soon_threadsafe(self._some.set)
        except RuntimeError:
            return False
        return True
