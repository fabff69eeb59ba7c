"""A stream passes byte for byte, as soon as its bytes are there."""

import json

import anyio
import httpx
import pytest
from tests.gateway.conftest import MODEL
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import LAST_CHUNK, STREAM_HEAD, Line, Upstream, answer, chunk, event

from nebula_router.bench.reply import Reply, fault
from nebula_router.core import Sim

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
# Everything that a server may send: comments, names, ids, retry, CRLF, several data lines, usage, text of many bytes.
STREAM = (
    b": a comment\n\n"
    b'event: token\nid: 1\nretry: 10\ndata: {"a":"h\xc3\xa9 \xf0\x9f\x98\x80"}\n\n'
    b"data: one\ndata: two\r\n\r\n"
    b":\n\n"
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)


def ask(model: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": "Tell me a story."}]
    return json.dumps(
        {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **more}
    ).encode()


async def streamed(port: int, body: bytes, *headers: str) -> Reply:
    async with connect(port) as client:
        await client.post(CHAT, body, *headers)
        return await client.reply()


@pytest.mark.parametrize("size", [1, 3, 64, len(STREAM)])
async def test_a_stream_in_any_split_passes_byte_for_byte(size: int, gateway: Gateway, upstream: Upstream) -> None:
    pieces = [chunk(STREAM[at : at + size]) for at in range(0, len(STREAM), size)]
    upstream.answer = answer(STREAM_HEAD, *pieces, LAST_CHUNK)
    reply = await streamed(gateway.port, ask(upstream.model))
    assert (reply.status, reply.done, bytes(reply.body)) == (200, True, STREAM)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_a_stream_that_ends_with_its_connection_passes(gateway: Gateway, upstream: Upstream) -> None:
    async def until_close(line: Line) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", STREAM[:40], STREAM[40:])
        line.writer.close()

    upstream.answer = until_close
    reply = await streamed(gateway.port, ask(upstream.model))
    assert (reply.done, bytes(reply.body)) == (True, STREAM)


async def test_what_the_engine_counted_is_in_the_metrics(gateway: Gateway, upstream: Upstream) -> None:
    upstream.answer = answer(STREAM_HEAD, chunk(STREAM), LAST_CHUNK)
    await streamed(gateway.port, ask(upstream.model))
    await gateway.await_rest()
    assert await gateway.metric("nebula_prompt_tokens_total", engine=upstream.name) == 7
    assert await gateway.metric("nebula_cached_tokens_total", engine=upstream.name) == 4


async def test_each_event_arrives_before_the_next_is_sent(gateway: Gateway, upstream: Upstream) -> None:
    arrived = [anyio.Event() for _ in range(3)]

    async def one_by_one(line: Line) -> None:
        await line.send(STREAM_HEAD)
        for number, seen in enumerate(arrived):
            await line.send(chunk(event(number=number)))
            await seen.wait()
        await line.send(LAST_CHUNK)

    upstream.answer = one_by_one
    async with gateway.http.stream("POST", CHAT, content=ask(upstream.model)) as reply:
        number = 0
        async for data in reply.aiter_raw():
            assert data == event(number=number)
            arrived[number].set()
            number += 1
    assert number == 3


@pytest.mark.parametrize(
    "usage", [None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
async def test_a_simulated_engines_stream_carries_the_sum_of_its_bytes(
    usage: dict[str, bool] | None, gateway: Gateway
) -> None:
    options = {"stream_options": usage} if usage else {}
    bodies = [ask(MODEL, max_tokens=tokens, **options) for tokens in (1, 50, 400)]
    for body in bodies:
        reply = await streamed(gateway.port, body, "x-sim-checksum: 1")
        assert reply.done
        assert fault(reply.body) is None


async def test_a_stream_through_the_gateway_equals_the_engines_own(gateway: Gateway, sims: list[Sim]) -> None:
    body = ask(MODEL, max_tokens=40, stream_options={"include_usage": True})
    headers = {"x-request-id": "one", "content-type": "application/json"}
    async with httpx.AsyncClient(trust_env=False) as http:
        direct = await http.post(f"{sims[0].url}{CHAT}", content=body, headers=headers)
    through = await gateway.http.post(CHAT, content=body, headers=headers)
    assert told(through.text) == told(direct.text)


def told(stream: str) -> list[object]:
    """Its events, without the second of their birth."""
    data = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert data.pop() == "[DONE]"
    return [{**json.loads(line), "created": 0} for line in data]


async def test_many_streams_at_once_lose_no_byte(gateway: Gateway) -> None:
    faults: list[str | None] = []

    async def one(number: int) -> None:
        body = ask(MODEL, max_tokens=100, messages=[{"role": "user", "content": f"{number} " * 100}])
        faults.append(fault((await streamed(gateway.port, body, "x-sim-checksum: 1")).body))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(one, number)
    assert faults == [None] * 100


async def test_one_connection_serves_one_request_after_the_other(gateway: Gateway, upstream: Upstream) -> None:
    upstream.answer = answer(STREAM_HEAD, chunk(STREAM), LAST_CHUNK)
    async with connect(gateway.port) as client:
        for _ in range(3):
            await client.post(CHAT, ask(upstream.model))
            assert bytes((await client.reply()).body) == STREAM
            await client.post(CHAT, b"{")
            assert (await client.reply()).status == 400
    assert len(upstream.seen) == 3
