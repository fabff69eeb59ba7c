"""A fleet as its operators run it, with simulated engines: real etcd, each daemon a process; and what if one dies."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.e2e.daemon import Daemon, Traffic, asked
from tests.e2e.process import free_port
from tests.fleet.etcd import Etcd
from tests.gateway.wait import until

from nebula_router.fleet.open import open_store
from nebula_router.fleet.records import ENDPOINTS, NODES, PLACEMENTS, PlacementPlan
from nebula_router.fleet.settings import StoreSettings

pytestmark = pytest.mark.anyio

ENGINE_YAML = "model: {model}\nmax-model-len: 4096\nblock-size: 16\n"
LEASE_S = 10.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Fleet:
    """One etcd, and the daemons that a test starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etcd = Etcd(folder).start()
        self.gateway = ""
        self._stack = AsyncExitStack()
        self._daemons: list[Daemon] = []
        self._state = folder / "state"
        self.orphans: set[psutil.Process] = set()
        """Engines of nodes that a test killed."""

    async def daemon(self, *command: str, **environment: str) -> Daemon:
        """Starts one, told by the environment where etcd is."""
        return await self.made(*command, **environment).start()

    def made(self, *command: str, **environment: str) -> Daemon:
        told = {"NEBULA_STORE__ETCD_ENDPOINTS": self.etcd.url}
        daemon = Daemon(self.folder, *command, **told, **environment)
        self._daemons.append(daemon)
        return daemon

    async def start_gateway(self, *flags: str) -> Daemon:
        port = free_port()
        daemon = await self.daemon("gateway", "--listen", f"127.0.0.1:{port}", "--probe-interval-ms", "200", *flags)
        self.gateway = f"http://127.0.0.1:{port}"
        await until("the gateway", self.is_up)
        return daemon

    async def start_node(self, node_id: str, gpus: str = "fake:1x24GiB", **environment: str) -> Daemon:
        """A node with simulated engines."""
        return await self.daemon(
            *("node", "--node-id", node_id, "--gpus", gpus, "--engine-type", "sim", "--engine-host", "127.0.0.1"),
            *("--vllm-port", str(free_port()), "--host", "127.0.0.1", "--state-dir", str(self._state / node_id)),
            **environment,
        )

    async def is_up(self) -> bool:
        return bool(await asked(self.gateway, "/health"))

    def yaml(self, model: str, **more: Any) -> str:
        path = self.folder / f"{model.replace('/', '_')}.yaml"
        path.write_text(ENGINE_YAML.format(model=model) + "".join(f"{key}: {value}\n" for key, value in more.items()))
        return str(path)

    async def place(self, model_uid: str, *flags: str) -> tuple[int, str]:
        """One run of the one-shot scheduler; a small size is given, so that none is guessed."""
        yaml = self.yaml(f"org/{model_uid}")
        flags = (*flags, "--required-vram", "10GiB")
        return await self.made("scheduler", "--model-uid", model_uid, "--engine-config-path", yaml, *flags).finished()

    async def engines(self) -> list[str]:
        """The engines that the gateway finds ready."""
        engines: dict[str, str] = (await asked(self.gateway, "/health")).get("engines", {})
        return sorted(name for name, status in engines.items() if status == "ready")

    async def ready(self, *names: str, within_s: float = 30.0) -> None:
        async def are() -> bool:
            return await self.engines() == sorted(names)

        await until(f"engines {names} to be ready", are, within_s)

    async def keys(self, prefix: str) -> dict[str, Any]:
        """What etcd holds under a prefix."""
        store = open_store(StoreSettings(etcd_endpoints=(self.etcd.url,)))
        try:
            return {key: json.loads(entry.value) for key, entry in (await store.list(prefix)).entries.items()}
        finally:
            await store.close()

    async def metric(self, name: str) -> float:
        """One of the gateway's metrics, which has no labels; the whole page must be one of OpenMetrics."""
        async with httpx.AsyncClient(trust_env=False) as http:
            page = (await http.get(self.gateway + "/metrics")).text
        assert page.endswith("# EOF\n")
        assert page.count("# EOF") == 1
        [line] = [line for line in page.splitlines() if line.startswith(f"{name} ")]
        return float(line.removeprefix(name))

    async def close(self) -> None:
        """Ends all of it, the engines that nodes left running too."""
        engines = {engine for daemon in self._daemons for engine in _children(daemon)} | self.orphans
        try:
            for daemon in reversed(self._daemons):
                await daemon.stop(signal.SIGINT if daemon.name.startswith("node") else signal.SIGTERM)
        finally:
            for engine in engines:
                if engine.is_running():
                    engine.kill()
            self.etcd.kill()
            for daemon in self._daemons:
                print(daemon.tail())  # noqa: T201 - pytest shows it when the test failed


def _children(daemon: Daemon) -> list[psutil.Process]:
    try:
        return daemon.children()
    except (psutil.NoSuchProcess, AssertionError):
        return []


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.close()


async def curl(url: str, model: str) -> dict[str, Any]:
    """The guide's own last command: it names no content type."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})
    command = ["curl", "-s", "-m", "20", f"{url}/v1/chat/completions", "-d", body]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def test_the_steps_of_two_logical_nodes(fleet: Fleet) -> None:
    """Gateway and router, a logical node per GPU, a model on each, and the curl at the end."""
    router_port, gateway_port = free_port(), free_port()
    router = f"http://127.0.0.1:{router_port}"
    fleet.gateway = f"http://127.0.0.1:{gateway_port}"
    await fleet.daemon("gateway", "--listen", f"127.0.0.1:{gateway_port}")
    await fleet.daemon("router", "--listen", f"127.0.0.1:{router_port}")
    ports = {}
    for gpu in (0, 1):
        ports[gpu] = free_port()
        await fleet.daemon(
            *("node", "--node-id", f"node_gpu{gpu}", "--etcd-endpoint", fleet.etcd.url, "--vllm-port", str(ports[gpu])),
            CUDA_VISIBLE_DEVICES=str(gpu),
            NEBULA_NODE__GPUS="fake:2x24GiB",
            NEBULA_NODE__ENGINE="sim",
            NEBULA_NODE__STATE_DIR=str(fleet.folder / "state" / str(gpu)),
        )
    models = {"qwen2_5_7b": "Qwen/Qwen2.5-7B-Instruct", "llama_3_8b": "meta-llama/Meta-Llama-3-8B-Instruct"}
    for gpu, (uid, model) in enumerate(models.items()):
        yaml = fleet.yaml(model)
        flags = ("--node-id", f"node_gpu{gpu}", "--port", str(ports[gpu]), "--engine-config-path", yaml)
        status, output = await fleet.made("scheduler", "--model-uid", uid, *flags).finished()
        assert status == 0, output
    await fleet.ready("qwen2_5_7b/0", "llama_3_8b/0")
    endpoints = await fleet.keys(ENDPOINTS)
    for gpu, (uid, model) in enumerate(models.items()):
        endpoint = endpoints[f"/endpoints/{uid}/0"]
        assert (endpoint["node_id"], endpoint["port"], endpoint["status"]) == (f"node_gpu{gpu}", ports[gpu], "ready")
        assert (await fleet.keys(PLACEMENTS))[f"/placements/{uid}"]["assignments"][0]["gpu_indices"] == [gpu]
        for url in (fleet.gateway, router):
            for name in (uid, model):
                answer = await curl(url, name)
                assert answer["model"] == model
                assert answer["choices"][0]["message"]["content"]
    async with Traffic(fleet.gateway, "qwen2_5_7b") as traffic:
        await traffic.more()
        assert not traffic.failures
    decisions = (await asked(fleet.gateway, "/route/decisions"))["decisions"]
    assert {d["engine"] for d in decisions if d["model"] == "qwen2_5_7b"} == {"qwen2_5_7b/0"}


async def test_a_gateway_with_a_router_in_etcd(fleet: Fleet) -> None:
    """The data plane finds the engines, the gateway has the keys."""
    router_port = free_port()
    await fleet.daemon("router", "--listen", f"127.0.0.1:{router_port}", "--probe-interval-ms", "200")
    gateway = fleet.made(
        *("gateway", "--listen", f"127.0.0.1:{(port := free_port())}", "--router", f"http://127.0.0.1:{router_port}"),
        NEBULA_GATEWAY__API_KEYS="sesame",
    )
    gateway._environment.pop("NEBULA_STORE__ETCD_ENDPOINTS")
    await gateway.start()
    await fleet.start_node("n")
    assert (await fleet.place("m"))[0] == 0
    headers = ("-H", "authorization: Bearer sesame")
    body = '{"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}'

    async def answers() -> bool:
        command = ["curl", "-s", "-m", "5", *headers, f"http://127.0.0.1:{port}/v1/chat/completions", "-d", body]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        return b'"choices"' in done.stdout

    await until("an answer through gateway and router", answers, 40)
    assert "error" in await curl(f"http://127.0.0.1:{port}", "m"), "without the key there is none"


async def test_one_daemon_runs_the_engines_of_all_gpus(fleet: Fleet) -> None:
    await fleet.start_gateway()
    node = await fleet.start_node("machine", "fake:2x24GiB")
    assert (await fleet.place("a"))[0] == 0
    assert (await fleet.place("b"))[0] == 0
    await fleet.ready("a/0", "b/0")
    assert len(node.children()) == 2
    plans = await fleet.keys(PLACEMENTS)
    gpus = [gpu for plan in plans.values() for a in plan["assignments"] for gpu in a["gpu_indices"]]
    assert sorted(gpus) == [0, 1]
    status, output = await fleet.place("c")
    assert status == 3
    assert "machine" in output


async def test_an_engine_that_is_killed_is_back(fleet: Fleet) -> None:
    await fleet.start_gateway()
    node = await fleet.start_node("machine", "fake:2x24GiB")
    assert (await fleet.place("m", "--replicas", "2"))[0] == 0
    await fleet.ready("m/0", "m/1")
    async with Traffic(fleet.gateway, "m") as traffic:
        await traffic.more()
        victim = node.children()[0]
        victim.kill()
        await until("the loss to show", lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)

        async def back() -> bool:
            pids = {child.pid for child in node.children() if child.status() != psutil.STATUS_ZOMBIE}
            return len(pids) == 2 and victim.pid not in pids and await fleet.engines() == ["m/0", "m/1"]

        await until("the engine to be back", back, within_s=15)
        await traffic.more()
        assert not traffic.failures, traffic.failures[:3]


async def test_a_node_that_dies_loses_its_replicas_to_others(fleet: Fleet) -> None:
    await fleet.start_gateway()
    scheduler = await fleet.daemon("scheduler", "--interval-s", "0.5", "--lost-after-s", "1")
    nodes = {name: await fleet.start_node(name) for name in ("a", "b", "c")}

    async def all_nodes() -> bool:
        return len(await fleet.keys(NODES)) == 3

    await until("the nodes", all_nodes)
    assert (await fleet.place("m", "--replicas", "2"))[0] == 0
    await fleet.ready("m/0", "m/1")
    plan = (await fleet.keys(PLACEMENTS))["/placements/m"]
    victim = plan["assignments"][0]["node_id"]
    fleet.orphans |= (orphans := set(nodes[victim].children()))
    async with Traffic(fleet.gateway, "m") as traffic:
        await traffic.more()
        await nodes[victim].kill()
        for orphan in orphans:
            orphan.kill()

        async def gone() -> bool:
            return not any(e["node_id"] == victim for e in (await fleet.keys(ENDPOINTS)).values())

        await until("the dead node's endpoints to be gone", gone, within_s=12)

        async def elsewhere() -> bool:
            endpoints = [e for e in (await fleet.keys(ENDPOINTS)).values() if e["status"] == "ready"]
            return len(endpoints) == 2 and victim not in {e["node_id"] for e in endpoints}

        await until("two replicas elsewhere", elsewhere, within_s=30)

        async def ready() -> bool:
            return len(await fleet.engines()) == 2

        await until("both in traffic", ready)
        await traffic.more()
        assert not traffic.failures, traffic.failures[:3]
    assert await scheduler.stop() == 0


async def test_without_a_scheduler_nothing_stops(fleet: Fleet) -> None:
    await fleet.start_gateway()
    scheduler = await fleet.daemon("scheduler", "--interval-s", "0.5")
    node = await fleet.start_node("machine", "fake:2x24GiB")
    assert (await fleet.place("m", "--replicas", "2"))[0] == 0
    await fleet.ready("m/0", "m/1")
    async with Traffic(fleet.gateway, "m") as traffic:
        await scheduler.kill()
        await traffic.more()
        node.children()[0].kill()
        await traffic.more()
        await fleet.ready("m/0", "m/1")
        again = await fleet.daemon("scheduler", "--interval-s", "0.5")
        await traffic.more()
        assert not traffic.failures, traffic.failures[:3]
        assert len((await fleet.keys(PLACEMENTS))["/placements/m"]["assignments"]) == 2
    assert await again.stop() == 0


LOSSES: dict[str, tuple[Callable[[Etcd], object], Callable[[Etcd], object]]] = {
    "killed": (Etcd.kill, Etcd.start),
    "frozen": (Etcd.freeze, Etcd.thaw),
    "stopped": (Etcd.stop, Etcd.start),
}


@pytest.mark.parametrize(("lose", "bring_back"), LOSSES.values(), ids=LOSSES)
async def test_without_etcd_traffic_goes_on(
    fleet: Fleet, lose: Callable[[Etcd], object], bring_back: Callable[[Etcd], object]
) -> None:
    await fleet.start_gateway()
    scheduler = await fleet.daemon("scheduler", "--interval-s", "0.5", "--lost-after-s", "3")
    node = await fleet.start_node("machine", "fake:2x24GiB")
    assert (await fleet.place("m", "--replicas", "2"))[0] == 0
    await fleet.ready("m/0", "m/1")
    engines = [child.pid for child in node.children()]

    async def connected() -> bool | None:
        said: bool | None = (await asked(fleet.gateway, "/health")).get("store", {}).get("connected")
        return said

    async def lost() -> bool:
        return await connected() is False

    async def returned() -> bool:
        return await connected() is True

    async with Traffic(fleet.gateway, "m") as traffic:
        await asyncio.to_thread(lose, fleet.etcd)
        await until("the loss to show in /health", lost)
        assert await fleet.metric("nebula_store_connected") == 0
        assert await fleet.metric("nebula_store_last_contact_seconds") >= 0
        # Longer than the leases last: on its return the store has forgotten the nodes.
        since = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - since < LEASE_S + 2:
            await traffic.more(5)
        assert await fleet.engines() == ["m/0", "m/1"]
        await asyncio.to_thread(bring_back, fleet.etcd)
        await until("the return to show in /health", returned)
        assert await fleet.metric("nebula_store_connected") == 1

        async def announced() -> bool:
            return len(await fleet.keys(NODES)) == 1 and len(await fleet.keys(ENDPOINTS)) == 2

        await until("node and endpoints to be announced again", announced)
        await traffic.more()
        assert not traffic.failures, traffic.failures[:3]
        assert [child.pid for child in node.children()] == engines, "no engine was started again"
        # It converges: a change that is made now arrives.
        assert (await fleet.place("m", "--replicas", "1"))[0] == 0

        async def one_is_left() -> bool:
            return len(await fleet.engines()) == 1

        await until("one replica to be left", one_is_left)
        assert not traffic.failures, traffic.failures[:3]
    assert await scheduler.stop() == 0


async def test_schedulers_that_race_place_nothing_twice(fleet: Fleet) -> None:
    nodes = [f"n{number}" for number in range(2)]
    for name in nodes:
        await fleet.start_node(name, "fake:2x24GiB")
    loops = [await fleet.daemon("scheduler", "--interval-s", "0.2") for _ in range(2)]

    async def all_nodes() -> bool:
        return len(await fleet.keys(NODES)) == len(nodes)

    await until("the nodes", all_nodes)
    results = await asyncio.gather(*(fleet.place(f"m{number}") for number in range(6)))
    placed = [status for status, _ in results]
    assert sorted(placed) == [0, 0, 0, 0, 3, 3], "four GPUs take four models"
    plans = [PlacementPlan.model_validate(plan) for plan in (await fleet.keys(PLACEMENTS)).values()]
    taken = [(a.node_id, gpu) for plan in plans for a in plan.assignments for gpu in a.gpus]
    assert len(taken) == len(set(taken)) == 4
    ports = [(a.node_id, a.port) for plan in plans for a in plan.assignments]
    assert len(ports) == len(set(ports))
    for loop in loops:
        assert await loop.stop() == 0
