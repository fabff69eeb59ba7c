"""A replica as a pure state machine: what happened comes in with its time, and what to do next can be read off it.

WAITING ──started──> STARTING ──healthy──> READY <──> UNHEALTHY      looks that are missed, and healthy again
   ^  └─────────── ended ─┴────────────────┴──────────────┤
   │                                                   ENDING        no answer for too long: its process must end
   ├── ended, too often before it was ever ready ──> GIVEN_UP        until its plan changes
   │
   └── any of them, retired: DRAINING ──drained──> STOPPING ──ended──> STOPPED
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from nebula_router.fleet.records import EndpointStatus


class Phase(str, Enum):
    """Where a replica is."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    ENDING = "ending"
    GIVEN_UP = "given_up"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


_STATUS = {
    Phase.WAITING: EndpointStatus.STARTING,
    Phase.STARTING: EndpointStatus.STARTING,
    Phase.READY: EndpointStatus.READY,
    Phase.UNHEALTHY: EndpointStatus.UNHEALTHY,
    Phase.ENDING: EndpointStatus.STARTING,
    Phase.GIVEN_UP: EndpointStatus.UNHEALTHY,
    Phase.DRAINING: EndpointStatus.DRAINING,
    Phase.STOPPING: EndpointStatus.DRAINING,
}
_RUNS = frozenset({Phase.STARTING, Phase.READY, Phase.UNHEALTHY})
_RETIRED = frozenset({Phase.DRAINING, Phase.STOPPING, Phase.STOPPED})


@dataclass(frozen=True, slots=True)
class Limits:
    """When a replica counts as what."""

    ready_timeout_s: float
    health_failures: int
    backoff_s: float
    backoff_max_s: float
    """Also the time that a replica must be ready for its ends before that to be forgotten."""
    cap: int
    """Starts in a row that failed, after which it is given up; 0 is never."""

    @property
    def unhealthy_at(self) -> int:
        """Looks in a row that are missed, at which it is announced as unhealthy."""
        return (self.health_failures + 1) // 2


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica between two events."""

    limits: Limits
    phase: Phase = Phase.WAITING
    due: float = 0.0
    """WAITING: when it is to be started. STARTING: until when it must have been healthy."""
    missed: int = 0
    """Looks in a row."""
    ready_since: float | None = None
    """None where its present process, or the last one, was never ready."""
    ends: int = 0
    """Ends in a row, between which it was not ready for long."""
    failed: int = 0
    """Starts in a row that were never ready."""
    why: str | None = None
    """Why it does not run, or did not until it is ready again."""

    @property
    def status(self) -> EndpointStatus | None:
        """What is announced of it; nothing once it is stopped."""
        return _STATUS.get(self.phase)

    @property
    def is_retired(self) -> bool:
        """Whether it is on its way out."""
        return self.phase in _RETIRED

    @property
    def has_process(self) -> bool:
        """Whether it runs, or may."""
        return self.phase in _RUNS | {Phase.ENDING, Phase.DRAINING, Phase.STOPPING}

    def started(self, now: float) -> Replica:
        """Its process runs."""
        due = now + self.limits.ready_timeout_s
        return replace(self, phase=Phase.STARTING, due=due, missed=0, ready_since=None)

    def looked(self, why: str | None, now: float) -> Replica:
        """It was asked how it is: well, or `why` not."""
        if self.phase not in _RUNS:
            return self
        if why is not None:
            return self._missed(why, now)
        since = now if self.ready_since is None else self.ready_since
        ends = 0 if now - since >= self.limits.backoff_max_s else self.ends
        return replace(self, phase=Phase.READY, missed=0, ready_since=since, ends=ends, failed=0, why=None)

    def _missed(self, why: str, now: float) -> Replica:
        if self.phase is Phase.STARTING:
            if now < self.due:
                return self
            text = f"not healthy within {self.limits.ready_timeout_s:g} s of its start: {why}"
            return replace(self, phase=Phase.ENDING, why=text)
        missed = self.missed + 1
        text = f"not healthy {missed} times in a row: {why}"
        if missed >= self.limits.health_failures:
            return replace(self, phase=Phase.ENDING, missed=missed, why=text)
        if missed >= self.limits.unhealthy_at:
            return replace(self, phase=Phase.UNHEALTHY, missed=missed, why=text)
        return replace(self, missed=missed)

    def ended(self, why: str, now: float) -> Replica:
        """It has no process any more, or could not be given one."""
        if self.is_retired:
            return replace(self, phase=Phase.STOPPED)
        ends = self.ends + 1
        failed = self.failed + (self.ready_since is None)
        after = replace(self, missed=0, ready_since=None, ends=ends, failed=failed, why=why)
        if self.limits.cap and failed >= self.limits.cap:
            return replace(after, phase=Phase.GIVEN_UP)
        wait_s = min(self.limits.backoff_s * 2.0 ** min(ends - 1, 30), self.limits.backoff_max_s)
        return replace(after, phase=Phase.WAITING, due=now + wait_s)

    def retired(self) -> Replica:
        """It is not wanted any more."""
        if self.phase in {Phase.READY, Phase.UNHEALTHY}:
            return replace(self, phase=Phase.DRAINING)
        if self.phase in {Phase.STARTING, Phase.ENDING}:
            return replace(self, phase=Phase.STOPPING)
        return self if self.is_retired else replace(self, phase=Phase.STOPPED)

    def wanted_again(self) -> Replica:
        """It is wanted after all, while it still has requests."""
        return replace(self, phase=Phase.READY, missed=0) if self.phase is Phase.DRAINING else self

    def drained(self) -> Replica:
        """Its requests are done, or have had their time."""
        return replace(self, phase=Phase.STOPPING) if self.phase is Phase.DRAINING else self
