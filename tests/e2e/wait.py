"""Waiting with a deadline: the only place where the tests let time pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP_S = 0.02


def until(what: str, probe: Callable[[], T], within_s: float) -> T:
    """The first truthy value of ``probe()``; it is asked once more when the time is up.

    Raises:
        TimeoutError: it never was truthy; the text names ``what`` and the last value.
    """
    deadline = time.monotonic() + within_s
    while True:
        late = time.monotonic() >= deadline
        if value := probe():
            return value
        if late:
            raise TimeoutError(f"{what}: not within {within_s} s, last seen {value!r}")
        time.sleep(STEP_S)
