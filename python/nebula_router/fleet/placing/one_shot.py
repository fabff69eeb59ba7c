"""Places one model now: what `nebula scheduler --model-uid` does, whether a scheduler runs beside it or not.

All of its replicas have a place, or nothing is written.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from nebula_router.fleet.model.sizing import Sized, sized
from nebula_router.fleet.placing.book import Values, decide, look
from nebula_router.fleet.placing.decider import merged
from nebula_router.fleet.placing.snapshot import Replica, Snapshot
from nebula_router.fleet.records import (
    PLACEMENTS,
    EndpointStatus,
    ModelSpec,
    Pool,
    RecordError,
    Role,
    placement_key,
    spec_key,
)
from nebula_router.fleet.schedule import Outcome, plan
from nebula_router.fleet.settings import SchedulerSettings
from nebula_router.fleet.store import Store

WAIT_S: Final = 8.0
"""Time that nodes which were just started get to announce themselves."""
POLL_S: Final = 0.2


@dataclass(frozen=True)
class Ask:
    """What is to be placed."""

    model_uid: str
    role: Role
    pool: Callable[[Pool | None], Pool]
    """The asked pool, from the one that is there."""
    model_name: str | None = None
    """None keeps the name that is there."""
    dry_run: bool = False
    wait_s: float | None = None
    """None takes `WAIT_S`."""


@dataclass(frozen=True)
class Placed:
    """What became of it."""

    spec: ModelSpec
    outcome: Outcome
    fleet: Snapshot = field(repr=False)
    sized: Sized
    written: bool
    """Whether anything had to be changed, and was."""
    forcible: bool = False
    """Whether only memory stands against it."""

    @property
    def is_refused(self) -> bool:
        """Whether a replica has no place."""
        return bool(self.outcome.refusals)


class UnknownModelError(ValueError):
    """Nothing says which model is meant."""


async def place(store: Store, ask: Ask, settings: SchedulerSettings) -> Placed:
    """Find places for a model's replicas and write them; nodes that are missing get a few seconds to come.

    Raises:
        StoreError: The store cannot be asked.
        RecordError: A placement in the store cannot be read, so nobody can tell which GPUs are free.
        UnknownModelError: The model has no name, neither here nor in the store.
        EngineConfigError: A setting of the engine is wrong.
        ModelFilesError: A file of the model cannot be read.
    """
    fleet = await _awaited(store, ask)
    known = await asyncio.to_thread(_asked, fleet, ask, settings.vram_overhead_mb)
    placed: list[Placed] = []

    def author(now: Snapshot) -> Values:
        for key, why in now.unreadable.items():
            if key.startswith(PLACEMENTS):
                raise RecordError(f"{why}; which GPUs are free cannot be told until it is mended or removed")
        placed[:] = [_decided(now, ask, known, settings)]
        return _values(now, ask, placed[0])

    await decide(store, author)
    return placed[0]


async def _awaited(store: Store, ask: Ask) -> Snapshot:
    """The fleet, once every node that matters is there or has had its time."""
    until = time.monotonic() + (WAIT_S if ask.wait_s is None else ask.wait_s)
    while True:
        fleet = await look(store)
        if not _missing(fleet, ask) or time.monotonic() > until:
            return fleet
        await asyncio.sleep(POLL_S)


def _missing(fleet: Snapshot, ask: Ask) -> bool:
    pin = _pool(fleet, ask).node_id
    written = fleet.plans.get(ask.model_uid)
    used = {assignment.node_id for assignment in written.assignments} if written else set()
    return not fleet.nodes or bool((used | ({pin} if pin else set())) - set(fleet.nodes))


def _pool(fleet: Snapshot, ask: Ask) -> Pool:
    before = fleet.specs.get(ask.model_uid)
    return ask.pool(before.pools.get(ask.role) if before else None)


def _asked(fleet: Snapshot, ask: Ask, overhead_mb: int) -> Sized:
    before = fleet.specs.get(ask.model_uid)
    name = ask.model_name or (before.model_name if before else None)
    pool = _pool(fleet, ask)
    if name is None:
        raise UnknownModelError(
            f"{ask.model_uid} is not in the store, and nothing names its model: --engine-config-path FILE with "
            "`model: …` in it, or --model-name NAME"
        )
    found = sized(pool, name, overhead_mb)
    # As it comes back from the store: what YAML knows and JSON does not would look changed each time.
    spec = ModelSpec(model_uid=ask.model_uid, model_name=name, pools={ask.role: found.pool})
    stored = ModelSpec.parsed(spec.stored(), spec_key(ask.model_uid))
    return Sized(stored.pools[ask.role], found.need, found.notes, found.unchecked)


def _decided(fleet: Snapshot, ask: Ask, known: Sized, settings: SchedulerSettings) -> Placed:
    """The plan for this model alone: all others stay where they are."""
    before = fleet.specs.get(ask.model_uid)
    name = ask.model_name or (before.model_name if before else ask.model_uid)
    pool = known.pool
    was = before.pools.get(ask.role) if before else None
    if was is not None and pool.scaled_at_ms is None and was.scaled_at_ms is not None:
        pool = pool.model_copy(update={"scaled_at_ms": was.scaled_at_ms})
    asked = ModelSpec(model_uid=ask.model_uid, model_name=name, pools={ask.role: pool})
    spec = merged(before, asked)
    written = fleet.plans.get(ask.model_uid)
    used = {assignment.node_id for assignment in written.assignments} if written else set()
    terms = (settings.strategy, used - set(fleet.nodes), _idle(fleet, ask.model_uid))
    outcome = plan(_alone(fleet, spec), *terms)[ask.model_uid]
    if outcome.refusals:
        forced = merged(spec, asked.model_copy(update={"pools": {ask.role: pool.model_copy(update={"force": True})}}))
        forcible = not plan(_alone(fleet, forced), *terms)[ask.model_uid].refusals
        return Placed(spec, outcome, fleet, known, written=False, forcible=forcible)
    changes = outcome.changed or spec != before
    return Placed(spec, outcome, fleet, known, written=changes and not ask.dry_run)


def _alone(fleet: Snapshot, spec: ModelSpec) -> Snapshot:
    """The fleet in which this is the only model that is to be placed; the others keep what they have."""
    return replace(fleet, specs={spec.model_uid: spec})


def _idle(fleet: Snapshot, model_uid: str) -> frozenset[Replica]:
    """Replicas of the model that drain, and whose node shows them idle by now."""
    written = fleet.plans.get(model_uid)
    found = set()
    for assignment in written.assignments if written else ():
        endpoint = fleet.endpoints.get((model_uid, assignment.replica_id))
        stats = endpoint.stats if endpoint else None
        is_idle = endpoint is None or (
            endpoint.status is EndpointStatus.DRAINING
            and stats is not None
            and (stats.running, stats.waiting) == (0, 0)
        )
        if assignment.draining and is_idle:
            found.add((model_uid, assignment.replica_id))
    return frozenset(found)


def _values(fleet: Snapshot, ask: Ask, placed: Placed) -> Values:
    if not placed.written:
        return {}
    values: dict[str, bytes | None] = {}
    if placed.spec != fleet.specs.get(ask.model_uid):
        values[spec_key(ask.model_uid)] = placed.spec.stored()
    if placed.outcome.changed:
        values[placement_key(ask.model_uid)] = placed.outcome.plan.stored()
    return values
