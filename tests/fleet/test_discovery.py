"""Which endpoints of the store become engines of a gateway, and what becomes of them when the store is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.wait import until

from nebula_router.fleet import discovery as module
from nebula_router.fleet.discovery import Discovery
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.records import (
    Assignment,
    EndpointInfo,
    EndpointStatus,
    EngineStats,
    PlacementPlan,
    Role,
    endpoint_key,
    placement_key,
)
from nebula_router.fleet.roster import Found, Roster
from nebula_router.fleet.store import StoreClosedError

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def endpoint(replica: int = 0, **fields: Any) -> EndpointInfo:
    told = {
        "model_uid": "m",
        "replica_id": replica,
        "plan_version": 1,
        "node_id": "n",
        "status": EndpointStatus.READY,
        "last_heartbeat_ms": 0,
        "base_url": f"http://127.0.0.1:{10_000 + replica}",
        "served_names": ("m", "org/model"),
    }
    return EndpointInfo.model_validate(told | fields)


def plan(*replicas: int, version: int = 1, **fields: Any) -> PlacementPlan:
    assignments = tuple(Assignment.model_validate({"replica_id": r, "node_id": "n", **fields}) for r in replicas)
    return PlacementPlan(model_uid="m", model_name="org/model", version=version, assignments=assignments)


def found(endpoints: Sequence[EndpointInfo], plans: Mapping[str, PlacementPlan]) -> Found:
    roster = Roster()
    for told in endpoints:
        roster.endpoint(told.model_uid, told.replica_id, told)
    for uid, current in plans.items():
        roster.plan(uid, current)
    return roster.found()


def test_a_ready_endpoint_of_the_current_plan_is_an_engine() -> None:
    told = endpoint(ranks=2, events="tcp://h:5557", events_replay="tcp://h:5558", events_topic="kv")
    assert found([told], {"m": plan(0)}) == (
        [
            {
                "url": "http://127.0.0.1:10000",
                "name": "m/0",
                "ranks": 2,
                "events": "tcp://h:5557",
                "events_replay": "tcp://h:5558",
                "events_topic": "kv",
            }
        ],
        {},
        {},
    )


LEFT_OUT: dict[str, tuple[EndpointInfo, PlacementPlan | None, str]] = {
    "not ready": (endpoint(status="starting"), plan(0), "it is starting"),
    "unhealthy": (endpoint(status="unhealthy"), plan(0), "it is unhealthy"),
    "no plan": (endpoint(), None, "its model has no placement"),
    "an older plan": (endpoint(), plan(0, version=2), "left over from plan version 1; the current one is 2"),
    "not in the plan": (endpoint(1), plan(0), "left over"),
    "on another node": (endpoint(node_id="other"), plan(0), "left over"),
    "draining": (endpoint(), plan(0, draining=True), "it is draining"),
    "prefill": (endpoint(role=Role.PREFILL), plan(0), "it is a prefill engine"),
    "gRPC": (endpoint(endpoint_kind="grpc_shim"), plan(0), "its kind is grpc_shim"),
    "no URL": (endpoint(base_url=None), plan(0), "its base_url is no http://host:port"),
    "a URL with a path": (endpoint(base_url="http://h:1/v1"), plan(0), "its base_url is no http://host:port"),
}


@pytest.mark.parametrize(("told", "current", "why"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_gets_no_traffic(told: EndpointInfo, current: PlacementPlan | None, why: str) -> None:
    specs, aliases, left_out = found([told], {"m": current} if current else {})
    assert (specs, aliases, list(left_out)) == ([], {}, [f"m/{told.replica_id}"])
    assert why in left_out[f"m/{told.replica_id}"]


def test_a_replica_that_a_new_plan_leaves_as_it_was_keeps_its_traffic() -> None:
    assert len(found([endpoint()], {"m": plan(0, 1, version=2, since_version=1)}).specs) == 1
    newer = endpoint(plan_version=3)
    assert len(found([newer], {"m": plan(0, version=2)}).specs) == 1, "news of the plan may come later"


def test_a_model_uid_that_the_engines_do_not_know_stands_for_their_name() -> None:
    told = [endpoint(served_names=("org/model",)), endpoint(1, served_names=())]
    assert found(told, {"m": plan(0, 1)}).aliases == {"m": "org/model"}
    assert found([endpoint()], {"m": plan(0)}).aliases == {}
    assert found([endpoint(served_names=("x",))], {"m": plan(0)}).aliases == {}, "an alias for nothing helps nobody"


steps = st.lists(
    st.one_of(
        st.builds(
            endpoint,
            st.integers(0, 3),
            plan_version=st.integers(1, 3),
            node_id=st.sampled_from("no"),
            status=st.sampled_from(EndpointStatus),
            served_names=st.sampled_from([(), ("m",), ("org/model",)]),
            base_url=st.sampled_from(["http://h:1", "http://h:2", None]),
        ),
        st.builds(
            lambda replicas, version, draining: plan(*replicas, version=version, draining=draining),
            st.sets(st.integers(0, 3)),
            st.integers(1, 3),
            st.booleans(),
        ),
        st.integers(0, 3),
        st.none(),
    )
)


@given(steps)
def test_one_by_one_gives_the_same_as_all_at_once(taken: list[EndpointInfo | PlacementPlan | int | None]) -> None:
    roster, endpoints, plans = Roster(), {}, {}
    for step in taken:
        before, seen = roster.found(), roster.revision
        if isinstance(step, EndpointInfo):
            endpoints[step.replica_id] = step
            roster.endpoint("m", step.replica_id, step)
        elif isinstance(step, PlacementPlan):
            plans["m"] = step
            roster.plan("m", step)
        elif step is None:
            plans.clear()
            roster.plan("m", None)
        else:
            endpoints.pop(step, None)
            roster.endpoint("m", step, None)
        assert roster.revision > seen or roster.found() == before
    specs, aliases, left_out = found(list(endpoints.values()), plans)
    assert sorted(roster.found().specs, key=str) == sorted(specs, key=str)
    assert (roster.found().aliases, roster.found().left_out) == (aliases, left_out)


def test_a_heartbeat_changes_nothing() -> None:
    roster = Roster()
    roster.plan("m", plan(0))
    roster.endpoint("m", 0, endpoint())
    seen = roster.revision
    roster.endpoint("m", 0, endpoint(last_heartbeat_ms=5, stats=EngineStats(waiting=3)))
    assert roster.revision == seen


class Gateway:
    """What a gateway was told."""

    def __init__(self) -> None:
        self.engines: list[str] = []
        self.swaps = 0

    def swap(self, specs: Sequence[Mapping[str, Any]], _: Mapping[str, str]) -> None:
        self.engines = [str(spec["name"]) for spec in specs]
        self.swaps += 1

    async def has(self, *engines: str) -> None:
        await until(f"engines {engines}", lambda: self.engines == list(engines))


@asynccontextmanager
async def discovering(store: MemoryStore) -> AsyncIterator[tuple[Gateway, Discovery]]:
    gateway = Gateway()
    discovery = Discovery(store, gateway.swap)
    running = asyncio.ensure_future(discovery.run())
    try:
        yield gateway, discovery
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def put(store: MemoryStore, *records: EndpointInfo | PlacementPlan, ttl_s: float | None = None) -> None:
    for record in records:
        if isinstance(record, PlacementPlan):
            await store.put(placement_key(record.model_uid), record.stored())
        else:
            await store.put(endpoint_key(record.model_uid, record.replica_id), record.stored(), ttl_s)


async def test_engines_follow_the_store() -> None:
    store = MemoryStore()
    await put(store, plan(0, 1), endpoint())
    async with discovering(store) as (gateway, discovery):
        await gateway.has("m/0")
        await put(store, endpoint(1))
        await gateway.has("m/0", "m/1")
        assert discovery.state() == {"connected": True, "last_contact_s": 0.0, "engines": 2, "left_out": {}}
        await put(store, plan(1, version=2, since_version=1))
        await gateway.has("m/1")
        assert list(discovery.state()["left_out"]) == ["m/0"]
        await store.delete(placement_key("m"))
        await gateway.has()


async def test_a_record_that_is_none_is_left_out_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    await put(store, plan(0, 1), endpoint(), endpoint(1))
    await store.put(endpoint_key("m", 2), b'{"replica_id": "two"}')
    async with discovering(store) as (gateway, _):
        await gateway.has("m/0", "m/1")
        assert "/endpoints/m/2: not a EndpointInfo: model_uid: Field required" in caplog.text
        await store.put(endpoint_key("m", 1), b"no JSON")
        await gateway.has("m/0")


async def test_loss_of_the_store_changes_nothing() -> None:
    owner = MemoryStore()
    store = MemoryStore(beside=owner)
    await put(owner, plan(0), endpoint())
    async with discovering(store) as (gateway, discovery):
        await gateway.has("m/0")
        store.cut()
        await until("the loss to be noticed", lambda: not discovery.connected)
        assert gateway.engines == ["m/0"]
        assert discovery.last_contact_s >= 0
        await put(owner, plan(0, 1, version=2, since_version=1), endpoint(1, plan_version=2))
        store.mend()
        await gateway.has("m/0", "m/1")
        assert discovery.connected


async def test_what_ran_out_while_the_store_was_away_gets_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETURN_GRACE_S", 0.5)
    owner = MemoryStore()
    store = MemoryStore(beside=owner)
    await put(owner, plan(0, 1), endpoint(), endpoint(1))
    async with discovering(store) as (gateway, discovery):
        await gateway.has("m/0", "m/1")
        store.cut()
        await until("the loss to be noticed", lambda: not discovery.connected)
        await owner.delete(endpoint_key("m", 0))
        await owner.delete(endpoint_key("m", 1))
        store.mend()
        await until("the return to be noticed", lambda: discovery.connected)
        returned = time.monotonic()
        assert gateway.engines == ["m/0", "m/1"]
        await put(owner, endpoint(1))
        await gateway.has("m/1")
        assert time.monotonic() - returned >= 0.4, "the other one had the grace to come back too"


async def test_what_goes_after_the_return_goes_at_once() -> None:
    owner = MemoryStore()
    store = MemoryStore(beside=owner)
    await put(owner, plan(0), endpoint())
    async with discovering(store) as (gateway, discovery):
        await gateway.has("m/0")
        store.cut()
        await until("the loss to be noticed", lambda: not discovery.connected)
        store.mend()
        await until("the return to be noticed", lambda: discovery.connected)
        await owner.delete(endpoint_key("m", 0))
        await gateway.has()


async def test_many_changes_are_few_swaps() -> None:
    store = MemoryStore()
    await put(store, plan(*range(100)))
    async with discovering(store) as (gateway, _):
        await until("the first look", lambda: gateway.swaps > 0)
        for replica in range(100):
            await put(store, endpoint(replica))
        await until("all of them", lambda: len(gateway.engines) == 100)
        assert gateway.swaps < 20


async def test_a_fleet_that_is_refused_leaves_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: Sequence[Mapping[str, Any]], __: Mapping[str, str]) -> None:
        raise ValueError("two engines of one name")

    discovery = Discovery(MemoryStore(), refuse)
    running = asyncio.ensure_future(discovery.run())
    try:
        await until("the refusal", lambda: "the engines stay as they were: two engines of one name" in caplog.text)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_discovery_that_ended_is_not_connected() -> None:
    store = MemoryStore()
    discovery = Discovery(store, Gateway().swap)
    running = asyncio.ensure_future(discovery.run())
    await until("the store to be followed", lambda: discovery.connected)
    await store.close()
    with pytest.raises(StoreClosedError):
        await asyncio.wait_for(running, 20)
    assert not discovery.connected
