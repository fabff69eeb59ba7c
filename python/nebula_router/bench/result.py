"""What was measured, and its medians over the rounds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from nebula_router.bench.load import Sample

T = TypeVar("T")


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
class Visit:
    """One router in one round, from its start to its stop."""

    name: str
    round: int
    ready_s: float | None = None
    rss_idle_mb: float | None = None
    rss_loaded_mb: float | None = None
    measured: tuple[Measured, ...] = ()
    failure: str | None = None
    """Why there is nothing measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one router under one number of connections."""

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
class Footprint:
    """Medians of what a router is between its start and its stop."""

    name: str
    ready_s: float | None
    rss_idle_mb: float | None
    rss_loaded_mb: float | None


def rows(visits: Iterable[Visit]) -> list[Row]:
    """One row per router and number of connections, in the order of first appearance."""
    groups: dict[tuple[str, int], list[Measured]] = {}
    for visit in visits:
        for measured in visit.measured:
            groups.setdefault((visit.name, measured.connections), []).append(measured)
    return [_row(name, group) for (name, _), group in groups.items()]


def footprints(visits: Iterable[Visit]) -> list[Footprint]:
    """One per router that started."""
    groups: dict[str, list[Visit]] = {}
    for visit in visits:
        if visit.failure is None:
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


def _row(name: str, group: Sequence[Measured]) -> Row:
    errors: dict[str, int] = {}
    for measured in group:
        for kind, count in measured.sample.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    rates = [measured.sample.rate for measured in group]
    shares = [measured.shares for measured in group if measured.shares is not None]
    return Row(
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
        errors=errors,
    )


def _median(group: Iterable[T], value: Callable[[T], float | None]) -> float | None:
    values = [known for known in map(value, group) if known is not None]
    return median(values) if values else None
