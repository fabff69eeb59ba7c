"""The gateway stops without cutting a reply within the grace, and without waiting for nothing."""

import json

import anyio
import httpx
import pytest
from tests.gateway.conftest import MODEL, OpenGateway, simulate
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import LAST_CHUNK, STREAM_HEAD, Line, Upstream, chunk, event
from tests.gateway.wait import until

from nebula_router.bench.reply import Reply, fault

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
STREAMS = 20
SOON_S = 5.0
EVENTS = 16_000


def ask(model: str, tokens: int = 16) -> bytes:
    messages = [{"role": "user", "content": "x"}]
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens}
    return json.dumps({"model": model, "messages": messages, **options}).encode()


async def test_streams_finish_whole_and_nothing_new_begins(open_gateway: OpenGateway) -> None:
    replies: list[Reply] = []
    sim = simulate()

    async def stream() -> None:
        async with connect(gateway.port) as client:
            await client.post(CHAT, ask(MODEL, 600), "x-sim-checksum: 1")
            replies.append(await client.reply())

    try:
        async with open_gateway("--engine", sim.url, "--grace-s", "20", path="/ready") as gateway:
            await until("its model", lambda: serves(gateway, MODEL))
            idle = httpx.AsyncClient(base_url=gateway.url, trust_env=False)
            await idle.get("/health")
            async with anyio.create_task_group() as group, connect(gateway.port):
                for _ in range(STREAMS):
                    group.start_soon(stream)
                await until("streams", lambda: running(gateway, STREAMS))
                gateway.terminate()
                await until("no readiness", lambda: not_ready(gateway))
                assert (await gateway.http.get("/health")).status_code == 200
                refused = await gateway.http.post(CHAT, content=ask(MODEL))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, 503)
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.headers["connection"] == "close"
                assert replies == []
            # The idle connections are still there, and keep nobody waiting.
            assert await gateway.ended(SOON_S) == 0
            await idle.aclose()
    finally:
        sim.stop()
    assert [(reply.done, fault(reply.body)) for reply in replies] == [(True, None)] * STREAMS


async def serves(gateway: Gateway, model: str) -> bool:
    return (await gateway.http.get(f"/v1/models/{model}")).status_code == 200


async def running(gateway: Gateway, count: int) -> bool:
    return await gateway.metric("nebula_running_requests") == count


async def not_ready(gateway: Gateway) -> bool:
    return (await gateway.http.get("/ready")).status_code == 503


class Endless:
    """An engine that begins and never ends."""

    def __init__(self, *first: bytes) -> None:
        self.first = first
        self.gone = anyio.Event()

    async def __call__(self, line: Line) -> None:
        await line.send(*self.first)
        await line.gone()
        self.gone.set()


async def test_beyond_the_grace_each_client_is_told(open_gateway: OpenGateway) -> None:
    begun, torn, silent = Upstream(), Upstream(), Upstream()
    begun.answer = Endless(STREAM_HEAD, chunk(event(a=1)))
    torn.answer = Endless(STREAM_HEAD, chunk(event(a=1) + b"data: {"))
    silent.answer = Endless()
    async with (
        open_gateway("--grace-s", "0.3", "--idle-timeout-s", "60") as gateway,
        gateway.serving(begun, torn, silent),
        connect(gateway.port) as a,
        connect(gateway.port) as b,
        connect(gateway.port) as c,
    ):
        for client, upstream in ((a, begun), (b, torn), (c, silent)):
            await client.post(CHAT, ask(upstream.model))
        await until("all of them at work", lambda: running(gateway, 3))
        of_a, of_b = await a.begun(after=event(a=1)), await b.begun(after=b"data: {")
        gateway.terminate()
        assert cut(await a.reply(of_a)) == event(a=1)
        assert cut(await b.reply(of_b)) == event(a=1) + b"data: {\n\n"
        refused = await c.reply()
        assert (refused.status, refused.done) == (503, True)
        assert json.loads(refused.body)["error"]["code"] == 503
        assert await gateway.ended(SOON_S) == 0
        for upstream in (begun, torn, silent):
            assert isinstance(upstream.answer, Endless)
            with anyio.fail_after(SOON_S):
                await upstream.answer.gone.wait()


async def test_beyond_the_grace_a_messages_client_is_told_in_its_own_protocol(open_gateway: OpenGateway) -> None:
    upstream = Upstream(answer=Endless(STREAM_HEAD, chunk(event(a=1))))
    async with (
        open_gateway("--grace-s", "0.3", "--idle-timeout-s", "60") as gateway,
        gateway.serving(upstream),
        connect(gateway.port) as client,
    ):
        await client.post("/v1/messages", ask(upstream.model))
        begun = await client.begun(after=event(a=1))
        gateway.terminate()
        reply = await client.reply(begun)
        before, _, frame = bytes(reply.body).rpartition(b"event: error\ndata: ")
        assert (before, json.loads(frame)["type"]) == (event(a=1), "error")
        assert await gateway.ended(SOON_S) == 0


def cut(reply: Reply) -> bytes:
    """What came before the one error frame at the end of a stream."""
    assert (reply.status, reply.done) == (200, True)
    before, _, frame = bytes(reply.body).rpartition(b"data: ")
    assert json.loads(frame)["error"]["code"] == 503
    assert frame.endswith(b"\n\n")
    assert b'"error"' not in before
    return before


async def test_a_reader_that_is_slow_gets_all_of_its_reply_within_the_grace(open_gateway: OpenGateway) -> None:
    """What the engine has sent long ago still has to reach the client when the gateway stops."""
    body = chunk(event(text="x" * 1000)) * EVENTS

    async def quick(line: Line) -> None:
        await line.send(STREAM_HEAD, body, chunk(b"data: [DONE]\n\n"), LAST_CHUNK)

    upstream = Upstream(answer=quick)
    async with (
        open_gateway("--grace-s", "20", "--idle-timeout-s", "60") as gateway,
        gateway.serving(upstream),
        connect(gateway.port) as client,
    ):
        await client.post(CHAT, ask(upstream.model))
        reply = await client.begun(after=b"\n\n")
        while (await gateway.http.get("/health")).json()["inflight"]:
            reply.feed(await client.read())
        # The engine is done; the system's buffers are full, and the gateway has the rest.
        gateway.terminate()
        await anyio.sleep(1)
        await client.reply(reply)
        assert reply.done
        assert reply.body == event(text="x" * 1000) * EVENTS + b"data: [DONE]\n\n"
        assert await gateway.ended(SOON_S) == 0


async def test_a_second_signal_ends_the_wait(open_gateway: OpenGateway) -> None:
    upstream = Upstream(answer=Endless(STREAM_HEAD, chunk(event(a=1))))
    async with (
        open_gateway("--grace-s", "600", "--idle-timeout-s", "60") as gateway,
        gateway.serving(upstream),
        connect(gateway.port) as client,
    ):
        await client.post(CHAT, ask(upstream.model))
        assert await client.read()
        gateway.terminate()
        await until("no readiness", lambda: not_ready(gateway))
        gateway.terminate()
        assert await gateway.ended(SOON_S) == 0
