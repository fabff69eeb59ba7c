"""Waiting with a deadline: the only place where these tests let time pass."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TypeVar

import anyio

T = TypeVar("T")

STEP_S = 0.01
WITHIN_S = 20.0
"""Far above what anything here takes: the machine may be busy with much else."""


async def until(what: str, probe: Callable[[], T | Awaitable[T]], within_s: float = WITHIN_S) -> T:
    """The first truthy value of ``probe()``, which may be a coroutine function.

    Raises:
        TimeoutError: it never was truthy; the text names ``what`` and the last value.
    """
    deadline = anyio.current_time() + within_s
    while True:
        late = anyio.current_time() >= deadline
        value = probe()
        if isawaitable(value):
            value = await value
        if value:
            return value
        if late:
            raise TimeoutError(f"{what}: not within {within_s} s, last seen {value!r}")
        await anyio.sleep(STEP_S)
