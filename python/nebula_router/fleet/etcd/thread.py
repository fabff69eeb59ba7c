"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

T = TypeVar("T")

JOIN_S: Final = 2.0
"""Longest wait for the thread of a store that was dropped, which takes milliseconds to end."""


class IoThread:
    """Runs coroutines for other threads until it is stopped.

    Plain asyncio, whatever loop the callers use: gRPC's is the only I/O here, and that pair is the best tried one.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.SelectorEventLoop()
        self._ended: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of the coroutine, which runs in the thread; it is cancelled if the caller is."""
        return await asyncio.wrap_future(self.begin(work))

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """The same without waiting for it; cancelling what is returned cancels the work."""
        return asyncio.run_coroutine_threadsafe(_seen(work), self._loop)

    async def stop(self) -> None:
        """Cancel what runs, and return when the thread is gone."""
        home = asyncio.get_running_loop()
        ended = home.create_future()
        self._loop.call_soon_threadsafe(self._leave, home, ended)
        await ended
        self._thread.join()

    def kill(self) -> None:
        """The same from any thread, also at the interpreter's end, with a bound on the wait."""
        if self._thread.is_alive() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            # Garbage is collected by whichever thread is at hand.
            if threading.current_thread() is not self._thread:
                self._thread.join(JOIN_S)

    def _leave(self, home: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        self._home, self._ended = home, ended
        self._loop.stop()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_rest())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            if self._ended is not None:
                self._home.call_soon_threadsafe(self._ended.set_result, None)


async def _seen(work: Coroutine[Any, Any, T]) -> T:
    """The same, and asyncio has no complaint of an error that came when nobody waited for the work any more."""
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return await work


async def _cancel_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
