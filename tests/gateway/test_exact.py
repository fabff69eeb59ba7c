"""What the gateway predicts of an engine's cached tokens, where the engine's KV events come in."""

from collections import Counter
from typing import Any

import pytest
from tests.gateway.conftest import OpenGateway
from tests.gateway.fleet import BLOCK, Talk, name, opened, play, publishes, talks, unheard_of
from tests.gateway.process import client

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("hashes", ["int", "bytes"])
@pytest.mark.parametrize("encoding", ["map", "array"])
async def test_every_prediction_is_right_to_the_token(encoding: str, hashes: str, open_gateway: OpenGateway) -> None:
    written: dict[str, Any] = {"kv_events_encoding": encoding, "kv_events_hashes": hashes}
    async with opened(open_gateway, **publishes(), **written) as fleet:
        users = talks(16)
        answers = await play(fleet, users, 4)
        assert [answer for answer in answers if not answer.exact] == []
        assert all(answer.cached > 0 for user in users for answer in user.answers[1:])
        assert len({answer.engine for answer in answers}) == 2
        decisions = await fleet.decisions()
        assert Counter(decision["source"] for decision in decisions) == {"client": 32, "engine": 32}
        assert {(decision["key"], decision["exact"]) for decision in decisions} == {("tokens", True)}
        for rank in await fleet.each_rank():
            assert rank["prediction"]["exact"] == rank["prediction"]["checked"] > 0
            assert (rank["prediction"]["credit"], rank["prediction"]["error_mean"]) == (1.0, 0.0)
            assert (rank["events"]["encoding"], rank["events"]["block_size"]) == (encoding, BLOCK)


async def test_each_rank_is_predicted_by_itself(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, ranks=2, **publishes()) as fleet:
        users = talks(16)
        for number, user in enumerate(users):
            await user.go_on(fleet, **{"x-data-parallel-rank": str(number % 2)})
        await fleet.settle()
        answers = await play(fleet, users, 2)
        assert [answer for answer in answers if not answer.exact] == []
        assert len({(answer.engine, answer.rank) for answer in answers}) == 4
        assert all(rank["prediction"]["exact"] for rank in await fleet.each_rank())


async def test_a_client_that_names_a_rank_is_predicted_there(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, count=1, ranks=2, **publishes()) as fleet:
        prompt, here, there = unheard_of(4 * BLOCK + 1), {"x-data-parallel-rank": "1"}, {"x-data-parallel-rank": "0"}
        first = await Talk.ids(*prompt).go_on(fleet, **here)
        await fleet.settle()
        for rank, overlap in ((here, 4 * BLOCK), (there, 0)):
            explained = await fleet.explain({"prompt": prompt}, **rank)
            assert [of["overlap"]["gpu"] for of in explained["ranks"]] == [overlap]
        assert (await Talk.ids(*prompt).go_on(fleet)).rank == first.rank == 1
        elsewhere = await Talk.ids(*prompt).go_on(fleet, **there)
        assert (elsewhere.rank, elsewhere.cached, elsewhere.exact) == (0, 0, True)
        await fleet.settle()
        assert [rank["events"]["blocks"] for rank in await fleet.each_rank()] == [4, 4]


async def test_a_block_that_is_full_to_the_last_token_saves_nothing(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, count=1, **publishes()) as fleet:
        prompt = unheard_of(4 * BLOCK)
        for sent, cached in ((prompt, 0), (prompt, 3 * BLOCK), ([*prompt, 7], 4 * BLOCK), (prompt[:-1], 3 * BLOCK)):
            answer = await Talk.ids(*sent).go_on(fleet)
            assert (answer.overlap, answer.cached) == (cached, cached)
            await fleet.settle()


async def test_what_an_engine_forgets_is_forgotten_here(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        users = talks(8)
        await play(fleet, users, 2)
        async with client("") as http:
            for sim in fleet.sims:
                assert (await http.post(f"{sim.url}/reset_prefix_cache")).json() == {"success": True}
        # Each engine tells it with the next batch.
        fresh = [await Talk.ids(*unheard_of(1)).go_on(fleet) for _ in range(8)]
        await fleet.settle()
        assert {answer.engine for answer in fresh} == {name(sim) for sim in fleet.sims}
        explained = [await fleet.explain(user.body) for user in users]
        assert {rank["overlap"]["gpu"] for of in explained for rank in of["ranks"]} == {0}
        answers = await play(fleet, users, 2)
        assert [answer for answer in answers if not answer.exact] == []


async def test_what_an_engine_evicts_is_evicted_here(open_gateway: OpenGateway) -> None:
    kv_blocks = 50
    async with opened(open_gateway, **publishes(), kv_blocks=kv_blocks, max_model_len=512) as fleet:
        users = talks(16)
        for user in users * 3:
            assert (await user.go_on(fleet)).exact
            await fleet.settle()
        turns = [turns for user in users for turns in zip(user.answers, user.answers[1:], strict=False)]
        assert any(after.cached < before.prompt - BLOCK for before, after in turns)
        assert all(kv_blocks / 2 < rank.most < kv_blocks for rank in fleet.published)
