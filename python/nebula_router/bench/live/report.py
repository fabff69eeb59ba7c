"""A comparison, shown: a table for people, a document for scripts."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.bench.error import BenchError
from nebula_router.bench.live import line
from nebula_router.bench.live.compare import LEVEL, Figure, Row, Run, compare, named
from nebula_router.bench.live.plot import picture

ABSENT: Final = "-"
PICTURE: Final = Path("report.png")
"""Where the picture goes that nobody says a place for."""
WIDTH: Final = 120
"""What a table may take where nobody says how wide the terminal is."""


def report(files: Sequence[Path], plot: Path | None, seed: int, *, as_json: bool) -> None:
    """Reads results, compares them, shows that, and draws it where `plot` says.

    Raises:
        BenchError: A file that holds no results, or that cannot be written.
    """
    runs = named([(file, line.read(file)) for file in files])
    rows = compare(runs, seed)
    if as_json:
        sys.stdout.write(json.dumps(document(runs, rows), indent=1) + "\n")
    else:
        console = Console()
        console.width = max(console.width, WIDTH)
        show(console, runs, rows)
        plot = plot or PICTURE
    if plot is None:
        return
    try:
        plot.write_bytes(picture(runs))
    except OSError as error:
        raise BenchError(f"--plot {plot}: cannot be written: {error.strerror}") from None
    if not as_json:
        console.print(f"wrote {plot}", markup=False, highlight=False, soft_wrap=True)


def show(console: Console, runs: list[Run], rows: list[Row]) -> None:
    """Prints the comparison and what must be known of its runs."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for place, run in enumerate(runs):
        table.add_column(run.name, justify="right", no_wrap=True)
        if place:
            table.add_column(f"against {runs[0].name}", justify="right", no_wrap=True)
    for row in rows:
        cells: list[Text | str] = []
        for place, figure in enumerate(row.figures):
            cells.append(_value(figure))
            if place:
                cells.append(_difference(row, figure))
        table.add_row(f"{row.name}, {row.unit}" if row.unit else row.name, *cells)
    console.print(table)
    console.print(
        f"In brackets: {LEVEL:g}% confidence, by resampling requests within a run; in colour where it leaves out zero."
        " It tells nothing of what differs from one run to the next: repeat them.",
        highlight=False,
    )
    for remark in remarks(runs):
        console.print(Text(remark, "yellow"), soft_wrap=True)


def document(runs: list[Run], rows: list[Row]) -> dict[str, Any]:
    """The comparison, to be read by a script."""
    about = ("date", "label", "base_url", "model_id", "machine", "options", "completed", "failed", "errors")
    return {
        "runs": [{"name": run.name, **{key: run.line[key] for key in about}} for run in runs],
        "confidence_percent": LEVEL,
        "rows": [asdict(row) for row in rows],
        "remarks": remarks(runs),
    }


def remarks(runs: list[Run]) -> list[str]:
    """What makes runs less comparable than they look."""
    found = []
    first = runs[0].line
    for run in runs:
        if run.line["interrupted"]:
            found.append(f"{run.name} was interrupted")
        if run.line["failed"]:
            found.append(f"{run.name}: {run.line['failed']} requests failed, which no latency tells of")
    for run in runs[1:]:
        if run.line["source"] != first["source"] or run.line["dataset"] != first["dataset"]:
            found.append(f"{run.name} asked something else than {runs[0].name}")
        for key, what in (("request_rate", "--request-rate"), ("max_concurrency", "--max-concurrency")):
            if run.line[key] != first[key]:
                found.append(f"{run.name} has {what} {run.line[key]}, {runs[0].name} {first[key]}")
        ours, theirs = (line["machine"] for line in (first, run.line))
        if (ours["cpu"], ours["cores"]) != (theirs["cpu"], theirs["cores"]):
            found.append(f"{run.name} was measured from another machine than {runs[0].name}")
    return found


def _value(figure: Figure) -> str:
    if figure.value is None:
        return ABSENT
    return _number(figure.value) + _brackets(figure.interval, _number)


def _difference(row: Row, figure: Figure) -> Text | str:
    if figure.difference is None:
        return ABSENT
    good = (figure.difference < 0) == (row.better == "lower")
    style = ("green" if good else "red") if figure.sure else ""
    return Text(_percent(figure.difference) + _brackets(figure.difference_interval, _percent), style)


def _brackets(interval: tuple[float, float] | None, shown: Any) -> str:  # noqa: ANN401 - a function of one number
    return "" if interval is None else f" [{shown(interval[0])}, {shown(interval[1])}]"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _percent(share: float) -> str:
    return f"{share * 100:+.1f}%"
