"""Shows a sweep: one table per number of connections, memory, the goals, and what has to be said beside them."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.bench.goals import goals
from nebula_router.bench.peers import DIRECT, REFERENCE
from nebula_router.bench.result import Row, Visit, footprints, rows
from nebula_router.bench.sweep import Plan

ABSENT = "-"
WIDTH = 120
"""What the widest table takes."""
COLUMNS = (
    "requests/s",
    "±%",
    "x",
    "p50 ms",
    "p99 ms",
    "added p50",
    "CPU µs/req",
    "x",
    "errors",
    "% per engine",
)


def show(console: Console, visits: Sequence[Visit], plan: Plan, remarks: Iterable[str]) -> None:
    """Prints everything, the `remarks` last."""
    lines = rows(visits)
    marks = footprints(visits)
    for connections in plan.connections:
        group = [row for row in lines if row.connections == connections]
        if group:
            console.print(_speed(group, plan))
    memory = Table(title="memory of all the router's processes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    memory.add_column("router")
    for heading in ("ready after s", "RSS MB idle", "RSS MB after load"):
        memory.add_column(heading, justify="right", no_wrap=True)
    for mark in (mark for mark in marks if mark.rss_idle_mb is not None):
        memory.add_row(mark.name, _number(mark.ready_s, 1), _number(mark.rss_idle_mb), _number(mark.rss_loaded_mb))
    console.print(memory)
    for goal in goals(lines, marks):
        style, verdict = ("green", "reached") if goal.met else ("red", "MISSED")
        sign = "≥" if goal.at_least else "≤"
        console.print(Text(f"{verdict:8}{goal.value:9.2f} {sign} {goal.limit:g}  {goal.text}", style))
    for line in (*failures(visits), *remarks):
        console.print(Text(line), soft_wrap=True)


def _speed(group: Sequence[Row], plan: Plan) -> Table:
    by_name = {row.name: row for row in group}
    reference, direct = by_name.get(REFERENCE), by_name.get(DIRECT)
    title = f"connections: {group[0].connections} (median of {plan.rounds} x {plan.seconds:g} s; x = times {REFERENCE})"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("router", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in group:
        low, high = row.rate_range
        table.add_row(
            row.name,
            f"{row.rate:,.0f}",
            _number((high - low) / 2 / row.rate * 100) if row.rate and plan.rounds > 1 else ABSENT,
            _ratio(row.rate, reference.rate if reference else None),
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            _number(row.p50_ms - direct.p50_ms, 2) if direct and row is not direct else ABSENT,
            _number(row.cpu_us),
            _ratio(row.cpu_us, reference.cpu_us if reference else None),
            Text(f"{row.failed:,}", "bold red" if row.failed else ""),
            " ".join(f"{share * 100:.0f}" for share in row.shares) if row.shares else ABSENT,
        )
    return table


def failures(visits: Sequence[Visit]) -> Iterator[str]:
    """What must be said of routers that failed, or failed requests."""
    for row in rows(visits):
        if row.failed:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in row.errors.items())
            yield f"FAILED {row.name}: {row.failed:,} of {row.requests:,} at {row.connections} connections ({kinds})"
    for visit in visits:
        if visit.failure:
            yield f"FAILED {visit.failure}"


def setting(plan: Plan) -> str:
    """What a reader must know of the way it was measured."""
    where = f"files in {plan.logs}" if plan.logs else "/dev/null"
    return (
        "wrk, the 4 nginx with their fixed reply and the router share the machine's cores; 'direct' is one of these "
        f"nginx, the floors answer themselves. Every router runs with its default log level, its output into {where}."
    )


def _number(value: float | None, digits: int = 0) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, reference: float | None) -> str:
    return f"{value / reference:.2f}" if value is not None and reference else ABSENT
