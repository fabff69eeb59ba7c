"""What people ask of a fleet: what there is, and that it change. Functions over a store; nothing here prints.

    OperationError
    ├── UnknownError    a model, a replica or a node that is not there; the text names the nearest
    └── WrongError      an order that makes no sense

An order is a decision in the schedulers' book (`nebula_router.fleet.placing.book`). It plans its model by the
schedulers' rules, so that it has its effect where none runs.
"""

from __future__ import annotations

import uuid
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.asking import survey
from nebula_router.fleet.asking.documents import (
    Done,
    DrainOrder,
    FleetStatus,
    Models,
    NodeDrainOrder,
    Nodes,
    Placements,
    ScaleOrder,
)
from nebula_router.fleet.clock import now_ms
from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.model.model_files import ModelFilesError
from nebula_router.fleet.placing.book import decide, look
from nebula_router.fleet.placing.decider import unloading
from nebula_router.fleet.placing.one_shot import Ask, UnknownModelError, place
from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import (
    Assignment,
    ModelRequest,
    ModelSpec,
    NodeDrain,
    PlacementPlan,
    Pool,
    Role,
    drain_key,
    model_request_key,
    placement_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nebula_router.fleet.placing.book import Values
    from nebula_router.fleet.placing.one_shot import Placed
    from nebula_router.fleet.settings import SchedulerSettings
    from nebula_router.fleet.store import Store

_SHOWN: Final = 10
"""Names that an error lists."""


class OperationError(Exception):
    """An order that cannot be carried out; the text says why and what would be right."""


class UnknownError(OperationError):
    """It is about something that is not there."""


class WrongError(OperationError):
    """It makes no sense."""


async def read(store: Store) -> Snapshot:
    """All records of the fleet at one revision. One round trip; cost: their total size."""
    return Snapshot.of(await store.list(""))


async def status(store: Store) -> FleetStatus:
    """The fleet in brief, with what somebody should look at."""
    return survey.fleet_status(await read(store), now_ms())


async def models(store: Store) -> Models:
    """Every model with its pools, and what keeps it from being ready."""
    return survey.models(await read(store))


async def nodes(store: Store) -> Nodes:
    """Every node with its GPUs and who has them."""
    return survey.nodes(await read(store), now_ms())


async def placements(store: Store, model_uid: str | None = None) -> Placements:
    """Every replica, of one model or of all.

    Raises:
        UnknownError: There is no such model.
    """
    fleet = await read(store)
    if model_uid is not None:
        _known_model(fleet, model_uid)
    return survey.placements(fleet, model_uid)


async def load(store: Store, spec: ModelSpec) -> Done:
    """Ask for a model: a request is written, which a scheduler grants where there is room, and else refuses.

    Raises:
        WrongError: It has no pools, or bounds that contradict each other.
    """
    if not spec.pools:
        raise WrongError(f"{spec.model_uid}: pools: a model needs at least one, like {{'unified': {{'replicas': 1}}}}")
    for role, pool in spec.pools.items():
        _checked(spec.model_uid, role, pool)
    request = ModelRequest(id=uuid.uuid4().hex, request=spec, status="Pending", created_at_ms=now_ms())

    def asked(fleet: Snapshot) -> Values:
        over = [r.id for r in _requests(fleet, spec.model_uid) if r.status != "Pending"]
        return {model_request_key(request.id): request.stored(), **dict.fromkeys(map(model_request_key, over))}

    before = await decide(store, asked)
    wanted = sum(pool.replicas for pool in spec.pools.values())
    known = "anew, now " if spec.model_uid in before.specs else ""
    return Done(
        text=f"{spec.model_uid} is asked for {known}with {_count(wanted, 'replica')}",
        model_uid=spec.model_uid,
        request_id=request.id,
        notes=(f"a scheduler grants or refuses that: `nebula models` says which; it is request {request.id}",),
    )


async def scale(store: Store, model_uid: str, order: ScaleOrder, settings: SchedulerSettings) -> Done:
    """Change how many replicas a pool of a model has, or its bounds; nothing where there is no room for all of them.

    Raises:
        UnknownError: The model is not wanted, or has no such pool.
        WrongError: Nothing is asked for, or the bounds contradict each other.
    """
    if order.replicas is None and order.min_replicas is None and order.max_replicas is None:
        raise WrongError("replicas: give a number, or min_replicas and max_replicas")
    spec = _spec_of(await look(store), model_uid)
    role = _pool_of(spec, order.role)

    def scaled(before: Pool | None) -> Pool:
        if before is None:
            raise UnknownError(f"{model_uid} was unloaded meanwhile")
        pool = _scaled(before, order)
        _checked(model_uid, role, pool)
        return pool

    placed = await _placed(store, model_uid, role, settings, scaled)
    pool = placed.spec.pools[role]
    bounds = (pool.min_replicas, pool.max_replicas)
    between = "" if None in bounds else f", by load between {bounds[0]} and {bounds[1]}"
    name = model_uid if role is Role.UNIFIED else f"{model_uid} ({role.value})"
    wanted = _count(pool.replicas, "replica")
    if not placed.is_refused:
        return Done(text=f"{name} is to have {wanted}{between}", model_uid=model_uid)
    return Done(
        text=f"{name} stays as it is: there is no room for {wanted}",
        model_uid=model_uid,
        refused={str(number): why for number, why in placed.outcome.refusals.items()},
    )


async def drain(store: Store, model_uid: str, order: DrainOrder, settings: SchedulerSettings) -> Done:
    """Give a replica no new requests, or again some; it ends what it has, and another one takes its place.

    Raises:
        UnknownError: No plan has such a replica.
    """
    number = order.replica_id

    def drained(fleet: Snapshot) -> Values:
        plan = _plan_of(fleet, model_uid)
        numbers = sorted(a.replica_id for a in plan.assignments)
        if number not in numbers:
            has = f"its replicas: {', '.join(map(str, numbers))}" if numbers else "it has none that is placed"
            raise UnknownError(f"{model_uid} has no replica {number}; {has}")
        return _drained(plan, lambda a: a.replica_id == number, on=order.on)

    before = await decide(store, drained)
    name = f"{model_uid}/{number}"
    if not drained(before):
        return Done(text=f"{name} {'is draining already' if order.on else 'is not draining'}", model_uid=model_uid)
    notes = await _replaced(store, before, [model_uid], settings)
    what = "gets no new requests; it ends those that it has" if order.on else "gets requests again"
    return Done(text=f"{name} {what}", model_uid=model_uid, notes=tuple(notes) if order.on else ())


async def drain_node(store: Store, node_id: str, order: NodeDrainOrder, settings: SchedulerSettings) -> Done:
    """Give a node no new replicas and its replicas no new requests, or take that back.

    Raises:
        UnknownError: No node, placement or wish has this name.
    """
    wish = NodeDrain(node_id=node_id, since_ms=now_ms())

    def drained(fleet: Snapshot) -> Values:
        names = survey.node_names(fleet)
        if node_id not in names:
            raise UnknownError(f"there is no node {node_id}{_known('nodes', node_id, names)}")
        values: dict[str, bytes | None] = {}
        if order.on is not (node_id in fleet.drains):
            values[drain_key(node_id)] = wish.stored() if order.on else None
        for plan in fleet.plans.values():
            values |= _drained(plan, lambda a: a.node_id == node_id, on=order.on)
        return values

    before = await decide(store, drained)
    own = sorted(uid for uid, plan in before.plans.items() if any(a.node_id == node_id for a in plan.assignments))
    notes = await _replaced(store, before, own, settings)
    what = "gets no new replicas" if order.on else "gets replicas again"
    there = f"; what drains there: {', '.join(own)}" if own and order.on else ""
    return Done(text=f"node {node_id} {what}{there}", notes=tuple(notes) if order.on else ())


async def unload(store: Store, model_uid: str) -> Done:
    """Want a model no more: its spec and its requests go, its placement is empty, and the nodes end its engines.

    Raises:
        UnknownError: Nobody wants it, and nothing of it is placed.
    """

    def unloaded(fleet: Snapshot) -> Values:
        values = unloading(fleet, model_uid)
        if placement_key(model_uid) in fleet.unreadable:
            values[placement_key(model_uid)] = None
        asked = _requests(fleet, model_uid)
        if not values and not asked:
            _known_model(fleet, model_uid)
            raise UnknownError(f"{model_uid} is unloaded already; its nodes still end its engines")
        return values | dict.fromkeys(model_request_key(request.id) for request in asked)

    before = await decide(store, unloaded)
    running = sum(uid == model_uid for uid, _ in before.endpoints)
    ends = f"; its nodes end {_count(running, 'engine')}" if running else ""
    return Done(text=f"{model_uid} is unloaded{ends}", model_uid=model_uid)


async def _placed(
    store: Store, model_uid: str, role: Role, settings: SchedulerSettings, pool: Callable[[Pool | None], Pool]
) -> Placed:
    """Plan one model, and write that where there is room for all of it."""
    try:
        return await place(store, Ask(model_uid, role, pool), settings)
    except (EngineConfigError, ModelFilesError, UnknownModelError) as error:
        raise WrongError(f"{model_uid}: {error}") from None


async def _replaced(
    store: Store, before: Snapshot, model_uids: Iterable[str], settings: SchedulerSettings
) -> list[str]:
    """Plan models of which replicas drain, or do so no more; what people had better know of that."""
    notes = []
    for uid in model_uids:
        spec = before.specs.get(uid)
        for role, pool in spec.pools.items() if spec else ():
            placed = await _placed(store, uid, role, settings, lambda now, pool=pool: now or pool)  # type: ignore[misc]
            for number, why in placed.outcome.refusals.items():
                notes.append(f"no room for another replica of {uid} ({number}): {why}")
    fleet = await look(store)
    unserved = (uid for uid in model_uids if not any(row.serves for row in survey.placements(fleet, uid).replicas))
    return [*notes, *(f"no other replica of {uid} is ready: its requests are refused until one is" for uid in unserved)]


def _drained(plan: PlacementPlan, which: Callable[[Assignment], bool], *, on: bool) -> dict[str, bytes | None]:
    """The plan's next value with the draining of some assignments set or taken back; none where that changes nothing.

    An assignment that does not say since when it is as it is, is so since this plan: it stays current.
    """
    if not any(which(a) and a.draining != on for a in plan.assignments):
        return {}
    assignments = tuple(
        a.model_copy(update={"since_version": plan.since(a), "draining": on if which(a) else a.draining})
        for a in plan.assignments
    )
    after = plan.model_copy(update={"version": plan.version + 1, "assignments": assignments})
    return {placement_key(plan.model_uid): after.stored()}


def _scaled(pool: Pool, order: ScaleOrder) -> Pool:
    bounds = {
        "min_replicas": pool.min_replicas if order.min_replicas is None else order.min_replicas,
        "max_replicas": pool.max_replicas if order.max_replicas is None else order.max_replicas,
    }
    replicas = pool.replicas if order.replicas is None else order.replicas
    low, high = bounds.values()
    if order.replicas is None:
        replicas = max(replicas, low or 0)
        replicas = replicas if high is None else min(replicas, high)
    return pool.model_copy(update={"replicas": replicas, **bounds})


def _checked(model_uid: str, role: Role, pool: Pool) -> None:
    low, high = pool.min_replicas, pool.max_replicas
    where = f"{model_uid} ({role.value})"
    if low is not None and high is not None and low > high:
        raise WrongError(f"{where}: min_replicas {low} is more than max_replicas {high}")
    if (low is not None and pool.replicas < low) or (high is not None and pool.replicas > high):
        raise WrongError(
            f"{where}: {pool.replicas} replicas are not within its bounds, "
            f"{low if low is not None else 0} to {high if high is not None else 'any'}; change the bounds too"
        )


def _spec_of(fleet: Snapshot, model_uid: str) -> ModelSpec:
    spec = fleet.specs.get(model_uid)
    if spec is None:
        _known_model(fleet, model_uid)
        raise UnknownError(f"{model_uid} has no spec, so nothing says what a replica of it is; load it again")
    return spec


def _plan_of(fleet: Snapshot, model_uid: str) -> PlacementPlan:
    plan = fleet.plans.get(model_uid)
    if plan is None:
        _known_model(fleet, model_uid)
        raise UnknownError(f"{model_uid} has no placement yet, so no replica of it can be drained")
    return plan


def _pool_of(spec: ModelSpec, role: Role | None) -> Role:
    if role is None and len(spec.pools) == 1:
        return next(iter(spec.pools))
    names = ", ".join(pool.value for pool in spec.pools)
    if role is None:
        raise WrongError(f"{spec.model_uid} has several pools; say which by role: {names}")
    if role not in spec.pools:
        raise UnknownError(f"{spec.model_uid} has no pool {role.value}; its pools: {names}")
    return role


def _known_model(fleet: Snapshot, model_uid: str) -> None:
    if model_uid not in survey.model_names(fleet):
        raise UnknownError(f"there is no model {model_uid}{_known('models', model_uid, survey.model_names(fleet))}")


def _known(what: str, name: str, names: list[str]) -> str:
    if not names:
        return f"; the fleet has no {what}"
    close = get_close_matches(name, names, n=1)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    near = f"; did you mean {close[0]}?" if close else ""
    return f"{near or ';'} {what}: {', '.join(names[:_SHOWN])}{more}"


def _requests(fleet: Snapshot, model_uid: str) -> list[ModelRequest]:
    return [request for request in fleet.requests.values() if request.request.model_uid == model_uid]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
