"""The command as people type it, on a real etcd."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.e2e.process import free_port
from tests.fleet.etcd import WITHIN_S, Etcd
from tests.fleet.fleets import announce, gpu, node, placement, want
from tests.fleet.test_sizing import LLAMA_8B, saved

from nebula_router.cli import main, main_scheduler
from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.placing import one_shot
from nebula_router.fleet.placing.book import look
from nebula_router.fleet.records import ModelSpec, NodeStatus, PlacementPlan, Role, spec_key
from nebula_router.fleet.store import Store

T = TypeVar("T")

_prefixes = count(1)
GUIDE = [node("node_gpu0", gpu(0), host="10.0.0.1"), node("node_gpu1", gpu(0), host="10.0.0.1", ports=(10815, 10878))]


class Fleet:
    """A fleet in etcd, and the command in front of it."""

    def __init__(self, etcd: Etcd, capsys: pytest.CaptureFixture[str]) -> None:
        self.prefix = f"/command-{next(_prefixes)}"
        self.where = ["--etcd-endpoint", etcd.url, "--etcd-prefix", self.prefix]
        self._settings = etcd.settings(etcd_prefix=self.prefix)
        self._capsys = capsys
        self.out = self.err = ""

    def ask(self, question: Callable[[Store], Awaitable[T]]) -> T:
        async def asked() -> T:
            store = EtcdStore(self._settings)
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(asked())

    def announce(self, *nodes: NodeStatus) -> None:
        self.ask(lambda store: announce(store, *nodes))

    def plan(self, uid: str) -> PlacementPlan | None:
        return self.ask(lambda store: placement(store, uid))

    def spec(self, uid: str) -> ModelSpec | None:
        entry = self.ask(lambda store: store.get(spec_key(uid)))
        return None if entry is None else ModelSpec.parsed(entry.value, entry.key)

    def run(self, *arguments: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["scheduler", *self.where, *arguments])
        self.out, self.err = self._capsys.readouterr()
        assert ended.value.code == status, self.out + self.err
        return self.out

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        found = json.loads(self.run(*arguments, "--json", status=status))
        assert isinstance(found, dict)
        return found


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No models of this machine, and no waiting for nodes that nobody starts."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(one_shot, "WAIT_S", 0.0)


@pytest.fixture
def fleet(shared_etcd: Etcd, capsys: pytest.CaptureFixture[str]) -> Fleet:
    return Fleet(shared_etcd, capsys)


@pytest.fixture
def yaml(tmp_path: Path) -> Callable[..., str]:
    """Writes an engine's file."""

    def write(name: str, **settings: Any) -> str:
        file = tmp_path / name
        file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
        return str(file)

    return write


Yaml = Callable[..., str]


def test_the_guide(fleet: Fleet, yaml: Yaml) -> None:
    """Two models, each on the node and the port that it is given."""
    fleet.announce(*GUIDE)
    qwen = yaml("qwen.yaml", **{"model": "Qwen/Qwen2.5-7B-Instruct", "max-model-len": 8192})
    llama = yaml("llama.yaml", model="meta-llama/Meta-Llama-3-8B-Instruct")
    for uid, node_id, port, path in (
        ("qwen2_5_7b", "node_gpu0", 10814, qwen),
        ("llama_3_8b", "node_gpu1", 10815, llama),
    ):
        shown = fleet.run(
            *("--model-uid", uid, "--node-id", node_id, "--port", str(port), "--engine-config-path", path)
        )
        assert f"{uid}: placed, plan version 1" in shown
        written = fleet.plan(uid)
        assert written is not None
        (only,) = written.assignments
        assert (only.node_id, only.port, only.gpus, only.engine_config_path) == (node_id, port, (0,), path)
    first = fleet.plan("qwen2_5_7b")
    assert first is not None
    assert first.assignments[0].engine_args == {"model": "Qwen/Qwen2.5-7B-Instruct", "max-model-len": 8192}
    spec = fleet.spec("qwen2_5_7b")
    assert spec is not None
    assert spec.model_name == "Qwen/Qwen2.5-7B-Instruct"
    assert spec.pools[Role.UNIFIED].node_id == "node_gpu0"


def test_the_same_again_changes_nothing_and_something_else_does(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(*GUIDE)
    first = ["--model-uid", "m", "--engine-config-path", yaml("a.yaml", model="org/x-7b", seed=None)]
    assert fleet.json(*first)["changed"]
    again = fleet.json(*first)
    assert (again["changed"], again["version"]) == (False, 1)
    assert "plan version 1 is there already" in fleet.run(*first)
    more = fleet.json(*first, "--replicas", "2")
    assert (more["changed"], more["version"]) == (True, 2)
    assert [(a["node_id"], a["port"]) for a in more["assignments"]] == [("node_gpu0", 10814), ("node_gpu1", 10815)]
    fewer = fleet.json("--model-uid", "m", "--replicas", "1")
    assert [a["draining"] for a in fewer["assignments"]] == [False, True]
    last = fleet.json("--model-uid", "m")
    assert [a["replica_id"] for a in last["assignments"]] == [0]


def test_a_70b_on_24_gib_is_refused_with_the_arithmetic(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(*GUIDE)
    path = yaml("big.yaml", model="meta-llama/Llama-3.3-70B-Instruct")
    for pin in ([], ["--node-id", "node_gpu0", "--port", "10814"]):
        shown = fleet.run("--model-uid", "big", "--engine-config-path", path, *pin, status=3)
        assert "big: refused, nothing was written" in shown
        assert "weights 130.4 GiB / TP 1 + overhead 1.5 GiB = 131.9 GiB per GPU" in shown
        assert "node_gpu0: the largest free GPU: 23.5 of 24.0 GiB are free, it needs 131.9" in shown
        assert "estimated from its name: 70e9 parameters x 2 bytes" in shown
        assert ("node_gpu1: the largest" in shown) == (not pin)
    assert fleet.plan("big") is None
    assert fleet.spec("big") is None
    assert fleet.json("--model-uid", "big", "--engine-config-path", path, "--force")["placed"]


def test_a_model_on_disk_is_sized_by_its_files(fleet: Fleet, yaml: Yaml, tmp_path: Path) -> None:
    fleet.announce(*GUIDE)
    folder = str(saved(tmp_path / "llama", "llama-3.1-8b", LLAMA_8B))
    long = fleet.run("--model-uid", "m", "--engine-config-path", yaml("long.yaml", model=folder), status=3)
    assert "KV 16.0 GiB (131,072 tokens x 128 KiB)" in long
    assert "this model with 46,059 tokens of KV cache" in long
    short = yaml("short.yaml", model=folder, max_model_len="32K")
    dry = fleet.run("--model-uid", "m", "--engine-config-path", short, "--dry-run")
    assert "would be placed, nothing was written" in dry
    assert "node_gpu1 has 1 free GPU, the largest with 23.5 of 24.0 GiB: 20.6 GiB for weights and KV cache" in dry
    assert fleet.plan("m") is None
    found = fleet.json("--model-uid", "m", "--engine-config-path", short)
    assert found["vram"][0].endswith("KV 4.0 GiB (32,768 tokens x 128 KiB) + overhead 1.5 GiB = 20.5 GiB per GPU")


def test_a_model_that_nobody_knows_is_placed_with_a_warning(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(*GUIDE)
    path = yaml("x.yaml", model="org/unknown")
    found = fleet.json("--model-uid", "m", "--engine-config-path", path)
    assert (found["placed"], found["vram_checked"]) == (True, False)
    assert "VRAM was not checked" in found["vram"][0]
    given = fleet.run("--model-uid", "n", "--engine-config-path", path, "--required-vram", "30GiB", status=3)
    assert "it needs 1 GPU with 30.0 GiB each" in given


def test_a_gpu_that_is_taken_is_not_given_again_even_by_force(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(GUIDE[0])
    path = yaml("x.yaml", model="org/x-1b")
    fleet.run("--model-uid", "m", "--engine-config-path", path)
    for force in ([], ["--force"]):
        shown = fleet.run("--model-uid", "n", "--engine-config-path", path, *force, status=3)
        assert "its GPU is taken by m/0" in shown


def test_a_node_that_is_unknown_is_waited_for_and_then_named(
    fleet: Fleet, yaml: Yaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.announce(GUIDE[0])
    one = ["--model-uid", "m", "--engine-config-path", yaml("x.yaml", model="org/x-1b"), "--node-id"]
    shown = fleet.run(*one, "node_gpu7", status=3)
    assert "node node_gpu7 has not announced itself (known nodes: node_gpu0)" in shown
    monkeypatch.setattr(one_shot, "WAIT_S", WITHIN_S)
    looks = count()

    async def look_and_announce(store: Store) -> Any:
        if next(looks) == 2:
            await announce(store, node("node_gpu7", gpu(0)))
        return await look(store)

    monkeypatch.setattr(one_shot, "look", look_and_announce)
    assert fleet.json(*one, "node_gpu7")["assignments"][0]["node_id"] == "node_gpu7"


def test_what_a_missing_node_had_moves(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(*GUIDE)
    one = ["--model-uid", "m", "--engine-config-path", yaml("x.yaml", model="org/x-1b")]
    assert fleet.json(*one)["assignments"][0]["node_id"] == "node_gpu0"
    fleet.ask(lambda store: store.delete("/nodes/node_gpu0/status"))
    assert fleet.json(*one)["assignments"][0]["node_id"] == "node_gpu1"


def test_simulated_engines_need_no_gpu(fleet: Fleet) -> None:
    fleet.announce(node("cpu"))
    found = fleet.json("--model-uid", "m", "--model-name", "tiny", "--engine-type", "sim", "--replicas", "2")
    assert [(a["gpus"], a["port"]) for a in found["assignments"]] == [([], 10814), ([], 10815)]
    refused = fleet.run("--model-uid", "n", "--model-name", "tiny", status=3)
    assert "cpu: it has no GPU (--gpus 0 places an engine that needs none)" in refused
    assert fleet.json("--model-uid", "n", "--model-name", "tiny", "--gpus", "0")["placed"]


def test_roles_and_bounds_and_parallelism_reach_the_store(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(node("big", *(gpu(i, 80) for i in range(4))))
    path = yaml("x.yaml", model="org/x-7b")
    base = ["--model-uid", "m", "--engine-config-path", path]
    fleet.run(*base, "--role", "prefill", "--tensor-parallel-size", "2")
    fleet.run(*base, "--role", "decode", "--min-replicas", "1", "--max-replicas", "2", "--target-ttft-ms", "500")
    spec, written = fleet.spec("m"), fleet.plan("m")
    assert spec is not None
    assert written is not None
    decode = spec.pools[Role.DECODE]
    assert (decode.min_replicas, decode.max_replicas, decode.target_ttft_ms) == (1, 2, 500)
    assert [(a.role, a.gpus, a.extra_args) for a in written.assignments] == [
        (Role.PREFILL, (0, 1), ("--tensor-parallel-size", "2")),
        (Role.DECODE, (2,), None),
    ]


def test_the_number_that_load_has_chosen_stays(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(node("big", *(gpu(i, 80) for i in range(4))))
    path = yaml("x.yaml", model="org/x-7b")
    bounds = ["--model-uid", "m", "--engine-config-path", path, "--min-replicas", "1", "--max-replicas", "4"]
    fleet.run(*bounds)
    spec = fleet.spec("m")
    assert spec is not None
    pool = spec.pools[Role.UNIFIED].model_copy(update={"replicas": 3, "scaled_at_ms": 1})
    scaled = spec.model_copy(update={"pools": {Role.UNIFIED: pool}})
    fleet.ask(lambda store: want(store, scaled))
    assert len(fleet.json(*bounds)["assignments"]) == 3
    assert fleet.spec("m") == scaled
    assert not fleet.json(*bounds)["changed"]
    assert [a["draining"] for a in fleet.json(*bounds, "--replicas", "2")["assignments"]] == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-uid", "a/b", "--model-name", "x"], "'a/b' cannot be a name here"),
        (["--model-uid", "m"], "m is not in the store, and nothing names its model"),
        (["--model-uid", "m", "--engine-config-path", "/none.yaml"], "/none.yaml: cannot be read: No such file"),
        (["--model-uid", "m", "--model-name", "x", "--required-vram", "lots"], "'lots' is no size of memory"),
        (["--model-uid", "m", "--model-name", "x", "--min-replicas", "1"], "belong together"),
        (
            ["--model-uid", "m", "--model-name", "x", "--min-replicas", "3", "--max-replicas", "2"],
            "--min-replicas 3 is more than --max-replicas 2",
        ),
        (["--model-uid", "m", "--model-name", "x", "--port", "70000"], "'--port'"),
        (["--node-id", "n"], "--node-id: belongs to one placement, which --model-uid UID would name"),
        (["--extra-arg", "--max-model-len"], "--extra-arg: belongs to one placement"),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(fleet: Fleet, arguments: list[str], message: str) -> None:
    assert fleet.run(*arguments, status=2) == ""
    assert message in fleet.err
    assert fleet.err.count("\n") == 1


def test_wrong_settings_of_an_engine_are_refused(fleet: Fleet, yaml: Yaml) -> None:
    fleet.announce(*GUIDE)
    path = yaml("x.yaml", **{"model": "org/x-7b", "max-model-len": "much"})
    fleet.run("--model-uid", "m", "--engine-config-path", path, status=2)
    assert "max-model-len = much: expected a whole number" in fleet.err


def test_a_store_that_cannot_be_asked_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit) as ended:
        main(["scheduler", "--etcd-endpoint", url, "--timeout-s", "0.3", "--model-uid", "m", "--model-name", "x"])
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert f"nebula scheduler: the store {url} cannot be asked" in err
    assert "--etcd-endpoint" in err


def test_a_placement_that_cannot_be_read_stops_it(fleet: Fleet) -> None:
    fleet.announce(*GUIDE)
    fleet.ask(lambda store: store.put("/placements/other", b"{}"))
    fleet.run("--model-uid", "m", "--model-name", "x", status=1)
    assert "/placements/other: not a PlacementPlan" in fleet.err


@pytest.fixture
def service(fleet: Fleet, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [shutil.which("env") or "env", "--default-signal=INT", sys.executable, "-m", "nebula_router", "scheduler"]
    environment = {**os.environ, "NEBULA_SCHEDULER__LOST_AFTER_S": "0.5", "NEBULA_SCHEDULER__SETTLE_S": "0.5"}
    with (tmp_path / "service.log").open("wb") as log:
        child = subprocess.Popen(
            [*command, *fleet.where, "--interval-s", "0.2"], stdout=log, stderr=log, env=environment
        )
    yield child
    child.kill()
    child.wait(WITHIN_S)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_service_places_what_is_wanted_and_ends_by_a_signal(
    fleet: Fleet, service: "subprocess.Popen[bytes]", how: signal.Signals
) -> None:
    fleet.announce(*GUIDE)
    wish = ModelSpec.model_validate({"model_uid": "m", "model_name": "org/x-1b", "pools": {"unified": {}}})
    fleet.ask(lambda store: want(store, wish))
    deadline = time.monotonic() + WITHIN_S
    while fleet.plan("m") is None:
        assert time.monotonic() < deadline
        assert service.poll() is None
    service.send_signal(how)
    assert service.wait(WITHIN_S) == 0


def test_the_script_is_the_command(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.announce(*GUIDE)
    monkeypatch.setattr(
        sys, "argv", ["nebula-scheduler", *fleet.where, "--model-uid", "m", "--model-name", "org/x-1b", "--dry-run"]
    )
    with pytest.raises(SystemExit) as ended:
        main_scheduler()
    assert ended.value.code == 0
    assert "would be placed" in capsys.readouterr().out
