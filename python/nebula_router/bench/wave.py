"""A wave of paced streams: many at once, and how long each of their chunks was on its way.

`python -m nebula_router.bench.wave 8081 256 100` asks for 256 streams of 100 chunks each and prints a line of JSON.

Each chunk holds the time when its engine wrote it, on the clock that all processes of a machine share. The client is a
process of its own that only receives and notes when; everything is read and checked after the last byte, so that
little of what is measured is the client.
"""

import gc
import json
import math
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from nebula_router.bench import net, pacer, process, stream, upstream
from nebula_router.bench.error import BenchError
from nebula_router.bench.reply import FramingError, Reply, fault

RAMP_S = 0.5
"""The streams begin one after the other over this time."""
HELD_MS = 5.0
"""A chunk that took longer was held by somebody."""
GRACE_S = 10.0
"""How long after its time a stream may end."""
READ_BYTES = 262_144
LAST = b"0\r\n\r\n"
"""How a chunked response ends."""
PROMPTS = 64
STAMP = re.compile(rb'"content":" (\d{%d})"' % pacer.STAMP_DIGITS)
OK = 200

Piece = tuple[int, bytes]
"""When something was received, in nanoseconds, and what."""


@dataclass(frozen=True, slots=True)
class Wave:
    """What the client of one wave saw."""

    streams: int
    chunks: int
    """Received."""
    reads: int
    """How often something was received; fewer than chunks where several came together."""
    p50_ms: float
    """How long a chunk was on its way, from its engine's write to the client's read."""
    p99_ms: float
    max_ms: float
    held: int
    """Chunks that took more than `HELD_MS`."""
    late_p99_ms: float
    """How late the engines wrote, beside their own pace: of the harness, not of the router."""
    errors: dict[str, int] = field(default_factory=dict)
    """Streams that are not whole, by what is wrong with them."""

    @property
    def failed(self) -> int:
        """Streams without a good end."""
        return sum(self.errors.values())


def send(port: int, streams: int, chunks: int, gap_ms: int) -> Wave:
    """Runs one wave in a process of its own against a server on loopback.

    Raises:
        BenchError: when the client fails or does not end.
    """
    command = [sys.executable, "-m", "nebula_router.bench.wave", *map(str, (port, streams, chunks, gap_ms))]
    limit_s = RAMP_S + chunks * gap_ms / 1e3 + 3 * GRACE_S
    try:
        finished = process.run(command, limit_s)
    except subprocess.TimeoutExpired:
        message = f"the client of {streams} streams did not end in {limit_s:g} s"
        raise BenchError(message) from None
    if finished.returncode != 0:
        said = finished.stderr.strip().rpartition("\n")[2]
        message = f"the client of {streams} streams failed: {said[-300:]}"
        raise BenchError(message)
    return Wave(**json.loads(finished.stdout))


def measure(port: int, streams: int, chunks: int, gap_ms: int) -> Wave:
    """Asks for the streams, receives them, then reads and checks each."""
    messages = [stream.message(port, body) for body in bodies(chunks)]
    until_s = RAMP_S + chunks * gap_ms / 1e3 + GRACE_S
    logs = _receive([_connect(port) for _ in range(streams)], messages, until_s)
    times: list[tuple[int, int]] = []
    late: list[int] = []
    errors: dict[str, int] = {}
    for log in logs:
        wrong, seen = read(log)
        times += seen
        late += [written - seen[0][0] - i * gap_ms * 1_000_000 for i, (written, _) in enumerate(seen)]
        if wrong is None and len(seen) != chunks:
            wrong = "chunks"
        if wrong is not None:
            errors[wrong] = errors.get(wrong, 0) + 1
    delays = sorted(received - written for written, received in times)
    return Wave(
        streams=streams,
        chunks=len(delays),
        reads=sum(len(log) for log in logs),
        p50_ms=_quantile(delays, 0.5),
        p99_ms=_quantile(delays, 0.99),
        max_ms=_quantile(delays, 1.0),
        held=sum(delay > HELD_MS * 1e6 for delay in delays),
        late_p99_ms=_quantile(sorted(late), 0.99),
        errors=errors,
    )


def bodies(chunks: int) -> list[bytes]:
    """Short prompts: it is streams that are measured."""
    return [
        json.dumps(
            {
                "model": upstream.MODEL,
                "messages": [{"role": "user", "content": f"{i}: tell me a story that has no end"}],
                "max_tokens": chunks,
                "stream": True,
            }
        ).encode("ascii")
        for i in range(PROMPTS)
    ]


def read(log: Sequence[Piece]) -> tuple[str | None, list[tuple[int, int]]]:
    """What is wrong with a stream, in one word, and for each of its chunks when it was written and received."""
    reply = Reply()
    times: list[tuple[int, int]] = []
    scanned = 0
    try:
        for received, data in log:
            if reply.feed(data):
                end = reply.body.rfind(b"\n\n") + 2
                if end > scanned:
                    times += [(int(found[1]), received) for found in STAMP.finditer(reply.body, scanned, end)]
                    scanned = end
    except FramingError:
        return "framing", times
    if not reply.done:
        return ("cut" if reply.status else "reset"), times
    return (fault(reply.body) if reply.status == OK else f"status_{reply.status}"), times


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection((net.HOST, port), timeout=GRACE_S)
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connections: Sequence[socket.socket], messages: Sequence[bytes], until_s: float) -> list[list[Piece]]:
    """All that came on each connection; the requests are sent spread over `RAMP_S`."""
    poll = select.epoll()
    logs: list[list[Piece]] = [[] for _ in connections]
    by_number = {connection.fileno(): (connection, log) for connection, log in zip(connections, logs, strict=True)}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    begin = time.monotonic()
    starts = _starts(connections, messages, begin)
    start = next(starts, None)
    while by_number and (now := time.monotonic()) < begin + until_s:
        while start is not None and start[0] <= now:
            start[1].send(start[2])
            start = next(starts, None)
        for number, _ in poll.poll(max(0.0, start[0] - now) if start else 1.0):
            connection, log = by_number[number]
            try:
                data = connection.recv(READ_BYTES)
            except OSError:
                data = b""
            log.append((time.monotonic_ns(), data))
            if not data or _ended(log):
                poll.unregister(number)
                del by_number[number]
    for connection in connections:
        connection.close()
    return logs


def _starts(
    connections: Sequence[socket.socket], messages: Sequence[bytes], begin: float
) -> Iterator[tuple[float, socket.socket, bytes]]:
    """When which request is sent on which connection."""
    for i, connection in enumerate(connections):
        yield begin + RAMP_S * i / len(connections), connection, messages[i % len(messages)]


def _ended(log: Sequence[Piece]) -> bool:
    """Whether nothing can follow: the last chunk is there, or it is a short reply and no stream."""
    last = log[-1][1]
    if len(last) < len(LAST) and len(log) > 1:
        last = log[-2][1] + last
    return last.endswith(LAST) or not log[0][1].startswith(b"HTTP/1.1 200")


def _quantile(ordered: Sequence[int], share: float) -> float:
    """The smallest value that `share` of all do not exceed, nanoseconds in milliseconds; 0 when there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] / 1e6 if ordered else 0.0


if __name__ == "__main__":
    gc.freeze()
    gc.disable()
    print(json.dumps(asdict(measure(*map(int, sys.argv[1:])))))  # noqa: T201 - it is what the caller reads
