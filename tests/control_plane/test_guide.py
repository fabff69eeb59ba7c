"""The page's examples, run as they stand: only addresses are replaced by those of simulated engines."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.control_plane.conftest import Engine, all_well, figure

from nebula_router.control_plane import ControlPlaneManager, ExecutionInstance, Limits, RequestMetadata, RequestStatus
from nebula_router.core import Sim

PAGE = (Path(__file__).parents[2] / "docs" / "control-plane.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LOCAL, MACHINES, TEST, ASK, POLICY, TENSOR_PARALLEL = EXAMPLES
MODEL = "meta-llama/Llama-2-7b"


def run(example: str, fleet: dict[str, list[Sim]]) -> dict[str, Any]:
    """What an example defines, its machines' ports 8000 and up replaced by the engines' own."""

    def own(match: re.Match[str]) -> str:
        return f'host="127.0.0.1"{match[2]}port=[{", ".join(ports(fleet[match[1]]))}][{match[3] or 0}],'

    names: dict[str, Any] = {}
    exec(re.sub(r'host="([^"]+)"(.*?)port=8000(?: \+ (gpu_id))?,', own, example, flags=re.DOTALL), names)
    return names


def ports(sims: list[Sim]) -> list[str]:
    return [str(urlsplit(sim.url).port) for sim in sims]


def served(setup: Callable[[], Any], count: int) -> Counter[str | None]:
    """Sets a cluster up, asks it `count` times, and says who answered how often."""

    async def asked() -> Counter[str | None]:
        cp: ControlPlaneManager = await setup()
        for at in range(count):
            await cp.submit_request(RequestMetadata(f"r{at}", prompt="hello", max_tokens=2))
        results = [await cp.result(f"r{at}") for at in range(count)]
        await cp.stop()
        assert {result.status for result in results} == {RequestStatus.COMPLETED}
        return Counter(result.instance_id for result in results)

    return asyncio.run(asked())


@pytest.fixture
def four(engine: Engine) -> Callable[[], list[Sim]]:
    return lambda: [engine(model=MODEL) for _ in range(4)]


def test_one_machine_with_four_gpus(four: Callable[[], list[Sim]]) -> None:
    names = run(LOCAL, {"localhost": four()})
    assert set(served(names["setup_local_cluster"], 40)) <= {f"local-gpu-{gpu}" for gpu in range(4)}


def test_several_machines(four: Callable[[], list[Sim]]) -> None:
    names = run(MACHINES, {"192.168.1.100": four(), "192.168.1.101": four()})
    answered = served(names["setup_multi_machine_cluster"], 40)
    assert set(answered) <= {f"machine-{machine}-gpu-{gpu}" for machine in "ab" for gpu in range(4)}


def test_a_request(engine: Engine) -> None:
    sim = engine(model=MODEL)
    run(TEST, {"localhost": [sim]})
    assert asyncio.run(figure(sim, "vllm:request_success_total")) == 1
    assert asyncio.run(figure(sim, "vllm:generation_tokens_total")) == 100


def test_a_stream_and_its_result(four: Callable[[], list[Sim]], capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"RequestMetadata": RequestMetadata}
    exec(ASK, names)
    setup = run(LOCAL, {"localhost": four()})["setup_local_cluster"]

    async def asked() -> str:
        cp = await setup()
        result = await names["ask"](cp, "hello")
        await cp.stop()
        text: str = result.text
        return text

    text = asyncio.run(asked())
    assert len(text.split()) == 20
    assert capsys.readouterr().out == text


def test_a_policy_of_ones_own(engine: Engine) -> None:
    names: dict[str, Any] = {}
    exec(POLICY, names)
    cp: ControlPlaneManager = names["cp"]
    for gpus in (4, 1, 2):
        address = urlsplit(engine().url)
        assert address.port
        cp.register_instance(ExecutionInstance(f"{gpus}", "127.0.0.1", address.port, "tiny", gpu_count=gpus))

    async def setup() -> ControlPlaneManager:
        await cp.start()
        await all_well(cp)
        return cp

    assert served(setup, 8) == {"1": 8}
    decision = cp.get_decision("r0")
    assert decision
    assert "fewest_gpus: 1 GPUs" in decision.reason


def test_an_engine_over_four_gpus() -> None:
    names: dict[str, Any] = {"ExecutionInstance": ExecutionInstance}
    exec(TENSOR_PARALLEL, names)
    cp = ControlPlaneManager()
    cp.register_instance(names["instance"])
    assert [instance.gpu_count for instance in cp.get_instances()] == [4]


def test_the_page_has_every_argument_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE))
    assert listed == {name: f"{field.default:g}" for name, field in Limits.model_fields.items()}
