"""Shows a sweep: a table per number of connections or streams, memory, the goals, and what has to be said of them."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.bench.goals import goals
from nebula_router.bench.pacer import Pace
from nebula_router.bench.peers import DIRECT, REFERENCE, SGLANG_ROUTER
from nebula_router.bench.result import Part, Row, StreamRow, Visit, footprints, rows, stream_rows
from nebula_router.bench.stand import Plan
from nebula_router.bench.wave import HELD_MS

ABSENT = "-"
WIDTH = 120
"""What the widest table takes."""
SPEED = (
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
PACE = (
    "CPU ms/1,000",
    "±%",
    "x",
    "p50 ms",
    "p99 ms",
    "max ms",
    "added p50",
    "added p99",
    f">{HELD_MS:g} ms",
    "errors",
)
PACES = {
    Pace.SPREAD: "the streams spread over that time",
    Pace.STEPS: "all streams of an engine at once",
}
TIMES = f", x = times {REFERENCE}"
PROMPTS = {Part.REQUESTS: "chat prompts of 4 KB", Part.TOKENS: "prompts of 1,000 token ids"}


def show(console: Console, visits: Sequence[Visit], plan: Plan, remarks: Iterable[str]) -> None:
    """Prints everything, the `remarks` last."""
    lines, streams, marks = rows(visits), stream_rows(visits), footprints(visits)
    for part in PROMPTS:
        for connections in plan.connections:
            group = [row for row in lines if (row.part, row.connections) == (part, connections)]
            if group:
                console.print(_speed(group, plan))
    for number in plan.streams:
        paced = [row for row in streams if row.streams == number]
        if paced:
            console.print(_pace(paced, plan))
    memory = _table("memory of all the router's processes", ("ready after s", "RSS MB idle", "RSS MB after load"))
    for mark in (mark for mark in marks if mark.rss_idle_mb is not None):
        memory.add_row(mark.name, _number(mark.ready_s, 1), _number(mark.rss_idle_mb), _number(mark.rss_loaded_mb))
    console.print(memory)
    for goal in goals(lines, streams, marks):
        style, verdict = ("green", "reached") if goal.met else ("red", "MISSED")
        sign = "≥" if goal.at_least else "≤"
        console.print(Text(f"{verdict:8}{goal.value:9.2f} {sign} {goal.limit:g}  {goal.text}", style))
    for line in (*failures(visits), *remarks):
        console.print(Text(line), soft_wrap=True)


def _speed(group: Sequence[Row], plan: Plan) -> Table:
    by_name = {row.name: row for row in group}
    reference, direct = by_name.get(REFERENCE), by_name.get(DIRECT)
    how = f"median of {plan.rounds} x {plan.seconds:g} s{TIMES if reference else ''}"
    table = _table(f"{PROMPTS[group[0].part]}, connections: {group[0].connections} ({how})", SPEED)
    for row in group:
        table.add_row(
            row.name,
            f"{row.rate:,.0f}",
            _spread(row.rate, row.rate_range, plan),
            _ratio(row.rate, reference.rate if reference else None),
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            _number(row.p50_ms - direct.p50_ms, 2) if direct and row is not direct else ABSENT,
            _number(row.cpu_us),
            _ratio(row.cpu_us, reference.cpu_us if reference else None),
            _count(row.failed),
            " ".join(f"{share * 100:.0f}" for share in row.shares) if row.shares else ABSENT,
        )
    return table


def _pace(group: Sequence[StreamRow], plan: Plan) -> Table:
    by_name = {row.name: row for row in group}
    reference, direct = by_name.get(REFERENCE), by_name.get(DIRECT)
    how = f"median of {plan.rounds}, ms of a chunk on its way{TIMES if reference else ''}"
    table = _table(f"streams: {group[0].streams}, {plan.chunks} chunks at {plan.gap_ms} ms ({how})", PACE)
    for row in group:
        added = direct if row is not direct else None
        table.add_row(
            row.name,
            _number(row.cpu_ms, 1),
            _spread(row.cpu_ms, row.cpu_range, plan),
            _ratio(row.cpu_ms, reference.cpu_ms if reference else None),
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.max_ms:.1f}",
            _number(row.p50_ms - added.p50_ms, 2) if added else ABSENT,
            _number(row.p99_ms - added.p99_ms, 2) if added else ABSENT,
            _count(row.held),
            _count(row.failed),
        )
    return table


def failures(visits: Sequence[Visit]) -> Iterator[str]:
    """What must be said of routers that failed, or failed requests."""
    for row in rows(visits):
        if row.failed:
            what = f"{row.failed:,} of {row.requests:,} at {row.connections} connections"
            yield f"FAILED {row.part.value}, {row.name}: {what} ({_kinds(row.errors)})"
    for paced in stream_rows(visits):
        if paced.failed:
            what = f"{paced.failed:,} of {paced.asked:,} at {paced.streams} streams"
            yield f"FAILED streams, {paced.name}: {what} ({_kinds(paced.errors)})"
    for visit in visits:
        if visit.failure:
            yield f"FAILED {visit.part.value}, {visit.failure}"


def setting(plan: Plan) -> Iterator[str]:
    """What a reader must know of the way it was measured."""
    where = f"files in {plan.logs}" if plan.logs else "/dev/null"
    yield (
        "The load generator, the engines and the router share the machine's cores. Every router runs with its default "
        f"log level, its output into {where}."
    )
    if set(PROMPTS) & set(plan.parts):
        yield "Requests: wrk, 4 nginx with a fixed reply; 'direct' is one of these nginx, the floors answer themselves."
    if Part.TOKENS in plan.parts:
        yield f"{SGLANG_ROUTER.requirement} refuses prompts of token ids (422)."
    if Part.STREAMS in plan.parts:
        yield (
            f"Streams: 4 engines in one process write each stream's chunks {plan.gap_ms} ms apart, {PACES[plan.pace]}; "
            "each stream is checked to its last byte."
        )


def lateness(visits: Sequence[Visit]) -> Iterator[str]:
    """A warning where the engines did not keep their own pace: what was measured then is the machine."""
    for row in stream_rows(visits):
        if row.late_p99_ms > HELD_MS:
            late = f"the engines wrote up to {row.late_p99_ms:.1f} ms late (p99)"
            yield f"LATE with {row.name} at {row.streams} streams {late}; repeat this on a quiet machine"


def _table(title: str, headings: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("router", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _spread(value: float | None, low_high: tuple[float, float] | None, plan: Plan) -> str:
    if not value or low_high is None or plan.rounds == 1:
        return ABSENT
    return _number((low_high[1] - low_high[0]) / 2 / value * 100)


def _kinds(errors: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in errors.items())


def _count(bad: int) -> Text:
    return Text(f"{bad:,}", "bold red" if bad else "")


def _number(value: float | None, digits: int = 0) -> str:
    return ABSENT if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, reference: float | None) -> str:
    return f"{value / reference:.2f}" if value is not None and reference else ABSENT
