"""Rounds x parts x routers, with the routers interleaved so that a slow minute of the machine meets them all.

The order moves on by one each round, so that nobody always runs after the same neighbour. Each part starts the router
anew: what one part left in its memory is nothing that the next one has to carry.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nebula_router.bench import net, process, stand
from nebula_router.bench.error import BenchError
from nebula_router.bench.peers import Entrant
from nebula_router.bench.result import Measured, Part, Streamed, Visit
from nebula_router.bench.stand import Plan, Stand, Subject

READY_S = 60.0
"""How long a router may take from its start to the first good reply."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One router at one stand in one round."""

    stand: Stand
    entrant: Entrant
    plan: Plan
    round: int
    step: Callable[[str], None]
    """Told at the start of each step what it is."""

    def say(self, what: str) -> None:
        """Reports a step."""
        self.step(f"round {self.round}/{self.plan.rounds} · {self.stand.part.value} · {self.entrant.name} · {what}")


def sweep(entrants: Sequence[Entrant], plan: Plan, step: Callable[[str], None]) -> list[Visit]:
    """Measures all `entrants`. One that fails is reported, left out of later rounds, and stops nobody else.

    Raises:
        BenchError: when nginx or wrk are missing or fail.
    """
    visits: list[Visit] = []
    failed: set[tuple[str, Part]] = set()
    with ExitStack() as stack:
        stands: list[Stand] = []
        if {Part.REQUESTS, Part.TOKENS} & set(plan.parts):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nebula-bench-"))
            stands += stack.enter_context(stand.fixed(Path(folder), plan))
        if Part.STREAMS in plan.parts:
            stands += stack.enter_context(stand.paced(plan))
        for number in range(1, plan.rounds + 1):
            turn = (number - 1) % len(entrants)
            for here in stands:
                for entrant in (*entrants[turn:], *entrants[:turn]):
                    key = (entrant.name, here.part)
                    if key not in failed and here.part in entrant.parts:
                        visits.append(_visit(Turn(here, entrant, plan, number, step)))
                        failed |= {key} if visits[-1].failure else set()
    order = [entrant.name for entrant in entrants]
    parts = list(Part)
    return sorted(visits, key=lambda visit: (visit.round, parts.index(visit.part), order.index(visit.name)))


def _visit(turn: Turn) -> Visit:
    entrant, here, part = turn.entrant, turn.stand, turn.stand.part
    turn.say("start")
    try:
        if entrant.command is None:
            return Visit(entrant.name, turn.round, part, figures=_measure(turn, Subject(here.engines.ports[0])))
        port = net.free_port()
        log = turn.plan.logs / f"{entrant.name}-{part.value}-{turn.round}.log" if turn.plan.logs else None
        with process.started(entrant.name, entrant.command(port, here.engines.urls), log) as child:
            ready_s = child.await_ready(partial(stand.complaint, here, port), READY_S)
            idle = child.usage()
            figures = _measure(turn, Subject(port, child, entrant.routes))
            loaded = child.usage()
    except (BenchError, OSError) as error:
        return Visit(entrant.name, turn.round, part, failure=str(error))
    return Visit(entrant.name, turn.round, part, ready_s, idle.rss_mb, loaded.rss_mb, figures)


def _measure(turn: Turn, subject: Subject) -> tuple[Measured | Streamed, ...]:
    turn.stand.warm(subject)
    unit = "streams" if turn.stand.part is Part.STREAMS else "connections"
    figures: list[Measured | Streamed] = []
    for level in turn.plan.levels(turn.stand.part):
        turn.say(f"{level} {unit}")
        figures.append(turn.stand.measure(subject, level))
    return tuple(figures)
