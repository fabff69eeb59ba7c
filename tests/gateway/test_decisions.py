"""The latest decisions with their outcomes, and the usage that they are made of."""

import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway.conftest import MODEL, OpenGateway, fault
from tests.gateway.fleet import BLOCK, CHAT, COMPLETION, Fleet, Talk, name, opened, publishes, unheard_of

pytestmark = pytest.mark.anyio

SECRET = "xyzzy-plugh"


async def test_each_request_leaves_its_decision_and_what_became_of_it(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        since = time.time() * 1000
        talk = Talk.ids(*unheard_of(4 * BLOCK + 1))
        await talk.go_on(fleet)
        await fleet.settle()
        answer = await fleet.ask(COMPLETION, talk.body, **{"x-request-id": "mine"})
        decision = await fleet.decision("mine")
        overlap = answer.prompt // BLOCK * BLOCK - BLOCK
        assert decision | {"cost": 0, "runner_up": {}, "at_ms": 0, "ttft_ms": 0, "total_ms": 0} == {
            "at_ms": 0,
            "id": "mine",
            "model": MODEL,
            "path": COMPLETION,
            "engine": answer.engine,
            "rank": 0,
            "policy": "kv",
            "key": "tokens",
            "source": "client",
            "exact": True,
            "prompt_tokens": answer.prompt,
            "overlap_tokens": answer.overlap,
            "cached_tokens": overlap,
            "cost": 0,
            "runner_up": {},
            "shadow": None,
            "candidates": 2,
            "attempts": 1,
            "ttft_ms": 0,
            "total_ms": 0,
            "status": 200,
        }
        assert since - 1000 < decision["at_ms"] < time.time() * 1000 + 1000
        assert 0 < decision["ttft_ms"] <= decision["total_ms"]
        assert decision["runner_up"]["engine"] != answer.engine
        assert decision["runner_up"]["cost"] > decision["cost"]


async def test_the_newest_come_first_and_old_ones_make_room(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--decisions-kept", "5", count=1) as fleet:
        ids = [f"request-{number}" for number in range(8)]
        for request_id in ids:
            await fleet.ask(COMPLETION, {"prompt": "x"}, **{"x-request-id": request_id})
        await fleet.decision(ids[-1])
        kept = ids[:2:-1]
        for limit, shown in ((None, kept), (2, kept[:2]), (0, []), (5, kept), (1_000_000, kept)):
            assert [decision["id"] for decision in await fleet.decisions(limit)] == shown


async def test_none_are_kept_where_none_are_wanted(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--decisions-kept", "0", count=1) as fleet:
        await fleet.ask(COMPLETION, {"prompt": "x"})
        assert await fleet.decisions() == []


async def test_no_word_of_a_prompt_is_in_them(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        messages = [{"role": "user", "content": SECRET}]
        for path, body in (
            (CHAT, {"messages": messages, "cache_salt": SECRET, "user": SECRET}),
            (COMPLETION, {"prompt": SECRET, "stop": SECRET, "session_id": SECRET}),
            (COMPLETION, {"prompt": [SECRET]}),
        ):
            await fleet.gateway.http.post(path, json={"model": MODEL, "max_tokens": 1, **body})
        page = (await fleet.gateway.http.get("/route/decisions")).text
        assert len(await fleet.decisions()) == 3
        assert SECRET not in page


async def test_what_failed_and_what_was_tried_again_shows(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        talk = Talk.ids(*unheard_of(4 * BLOCK + 1))
        home = (await talk.go_on(fleet)).engine
        await fleet.settle()
        [url] = [sim.url for sim in fleet.sims if name(sim) == home]
        await fault(url, "queue_full", count=1)
        answer = await fleet.ask(COMPLETION, talk.body, **{"x-request-id": "again"})
        again = await fleet.decision("again")
        assert answer.engine != home
        assert (again["engine"], again["attempts"], again["status"]) == (answer.engine, 2, 200)
        assert (again["overlap_tokens"], again["cached_tokens"]) == (0, 0)
        headers = {"x-sim-fault": "status;status=418", "x-request-id": "failed"}
        reply = await fleet.gateway.http.post(COMPLETION, json={"model": MODEL, "prompt": "x"}, headers=headers)
        failed = await fleet.decision("failed")
        assert (reply.status_code, failed["status"], failed["cached_tokens"]) == (418, 418, None)
        # What reached no engine was not decided.
        await fleet.gateway.http.post(COMPLETION, json={"model": "nobody", "prompt": "x"})
        assert len(await fleet.decisions()) == 3


async def test_a_client_that_left_shows(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--idle-timeout-s", "60", count=1) as fleet:
        headers = {"x-sim-fault": "hang_mid_stream", "x-request-id": "left"}
        body = {"model": MODEL, "prompt": "x", "stream": True}
        async with fleet.gateway.http.stream("POST", COMPLETION, json=body, headers=headers) as stream:
            assert stream.status_code == 200
        decision = await fleet.decision("left")
        assert (decision["status"], decision["cached_tokens"]) == (499, None)


async def streamed(url: str, fleet: Fleet, path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a stream, without the time that is in each chunk."""
    headers = {"x-request-id": "the-same"}
    reply = await fleet.gateway.http.post(f"{url}{path}", json=body, headers=headers)
    assert reply.raise_for_status().headers["content-type"].startswith("text/event-stream")
    return re.sub(rb'"created":\d+', b"", reply.content)


@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_stream_has_no_usage_that_its_client_did_not_ask_for(
    usage_fleet: Fleet, path: str, options: dict[str, Any]
) -> None:
    text = "once upon a time " * 20 + str(options)
    said: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    body = {"model": MODEL, "max_tokens": 20, "stream": True, **said, **options}
    [sim] = usage_fleet.sims
    direct = await streamed(sim.url, usage_fleet, path, body)
    routed = await streamed(usage_fleet.gateway.url, usage_fleet, path, body)
    assert b'"usage"' not in routed
    assert routed == direct
    [decision] = await usage_fleet.decisions(1)
    assert decision["cached_tokens"] >= 4 * BLOCK
    asks = body | {"stream_options": {"include_usage": True}}
    asked = await streamed(usage_fleet.gateway.url, usage_fleet, path, asks)
    assert b'"usage":{' in asked
    assert asked == await streamed(sim.url, usage_fleet, path, asks)


@pytest.fixture(scope="module")
async def usage_fleet(anyio_backend: str, open_gateway: OpenGateway) -> AsyncIterator[Fleet]:
    assert anyio_backend == "asyncio"
    async with opened(open_gateway, count=1) as fleet:
        yield fleet


async def test_usage_is_not_asked_for_where_the_operator_says_so(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--no-ask-usage", count=1) as fleet:
        body = {"model": MODEL, "prompt": "x" * 400, "stream": True}
        for _ in range(2):
            await streamed(fleet.gateway.url, fleet, COMPLETION, body)
        assert [decision["cached_tokens"] for decision in await fleet.decisions()] == [None, None]
