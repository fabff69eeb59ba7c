import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nebula_router.fleet.engine.command import Launch, Machine, reachable
from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.engine.job import Job
from nebula_router.fleet.engine.ports import Ports
from nebula_router.fleet.gpu import open_gpus
from nebula_router.fleet.records import Assignment
from nebula_router.fleet.settings import NodeSettings

HOST = "10.0.0.7"
PORTS = Ports(10814, 10900, 10910, 10920)
ENVIRONMENT = {"PATH": "/none", "HOME": "/home/u", "NEBULA_STORE__ETCD_PASSWORD": "hush", "HF_TOKEN": "hf_secret"}


def job(version: int = 3, **assignment: Any) -> Job:
    own = Assignment.model_validate({"replica_id": 0, "node_id": "n1"} | assignment)
    return Job("m-uid", "org/m", version, own)


def launch(settings: dict[str, Any] | None = None, ports: Ports | None = None, **assignment: Any) -> Launch:
    """The start of such a replica, with the ports that it asks for."""
    own, machine = job(**assignment), machine_of(**(settings or {}))
    told = own.told()
    needs = machine.needs(own, told)
    given = Ports(
        PORTS.engine,
        PORTS.events if needs.events else None,
        PORTS.replay if needs.events else None,
        PORTS.side if needs.side else None,
        needs.ranks,
    )
    return machine.launch(own, told, ports or given, Path("/state/m-uid/0"))


def machine_of(**settings: Any) -> Machine:
    return Machine(NodeSettings(**settings), HOST, open_gpus("fake:2x24GiB", None), "n1", ENVIRONMENT)


def after(argv: tuple[str, ...], flag: str) -> str:
    """The last value of a flag."""
    return argv[len(argv) - 1 - argv[::-1].index(flag) + 1]


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program of that name on the PATH."""
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", str(tmp_path))
    return str(program)


def test_vllm_is_told_its_model_names_ports_and_gpus(vllm: str) -> None:
    args = {"model": "/models/m", "max-model-len": 4096, "port": 1, "served-model-name": "mine"}
    found = launch(gpu_indices=(1, 0), engine_args=args, extra_args=("--enforce-eager",))
    assert found.argv[:3] == (vllm, "serve", "/models/m")
    assert found.argv[-8:] == ("--host", "0.0.0.0", "--port", "10814", "--served-model-name", "org/m", "m-uid", "mine")
    assert after(found.argv, "--max-model-len") == "4096"
    assert "--enforce-eager" in found.argv
    assert found.argv.count("--port") == 1
    events = json.loads(after(found.argv, "--kv-events-config"))
    assert events["endpoint"] == "tcp://*:10900"
    assert events["replay_endpoint"] == "tcp://*:10910"
    assert (found.events, found.events_replay) == (f"tcp://{HOST}:10900", f"tcp://{HOST}:10910")
    assert found.env["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert found.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert found.names == ("org/m", "m-uid", "mine")
    assert not [name for name in found.env if name.startswith("NEBULA_")]
    assert found.side_channel is None


def test_the_nodes_own_gpus_stand_where_none_are_named(vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "CUDA_VISIBLE_DEVICES", "1")
    assert launch().env["CUDA_VISIBLE_DEVICES"] == "1"
    assert launch(gpu_indices=()).env["CUDA_VISIBLE_DEVICES"] == ""
    assert launch(gpu_index=0).env["CUDA_VISIBLE_DEVICES"] == "0"
    with pytest.raises(EngineConfigError, match="GPU 2 is none of this node's: it has 0, 1"):
        launch(gpu_index=2)
    assert vllm


@pytest.mark.parametrize(
    ("config", "events", "learns"),
    [
        ({"enable_kv_cache_events": False}, None, True),
        ({"enable_kv_cache_events": True}, f"tcp://{HOST}:5557", True),
        ({"enable_kv_cache_events": True, "endpoint": "tcp://*:7"}, f"tcp://{HOST}:7", True),
        ({"enable_kv_cache_events": True, "endpoint": "tcp://*:0"}, None, True),
        ({"enable_kv_cache_events": True, "endpoint": "tcp://router:5557"}, None, False),
    ],
)
def test_events_are_where_its_own_arguments_say(
    config: dict[str, Any], events: str | None, *, learns: bool, vllm: str
) -> None:
    found = launch(engine_args={"kv-events-config": config})
    assert found.argv[0] == vllm
    assert found.argv.count("--kv-events-config") == 1
    assert json.loads(after(found.argv, "--kv-events-config")) == config
    assert (found.events, found.learns_events) == (events, learns)
    assert found.ports.events is None


def test_no_events_without_a_prefix_cache(vllm: str) -> None:
    found = launch(engine_args={"enable-prefix-caching": False})
    assert found.argv[0] == vllm
    assert "--kv-events-config" not in found.argv


def test_one_of_a_pair_gets_a_connector_and_a_side_channel(vllm: str) -> None:
    prefill = launch(role="prefill")
    assert prefill.argv[0] == vllm
    config = json.loads(after(prefill.argv, "--kv-transfer-config"))
    assert config == {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
    assert prefill.side_channel == f"{HOST}:10920"
    assert prefill.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == HOST
    assert prefill.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "10920"
    own = {"kv_connector": "NixlPushConnector", "kv_role": "kv_consumer"}
    decode = launch(role="decode", engine_args={"kv-transfer-config": own})
    assert json.loads(after(decode.argv, "--kv-transfer-config")) == own
    fixed = launch(role="decode", env={"VLLM_NIXL_SIDE_CHANNEL_PORT": "5600"})
    assert (fixed.side_channel, fixed.ports.side) == (f"{HOST}:5600", None)


def test_ranks_are_those_behind_one_address() -> None:
    machine = machine_of()
    for args, ranks in (
        ({}, 1),
        ({"data-parallel-size": 4}, 4),
        ({"data-parallel-size": 4, "data-parallel-size-local": 2}, 2),
        ({"data-parallel-size": 4, "data-parallel-rank": 1}, 1),
    ):
        own = job(engine_args=args)
        assert machine.needs(own, own.told()).ranks == ranks


def test_the_simulator_takes_what_it_knows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    args = {
        "model": "org/other",
        "max-model-len": "32k",
        "max-num-seqs": 7,
        "num-gpu-blocks-override": 99,
        "data-parallel-size": 2,
        "speed": 5,
        "gpu-memory-utilization": 0.9,
        "tensor-parallel-size": 2,
        "seed": 3,
    }
    found = launch(engine_type="sim", engine_args=args, role="decode")
    assert found.argv[:4] == (sys.executable, "-m", "nebula_router", "sim")
    assert after(found.argv, "--listen") == "0.0.0.0:10814"
    assert after(found.argv, "--model") == "org/m"
    assert [found.argv[i + 1] for i, word in enumerate(found.argv) if word == "--served-model-name"] == [
        "org/m",
        "m-uid",
    ]
    assert after(found.argv, "--max-model-len") == "32000"
    assert after(found.argv, "--kv-blocks") == "99"
    assert after(found.argv, "--data-parallel-size") == "2"
    assert after(found.argv, "--speed") == "5"
    assert after(found.argv, "--kv-role") == "kv_consumer"
    assert found.events == f"tcp://{HOST}:10900"
    assert found.side_channel is None
    assert not {"--gpu-memory-utilization", "--tensor-parallel-size"} & set(found.argv)
    assert "has no --gpu-memory-utilization, --tensor-parallel-size" in caplog.text
    with pytest.raises(EngineConfigError, match="--max-model-len long"):
        launch(engine_type="sim", engine_args={"max-model-len": "long"})
    assert "--max-model-len" not in launch(engine_type="sim", engine_args={"max-model-len": "auto"}).argv


def test_podman_runs_it_in_the_foreground_under_a_name() -> None:
    found = launch({"engine": "podman"}, gpu_indices=(0, 1), env={"API_TOKEN": "s3cret"}, docker_image="img:1")
    assert found.argv[:6] == ("podman", "run", "--rm", "--name", "nebula-n1-m-uid-0", "--network")
    assert [found.argv[i + 1] for i, word in enumerate(found.argv) if word == "--device"] == [
        "nvidia.com/gpu=0",
        "nvidia.com/gpu=1",
    ]
    image = found.argv.index("img:1")
    assert found.argv[image - 2 : image + 3] == ("--entrypoint", "vllm", "img:1", "serve", "org/m")
    assert after(found.argv, "--volume") == "/home/u/.cache/huggingface:/root/.cache/huggingface"
    passed = [found.argv[i + 1] for i, word in enumerate(found.argv) if word == "--env"]
    assert passed == ["API_TOKEN", "HF_TOKEN"]
    assert "s3cret" not in " ".join(found.argv)
    assert found.env["API_TOKEN"] == "s3cret"
    assert found.cleanup == ("podman", "rm", "--force", "nebula-n1-m-uid-0")


def test_docker_gets_gpus_its_own_way_and_folders_of_models() -> None:
    found = launch({"engine": "docker", "model_cache": "/cache"}, gpu_indices=(1,), engine_args={"model": "/models/m"})
    assert after(found.argv, "--gpus") == '"device=1"'
    mounts = [found.argv[i + 1] for i, word in enumerate(found.argv) if word == "--volume"]
    assert mounts == ["/cache:/root/.cache/huggingface", "/models/m:/models/m:ro"]
    assert after(launch({"engine": "docker"}).argv, "--gpus") == '"device=0,1"'
    assert "--gpus" not in launch({"engine": "docker"}, gpu_indices=()).argv


def test_a_command_of_the_settings_takes_its_place() -> None:
    template = "numactl -N 0 my-vllm {model} --at={host}:{port} --names {served} --gpus '{gpus}' -c {config} {args}"
    found = launch({"engine_command": template}, gpu_index=1, engine_args={"seed": 3, "lora-modules": ["a", "b"]})
    assert found.argv[:7] == ("numactl", "-N", "0", "my-vllm", "org/m", "--at=0.0.0.0:10814", "--names")
    assert found.argv[7:9] == ("org/m", "m-uid")
    assert found.argv[9:13] == ("--gpus", "1", "-c", "/state/m-uid/0/engine.yaml")
    assert found.argv[13:18] == ("--seed", "3", "--lora-modules", "a", "b")
    assert found.config is not None
    assert yaml.safe_load(found.config) == {
        "seed": "3",
        "lora-modules": ["a", "b"],
        "kv-events-config": found.argv[-1],
    }
    assert found.events == f"tcp://{HOST}:10900"
    assert launch({"engine_command": "serve {port}"}).events is None  # it is not told of them
    for wrong in ("serve {prt}", "serve {", "serve '"):
        with pytest.raises(EngineConfigError, match=r"node\.engine_command"):
            launch({"engine_command": wrong})


def test_what_cannot_be_started_says_why() -> None:
    with pytest.raises(EngineConfigError, match="known are vllm, sim, podman, docker"):
        launch(engine_type="tgi")
    if not Path(sys.executable).with_name("vllm").exists():
        with pytest.raises(EngineConfigError, match="install vLLM there"):
            launch()
    with pytest.raises(EngineConfigError, match="engine_config_path"):
        launch(engine_type="sim", extra_args=("--config", "x.yaml"))


def test_secrets_are_hidden() -> None:
    found = launch(engine_type="sim", env={"MY_TOKEN": "t0psecret", "SHORT_KEY": "1"}, extra_args=("--api-key", "k3y"))
    assert found.hidden("1 t0psecret k3y hf_secret") == "1 *** *** ***"
    assert "t0psecret" not in repr(found)
    assert found.api_key == "k3y"


def test_only_what_matters_to_an_engine_changes_its_digest() -> None:
    settings = NodeSettings()
    same = [job(), job(version=9), job(required_vram_mb=1), job(draining=True), job(since_version=2)]
    assert len({one.digest(settings) for one in same}) == 1
    others = [
        job(port=1),
        job(gpu_index=0),
        job(engine_args={"a": 1}),
        job(extra_args=("-x",)),
        job(env={"A": "b"}),
        job(role="decode"),
        job(engine_type="sim"),
        job(engine_config_path="x"),
    ]
    assert len({one.digest(settings) for one in [job(), *others]}) == len(others) + 1
    image = job(docker_image="x")
    assert image.digest(settings) == job().digest(settings)
    podman = NodeSettings(engine="podman")
    assert image.digest(podman) != job().digest(podman)
    assert job().digest(NodeSettings(engine_command="a")) != job().digest(NodeSettings(engine_command="b"))


def test_only_what_an_engine_binds_can_be_reached() -> None:
    assert reachable("tcp://*:5557", "::1") == "tcp://[::1]:5557"
    assert reachable("tcp://[::]:5557", "h") == "tcp://h:5557"
    for endpoint in ("ipc:///x", "tcp://*:0", "tcp://10.0.0.1:1", None, 7):
        assert reachable(endpoint, "h") is None
