"""What people ask of a fleet, over a store in memory."""

import asyncio

import pytest
from tests.fleet.made import MODEL, NOW_MS, endpoint, fill, node, plan, put, sized, spec, stored_plan, stored_spec

from nebula_router.fleet import operations
from nebula_router.fleet.asking import survey
from nebula_router.fleet.asking.documents import DrainOrder, NodeDrainOrder, ReplicaRow, ScaleOrder
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.operations import UnknownError, WrongError
from nebula_router.fleet.records import (
    MODEL_REQUESTS,
    ModelRequest,
    ModelSpec,
    Role,
    drain_key,
    endpoint_key,
    model_request_key,
    spec_key,
)
from nebula_router.fleet.scheduler import Scheduler
from nebula_router.fleet.settings import SchedulerSettings

pytestmark = pytest.mark.anyio

SETTINGS = SchedulerSettings()


async def running() -> MemoryStore:
    """Two nodes with a replica each, both ready."""
    store = MemoryStore()
    await fill(store)
    return store


def by_name(rows: tuple[ReplicaRow, ...]) -> dict[str, ReplicaRow]:
    return {row.name: row for row in rows}


async def test_an_empty_fleet_is_empty() -> None:
    store = MemoryStore()
    status = await operations.status(store)
    assert (status.wanted, status.ready, status.models, status.nodes, status.problems) == (0, 0, (), (), ())
    assert (await operations.placements(store)).replicas == ()


async def test_a_replica_is_shown_with_its_place_its_engine_and_its_load() -> None:
    store = await running()
    first, second = (await operations.placements(store, MODEL)).replicas
    assert (first.node_id, first.gpus, first.port, first.status, first.current) == ("a", (0,), 10_900, "ready", True)
    assert (first.kv_usage, first.waiting, first.running, first.plan_version) == (0.25, 3, 7, 1)
    assert (second.name, second.node_id, second.kv_usage) == ("qwen/1", "b", None)


async def test_what_keeps_a_replica_from_running_is_told() -> None:
    store = MemoryStore()
    why = {"0": "most free memory", "3": "needs 140 GiB, the largest free GPU has 24 GiB"}
    await put(store, node("a", errors={"qwen/1": "port 10815 is taken"}), spec(5), plan("a", "a", "gone", reasons=why))
    await put(store, endpoint(0, "a", "starting"), endpoint(4, "a"))
    rows = by_name((await operations.placements(store)).replicas)
    assert {name: row.status for name, row in rows.items()} == {
        "qwen/0": "starting",
        "qwen/1": "failed",
        "qwen/2": "lost",
        "qwen/3": "unplaced",
        "qwen/4": "ready",
    }
    assert [rows[f"qwen/{i}"].why for i in (0, 1, 3)] == [why["0"], "port 10815 is taken", why["3"]]
    assert rows["qwen/2"].why == "its node gone is gone"
    assert not rows["qwen/4"].current
    [model] = (await operations.models(store)).models
    assert (model.status, model.wanted, model.ready, model.why) == ("starting", 5, 0, "replica 1: port 10815 is taken")


async def test_an_engine_of_an_older_plan_is_a_leftover() -> None:
    store = await running()
    moved = plan("a", "a", version=2)
    kept = moved.assignments[0].model_copy(update={"since_version": 1})
    await put(store, moved.model_copy(update={"assignments": (kept, moved.assignments[1])}))
    rows = (await operations.placements(store)).replicas
    assert [(row.name, row.node_id, row.status, row.current) for row in rows] == [
        ("qwen/0", "a", "ready", True),
        ("qwen/1", "a", "planned", True),
        ("qwen/1", "b", "ready", False),
    ]


async def test_nodes_are_shown_with_who_has_their_gpus() -> None:
    store = await running()
    await put(store, plan("gone", model="llama"))
    rows = {row.node_id: row for row in (await operations.nodes(store)).nodes}
    assert [(gpu.booked_mb, gpu.replicas) for gpu in rows["a"].gpus] == [(8_000, ("qwen/0",)), (0, ())]
    assert [gpu.replicas for gpu in rows["b"].gpus] == [(), ("qwen/1",)]
    assert (rows["gone"].status, rows["gone"].replicas) == ("lost", ("llama/0",))


async def test_the_status_names_what_is_wrong() -> None:
    store = MemoryStore()
    await store.put("/placements/broken", b"{}")
    waits = ModelRequest(id="r1", request=spec(model="late"), status="Pending", created_at_ms=NOW_MS - 60_000)
    failed = ModelRequest(id="r2", request=spec(model="big"), status={"Failed": "no room"}, created_at_ms=NOW_MS)
    await put(store, node("a"), spec(), plan("a", "gone"), waits, failed)
    fleet = await operations.read(store)
    status = survey.fleet_status(fleet, NOW_MS)
    assert [problem.split(":")[0] for problem in status.problems] == [
        "/placements/broken",
        "node gone is gone; 1 of its replicas are planned there until a scheduler moves them",
        "no scheduler has taken the request for late in 60 s; `nebula scheduler` starts one",
        "the request for big failed",
    ]
    states = {model.model_uid: (model.status, model.request) for model in status.models}
    assert states == {"big": ("failed", "Failed"), "late": ("starting", "Pending"), "qwen": ("starting", None)}


async def test_a_model_that_is_asked_for_is_granted_by_a_scheduler() -> None:
    store = MemoryStore()
    await put(store, node("a"))
    done = await operations.load(store, spec(1))
    assert done.text == "qwen is asked for with 1 replica"
    entry = await store.get(model_request_key(done.request_id or ""))
    assert entry is not None
    assert ModelRequest.parsed(entry.value, entry.key).status == "Pending"
    await Scheduler(store, SETTINGS).once()
    [model] = (await operations.models(store)).models
    assert (model.request, model.wanted, model.plan_version) == ("Scheduled", 1, 1)
    again = await operations.load(store, spec(2))
    assert again.text == "qwen is asked for anew, now with 2 replicas"
    assert len((await store.list(MODEL_REQUESTS)).entries) == 1


async def test_a_model_without_room_is_refused_by_a_scheduler() -> None:
    store = MemoryStore()
    await put(store, node("a"))
    await operations.load(store, spec(1, required_vram_mb=140_000))
    await Scheduler(store, SETTINGS).once()
    status = await operations.status(store)
    [model] = status.models
    assert (model.status, model.request) == ("failed", "Failed")
    assert model.why is not None
    assert "a" in model.why
    assert status.problems == (f"the request for qwen failed: {model.why}",)


async def test_a_spec_that_makes_no_sense_is_refused() -> None:
    store = MemoryStore()
    with pytest.raises(WrongError, match="at least one"):
        await operations.load(store, ModelSpec(model_uid="m", model_name="m", pools={}))
    with pytest.raises(WrongError, match="min_replicas 4 is more than max_replicas 2"):
        await operations.load(store, spec(3, min_replicas=4, max_replicas=2))
    assert (await store.list("")).entries == {}


async def test_scale_changes_the_spec_and_plans() -> None:
    store = await running()
    done = await operations.scale(store, MODEL, ScaleOrder(replicas=3), SETTINGS)
    assert (done.text, done.refused) == ("qwen is to have 3 replicas", {})
    assert (await stored_spec(store)).pools[Role.UNIFIED].replicas == 3
    before, after = plan("a", "b"), await stored_plan(store)
    assert (after.version, len(after.assignments)) == (2, 3)
    assert all(row.serves for row in (await operations.placements(store)).replicas[:2])
    assert [a.gpus for a in after.assignments[:2]] == [a.gpus for a in before.assignments]


async def test_scale_beyond_the_room_changes_nothing_and_says_why() -> None:
    store = await running()
    before = await store.list("/models/")
    done = await operations.scale(store, MODEL, ScaleOrder(replicas=6), SETTINGS)
    assert done.text == "qwen stays as it is: there is no room for 6 replicas"
    assert list(done.refused) == ["4", "5"]
    assert all("GPU" in why for why in done.refused.values())
    assert (await store.list("/models/")).entries == before.entries
    assert (await stored_plan(store)).version == 1


async def test_scale_down_drains_what_is_too_much() -> None:
    store = await running()
    await operations.scale(store, MODEL, ScaleOrder(replicas=1), SETTINGS)
    rows = (await operations.placements(store)).replicas
    assert [(row.replica_id, row.current, row.draining) for row in rows] == [(0, True, False), (1, True, True)]


async def test_scale_keeps_what_it_does_not_know() -> None:
    store = MemoryStore()
    await put(store, node("a"))
    await store.put(
        spec_key(MODEL),
        b'{"model_uid": "qwen", "model_name": "Qwen", "later": 1, "pools": {"unified": '
        b'{"replicas": 1, "new": [2], "gpus_per_replica": 1, "required_vram_mb": 1}}}',
    )
    await operations.scale(store, MODEL, ScaleOrder(replicas=2), SETTINGS)
    stored = (await stored_spec(store)).model_dump(exclude_unset=True)
    assert (stored["later"], stored["pools"][Role.UNIFIED]) == (1, {**stored["pools"][Role.UNIFIED], "new": [2]})


async def test_scale_by_role_and_by_bounds() -> None:
    store = MemoryStore()
    pools = {Role.PREFILL: sized(1), Role.DECODE: sized(2)}
    await put(store, node("a", gpus=8), ModelSpec(model_uid=MODEL, model_name="Qwen", pools=pools))
    with pytest.raises(WrongError, match="several pools; say which by role: prefill, decode"):
        await operations.scale(store, MODEL, ScaleOrder(replicas=3), SETTINGS)
    with pytest.raises(UnknownError, match="no pool unified"):
        await operations.scale(store, MODEL, ScaleOrder(replicas=3, role=Role.UNIFIED), SETTINGS)
    order = ScaleOrder(role=Role.DECODE, min_replicas=3, max_replicas=6)
    done = await operations.scale(store, MODEL, order, SETTINGS)
    assert done.text == "qwen (decode) is to have 3 replicas, by load between 3 and 6"
    with pytest.raises(WrongError, match="9 replicas are not within its bounds, 3 to 6"):
        await operations.scale(store, MODEL, ScaleOrder(replicas=9, role=Role.DECODE), SETTINGS)
    assert (await stored_spec(store)).pools[Role.PREFILL].replicas == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [("qwne", r"there is no model qwne; did you mean qwen\? models: qwen"), ("x", "there is no model x; models: qwen")],
)
async def test_a_model_that_is_not_there_is_answered_with_the_nearest(name: str, text: str) -> None:
    store = await running()
    for order in (
        operations.placements(store, name),
        operations.scale(store, name, ScaleOrder(replicas=1), SETTINGS),
        operations.drain(store, name, DrainOrder(replica_id=0), SETTINGS),
        operations.unload(store, name),
    ):
        with pytest.raises(UnknownError, match=text):
            await order


async def test_names_that_are_not_there() -> None:
    store = await running()
    with pytest.raises(UnknownError, match="qwen has no replica 7; its replicas: 0, 1"):
        await operations.drain(store, MODEL, DrainOrder(replica_id=7), SETTINGS)
    with pytest.raises(UnknownError, match="there is no node c; nodes: a, b"):
        await operations.drain_node(store, "c", NodeDrainOrder(), SETTINGS)
    with pytest.raises(UnknownError, match="there is no model qwen; the fleet has no models"):
        await operations.unload(MemoryStore(), MODEL)


async def test_a_drained_replica_stays_current() -> None:
    store = await running()
    done = await operations.drain(store, MODEL, DrainOrder(replica_id=1), SETTINGS)
    assert done.text == "qwen/1 gets no new requests; it ends those that it has"
    assert done.notes == ()
    after = await stored_plan(store)
    assert [(a.replica_id, a.draining) for a in after.assignments] == [(0, False), (1, True), (2, False)]
    rows = (await operations.placements(store)).replicas
    assert [(row.status, row.current, row.draining, row.serves) for row in rows] == [
        ("ready", True, False, True),
        ("ready", True, True, False),
        ("planned", True, False, False),
    ]
    again = await operations.drain(store, MODEL, DrainOrder(replica_id=1), SETTINGS)
    assert (again.text, (await stored_plan(store)).version) == ("qwen/1 is draining already", after.version)
    back = await operations.drain(store, MODEL, DrainOrder(replica_id=1, on=False), SETTINGS)
    assert back.text == "qwen/1 gets requests again"
    rows = (await operations.placements(store)).replicas
    assert [(row.draining, row.serves) for row in rows] == [(False, True), (False, True), (True, False)]


async def test_a_replica_that_has_drained_makes_room_without_a_scheduler() -> None:
    store = MemoryStore()
    await put(store, node("a", gpus=1), spec(1), plan("a"), endpoint(0, "a"))
    await operations.scale(store, MODEL, ScaleOrder(replicas=0), SETTINGS)
    assert (await operations.placements(store)).replicas[0].draining
    await store.delete(endpoint_key(MODEL, 0))
    assert (await operations.placements(store)).replicas[0].status == "drained"
    done = await operations.scale(store, MODEL, ScaleOrder(replicas=1), SETTINGS)
    assert done.refused == {}
    [row] = (await operations.placements(store)).replicas
    assert (row.node_id, row.gpus, row.draining) == ("a", (0,), False)


async def test_draining_the_last_replica_warns() -> None:
    store = await running()
    await operations.drain(store, MODEL, DrainOrder(replica_id=0), SETTINGS)
    done = await operations.drain(store, MODEL, DrainOrder(replica_id=1), SETTINGS)
    assert done.notes == ("no other replica of qwen is ready: its requests are refused until one is",)


async def test_a_node_stays_drained_over_its_own_heartbeats() -> None:
    store = await running()
    done = await operations.drain_node(store, "b", NodeDrainOrder(), SETTINGS)
    assert done.text == "node b gets no new replicas; what drains there: qwen"
    await put(store, node("b"))
    rows = {row.node_id: row.status for row in (await operations.nodes(store)).nodes}
    assert rows == {"a": "ready", "b": "draining"}
    assert (await operations.read(store)).nodes["b"].draining
    assert [(a.node_id, a.draining) for a in (await stored_plan(store)).assignments] == [
        ("a", False),
        ("b", True),
        ("a", False),
    ]
    await operations.drain_node(store, "b", NodeDrainOrder(on=False), SETTINGS)
    assert await store.get(drain_key("b")) is None
    assert [a.draining for a in (await stored_plan(store)).assignments] == [False, False, True]


async def test_unload_removes_what_is_wanted_and_placed() -> None:
    store = await running()
    await operations.load(store, spec())
    await put(store, plan("a", model="llama"))
    done = await operations.unload(store, MODEL)
    assert done.text == "qwen is unloaded; its nodes end 2 engines"
    left = (await store.list("")).entries
    assert {spec_key(MODEL), *(key for key in left if key.startswith(MODEL_REQUESTS))} & left.keys() == set()
    # Its version goes on, so that nothing of its former life is current in a later one.
    assert ((await stored_plan(store)).assignments, (await stored_plan(store)).version) == ((), 2)
    assert len((await stored_plan(store, "llama")).assignments) == 1
    [_, model] = (await operations.models(store)).models
    assert (model.model_uid, model.status) == (MODEL, "unloading")
    with pytest.raises(UnknownError, match="unloaded already"):
        await operations.unload(store, MODEL)


async def test_many_orders_at_once_lose_nothing() -> None:
    store = MemoryStore()
    await put(store, node("a", gpus=16), spec(8))
    await Scheduler(store, SETTINGS).once()
    await put(store, *(endpoint(i, "a") for i in range(8)))
    orders = (operations.drain(store, MODEL, DrainOrder(replica_id=i), SETTINGS) for i in range(8))
    await asyncio.gather(*orders)
    after = await stored_plan(store)
    assert [a.draining for a in after.assignments] == [True] * 8 + [False] * 8
    assert len({a.gpus for a in after.assignments}) == 16
