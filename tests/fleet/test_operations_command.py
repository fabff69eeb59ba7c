"""`nebula status` and the like, against a gateway that follows a store, and against the store itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx
import pytest
from tests.e2e.process import free_port
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd
from tests.fleet.made import MODEL, fill, node, plan, put, spec, stored_plan, stored_spec
from tests.gateway.wait import until

from nebula_router.cli import main
from nebula_router.core import Core
from nebula_router.fleet.asking import ask
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.records import Role
from nebula_router.fleet.scheduler import Scheduler
from nebula_router.fleet.settings import SchedulerSettings
from nebula_router.fleet.store import Store
from nebula_router.gateway import serve
from nebula_router.gateway.app import GatewayApp
from nebula_router.sources import load

pytestmark = pytest.mark.anyio

WORDS = ("status", "models", "nodes", "placements")


@asynccontextmanager
async def gateway(store: Store | None, **settings: str) -> AsyncIterator[str]:
    """A gateway in this process that follows the store; its URL."""
    listen = f"127.0.0.1:{free_port()}"
    tree = load({"gateway": {"listen": listen, **settings}}, environment=False)
    core = Core(tree.core_json())
    server = serve._server(GatewayApp(core, tree, store), tree)
    serving = asyncio.ensure_future(server.serve())
    try:
        async with httpx.AsyncClient(trust_env=False) as http:

            async def answers() -> bool:
                try:
                    return (await http.get(f"http://{listen}/health")).is_success
                except httpx.TransportError:
                    return False

            await until("the gateway to answer", answers)
        yield f"http://{listen}"
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await serving
        core.stop()


class Ran(NamedTuple):
    """What a command says, and its exit status."""

    status: object
    out: str
    err: str


async def nebula(*words: str) -> Ran:
    """Runs the command in a thread: the gateway that it asks is on this one's event loop."""

    def run() -> Ran:
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(list(words))
        return Ran(ended.value.code, out.getvalue(), err.getvalue())

    return await anyio.to_thread.run_sync(run)


async def told(*words: str) -> str:
    """What a command says that must work."""
    ran = await nebula(*words)
    assert (ran.status, ran.err) == (0, "")
    return ran.out


async def refused(*words: str) -> tuple[object, str]:
    """Exit status and the one line of a command that must not work."""
    ran = await nebula(*words)
    assert ran.out == ""
    return ran.status, ran.err.removesuffix("\n")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


async def test_tables_of_a_fleet() -> None:
    store = MemoryStore()
    await fill(store)
    await put(store, spec(3, "llama"), plan("gone", model="llama", reasons={"1": "no node has 1 free GPU"}))
    async with gateway(store) as url:
        shown = {word: await told(word, "--url", url) for word in WORDS}
    status = shown["status"].splitlines()
    assert status[0] == "2 of 5 replicas ready   2 models   2 nodes   4 GPUs, 2 free"
    assert "node gone is gone; 1 of its replicas are planned there until a scheduler moves them" in shown["status"]
    assert "  llama/1 is unplaced: no node has 1 free GPU" in status
    llama, qwen = (line.split() for line in shown["models"].splitlines()[1:])
    assert llama[:6] == ["llama", "failed", "0", "3", "-", "1"]
    assert qwen == ["qwen", "ready", "2", "2", "-", "1"]
    first = next(line for line in shown["nodes"].splitlines() if line.startswith("a "))
    assert first.split()[1] == "ready"
    assert first.split()[3:] == ["0", "fake", "0.5/24.0", "7.8", "-", "qwen/0"]
    rows = {line.split()[0]: line.split()[1:] for line in shown["placements"].splitlines()[1:]}
    assert rows["qwen/0"] == ["a", "0", "10900", "ready", "1", "25", "7", "3"]
    assert rows["llama/0"][3] == "lost"
    assert rows["llama/1"][:4] == ["-", "-", "-", "unplaced"]


async def test_an_empty_fleet_says_what_to_do() -> None:
    async with gateway(MemoryStore()) as url:
        text = await told("status", "--url", url)
        assert "`nebula scheduler --model-uid NAME --engine-config-path FILE` places one" in text
        assert "`nebula node` on a machine with GPUs adds it" in text
        assert json.loads(await told("status", "--json", "--url", url))["models"] == []


async def test_orders_through_a_gateway() -> None:
    store = MemoryStore()
    await fill(store)
    async with gateway(store) as url:
        there = ("--url", url)
        assert await told("drain", MODEL, "1", *there) == "qwen/1 gets no new requests; it ends those that it has.\n"
        rows = json.loads(await told("placements", MODEL, "--json", *there))["replicas"]
        assert [(row["draining"], row["current"]) for row in rows if row["replica_id"] == 1] == [(True, True)]
        back = await told("drain", "--model-uid", MODEL, "--replica-id", "1", "--off", *there)
        assert back == "qwen/1 gets requests again.\n"
        assert "node b gets no new replicas" in await told("drain", "--node-id", "b", *there)
        assert "node b gets replicas again" in await told("drain", "--node-id", "b", "--off", *there)
        assert "qwen is to have 1 replica" in await told("scale", MODEL, "1", *there)
        bounds = json.loads(await told("scale", "--model-uid", MODEL, "--between", "1", "4", "--json", *there))
        assert bounds["text"] == "qwen is to have 1 replica, by load between 1 and 4"
        assert "qwen is unloaded" in await told("unload", MODEL, *there)
        assert "qwen  unloading" in await told("models", *there)


@asynccontextmanager
async def scheduler(store: Store) -> AsyncIterator[None]:
    """A scheduler that runs."""
    stop = asyncio.Event()
    running = asyncio.ensure_future(Scheduler(store, SchedulerSettings()).run(stop))
    try:
        yield
    finally:
        stop.set()
        await running


async def test_load_says_what_a_scheduler_answers(tmp_path: Path) -> None:
    store = MemoryStore()
    await put(store, node("a"))
    file = tmp_path / "qwen.yaml"
    file.write_text("model: org/qwen-7B\nmax-model-len: 4096\n")
    async with gateway(store) as url, scheduler(store):
        there = ("--url", url)
        placed = await told("load", MODEL, "--engine-config-path", str(file), *there)
        assert placed.startswith("qwen is placed, by plan version 1.\n")
        assert (await stored_spec(store)).pools[Role.UNIFIED].engine_args == {
            "model": "org/qwen-7B",
            "max-model-len": 4096,
        }
        big = await nebula("load", "big", "--model-name", "org/big-70B", *there)
        assert (big.status, big.out.splitlines()[0]) == (3, "big is refused.")
        assert "the request for big failed: " in await told("status", *there)
    status, line = await refused("load", "big", "--url", url)
    assert (status, line.startswith("nebula: the model's own name is missing: nebula load MODEL")) == (2, True)


async def test_load_where_no_scheduler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "ANSWER_S", 0.1)
    store = MemoryStore()
    async with gateway(store) as url:
        said = await told("load", MODEL, "--model-name", "org/qwen-7B", "--url", url)
    assert "no scheduler has taken that in 0.1 s; `nebula scheduler` starts one" in said


async def test_a_model_is_loaded_over_http() -> None:
    store = MemoryStore()
    await put(store, node("a"))
    async with gateway(store) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        done = await http.post("/admin/fleet/models", content=spec(2).stored())
        assert (done.status_code, done.json()["text"]) == (200, "qwen is asked for with 2 replicas")
        wrong = await http.post("/admin/fleet/models", json={"model_uid": "a b", "model_name": "x", "pools": {}})
        assert (wrong.status_code, wrong.json()["error"]["message"].split(":")[0]) == (400, "model_uid")
        scaled = await http.put(f"/admin/fleet/models/{MODEL}/scale", json={"replicsa": 2})
        assert (scaled.status_code, "replicsa" in scaled.json()["error"]["message"]) == (400, True)
        text = (await http.post("/admin/fleet/models", content=b"{")).json()["error"]["message"]
        assert text.startswith("the body must be JSON")
        drained = await http.post("/admin/fleet/nodes/a/drain")
        assert drained.json()["text"] == "node a gets no new replicas"


async def test_what_is_not_there_is_answered_with_the_nearest() -> None:
    store = MemoryStore()
    await fill(store)
    async with gateway(store) as url:
        status, line = await refused("scale", "qwenn", "2", "--url", url)
        assert status == 1
        assert line.endswith("answers 404: there is no model qwenn; did you mean qwen? models: qwen")
        status, line = await refused("drain", MODEL, "5", "--url", url)
        assert (status, line.partition("404: ")[2]) == (1, "qwen has no replica 5; its replicas: 0, 1")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("scale",),
            "nebula: MODEL is missing: nebula scale MODEL REPLICAS, or nebula scale MODEL --between FEWEST MOST",
        ),
        (("scale", MODEL), "nebula: REPLICAS is missing: nebula scale MODEL REPLICAS, or "),
        (("drain", MODEL), "nebula: REPLICA is missing: nebula drain MODEL REPLICA, or nebula drain --node-id NODE"),
        (("drain", MODEL, "1", "--node-id", "a"), "nebula: --node-id drains a node and takes no replica"),
        (("unload", MODEL, "--model-uid", MODEL), "nebula: MODEL and --model-uid say the same thing: give one of them"),
        (("unload", "--url", "nowhere"), "nebula: MODEL is missing"),
        (("status", "--url", "nowhere"), "nebula: --url: expected http://host:port"),
    ],
)
async def test_a_wrong_call_is_answered_in_one_line(words: tuple[str, ...], text: str) -> None:
    status, line = await refused(*words)
    assert (status, line.count("\n")) == (2, 0)
    assert line.startswith(text)


async def test_where_nobody_answers() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    status, line = await refused("status", "--url", url)
    assert (status, line.startswith(f"nebula: no gateway answers on {url}")) == (1, True)


async def test_a_gateway_without_a_store_says_so() -> None:
    async with gateway(None) as url:
        status, line = await refused("status", "--url", url)
        assert status == 1
        assert "this gateway follows no store" in line
        assert "its version is another" not in line


async def test_the_admin_token_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await fill(store)
    async with gateway(store, admin_token="hush") as url:
        status, line = await refused("unload", MODEL, "--url", url)
        assert (status, "answers 401" in line, "NEBULA_GATEWAY__ADMIN_TOKEN" in line) == (1, True, True)
        monkeypatch.setenv("NEBULA_GATEWAY__ADMIN_TOKEN", "hush")
        text = await told("unload", MODEL, "--url", url)
        assert text.startswith("qwen is unloaded")


async def test_the_store_itself_is_asked_where_one_is_named(
    open_etcd: OpenEtcd, shared_etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_etcd(etcd_prefix="/operations")
    await fill(store)
    there = ("--etcd-endpoint", shared_etcd.settings().endpoints[0], "--etcd-prefix", "/operations")
    assert "2 of 2 replicas ready" in await told("status", *there)
    assert await told("scale", MODEL, "3", *there) == "qwen is to have 3 replicas.\n"
    refusing = await nebula("scale", MODEL, "9", *there)
    assert (refusing.status, "stays as it is" in refusing.out) == (3, True)
    monkeypatch.setenv("NEBULA_STORE__ETCD_ENDPOINTS", shared_etcd.settings().endpoints[0])
    monkeypatch.setenv("NEBULA_STORE__ETCD_PREFIX", "/operations")
    rows = json.loads(await told("placements", "--json"))["replicas"]
    assert [row["replica_id"] for row in rows] == [0, 1, 2]
    assert (await told("unload", MODEL)).startswith("qwen is unloaded")
    assert (await stored_plan(store)).assignments == ()


async def test_a_store_that_is_down_is_named() -> None:
    status, line = await refused("status", "--etcd-endpoint", f"http://127.0.0.1:{free_port()}", "--timeout-s", "0.3")
    assert status == 1
    assert "is the store of store.etcd_endpoints up? Another one: --etcd-endpoint, or a gateway: --url" in line
