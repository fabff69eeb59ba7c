"""Many streamed chats at once on raw sockets: little enough work per chunk that the server is what is measured."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from nebula_router.bench import net, upstream
from nebula_router.bench.histogram import Histogram
from nebula_router.bench.reply import FramingError, Reply, fault

REPLY_S = 120.0
"""A stream that takes longer than this has failed."""
PAUSE_S = 0.1
"""Before the next try after an error, so that a server that refuses is not flooded."""
OK = 200


@dataclass(slots=True)
class Tally:
    """What all streams saw together. One event loop writes it."""

    requests: int = 0
    """Ended, well or not."""
    chunks: int = 0
    """Server-sent events of the streams that ended."""
    body_bytes: int = 0
    running: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Requests by what was wrong with them."""
    ttft: Histogram = field(default_factory=Histogram)
    gaps: Histogram = field(default_factory=Histogram)
    """Between two reads of one stream; several chunks may arrive in one read."""

    def failed(self, wrong: str) -> None:
        """Counts one error."""
        self.errors[wrong] = self.errors.get(wrong, 0) + 1


class Stream(asyncio.Protocol):
    """One keep-alive connection that asks for one stream at a time."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._reply = Reply()
        self._ended: asyncio.Future[str | None] | None = None
        self._last = 0.0

    @property
    def usable(self) -> bool:
        """Whether the next request can go out on this connection."""
        return self._transport is not None and not self._transport.is_closing() and self._reply.keep_alive

    async def ask(self, message: bytes) -> str | None:
        """Sends one request and reads its reply to the end; what was wrong with it, in one word."""
        if self._transport is None:
            return "reset"
        self._reply = Reply()
        self._ended = asyncio.get_running_loop().create_future()
        self._last = time.perf_counter()
        self._transport.write(message)
        try:
            wrong = await asyncio.wait_for(self._ended, REPLY_S)
        except asyncio.TimeoutError:
            self.abort()
            wrong = "timeout"
        self._tally.body_bytes += len(self._reply.body)
        self._tally.chunks += self._reply.body.count(b"\n\n")
        return wrong

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # === asyncio.Protocol ===

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the way to write."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Feeds the reply; notes when its bytes came."""
        first = not self._reply.body
        try:
            got_body = self._reply.feed(data)
        except FramingError:
            self._end("framing")
            self.abort()
            return
        if got_body:
            now = time.perf_counter()
            (self._tally.ttft if first else self._tally.gaps).record(now - self._last)
            self._last = now
        if self._reply.done:
            self._end(fault(self._reply.body) if self._reply.status == OK else f"status_{self._reply.status}")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason is the same to a client
        """Ends a reply that is still awaited."""
        self._transport = None
        if self._reply.close():
            self._end(fault(self._reply.body))
        else:
            self._end("cut" if self._reply.status else "reset")

    def _end(self, wrong: str | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(wrong)


async def converse(port: int, messages: Sequence[bytes], until: float, tally: Tally) -> None:
    """One user: sends `messages` in turn on one connection until the clock (`time.monotonic`) says `until`.

    The last stream is read to its end. After an error the user connects anew.
    """
    loop = asyncio.get_running_loop()
    stream: Stream | None = None
    turn = 0
    while time.monotonic() < until:
        if stream is None or not stream.usable:
            try:
                _, stream = await loop.create_connection(lambda: Stream(tally), net.HOST, port)
            except OSError:
                tally.failed("connect")
                await asyncio.sleep(PAUSE_S)
                continue
        tally.running += 1
        wrong = await stream.ask(messages[turn % len(messages)])
        tally.running -= 1
        tally.requests += 1
        turn += 1
        if wrong is not None:
            tally.failed(wrong)
            await asyncio.sleep(PAUSE_S)
    if stream is not None:
        stream.abort()


def message(port: int, body: bytes) -> bytes:
    """The request for one signed stream, as bytes on the wire."""
    head = (
        f"POST {upstream.CHAT} HTTP/1.1\r\nHost: {net.HOST}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nx-sim-checksum: 1\r\n\r\n"
    )
    return head.encode("ascii") + body
