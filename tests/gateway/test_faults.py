"""An engine that fails costs its client as little as can be: a retry, or one clear error."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from tests.e2e.process import free_port
from tests.gateway.conftest import fault, simulate
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import (
    JSON_REPLY,
    LAST_CHUNK,
    STREAM_HEAD,
    Answer,
    Line,
    Upstream,
    answer,
    answer_json,
    chunk,
    event,
    whole,
)
from tests.gateway.wait import until

from nebula_router.bench.reply import fault as stream_fault
from nebula_router.core import Sim

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
LARGE = 2 * 1024 * 1024
BUSY = answer(whole(b'{"error":"busy"}', status="503 Service Unavailable"))


def ask(model: str, *, stream: bool, tokens: int = 20) -> bytes:
    messages = [{"role": "user", "content": "x"}]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": stream, "max_tokens": tokens}
    # The engine's checksum is one of all that it sends, so nothing of that may be taken out.
    return json.dumps(body | ({"stream_options": {"include_usage": True}} if stream else {})).encode()


def dies_after(*parts: bytes) -> Answer:
    async def dies(line: Line) -> None:
        await line.send(*parts)
        # What was sent is on its way before the end.
        await anyio.sleep(0.02)
        line.writer.close()

    return dies


async def reset(line: Line) -> None:
    line.cut()


TORN_WHOLE = whole(JSON_REPLY)[:-5]
TORN_CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
async def pair(gateway: Gateway) -> AsyncIterator[tuple[Upstream, Upstream]]:
    """Two engines with one model."""
    bad, good = Upstream(), Upstream()
    async with gateway.serving(bad, good, model=bad.model):
        yield bad, good


@pytest.mark.parametrize(
    "failure",
    [
        reset,
        dies_after(),
        dies_after(b"HTTP/1.1 200 OK\r\ncontent-"),
        dies_after(TORN_WHOLE),
        dies_after(STREAM_HEAD),
        BUSY,
    ],
    ids=["reset", "closed", "torn head", "torn whole reply", "head and no byte", "503"],
)
async def test_a_failure_before_the_first_byte_is_tried_again_elsewhere(
    failure: Answer, gateway: Gateway, pair: tuple[Upstream, Upstream]
) -> None:
    bad, good = pair
    bad.answer = failure
    # Equal engines take turns by chance: enough requests meet the bad one.
    for _ in range(20):
        reply = await gateway.http.post(CHAT, content=ask(bad.model, stream=False), headers={"x-request-id": "same"})
        assert (reply.status_code, reply.content) == (200, JSON_REPLY)
        assert reply.headers["x-nebula-engine"] == good.name
        await gateway.await_engines(bad, good)
        if bad.seen:
            break
    assert bad.seen
    assert bad.seen[0].body == good.seen[-1].body
    assert bad.seen[0].one("x-request-id") == good.seen[-1].one("x-request-id") == "same"
    assert await gateway.metric("nebula_retries_total", engine=bad.name) == len(bad.seen)


async def test_an_engine_that_refuses_connections_is_left_alone_until_it_is_back(gateway: Gateway) -> None:
    port, model = free_port(), "restarts"
    first, other = simulate(f"127.0.0.1:{port}", model), simulate(model=model)
    name = first.url.removeprefix("http://")
    try:
        for sim in (first, other):
            (await gateway.http.post("/admin/engines", json={"url": sim.url})).raise_for_status()
        await until("both to be known", lambda: serves(gateway, model, 2))
        first.stop()
        for _ in range(10):
            reply = await gateway.http.post(CHAT, content=ask(model, stream=False))
            assert (reply.status_code, "http://" + reply.headers["x-nebula-engine"]) == (200, other.url)
        await until("it to be seen down", lambda: status(gateway, name, "down"))
        assert await gateway.metric("nebula_engine_up", engine=name) == 0
        assert (await gateway.http.get(f"/v1/models/{model}")).status_code == 200
        first = simulate(f"127.0.0.1:{port}", model)
        await until("it to be back", lambda: status(gateway, name, "ready"))
        await until("it to serve", lambda: served_by(gateway, model, name))
    finally:
        for sim in (first, other):
            await gateway.http.delete(f"/admin/engines/{sim.url.removeprefix('http://')}")
            sim.stop()


async def serves(gateway: Gateway, model: str, count: int) -> bool:
    return sum(model in engine["models"] for engine in (await gateway.engines()).values()) == count


async def status(gateway: Gateway, engine: str, wanted: str) -> bool:
    seen: str = (await gateway.engines())[engine]["status"]
    return seen == wanted


async def served_by(gateway: Gateway, model: str, engine: str) -> bool:
    prompt = {"model": model, "prompt": f"{anyio.current_time()}" * 40, "max_tokens": 1}
    reply = (await gateway.http.post("/v1/completions", json=prompt)).raise_for_status()
    return reply.headers["x-nebula-engine"] == engine


async def test_an_engine_that_hangs_altogether_gives_its_requests_up(
    gateway: Gateway, pair: tuple[Upstream, Upstream]
) -> None:
    bad, good = pair
    replies = []

    async def hangs(line: Line) -> None:
        bad.healthy = False
        await line.gone()

    bad.answer = hangs

    async def one() -> None:
        replies.append(await gateway.http.post(CHAT, content=ask(bad.model, stream=False)))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(one)
    assert bad.seen
    assert {(reply.status_code, reply.headers["x-nebula-engine"]) for reply in replies} == {(200, good.name)}
    await until("it to be down", lambda: status(gateway, bad.name, "down"))
    bad.healthy = True
    await until("it to be back", lambda: status(gateway, bad.name, "ready"))


@pytest.mark.parametrize("alone", [reset, dies_after(TORN_WHOLE), dies_after(TORN_CHUNKED)])
async def test_a_failure_that_nobody_can_mend_is_a_502(alone: Answer, gateway: Gateway, upstream: Upstream) -> None:
    upstream.answer = alone
    reply = await gateway.http.post(CHAT, content=ask(upstream.model, stream=False))
    assert reply.status_code == 502
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("BadGatewayError", 502)
    assert upstream.name in error["message"]


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ((event(a=1),), event(a=1)),
        ((event(a=1), b'data: {"b": "to'), event(a=1) + b'data: {"b": "to\n\n'),
        ((event(a=1), b"data: 5\n"), event(a=1) + b"data: 5\n\n\n"),
    ],
    ids=["between events", "in an event", "at the end of a line"],
)
async def test_an_engine_that_dies_in_a_stream_ends_it_with_one_error(
    sent: tuple[bytes, ...], arrives: bytes, gateway: Gateway, upstream: Upstream
) -> None:
    upstream.answer = dies_after(STREAM_HEAD, *map(chunk, sent))
    async with connect(gateway.port) as client:
        await client.post(CHAT, ask(upstream.model, stream=True))
        reply = await client.reply()
    assert reply.status == 200
    assert reply.done
    before, frame = bytes(reply.body[: len(arrives)]), bytes(reply.body[len(arrives) :])
    assert before == arrives
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    error = json.loads(frame.removeprefix(b"data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("BadGatewayError", 502)
    assert len(upstream.seen) == 1


async def test_an_engine_that_falls_silent_in_a_stream_ends_it_with_one_error(
    gateway: Gateway, upstream: Upstream
) -> None:
    gone = anyio.Event()

    async def silent(line: Line) -> None:
        await line.send(STREAM_HEAD, chunk(event(a=1)))
        await line.gone()
        gone.set()

    upstream.answer = silent
    async with connect(gateway.port) as client:
        await client.post(CHAT, ask(upstream.model, stream=True))
        reply = await client.reply()
    assert reply.done
    error = json.loads(reply.body.removeprefix(event(a=1)).removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("GatewayTimeoutError", 504)
    assert "1500 ms" in error["message"]
    with anyio.fail_after(5):
        await gone.wait()


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_long_reply_that_is_torn_is_never_taken_for_whole(
    framing: str, gateway: Gateway, upstream: Upstream
) -> None:
    body = b"x" * LARGE
    if framing == "length":
        upstream.answer = dies_after(whole(body)[:-1000])
    else:
        upstream.answer = dies_after(TORN_CHUNKED, chunk(body))
    async with connect(gateway.port) as client:
        await client.post(CHAT, ask(upstream.model, stream=False))
        reply = await client.reply()
    assert (reply.status, reply.done) == (200, False)
    await gateway.await_rest()
    upstream.answer = answer_json
    await gateway.await_engines(upstream)
    assert (await gateway.http.post(CHAT, content=ask(upstream.model, stream=False))).status_code == 200


async def test_an_engine_that_speaks_no_http_is_a_502(gateway: Gateway, upstream: Upstream) -> None:
    upstream.answer = dies_after(b"hello\r\n\r\n")
    assert (await gateway.http.post(CHAT, content=ask(upstream.model, stream=False))).status_code == 502


async def test_a_connection_that_an_engine_closed_meanwhile_is_not_the_clients_problem(
    gateway: Gateway, upstream: Upstream
) -> None:
    async def closes(line: Line) -> None:
        await line.send(whole(JSON_REPLY))
        line.writer.close()

    upstream.answer = closes
    for _ in range(20):
        assert (await gateway.http.post(CHAT, content=ask(upstream.model, stream=False))).status_code == 200
        assert await gateway.metric("nebula_engine_up", engine=upstream.name) == 1


@pytest.mark.parametrize(
    ("kind", "stream"),
    [(kind, stream) for kind in ("reset", "status", "die_mid_stream") for stream in (True, False)]
    + [("hang_mid_stream", True)],
)
async def test_the_faults_of_a_simulated_engine(*, kind: str, stream: bool, gateway: Gateway, faulty: Sim) -> None:
    """Alone, each fault is seen for what it is; beside a healthy engine most of them are not seen at all."""
    await fault(faulty.url, kind, count=1, after_chunks=3, status=503)
    body = ask("faulty", stream=stream)
    async with connect(gateway.port) as client:
        await client.post(CHAT, body, "x-sim-checksum: 1")
        reply = await client.reply()
    assert reply.done
    expected = {"reset": 502, "status": 503, "die_mid_stream": 502, "hang_mid_stream": 504}[kind]
    if stream and kind.endswith("mid_stream"):
        assert reply.status == 200
        assert stream_fault(reply.body) == "error_frame"
        assert bytes(reply.body).count(b'data: {"error"') == 1
        assert bytes(reply.body).count(b"data: ") == 4
    else:
        assert reply.status == expected
        assert json.loads(reply.body)["error"]["code"] == expected


@pytest.fixture
async def faulty(gateway: Gateway) -> AsyncIterator[Sim]:
    """A simulated engine that may fail: nobody else uses it."""
    sim = simulate(model="faulty")
    name = sim.url.removeprefix("http://")
    try:
        (await gateway.http.post("/admin/engines", json={"url": sim.url})).raise_for_status()
        await until("it to be known", lambda: serves(gateway, "faulty", 1))
        yield sim
    finally:
        await gateway.http.delete(f"/admin/engines/{name}")
        sim.stop()


async def test_a_slow_engine_is_no_failed_engine(gateway: Gateway, faulty: Sim) -> None:
    await fault(faulty.url, "slow", factor=20)
    async with connect(gateway.port) as client:
        await client.post(CHAT, ask("faulty", stream=True, tokens=20), "x-sim-checksum: 1")
        assert stream_fault((await client.reply()).body) is None


async def test_an_engine_that_fails_again_and_again_is_left_alone_for_a_while(
    gateway: Gateway, pair: tuple[Upstream, Upstream]
) -> None:
    bad, good = pair
    bad.answer = answer(whole(b'{"error":"own"}', status="500 Internal Server Error"))
    statuses = [
        (await gateway.http.post("/v1/completions", json={"model": bad.model, "prompt": f"{n}" * 100})).status_code
        for n in range(60)
    ]
    # Five failures in a row open the breaker; then only a trial every 200 ms meets it.
    assert set(statuses) == {200, 500}
    assert statuses.count(500) == len(bad.seen) < 20
    bad.answer = answer_json
    await until("a trial to bring it back", lambda: came_back(gateway, bad), 3)
    assert good.seen


async def came_back(gateway: Gateway, engine: Upstream) -> bool:
    await gateway.http.post("/v1/completions", json={"model": engine.model, "prompt": f"{anyio.current_time()}" * 40})
    return await status(gateway, engine.name, "ready")


async def test_a_reply_in_chunks_without_a_length_passes(gateway: Gateway, upstream: Upstream) -> None:
    upstream.answer = answer(TORN_CHUNKED, chunk(JSON_REPLY[:10]), chunk(JSON_REPLY[10:]), LAST_CHUNK)
    reply = await gateway.http.post(CHAT, content=ask(upstream.model, stream=False))
    assert (reply.status_code, reply.content) == (200, JSON_REPLY)
