"""What the gateway believes of engines that tell nothing: what was routed, for what it turns out to be worth."""

import json

import pytest
from tests.gateway.conftest import MODEL, OpenGateway, fault
from tests.gateway.fleet import BLOCK, COMPLETION, Fleet, Talk, opened, unheard_of
from tests.gateway.process import client
from tests.gateway.upstream import Line, Upstream, whole
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

LONG = 100 * BLOCK + 1


async def claims(fleet: Fleet) -> float:
    return await fleet.gateway.metric("nebula_tree_blocks") or 0


async def test_no_more_is_believed_than_a_cache_has_room_for(open_gateway: OpenGateway) -> None:
    kv_blocks = 64
    async with opened(open_gateway, kv_blocks=kv_blocks, max_model_len=512) as fleet:
        most = 0.0
        for number in range(40):
            text = f"{number} " + "once upon a time " * 20
            await fleet.ask(COMPLETION, {"prompt": text} if number % 2 else {"prompt": unheard_of(6 * BLOCK)})
            most = max(most, await claims(fleet))
        assert kv_blocks < most <= 2 * kv_blocks


async def test_the_operator_may_say_how_much_fits(open_gateway: OpenGateway) -> None:
    async with open_gateway("--rank-kv-tokens", "160") as gateway, gateway.serving(Upstream(model=MODEL)):
        for number in range(8):
            body = {"model": MODEL, "prompt": f"{number} " + "once upon a time " * 20}
            (await gateway.http.post(COMPLETION, json=body)).raise_for_status()
        assert await gateway.metric("nebula_tree_blocks") == 160 // BLOCK


async def credit(fleet: Fleet) -> float:
    [rank] = await fleet.each_rank()
    return float(rank["prediction"]["credit"])


async def test_what_an_engine_delivers_is_what_its_overlap_counts_for(open_gateway: OpenGateway) -> None:
    # Nobody looks at the engine again: only its replies tell.
    flags = ("--probe-interval-ms", "600000")
    async with opened(open_gateway, *flags, count=1) as fleet:
        [sim] = fleet.sims
        prompts = [{"prompt": unheard_of(LONG), "max_tokens": 1} for _ in range(10)]
        for prompt in prompts:
            await fleet.ask(COMPLETION, prompt)
        for prompt in prompts[:3]:
            assert (await fleet.ask(COMPLETION, prompt)).exact
        assert await credit(fleet) == 1.0

        async with client(sim.url) as http:
            (await http.post("/reset_prefix_cache")).raise_for_status()
        for prompt in prompts:
            answer = await fleet.ask(COMPLETION, prompt)
            assert (answer.overlap, answer.cached) == (LONG - 1, 0)
        [rank] = await fleet.each_rank()
        believed = rank["prediction"]
        assert believed["credit"] < 0.5
        assert (believed["error_mean"] > 0, believed["checked"], believed["exact"]) == (True, 23, 13)
        assert await fleet.gateway.metric("nebula_prediction_credit_ratio") == pytest.approx(
            believed["credit"], abs=0.05
        )
        await fleet.logged("holds less of its prompts than predicted")
        [shown] = (await fleet.explain(prompts[0]))["ranks"]
        assert shown["overlap"]["gpu"] == LONG - 1
        assert shown["credit"] == pytest.approx(believed["credit"], abs=0.05)
        # What does not count is priced as if it had to be computed.
        assert shown["terms"]["uncached"] > 0.4 * LONG

        async def recovered() -> bool:
            for prompt in prompts:
                assert (await fleet.ask(COMPLETION, prompt)).exact
            return any("delivers what is predicted" in line for line in fleet.gateway.lines())

        await until("the log to tell that it delivers again", recovered)
        assert await credit(fleet) > 0.9


async def test_an_engine_that_starts_over_unseen_is_found_out(open_gateway: OpenGateway) -> None:
    flags = ("--probe-interval-ms", "600000")
    async with opened(open_gateway, *flags, count=1) as fleet:
        [sim] = fleet.sims
        prompt = {"prompt": unheard_of(LONG), "max_tokens": 1}
        for _ in range(2):
            await fleet.ask(COMPLETION, prompt)
        async with client(sim.url) as http:
            (await http.post("/sim/restart", json={})).raise_for_status()

        async def answered() -> bool:
            reply = await fleet.gateway.http.post(COMPLETION, json={"model": MODEL, **prompt})
            return reply.status_code == 200

        await until("an answer", answered)
        await until("its process to be known for another one, or its word to weigh less", lambda: distrusted(fleet))


async def distrusted(fleet: Fleet) -> bool:
    [rank] = await fleet.each_rank()
    return bool(rank["prediction"]["checked"] < 3 or rank["prediction"]["credit"] < 1)


async def test_more_than_was_predicted_is_no_reason_for_distrust(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, count=1) as fleet:
        await fault(fleet.sims[0].url, "lie_cached", amount=64)
        for _ in range(5):
            assert (await Talk.ids(*unheard_of(LONG)).go_on(fleet)).cached == 64
        [rank] = await fleet.each_rank()
        assert (rank["prediction"]["credit"], rank["prediction"]["error_mean"]) == (1.0, -64.0)


async def test_text_is_held_against_its_share_of_the_prompt(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, count=1) as fleet:
        talk = Talk.chat(0)
        for _ in range(12):
            await talk.go_on(fleet)
        [rank] = await fleet.each_rank()
        # Blocks of text are not the engine's blocks; a share of the prompt comes near.
        assert abs(rank["prediction"]["error_mean"]) < 3 * BLOCK
        assert rank["prediction"]["credit"] > 0.9


async def test_an_engine_that_tells_no_cached_tokens_is_not_judged(open_gateway: OpenGateway) -> None:
    async def silent(line: Line) -> None:
        await line.send(whole(json.dumps({"usage": {"prompt_tokens": 100, "completion_tokens": 1}}).encode()))

    upstream = Upstream(model=MODEL, answer=silent)
    async with open_gateway() as gateway, gateway.serving(upstream):
        for _ in range(3):
            body = {"model": MODEL, "prompt": "once upon a time " * 20}
            (await gateway.http.post(COMPLETION, json=body)).raise_for_status()
        [worker] = (await gateway.http.get("/workers")).json()["workers"]
        assert (worker["ranks"][0]["prediction"]["checked"], worker["ranks"][0]["prediction"]["credit"]) == (0, 1.0)
