"""Paced streams: the engines that write them, and the client that tells how long each chunk was on its way."""

import json
import socket
import time
from collections.abc import Iterator
from threading import Thread

import pytest
from xxhash import xxh3_64_hexdigest

from nebula_router.bench import net, pacer, reply, upstream, wave
from nebula_router.bench.error import BenchError
from nebula_router.bench.pacer import Pace, Pacer
from nebula_router.bench.upstream import Upstream
from nebula_router.bench.wave import Piece

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MS = 1_000_000


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*written: int) -> list[bytes]:
    """The writes of an engine: the head, each event, and the end."""
    events = [pacer.EVENT % time for time in written]
    body = b"".join(events)
    line = b": xxh3=%s bytes=%d\n\n" % (xxh3_64_hexdigest(body).encode(), len(body))
    return [HEAD, *map(chunk, events), chunk(line) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


def test_each_chunk_has_the_time_of_its_read() -> None:
    head, first, second, third, end = stream(100, 200, 300)
    log: list[Piece] = [(110, head + first), (220, second[:50]), (230, second[50:] + third), (400, end)]
    assert wave.read(log) == (None, [(100, 110), (200, 230), (300, 230)])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_stream_is_read_in_any_split(size: int) -> None:
    whole = b"".join(stream(1, 2, 3))
    log = [(at, whole[at : at + size]) for at in range(0, len(whole), size)]
    wrong, times = wave.read(log)
    assert wrong is None
    ends = [whole.index(b"\n\n", whole.index(b"%018d" % written)) + 1 for written in (1, 2, 3)]
    assert times == [(written, end // size * size) for written, end in zip((1, 2, 3), ends, strict=True)]


@pytest.mark.parametrize(
    ("writes", "wrong"),
    [
        ([HEAD, *stream(1, 2)[2:]], "length"),
        (stream(1, 2)[:-1], "cut"),
        ([], "reset"),
        ([b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"], "status_503"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], "framing"),
        ([part.replace(b"tiny", b"tinY") for part in stream(1)], "checksum"),
    ],
)
def test_a_fault_is_named(writes: list[bytes], wrong: str) -> None:
    assert wave.read([*((1, data) for data in writes), (2, b"")])[0] == wrong


@pytest.fixture(scope="module")
def engines() -> Iterator[Upstream]:
    with pacer.serve(gap_ms=5, engines=2) as running:
        yield running


def test_a_wave_is_received_and_checked(engines: Upstream) -> None:
    seen = wave.send(engines.ports[0], streams=20, chunks=30, gap_ms=5)
    assert (seen.streams, seen.chunks, seen.errors, seen.failed) == (20, 600, {}, 0)
    assert 0 < seen.p50_ms <= seen.p99_ms <= seen.max_ms
    assert seen.reads >= 20


def test_streams_keep_their_pace(engines: Upstream) -> None:
    asked = json.dumps({"max_tokens": 21, "stream": True}).encode()
    body = net.ask(engines.ports[1], upstream.CHAT, asked).body
    written = [int(found[1]) for found in wave.STAMP.finditer(body)]
    assert len(written) == 21
    assert written[-1] - written[0] >= 20 * 5 * MS - 5 * MS  # a first chunk may be late, none is early
    assert reply.fault(body) is None


def test_the_first_chunk_is_due_at_once_or_at_the_end_of_a_step() -> None:
    ports = [net.free_port(), net.free_port()]
    now = time.monotonic_ns()
    stepping = Pacer(ports, Pace.STEPS, gap_ms=30)
    dues = [stepping._first_due(engine) for engine in (0, 1)]
    assert [due % (30 * MS) for due in dues] == [0, 15 * MS]  # the engines take turns
    assert all(now <= due for due in dues)
    stepping.close()
    spread = Pacer(ports, Pace.SPREAD, gap_ms=30)
    assert now <= spread._first_due(1) <= time.monotonic_ns()
    spread.close()


def test_an_answer_that_is_no_stream_counts_as_an_error() -> None:
    with socket.create_server((net.HOST, 0)) as listener:

        def refuse() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}")

        server = Thread(target=refuse)
        server.start()
        seen = wave.measure(listener.getsockname()[1], streams=3, chunks=2, gap_ms=5)
        server.join()
    assert (seen.errors, seen.chunks, seen.max_ms) == ({"status_503": 3}, 0, 0.0)


def test_a_client_that_cannot_connect_says_so() -> None:
    with pytest.raises(BenchError, match=r"the client of 2 streams failed: ConnectionRefusedError: .*"):
        wave.send(net.free_port(), streams=2, chunks=1, gap_ms=1)


def test_the_engines_answer_what_routers_ask(engines: Upstream) -> None:
    port = engines.ports[1]
    assert net.ask(port, "/health").status == 200
    assert json.loads(net.ask(port, "/v1/models").body)["data"][0]["id"] == upstream.MODEL
    assert net.ask(port, "/metrics").body.decode() == upstream.METRICS
    assert net.ask(port, "/get_server_info").status == 404
    assert net.ask(port, upstream.CHAT, b'{"max_tokens":4}').body == upstream.chat_reply()


def test_who_tries_http_2_does_not_stop_the_engines(engines: Upstream) -> None:
    with socket.create_connection((net.HOST, engines.ports[0]), timeout=5) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert connection.recv(100) == b""
    assert net.ask(engines.ports[0], "/health").status == 200


def test_a_client_that_leaves_ends_its_stream(engines: Upstream) -> None:
    body = json.dumps({"max_tokens": 10_000, "stream": True}).encode()
    for _ in range(3):
        with socket.create_connection((net.HOST, engines.ports[0]), timeout=5) as connection:
            connection.sendall(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (upstream.CHAT.encode(), len(body)))
            connection.sendall(body)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    seen = wave.measure(engines.ports[0], streams=2, chunks=5, gap_ms=5)
    assert (seen.chunks, seen.failed) == (10, 0)
