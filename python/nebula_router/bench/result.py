"""What was measured, and its medians over the rounds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import TypeVar

from nebula_router.bench.load import Sample
from nebula_router.bench.wave import Wave

T = TypeVar("T")


class Part(str, Enum):
    """What is sent, in the order of the report."""

    REQUESTS = "requests"
    """Chats with a fixed reply, as fast as they are answered."""
    TOKENS = "tokens"
    """The same with prompts of token ids."""
    STREAMS = "streams"
    """Replies that come chunk by chunk at a set pace."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One router under one number of connections, in one round."""

    connections: int
    sample: Sample
    cpu_us: float | None
    """CPU of all the router's processes per request; None where there is no router."""
    shares: tuple[float, ...] | None
    """Share of the requests that each engine got; None where none was routed."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """One router under one number of streams, in one round."""

    wave: Wave
    cpu_ms: float | None
    """CPU of all the router's processes per 1,000 chunks; None where there is no router."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One router in one part of one round, from its start to its stop."""

    name: str
    round: int
    part: Part
    ready_s: float | None = None
    rss_idle_mb: float | None = None
    rss_loaded_mb: float | None = None
    figures: tuple[Measured | Streamed, ...] = ()
    failure: str | None = None
    """Why there is nothing measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one router under one number of connections."""

    part: Part
    name: str
    connections: int
    rate: float
    rate_range: tuple[float, float]
    """The slowest and the fastest round."""
    p50_ms: float
    p99_ms: float
    cpu_us: float | None
    shares: tuple[float, ...] | None
    requests: int
    """In all rounds."""
    failed: int
    """In all rounds."""
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class StreamRow:
    """Medians of one router under one number of streams."""

    name: str
    streams: int
    cpu_ms: float | None
    cpu_range: tuple[float, float] | None
    """The cheapest and the dearest round."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    chunks: int
    """In all rounds."""
    held: int
    """In all rounds."""
    chunks_per_read: float
    late_p99_ms: float
    asked: int
    """Streams in all rounds."""
    failed: int
    """In all rounds."""
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Medians of what a router is between its start and its stop."""

    name: str
    ready_s: float | None
    rss_idle_mb: float | None
    rss_loaded_mb: float | None


def rows(visits: Iterable[Visit]) -> list[Row]:
    """One row per part, router and number of connections, in the order of first appearance."""
    groups: dict[tuple[Part, str, int], list[Measured]] = {}
    for visit in visits:
        for seen in visit.figures:
            if isinstance(seen, Measured):
                groups.setdefault((visit.part, visit.name, seen.connections), []).append(seen)
    return [_row(part, name, group) for (part, name, _), group in groups.items()]


def stream_rows(visits: Iterable[Visit]) -> list[StreamRow]:
    """One row per router and number of streams, in the order of first appearance."""
    groups: dict[tuple[str, int], list[Streamed]] = {}
    for visit in visits:
        for seen in visit.figures:
            if isinstance(seen, Streamed):
                groups.setdefault((visit.name, seen.wave.streams), []).append(seen)
    return [_stream_row(name, group) for (name, _), group in groups.items()]


def footprints(visits: Sequence[Visit]) -> list[Footprint]:
    """One per router that started, of the first part that was measured."""
    groups: dict[str, list[Visit]] = {}
    for visit in visits:
        if visit.failure is None and visit.part is visits[0].part:
            groups.setdefault(visit.name, []).append(visit)
    return [
        Footprint(
            name,
            _median(group, lambda visit: visit.ready_s),
            _median(group, lambda visit: visit.rss_idle_mb),
            _median(group, lambda visit: visit.rss_loaded_mb),
        )
        for name, group in groups.items()
    ]


def _row(part: Part, name: str, group: Sequence[Measured]) -> Row:
    rates = [measured.sample.rate for measured in group]
    shares = [measured.shares for measured in group if measured.shares is not None]
    return Row(
        part=part,
        name=name,
        connections=group[0].connections,
        rate=median(rates),
        rate_range=(min(rates), max(rates)),
        p50_ms=median(measured.sample.p50_ms for measured in group),
        p99_ms=median(measured.sample.p99_ms for measured in group),
        cpu_us=_median(group, lambda measured: measured.cpu_us),
        shares=tuple(sum(column) / len(column) for column in zip(*shares, strict=True)) if shares else None,
        requests=sum(measured.sample.requests for measured in group),
        failed=sum(measured.sample.failed for measured in group),
        errors=_sum(measured.sample.errors for measured in group),
    )


def _stream_row(name: str, group: Sequence[Streamed]) -> StreamRow:
    waves = [streamed.wave for streamed in group]
    costs = [streamed.cpu_ms for streamed in group if streamed.cpu_ms is not None]
    return StreamRow(
        name=name,
        streams=waves[0].streams,
        cpu_ms=median(costs) if costs else None,
        cpu_range=(min(costs), max(costs)) if costs else None,
        p50_ms=median(wave.p50_ms for wave in waves),
        p99_ms=median(wave.p99_ms for wave in waves),
        max_ms=median(wave.max_ms for wave in waves),
        chunks=sum(wave.chunks for wave in waves),
        held=sum(wave.held for wave in waves),
        chunks_per_read=sum(wave.chunks for wave in waves) / max(1, sum(wave.reads for wave in waves)),
        late_p99_ms=median(wave.late_p99_ms for wave in waves),
        asked=sum(wave.streams for wave in waves),
        failed=sum(wave.failed for wave in waves),
        errors=_sum(wave.errors for wave in waves),
    )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for some in counts:
        for kind, count in some.items():
            total[kind] = total.get(kind, 0) + count
    return total


def _median(group: Iterable[T], value: Callable[[T], float | None]) -> float | None:
    values = [known for known in map(value, group) if known is not None]
    return median(values) if values else None
