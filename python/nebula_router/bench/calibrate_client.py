"""Asks a live engine over HTTP, and notes when each token came."""

import asyncio
import json
import ssl
import time
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from nebula_router.bench.error import BenchError
from nebula_router.bench.reply import FramingError, Reply

OK = 200
IDLE_S = 2.0
"""A connection that was idle for longer is not used again: vLLM closes its end after 5 s."""
EVENT_END = b"\n\n"
DATA = b"data: "
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine listens, and how it is spoken to."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    """Of every path."""
    key: str | None = None
    """Sent as `Authorization: Bearer`."""

    @classmethod
    def of(cls, url: str, key: str | None = None) -> "Target":
        """The engine at `url`; a trailing `/v1`, as OpenAI's clients want it, is taken off.

        Raises:
            BenchError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BenchError(f"--base-url {url}: {error}") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise BenchError(f"--base-url {url}: expected http://host:port, for example http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, prefix, key)

    @property
    def url(self) -> str:
        """The same as text."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}{self.prefix}"

    def message(self, path: str, body: bytes | None = None) -> bytes:
        """The request as bytes on the wire: POST of JSON where there is a body, else GET."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{'GET' if body is None else 'POST'} {self.prefix}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed completion: when it was asked for, and when its tokens came."""

    asked: float
    tokens: tuple[tuple[int, float], ...]
    """How many there were and since when, for each chunk; a chunk may bring several tokens. Seconds of one clock."""
    prompt_tokens: int
    cached_tokens: int | None
    """Of the prompt, where the engine tells."""

    @property
    def ttft_s(self) -> float:
        """From the request to the first token."""
        return self.tokens[0][1] - self.asked


class Connection(asyncio.Protocol):
    """One keep-alive connection that carries one request at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._reply = Reply()
        self._marks: list[tuple[int, float]] = []
        self._ended: asyncio.Future[str | None] | None = None
        self._used = time.perf_counter()

    @property
    def usable(self) -> bool:
        """Whether the next request can go out on it."""
        open_still = self._transport is not None and not self._transport.is_closing() and self._reply.keep_alive
        return open_still and time.perf_counter() - self._used < IDLE_S

    async def ask(self, path: str, body: bytes | None, within_s: float) -> tuple[Reply, list[tuple[int, float]], float]:
        """The reply; how long its body was at which time; and when the request was sent.

        Raises:
            BenchError: no whole reply came, or one of another status than 200.
        """
        if self._transport is None:
            raise BenchError(f"{self._target.url} closed the connection")
        self._reply, self._marks = Reply(), []
        self._ended = asyncio.get_running_loop().create_future()
        asked = time.perf_counter()
        self._transport.write(self._target.message(path, body))
        try:
            wrong = await asyncio.wait_for(self._ended, within_s)
        except asyncio.TimeoutError:
            self.close()
            wrong = f"did not answer in {within_s:g} s"
        if wrong is None and self._reply.status != OK:
            wrong = f"answers {self._reply.status}: {said(self._reply.body)}"
        if wrong is not None:
            raise BenchError(f"{self._target.url}{path} {wrong}")
        self._used = time.perf_counter()
        return self._reply, self._marks, asked

    def close(self) -> None:
        """Closes it at once; the engine stops what it does for it."""
        if self._transport is not None:
            self._transport.abort()

    # === asyncio.Protocol ===

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the way to write."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Feeds the reply and notes the time, nothing more: what the bytes mean is read when nobody waits."""
        now = time.perf_counter()
        try:
            got_body = self._reply.feed(data)
        except FramingError as error:
            self._end(f"sent what is no HTTP/1.1 reply: {error}")
            self.close()
            return
        if got_body:
            self._marks.append((len(self._reply.body), now))
        if self._reply.done:
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends a reply that is still awaited."""
        self._transport = None
        self._end(None if self._reply.close() else f"broke off ({exc or 'closed'})")

    def _end(self, wrong: str | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(wrong)


class Client:
    """Connections to one engine, kept for the next request."""

    def __init__(self, target: Target, within_s: float) -> None:
        self.target = target
        self._within_s = within_s
        self._idle: list[Connection] = []
        self._all: list[Connection] = []

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._all:
            connection.close()

    async def get(self, path: str) -> bytes:
        """The body of an answer to GET.

        Raises:
            BenchError: there is none, or it is an error's.
        """

        async def ask(connection: Connection) -> bytes:
            reply, _, _ = await connection.ask(path, None, self._within_s)
            return bytes(reply.body)

        return await self._on_connection(ask)

    async def complete(self, model: str, prompt: Sequence[int], tokens: int) -> Stream:
        """A completion of exactly `tokens` tokens, streamed.

        Raises:
            BenchError: the engine refuses, or breaks off.
        """
        path = "/v1/completions"
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        message = json.dumps(body, separators=(",", ":")).encode()

        async def ask(connection: Connection) -> Stream:
            reply, marks, asked = await connection.ask(path, message, self._within_s)
            stream = parse(bytes(reply.body), marks, asked)
            if not stream.tokens or stream.tokens[-1][0] != tokens:
                count = stream.tokens[-1][0] if stream.tokens else 0
                raise BenchError(f"{self.target.url}{path} sent {count} tokens where {tokens} were asked for")
            return stream

        return await self._on_connection(ask)

    async def _on_connection(self, use: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        while self._idle and not self._idle[-1].usable:
            self._idle.pop().close()
        connection = self._idle.pop() if self._idle else await self._connect()
        result = await use(connection)
        self._idle.append(connection)
        return result

    async def _connect(self) -> Connection:
        target = self.target
        loop = asyncio.get_running_loop()
        context = ssl.create_default_context() if target.tls else None
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(target), target.host, target.port, ssl=context
            )
        except OSError as error:
            reason = error.strerror or error
            raise BenchError(
                f"no engine answers on {target.url} ({reason}); start one, as `vllm serve MODEL --port {target.port}`, "
                "or name another with --base-url"
            ) from None
        self._all.append(connection)
        return connection


def parse(body: bytes, marks: Sequence[tuple[int, float]], asked: float) -> Stream:
    """The stream in a body of server-sent events.

    Args:
        body: All of it.
        marks: How long the body was since when.
        asked: When the request was sent.

    Raises:
        BenchError: an event is an error, or no JSON.
    """
    lengths = [length for length, _ in marks]
    tokens: list[tuple[int, float]] = []
    usage: dict[str, Any] = {}
    count, start = 0, 0
    while (end := body.find(EVENT_END, start)) >= 0:
        event, start = body[start:end], end + len(EVENT_END)
        if not event.startswith(DATA) or event == DATA + b"[DONE]":
            continue
        chunk = _json(event.removeprefix(DATA))
        if "error" in chunk:
            raise BenchError(f"the engine ended a stream: {said(event.removeprefix(DATA))}")
        usage = chunk.get("usage") or usage
        if chunk.get("choices"):
            # An engine that does not count as it goes sends a token per chunk.
            count = usage.get("completion_tokens", count + 1)
            tokens.append((count, marks[bisect_left(lengths, start)][1]))
    details = usage.get("prompt_tokens_details") or {}
    return Stream(asked, tuple(tokens), usage.get("prompt_tokens", 0), details.get("cached_tokens"))


def said(body: bytes | bytearray) -> str:
    """The message in an error's body, shortened."""
    try:
        error = json.loads(body)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip()
    return text[:300] or "nothing"


def _json(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BenchError(f"the engine sent an event that is no JSON object: {text[:80]!r}")
    return document
