"""The soak's client against a server that misbehaves on purpose, and its verdict."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from xxhash import xxh3_64_hexdigest

from nebula_router.bench import net, soak, stream
from nebula_router.bench.histogram import Histogram
from nebula_router.bench.process import Usage
from nebula_router.bench.soak import Plan, Report, Watch
from nebula_router.bench.stream import Stream, Tally

EVENT = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'
METRICS = """\
# HELP nebula_running_requests Requests booked on the rank.
# TYPE nebula_running_requests gauge
nebula_running_requests{engine="sim-1",rank="0"} 2
nebula_running_requests{engine="sim-2",rank="0"} 1
# TYPE nebula_inflight_requests gauge
nebula_inflight_requests 0
# EOF
"""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def good(events: int = 3) -> bytes:
    body = EVENT * events
    line = b": xxh3=%s bytes=%d\n\n" % (xxh3_64_hexdigest(body).encode(), len(body))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + chunk(EVENT) * events + chunk(line) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"


def answering(*replies: bytes, close: bool = False) -> Handler:
    """A server that answers the requests of a connection with `replies` in turn, the last one again and again."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"x-sim-checksum: 1" in head
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
                writer.write(replies[min(turn, len(replies) - 1)])
                turn += 1
                if close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return handle


def ask(handler: Handler, times: int = 1) -> tuple[list[str | None], Tally]:
    """What `times` requests on one connection came to."""
    tally = Tally()

    async def run() -> list[str | None]:
        server = await asyncio.start_server(handler, net.HOST, 0)
        port = server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        transport, one = await loop.create_connection(lambda: Stream(tally), net.HOST, port)
        try:
            return [await one.ask(stream.message(port, b"{}")) for _ in range(times)]
        finally:
            transport.close()
            server.close()
            await server.wait_closed()

    return asyncio.run(run()), tally


def test_whole_streams_on_one_connection_are_counted() -> None:
    wrong, tally = ask(answering(good()), times=3)
    assert wrong == [None, None, None]
    assert tally.chunks == 3 * (3 + 2)  # the events, the checksum, [DONE]
    assert tally.ttft.count == 3


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        (good().replace(b"word", b"lord", 1), "checksum"),
        (good().replace(chunk(EVENT), b"", 1), "length"),
        (good().replace(chunk(b"data: [DONE]\n\n"), b""), "no_done"),
        (REFUSAL, "status_503"),
        (b"HTTP/2 200\r\n\r\n", "framing"),
        (good()[:-5], "cut"),
        (b"", "reset"),
    ],
)
def test_a_fault_is_named(reply: bytes, wrong: str) -> None:
    assert ask(answering(reply, close=True))[0] == [wrong]


def test_many_users_are_served_to_their_last_byte() -> None:
    said: list[str] = []

    async def run() -> Report:
        server = await asyncio.start_server(answering(REFUSAL, good()), net.HOST, 0)
        port = server.sockets[0].getsockname()[1]
        watch = Watch(lambda: Usage(0.0, 50.0, 1), lambda _at, what: said.append(what))
        plan = Plan(streams=5, seconds=1, engines=1, speed=1.0)
        try:
            return await soak.flood(port, [b"{}", b"[]"], plan, watch)
        finally:
            server.close()
            await server.wait_closed()

    report = asyncio.run(run())
    assert report.tally.errors == {"status_503": 5}  # once per connection, which then goes on
    assert report.tally.requests > 5
    assert report.tally.running == 0
    assert set(report.rss_mb) == {50.0}
    assert said
    assert report.faults() == ["status_503: 5 requests"]


def test_nobody_there_is_an_error() -> None:
    plan = Plan(streams=1, seconds=0.01, engines=1, speed=1.0)
    watch = Watch(lambda: Usage(0.0, 50.0, 1), lambda _at, _what: None)
    report = asyncio.run(soak.flood(net.free_port(), [b"{}"], plan, watch))
    assert report.faults() == ["connect: 1 requests", "no request ended"]


@pytest.mark.parametrize(
    ("report", "fault"),
    [
        (Report(1, Tally(requests=1), gauges={"nebula_running_requests": 2.0}), "must be 0"),
        (Report(1, Tally(requests=1), gauges={"nebula_running_requests": None}), "not in /metrics"),
        (Report(1, Tally(requests=1), rss_mb=[100, 100, 110, 110, 120, 120]), "memory grew by 20 MB"),
        (Report(1, Tally(requests=1), server_ended=True), "ended by itself"),
    ],
)
def test_the_verdict_names_what_is_wrong(report: Report, fault: str) -> None:
    assert fault in " ".join(report.faults())


def test_a_clean_run_is_a_success() -> None:
    report = Report(1, Tally(requests=1), rss_mb=[100, 104, 106, 105], gauges={"nebula_running_requests": 0.0})
    assert report.faults() == []
    plan = Plan(streams=1000, seconds=60, engines=4, speed=0.25)
    assert dict(soak.describe(plan, report))["server's memory"].startswith("100 MB at first, 106 MB at most, +5.0 MB")
    assert soak.figures(report)["rss_growth_mb"] == 5


def test_a_gauge_is_summed_over_its_labels() -> None:
    assert soak.gauge(METRICS, "nebula_running_requests") == 3
    assert soak.gauge(METRICS, "nebula_inflight_requests") == 0
    assert soak.gauge(METRICS, "nebula_prefill_tokens") is None
    assert soak.gauge(METRICS, "nebula_running") is None


def test_growth_compares_thirds() -> None:
    assert soak.growth([]) == soak.growth([1, 9]) == 0
    assert soak.growth([1, 3, 500, 500, 5, 7]) == 4


def test_quantiles_are_within_a_bucket() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0
    for ms in range(1, 1001):
        histogram.record(ms / 1000)
    assert histogram.quantile(0.5) == pytest.approx(0.5, rel=0.021)
    assert histogram.quantile(0.99) == pytest.approx(0.99, rel=0.021)
    assert histogram.quantile(1) == histogram.longest_s == 1.0


def test_the_modelled_pace_follows_the_speed() -> None:
    paces = [Plan(streams=1000, seconds=1, engines=4, speed=speed).pace_s for speed in (1.0, 0.25, 0.0)]
    assert paces[1] == pytest.approx(4 * paces[0])
    assert paces[2] == 0
