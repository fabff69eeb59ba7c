"""A client that leaves ends its request in the engine at once, and leaves no load behind."""

import json

import anyio
import pytest
from tests.gateway.conftest import MODEL
from tests.gateway.process import Gateway
from tests.gateway.raw import connect, head
from tests.gateway.upstream import JSON_REPLY, STREAM_HEAD, Line, Upstream, answer_json, chunk, event, whole
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
WITHIN_S = 0.1
"""What the gateway promises; met on a quiet machine. Here only the best of some tries has to meet it."""
TRIES = 3


class Departure:
    """An engine's view of a client that leaves."""

    def __init__(self, *first: bytes) -> None:
        self.first = first
        self.here = anyio.Event()
        self.gone = anyio.Event()
        self.at = 0.0

    async def __call__(self, line: Line) -> None:
        await line.send(*self.first)
        self.here.set()
        await line.gone()
        self.at = anyio.current_time()
        self.gone.set()


def ask(model: str, text: str = "x" * 4000) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], "stream": True}).encode()


@pytest.mark.parametrize(
    "first",
    [
        (),
        (STREAM_HEAD,),
        (STREAM_HEAD, chunk(event(a=1))),
        (whole(JSON_REPLY)[:-5],),
    ],
    ids=["before the head", "before the first byte", "in the middle of a stream", "in the middle of a whole reply"],
)
async def test_the_engine_learns_at_once(first: tuple[bytes, ...], gateway: Gateway, upstream: Upstream) -> None:
    took = []
    for _ in range(TRIES):
        upstream.answer = departure = Departure(*first)
        async with connect(gateway.port) as client:
            await client.post(CHAT, ask(upstream.model))
            with anyio.fail_after(10):
                await departure.here.wait()
            if len(first) == 2:
                assert (await client.read()).startswith(b"HTTP/1.1 200")
            await until("it is booked", lambda: booked(gateway, upstream))
            client.leave()
            left = anyio.current_time()
            with anyio.fail_after(10):
                await departure.gone.wait()
        took.append(departure.at - left)
        await gateway.await_rest()
    print("gone after", took)  # noqa: T201 - the figure is the promise
    assert min(took) < WITHIN_S
    assert (await gateway.engines())[upstream.name]["status"] == "ready"
    upstream.answer = answer_json
    assert (await gateway.http.post(CHAT, content=ask(upstream.model))).status_code == 200
    await until("the departures are counted", lambda: departed(gateway, upstream, TRIES))


async def booked(gateway: Gateway, upstream: Upstream) -> bool:
    return await gateway.metric("nebula_running_requests", engine=upstream.name) == 1


async def departed(gateway: Gateway, upstream: Upstream, times: int) -> bool:
    counts = [
        await gateway.metric("nebula_requests_total", engine=upstream.name, status=status) for status in ("499", "200")
    ]
    return sum(count or 0 for count in counts) == times + 1


async def test_a_client_that_leaves_in_its_own_body_reaches_no_engine(gateway: Gateway, upstream: Upstream) -> None:
    body = ask(upstream.model)
    for framing in (f"content-length: {len(body)}", "transfer-encoding: chunked"):
        async with connect(gateway.port) as client:
            start = b"%x\r\n" % len(body) if "chunked" in framing else b""
            await client.send(head(CHAT, framing) + start + body[:1000])
            client.leave()
    await gateway.await_rest()
    assert (await gateway.http.post(CHAT, content=body)).status_code == 200
    assert len(upstream.seen) == 1


async def test_a_client_that_leaves_while_its_body_goes_up(gateway: Gateway, upstream: Upstream) -> None:
    departure, reached, released = Departure(), anyio.Event(), anyio.Event()
    upstream.reads_body = False

    async def stuck(line: Line) -> None:
        reached.set()
        line.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await released.wait()
        line.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await departure(line)

    upstream.answer = stuck
    async with connect(gateway.port) as client:
        await client.post(CHAT, ask(upstream.model, "x" * 16_000_000))
        with anyio.fail_after(10):
            await reached.wait()
        client.leave()
    await gateway.await_rest()
    released.set()
    with anyio.fail_after(10):
        await departure.gone.wait()


async def test_many_clients_that_leave_a_simulated_engine(gateway: Gateway) -> None:
    async def leaves() -> None:
        body = json.loads(ask(MODEL)) | {"max_tokens": 20_000}
        async with connect(gateway.port) as client:
            await client.post(CHAT, json.dumps(body).encode())
            assert await client.read()
            client.leave()

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(leaves)
    await gateway.await_rest()
    assert {engine["status"] for engine in (await gateway.engines()).values()} == {"ready"}
