"""Waits that end, and that a cancellation always gets through to; before Python 3.12 `asyncio.wait_for` loses some."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

T = TypeVar("T")

_AGAIN_S: Final = 1.0


async def happened(event: asyncio.Event, within_s: float | None) -> bool:
    """Whether the event is set, now or within that time."""
    if event.is_set() or (within_s is not None and within_s <= 0):
        return event.is_set()
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=within_s)
    finally:
        waiting.cancel()
    return event.is_set()


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns.

    Raises:
        asyncio.TimeoutError: It takes longer; by then it is cancelled, and over.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        await ended([task])
    raise asyncio.TimeoutError


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel what still runs, again where that did not help; what they fail with does not matter any more."""
    left = [task for task in tasks if not task.done()]
    while left:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN_S)
        left = [task for task in left if not task.done()]
