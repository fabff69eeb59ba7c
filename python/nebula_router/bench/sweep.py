"""Rounds x routers x connections, with the routers interleaved so that a slow minute of the machine meets them all.

The order moves on by one each round, so that nobody always runs after the same neighbour.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nebula_router.bench import load, net, process, prompts, upstream
from nebula_router.bench.error import BenchError
from nebula_router.bench.peers import Entrant
from nebula_router.bench.result import Measured, Visit
from nebula_router.bench.upstream import Upstream

READY_S = 60.0
"""How long a router may take from its start to the first good reply."""
WARM_S = 1.0
ENGINES = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    seconds: float
    rounds: int
    connections: tuple[int, ...]
    logs: Path | None = None
    """Where each router's output goes; None: /dev/null, for all alike."""

    def steps(self, entrants: int) -> int:
        """How often `sweep` reports progress."""
        return self.rounds * entrants * (1 + len(self.connections))


@dataclass(frozen=True, slots=True)
class Bench:
    """What stays the same for all routers."""

    plan: Plan
    engines: Upstream
    lua: Path
    probe: bytes
    """A body that a ready router answers."""
    step: Callable[[str], None]
    """Told at the start of each step what it is."""


def sweep(entrants: Sequence[Entrant], plan: Plan, step: Callable[[str], None]) -> list[Visit]:
    """Measures all `entrants`. One that fails is reported, left out of later rounds, and stops nobody else.

    Raises:
        BenchError: when nginx or wrk are missing or fail.
    """
    bodies = prompts.chat_bodies(upstream.MODEL, extra={"max_tokens": 16, "temperature": 0})
    visits: list[Visit] = []
    failed: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="nebula-bench-") as name:
        folder = Path(name)
        lua = folder / "chat.lua"
        lua.write_text(load.script(bodies))
        upstream.find("wrk")
        with upstream.serve(folder, ENGINES) as engines:
            bench = Bench(plan, engines, lua, bodies[0], step)
            for number in range(1, plan.rounds + 1):
                turn = (number - 1) % len(entrants)
                for entrant in (*entrants[turn:], *entrants[:turn]):
                    if entrant.name not in failed:
                        visits.append(_visit(bench, entrant, number))
                        failed |= {entrant.name} if visits[-1].failure else set()
    order = [entrant.name for entrant in entrants]
    return sorted(visits, key=lambda visit: (visit.round, order.index(visit.name)))


def _visit(bench: Bench, entrant: Entrant, number: int) -> Visit:
    where = f"round {number}/{bench.plan.rounds} · {entrant.name}"
    bench.step(f"{where} · start")
    if entrant.command is None:
        return Visit(entrant.name, number, measured=_measure(bench, bench.engines.ports[0], where))
    port = net.free_port()
    command = entrant.command(port, bench.engines.urls)
    log = bench.plan.logs / f"{entrant.name}-{number}.log" if bench.plan.logs else None
    try:
        with process.started(entrant.name, command, log) as child:
            ready_s = child.await_ready(partial(net.complaint, port, upstream.CHAT, bench.probe), READY_S)
            idle = child.usage()
            measured = _measure(bench, port, where, child, routes=entrant.routes)
            loaded = child.usage()
    except (BenchError, OSError) as error:
        return Visit(entrant.name, number, failure=str(error))
    return Visit(entrant.name, number, ready_s, idle.rss_mb, loaded.rss_mb, measured)


def _measure(
    bench: Bench,
    port: int,
    where: str,
    child: process.Child | None = None,
    *,
    routes: bool = False,
) -> tuple[Measured, ...]:
    plan = bench.plan
    load.send(port, bench.lua, min(8, max(plan.connections)), WARM_S)
    measured = []
    for connections in plan.connections:
        bench.step(f"{where} · {connections} connections")
        counts = bench.engines.counts()
        before = child.usage().cpu_s if child else None
        sample = load.send(port, bench.lua, connections, plan.seconds)
        cpu_us = None
        if child and before is not None:
            child.check_alive()
            cpu_us = (child.usage().cpu_s - before) / max(1, sample.requests) * 1e6
        shares = _shares(counts, bench.engines.counts()) if routes else None
        measured.append(Measured(connections, sample, cpu_us, shares))
    return tuple(measured)


def _shares(before: Sequence[int], after: Sequence[int]) -> tuple[float, ...]:
    """Health probes are in it: a few in thousands."""
    counts = [late - early for early, late in zip(before, after, strict=True)]
    return tuple(count / max(1, sum(counts)) for count in counts)
