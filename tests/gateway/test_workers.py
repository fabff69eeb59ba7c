"""What the gateway says of each engine: how it takes prompts, where its tokens come from, what its events tell."""

from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import OpenGateway
from tests.gateway.fleet import BLOCK, Fleet, name, opened, play, publishes, talks
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

ANOTHER_TOKENIZER = Path(__file__).parents[2] / "rust_core/wire/tests/data/chatml"


async def conformance(fleet: Fleet, **labels: str) -> list[float | None]:
    labels_of = [{"engine": name(sim), **labels} for sim in fleet.sims]
    return [await fleet.gateway.metric("nebula_conformance", **of) for of in labels_of]


async def assert_state(fleet: Fleet, state: str, source: str, block: int = BLOCK) -> list[dict[str, Any]]:
    """The same in `/workers` and in the metrics; gives the reports."""
    workers = await fleet.workers()
    assert [worker["key"] for worker in workers.values()] == [{"source": source, "block": block}] * len(fleet.sims)
    reports = [worker["conformance"] for worker in workers.values()]
    assert [(report["state"], report["source"]) for report in reports] == [(state, source)] * len(fleet.sims)
    assert await conformance(fleet, state=state, source=source) == [1] * len(fleet.sims)
    # And no other state or source.
    assert await conformance(fleet) == [1] * len(fleet.sims)
    return reports


async def test_an_engine_that_tells_its_blocks_is_asked_for_the_tokens(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        for report in await assert_state(fleet, "unavailable", "engine"):
            assert "tokens.model_assets" in report["why"]
            assert (report["checks"], report["takes_ids"]) == ([], False)
        for worker in (await fleet.workers()).values():
            assert (worker["status"], worker["models"], worker["block_size"]) == ("ready", ["tiny"], BLOCK)
            assert (worker["version"], worker["kv_blocks"] > 0) == ("0.32.0", True)
        assert await fleet.gateway.metric("nebula_kv_events_connected") == 2


async def test_of_one_that_tells_nothing_the_text_says_as_much(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway) as fleet:
        await assert_state(fleet, "unavailable", "text")
        await play(fleet, talks(4), 1)
        assert {decision["key"] for decision in await fleet.decisions()} == {"text", "tokens"}
        assert [rank["events"] for rank in await fleet.each_rank()] == [None, None]
        assert await fleet.gateway.metric("nebula_kv_events_connected") is None


async def test_events_are_not_followed_where_the_operator_says_so(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--no-kv-events", source="text", **publishes()) as fleet:
        await assert_state(fleet, "unavailable", "text")
        assert [rank["events"] for rank in await fleet.each_rank()] == [None, None]


async def test_the_key_is_cut_as_the_engine_cuts(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, block_size=32, **publishes()) as fleet:
        await assert_state(fleet, "unavailable", "engine", 32)
        answers = await play(fleet, talks(8), 3)
        assert [answer for answer in answers if not answer.exact] == []
        assert {answer.cached % 32 for answer in answers} == {0}


async def test_an_engine_that_tokenises_otherwise_than_its_files_say_is_asked(open_gateway: OpenGateway) -> None:
    flags = ("--model-assets", f"tiny={ANOTHER_TOKENIZER}")
    async with opened(open_gateway, *flags, **publishes()) as fleet:
        for report in await assert_state(fleet, "failed", "engine"):
            wrong = [check["name"] for check in report["checks"] if not check["ok"]]
            assert "plain" in wrong
            assert "in the engine" in report["why"]
            assert not report["takes_ids"]
        answers = await play(fleet, talks(8), 2)
        assert [answer for answer in answers if not answer.exact] == []
        await fleet.logged("tokenises otherwise")


async def test_an_engine_that_leaves_takes_its_series_along(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        await play(fleet, talks(8), 1)
        gone, stays = [name(sim) for sim in fleet.sims]
        (await fleet.gateway.http.delete(f"/admin/engines/{gone}")).raise_for_status()

        async def left() -> bool:
            page = (await fleet.gateway.http.get("/metrics")).text
            return gone not in page and stays in page

        await until("its series to go", left)
        assert [*await fleet.workers()] == [stays]
        [rank] = (await fleet.workers())[stays]["ranks"]
        # The index holds what stays, and its routes.
        assert await fleet.gateway.metric("nebula_kv_events_blocks") == rank["events"]["blocks"]
