"""An engine written by hand: what it receives is kept, what it sends is each test's own bytes."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

JSON_REPLY = b'{"id":"1","object":"test","usage":{"prompt_tokens":3,"completion_tokens":1}}'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
PIECE = 65_536
_numbers = itertools.count(1)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(body: bytes, *headers: str, status: str = "200 OK", content_type: str = "application/json") -> bytes:
    """A reply whose length is known."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def event(**fields: Any) -> bytes:
    """One server-sent event with a JSON object."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@dataclass
class Seen:
    """A request as it arrived."""

    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    def one(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} arrived {len(values)} times"
        return values[0] if values else None


@dataclass
class Line:
    """The connection on which a request is answered."""

    seen: Seen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes) -> None:
        """Sends each part by itself."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def gone(self) -> None:
        """Returns once the gateway has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(PIECE):
                pass

    def cut(self) -> None:
        """Ends the connection by a reset."""
        self.writer.transport.abort()


Answer = Callable[[Line], Awaitable[None]]


async def answer_json(line: Line) -> None:
    """A short reply in one piece."""
    await line.send(whole(JSON_REPLY))


def answer(*parts: bytes) -> Answer:
    """Always the same parts, which end the reply."""

    async def sent(line: Line) -> None:
        await line.send(*parts)

    return sent


@dataclass
class Upstream:
    """An engine on a free port of its own that serves a model nobody else has."""

    model: str = field(default_factory=lambda: f"model-{next(_numbers)}")
    answer: Answer = answer_json
    healthy: bool = True
    """Otherwise it accepts connections and says nothing, to probes as well."""
    reads_body: bool = True
    seen: list[Seen] = field(default_factory=list)
    """Requests for a reply, without probes."""
    url: str = ""
    _server: asyncio.Server | None = None
    _lines: set["asyncio.Task[None]"] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    @property
    def name(self) -> str:
        """What the gateway calls it."""
        return self.url.removeprefix("http://")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing():
                    await self._one(reader, writer)
        finally:
            self._lines.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        pairs = [line.split(": ", 1) for line in head[1:] if line]
        line = Line(Seen(target, [(name, value) for name, value in pairs]), reader, writer)
        if not self.healthy:
            return await line.gone()
        if method == "GET":
            return await line.send(whole(self._own(target)))
        self.seen.append(line.seen)
        if self.reads_body:
            line.seen.body = await reader.readexactly(int(line.seen.one("content-length") or 0))
        return await self.answer(line)

    def _own(self, target: str) -> bytes:
        if target == "/v1/models":
            return json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode()
        return b""
