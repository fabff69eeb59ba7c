"""What reaches the engine is what the client sent."""

import json
from collections.abc import AsyncIterator

import pytest
from tests.gateway.conftest import MODEL, OpenGateway
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import JSON_REPLY, Upstream

from nebula_router.core import PATHS

pytestmark = pytest.mark.anyio

JSON_PATHS = [path for path in PATHS if path != "/v1/audio/transcriptions"]
PROMPTS = '"messages": [{"role": "user", "content": "h\\u00e9 \\ud83d\\ude00"}], "prompt": [1, 2], "input": "x"'


@pytest.mark.parametrize("path", JSON_PATHS)
async def test_a_json_body_reaches_the_engine_unchanged(path: str, gateway: Gateway, upstream: Upstream) -> None:
    body = f'{{ "unheard_of" : [1.50, 1e3, -0, 12345678901234567890],\n"model":"{upstream.model}", {PROMPTS}\t}}\n'
    async with connect(gateway.port) as client:
        await client.post(f"{path}?a=1&b=%2F&a=2", body.encode(), "content-type: application/json")
        reply = await client.reply()
    assert (reply.status, bytes(reply.body)) == (200, JSON_REPLY)
    assert [(seen.target, seen.body.decode()) for seen in upstream.seen] == [(f"{path}?a=1&b=%2F&a=2", body)]
    assert upstream.seen[0].one("content-length") == str(len(body))


@pytest.mark.parametrize(
    "content_type",
    [None, "application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", "nonsense"],
)
async def test_json_goes_up_as_json_whatever_the_client_called_it(
    content_type: str | None, gateway: Gateway, upstream: Upstream
) -> None:
    body = json.dumps({"model": upstream.model, "prompt": "x"}).encode()
    async with connect(gateway.port) as client:
        await client.post("/v1/completions", body, *([f"content-type: {content_type}"] if content_type else []))
        assert (await client.reply()).status == 200
    assert upstream.seen[0].one("content-type") == "application/json"
    assert upstream.seen[0].body == body


async def test_a_body_in_chunks_arrives_whole(gateway: Gateway, upstream: Upstream) -> None:
    body = json.dumps({"model": upstream.model, "prompt": "x" * 300_000}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 10_007):
            yield body[at : at + 10_007]

    reply = await gateway.http.post("/v1/completions", content=pieces())
    assert reply.status_code == 200
    assert upstream.seen[0].body == body
    assert upstream.seen[0].one("transfer-encoding") is None


def multipart(model: str, *, first: bool) -> bytes:
    audio = bytes(range(256)) * 40 + b'\r\n\r\nname="model"\r\n\r\nnot-this-one\r\n--'
    fields = [
        f'Content-Disposition: form-data; name="model"\r\n\r\n{model}'.encode(),
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n' + audio,
    ]
    parts = b"".join(b"--b0und\r\n" + part + b"\r\n" for part in (fields if first else fields[::-1]))
    return parts + b"--b0und--\r\n"


@pytest.mark.parametrize("first", [True, False], ids=["model first", "model last"])
async def test_an_upload_passes_byte_for_byte_and_is_routed_by_its_model(
    *, first: bool, gateway: Gateway, upstream: Upstream
) -> None:
    body = multipart(upstream.model, first=first)
    headers = {"content-type": "multipart/form-data; boundary=b0und"}
    reply = await gateway.http.post("/v1/audio/transcriptions", content=body, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["x-nebula-engine"] == upstream.name
    assert upstream.seen[0].body == body
    assert upstream.seen[0].one("content-type") == headers["content-type"]


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ('{"kv_transfer_params": {"a": [1, {"b": "}"}]}, "n": 1.0, MODEL}', '{ "n": 1.0, MODEL}'),
        ('{MODEL, "n": 1.0 ,"kv_transfer_params":"\\"}" }', '{MODEL, "n": 1.0  }'),
        ('{MODEL, "kv_transfer_params": 5, "n": 1.0}', '{MODEL, "n": 1.0}'),
        ('{MODEL, "kv\\u005ftransfer_params": {"x": 1}}', "{MODEL}"),
        ('{MODEL,"x":{"kv_transfer_params":1},"y":"kv_transfer_params"}', None),
    ],
    ids=["first", "last", "between", "escaped key", "deeper or as text: not ours"],
)
async def test_a_clients_own_kv_transfer_params_never_reach_an_engine(
    sent: str, arrives: str | None, gateway: Gateway, upstream: Upstream
) -> None:
    model = f'"model":"{upstream.model}","prompt":"x"'
    await gateway.http.post("/v1/completions", content=sent.replace("MODEL", model))
    assert upstream.seen[0].body.decode() == (arrives or sent).replace("MODEL", model)


async def test_a_lone_field_leaves_an_empty_object_and_a_lone_model_needs_no_name(
    open_gateway: OpenGateway,
) -> None:
    upstream = Upstream()
    async with open_gateway() as gateway, gateway.serving(upstream):
        for body in (b'{"kv_transfer_params": 1}', b" { } "):
            assert (await gateway.http.post("/tokenize", content=body)).status_code == 200
        assert [seen.body for seen in upstream.seen] == [b"{}", b" { } "]


async def test_a_trusted_client_may_send_kv_transfer_params(open_gateway: OpenGateway) -> None:
    upstream = Upstream()
    async with open_gateway("--trust-kv-transfer-params") as gateway, gateway.serving(upstream):
        body = b'{"prompt":"x", "kv_transfer_params": {"do_remote_decode": true}}'
        await gateway.http.post("/v1/completions", content=body)
        assert upstream.seen[0].body == body


async def test_an_alias_becomes_the_models_name_and_nothing_else_changes(gateway: Gateway, upstream: Upstream) -> None:
    reply = await gateway.http.post("/v1/completions", content=b'{"model":"short", "prompt":"short", "max_tokens":1}')
    assert reply.status_code == 200
    assert reply.json()["model"] == MODEL
    assert upstream.seen == []


async def test_an_alias_is_resolved_in_the_clients_own_bytes(open_gateway: OpenGateway) -> None:
    upstream = Upstream(model='vendor/"big"')
    aliases = {"NEBULA_GATEWAY__MODEL_ALIASES": json.dumps({"gpt-4o": upstream.model})}
    async with open_gateway(**aliases) as gateway, gateway.serving(upstream):
        sent = b'{"prompt":"gpt-4o","model" : "gpt\\u002d4o", "kv_transfer_params":1,"n":1.0}'
        assert (await gateway.http.post("/v1/completions", content=sent)).status_code == 200
        assert upstream.seen[0].body == b'{"prompt":"gpt-4o","model" : "vendor/\\"big\\"","n":1.0}'
        upload = {"content-type": "multipart/form-data; boundary=b0und"}
        await gateway.http.post("/v1/audio/transcriptions", content=multipart("gpt-4o", first=False), headers=upload)
        assert upstream.seen[1].body == multipart(upstream.model, first=False)
        listed = (await gateway.http.get("/v1/models")).json()["data"]
        assert {model["id"] for model in listed} == {"gpt-4o", upstream.model}
