"""From what is stored to what people are shown: nodes, models and replicas, joined. Pure."""

from collections.abc import Iterator
from typing import Final

from nebula_router.fleet.asking.documents import (
    FleetStatus,
    GpuRow,
    ModelRow,
    Models,
    ModelWord,
    NodeRow,
    Nodes,
    Placements,
    PoolRow,
    ReplicaRow,
    ReplicaWord,
)
from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import Assignment, EndpointInfo, ModelRequest, NodeStatus, PlacementPlan, Pool, Role

PENDING_MS: Final = 15_000
"""Age at which a request that no scheduler has taken says that there may be none."""


def fleet_status(fleet: Snapshot, now_ms: int) -> FleetStatus:
    """The models, the nodes, and what is wrong."""
    replicas = placements(fleet).replicas
    shown = models(fleet).models
    return FleetStatus(
        wanted=sum(row.wanted for row in shown),
        ready=sum(row.ready for row in shown),
        models=shown,
        nodes=nodes(fleet, now_ms).nodes,
        problems=tuple(_problems(fleet, replicas, now_ms)),
    )


def models(fleet: Snapshot) -> Models:
    """Every model that is asked for, wanted, placed or still running."""
    replicas = placements(fleet).replicas
    requests = {request.request.model_uid: request for request in _requests(fleet)}
    rows = []
    for uid in model_names(fleet):
        own = [row for row in replicas if row.model_uid == uid]
        rows.append(_model(fleet, uid, own, requests.get(uid)))
    return Models(models=tuple(rows))


def nodes(fleet: Snapshot, now_ms: int) -> Nodes:
    """Every node that is there or that a placement names."""
    replicas = [row for row in placements(fleet).replicas if row.current]
    return Nodes(nodes=tuple(_node(fleet, name, replicas, now_ms) for name in node_names(fleet)))


def placements(fleet: Snapshot, model_uid: str | None = None) -> Placements:
    """Every replica, of one model or of all: what the plans mean, what they cannot place, what is left over."""
    wanted = model_names(fleet) if model_uid is None else [model_uid]
    return Placements(replicas=tuple(row for uid in wanted for row in _replicas(fleet, uid)))


def model_names(fleet: Snapshot) -> list[str]:
    """Every model that is asked for, wanted, placed or still running, by name."""
    asked = {request.request.model_uid for request in fleet.requests.values() if request.status != "Unloading"}
    placed = {uid for uid, plan in fleet.plans.items() if plan.assignments}
    return sorted({*fleet.specs, *placed, *(model for model, _ in fleet.endpoints), *asked})


def node_names(fleet: Snapshot) -> list[str]:
    """Every node that is there or that a placement or a wish names."""
    placed = {a.node_id for plan in fleet.plans.values() for a in plan.assignments}
    return sorted({*fleet.nodes, *fleet.drains, *placed})


def _requests(fleet: Snapshot) -> list[ModelRequest]:
    """The oldest first."""
    return sorted(fleet.requests.values(), key=lambda request: (request.created_at_ms, request.id))


def _replicas(fleet: Snapshot, uid: str) -> Iterator[ReplicaRow]:
    plan = fleet.plans.get(uid)
    running = {e.replica_id: e for (model, _), e in fleet.endpoints.items() if model == uid}
    reasons = dict(plan.reasons or {}) if plan else {}
    for assignment in sorted(plan.assignments, key=lambda a: a.replica_id) if plan else ():
        endpoint = running.get(assignment.replica_id)
        here = endpoint if endpoint is not None and endpoint.node_id == assignment.node_id else None
        if here is not None:
            del running[assignment.replica_id]
        assert plan is not None  # noqa: S101 - it has the assignment
        yield _planned(fleet, plan, assignment, here)
        reasons.pop(str(assignment.replica_id), None)
    for replica_id, why in sorted(reasons.items(), key=lambda item: (not item[0].isdecimal(), item[0].zfill(9))):
        # Where the number is none, the reason is of the whole model.
        if replica_id.isdecimal():
            yield ReplicaRow(model_uid=uid, replica_id=int(replica_id), status="unplaced", why=why)
    for _, endpoint in sorted(running.items()):
        yield _leftover(endpoint)


def _planned(fleet: Snapshot, plan: PlacementPlan, assignment: Assignment, endpoint: EndpointInfo | None) -> ReplicaRow:
    uid, number = plan.model_uid, assignment.replica_id
    node = fleet.nodes.get(assignment.node_id)
    error = (node.errors or {}).get(f"{uid}/{number}") if node else None
    gone = f"its node {assignment.node_id} is gone" if node is None else None
    current = endpoint is None or endpoint.is_current(plan)
    return ReplicaRow(
        model_uid=uid,
        replica_id=number,
        role=assignment.role,
        node_id=assignment.node_id,
        gpus=assignment.gpus,
        port=endpoint.port if endpoint is not None and endpoint.port is not None else assignment.port,
        base_url=endpoint.base_url if endpoint else None,
        status=endpoint.status.value if endpoint else _unannounced(node, assignment, error),
        current=current,
        draining=assignment.draining,
        plan_version=endpoint.plan_version if endpoint else plan.version,
        required_vram_mb=assignment.required_vram_mb,
        why=error or gone or (plan.reasons or {}).get(str(number)),
        **_stats(endpoint),
    )


def _unannounced(node: NodeStatus | None, assignment: Assignment, error: str | None) -> ReplicaWord:
    """What a replica is of which nobody announces an engine."""
    if node is None:
        return "lost"
    if assignment.draining:
        return "drained"
    return "failed" if error else "planned"


def _leftover(endpoint: EndpointInfo) -> ReplicaRow:
    return ReplicaRow(
        model_uid=endpoint.model_uid,
        replica_id=endpoint.replica_id,
        role=endpoint.role,
        node_id=endpoint.node_id,
        port=endpoint.port,
        base_url=endpoint.base_url,
        status=endpoint.status.value,
        current=False,
        plan_version=endpoint.plan_version,
        why="no plan means it any more; its node ends it",
        **_stats(endpoint),
    )


def _stats(endpoint: EndpointInfo | None) -> dict[str, float | int | None]:
    if endpoint is None or endpoint.stats is None:
        return {}
    return endpoint.stats.model_dump(include={"kv_usage", "waiting", "running", "ttft_ms"})


def _model(fleet: Snapshot, uid: str, replicas: list[ReplicaRow], request: ModelRequest | None) -> ModelRow:
    spec, plan = fleet.specs.get(uid), fleet.plans.get(uid)
    if spec is None and request is not None and request.status != "Unloading":
        spec = request.request
    meant = [row for row in replicas if row.node_id is not None and row.current and not row.draining]
    pools = spec.pools if spec is not None else {}
    wanted = sum(pool.replicas for pool in pools.values()) if spec is not None else len(meant) if plan else 0
    ready = sum(row.serves for row in replicas)
    failed = request is not None and isinstance(request.status, dict)
    names = [record.model_name for record in (spec, plan) if record is not None]
    status = (
        "unloading"
        if spec is None and not (plan and plan.assignments)
        else _word(wanted, ready, replicas, failed=failed)
    )
    return ModelRow(
        model_uid=uid,
        model_name=names[0] if names else uid,
        status=status,
        wanted=wanted,
        ready=ready,
        plan_version=plan.version if plan else None,
        pools=tuple(_pool(role, pool, replicas) for role, pool in pools.items()),
        request=_word_of(request),
        why=None if status == "ready" else _trouble(replicas, plan, request),
    )


def _word(wanted: int, ready: int, replicas: list[ReplicaRow], *, failed: bool) -> ModelWord:
    if wanted == 0:
        return "stopped"
    if ready >= wanted:
        return "ready"
    if ready:
        return "partial"
    hopeless = {"failed", "unplaced", "lost"}
    return "failed" if failed or (replicas and all(row.status in hopeless for row in replicas)) else "starting"


def _pool(role: Role, pool: Pool, replicas: list[ReplicaRow]) -> PoolRow:
    return PoolRow(
        role=role,
        wanted=pool.replicas,
        ready=sum(row.serves for row in replicas if row.role == role),
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
    )


def _trouble(replicas: list[ReplicaRow], plan: PlacementPlan | None, request: ModelRequest | None) -> str | None:
    """The first thing that keeps a model from being ready."""
    bad = [row for row in replicas if row.status in {"failed", "unplaced", "lost", "unhealthy"} and row.why]
    if bad:
        return f"replica {bad[0].replica_id}: {_brief(bad[0].why or '')}"
    if request is not None and isinstance(request.status, dict):
        return request.status["Failed"]
    whole = [why for name, why in (plan.reasons or {}).items() if not name.isdecimal()] if plan else []
    return whole[0] if whole else None


def _word_of(request: ModelRequest | None) -> str | None:
    if request is None:
        return None
    return request.status if isinstance(request.status, str) else "Failed"


def _node(fleet: Snapshot, name: str, replicas: list[ReplicaRow], now_ms: int) -> NodeRow:
    own = [row for row in replicas if row.node_id == name]
    names = tuple(row.name for row in own)
    node = fleet.nodes.get(name)
    if node is None:
        return NodeRow(node_id=name, status="lost", replicas=names)
    return NodeRow(
        node_id=name,
        status="draining" if node.draining else "ready",
        host=node.host,
        version=node.version,
        heartbeat_age_ms=max(0, now_ms - node.last_heartbeat_ms),
        ports=node.ports,
        gpus=tuple(_gpus(node, own)),
        replicas=names,
        errors=node.errors or {},
    )


def _gpus(node: NodeStatus, replicas: list[ReplicaRow]) -> Iterator[GpuRow]:
    for gpu in node.gpus:
        own = [row for row in replicas if gpu.index in row.gpus]
        yield GpuRow(
            index=gpu.index,
            name=gpu.name,
            memory_total_mb=gpu.memory_total_mb,
            memory_used_mb=gpu.memory_used_mb,
            booked_mb=sum(row.required_vram_mb or 0 for row in own),
            utilization_gpu=gpu.utilization_gpu,
            temperature_c=gpu.temperature_c,
            replicas=tuple(row.name for row in own),
        )


def _problems(fleet: Snapshot, replicas: tuple[ReplicaRow, ...], now_ms: int) -> Iterator[str]:
    yield from fleet.unreadable.values()
    for name in node_names(fleet):
        count = sum(row.node_id == name and row.current for row in replicas)
        if count and name not in fleet.nodes:
            yield f"node {name} is gone; {count} of its replicas are planned there until a scheduler moves them"
    for row in replicas:
        if row.status in {"failed", "unplaced", "unhealthy"}:
            yield f"{row.name} is {row.status}" + (f" on {row.node_id}" if row.node_id else "") + _because(row.why)
    for request in _requests(fleet):
        uid = request.request.model_uid
        if isinstance(request.status, dict):
            yield f"the request for {uid} failed: {request.status['Failed']}"
        elif request.status == "Pending" and now_ms - request.created_at_ms > PENDING_MS:
            age = (now_ms - request.created_at_ms) // 1000
            yield f"no scheduler has taken the request for {uid} in {age} s; `nebula scheduler` starts one"


def _because(why: str | None) -> str:
    return f": {_brief(why)}" if why else ""


def _brief(why: str) -> str:
    """Its first line; the end of a log may follow."""
    first, *more = why.splitlines() or [""]
    return first.removesuffix(":") + (" (`nebula placements` has it)" if more else "")
