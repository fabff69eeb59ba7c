"""What a scheduler would change in a fleet as it is now. No I/O; it remembers only since when things are so."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from nebula_router.fleet.placing.autoscale import step
from nebula_router.fleet.placing.patience import Absence, Drains
from nebula_router.fleet.placing.snapshot import Replica, Snapshot
from nebula_router.fleet.records import (
    PLACEMENTS,
    ModelRequest,
    ModelSpec,
    Pool,
    Role,
    model_request_key,
    placement_key,
    spec_key,
)
from nebula_router.fleet.schedule import Outcome, plan, wanted_replicas
from nebula_router.fleet.settings import SchedulerSettings

MOST_BYTES: Final = 512 * 1024
"""Size of one decision's placements: etcd takes 1.5 MiB in one request by default."""


@dataclass(frozen=True)
class Sizing:
    """A spec with what its replicas need filled in, or why that cannot be told."""

    spec: ModelSpec
    wrong: str | None = None


def merged(before: ModelSpec | None, asked: ModelSpec) -> ModelSpec:
    """A model's spec with the asked pools over those that are there; pools of other roles stay."""
    if before is None:
        return asked
    known = {**before.__dict__, **asked.__dict__, "pools": {**before.pools, **asked.pools}}
    return before.model_copy(update={**(asked.model_extra or {}), **known})


def unplaced(spec: ModelSpec, outcome: Outcome, roles: Mapping[Role, Pool]) -> str | None:
    """Why none of the replicas of one of these roles has a place by its spec; none where each has some."""
    placed = [a.role for a in outcome.plan.assignments if not a.draining and a.replica_id not in outcome.refusals]
    for role in roles:
        if wanted_replicas(spec.pools[role]) and role not in placed:
            reasons = dict.fromkeys(outcome.refusals.values()) or ["nothing was refused"]
            return "; ".join(reasons)
    return None


class Decider:
    """A scheduler's mind: from what it sees to what should be written."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._absence = Absence(settings)
        self._drains = Drains(settings)
        self._told: dict[str, str] = {}
        self.words: list[tuple[int, str]] = []
        """What the last changes are about, to be logged once they are made: level and text."""

    def doubt(self, now: float) -> None:
        """The store was out of reach: nodes that are missing now may just not have come back to it."""
        self._absence.reset(now)

    def next_at(self) -> float | None:
        """When something is due that no change announces."""
        return min((at for at in (self._absence.next_at(), self._drains.next_at()) if at is not None), default=None)

    def changes(
        self, fleet: Snapshot, sizings: Mapping[str, Sizing], now: float, now_ms: int
    ) -> dict[str, bytes | None]:
        """Next values by key; none removes the key.

        Args:
            fleet: What is stored.
            sizings: Of the specs in `fleet`, by the key that has them; one that is missing counts as it is.
            now: Monotonic time, in seconds.
            now_ms: Unix time.
        """
        self.words = []
        self._tell_unreadable(fleet)
        if any(key.startswith(PLACEMENTS) for key in fleet.unreadable):
            return {}  # What it gives away cannot be told, so nothing is given away.
        lost, gone = self._absence.lost(fleet, now), self._drains.gone(fleet, now, now_ms)
        values: dict[str, bytes | None] = {}
        fleet = self._scaled(self._sized(fleet, sizings), now_ms, values)
        fleet = _unloaded(fleet, values)
        for request in sorted(fleet.requests.values(), key=lambda r: (r.created_at_ms, r.id)):
            if request.status == "Pending":
                fleet = self._answered(fleet, request, sizings, (lost, gone), values)
        outcomes = self._planned(fleet, lost, gone)
        for uid, outcome in outcomes.items():
            self._tell(uid, outcome)
            if outcome.changed:
                values[placement_key(uid)] = outcome.plan.stored()
        values |= _running(fleet, outcomes)
        return values

    def _planned(self, fleet: Snapshot, lost: frozenset[str], gone: frozenset[Replica]) -> dict[str, Outcome]:
        """The plans of all models, or of so many that a decision can hold them: the others keep what they have."""
        while True:
            outcomes = plan(fleet, self._settings.strategy, lost, gone)
            changed = [uid for uid, outcome in outcomes.items() if outcome.changed]
            size = sum(len(outcomes[uid].plan.stored()) for uid in changed)
            if size <= MOST_BYTES or len(changed) == 1:
                return outcomes
            some = changed[: len(changed) // 2]
            fleet = replace(fleet, specs={uid: fleet.specs[uid] for uid in some})

    def _sized(self, fleet: Snapshot, sizings: Mapping[str, Sizing]) -> Snapshot:
        """The fleet with what each model needs; a model whose settings are wrong keeps what it has."""
        specs: dict[str, ModelSpec] = {}
        for uid, spec in fleet.specs.items():
            sizing = sizings.get(spec_key(uid), Sizing(spec))
            self._tell_once(spec_key(uid), sizing.wrong or "", sizing.wrong or "")
            if sizing.wrong is None:
                specs[uid] = sizing.spec
        return replace(fleet, specs=specs)

    def _scaled(self, fleet: Snapshot, now_ms: int, values: dict[str, bytes | None]) -> Snapshot:
        """The fleet with pools of another size, where their load asks for it."""
        if not self._settings.autoscale:
            return fleet
        for uid, spec in fleet.specs.items():
            written = fleet.plans.get(uid)
            pools = dict(spec.pools)
            for role, pool in spec.pools.items():
                active = [a for a in (written.assignments if written else ()) if a.role is role and not a.draining]
                serving = [ready for a in active if written and (ready := fleet.ready(written, a))]
                found = step(pool, serving, now_ms, self._settings)
                if found is not None:
                    self._say(logging.INFO, f"{uid}: {found.replicas} replicas of {role.value} now: {found.why}")
                    pools[role] = pool.model_copy(update={"replicas": found.replicas, "scaled_at_ms": now_ms})
            if pools != spec.pools:
                scaled = spec.model_copy(update={"pools": pools})
                values[spec_key(uid)] = scaled.stored()
                fleet = fleet.with_spec(scaled)
        return fleet

    def _answered(
        self,
        fleet: Snapshot,
        request: ModelRequest,
        sizings: Mapping[str, Sizing],
        away: tuple[frozenset[str], frozenset[Replica]],
        values: dict[str, bytes | None],
    ) -> Snapshot:
        """The fleet with what a request asks for, or the same one where that has no place."""
        key = model_request_key(request.id)
        sizing = sizings.get(key, Sizing(request.request))
        spec = merged(fleet.specs.get(request.request.model_uid), sizing.spec)
        trial = fleet.with_spec(spec)
        why = sizing.wrong
        if why is None:
            outcome = plan(trial, self._settings.strategy, *away)[spec.model_uid]
            why = unplaced(spec, outcome, request.request.pools)
        if why is not None:
            self._say(logging.WARNING, f"request {request.id} for {spec.model_uid} failed: {why}")
            values[key] = request.model_copy(update={"status": {"Failed": why}}).stored()
            return fleet
        values[key] = request.model_copy(update={"status": "Scheduled"}).stored()
        values[spec_key(spec.model_uid)] = spec.stored()
        return trial

    def _tell(self, uid: str, outcome: Outcome) -> None:
        """Logs what changes, and a refusal once per set of replicas: its figures move with every heartbeat."""
        if outcome.changed:
            reasons = outcome.plan.reasons or {}
            self._say(logging.INFO, f"{uid}: plan version {outcome.plan.version}")
            for assignment in outcome.plan.assignments:
                if assignment.since_version == outcome.plan.version or assignment.draining:
                    why = reasons.get(str(assignment.replica_id))
                    self._say(logging.INFO, f"{uid}/{assignment.replica_id}: {why}")
        self._tell_once(uid, ",".join(map(str, sorted(outcome.refusals))), "; ".join(outcome.refusals.values()))

    def _tell_unreadable(self, fleet: Snapshot) -> None:
        for key, why in fleet.unreadable.items():
            blocks = "; nothing is placed until it is mended or removed" if key.startswith(PLACEMENTS) else ""
            self._tell_once(key, why, f"{why}{blocks}")

    def _tell_once(self, subject: str, state: str, text: str) -> None:
        if self._told.get(subject, "") != state:
            self._told[subject] = state
            if state:
                self._say(logging.WARNING, f"{subject}: {text}")

    def _say(self, level: int, text: str) -> None:
        self.words.append((level, text))


def _unloaded(fleet: Snapshot, values: dict[str, bytes | None]) -> Snapshot:
    """The fleet without the models that are to go. A request to unload goes when no endpoint is left.

    The placement stays, empty: its version goes on growing, so that no leftover of an earlier life becomes current.
    """
    for request in fleet.requests.values():
        if request.status != "Unloading":
            continue
        uid = request.request.model_uid
        values |= unloading(fleet, uid)
        fleet = replace(fleet, specs={key: spec for key, spec in fleet.specs.items() if key != uid})
        if not any(replica[0] == uid for replica in fleet.endpoints):
            values[model_request_key(request.id)] = None
    return fleet


def unloading(fleet: Snapshot, uid: str) -> dict[str, bytes | None]:
    """The values that end a model: no spec, and a placement without replicas."""
    values: dict[str, bytes | None] = {}
    if fleet.revision(spec_key(uid)):
        values[spec_key(uid)] = None
    written = fleet.plans.get(uid)
    if written is not None and written.assignments:
        update = {"assignments": (), "reasons": None, "version": written.version + 1}
        values[placement_key(uid)] = written.model_copy(update=update).stored()
    return values


def _running(fleet: Snapshot, outcomes: Mapping[str, Outcome]) -> dict[str, bytes | None]:
    """Requests whose model now serves with all its replicas."""
    values: dict[str, bytes | None] = {}
    for request in fleet.requests.values():
        outcome = outcomes.get(request.request.model_uid)
        if request.status != "Scheduled" or outcome is None or outcome.changed or outcome.refusals:
            continue
        active = [a for a in outcome.plan.assignments if not a.draining]
        if active and all(fleet.ready(outcome.plan, assignment) for assignment in active):
            values[model_request_key(request.id)] = request.model_copy(update={"status": "Running"}).stored()
    return values
