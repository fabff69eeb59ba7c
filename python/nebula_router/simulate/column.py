"""The figures that tables show, and which of them is the best of its column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nebula_router.simulate.document import Outcome
from nebula_router.simulate.report import Report, Summary

BOUND: Final = "oracle"
"""Knows what no router can know: it shows how much there is to win, and wins no column."""


_WHOLE_FROM: Final = 1000


class Best(Enum):
    """Which value of a column is the best."""

    LOWEST = "lowest"
    HIGHEST = "highest"
    NONE = "none"


@dataclass(frozen=True)
class Column:
    """One figure of each policy."""

    group: str
    name: str
    value: Callable[[Summary], float]
    best: Best
    help: str
    digits: int = 1


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """The figures of one policy."""

    policy: str
    cells: tuple[Cell, ...]


COLUMNS: Final = (
    Column("TTFT ms", "mean", lambda it: it["ttft_ms"]["mean"], Best.LOWEST, "time to the first token"),
    Column("", "p50", lambda it: it["ttft_ms"]["p50"], Best.LOWEST, ""),
    Column("", "p90", lambda it: it["ttft_ms"]["p90"], Best.LOWEST, ""),
    Column("", "p99", lambda it: it["ttft_ms"]["p99"], Best.LOWEST, ""),
    Column("ITL ms", "mean", lambda it: it["itl_ms"]["mean"], Best.LOWEST, "time between two tokens of a reply"),
    Column("", "p99", lambda it: it["itl_ms"]["p99"], Best.LOWEST, ""),
    Column("end-to-end s", "mean", lambda it: it["e2e_ms"]["mean"] / 1e3, Best.LOWEST, "time to the last token", 2),
    Column("", "p99", lambda it: it["e2e_ms"]["p99"] / 1e3, Best.LOWEST, "", 2),
    Column("hit", "%", lambda it: it["hit_share"] * 100, Best.HIGHEST, "share of the prompt tokens found in a cache"),
    Column("good", "%", lambda it: it["goodput"]["share"] * 100, Best.HIGHEST, "requests that met the objective"),
    Column("", "req/s", lambda it: it["goodput"]["requests_per_s"], Best.HIGHEST, "", 2),
    Column(
        "load", "max/mean", lambda it: it["imbalance"], Best.LOWEST, "busy time of the busiest engine to the mean", 3
    ),
    Column("busy", "%", lambda it: it["busy_share"] * 100, Best.NONE, "share of the time that engines compute"),
    Column("pre-", "empted", lambda it: it["preemptions"], Best.LOWEST, "requests that lost their blocks", 0),
    Column("took", "s", lambda it: it["duration_s"], Best.NONE, "simulated time, first arrival to last token", 0),
)


def rows(outcome: Outcome) -> list[Row]:
    """One row per policy; of each column the best is marked, unless all are the same."""
    columns = [_cells(column, outcome.reports) for column in COLUMNS]
    return [
        Row(report["policy"], tuple(cells[number] for cells in columns))
        for number, report in enumerate(outcome.reports)
    ]


def _cells(column: Column, reports: Sequence[Report]) -> list[Cell]:
    values = [column.value(report["summary"]) for report in reports]
    texts = [number(value, column.digits) for value in values]
    eligible = [value for value, report in zip(values, reports, strict=True) if report["policy"] != BOUND]
    if column.best is Best.NONE or len(set(texts)) == 1 or not eligible:
        return [Cell(text, best=False) for text in texts]
    best = number(min(eligible) if column.best is Best.LOWEST else max(eligible), column.digits)
    return [
        Cell(text, best=text == best and report["policy"] != BOUND) for text, report in zip(texts, reports, strict=True)
    ]


def number(value: float, digits: int) -> str:
    """A figure with so many digits behind the point; without any from 1,000 on."""
    return f"{value:,.{digits}f}" if abs(value) < _WHOLE_FROM else f"{value:,.0f}"
