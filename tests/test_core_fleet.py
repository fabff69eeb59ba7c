"""A fleet that changes while the core runs: who there is, by which names, and one engine that is asked for by name."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from nebula_router.config import EngineSettings, Settings
from nebula_router.core import Core, NebulaError, Sim

WITHIN_S = 20.0
CHAT = "/v1/chat/completions"
NAMES = ("a", "b", "c")


def sim(**values: Any) -> Sim:
    settings = {"listen": "127.0.0.1:0", "speed": 0, **values}
    return Sim(Settings.model_validate({"sim": settings}).sim.core_json())


def specs(sims: list[Sim]) -> list[dict[str, Any]]:
    return [EngineSettings(url=s.url, name=name).model_dump() for s, name in zip(sims, NAMES, strict=False)]


def run(sims: list[Sim], ask: Callable[[Core], Awaitable[None]]) -> None:
    async def started() -> None:
        core = Core(Settings.model_validate({"upstream": {"probe_interval_ms": 50}}).core_json())
        core.set_engines(specs(sims))
        try:
            deadline = asyncio.get_running_loop().time() + WITHIN_S
            while not all(engine["models"] for engine in core.engines()):
                assert asyncio.get_running_loop().time() < deadline, core.engines()
                await asyncio.sleep(0.01)
            await ask(core)
        finally:
            core.stop()

    with ExitStack() as stack:
        for started_sim in sims:
            stack.callback(started_sim.stop)
        asyncio.run(started())


async def answer(core: Core, model: str, engine: str | None = None) -> tuple[str, dict[str, Any]]:
    """The engine that answered, and what it said."""
    body = json.dumps({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).encode()
    reply = core.dispatch(CHAT, b"", [(b"content-type", b"application/json")], body, engine)
    part = await asyncio.wait_for(reply.part(), WITHIN_S)
    headers, parts = dict(part.headers or []), [part]
    while not parts[-1].end:
        parts.append(await asyncio.wait_for(reply.part(), WITHIN_S))
    said: dict[str, Any] = json.loads(b"".join(part.body for part in parts))
    return headers[b"x-nebula-engine"].decode(), said


def test_a_request_for_one_engine_goes_to_that_one_alone() -> None:
    async def ask(core: Core) -> None:
        for _ in range(3):
            for name in NAMES:
                assert (await answer(core, "tiny", name))[0] == name
        core.drain_engine("b", on=True)
        with pytest.raises(NebulaError, match="no engine") as raised:
            await answer(core, "tiny", "b")
        assert raised.value.status == 503

    run([sim() for _ in NAMES], ask)


def test_a_request_for_one_engine_is_not_tried_elsewhere() -> None:
    async def ask(core: Core) -> None:
        with pytest.raises(NebulaError) as raised:
            await answer(core, "tiny", "a")
        assert raised.value.status == 502
        assert (await answer(core, "tiny"))[0] == "b"

    run([sim(faults=["reset"]), sim()], ask)


def test_names_for_models_change_with_the_fleet() -> None:
    async def ask(core: Core) -> None:
        with pytest.raises(NebulaError) as raised:
            await answer(core, "mine")
        assert raised.value.status == 404
        engines = specs(sims)
        core.set_engines(engines, {"mine": "tiny"})
        assert (await answer(core, "mine"))[1]["model"] == "tiny"
        core.set_engines(engines)
        with pytest.raises(NebulaError):
            await answer(core, "mine")

    sims = [sim()]
    run(sims, ask)


def test_a_simulated_engine_serves_its_model_by_every_name_it_is_given() -> None:
    async def ask(core: Core) -> None:
        assert {model["id"]: model["root"] for model in core.models()} == {"one": "tiny", "two": "tiny"}
        for name in ("one", "two"):
            assert (await answer(core, name))[1]["model"] == "one", "as vLLM does"
        with pytest.raises(NebulaError, match="one, two"):
            await answer(core, "tiny")

    run([sim(served_model_names="one,two")], ask)
