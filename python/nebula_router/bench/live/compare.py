"""Runs beside each other: how they differ, and how sure that is. Needs numpy, which the extra `plot` brings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLED: Final = 1000
"""Resamples of each run."""
AT_ONCE: Final = 1_000_000
"""Values that are drawn at once: what they take in memory is bounded."""
LEVEL: Final = 95.0
"""Of the confidence intervals, in per cent."""
FEWEST: Final = 8
"""Requests below which no interval is told."""
METRICS: Final = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}
"""Metrics of which there is a value per request."""


@dataclass(frozen=True)
class Run:
    """One run, by the name that it has in the comparison."""

    name: str
    line: dict[str, Any]

    def values(self, metric: str) -> Values:
        """Milliseconds, one per request that has this metric, in the order in which they were due."""
        requests = self.line["requests"]
        order = np.argsort(np.asarray(requests["start_us"], dtype=np.int64), kind="stable")
        column = np.asarray([np.nan if us is None else us for us in requests[f"{metric}_us"]], dtype=np.float64)
        ordered = column[order] / 1e3
        kept: Values = ordered[~np.isnan(ordered)]
        return kept

    def gaps(self) -> tuple[Values, Values]:
        """The gaps between tokens: milliseconds, and how many were at most so long, as a share."""
        us = np.asarray(self.line["itl"]["us"], dtype=np.float64)
        count = np.cumsum(np.asarray(self.line["itl"]["count"], dtype=np.float64))
        return us / 1e3, count / count[-1] if len(count) else count


@dataclass(frozen=True)
class Figure:
    """One figure of one run."""

    value: float | None
    interval: tuple[float, float] | None = None
    """Where it lies with a confidence of `LEVEL`; none where nothing is known of its spread."""
    difference: float | None = None
    """To the first run, as a share of that one's."""
    difference_interval: tuple[float, float] | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        return self.difference_interval is not None and not (
            self.difference_interval[0] <= 0 <= self.difference_interval[1]
        )


@dataclass(frozen=True)
class Row:
    """One figure of every run."""

    name: str
    unit: str
    better: str
    """`lower`, `higher`, or empty."""
    figures: tuple[Figure, ...]


def named(files: list[tuple[Path, list[dict[str, Any]]]]) -> list[Run]:
    """The runs of files with names that tell them apart: the label, else the file, else its number in the file too."""
    runs = [(file.stem, number, line) for file, lines in files for number, line in enumerate(lines, 1)]
    labels = [line["label"] for _, _, line in runs]
    stems = [stem for stem, _, _ in runs]
    if len(set(labels)) == len(labels):
        return [Run(line["label"], line) for _, _, line in runs]
    if len(set(stems)) == len(stems):
        return [Run(stem, line) for stem, _, line in runs]
    return [Run(f"{stem} #{number}", line) for stem, number, line in runs]


def compare(runs: list[Run], seed: int) -> list[Row]:
    """The figures of all runs; differences are to the first."""
    rows = [
        _plain("failed requests", "", "lower", [run.line["failed"] for run in runs]),
        _plain("request throughput", "req/s", "higher", [run.line["request_throughput"] for run in runs]),
        _plain("output throughput", "tok/s", "higher", [run.line["output_throughput"] for run in runs]),
    ]
    goodput = [run.line["request_goodput"] for run in runs]
    if any(value is not None for value in goodput):
        rows.append(_plain("goodput", "req/s", "higher", goodput))
    shares = [run.line["cached_share"] for run in runs]
    if any(share is not None for share in shares):
        percent = [None if share is None else 100 * share for share in shares]
        rows.append(_plain("cached share of input", "%", "higher", percent))
    for metric, short in METRICS.items():
        values = [run.values(metric) for run in runs]
        if any(len(one) for one in values):
            rows += _metric(short, values, np.random.default_rng([seed, *metric.encode()]))
    if any(len(run.line["itl"]["us"]) for run in runs):
        for name, share in (("median", 0.5), ("p99", 0.99)):
            rows.append(_plain(f"{name} ITL", "ms", "lower", [_gap(run, share) for run in runs]))
    return rows


def _plain(name: str, unit: str, better: str, values: list[float | None]) -> Row:
    """A figure of which there is one per run."""
    base = values[0]
    figures = [
        Figure(value, difference=(value - base) / base if place and value is not None and base else None)
        for place, value in enumerate(values)
    ]
    return Row(name, unit, better, tuple(figures))


def _metric(short: str, values: list[Values], rng: np.random.Generator) -> list[Row]:
    """Mean, median and 99th percentile of a metric, with intervals."""
    found = [_statistics(one) if len(one) else None for one in values]
    drawn = [_resampled(one, rng) if len(one) >= FEWEST else None for one in values]
    rows = []
    for place, statistic in enumerate(("mean", "median", "p99")):
        base, base_drawn = found[0], drawn[0]
        figures = []
        for number, (own, own_drawn) in enumerate(zip(found, drawn, strict=True)):
            interval = _interval(own_drawn[:, place]) if own_drawn is not None else None
            difference, spread = None, None
            if number and own is not None and base is not None and base[place] > 0:
                difference = float(own[place] / base[place] - 1)
                if own_drawn is not None and base_drawn is not None:
                    spread = _interval(own_drawn[:, place] / np.maximum(base_drawn[:, place], 1e-9) - 1)
            figures.append(Figure(None if own is None else float(own[place]), interval, difference, spread))
        rows.append(Row(f"{statistic} {short}", "ms", "lower", tuple(figures)))
    return rows


def _statistics(values: Values) -> Values:
    """Mean, median and 99th percentile over the last axis, which they take the place of."""
    return np.stack([values.mean(-1), *np.percentile(values, [50, 99], axis=-1)], axis=-1)


def _resampled(values: Values, rng: np.random.Generator) -> Values:
    """The statistics of resamples.

    Requests that follow each other wait in the same queues, so that neighbours are drawn together: the circular block
    bootstrap (Politis and Romano, 1992) with blocks as long as the cube root of the number of requests.
    """
    count = len(values)
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    within = np.arange(length)
    at_once = max(1, AT_ONCE // count)
    drawn = []
    for start in range(0, RESAMPLED, at_once):
        resamples = min(at_once, RESAMPLED - start)
        starts = rng.integers(0, count, size=(resamples, blocks, 1))
        chosen = (starts + within).reshape(resamples, -1)[:, :count] % count
        drawn.append(_statistics(values[chosen]))
    return np.concatenate(drawn)


def _interval(drawn: Values) -> tuple[float, float]:
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def _gap(run: Run, share: float) -> float | None:
    ms, shares = run.gaps()
    return float(ms[np.searchsorted(shares, share)]) if len(ms) else None
