"""The findings as one HTML page that needs nothing else: tables, pictures, light and dark."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

import nebula_router
from nebula_router.simulate.column import BOUND, COLUMNS, Row, rows
from nebula_router.simulate.document import Findings, Outcome, about
from nebula_router.simulate.sizing import sizings
from nebula_router.simulate.table import saturated

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --soft: #5c6670; --line: #d9dde1; --mark: #e3f4ea; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e6e8ea; --soft: #9aa4ae; --line: #30353b; --mark: #17392a; }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 1600px;
  margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dd { margin: 0; }
dt, .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; }
td.best { background: var(--mark); font-weight: 700; } tr.bound { color: var(--soft); font-style: italic; }
img { width: 100%; height: auto; margin-top: 1rem; }
"""

Pictures = Mapping[str, tuple[bytes, bytes]]
"""By title of what they show: the same PNG, light and dark."""


def page(findings: Findings, pictures: Pictures) -> str:
    """The page; what has no picture is shown without."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>nebula simulate</title><style>{_STYLE}</style></head>',
            "<body>",
            "<h1>Simulated fleets</h1>",
            "<dl>",
            *(f"<dt>{escape(word)}</dt><dd>{escape(what)}</dd>" for word, what in about(findings)),
            "</dl>",
            *_fleets(findings.outcomes, pictures),
            *_sizes(findings.outcomes, pictures),
            f'<p class="soft">{escape(_legend(findings))}</p>',
            "</body>",
            "</html>",
            "",
        ]
    )


def _fleets(outcomes: Sequence[Outcome], pictures: Pictures) -> Iterator[str]:
    for outcome in outcomes:
        yield f"<h2>{escape(outcome.scenario.title)}</h2>"
        if outcome.saturation:
            yield f"<p>{escape(saturated(outcome))}.</p>"
        heads = [
            f'<th title="{escape(column.help)}">{escape(column.group)}<br>{escape(column.name)}</th>'
            for column in COLUMNS
        ]
        yield from _table(heads, (_row(row) for row in rows(outcome)))
        yield from _picture(outcome.scenario.title, pictures)


def _row(row: Row) -> str:
    cells = [
        f'<td class="best">{escape(it.text)}</td>' if it.best else f"<td>{escape(it.text)}</td>" for it in row.cells
    ]
    return _line(row.policy, cells)


def _sizes(outcomes: Sequence[Outcome], pictures: Pictures) -> Iterator[str]:
    for sizing in sizings(outcomes):
        yield f"<h2>{escape(sizing.title)}</h2>"
        yield '<p class="soft">Good requests, and the 99th percentile of the time to first token.</p>'
        lines = (_line(policy, [f"<td>{escape(cell)}</td>" for cell in cells]) for policy, cells in sizing.rows())
        yield from _table([f"<th>{size:,} engines</th>" for size in sizing.sizes], lines)
        yield from _picture(sizing.title, pictures)


def _table(heads: Sequence[str], lines: Iterator[str]) -> Iterator[str]:
    yield '<div class="wide"><table>'
    yield f"<thead><tr><th>policy</th>{''.join(heads)}</tr></thead><tbody>"
    yield from lines
    yield "</tbody></table></div>"


def _line(policy: str, cells: Sequence[str]) -> str:
    bound = ' class="bound"' if policy == BOUND else ""
    return f"<tr{bound}><td>{escape(policy)}</td>{''.join(cells)}</tr>"


def _picture(title: str, pictures: Pictures) -> Iterator[str]:
    if title in pictures:
        light, dark = (f"data:image/png;base64,{b64encode(png).decode()}" for png in pictures[title])
        yield f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        yield f'<img src="{light}" alt="{escape(title)}: first tokens, hits and load by policy"></picture>'


def _legend(findings: Findings) -> str:
    bound = (
        f" {BOUND} knows what no router can know: it is the bound, and wins no column." if _has_bound(findings) else ""
    )
    return f"Marked: the best of a column.{bound} Times are virtual. nebula-router {nebula_router.__version__}."


def _has_bound(findings: Findings) -> bool:
    return BOUND in findings.plan.policies
