"""How many engines it takes: what each size of the fleet does, beside the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nebula_router.simulate.column import number
from nebula_router.simulate.document import Outcome


@dataclass(frozen=True)
class Sizing:
    """One load on fleets of several sizes, smallest first."""

    outcomes: tuple[Outcome, ...]

    @property
    def title(self) -> str:
        """What is the same for all sizes."""
        scenario = self.outcomes[0].scenario
        if scenario.load is None:
            return f"sizes of the fleet at speed {scenario.speed:g}"
        return f"sizes of the fleet at load {scenario.load:.0%} of each one's saturation"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Engines of each fleet."""
        return tuple(outcome.scenario.engines for outcome in self.outcomes)

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies that were tried, in their order."""
        return tuple(report["policy"] for report in self.outcomes[0].reports)

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Per policy and size: the share of good requests, and the 99th percentile of the time to first token."""
        for place, policy in enumerate(self.policies):
            yield policy, [_cell(outcome, place) for outcome in self.outcomes]


def sizings(outcomes: Sequence[Outcome]) -> Iterator[Sizing]:
    """One for each load under which several sizes were tried."""
    for load in dict.fromkeys(outcome.scenario.load for outcome in outcomes):
        tried = sorted((it for it in outcomes if it.scenario.load == load), key=lambda it: it.scenario.engines)
        if len(tried) > 1:
            yield Sizing(tuple(tried))


def _cell(outcome: Outcome, place: int) -> str:
    summary = outcome.reports[place]["summary"]
    return f"{number(summary['goodput']['share'] * 100, 1)} % {number(summary['ttft_ms']['p99'], 0)} ms"
