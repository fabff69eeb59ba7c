"""Fleets and records for tests."""

from typing import Any

from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import (
    Assignment,
    EndpointInfo,
    EndpointStatus,
    EngineStats,
    GpuStatus,
    ModelSpec,
    NodeStatus,
    PlacementPlan,
    Pool,
    Role,
    endpoint_key,
    node_key,
    placement_key,
    spec_key,
)
from nebula_router.fleet.store import Store

GIB_MB = 1024


def gpu(index: int, total_gib: float = 24, used_gib: float = 0.5, **more: Any) -> GpuStatus:
    return GpuStatus(
        index=index, memory_total_mb=int(total_gib * GIB_MB), memory_used_mb=int(used_gib * GIB_MB), **more
    )


def node(node_id: str, *gpus: GpuStatus, ports: tuple[int, int] | None = (10814, 10877), **more: Any) -> NodeStatus:
    return NodeStatus(node_id=node_id, last_heartbeat_ms=0, gpus=gpus, ports=ports, **more)


def spec(uid: str, role: Role = Role.UNIFIED, **pool: Any) -> ModelSpec:
    return ModelSpec(model_uid=uid, model_name=uid, pools={role: Pool(**pool)})


def fleet(nodes: list[NodeStatus], *specs: ModelSpec, **more: Any) -> Snapshot:
    return Snapshot(nodes={n.node_id: n for n in nodes}, specs={s.model_uid: s for s in specs}, **more)


def endpoint(
    plan: PlacementPlan, assignment: Assignment, status: EndpointStatus = EndpointStatus.READY, **stats: Any
) -> EndpointInfo:
    return EndpointInfo(
        model_uid=plan.model_uid,
        replica_id=assignment.replica_id,
        plan_version=plan.version,
        node_id=assignment.node_id,
        status=status,
        last_heartbeat_ms=0,
        port=assignment.port,
        role=assignment.role,
        stats=EngineStats(**stats) if stats else None,
    )


async def announce(store: Store, *nodes: NodeStatus, ttl_s: float | None = None) -> None:
    for one in nodes:
        await store.put(node_key(one.node_id), one.stored(), ttl_s)


async def want(store: Store, *specs: ModelSpec) -> None:
    for one in specs:
        await store.put(spec_key(one.model_uid), one.stored())


async def serve(store: Store, info: EndpointInfo) -> None:
    await store.put(endpoint_key(info.model_uid, info.replica_id), info.stored())


async def placement(store: Store, uid: str) -> PlacementPlan | None:
    entry = await store.get(placement_key(uid))
    return None if entry is None else PlacementPlan.parsed(entry.value, entry.key)


async def all_placements(store: Store) -> list[PlacementPlan]:
    listing = await store.list("/placements/")
    return [PlacementPlan.parsed(entry.value, key) for key, entry in listing.entries.items()]


def doubles(plans: list[PlacementPlan]) -> list[str]:
    """GPUs and ports that two replicas have."""
    seen: set[tuple[str, str, int]] = set()
    twice: list[str] = []
    for plan in plans:
        for a in plan.assignments:
            things = [("gpu", a.node_id, index) for index in a.gpus]
            things += [("port", a.node_id, a.port)] if a.port is not None else []
            twice += [f"{plan.model_uid}/{a.replica_id}: {thing}" for thing in things if thing in seen]
            seen.update(things)
    return twice
