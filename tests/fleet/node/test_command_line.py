"""`nebula node` as an operator starts it, over a real etcd."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd
from tests.fleet.node.machine import WITHIN_S, Machine, is_alive, until

from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.records import node_key

pytestmark = pytest.mark.anyio


class Daemon:
    """The command, its output in a file."""

    def __init__(self, machine: Machine, etcd: Etcd) -> None:
        self.log = machine.folder / "node.log"
        first = machine.settings().vllm_port
        self.command = [
            *("env", "--default-signal=INT", sys.executable, "-m", "nebula_router", "node", "--node-id", "n1"),
            *("--etcd-endpoint", etcd.url, "--gpus", "fake:2x24GiB", "--engine-type", "sim"),
            *("--vllm-port", str(first), "--port-count", "16", "--engine-host", "127.0.0.1"),
            *("--state-dir", str(machine.folder / "state"), "--heartbeat-s", "0.2", "--health-interval-s", "0.2"),
        ]

    @asynccontextmanager
    async def running(self, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(*self.command, *flags, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def ended(self, process: asyncio.subprocess.Process, number: signal.Signals) -> int:
        process.send_signal(number)
        return await asyncio.wait_for(process.wait(), WITHIN_S)


@pytest.fixture
async def fleet(machine: Machine, etcd: Etcd, open_etcd: OpenEtcd) -> tuple[Daemon, EtcdStore]:
    store = open_etcd(at=etcd)
    machine.store = store  # type: ignore[assignment]
    return Daemon(machine, etcd), store


async def test_a_restart_of_the_node_is_not_noticed(machine: Machine, fleet: tuple[Daemon, EtcdStore]) -> None:
    daemon, _ = fleet
    async with daemon.running("--lease-s", "30") as node:
        await machine.place({})
        before = await machine.ready()
        pid = machine.known_pid()
        assert await daemon.ended(node, signal.SIGTERM) == 0
    assert is_alive(pid)
    assert await machine.endpoint() is not None
    async with daemon.running("--lease-s", "30") as node:
        await until("the engine to be taken over", lambda: "runs on" in daemon.log.read_text())

        async def is_announced() -> bool:
            found = await machine.endpoint()
            return found is not None and found.last_heartbeat_ms > before.last_heartbeat_ms and found.stats is not None

        await until("the endpoint to be announced again", is_announced)
        assert (await machine.ready()).port == before.port
        assert machine.known_pid() == pid
        assert await daemon.ended(node, signal.SIGINT) == 0
    assert not is_alive(pid)
    assert await machine.endpoint() is None
    assert await machine.status() is None
    text = daemon.log.read_text()
    assert "Traceback" not in text
    assert re.search(r"SIGTERM: engines run on", text)


async def test_a_node_that_is_killed_is_gone_with_its_lease_and_its_engines_are_not(
    machine: Machine, fleet: tuple[Daemon, EtcdStore]
) -> None:
    daemon, _ = fleet
    async with daemon.running("--lease-s", "2") as node:
        await machine.place({})
        await machine.ready()
        node.kill()
        await node.wait()
    pid = machine.known_pid()
    await machine.gone()

    async def is_gone() -> bool:
        return await machine.status() is None

    await until("the node to be gone", is_gone)
    assert is_alive(pid)
    async with daemon.running("--lease-s", "2", "--on-stop", "stop") as node:
        await machine.ready()
        assert machine.known_pid() == pid
        assert await daemon.ended(node, signal.SIGTERM) == 0
    assert not is_alive(pid)


async def test_engines_go_on_while_etcd_is_away(machine: Machine, fleet: tuple[Daemon, EtcdStore], etcd: Etcd) -> None:
    daemon, _ = fleet
    async with daemon.running("--lease-s", "2"):
        await machine.place({})
        await machine.ready()
        pid = machine.known_pid()
        etcd.kill()
        await until("the loss to be seen", lambda: "engines go on" in daemon.log.read_text())
        etcd.start()
        await machine.ready()
        assert machine.known_pid() == pid
        await machine.place()
        await until("its end", lambda: not is_alive(pid))


async def test_two_nodes_cannot_have_one_name(machine: Machine, fleet: tuple[Daemon, EtcdStore]) -> None:
    daemon, store = fleet
    async with daemon.running("--lease-s", "2"):
        await until("the node", machine.status)
        async with daemon.running("--lease-s", "2") as other:
            assert await asyncio.wait_for(other.wait(), WITHIN_S) == 1
        assert "nebula node: another node runs on this machine" in daemon.log.read_text()
        assert await store.get(node_key("n1")) is not None
