"""What becomes of engines when nodes or the store come and go."""

import asyncio
import sys
from collections.abc import Awaitable

import pytest
from tests.fleet.node.machine import UID, WITHIN_S, Machine, is_alive, kill, until

from nebula_router.fleet.claim import NodeTakenError
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.node import Node
from nebula_router.fleet.records import EndpointInfo, EndpointStatus, endpoint_key, node_key, placement_key

pytestmark = pytest.mark.anyio


async def test_the_next_node_takes_engines_over(machine: Machine) -> None:
    async with machine.node():
        await machine.place({"extra_args": ["--max-num-seqs", "7"]})
        before = await machine.ready()
    pid = machine.known_pid()
    assert is_alive(pid)
    assert await machine.endpoint() is not None  # until its lease ends
    await machine.store.delete(endpoint_key(UID, 0))
    seen = (await machine.store.list("/")).revision
    async with machine.node() as node:
        after = await machine.ready()
        changes = [change for change in machine.store._data.changes(seen) if change.key == endpoint_key(UID, 0)]
        said = [EndpointInfo.parsed(change.entry.value, change.key) for change in reversed(changes) if change.entry]
        assert {one.status for one in said} == {EndpointStatus.READY}  # gateways notice nothing
        assert (machine.known_pid(), node.keepers[f"{UID}/0"].pid) == (pid, pid)
        assert after.model_dump(exclude={"stats", "last_heartbeat_ms"}) == before.model_dump(
            exclude={"stats", "last_heartbeat_ms"}
        )
        kill(pid)
        await machine.ready(but=pid)


async def test_an_engine_that_died_while_no_node_ran_is_started_again(machine: Machine) -> None:
    async with machine.node():
        await machine.place({})
        await machine.ready()
    pid = machine.known_pid()
    kill(pid)
    async with machine.node():
        await machine.ready(but=pid)


async def test_a_placement_that_went_while_no_node_ran_is_ended_by_the_next_one(machine: Machine) -> None:
    async with machine.node():
        await machine.place({})
        await machine.ready()
    pid = machine.known_pid()
    await machine.store.delete(placement_key(UID))
    async with machine.node():
        await until("its end", lambda: not is_alive(pid))
        await machine.gone()


async def test_a_placement_that_changed_while_no_node_ran_is_started_anew(machine: Machine) -> None:
    async with machine.node():
        await machine.place({})
        await machine.ready()
    pid = machine.known_pid()
    version = await machine.place({"engine_args": {"max_num_seqs": 3}})
    async with machine.node():
        after = await machine.ready(but=pid, version=version)
        assert after.plan_version == version
        assert not is_alive(pid)


async def test_engines_go_on_while_the_store_is_away(machine: Machine) -> None:
    own = MemoryStore(machine.store)
    async with machine.node(own):
        await machine.place({})
        await machine.ready()
        pid = machine.known_pid()
        own.cut()
        await machine.gone()
        await until("the node to be gone", lambda: _is_none(machine.status()))
        await machine.place({"required_vram_mb": 1})
        kill(pid)  # it is started again without the store
        other = await until("another process", lambda: (new := machine.pid()) not in {None, pid} and new)
        own.mend()
        await machine.ready()
        assert machine.known_pid() == other
        assert await machine.status() is not None
    await own.close()


async def test_a_stop_for_good_does_not_need_the_store(machine: Machine) -> None:
    async with machine.node():
        await machine.place({})
        await machine.ready()
    pid = machine.known_pid()
    own = MemoryStore(machine.store)
    own.cut()
    async with machine.node(own, on_stop="stop") as node:
        node.hurry()
    assert not is_alive(pid)
    assert machine.pid() is None
    own.mend()
    await own.close()


async def test_a_store_that_lost_its_data_ends_no_engine(machine: Machine) -> None:
    own = MemoryStore(machine.store)
    async with machine.node(own) as node:
        await machine.place({})
        await machine.ready()
        pid = machine.known_pid()
        own.cut()
        await machine.gone()
        own._data = machine.store._data = MemoryStore()._data
        own.mend()
        await machine.ready()  # announced in the new store
        assert machine.known_pid() == pid
        await machine.place(version=9)
        await until("its end", lambda: not node.keepers)
        assert not is_alive(pid)
    await own.close()


async def test_a_record_that_cannot_be_read_changes_nothing(machine: Machine) -> None:
    async with machine.node():
        await machine.place({})
        await machine.ready()
        pid = machine.known_pid()
        await machine.store.put(placement_key(UID), b'{"version": 0}')

        async def is_told() -> bool:
            status = await machine.status()
            return status is not None and UID in (status.errors or {})

        await until("the error", is_told)
        version = await machine.place({})
        await machine.ready(version=version)
        assert machine.known_pid() == pid


async def test_a_stop_for_good_ends_all_engines(machine: Machine) -> None:
    async with machine.node(on_stop="stop"):
        await machine.place({}, {"replica_id": 1})
        await machine.ready(0)
        await machine.ready(1)
        pids = machine.known_pid(0), machine.known_pid(1)
        seen = (await machine.store.list("/")).revision
    told = [change.entry for change in machine.store._data.changes(seen) if change.key == node_key("n1")]
    assert any(entry is not None and b'"draining":true' in entry.value for entry in told)
    assert not any(is_alive(pid) for pid in pids)
    assert (await machine.endpoint(0), await machine.endpoint(1), await machine.status()) == (None, None, None)


async def test_a_hurried_stop_waits_for_nothing(machine: Machine) -> None:
    async with machine.node(on_stop="stop", engine_command="sh -c 'trap : TERM; while :; do sleep 1; done'") as node:
        await machine.place({})
        pid = await until("its process", machine.pid)
        node.hurry()
    assert not is_alive(pid)


async def test_a_name_is_one_nodes(machine: Machine) -> None:
    async with machine.node():
        await until("the node", machine.status)
        for own, told in (({}, "state in"), ({"state_dir": str(machine.folder / "other")}, "has the name 'n1'")):
            other = Node(machine.store, machine.settings(**own))
            with pytest.raises(NodeTakenError, match=told):
                await asyncio.wait_for(other.run(asyncio.Event()), WITHIN_S)


async def test_a_name_whose_node_is_gone_is_free(machine: Machine) -> None:
    own = MemoryStore(machine.store)
    async with machine.node(own):
        await until("the node", machine.status)
    own.cut()  # its lease ends
    async with machine.node(state_dir=str(machine.folder / "other")):
        await machine.place({"engine_type": "sim"})

        async def is_mine() -> bool:
            return await machine.endpoint() is not None

        await until("the endpoint", is_mine)
        await machine.place()
        await machine.gone()


async def test_what_somebody_wrote_into_the_status_stays(machine: Machine) -> None:
    async with machine.node():
        status = await until("the node", machine.status)
        await machine.store.put(node_key("n1"), status.model_copy(update={"draining": True}).stored())
        seen = status.last_heartbeat_ms

        async def is_kept() -> bool:
            now = await machine.status()
            return now is not None and now.draining and now.last_heartbeat_ms > seen

        await until("a later status that is draining", is_kept)


async def test_engines_outlive_a_killed_node(machine: Machine) -> None:
    settings = machine.settings().model_dump_json()
    script = machine.folder / "node.py"
    script.write_text(_NODE)
    with (machine.folder / "node.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, str(script), settings, stdout=log, stderr=log)
    try:
        pid = await until("the engine", machine.pid)
        await until("it to be ready", lambda: "uid/0: ready" in (machine.folder / "node.log").read_text())
    finally:
        process.kill()
        await process.wait()
    assert is_alive(pid)
    await machine.place({})
    async with machine.node():
        await machine.ready()
        assert machine.pid() == pid
        await machine.place()
        await machine.gone()
        assert not is_alive(pid)


_NODE = """
import asyncio, logging, sys
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.node import Node
from nebula_router.fleet.records import Assignment, PlacementPlan, placement_key
from nebula_router.fleet.settings import NodeSettings

logging.basicConfig(level="INFO")

async def main():
    store = MemoryStore()
    plan = PlacementPlan(model_uid="tiny-uid", model_name="org/tiny", version=1,
                         assignments=[Assignment(replica_id=0, node_id="n1")])
    await store.put(placement_key("tiny-uid"), plan.stored())
    await Node(store, NodeSettings.model_validate_json(sys.argv[1])).run(asyncio.Event())

asyncio.run(main())
"""


async def _is_none(found: Awaitable[object]) -> bool:
    return await found is None
