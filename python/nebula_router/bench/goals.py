"""The figures that the gateway has to reach, each beside what was measured in the same run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nebula_router.bench.peers import DIRECT, NEBULA, REFERENCE, SGLANG
from nebula_router.bench.result import Footprint, Row

CPU_RATIO = 0.6
RATE_RATIO = 2.0
RATE_CONNECTIONS = 64
LIGHT_CONNECTIONS = 1
ADDED_P50_MS = 0.5
ADDED_P99_MS = 2.0
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


def goals(rows: Sequence[Row], footprints: Iterable[Footprint]) -> list[Goal]:
    """Those whose figures are all there."""
    found: list[Goal] = []
    table = {(row.name, row.connections): row for row in rows}
    for connections in sorted({row.connections for row in rows}):
        ours = table.get((NEBULA, connections))
        if ours is None:
            continue
        for name, limit in ((REFERENCE, CPU_RATIO), (SGLANG, 1.0)):
            peer = table.get((name, connections))
            if peer and peer.cpu_us and ours.cpu_us is not None:
                text = f"CPU per request at {connections}, as a share of {name}'s"
                found.append(Goal(text, ours.cpu_us / peer.cpu_us, limit))
        peer = table.get((REFERENCE, connections))
        if connections == RATE_CONNECTIONS and peer:
            text = f"requests/s at {connections}, in multiples of {REFERENCE}'s"
            found.append(Goal(text, ours.rate / peer.rate, RATE_RATIO, at_least=True))
        direct = table.get((DIRECT, connections))
        if connections == LIGHT_CONNECTIONS and direct:
            found.append(Goal("added latency at 1, p50 ms", ours.p50_ms - direct.p50_ms, ADDED_P50_MS))
            found.append(Goal("added latency at 1, p99 ms", ours.p99_ms - direct.p99_ms, ADDED_P99_MS))
    idle = [mark.rss_idle_mb for mark in footprints if mark.name == NEBULA and mark.rss_idle_mb is not None]
    return found + [Goal("resident memory when idle, MB", value, IDLE_MB) for value in idle]
