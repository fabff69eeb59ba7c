"""The settings and the binary agree: neither side knows a name that the other does not."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from nebula_router.config import RouteSettings, Settings
from nebula_router.core import POLICIES, Core, Sim

DOCUMENT: dict[str, Any] = json.loads(
    Settings.model_validate({"gateway": {"engines": ["http://127.0.0.1:1"]}}).core_json()
)
# Serde reads a missing name as null where null is allowed.
NAMES = [(group, name) for group in ("route", "wire") for name, value in DOCUMENT[group].items() if value is not None]


def start(document: dict[str, Any]) -> None:
    async def start_and_stop() -> None:
        Core(json.dumps(document).encode()).stop()

    asyncio.run(start_and_stop())


def test_the_core_takes_the_settings() -> None:
    start(DOCUMENT)


@pytest.mark.parametrize(("group", "name"), NAMES)
def test_the_core_has_no_default_of_its_own(group: str, name: str) -> None:
    without = {key: value for key, value in DOCUMENT[group].items() if key != name}
    with pytest.raises(ValueError, match=name):
        start({**DOCUMENT, group: without})


@pytest.mark.parametrize("group", ["route", "wire"])
def test_the_core_refuses_an_unknown_name(group: str) -> None:
    with pytest.raises(ValueError, match="unheard_of"):
        start({**DOCUMENT, group: {**DOCUMENT[group], "unheard_of": 1}})


def test_the_policies_are_those_of_the_core() -> None:
    assert set(get_args(RouteSettings.model_fields["policy"].annotation)) == set(POLICIES)


@pytest.fixture
def sim() -> Iterator[Sim]:
    engine = Sim(Settings.model_validate({"sim": {"listen": "127.0.0.1:0"}}).sim.core_json())
    yield engine
    engine.stop()


def test_the_simulator_takes_the_settings(sim: Sim) -> None:
    assert sim.url.startswith("http://127.0.0.1:")


def test_the_simulator_refuses_what_no_engine_could_serve() -> None:
    settings = Settings.model_validate({"sim": {"listen": "127.0.0.1:0", "kv_blocks": 1}})
    with pytest.raises(ValueError, match="kv_blocks"):
        Sim(settings.sim.core_json())
