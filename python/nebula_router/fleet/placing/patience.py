"""What must have been so for a while before a scheduler acts on it: a node that is gone, a replica that is idle."""

from typing import Final

from nebula_router.fleet.placing.snapshot import Replica, Snapshot
from nebula_router.fleet.records import Assignment, EndpointInfo
from nebula_router.fleet.settings import SchedulerSettings

AWAY_S: Final = 5.0
"""Time beyond its interval that a scheduler may have been asleep and still trust what it saw before."""
UNNOTICED_S: Final = 3.0
"""Time in which gateways may still send to a replica that drains: idleness before that shows nothing."""


class Absence:
    """Since when nodes that have replicas are missing. Times are of one monotonic clock, in seconds."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._since: dict[str, float] = {}
        self._looked: float | None = None
        self._quiet_until = 0.0

    def reset(self, now: float) -> None:
        """Begin again: what was seen before says nothing, as after an outage of the store, which ends all leases."""
        self._since.clear()
        self._quiet_until = now + self._settings.settle_s
        self._looked = now

    def lost(self, fleet: Snapshot, now: float) -> frozenset[str]:
        """Nodes that are missing for long enough."""
        if self._looked is None or now - self._looked > self._settings.interval_s + AWAY_S:
            self.reset(now)
        self._looked = now
        used = {assignment.node_id for plan in fleet.plans.values() for assignment in plan.assignments}
        self._since = {node_id: self._since.get(node_id, now) for node_id in used - set(fleet.nodes)}
        if now < self._quiet_until:
            return frozenset()
        return frozenset(n for n, since in self._since.items() if now - since >= self._settings.lost_after_s)

    def next_at(self) -> float | None:
        """When the next of them is lost, as far as is known."""
        due = [max(self._quiet_until, since + self._settings.lost_after_s) for since in self._since.values()]
        return min((at for at in due if self._looked is None or at > self._looked), default=None)


class Drains:
    """Since when replicas drain, and which of them may go."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._grace_s = settings.drain_grace_s
        self._since: dict[Replica, tuple[float, int]] = {}
        self._looked = 0.0

    def gone(self, fleet: Snapshot, now: float, now_ms: int) -> frozenset[Replica]:
        """Replicas that drain and are idle, have no engine any more, or have had their time."""
        draining = {
            (uid, assignment.replica_id): assignment
            for uid, plan in fleet.plans.items()
            for assignment in plan.assignments
            if assignment.draining
        }
        self._looked = now
        self._since = {replica: self._since.get(replica, (now, now_ms)) for replica in draining}
        return frozenset(
            replica
            for replica, (since, since_ms) in self._since.items()
            if now - since >= self._grace_s or _is_idle(fleet, replica, draining[replica], since_ms, now_ms)
        )

    def next_at(self) -> float | None:
        """When the next of them has had its time."""
        due = (since + self._grace_s for since, _ in self._since.values())
        return min((at for at in due if at > self._looked), default=None)


def _is_idle(fleet: Snapshot, replica: Replica, assignment: Assignment, since_ms: int, now_ms: int) -> bool:
    if assignment.node_id not in fleet.nodes:
        return False
    endpoint: EndpointInfo | None = fleet.endpoints.get(replica)
    if endpoint is None or endpoint.node_id != assignment.node_id:
        return True
    noticed_ms = since_ms + int(UNNOTICED_S * 1000)
    if now_ms < noticed_ms:
        return False
    stats = endpoint.stats
    return (
        stats is not None
        and stats.read_at_ms is not None
        and stats.read_at_ms >= noticed_ms
        and stats.running == 0
        and stats.waiting == 0
    )
