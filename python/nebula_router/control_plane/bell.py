"""A task that sleeps until it is rung or its time has come."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes one task. What rings while the task is busy wakes it next time.

    `asyncio.wait_for` would do, but before Python 3.12 it swallows a cancellation that comes together with the ring:
    whoever stops the task then waits forever.
    """

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the task."""
        self._rung.set()

    async def wait(self, within_s: float | None) -> None:
        """Return when rung, or after that time; `None` waits for the ring alone."""
        timer = None if within_s is None else asyncio.get_running_loop().call_later(within_s, self.ring)
        try:
            await self._rung.wait()
            self._rung.clear()
        finally:
            if timer is not None:
                timer.cancel()
