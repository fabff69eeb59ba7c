"""Policies by name, from the command line to the engine that is chosen."""

import sys
from collections import Counter

import anyio
import pytest
from tests.gateway.conftest import MODEL, OpenGateway, await_sims
from tests.gateway.process import Gateway

from nebula_router.core import POLICIES, Sim

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
Messages = list[dict[str, str]]


async def chosen(gateway: Gateway, messages: Messages, **headers: str) -> str:
    body = {"model": MODEL, "messages": messages, "max_tokens": 2}
    reply = await gateway.http.post(CHAT, json=body, headers=headers)
    return reply.raise_for_status().headers["x-nebula-engine"]


def says(text: str) -> Messages:
    return [{"role": "user", "content": text}]


async def test_kv_sends_a_conversation_to_the_engine_that_has_it(gateway: Gateway) -> None:
    homes = []
    for user in range(8):
        messages = says(f"user {user}: " + "a long story " * 40)
        for turn in range(4):
            body = {"model": MODEL, "messages": messages, "max_tokens": 8}
            reply = (await gateway.http.post(CHAT, json=body, headers={"x-nebula-debug": "1"})).raise_for_status()
            homes.append((user, reply.headers["x-nebula-engine"]))
            told = reply.json()
            if turn:
                overlap, prompt = (int(reply.headers[f"x-nebula-{name}-tokens"]) for name in ("overlap", "prompt"))
                assert 0.8 * prompt < overlap <= prompt
                assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
            messages = [*messages, told["choices"][0]["message"], *says(f"turn {turn}: go on")]
    assert len(set(homes)) == 8
    assert len({engine for _, engine in homes}) == 2


async def test_round_robin_takes_turns(open_gateway: OpenGateway, sims: list[Sim]) -> None:
    engines = [word for sim in sims for word in ("--engine", sim.url)]
    async with open_gateway(*engines, "--policy", "round_robin") as gateway:
        await await_sims(gateway)
        assert (await gateway.http.get("/health")).json()["policy"] == "round_robin"
        turns = [await chosen(gateway, says("the same")) for _ in range(6)]
        assert turns[0] != turns[1]
        assert turns == turns[:2] * 3


async def test_a_session_stays_where_it_is(open_gateway: OpenGateway, sims: list[Sim]) -> None:
    engines = [word for sim in sims for word in ("--engine", sim.url)]
    async with open_gateway(*engines, "--policy", "session") as gateway:
        await await_sims(gateway)
        homes = {}
        for session in map(str, range(16)):
            seen = {await chosen(gateway, says(f"turn {turn}"), **{"x-session-id": session}) for turn in range(3)}
            assert len(seen) == 1
            homes[session] = seen.pop()
            body = {"model": MODEL, "messages": says("by the body"), "session_id": session, "max_tokens": 1}
            assert (await gateway.http.post(CHAT, json=body)).headers["x-nebula-engine"] == homes[session]
        assert min(Counter(homes.values()).values()) >= 2
        gone = next(sim.url.removeprefix("http://") for sim in sims)
        (await gateway.http.delete(f"/admin/engines/{gone}")).raise_for_status()
        for session, home in homes.items():
            now = await chosen(gateway, says("after"), **{"x-session-id": session})
            assert home in {now, gone}


@pytest.mark.parametrize(
    ("name", "says"), [("round-robin", "did you mean round_robin?"), ("nope", f"one of {', '.join(POLICIES)}")]
)
async def test_an_unknown_policy_is_refused_with_the_known_ones(name: str, says: str) -> None:
    command = [sys.executable, "-m", "nebula_router", "gateway", "--policy", name]
    ended = await anyio.run_process(command, check=False)
    assert ended.returncode == 2
    assert says in ended.stderr.decode()
