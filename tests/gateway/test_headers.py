"""Which headers pass, in both directions."""

import re

import pytest
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import JSON_REPLY, Seen, Upstream, answer, whole

pytestmark = pytest.mark.anyio

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def sent_up(gateway: Gateway, upstream: Upstream, *headers: str) -> Seen:
    """What a request with these headers looks like at the engine."""
    async with connect(gateway.port) as client:
        await client.post("/v1/completions", f'{{"model":"{upstream.model}","prompt":"x"}}'.encode(), *headers)
        assert (await client.reply()).status == 200
    return upstream.seen[-1]


async def test_headers_of_the_request_pass(gateway: Gateway, upstream: Upstream) -> None:
    headers = {
        "x-session-id": "s-1",
        "x-data-parallel-rank": "0",
        "traceparent": TRACE,
        "tracestate": "a=b",
        "authorization": "Bearer the-engines-own",
        "user-agent": "test/1",
        "accept": "text/event-stream",
        "x-unheard-of": "h\u00e9",
    }
    seen = await sent_up(gateway, upstream, *(f"{name}: {value}" for name, value in headers.items()))
    assert {name: seen.one(name) for name in headers} == {**headers, "x-unheard-of": "h\u00c3\u00a9"}


async def test_a_repeated_header_stays_repeated(gateway: Gateway, upstream: Upstream) -> None:
    seen = await sent_up(gateway, upstream, "x-tag: a", "x-tag: b")
    assert seen.all("x-tag") == ["a", "b"]


async def test_the_engine_is_told_its_own_host(gateway: Gateway, upstream: Upstream) -> None:
    assert (await sent_up(gateway, upstream)).one("host") == upstream.name


@pytest.mark.parametrize(
    "header",
    [
        "connection: keep-alive",
        "keep-alive: timeout=5",
        "te: trailers",
        "trailer: x",
        "upgrade: h2c",
        "proxy-authorization: Basic abc",
        "proxy-authenticate: Basic",
        "proxy-connection: keep-alive",
        "accept-encoding: gzip, br",
        "expect: 100-continue",
        "x-nebula-debug: 1",
    ],
)
async def test_headers_of_the_connection_do_not_pass(header: str, gateway: Gateway, upstream: Upstream) -> None:
    seen = await sent_up(gateway, upstream, header)
    assert seen.all(header.partition(":")[0]) == []


async def test_names_that_the_connection_header_lists_do_not_pass(gateway: Gateway, upstream: Upstream) -> None:
    seen = await sent_up(
        gateway, upstream, "connection: X-Private, , x-other", "x-private: 1", "X-Other: 2", "x-kept: 3"
    )
    assert (seen.all("x-private"), seen.all("x-other"), seen.all("x-kept")) == ([], [], ["3"])


async def test_names_in_a_second_connection_header_do_not_pass(gateway: Gateway, upstream: Upstream) -> None:
    seen = await sent_up(gateway, upstream, "connection: keep-alive", "connection: x-private", "x-private: 1")
    assert seen.all("x-private") == []


async def test_a_requests_id_is_kept_echoed_and_sent_up(gateway: Gateway, upstream: Upstream) -> None:
    body = {"model": upstream.model, "prompt": "x"}
    reply = await gateway.http.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert upstream.seen[0].one("x-request-id") == "mine-1"


async def test_a_request_without_id_gets_one_of_its_own(gateway: Gateway, upstream: Upstream) -> None:
    body = {"model": upstream.model, "prompt": "x"}
    ids = [(await gateway.http.post("/v1/completions", json=body)).headers["x-request-id"] for _ in range(3)]
    assert [seen.one("x-request-id") for seen in upstream.seen] == ids
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)


@pytest.mark.parametrize("body", [b"", b"{", b'{"model":"nobody-has-this","prompt":"x"}'])
async def test_a_refusal_echoes_the_requests_id(body: bytes, gateway: Gateway) -> None:
    reply = await gateway.http.post("/v1/completions", content=body, headers={"x-request-id": "mine-2"})
    assert reply.status_code in {400, 404}
    assert reply.headers.get_list("x-request-id") == ["mine-2"]


async def test_an_engines_headers_reach_the_client_without_those_of_its_connection(
    gateway: Gateway, upstream: Upstream
) -> None:
    own = ["x-engine-says: a", "x-engine-says: b", "set-cookie: c=d", "retry-after: 7"]
    hop = ["connection: keep-alive, x-hop", "x-hop: 1", "keep-alive: timeout=5", "server: engine", "date: never"]
    upstream.answer = answer(whole(JSON_REPLY, *own, *hop))
    reply = await gateway.http.post("/v1/completions", json={"model": upstream.model, "prompt": "x"})
    assert reply.headers.get_list("x-engine-says") == ["a", "b"]
    assert reply.headers["set-cookie"] == "c=d"
    assert reply.headers["retry-after"] == "7"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get_list("content-length") == [str(len(JSON_REPLY))]
    assert reply.headers["x-nebula-engine"] == upstream.name
    assert not {"x-hop", "keep-alive"} & set(reply.headers)
    assert reply.headers.get("server") != "engine"
    assert reply.headers.get("date") != "never"


async def test_the_decision_is_told_on_request_only(gateway: Gateway, upstream: Upstream) -> None:
    body = {"model": upstream.model, "prompt": "x" * 400}
    plain = await gateway.http.post("/v1/completions", json=body)
    assert not [name for name in plain.headers if name.startswith("x-nebula-") and name != "x-nebula-engine"]
    told = await gateway.http.post("/v1/completions", json=body, headers={"x-nebula-debug": "1"})
    assert int(told.headers["x-nebula-overlap-tokens"]) > 0
    assert int(told.headers["x-nebula-prompt-tokens"]) == 100
    assert float(told.headers["x-nebula-cost"]) >= 0
    assert told.headers["x-nebula-rank"] == "0"
    assert "uncached=" in told.headers["x-nebula-cost-terms"]
