"""A decision that is shown is the one that is then made, and showing it changes nothing."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.gateway.conftest import MODEL, OpenGateway
from tests.gateway.fleet import BLOCK, CHAT, Talk, opened, play, publishes, talks, unheard_of
from tests.gateway.process import Gateway
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

EXPLAIN = "/route/explain"
LOOKS = [("POST", EXPLAIN), ("GET", "/route/decisions"), ("GET", "/workers")]


@pytest.fixture(scope="module")
async def bounded(anyio_backend: str, open_gateway: OpenGateway) -> AsyncIterator[Gateway]:
    """A gateway that takes bodies of 1 MB."""
    assert anyio_backend == "asyncio"
    async with opened(open_gateway, "--max-body-mb", "1", count=1) as fleet:
        yield fleet.gateway


@pytest.fixture(scope="module")
async def secured(anyio_backend: str, open_gateway: OpenGateway) -> AsyncIterator[Gateway]:
    """A gateway with a token and no engine."""
    assert anyio_backend == "asyncio"
    async with open_gateway(NEBULA_GATEWAY__ADMIN_TOKEN="open-sesame") as gateway:
        yield gateway


def place(choice: dict[str, Any]) -> tuple[str, int]:
    return choice["engine"], choice["rank"]


async def test_what_is_explained_is_what_then_happens(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, ranks=2, **publishes()) as fleet:
        users = talks(8)
        await play(fleet, users, 1)
        # Ties among them: where chance decides it decides alike.
        strangers = [Talk.ids(*unheard_of(40)) for _ in range(8)]
        for talk in [*users, *strangers]:
            explained = await fleet.explain(talk.body)
            answer = await talk.go_on(fleet)
            assert place(explained["choice"]) == (answer.engine, answer.rank)
            ranks = explained["ranks"]
            [chosen] = [rank for rank in ranks if rank["chosen"]]
            assert (chosen["overlap"]["gpu"], explained["prompt_tokens"]) == (answer.overlap, answer.prompt)
            assert chosen["block_tokens"] * chosen["blocks"] == answer.prompt // BLOCK * BLOCK
            assert len(ranks) == 4
            assert [rank["terms"]["total"] for rank in ranks] == sorted(rank["terms"]["total"] for rank in ranks)
            decision = await fleet.decision(answer.id)
            assert decision["cost"] == pytest.approx(chosen["terms"]["total"])
            [runner_up] = [rank for rank in ranks if rank["runner_up"]]
            assert place(decision["runner_up"]) == place(runner_up)
            assert decision["runner_up"]["cost"] == pytest.approx(runner_up["terms"]["total"])
            assert explained["key"]["source"] == decision["source"]
            await fleet.settle()


async def test_an_explanation_books_nothing_and_leaves_no_trace(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, **publishes()) as fleet:
        before = await traces(fleet.gateway)
        for _ in range(10):
            prompt = unheard_of(10 * BLOCK)
            explained = await fleet.explain({"prompt": prompt})
            assert {rank["overlap"]["gpu"] for rank in explained["ranks"]} == {0}
            assert {rank["load"]["running"] for rank in explained["ranks"]} == {0}
            assert await fleet.gateway.at_rest()
        assert await fleet.decisions() == []
        assert await traces(fleet.gateway) == before
        assert await fleet.gateway.metric("nebula_requests_total") is None
        assert await fleet.gateway.metric("nebula_prompts_total") is None
        for sim in fleet.sims:
            assert await fleet.gateway.metric("nebula_running_requests", engine=sim.url.removeprefix("http://")) == 0


async def traces(gateway: Gateway) -> list[float | None]:
    return [await gateway.metric(f"nebula_tree_{what}") for what in ("blocks", "nodes")]


async def test_load_that_is_there_is_shown(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--idle-timeout-s", "60", count=1, **publishes()) as fleet:
        hangs = {"model": MODEL, "prompt": unheard_of(4 * BLOCK), "stream": True}
        headers = {"x-sim-fault": "hang_mid_stream"}
        async with fleet.gateway.http.stream("POST", "/v1/completions", json=hangs, headers=headers) as stream:
            assert stream.status_code == 200
            [rank] = (await fleet.explain({"prompt": unheard_of(BLOCK)}))["ranks"]
            assert (rank["load"]["running"], rank["load"]["resident_tokens"]) == (1, 4 * BLOCK)
            assert rank["terms"]["decode"] > 0
            assert await fleet.gateway.metric("nebula_running_requests") == 1
        await until("nothing to be booked", fleet.gateway.at_rest)


async def test_a_text_is_explained_by_what_it_is_looked_up_by(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway) as fleet:
        body = {"messages": [{"role": "user", "content": "once upon a time " * 30}]}
        explained = await fleet.explain(body)
        assert (explained["key"]["kind"], explained["key"]["source"]) == ("text", "text")
        assert explained["key"]["exact"] is False
        assert explained["text_chars"] > 500
        answer = await fleet.ask(CHAT, body)
        again = await fleet.explain(body)
        assert place(explained["choice"]) == place(again["choice"]) == (answer.engine, answer.rank)
        assert max(rank["overlap"]["gpu"] for rank in again["ranks"]) > 100


async def test_a_shadow_policy_is_asked_and_not_followed(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, "--shadow-policy", "round_robin", **publishes()) as fleet:
        talk = Talk.chat(0)
        homes, shadows = set(), set()
        for _ in range(6):
            explained = await fleet.explain(talk.body)
            assert explained["shadow"]["policy"] == "round_robin"
            answer = await talk.go_on(fleet)
            await fleet.settle()
            decision = await fleet.decision(answer.id)
            assert place(decision["shadow"]) == place(explained["shadow"])
            homes.add(answer.engine)
            shadows.add(decision["shadow"]["engine"])
            if decision["shadow"]["engine"] == answer.engine:
                assert decision["shadow"]["gain"] == pytest.approx(0)
        assert (len(homes), len(shadows)) == (1, 2)
        metric = fleet.gateway.metric
        same, differs = [
            await metric("nebula_shadow_decisions_total", choice=choice) or 0 for choice in ("same", "differs")
        ]
        assert (same + differs, min(same, differs) > 0) == (6, True)
        gains = [decision["shadow"]["gain"] for decision in await fleet.decisions()]
        assert await metric("nebula_shadow_gain_tokens") == pytest.approx(sum(gains))


@pytest.mark.parametrize(
    ("body", "query", "status", "says"),
    [
        (b'{"model": "nobody", "prompt": "x"}', "", 404, "nobody"),
        (b"{", "", 400, "JSON"),
        (b"[]", "", 400, "JSON"),
        (b"", "", 400, "JSON"),
        (b'{"model": "tiny"}', "", 400, "messages"),
        (b'{"model": "tiny", "prompt": "x"}', "?path=/v1/nope", 400, "known: /v1/chat/completions"),
        (b'{"model": "tiny", "prompt": "x"}', "?path=/health", 400, "/health"),
        (b'{"model": "tiny", "prompt": "%s"}' % (b"x" * 1_100_000), "", 413, "gateway.max_body_mb"),
    ],
    ids=["unknown model", "no JSON", "a list", "empty", "no prompt", "unknown path", "own path", "too large"],
)
async def test_what_cannot_be_explained_says_why(
    bounded: Gateway, body: bytes, query: str, status: int, says: str
) -> None:
    reply = await bounded.http.post(EXPLAIN + query, content=body)
    assert (reply.status_code, says in reply.json()["error"]["message"]) == (status, True), reply.text
    assert await bounded.at_rest()


@pytest.mark.parametrize("limit", ["x", "-1", "1.5", ""])
async def test_a_limit_that_is_no_number_is_refused(bounded: Gateway, limit: str) -> None:
    reply = await bounded.http.get("/route/decisions", params={"limit": limit})
    assert (reply.status_code, "limit" in reply.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(("method", "path"), LOOKS)
async def test_the_token_is_asked_for(secured: Gateway, method: str, path: str) -> None:
    body = b'{"model": "tiny", "prompt": "x"}' if method == "POST" else b""
    for headers in ({}, {"authorization": "Bearer wrong"}):
        refused = await secured.http.request(method, path, content=body, headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    admitted = await secured.http.request(method, path, content=body, headers={"authorization": "Bearer open-sesame"})
    # Without an engine there is nothing to choose.
    assert admitted.status_code == (503 if path == EXPLAIN else 200)


@pytest.mark.parametrize("header", [("Origin", "null"), ("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=::1")])
@pytest.mark.parametrize(("method", "path"), LOOKS)
async def test_a_web_page_or_a_proxy_needs_the_token(
    bounded: Gateway, method: str, path: str, header: tuple[str, str]
) -> None:
    refused = await bounded.http.request(method, path, content=b'{"model": "tiny", "prompt": "x"}', headers=[header])
    assert (refused.status_code, "gateway.admin_token" in refused.json()["error"]["message"]) == (403, True)


@pytest.mark.parametrize(("method", "path"), [("GET", EXPLAIN), ("POST", "/route/decisions"), ("POST", "/workers")])
async def test_another_method_is_refused(bounded: Gateway, method: str, path: str) -> None:
    assert (await bounded.http.request(method, path, content=b"{}")).status_code == 405


async def test_a_client_that_leaves_before_it_has_asked_is_no_fault(open_gateway: OpenGateway) -> None:
    async with open_gateway() as gateway:
        async with await anyio.connect_tcp("127.0.0.1", gateway.port) as client:
            head = b"POST /route/explain HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            await client.send(head + b"content-length: 100\r\n\r\n{")
        assert (await gateway.http.post(EXPLAIN, json={"model": "nobody", "prompt": "x"})).status_code == 503
    assert not any("Traceback" in line for line in gateway.lines())


async def test_the_token_is_asked_for_before_a_long_body_is_read(secured: Gateway) -> None:
    refused = await secured.http.post(EXPLAIN, content=b" " * 4_000_000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, 401)
