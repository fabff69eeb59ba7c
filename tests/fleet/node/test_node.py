"""Nodes with simulated engines, over the store in memory."""

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
from tests.fleet.node.machine import NAME, UID, Machine, is_alive, kill, until

from nebula_router.fleet.records import EndpointStatus, Role, endpoint_key, placement_key

pytestmark = pytest.mark.anyio


async def test_a_placement_becomes_a_ready_endpoint_and_its_removal_ends_it(machine: Machine) -> None:
    async with machine.node():
        version = await machine.place({"gpu_index": 1, "engine_args": {"max-model-len": "8k"}})
        found = await machine.ready()
        assert (found.node_id, found.plan_version, found.role) == ("n1", version, Role.UNIFIED)
        assert set(found.served_names) == {NAME, UID}
        assert found.base_url == f"http://127.0.0.1:{found.port}"
        assert found.events is not None
        assert found.events_replay is not None
        async with httpx.AsyncClient(base_url=found.base_url, trust_env=False) as http:
            for name in (NAME, UID):
                body = {"model": name, "prompt": "Hello", "max_tokens": 2}
                assert (await http.post("/v1/completions", json=body)).status_code == 200
            sources = (await http.get("/kv_event_sources")).json()["0"]
            assert sources["endpoint"].rpartition(":")[2] == found.events.rpartition(":")[2]
            models = (await http.get("/v1/models")).json()["data"]
            assert models[0]["max_model_len"] == 8000
        pid = machine.known_pid()
        status = await machine.status()
        assert status is not None
        assert [gpu.memory_total_mb for gpu in status.gpus] == [24576, 24576]
        assert status.errors is None

        async def has_stats() -> bool:
            endpoint = await machine.endpoint()
            return endpoint is not None and endpoint.stats is not None and endpoint.stats.running == 0

        await until("its load", has_stats)
        await machine.store.delete(placement_key(UID))
        await machine.gone()
        assert not is_alive(pid)
        assert machine.pid() is None


async def test_a_killed_engine_comes_back_and_its_endpoint_says_so_meanwhile(machine: Machine) -> None:
    async with machine.node(restart_backoff_s=0.2) as node:
        await machine.place({})
        before = await machine.ready()
        pid = machine.known_pid()
        kill(pid)

        async def is_starting() -> bool:
            endpoint = await machine.endpoint()
            return endpoint is not None and endpoint.status is EndpointStatus.STARTING

        await until("the endpoint to be starting", is_starting)
        assert "killed by SIGKILL" in await until("the reason", lambda: node.keepers[f"{UID}/0"].error)
        after = await machine.ready(but=pid)
        assert after.port == before.port
        await until("no error", lambda: not node.keepers[f"{UID}/0"].error)


async def test_a_new_plan_restarts_only_what_changed(machine: Machine) -> None:
    async with machine.node():
        await machine.place({}, {"replica_id": 1})
        await machine.ready(0)
        await machine.ready(1)
        pids = machine.known_pid(0), machine.known_pid(1)
        version = await machine.place({"required_vram_mb": 7}, {"replica_id": 1, "engine_args": {"max_num_seqs": 3}})
        unchanged = await machine.ready(0, version=version)
        changed = await machine.ready(1, but=pids[1], version=version)
        assert (unchanged.plan_version, changed.plan_version) == (version, version)
        assert machine.known_pid(0) == pids[0]
        assert not is_alive(pids[1])
        assert unchanged.port != changed.port
        await machine.place({"required_vram_mb": 7})
        await machine.gone(1)
        assert is_alive(pids[0])


async def test_a_replica_that_moved_away_leaves_the_new_nodes_record_alone(machine: Machine) -> None:
    async with machine.node():
        await machine.place({})
        mine = await machine.ready()
        theirs = mine.model_copy(update={"node_id": "n2", "base_url": "http://10.0.0.2:1"})
        pid = machine.known_pid()
        await machine.place({"node_id": "n2"})

        async def has_heard() -> bool:
            endpoint = await machine.endpoint()
            return endpoint is not None and endpoint.status is EndpointStatus.DRAINING

        await until("the node to hear of it", has_heard)
        await machine.store.put(endpoint_key(UID, 0), theirs.stored())
        await until("its end", lambda: not is_alive(pid))
        await until("nothing to be left", lambda: machine.pid() is None)
    assert await machine.endpoint() == theirs


async def test_a_drained_engine_ends_its_requests_first(machine: Machine) -> None:
    async with machine.node():
        args = {"speed": 1.0}
        await machine.place({"engine_args": args})
        found = await machine.ready()
        pid = machine.known_pid()
        async with httpx.AsyncClient(base_url=found.base_url or "", trust_env=False, timeout=30) as http:
            body = {"model": NAME, "prompt": "Hello", "max_tokens": 200, "ignore_eos": True}
            asked = asyncio.create_task(http.post("/v1/completions", json=body))

            async def is_busy() -> bool:
                metrics = (await http.get("/metrics")).text
                return 'vllm:num_requests_running{engine="0",model_name="org/tiny"} 1' in metrics

            await until("the request to run", is_busy)
            await machine.place({"engine_args": args, "draining": True})

            async def is_draining() -> bool:
                endpoint = await machine.endpoint()
                return endpoint is not None and endpoint.status is EndpointStatus.DRAINING

            await until("it to be draining", is_draining)
            reply = await asked
        assert reply.status_code == 200
        assert reply.json()["usage"]["completion_tokens"] == 200
        await machine.gone()
        assert not is_alive(pid)
        version = await machine.place({"engine_args": args})
        await machine.ready(but=pid, version=version)


async def test_a_port_that_is_taken_is_passed_over(machine: Machine) -> None:
    async def nobody(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    first = machine.settings().vllm_port
    servers = [await asyncio.start_server(nobody, "127.0.0.1", 0) for _ in range(2)]
    wanted = servers[0].sockets[0].getsockname()[1]
    free = servers[1].sockets[0].getsockname()[1]
    servers[1].close()
    await servers[1].wait_closed()
    async with machine.node():
        await machine.place({"port": wanted}, {"replica_id": 1, "port": free})
        assert (await machine.ready(0)).port in range(first, first + 16)
        assert (await machine.ready(1)).port == free
    servers[0].close()
    await servers[0].wait_closed()


async def test_two_nodes_share_a_machine(machine: Machine) -> None:
    first = machine.settings().vllm_port
    async with machine.node(), machine.node(node_id="n2", vllm_port=first + 1, gpus="fake:1x80GiB"):
        await machine.place({"port": first}, {"replica_id": 1, "node_id": "n2", "port": first}, {"replica_id": 2})

        async def are_ready() -> bool:
            found = [await machine.endpoint(replica) for replica in range(3)]
            return all(one is not None and one.status is EndpointStatus.READY for one in found)

        await until("three replicas", are_ready)
        endpoints = [await machine.endpoint(replica) for replica in range(3)]
        assert [one and one.node_id for one in endpoints] == ["n1", "n2", "n1"]
        places = [place for one in endpoints if one for place in (one.port, one.events, one.events_replay)]
        assert len(set(places)) == 9
        status = await machine.status("n2")
        assert status is not None
        assert [gpu.memory_total_mb for gpu in status.gpus] == [81920]


async def test_a_yaml_that_is_wrong_is_named_and_read_again_once_it_is_right(machine: Machine, tmp_path: Path) -> None:
    config = tmp_path / "engine.yaml"
    async with machine.node(restart_cap=0):
        await machine.place({"engine_config_path": str(config)})
        text = await until("the reason", machine.error)
        assert str(config) in text
        assert "No such file" in text
        config.write_text("max-num-seqs: [")

        async def is_not_yaml() -> bool:
            return "not YAML" in await machine.error()

        await until("the next reason", is_not_yaml)
        config.write_text(
            "model: org/other\nmax-num-seqs: 5\ngpu-memory-utilization: 0.9\nenable-prefix-caching: false\n"
        )
        await machine.ready()

        async def is_forgotten() -> bool:
            return not await machine.error()

        await until("no reason", is_forgotten)


async def test_a_crash_loop_ends_at_the_cap_and_says_what_the_engine_wrote(machine: Machine) -> None:
    command = "sh -c 'echo started >> count; echo it went boom; exit 3'".replace("count", str(machine.folder / "count"))
    async with machine.node(engine_command=command, restart_cap=3, restart_backoff_s=0.01) as node:
        await machine.place({"env": {"MY_TOKEN": "went boom"}})
        keeper = await until("its keeper", lambda: node.keepers.get(f"{UID}/0"))
        await until("the cap", lambda: keeper.phase.value == "given_up")
        text = await until("the reason", machine.error)
        assert "exit status 3" in text
        assert "it ***" in text  # secrets do not leave the machine
        assert (machine.folder / "count").read_text() == "started\n" * 3

        async def is_unhealthy() -> bool:
            endpoint = await machine.endpoint()
            return endpoint is not None and endpoint.status is EndpointStatus.UNHEALTHY

        await until("the endpoint to be unhealthy", is_unhealthy)
        await machine.place({"engine_type": "sim"})
        await machine.ready()
        assert await until("no error", lambda: keeper.error is None)


async def test_an_engine_that_is_never_healthy_is_started_again(machine: Machine) -> None:
    async with machine.node(engine_command="sleep 600", ready_timeout_s=1.0) as node:
        await machine.place({})
        first = await until("its process", machine.pid)
        assert "not healthy within 1 s" in await until("the reason", machine.error)
        second = await until("another process", lambda: (pid := machine.pid()) != first and pid)
        assert not is_alive(first)
        await machine.store.delete(placement_key(UID))
        await until("its end", lambda: not node.keepers)
        assert not is_alive(second)


async def test_an_engine_that_hangs_is_started_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebula_router.fleet.engine.probe.TIMEOUT_S", 0.5)
    monkeypatch.setattr("nebula_router.fleet.engine.keeper._HUNG_GRACE_S", 0.2)
    async with machine.node(health_failures=2):
        await machine.place({})
        await machine.ready()
        pid = machine.known_pid()
        os.kill(pid, signal.SIGSTOP)
        await machine.ready(but=pid)
        assert not is_alive(pid)


async def test_a_server_that_answers_for_another_model_is_not_the_engine(machine: Machine) -> None:
    own = f"{sys.executable} -m nebula_router sim --listen {{host}}:{{port}} --model={{served}}"
    async with machine.node(engine_command=own) as node:
        await machine.place({})
        found = await machine.ready()
        assert found.served_names == (f"{NAME},{UID}",)  # a command of the settings is taken at its word
        assert found.events is None
    running = node.keepers[f"{UID}/0"]._running
    assert running is not None
    assert running.launch is not None
    running.launch = dataclasses.replace(running.launch, checks_names=True)
    assert "another server has it" in (await running.learn("h") or "")


async def test_what_an_engine_started_ends_with_it(machine: Machine) -> None:
    script = machine.folder / "engine.sh"
    children = machine.folder / "children"
    script.write_text(
        "trap '' TERM\n"
        f"(trap '' TERM; sh -c 'echo $PPID' >> {children}; while :; do sleep 0.1; done) &\n"
        f"{sys.executable} -m nebula_router sim --listen 127.0.0.1:$1 & wait; sleep 600\n"
    )
    async with machine.node(engine_command=f"sh {script} {{port}}", stop_grace_s=0.3):
        await machine.place({})
        await machine.ready()
        pid = machine.known_pid()
        child = await until("its child", lambda: children.exists() and children.read_text().split())
        assert all(is_alive(int(one)) for one in [pid, *child])
        await machine.store.delete(placement_key(UID))
        await machine.gone()
        assert not any(is_alive(int(one)) for one in [pid, *child])


async def test_a_log_is_turned_over_while_the_engine_writes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebula_router.fleet.engine.keeper._MB", 1000)
    command = "sh -c 'i=0; while :; do i=$((i+1)); echo line $i of many; sleep 0.001; done'"
    async with machine.node(engine_command=command, log_max_mb=1, log_keep=2, ready_timeout_s=60):
        await machine.place({})
        folder = machine.folder / "state" / "n1" / "engines" / UID / "0"
        await until("two old logs", (folder / "engine.log.2").exists)
        await until("lines in the new one", lambda: "line" in machine.log())
        first = (folder / "engine.log.2").read_text().splitlines()[0]
        assert not (folder / "engine.log.3").exists()
        assert first.startswith("line ")
        assert not machine.log().startswith("\0")
