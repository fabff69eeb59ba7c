"""Every request that cannot work is refused with OpenAI's error body, and says why."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from tests.gateway.conftest import MODEL, OpenGateway
from tests.gateway.process import Gateway
from tests.gateway.raw import Client, connect, head
from tests.gateway.upstream import Line, Upstream, answer, answer_json, whole
from tests.gateway.wait import until

from nebula_router.bench.reply import Reply

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HUGE = 100 * 1024 * 1024


def error(reply: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The body's error, which must be OpenAI's."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert list(body) == ["error"]
    detail: dict[str, Any] = body["error"]
    assert set(detail) == {"message", "type", "param", "code"}
    assert (detail["code"], detail["type"]) == (status, kind)
    return detail


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        (CHAT, b"", None, "empty"),
        (CHAT, b"   ", None, "JSON"),
        (CHAT, b"{", None, "JSON"),
        (CHAT, b'{"model": nope}', None, "JSON"),
        (CHAT, b"[]", None, "object"),
        (CHAT, b'"text"', None, "object"),
        (CHAT, b"null", None, "object"),
        (CHAT, b'{"model":"tiny","messages":[]} x', None, "after"),
        (CHAT, b'{"model":"tiny","messages":[]}{}', None, "after"),
        (CHAT, b'{"model":5,"messages":[]}', "model", "string"),
        (CHAT, b'{"model":["tiny"],"messages":[]}', "model", "string"),
        (CHAT, b'{"model":"tiny","messages":"x"}', "messages", "list"),
        (CHAT, b'{"model":"tiny","messages":[5]}', "messages[0]", "messages"),
        (CHAT, b'{"model":"tiny"}', "messages", "required"),
        (CHAT, b'{"model":"tiny","messages":null}', "messages", "required"),
        (COMPLETIONS, b'{"model":"tiny"}', "prompt", "required"),
        (CHAT, b'{"messages":[]}', "model", "required"),
        (CHAT, b'{"model":"","messages":[]}', "model", "required"),
        (CHAT, b'{"model":"a","model":"b","messages":[]}', None, "model"),
        (CHAT, b'{"model":"tiny","messages":[{"role":"user","content":"\xff\xfe"}]}', None, "UTF-8"),
        (CHAT, b"\x1f\x8b\x08\x00", None, "UTF-8"),
        ("/v1/audio/transcriptions", b'{"model":"tiny"}', None, "multipart"),
    ],
)
@pytest.mark.usefixtures("upstream")  # a second model, so that it must be named
async def test_a_body_that_cannot_be_read(path: str, body: bytes, param: str, says: str, gateway: Gateway) -> None:
    reply = await gateway.http.post(path, content=body, headers={"content-type": "application/json"})
    detail = error(reply, 400, "BadRequestError")
    assert says in detail["message"]
    assert detail["param"] == param


@pytest.mark.parametrize("field", ["x", "messages", "tools", "cache_salt", "kv_transfer_params"])
async def test_json_that_is_nested_deep_harms_nobody(field: str, gateway: Gateway, upstream: Upstream) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    value = b'[{"role":"user","content":' + deep + b"}]" if field == "messages" else deep
    body = b'{"model":"%s","%s":%s,"messages":[]}' % (upstream.model.encode(), field.encode(), value)
    body = body.replace(b',"messages":[]', b"") if field == "messages" else body
    assert (await gateway.http.post(CHAT, content=body)).status_code == 200


async def test_an_unknown_model_names_the_known_ones(gateway: Gateway) -> None:
    reply = await gateway.http.post(CHAT, json={"model": "nobody", "messages": []})
    detail = error(reply, 404, "NotFoundError")
    assert detail["param"] == "model"
    assert "nobody" in detail["message"]
    assert MODEL in detail["message"]


@pytest.mark.parametrize("rank", ["x", "-1", "1.5", "", "99999999999999999999"])
async def test_a_rank_that_is_no_number(rank: str, gateway: Gateway) -> None:
    body = {"model": MODEL, "prompt": "x"}
    reply = await gateway.http.post(COMPLETIONS, json=body, headers={"x-data-parallel-rank": rank})
    assert error(reply, 400, "BadRequestError")["param"].lower() == "x-data-parallel-rank"


async def test_a_rank_is_checked_where_the_ranks_are_known(gateway: Gateway, upstream: Upstream) -> None:
    body, rank = {"model": upstream.model, "prompt": "x"}, {"x-data-parallel-rank": "7"}
    # One rank is what every engine has unless told otherwise: what stands behind it is the engine's business.
    assert (await gateway.http.post(COMPLETIONS, json=body, headers=rank)).status_code == 200
    assert upstream.seen[0].one("x-data-parallel-rank") == "7"
    name = f"/admin/engines/{upstream.name}"
    (await gateway.http.delete(name)).raise_for_status()
    (await gateway.http.post("/admin/engines", json={"url": upstream.url, "ranks": 2})).raise_for_status()
    await gateway.await_engines(upstream)
    refused = await gateway.http.post(COMPLETIONS, json=body, headers=rank)
    assert error(refused, 400, "BadRequestError")["param"].lower() == "x-data-parallel-rank"
    rank["x-data-parallel-rank"] = "1"
    assert (await gateway.http.post(COMPLETIONS, json=body, headers=rank)).status_code == 200
    assert upstream.seen[-1].all("x-data-parallel-rank") == ["1"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_a_method_that_a_path_does_not_have(method: str, gateway: Gateway) -> None:
    reply = await gateway.http.request(method, CHAT)
    error(reply, 405, "MethodNotAllowedError")
    assert reply.headers["allow"] == "POST"


async def test_a_post_to_what_is_only_read(gateway: Gateway) -> None:
    reply = await gateway.http.post("/v1/models", json={})
    error(reply, 405, "MethodNotAllowedError")
    assert "GET" in reply.headers["allow"]


@pytest.mark.parametrize("path", ["/", "/v1/chat", "/v1/chat/completions/x", "/nope?x=1"])
async def test_a_path_that_is_not_there(path: str, gateway: Gateway) -> None:
    detail = error(await gateway.http.post(path, json={}), 404, "NotFoundError")
    assert path.partition("?")[0] in detail["message"]


async def test_a_body_that_is_too_large_by_its_length_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    async with connect(gateway.port) as client:
        await client.send(head(CHAT, f"content-length: {HUGE}", "expect: 100-continue"))
        with anyio.fail_after(2):
            await refused_as_too_large(client)


async def test_a_body_that_is_too_large_by_its_length_is_refused_while_it_is_sent(gateway: Gateway) -> None:
    async with connect(gateway.port) as client:
        await client.send(head(CHAT, f"content-length: {HUGE}") + b"x" * 65_536)
        await refused_as_too_large(client)


async def test_a_body_that_is_too_large_in_chunks(gateway: Gateway) -> None:
    async with connect(gateway.port) as client, anyio.create_task_group() as group:
        group.start_soon(endless_body, client)
        # Who reads while it sends knows at once, and stops.
        begun = await client.begun(after=b"}}")
        group.cancel_scope.cancel()
        await refused_as_too_large(client, begun)


async def endless_body(client: Client) -> None:
    await client.send(head(CHAT, "transfer-encoding: chunked"))
    piece = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    try:
        while True:
            await client.send(piece)
    except ConnectionError:
        pass


async def refused_as_too_large(client: Client, begun: Reply | None = None) -> None:
    reply = await client.reply(begun)
    assert (reply.status, reply.done) == (413, True)
    assert reply.headers["connection"] == "close"
    detail = json.loads(reply.body)["error"]
    assert (detail["code"], detail["type"]) == (413, "RequestTooLargeError")
    assert "64 MB" in detail["message"]


async def test_the_largest_allowed_body_passes(open_gateway: OpenGateway) -> None:
    upstream = Upstream()
    async with open_gateway("--max-body-mb", "1") as gateway, gateway.serving(upstream):
        body = b'{"prompt":"' + b"x" * (1024 * 1024 - 13) + b'"}'
        assert len(body) == 1024 * 1024
        assert (await gateway.http.post(COMPLETIONS, content=body)).status_code == 200
        assert upstream.seen[0].body == body
        error(await gateway.http.post(COMPLETIONS, content=body + b" "), 413, "RequestTooLargeError")


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "422 Unprocessable Entity", "500 Oh No"])
async def test_an_engines_own_error_passes_unchanged(status: str, gateway: Gateway, upstream: Upstream) -> None:
    body = b'{"error": {"message": "h\\u00e9", "type":"Own", "param":null, "code":1.0}}\n'
    upstream.answer = answer(whole(body, "x-own: 1", status=status))
    reply = await gateway.http.post(COMPLETIONS, json={"model": upstream.model, "prompt": "x", "stream": True})
    assert (reply.status_code, reply.content) == (int(status[:3]), body)
    assert reply.headers["x-own"] == "1"
    assert reply.headers["content-type"] == "application/json"
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests"])
async def test_an_overloaded_engines_answer_passes_when_no_other_can_help(
    status: str, gateway: Gateway, upstream: Upstream
) -> None:
    upstream.answer = answer(whole(b'{"detail":"busy"}', status=status))
    reply = await gateway.http.post(COMPLETIONS, json={"model": upstream.model, "prompt": "x"})
    assert (reply.status_code, reply.content) == (int(status[:3]), b'{"detail":"busy"}')
    assert int(reply.headers["retry-after"]) >= 1
    assert len(upstream.seen) == 1


async def test_no_engine_can_take_it_now(gateway: Gateway, upstream: Upstream) -> None:
    (await gateway.http.post(f"/admin/engines/{upstream.name}/drain")).raise_for_status()
    reply = await gateway.http.post(COMPLETIONS, json={"model": upstream.model, "prompt": "x"})
    detail = error(reply, 503, "ServiceUnavailableError")
    assert int(reply.headers["retry-after"]) >= 1
    assert f"{upstream.name} is draining" in detail["message"]


async def test_an_engine_that_says_nothing_in_time(open_gateway: OpenGateway) -> None:
    async def silence(line: Line) -> None:
        await line.gone()

    upstream = Upstream(answer=silence)
    async with open_gateway("--first-byte-timeout-s", "0.2") as gateway, gateway.serving(upstream):
        reply = await gateway.http.post(COMPLETIONS, json={"model": upstream.model, "prompt": "x"})
        assert "200 ms" in error(reply, 504, "GatewayTimeoutError")["message"]
        await gateway.await_rest()


@pytest.fixture
async def strict(open_gateway: OpenGateway) -> AsyncIterator[tuple[Gateway, Upstream]]:
    secrets = {"NEBULA_GATEWAY__API_KEYS": "key-1,key-2", "NEBULA_GATEWAY__ADMIN_TOKEN": "root"}
    upstream = Upstream()
    async with open_gateway("--max-inflight", "1", **secrets) as gateway:
        gateway.http.headers["authorization"] = "Bearer root"
        async with gateway.serving(upstream):
            yield gateway, upstream


async def test_keys_and_limits(strict: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = strict
    body = {"model": upstream.model, "prompt": "x"}
    for wrong in ("", "Bearer", "Bearer key-", "Bearer key-11", "Basic key-1", "key-1", "Bearer root"):
        reply = await gateway.http.post(COMPLETIONS, json=body, headers={"authorization": wrong})
        error(reply, 401, "AuthenticationError")
        assert reply.headers["www-authenticate"] == "Bearer"
        error(await gateway.http.get("/v1/models", headers={"authorization": wrong}), 401, "AuthenticationError")
    assert upstream.seen == []
    for right in ("Bearer key-1", "bearer key-2", "Bearer  key-2"):
        reply = await gateway.http.post(COMPLETIONS, json=body, headers={"authorization": right})
        assert reply.status_code == 200
        assert (await gateway.http.get("/v1/models", headers={"authorization": right})).status_code == 200
    assert [seen.all("authorization") for seen in upstream.seen] == [[]] * 3
    for path in ("/health", "/ready", "/metrics", "/version"):
        assert (await gateway.http.get(path, headers={"authorization": ""})).status_code == 200
    await saturated(gateway, upstream)


async def saturated(gateway: Gateway, upstream: Upstream) -> None:
    """One request in flight is the limit here; the next is refused, and served once the first is over."""
    body, key = {"model": upstream.model, "prompt": "x"}, {"authorization": "Bearer key-1"}
    release = anyio.Event()

    async def held(line: Line) -> None:
        await release.wait()
        await answer_json(line)

    upstream.answer = held
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: gateway.http.post(COMPLETIONS, json=body, headers=key))
        await until("a request in flight", lambda: len(upstream.seen) == 4)
        # Connections are no requests: none of these keeps the probes of an orchestrator out.
        async with connect(gateway.port), connect(gateway.port), connect(gateway.port):
            refused = await gateway.http.post(COMPLETIONS, json=body, headers=key)
            assert "limit" in error(refused, 429, "RateLimitError")["message"]
            assert int(refused.headers["retry-after"]) >= 1
            assert (await gateway.http.get("/health")).json()["inflight"] == 1
        release.set()
    await gateway.await_rest()
    assert (await gateway.http.post(COMPLETIONS, json=body, headers=key)).status_code == 200


async def test_without_a_token_the_admin_paths_are_for_this_machine(gateway: Gateway) -> None:
    assert (await gateway.http.get("/admin/engines")).status_code == 200


async def test_the_admin_token_is_asked_for(strict: tuple[Gateway, Upstream]) -> None:
    gateway, upstream = strict
    requests = [
        ("GET", "/admin/engines"),
        ("POST", "/admin/engines"),
        ("DELETE", f"/admin/engines/{upstream.name}"),
        ("POST", f"/admin/engines/{upstream.name}/drain"),
        ("POST", f"/admin/engines/{upstream.name}/resume"),
    ]
    for method, path in requests:
        for wrong in ("", "Bearer key-1", "Bearer roo"):
            reply = await gateway.http.request(method, path, headers={"authorization": wrong})
            error(reply, 401, "AuthenticationError")
    assert list(await gateway.engines()) == [upstream.name]
