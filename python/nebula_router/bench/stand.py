"""What a router is measured with: the engines behind it, what is sent, and the figures that come of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nebula_router.bench import load, net, pacer, process, prompts, upstream, wave
from nebula_router.bench.peers import Entrant
from nebula_router.bench.result import Measured, Part, Streamed
from nebula_router.bench.upstream import Upstream

WARM_S = 1.0
WARM_CONNECTIONS = 8
WARM_CHUNKS = 10
ENGINES = 4
REPLY = {"max_tokens": 16, "temperature": 0}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    seconds: float
    rounds: int
    connections: tuple[int, ...]
    streams: tuple[int, ...] = ()
    parts: tuple[Part, ...] = (Part.REQUESTS,)
    chunks: int = 100
    """Of each stream."""
    gap_ms: int = 20
    """Between two chunks of a stream."""
    pace: pacer.Pace = pacer.Pace.SPREAD
    logs: Path | None = None
    """Where each router's output goes; None: /dev/null, for all alike."""

    def levels(self, part: Part) -> tuple[int, ...]:
        """The numbers of connections or of streams that `part` is measured with."""
        return self.streams if part is Part.STREAMS else self.connections

    def steps(self, entrants: Sequence[Entrant]) -> int:
        """How often a sweep reports progress."""
        return self.rounds * sum(
            1 + len(self.levels(part)) for part in self.parts for entrant in entrants if part in entrant.parts
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """A running router, or an engine in its place."""

    port: int
    child: process.Child | None = None
    """None: no router."""
    routes: bool = False

    def cpu_s(self) -> float | None:
        """What the router has used so far."""
        if self.child is None:
            return None
        self.child.check_alive()
        return self.child.usage().cpu_s

    def cpu_since(self, before: float | None) -> float | None:
        """What it has used since."""
        now = self.cpu_s()
        return None if now is None or before is None else now - before


@dataclass(frozen=True, slots=True)
class Requests:
    """Fixed replies from nginx; wrk sends as fast as it gets them."""

    part: Part
    plan: Plan
    engines: Upstream
    probe: tuple[str, bytes]
    """A path and a body that a ready router answers."""
    lua: Path

    def warm(self, subject: Subject) -> None:
        """Lets connections be made and caches be filled."""
        load.send(subject.port, self.lua, min(WARM_CONNECTIONS, max(self.plan.connections)), WARM_S)

    def measure(self, subject: Subject, level: int) -> Measured:
        """The figures at one number of connections."""
        counts, before = self.engines.counts(), subject.cpu_s()
        sample = load.send(subject.port, self.lua, level, self.plan.seconds)
        used = subject.cpu_since(before)
        cpu_us = None if used is None else used / max(1, sample.requests) * 1e6
        return Measured(level, sample, cpu_us, _shares(counts, self.engines.counts()) if subject.routes else None)


@dataclass(frozen=True, slots=True)
class Streams:
    """Paced streams from engines that tell when they wrote each chunk."""

    plan: Plan
    engines: Upstream
    probe: tuple[str, bytes]
    """A path and a body that a ready router answers."""
    part: Part = Part.STREAMS

    def warm(self, subject: Subject) -> None:
        """Lets connections be made and caches be filled."""
        wave.send(subject.port, max(self.plan.streams), WARM_CHUNKS, self.plan.gap_ms)

    def measure(self, subject: Subject, level: int) -> Streamed:
        """The figures at one number of streams."""
        before = subject.cpu_s()
        seen = wave.send(subject.port, level, self.plan.chunks, self.plan.gap_ms)
        used = subject.cpu_since(before)
        return Streamed(seen, None if used is None else used / max(1, seen.chunks) * 1e6)


Stand: TypeAlias = Requests | Streams
"""One part of the benchmark, with its engines running."""


@contextmanager
def fixed(folder: Path, plan: Plan) -> Iterator[list[Stand]]:
    """The stands of `plan` whose engines have fixed replies; they share them.

    Raises:
        BenchError: when nginx or wrk are missing or fail.
    """
    upstream.find("wrk")
    traffic: dict[Part, tuple[str, Callable[[], list[bytes]]]] = {
        Part.REQUESTS: (upstream.CHAT, lambda: prompts.chat_bodies(upstream.MODEL, extra=REPLY)),
        Part.TOKENS: (upstream.COMPLETIONS, lambda: prompts.token_bodies(upstream.MODEL, extra=REPLY)),
    }
    stands: list[Stand] = []
    with upstream.serve(folder, ENGINES) as engines:
        for part, (path, make) in traffic.items():
            if part in plan.parts:
                bodies = make()
                lua = folder / f"{part.value}.lua"
                lua.write_text(load.script(path, bodies))
                stands.append(Requests(part, plan, engines, (path, bodies[0]), lua))
        yield stands


@contextmanager
def paced(plan: Plan) -> Iterator[list[Stand]]:
    """The stand of the streams.

    Raises:
        BenchError: when its engines do not start.
    """
    with pacer.serve(plan.gap_ms, ENGINES, plan.pace, plan.logs) as engines:
        yield [Streams(plan, engines, (upstream.CHAT, wave.bodies(WARM_CHUNKS)[0]))]


def complaint(stand: Stand, port: int) -> str | None:
    """None once a router on `port` answers the stand's probe, else what it did instead."""
    return net.complaint(port, *stand.probe)


def _shares(before: Sequence[int], after: Sequence[int]) -> tuple[float, ...]:
    """Health probes are in it: a few in thousands."""
    counts = [late - early for early, late in zip(before, after, strict=True)]
    return tuple(count / max(1, sum(counts)) for count in counts)
