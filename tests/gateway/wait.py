"""Waiting with a deadline: the only place where these tests let time pass."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable

import anyio

STEP_S = 0.01
WITHIN_S = 20.0
"""Far above what anything here takes: the machine may be busy with much else."""


async def until(what: str, probe: Callable[[], bool | Awaitable[bool]], within_s: float = WITHIN_S) -> None:
    """Returns once ``probe()``, which may be a coroutine function, says so; it is asked once more when the time is up.

    Raises:
        TimeoutError: it never did; the text names ``what``.
    """
    deadline = anyio.current_time() + within_s
    while True:
        late = anyio.current_time() >= deadline
        value = probe()
        if isawaitable(value):
            value = await value
        if value:
            return
        if late:
            raise TimeoutError(f"{what}: not within {within_s} s")
        await anyio.sleep(STEP_S)
