"""A node that runs real vLLM engines: started by its placement, known by their events, restarted, unloaded."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.e2e.daemon import Traffic
from tests.e2e.engine import Environment
from tests.e2e.engine.engine import START_WITHIN_S
from tests.e2e.process import free_port
from tests.e2e.test_fleet import Fleet, curl
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

NAME = "org/tiny"
UID = "real"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.close()


def surroundings(environment: Environment) -> dict[str, str]:
    """What the CPU build needs, and where `vllm` is."""
    return {
        "PATH": f"{environment.python.parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }


async def batches(fleet: Fleet) -> float:
    """KV-event batches of the engine that the gateway has applied."""
    series = f'nebula_kv_events_batches_total{{engine="{UID}/0",rank="0"}} '
    async with httpx.AsyncClient(trust_env=False) as http:
        lines = (await http.get(f"{fleet.gateway}/metrics")).text.splitlines()
    return next((float(line.removeprefix(series)) for line in lines if line.startswith(series)), 0.0)


async def test_a_placement_becomes_a_real_engine(fleet: Fleet, environment: Environment) -> None:
    await fleet.start_gateway()
    node = await fleet.daemon(
        *("node", "--node-id", "cpu", "--gpus", "none", "--host", "127.0.0.1", "--engine-host", "127.0.0.1"),
        *("--vllm-port", str(free_port()), "--state-dir", str(fleet.folder / "state")),
        **surroundings(environment),
    )
    yaml = fleet.folder / "tiny.yaml"
    yaml.write_text(
        f"model: {environment.model}\nserved-model-name: {NAME}\nmax-model-len: 4096\nblock-size: 32\n"
        "num-gpu-blocks-override: 512\nenforce-eager: true\nenable-prompt-tokens-details: true\n"
    )
    flags = ("--model-uid", UID, "--model-name", NAME, "--engine-config-path", str(yaml), "--gpus", "0")
    status, output = await fleet.made("scheduler", *flags).finished()
    assert status == 0, output
    await fleet.ready(f"{UID}/0", within_s=START_WITHIN_S)
    for name in (UID, NAME):
        answer = await curl(fleet.gateway, name)
        assert answer["model"] == NAME
    body = {"model": UID, "messages": [{"role": "user", "content": "word " * 300}], "max_tokens": 2, "temperature": 0}

    async def tells() -> bool:
        return await batches(fleet) > 0

    async with Traffic(fleet.gateway, UID, json.dumps(body)) as traffic:
        await traffic.more(3)
        await until("its KV events to come in", tells)
        assert not traffic.failures
    [engine] = node.children()
    engine.kill()

    async def is_back() -> bool:
        pids = [child.pid for child in node.children() if child.status() != psutil.STATUS_ZOMBIE]
        return len(pids) == 1 and pids != [engine.pid] and await fleet.engines() == [f"{UID}/0"]

    await until("the engine to be back", is_back, within_s=START_WITHIN_S)
    assert (await curl(fleet.gateway, NAME))["model"] == NAME
    status, output = await fleet.made("unload", UID).finished()
    assert status == 0, output
    await fleet.ready()
    await until("its process to end", lambda: not node.children())
