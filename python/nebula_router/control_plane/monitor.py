"""Looks at what the core's probes found of every instance, and moves its health."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from nebula_router.control_plane.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from nebula_router.control_plane.engines import Engines, State
    from nebula_router.control_plane.fleet import Fleet, Member
    from nebula_router.control_plane.instance import ExecutionInstance

_LOG: Final = logging.getLogger(__name__)
_FIRST_LOOK_S: Final = 0.01
"""After this, and after twice as long each time, new instances are looked at until their first probe is over."""


class Monitor:
    """The health of a fleet, by probes; what requests tell of it comes through `rest`."""

    def __init__(
        self,
        fleet: Fleet,
        engines: Engines,
        interval: float,
        on_removed: Callable[[ExecutionInstance], None],
        on_recovered: Callable[[], None],
    ) -> None:
        """Look every `interval` seconds, and tell whom it concerns."""
        self._fleet = fleet
        self._engines = engines
        self._interval = interval
        self._on_removed = on_removed
        self._on_recovered = on_recovered
        self._bell = Bell()
        self._soon = _FIRST_LOOK_S

    def came(self) -> None:
        """Look soon: there is a new instance."""
        self._soon = _FIRST_LOOK_S
        self._bell.ring()

    async def run(self) -> None:
        """Look on until cancelled."""
        now = asyncio.get_running_loop().time
        self._soon, due = _FIRST_LOOK_S, now() + self._interval
        for member in self._fleet.members:
            member.health.is_new = True  # a new core has probed nobody yet
        while True:
            has_new = any(member.health.is_new for member in self._fleet.members)
            await self._bell.wait(max(0.0, min(due - now(), self._soon) if has_new else due - now()))
            if has_new:
                self._soon *= 2
            is_due = now() >= due
            if is_due:
                due = now() + self._interval
            self.look(only_new=not is_due)

    def look(self, *, only_new: bool = False) -> None:
        """Take over what the latest probes found, of every instance or only of new ones."""
        states = self._engines.states()
        for member in self._fleet.members:
            if member.health.is_new or not only_new:
                self._note(member, states[member.instance.instance_id])

    def rest(self, member: Member, why: str) -> None:
        """Hold requests back from an instance that failed one, until a probe succeeds."""
        if member.instance.is_healthy:
            _LOG.warning("instance %s gets no requests until a probe succeeds: %s", member.instance.instance_id, why)
        member.health.rest()

    def failed(self, member: Member, why: str) -> None:
        """Note a failed probe."""
        self.rest(member, why)
        if member.health.failed():
            _LOG.warning("instance %s is removed until a probe succeeds: %s", member.instance.instance_id, why)
            self._on_removed(member.instance)

    def _note(self, member: Member, state: State) -> None:
        instance = member.instance
        if state.status == "down":
            self.failed(member, "it does not answer probes")
        elif state.models and instance.model_name not in state.models:
            served = ", ".join(sorted(state.models))
            self.failed(member, f"it is registered with model {instance.model_name}, and its engine serves {served}")
        elif state.status == "ready" and state.models and member.health.recovered():
            _LOG.info("instance %s takes requests", instance.instance_id)
            self._on_recovered()
