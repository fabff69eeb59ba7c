"""Models x nodes -> placements, with reasons. Pure: the same fleet gives the same plans, and those change nothing more.

What is there stays: a replica keeps its node, GPUs and port, and so its running engine, until its node is lost, its
settings change or there is one too many. A GPU and a port have one replica at most, forced or not: `force` puts a
replica where its memory may not suffice, never beside another one.

A replica whose new settings fit nowhere keeps running by its old ones, and the reason is among the refusals. A plan
that no spec asks for, as one that was written by hand, is left alone; what it has is taken.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from nebula_router.fleet.placing.room import Room
from nebula_router.fleet.placing.site import Refusal, Site, Strategy, Wanted, find_site, gpus_of
from nebula_router.fleet.placing.snapshot import Replica, Snapshot
from nebula_router.fleet.records import Assignment, ModelSpec, PlacementPlan, Pool, Role

_NOBODY: Final[frozenset[Replica]] = frozenset()
_FILE: Final = "engine_config_path"
_ENGINE: Final = ("engine_args", "extra_args", "engine_type", "docker_image", "env", _FILE)
"""What pool and assignment both say of an engine."""


@dataclass(frozen=True)
class Outcome:
    """What a model's placement is to be."""

    plan: PlacementPlan
    changed: bool
    """Whether it has to be written."""
    refusals: dict[int, str] = field(default_factory=dict)
    """Why replicas have no place, or not that of their new settings, by replica id."""


def plan(
    fleet: Snapshot,
    strategy: Strategy = "spread",
    lost: Collection[str] = frozenset(),
    gone: Collection[Replica] = _NOBODY,
) -> dict[str, Outcome]:
    """The placement of every model that has a spec.

    Args:
        fleet: What is stored of it.
        strategy: Whether replicas go to the emptiest nodes or fill one after the other.
        lost: Nodes whose replicas move elsewhere. Those of a node that is merely missing stay.
        gone: Draining replicas that may go now.

    Cost: O(replicas x nodes x GPUs of a node).
    """
    room = Room(fleet)
    drafts = [_Draft(fleet, room, spec) for _, spec in sorted(fleet.specs.items())]
    for uid, written in sorted(fleet.plans.items()):
        if uid not in fleet.specs:
            for assignment in written.assignments:
                room.book(uid, assignment)
    for draft in drafts:
        draft.keep(lost, gone)
    # What one leaves another may take: again until nothing moves, so that planning again changes nothing.
    while any(draft.change(lost, strategy) for draft in drafts):
        pass
    # Those with the fewest choices come first: pinned ones, then the largest.
    missing = [(draft, role, replica_id) for draft in drafts for role, replica_id in draft.missing()]
    for draft, role, replica_id in sorted(missing, key=lambda found: (*_choices(found[0].pool(found[1])), found[2])):
        draft.place(role, replica_id, strategy)
    return {draft.uid: draft.outcome() for draft in drafts}


def wanted_replicas(pool: Pool) -> int:
    """How many replicas the pool is to have: within its bounds, where it has both."""
    if pool.min_replicas is None or pool.max_replicas is None:
        return pool.replicas
    return min(max(pool.replicas, pool.min_replicas), max(pool.max_replicas, pool.min_replicas))


def _choices(pool: Pool) -> tuple[bool, int, int]:
    return pool.node_id is None and pool.port is None, -gpus_of(pool), -(pool.required_vram_mb or 0)


class _Draft:
    """One model's next plan while it is made."""

    def __init__(self, fleet: Snapshot, room: Room, spec: ModelSpec) -> None:
        self.uid = spec.model_uid
        self._fleet = fleet
        self._room = room
        self._spec = spec
        self._before = fleet.plans.get(spec.model_uid)
        self._version = self._before.version + 1 if self._before else 1
        self._kept: dict[int, Assignment] = {}
        self._vacant: dict[int, Role] = {}
        self._reasons: dict[int, str] = {}
        self._refusals: dict[int, str] = {}

    def pool(self, role: Role) -> Pool:
        """What the replicas of a role are."""
        return self._spec.pools[role]

    def keep(self, lost: Collection[str], gone: Collection[Replica]) -> None:
        """Books what stays, and drains what is too much."""
        for assignment in self._before.assignments if self._before else ():
            if assignment.draining and ((self.uid, assignment.replica_id) in gone or assignment.node_id in lost):
                continue
            if self._room.book(self.uid, assignment):
                self._kept[assignment.replica_id] = self._pinned(assignment)
            elif assignment.role in self._spec.pools and not assignment.draining:
                self._vacant[assignment.replica_id] = assignment.role
        for role in Role:
            pool = self._spec.pools.get(role)
            active = self._active(role)
            surplus = len(active) - (wanted_replicas(pool) if pool else 0)
            for assignment in sorted(active, key=self._worth)[: max(surplus, 0)]:
                self._drain(assignment, lost)

    def _drain(self, assignment: Assignment, lost: Collection[str]) -> None:
        """Lets a replica end its requests; one on a lost node has none."""
        if assignment.node_id in lost:
            self._room.release(self.uid, self._kept.pop(assignment.replica_id))
            return
        self._kept[assignment.replica_id] = assignment.model_copy(update={"draining": True})
        role = assignment.role.value
        self._reasons[assignment.replica_id] = f"drains on {assignment.node_id}: one more than {role} is to have"

    def change(self, lost: Collection[str], strategy: Strategy) -> bool:
        """Moves replicas off lost nodes and gives them the settings of their pool; whether any was.

        One that fits nowhere else stays as it is: a node that comes back may still run it.
        """
        moved = False
        for assignment in [a for role in self._spec.pools for a in self._active(role)]:
            pool, replica_id = self.pool(assignment.role), assignment.replica_id
            is_lost = assignment.node_id in lost and pool.node_id != assignment.node_id
            if _is_as(assignment, pool) and not is_lost:
                continue
            if assignment.node_id not in {*self._fleet.nodes, *lost} and pool.node_id is None:
                self._refusals[replica_id] = f"its node {assignment.node_id} is missing; new settings wait for it"
                continue
            self._room.release(self.uid, assignment)
            if self.place(assignment.role, replica_id, strategy, assignment):
                self._refusals.pop(replica_id, None)
                moved = True
            else:
                self._room.book(self.uid, assignment)
        return moved

    def missing(self) -> Iterable[tuple[Role, int]]:
        """Replicas that have no place yet; one that lost its place keeps its id."""
        taken = set(self._kept)
        for role, pool in self._spec.pools.items():
            lacking = wanted_replicas(pool) - len(self._active(role))
            vacant = sorted(id_ for id_, vacated in self._vacant.items() if vacated is role and id_ not in taken)
            for _ in range(lacking):
                free = (n for n in range(len(taken) + len(self._vacant) + 1) if n not in taken | set(self._vacant))
                replica_id = vacant.pop(0) if vacant else next(free)
                taken.add(replica_id)
                yield role, replica_id

    def place(self, role: Role, replica_id: int, strategy: Strategy, before: Assignment | None = None) -> bool:
        """Finds a place for a replica; whether there is one."""
        pool = self.pool(role)
        beside = [a.node_id for a in self._kept.values() if a.replica_id != replica_id]
        wanted = Wanted((self.uid, replica_id), pool, beside, before)
        site = find_site(self._fleet.nodes.values(), self._room, wanted, strategy)
        if isinstance(site, Refusal):
            self._refusals[replica_id] = site.why
            return False
        assignment = _assignment(replica_id, role, pool, site, self._version)
        self._room.book(self.uid, assignment)
        self._kept[replica_id] = assignment
        self._reasons[replica_id] = site.why
        return True

    def outcome(self) -> Outcome:
        """The plan as it stands, a new version only where something changed."""
        assignments = tuple(self._kept[replica_id] for replica_id in sorted(self._kept))
        before = self._before
        if before is None:
            changed = True
        else:
            was = tuple(sorted((self._pinned(a) for a in before.assignments), key=lambda a: a.replica_id))
            had_none = {int(id_) for id_ in before.reasons or {} if id_.isdigit()} - {
                a.replica_id for a in before.assignments
            }
            has_none = set(self._refusals) - set(self._kept)
            changed = assignments != was or had_none != has_none or before.model_name != self._spec.model_name
        if before is not None and not changed:
            return Outcome(before, changed=False, refusals=self._refusals)
        first = PlacementPlan(model_uid=self.uid, model_name=self._spec.model_name, version=1)
        following = (before or first).model_copy(
            update={
                "model_name": self._spec.model_name,
                "version": self._version,
                "assignments": assignments,
                "reasons": self._texts(),
            }
        )
        return Outcome(following, changed=True, refusals=self._refusals)

    def _texts(self) -> dict[str, str]:
        earlier = (self._before.reasons if self._before else None) or {}
        kept = {id_: earlier.get(str(id_), f"stays on {a.node_id}") for id_, a in self._kept.items()}
        return {str(id_): text for id_, text in sorted((kept | self._refusals | self._reasons).items())}

    def _active(self, role: Role) -> list[Assignment]:
        return [a for _, a in sorted(self._kept.items()) if a.role is role and not a.draining]

    def _pinned(self, assignment: Assignment) -> Assignment:
        """The assignment with the version that it came with, so that a later one does not start its engine again."""
        if assignment.since_version is not None or self._before is None:
            return assignment
        return assignment.model_copy(update={"since_version": self._before.since(assignment)})

    def _worth(self, assignment: Assignment) -> tuple[bool, bool, int, int]:
        """Less goes first: what does not serve, what is on a node that drains, what has least to do, the last one."""
        ready = self._before and self._fleet.ready(self._before, assignment)
        node = self._fleet.nodes.get(assignment.node_id)
        stats = ready.stats if ready else None
        busy = (stats.running or 0) + (stats.waiting or 0) if stats else 0
        return bool(ready), not (node and node.draining), busy, -assignment.replica_id


def _is_as(assignment: Assignment, pool: Pool) -> bool:
    """Whether an assignment is what its pool says. The file matters only where nobody has read it yet."""
    names = [name for name in _ENGINE if name != _FILE or not pool.engine_args]
    return (
        all((getattr(assignment, name) or None) == (getattr(pool, name) or None) for name in names)
        and len(assignment.gpus) == gpus_of(pool)
        and pool.node_id in {None, assignment.node_id}
        and pool.port in {None, assignment.port}
    )


def _assignment(replica_id: int, role: Role, pool: Pool, site: Site, version: int) -> Assignment:
    return Assignment(
        replica_id=replica_id,
        role=role,
        node_id=site.node_id,
        port=site.port,
        gpu_indices=site.gpus,
        required_vram_mb=pool.required_vram_mb,
        since_version=version,
        **{name: getattr(pool, name) or None for name in _ENGINE},
    )
