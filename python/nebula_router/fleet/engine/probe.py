"""What an engine says of itself over HTTP: health, names, load, where its KV events are."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nebula_router.fleet.clock import now_ms
from nebula_router.fleet.records import EngineStats
from nebula_router.fleet.waiting import within

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S: Final = 3.0
MAX_BYTES: Final = 16 << 20
_OK: Final = 200
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r\n)")
_SAMPLE: Final = re.compile(
    r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?'
    r"[ \t]+(?P<value>[^ \t]+)(?:[ \t]+-?\d+)?[ \t]*"
)
"""A line of Prometheus' text format; the names are whole, so that no metric is taken for one that begins like it."""
_KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The second is what vLLM 0.11 calls it."""
_WAITING: Final = "vllm:num_requests_waiting"
_RUNNING: Final = "vllm:num_requests_running"
_TTFT_SUM: Final = "vllm:time_to_first_token_seconds_sum"
_TTFT_COUNT: Final = "vllm:time_to_first_token_seconds_count"
_READ: Final = frozenset({*_KV_USAGE, _WAITING, _RUNNING, _TTFT_SUM, _TTFT_COUNT})


class ProbeError(Exception):
    """The engine gave no answer that is one."""


@dataclass(frozen=True)
class Probe:
    """An engine as the node reaches it. Every question ends within `TIMEOUT_S`."""

    host: str
    port: int
    api_key: str | None = None

    async def health(self) -> str | None:
        """Return none where it is well, else what is wrong."""
        try:
            status, _ = await self._asked("/health")
        except ProbeError as error:
            return str(error)
        return None if status == _OK else f"/health answers {status}"

    async def names(self) -> tuple[str, ...] | None:
        """Return the names that it serves, adapters too; none where it does not tell."""
        document = await self._document("/v1/models")
        models = document.get("data") if isinstance(document, dict) else None
        if not isinstance(models, list):
            return None
        return tuple(str(model["id"]) for model in models if isinstance(model, dict) and "id" in model)

    async def events(self) -> dict[str, Any] | None:
        """Return how rank 0 publishes KV events, as vLLM's configuration of it; none where it does not tell."""
        document = await self._document("/kv_event_sources")
        first = document.get("0") if isinstance(document, dict) else None
        return first if isinstance(first, dict) else None

    async def load(self) -> Load | None:
        """Return its metrics; none where it has none."""
        try:
            status, body = await self._asked("/metrics")
        except ProbeError:
            return None
        return Load.parsed(body.decode(errors="replace")) if status == _OK else None

    async def _document(self, path: str) -> Any:  # noqa: ANN401 - JSON has any type
        try:
            status, body = await self._asked(path)
            return json.loads(body) if status == _OK else None
        except (ProbeError, ValueError):
            return None

    async def _asked(self, path: str) -> tuple[int, bytes]:
        try:
            return await within(TIMEOUT_S, self._exchange(path))
        except asyncio.TimeoutError:
            raise ProbeError(f"{path} does not answer within {TIMEOUT_S:g} s") from None
        except OSError as error:
            raise ProbeError(f"{path}: {error.strerror or error}") from None

    async def _exchange(self, path: str) -> tuple[int, bytes]:
        """HTTP/1.0: the reply is whole when the connection ends."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
            host = f"[{self.host}]" if ":" in self.host else self.host
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}:{self.port}\r\n{key}\r\n".encode())
            reply = bytearray()
            while chunk := await reader.read(1 << 16):
                reply += chunk
                if len(reply) > MAX_BYTES:
                    raise ProbeError(f"{path}: more than {MAX_BYTES} bytes")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        head, separator, body = bytes(reply).partition(b"\r\n\r\n")
        status = _STATUS.match(head + b"\r\n")
        if status is None or not separator:
            raise ProbeError(f"{path}: the answer is no HTTP")
        return int(status[1]), body


@dataclass(frozen=True, slots=True)
class Load:
    """An engine's load, over all of its ranks, and how long first tokens took since it began."""

    kv_usage: float | None
    waiting: int | None
    running: int | None
    ttft_s: float | None
    ttft_count: float | None

    @classmethod
    def parsed(cls, text: str) -> Load:
        """The load in a page of Prometheus' text format. What is not there, or is no number, is none."""
        found: dict[str, list[float]] = {}
        for name, value in _samples(text):
            found.setdefault(name, []).append(value)
        usage = next((max(found[name]) for name in _KV_USAGE if name in found), None)
        sums = {name: sum(values) for name, values in found.items()}
        waiting, running = sums.get(_WAITING), sums.get(_RUNNING)
        return cls(
            kv_usage=None if usage is None else min(max(usage, 0.0), 1.0),
            waiting=None if waiting is None else int(waiting),
            running=None if running is None else int(running),
            ttft_s=sums.get(_TTFT_SUM),
            ttft_count=sums.get(_TTFT_COUNT),
        )

    @property
    def is_idle(self) -> bool | None:
        """Whether it has no request; none where it does not tell."""
        if self.waiting is None or self.running is None:
            return None
        return self.waiting + self.running == 0

    def stats(self, before: Load | None) -> EngineStats:
        """The load as it is announced; times to first token are those since `before`."""
        return EngineStats(
            kv_usage=self.kv_usage,
            waiting=self.waiting,
            running=self.running,
            ttft_ms=self._ttft_ms(before),
            read_at_ms=now_ms(),
        )

    def _ttft_ms(self, before: Load | None) -> float | None:
        if self.ttft_s is None or self.ttft_count is None or before is None:
            return None
        if before.ttft_s is None or before.ttft_count is None:
            return None
        seconds, count = self.ttft_s - before.ttft_s, self.ttft_count - before.ttft_count
        if count < 0:  # the engine was started again: all it counts is new
            seconds, count = self.ttft_s, self.ttft_count
        return seconds / count * 1000 if count > 0 else None


def _samples(text: str) -> Iterator[tuple[str, float]]:
    """The samples of the metrics that are read here; a value that is no finite number is left out."""
    for line in text.splitlines():
        found = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        if found is None or found["name"] not in _READ:
            continue
        try:
            value = float(found["value"])
        except ValueError:
            continue
        if value - value == 0:
            yield found["name"], value
