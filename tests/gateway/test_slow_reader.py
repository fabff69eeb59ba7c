"""A client that does not read costs no memory, and holds nobody else up."""

import json

import anyio
import psutil
import pytest
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import LAST_CHUNK, STREAM_HEAD, Line, Upstream, chunk
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

MB = 1024 * 1024
PIECES = 200
PIECE = b": " + b"x" * (MB - 4) + b"\n\n"


async def test_a_client_that_reads_nothing_costs_no_memory(gateway: Gateway, upstream: Upstream) -> None:
    sent = 0
    over = anyio.Event()

    async def much(line: Line) -> None:
        nonlocal sent
        await line.send(STREAM_HEAD)
        for _ in range(PIECES):
            await line.send(chunk(PIECE))
            sent += 1
        await line.send(LAST_CHUNK)
        over.set()

    async def stalled() -> bool:
        before = sent
        await anyio.sleep(0.2)
        return 0 < sent == before

    upstream.answer = much
    process = psutil.Process(gateway.pid)
    body = json.dumps({"model": upstream.model, "messages": [], "stream": True}).encode()
    async with connect(gateway.port) as client:
        before = process.memory_info().rss
        await client.post("/v1/chat/completions", body)
        assert await client.read(100)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until("the engine to be held up", stalled)
        grown = process.memory_info().rss - before
        print("grown by", grown, "after", sent, "MB")  # noqa: T201 - the figure is the promise
        assert sent < PIECES
        assert grown < 8 * MB
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        received = 0
        while not over.is_set() or received < PIECES * MB:
            received += len(await client.read(MB))
            assert process.memory_info().rss - before < 24 * MB
    await gateway.await_rest()


async def test_a_client_that_reads_nothing_and_leaves_frees_everything(gateway: Gateway, upstream: Upstream) -> None:
    gone = anyio.Event()

    async def endless(line: Line) -> None:
        try:
            await line.send(STREAM_HEAD)
            while True:
                await line.send(chunk(PIECE))
        finally:
            gone.set()

    upstream.answer = endless
    body = json.dumps({"model": upstream.model, "messages": [], "stream": True}).encode()
    async with connect(gateway.port) as client:
        await client.post("/v1/chat/completions", body)
        assert await client.read(100)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await anyio.sleep(0.3)
        assert not gone.is_set()
        client.leave()
        with anyio.fail_after(5):
            await gone.wait()
    await gateway.await_rest()
