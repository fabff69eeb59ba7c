"""The figures that the gateway has to reach, beside what was measured in the same run where that is possible."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nebula_router.bench.peers import DIRECT, EXACT, NEBULA, REFERENCE, SGLANG
from nebula_router.bench.result import Footprint, Part, Row, StreamRow
from nebula_router.bench.wave import HELD_MS

CPU_RATIO = 0.6
RATE_RATIO = 2.0
RATE_CONNECTIONS = 64
LIGHT_CONNECTIONS = 1
ADDED_P50_MS = 0.5
ADDED_P99_MS = 2.0
DYNAMO_US = {1: 11_500, 8: 4_500, 64: 3_300}
"""CPU per request of the frontend of ai-dynamo 1.4.2 with KV routing and exact tokens on such a machine, the last at 32
connections. It brings its own engines, which ran beside it, and so cannot stand in the same run."""
DYNAMO_RATIO = 1 / 20
STREAMS = 256
IDLE_MB = 120.0


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the verdict."""

    text: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether `value` is on the right side of `limit`."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def goals(rows: Sequence[Row], streams: Sequence[StreamRow], footprints: Iterable[Footprint]) -> list[Goal]:
    """Those whose figures are all there."""
    idle = [mark.rss_idle_mb for mark in footprints if mark.name == NEBULA and mark.rss_idle_mb is not None]
    return [
        *_of_requests(rows),
        *_of_tokens(rows),
        *_of_exact(rows),
        *_of_streams(streams),
        *(Goal("resident memory when idle, MB", value, IDLE_MB) for value in idle),
    ]


def _of_requests(rows: Sequence[Row]) -> Iterator[Goal]:
    table = {(row.name, row.connections): row for row in rows if row.part is Part.REQUESTS}
    for ours in (row for row in table.values() if row.name == NEBULA):
        connections = ours.connections
        for name, limit in ((REFERENCE, CPU_RATIO), (SGLANG, 1.0)):
            peer = table.get((name, connections))
            if peer and peer.cpu_us and ours.cpu_us is not None:
                text = f"CPU per request at {connections}, as a share of {name}'s"
                yield Goal(text, ours.cpu_us / peer.cpu_us, limit)
        peer = table.get((REFERENCE, connections))
        if connections == RATE_CONNECTIONS and peer and peer.rate:
            text = f"requests/s at {connections}, in multiples of {REFERENCE}'s"
            yield Goal(text, ours.rate / peer.rate, RATE_RATIO, at_least=True)
        direct = table.get((DIRECT, connections))
        if connections == LIGHT_CONNECTIONS and direct:
            yield Goal("added latency at 1, p50 ms", ours.p50_ms - direct.p50_ms, ADDED_P50_MS)
            yield Goal("added latency at 1, p99 ms", ours.p99_ms - direct.p99_ms, ADDED_P99_MS)


def _of_tokens(rows: Sequence[Row]) -> Iterator[Goal]:
    for ours in rows:
        dynamo_us = DYNAMO_US.get(ours.connections)
        if (ours.part, ours.name) == (Part.TOKENS, NEBULA) and dynamo_us and ours.cpu_us is not None:
            text = f"token ids: CPU per request at {ours.connections}, as a share of Dynamo's frontend, measured apart"
            yield Goal(text, ours.cpu_us / dynamo_us, DYNAMO_RATIO)


def _of_exact(rows: Sequence[Row]) -> Iterator[Goal]:
    table = {(row.name, row.connections): row for row in rows if row.part is Part.REQUESTS}
    for ours in (row for row in table.values() if row.name == EXACT and row.cpu_us is not None):
        connections = ours.connections
        cpu_us = ours.cpu_us or 0.0
        dynamo_us = DYNAMO_US.get(connections)
        if dynamo_us:
            text = f"exact tokens: CPU per request at {connections}, as a share of Dynamo's frontend, measured apart"
            yield Goal(text, cpu_us / dynamo_us, DYNAMO_RATIO)
        peer = table.get((REFERENCE, connections))
        if peer and peer.cpu_us:
            text = f"exact tokens: CPU per request at {connections}, as a share of {REFERENCE}'s"
            yield Goal(text, cpu_us / peer.cpu_us, CPU_RATIO)


def _of_streams(rows: Sequence[StreamRow]) -> Iterator[Goal]:
    table = {(row.name, row.streams): row for row in rows}
    ours, peer = table.get((NEBULA, STREAMS)), table.get((REFERENCE, STREAMS))
    if ours and peer and peer.cpu_ms and ours.cpu_ms is not None:
        text = f"CPU per 1,000 chunks at {STREAMS} streams, as a share of {REFERENCE}'s"
        yield Goal(text, ours.cpu_ms / peer.cpu_ms, 1.0)
    if ours:
        yield Goal(f"chunks held over {HELD_MS:g} ms at {STREAMS} streams", ours.held, 0)
