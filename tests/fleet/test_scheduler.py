"""The loop, on the store in memory and on etcd."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fleet.conftest import Clients, OpenEtcd
from tests.fleet.etcd import Etcd
from tests.fleet.fleets import all_placements, announce, doubles, endpoint, gpu, node, placement, serve, spec, want
from tests.fleet.test_book import Unsteady, ask

from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.placing.book import BOOK, Decision
from nebula_router.fleet.placing.one_shot import place
from nebula_router.fleet.records import ModelRequest, PlacementPlan, model_request_key, node_key, placement_key
from nebula_router.fleet.scheduler import Scheduler
from nebula_router.fleet.settings import SchedulerSettings
from nebula_router.fleet.store import Store, StoreClosedError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
QUICK = SchedulerSettings(interval_s=0.2, lost_after_s=0.3, settle_s=0.3, drain_grace_s=0.3)


@asynccontextmanager
async def running(store: Store, settings: SchedulerSettings = QUICK) -> AsyncIterator["asyncio.Task[None]"]:
    stop = asyncio.Event()
    task = asyncio.create_task(Scheduler(store, settings).run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, WITHIN_S)


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := await condition()):
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)
    return found


async def said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def version(store: Store, at_least: int, uid: str = "m") -> PlacementPlan:
    async def there() -> PlacementPlan | None:
        written = await placement(store, uid)
        return written if written is not None and written.version >= at_least else None

    found: PlacementPlan = await until(there)
    return found


async def test_a_model_that_is_wanted_is_placed_at_once_and_then_nothing_moves(clients: Clients) -> None:
    store, people = clients(), clients()
    await announce(people, node("a", gpu(0), gpu(1)))
    async with running(store, QUICK.model_copy(update={"interval_s": 600.0})):
        await want(people, spec("m", required_vram_mb=1000))
        assert [a.node_id for a in (await version(people, 1)).assignments] == ["a"]
        await want(people, spec("m", required_vram_mb=1000, replicas=2))
        assert [a.gpus for a in (await version(people, 2)).assignments] == [(0,), (1,)]
        before = await people.get(placement_key("m"))
        for _ in range(3):
            await announce(people, node("a", gpu(0, 24, 5), gpu(1, 24, 6)))
        await want(people, spec("other", required_vram_mb=100_000))
        await version(people, 1, "other")
        assert await people.get(placement_key("m")) == before


async def test_a_node_that_comes_gets_what_had_no_place(clients: Clients) -> None:
    store, people = clients(), clients()
    await want(people, spec("m"))
    async with running(store, QUICK.model_copy(update={"interval_s": 600.0})):
        assert (await version(people, 1)).assignments == ()
        await announce(people, node("a", gpu(0)))
        assert [a.node_id for a in (await version(people, 2)).assignments] == ["a"]


async def test_replicas_of_a_lost_node_move(clients: Clients) -> None:
    store, people, machine = clients(), clients(), clients()
    await announce(people, node("b", gpu(0)))
    await announce(machine, node("a", gpu(0), gpu(1)), ttl_s=1)
    await want(people, spec("m"))
    async with running(store):
        assert [a.node_id for a in (await version(people, 1)).assignments] == ["a"]
        await machine.close()
        moved = await version(people, 2)
        assert [(a.replica_id, a.node_id, a.since_version) for a in moved.assignments] == [(0, "b", 2)]


async def test_a_request_goes_its_way(clients: Clients) -> None:
    store, people = clients(), clients()
    await announce(people, node("a", gpu(0)))
    request = ModelRequest(id="r", request=spec("m", required_vram_mb=1000), status="Pending", created_at_ms=1)
    key = model_request_key("r")

    async def status_is(wanted: str) -> bool:
        entry = await people.get(key)
        return entry is not None and ModelRequest.parsed(entry.value, key).status == wanted

    async with running(store):
        await people.put(key, request.stored())
        await until(lambda: status_is("Scheduled"))
        written = await version(people, 1)
        await serve(people, endpoint(written, written.assignments[0]))
        await until(lambda: status_is("Running"))
        await people.put(key, request.model_copy(update={"status": "Unloading"}).stored())
        assert (await version(people, 2)).assignments == ()
        await people.delete("/endpoints/m/0")

        async def gone() -> bool:
            return await people.get(key) is None

        await until(gone)


async def test_a_request_for_a_model_that_does_not_fit_fails_with_the_arithmetic(clients: Clients) -> None:
    store, people = clients(), clients()
    await announce(people, node("a", gpu(0)))
    wish = spec("m", engine_args={"model": "meta-llama/Llama-3.3-70B-Instruct"})
    key = model_request_key("r")
    await people.put(key, ModelRequest(id="r", request=wish, status="Pending", created_at_ms=1).stored())

    async def failed() -> str | None:
        entry = await people.get(key)
        status = entry and ModelRequest.parsed(entry.value, key).status
        return status.get("Failed") if isinstance(status, dict) else None

    async with running(store):
        why = await until(failed)
    assert why.startswith("weights 130.4 GiB / TP 1 + overhead 1.5 GiB = 131.9 GiB per GPU; a: the largest free GPU")
    assert await placement(people, "m") is None


async def test_what_is_asked_for_while_it_decides_is_sized_before_it_is_placed() -> None:
    store = MemoryStore()
    await announce(store, node("a", gpu(0)))
    big = spec("big", engine_args={"model": "meta-llama/Llama-3.3-70B-Instruct"})

    class Late(Unsteady):
        async def compare_and_swap(
            self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
        ) -> int | None:
            if key == BOOK and await store.get("/models/big/spec") is None:
                await want(store, big)
                await store.put(BOOK, Decision().stored())
            return await super().compare_and_swap(key, expected_revision, value, ttl_s)

    await want(store, spec("m", required_vram_mb=1000, gpus_per_replica=0))
    scheduler = Scheduler(Late(store, random.Random(0)), QUICK)
    await scheduler.once()
    assert await placement(store, "big") is None
    await scheduler.once()
    written = await placement(store, "big")
    assert written is not None
    assert written.assignments == ()


async def test_nothing_moves_while_the_store_is_out_of_reach_nor_just_after(caplog: pytest.LogCaptureFixture) -> None:
    people = MemoryStore()
    store, machine = MemoryStore(beside=people), MemoryStore(beside=people)
    await announce(people, node("b", gpu(0)))
    await announce(machine, node("a", gpu(0), gpu(1)), ttl_s=0.05)
    await want(people, spec("m"))
    patient = QUICK.model_copy(update={"lost_after_s": 1.0})
    async with running(store, patient):
        first = await version(people, 1)
        store.cut()
        machine.cut()

        async def gone() -> bool:
            return await people.get(node_key("a")) is None

        await until(gone)
        await until(lambda: said(caplog, "nothing is placed or moved for now"))
        store.mend()
        machine.mend()
        await want(people, spec("n", node_id="b"))
        await version(people, 1, "n")
        assert await placement(people, "m") == first
        await announce(machine, node("a", gpu(0), gpu(1)), ttl_s=0.05)
        await want(people, spec("o", node_id="a"))
        await version(people, 1, "o")
        assert await placement(people, "m") == first


async def test_an_outage_of_etcd_moves_nothing(
    etcd: Etcd, open_etcd: OpenEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    store, people, machine = (open_etcd(at=etcd, timeout_s=1.0) for _ in range(3))
    await announce(people, node("b", gpu(0)))
    await announce(machine, node("a", gpu(0), gpu(1)), ttl_s=5)
    await want(people, spec("m"))
    async with running(store, QUICK.model_copy(update={"lost_after_s": 5.0})):
        first = await version(people, 1)
        assert [a.node_id for a in first.assignments] == ["a"]
        etcd.kill()
        await until(lambda: said(caplog, "nothing is placed or moved for now"))
        await asyncio.to_thread(etcd.start)
        await want(people, spec("n", node_id="b"))
        await version(people, 1, "n")
        assert await placement(people, "m") == first


async def test_a_store_that_is_closed_under_it_ends_it() -> None:
    store = MemoryStore()
    task = asyncio.create_task(Scheduler(store, QUICK).run(asyncio.Event()))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreClosedError):
        await asyncio.wait_for(task, WITHIN_S)


async def test_many_schedulers_and_one_shots_at_once_never_give_a_thing_twice(clients: Clients) -> None:
    people = clients()
    await announce(people, *(node(f"n{i}", gpu(0), gpu(1), ports=(10814, 10816)) for i in range(4)))
    dice = random.Random(5)
    faults: list[str] = []
    versions: dict[str, list[int]] = {}

    async def look() -> None:
        async for changes in people.watch("/placements/", 0):
            for change in changes:
                if change.entry is not None:
                    written = PlacementPlan.parsed(change.entry.value, change.key)
                    versions.setdefault(written.model_uid, []).append(written.version)
            faults.extend(doubles(await all_placements(people)))

    async def user(number: int) -> None:
        for turn in range(3):
            uid = f"m{(number + turn) % 5}"
            await place(clients(), ask(uid, dice.randrange(1, 3), engine_args={"turn": turn}), QUICK)

    looker = asyncio.create_task(look())
    async with running(clients()), running(clients()), running(clients()):
        await asyncio.gather(*(user(number) for number in range(8)))
        await want(people, *(spec(f"w{i}", required_vram_mb=1000) for i in range(3)))
        for i in range(3):
            await version(people, 1, f"w{i}")

        async def seen() -> bool:
            return {f"w{i}" for i in range(3)} <= versions.keys()

        await until(seen)
    looker.cancel()
    await asyncio.gather(looker, return_exceptions=True)
    assert faults == []
    assert doubles(await all_placements(people)) == []
    for grown in versions.values():
        assert grown == list(range(1, len(grown) + 1))  # one winner per version
