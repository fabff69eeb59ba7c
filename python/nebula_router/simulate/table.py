"""Tables for a terminal: one per fleet and load, and one over the sizes of the fleet."""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.simulate.column import BOUND, COLUMNS, rows
from nebula_router.simulate.document import Findings, Outcome, about
from nebula_router.simulate.sizing import Sizing, sizings

WIDTH: Final = 148
"""What the widest table takes."""
MARK: Final = "*"


def show(console: Console, findings: Findings) -> None:
    """Prints everything."""
    for word, what in about(findings):
        console.print(Text(f"{word:>10}  {what}"), soft_wrap=True)
    for outcome in findings.outcomes:
        console.print()
        if outcome.saturation:
            console.print(Text(saturated(outcome)), soft_wrap=True)
        console.print(Text(outcome.scenario.title, "bold"), soft_wrap=True)
        console.print(_figures(outcome))
    for sizing in sizings(findings.outcomes):
        console.print()
        console.print(Text(f"{sizing.title}: good requests, p99 TTFT", "bold"), soft_wrap=True)
        console.print(_sizes(sizing))
    if len(findings.plan.policies) > 1:
        bound = f"; {BOUND} knows what no router can know, and is left out" if BOUND in findings.plan.policies else ""
        console.print(Text(f"{MARK} best of its column{bound}", "dim"), soft_wrap=True)


def saturated(outcome: Outcome) -> str:
    """Where the fleet stops keeping up, in words."""
    found = outcome.saturation
    if found is None:
        return ""
    burst = f"; a burst, not a load: all come within {found.arrivals_s:,.1f} s, and one takes {found.request_s:,.1f} s"
    return (
        f"{found.engines:,} engines keep up to speed {found.speed:g} under least_loaded: {found.requests_per_s:,.2f} "
        f"requests/s, {found.output_tokens_per_s:,.0f} tokens/s{burst if found.short else ''}"
    )


def _figures(outcome: Outcome) -> Table:
    table = _table([f"{column.group} \n{column.name} " for column in COLUMNS])
    for row in rows(outcome):
        cells = [_cell(cell.text, best=cell.best) for cell in row.cells]
        table.add_row(row.policy, *cells, style="dim" if row.policy == BOUND else "")
    return table


def _sizes(sizing: Sizing) -> Table:
    table = _table([f"{size:,} engines" for size in sizing.sizes])
    for policy, cells in sizing.rows():
        table.add_row(policy, *cells, style="dim" if policy == BOUND else "")
    return table


def _cell(text: str, *, best: bool) -> Text:
    """The mark has a place of its own, so that digits stand under digits."""
    return Text.assemble((text, "bold green" if best else ""), (MARK if best else " ", "green"))


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("\npolicy" if any("\n" in heading for heading in headings) else "policy", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
