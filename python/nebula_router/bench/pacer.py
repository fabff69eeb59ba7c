"""Engines that stream at a set pace, all in one process: each chunk tells when it was written.

`python -m nebula_router.bench.pacer spread 20 9001 9002` serves two engines that write a chunk to every stream each
20 ms.

Spread, each stream keeps its own time from the moment its request came: nothing coalesces that does not have to, which
is the harder case for a router. In steps, all streams of an engine get their chunks at once, as from an engine that
computes a token for each in one step; the engines' steps are spread over the gap.

A stream has `max_tokens` chunks and is signed: its last comment holds the hash and the length of all bytes before it.
It is Python because 12,800 chunks a second (256 streams at 20 ms) take a sixth of a core here, most of it in the
kernel; sockets are written at once, without an event loop between the time in the chunk and its bytes on the wire.
"""

import heapq
import json
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

from xxhash import xxh3_64

from nebula_router.bench import net, process, upstream
from nebula_router.bench.upstream import Upstream


class Pace(str, Enum):
    """When an engine's streams get their chunks."""

    SPREAD = "spread"
    """Each at a time of its own."""
    STEPS = "steps"
    """All together."""


READY_S = 10.0
BACKLOG = 4096
STAMP_DIGITS = 18
"""Of the nanoseconds on the monotonic clock, which all processes of a machine share."""
EVENT = (
    b'data: {"id":"chatcmpl-a30964f5848bdb5b","object":"chat.completion.chunk","created":1795187282,'
    b'"model":"%s","choices":[{"index":0,"delta":{"content":" %%0%dd"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}]}\n\n' % (upstream.MODEL.encode(), STAMP_DIGITS)
)
"""What vLLM 0.32 writes for a token, with the time in place of the word."""
EVENT_BYTES = len(EVENT % 0)
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LENGTHS = ("max_tokens", "max_completion_tokens")
"""Both say how many chunks there are: sglang-router sends the first on as the second."""
GETS = {
    "/health": b"",
    "/v1/models": (upstream.DATA / "models.json").read_bytes().strip(),
    "/version": (upstream.DATA / "version.json").read_bytes().strip(),
    "/metrics": upstream.METRICS.encode(),
}


@contextmanager
def serve(gap_ms: int, engines: int = 4, pace: Pace = Pace.SPREAD, logs: Path | None = None) -> Iterator[Upstream]:
    """Runs `engines` of them in a process of their own, which prints into a file in `logs`, if anything.

    Raises:
        BenchError: when it does not start.
    """
    ports = tuple(net.free_port() for _ in range(engines))
    command = [sys.executable, "-m", "nebula_router.bench.pacer", pace.value, str(gap_ms), *map(str, ports)]
    with process.started("the process of the paced engines", command, logs / "pacer.log" if logs else None) as child:
        for port in ports:
            child.await_ready(partial(net.complaint, port, "/health"), READY_S)
        yield Upstream(ports)


@dataclass(slots=True)
class Client:
    """One connection, and the stream that flows on it."""

    socket: socket.socket
    engine: int
    rest: bytearray = field(default_factory=bytearray)
    """Received and not yet read."""
    chunks: int = 0
    """Left to write; a connection has one stream at a time."""
    hash: xxh3_64 = field(default_factory=xxh3_64)
    written: int = 0


class Pacer:
    """All engines and their clients, in one thread."""

    def __init__(self, ports: Sequence[int], pace: Pace, gap_ms: int) -> None:
        self._gap_ns = gap_ms * 1_000_000
        self._pace = pace
        self._poll = select.epoll()
        self._listeners: dict[int, tuple[int, socket.socket]] = {}
        self._clients: dict[int, Client] = {}
        self._due: list[tuple[int, int, Client]] = []
        """A heap: when the next chunk of a stream is due; the number keeps clients from being compared."""
        self._turn = 0
        for engine, port in enumerate(ports):
            listener = socket.create_server((net.HOST, port), backlog=BACKLOG)
            listener.setblocking(False)
            self._listeners[listener.fileno()] = (engine, listener)
            self._poll.register(listener, select.EPOLLIN)

    def run(self) -> None:
        """Serves until the process is stopped."""
        while True:
            wait_s = (self._due[0][0] - time.monotonic_ns()) / 1e9 if self._due else None
            for number, _ in self._poll.poll(None if wait_s is None else max(0.0, wait_s)):
                if number in self._listeners:
                    self._accept(*self._listeners[number])
                elif number in self._clients:
                    self._receive(self._clients[number])
            self._write_due()

    def close(self) -> None:
        """Leaves the ports and drops who is there."""
        for _, listener in self._listeners.values():
            listener.close()
        for client in list(self._clients.values()):
            self._drop(client)
        self._poll.close()

    def _accept(self, engine: int, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients[connection.fileno()] = Client(connection, engine)
        self._poll.register(connection, select.EPOLLIN)

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.rest += data
        while client.chunks == 0 and (request := _take_request(client.rest)) is not None:
            self._answer(client, *request)

    def _answer(self, client: Client, method: str, path: str, body: bytes) -> None:
        if method == "POST" and path == upstream.CHAT:
            asked = json.loads(body)
            if not asked.get("stream"):
                self._send(client, _response(upstream.chat_reply()))
                return
            client.chunks = next(int(asked[name]) for name in LENGTHS if name in asked)
            client.hash = xxh3_64()
            client.written = 0
            self._send(client, HEAD)
            self._schedule(client, self._first_due(client.engine))
        elif path in GETS:
            self._send(client, _response(GETS[path]))
        elif path.startswith("/"):
            self._send(client, _response(b'{"detail":"Not Found"}', "404 Not Found"))
        else:
            self._drop(client)  # somebody tries whether this speaks HTTP/2

    def _first_due(self, engine: int) -> int:
        """Now, or when the engine's next step ends."""
        now = time.monotonic_ns()
        if self._pace is Pace.SPREAD:
            return now
        phase = self._gap_ns * engine // len(self._listeners)
        return now + (phase - now) % self._gap_ns

    def _schedule(self, client: Client, due_ns: int) -> None:
        self._turn += 1
        heapq.heappush(self._due, (due_ns, self._turn, client))

    def _write_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic_ns():
            due_ns, _, client = heapq.heappop(self._due)
            if client.chunks == 0:
                continue  # it left
            client.chunks -= 1
            event = EVENT % time.monotonic_ns()
            client.hash.update(event)
            client.written += EVENT_BYTES
            if client.chunks:
                self._send(client, _chunk(event))
                self._schedule(client, due_ns + self._gap_ns)
            else:
                signature = b": xxh3=%s bytes=%d\n\n" % (client.hash.hexdigest().encode(), client.written)
                self._send(client, _chunk(event) + _chunk(signature) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _send(self, client: Client, data: bytes) -> None:
        """Writes all of it at once; whoever is so far behind that his buffers are full is dropped, and says so."""
        try:
            whole = client.socket.send(data) == len(data)
        except OSError:
            whole = False
        if not whole:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        client.chunks = 0
        number = client.socket.fileno()
        if number in self._clients:
            self._poll.unregister(number)
            del self._clients[number]
            client.socket.close()


def _take_request(rest: bytearray) -> tuple[str, str, bytes] | None:
    """Method, path and body of the next request, which are consumed; None until it is whole."""
    end = rest.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = rest[:end].decode("latin-1").split("\r\n")
    length = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    begin = end + 4
    if len(rest) < begin + length:
        return None
    body = bytes(rest[begin : begin + length])
    del rest[: begin + length]
    method, _, target = first.partition(" ")
    return method, target.partition(" ")[0], body


def _response(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


if __name__ == "__main__":
    Pacer([int(port) for port in sys.argv[3:]], Pace(sys.argv[1]), int(sys.argv[2])).run()
