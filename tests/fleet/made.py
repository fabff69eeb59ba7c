"""Fleets made by hand: the records of nodes, specs, placements and endpoints."""

from typing import Any

from nebula_router.fleet.records import (
    Assignment,
    EndpointInfo,
    EndpointStatus,
    EngineStats,
    GpuStatus,
    ModelRequest,
    ModelSpec,
    NodeStatus,
    PlacementPlan,
    Pool,
    Record,
    Role,
    endpoint_key,
    model_request_key,
    node_key,
    placement_key,
    spec_key,
)
from nebula_router.fleet.store import Store

NOW_MS = 1_000_000
MODEL = "qwen"


async def put(store: Store, *records: Record) -> None:
    for record in records:
        await store.put(key_of(record), record.stored())


def key_of(record: Record) -> str:
    match record:
        case NodeStatus():
            return node_key(record.node_id)
        case ModelSpec():
            return spec_key(record.model_uid)
        case PlacementPlan():
            return placement_key(record.model_uid)
        case EndpointInfo():
            return endpoint_key(record.model_uid, record.replica_id)
        case ModelRequest():
            return model_request_key(record.id)
        case _:
            raise TypeError(type(record))


def node(name: str, gpus: int = 2, **more: Any) -> NodeStatus:
    cards = tuple(GpuStatus(index=i, memory_total_mb=24_576, memory_used_mb=512, name="fake") for i in range(gpus))
    more = {"host": "127.0.0.1", "ports": (10_814, 10_877)} | more
    return NodeStatus(node_id=name, last_heartbeat_ms=NOW_MS - 2_000, gpus=cards, **more)


def spec(replicas: int = 2, model: str = MODEL, **pool: Any) -> ModelSpec:
    return ModelSpec(model_uid=model, model_name="Qwen", pools={Role.UNIFIED: sized(replicas, **pool)})


def sized(replicas: int, **pool: Any) -> Pool:
    return Pool.model_validate({"gpus_per_replica": 1, "required_vram_mb": 8_000, "replicas": replicas, **pool})


def plan(*nodes: str, model: str = MODEL, version: int = 1, **more: Any) -> PlacementPlan:
    assignments = tuple(
        Assignment(replica_id=i, node_id=name, port=10_814 + i, gpu_indices=(i,), required_vram_mb=8_000)
        for i, name in enumerate(nodes)
    )
    return PlacementPlan(model_uid=model, model_name="Qwen", version=version, assignments=assignments, **more)


def endpoint(replica: int, on: str, status: str = "ready", version: int = 1, **more: Any) -> EndpointInfo:
    return EndpointInfo(
        model_uid=MODEL,
        replica_id=replica,
        plan_version=version,
        node_id=on,
        status=EndpointStatus(status),
        last_heartbeat_ms=NOW_MS,
        port=10_900 + replica,
        **more,
    )


async def fill(store: Store) -> None:
    """Two nodes with a replica each, both ready."""
    stats = EngineStats(kv_usage=0.25, waiting=3, running=7)
    await put(store, node("a"), node("b"), spec(), plan("a", "b"))
    await put(store, endpoint(0, "a", stats=stats), endpoint(1, "b"))


async def stored_plan(store: Store, model: str = MODEL) -> PlacementPlan:
    entry = await store.get(placement_key(model))
    assert entry is not None
    return PlacementPlan.parsed(entry.value, entry.key)


async def stored_spec(store: Store, model: str = MODEL) -> ModelSpec:
    entry = await store.get(spec_key(model))
    assert entry is not None
    return ModelSpec.parsed(entry.value, entry.key)
