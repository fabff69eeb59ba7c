"""Pictures of what fleets did. Needs matplotlib, which only this module imports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from nebula_router.core import SIM_POLICIES
from nebula_router.simulate.document import Outcome
from nebula_router.simulate.report import Report, Requests
from nebula_router.simulate.sizing import Sizing

DPI: Final = 100
SIZE: Final = (16.0, 10.5)
"""In inches: 1,600 pixels wide."""
_LEFT: Final = 0.066
"""Where the first panel begins: in front of it is room for numbers as long as 100,000."""
_POINTS: Final = 1500
"""Of a curve: more cannot be seen."""
_ONE_ROW: Final = 8
"""Policies that the legend holds in one row."""
_STRETCHES: Final = 60
"""Of time, over which hits are counted; fewer where each would have fewer requests than the next number."""
_PER_STRETCH: Final = 100
_MINUTES_FROM_S: Final = 600
_SHORT: Final = 3e3
"""Ratio of the ends of a logarithmic axis up to which there is room for more than whole powers."""
_MARKED: Final = 32
"""Engines up to which each has a mark."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Theme:
    """Colours. Those of lines are told apart by people of any colour vision (after Okabe and Ito, 2008)."""

    name: str
    paper: str
    ink: str
    grid: str
    lines: tuple[str, ...]


LIGHT: Final = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2024",
    grid="#e1e4e8",
    lines=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"),
)
DARK: Final = Theme(
    name="dark",
    paper="#16191d",
    ink="#e6e8ea",
    grid="#30353b",
    lines=("#4da3e0", "#f0743e", "#1fc796", "#e29ac4", "#f2b53c", "#9ad5f7", "#a6a6a6", "#ffffff"),
)


def picture(outcome: Outcome, slo_ttft_ms: float, theme: Theme) -> bytes:
    """A PNG of one fleet under one load: first tokens, hits, load per engine; equal outcomes give equal bytes."""

    def draw(figure: Figure) -> None:
        (cdf, hits), (load, dots) = figure.subplots(2, 2, gridspec_kw={"hspace": 0.30, "wspace": 0.17})
        _frame(figure, outcome.scenario.title)
        _cdf(cdf, outcome.reports, theme, slo_ttft_ms)
        _hits(hits, outcome.reports, theme)
        _load(load, outcome.reports, theme)
        _dots(dots, outcome.reports, theme, slo_ttft_ms)
        _legend(figure, [report["policy"] for report in outcome.reports], theme)

    return _png(draw, SIZE, theme)


def sizes(sizing: Sizing, theme: Theme) -> bytes:
    """A PNG of what each size of the fleet does."""

    def draw(figure: Figure) -> None:
        slow, good = figure.subplots(1, 2, gridspec_kw={"wspace": 0.17})
        _frame(figure, sizing.title)
        for place, policy in enumerate(sizing.policies):
            found = [outcome.reports[place]["summary"] for outcome in sizing.outcomes]
            style = look(policy, theme) | {"marker": "o"}
            slow.plot(sizing.sizes, [it["ttft_ms"]["p99"] for it in found], **style)
            good.plot(sizing.sizes, [it["goodput"]["share"] for it in found], **style)
        slow.set(title="Slowest 1% of first tokens", yscale="log", ylabel="TTFT p99, ms")
        _logarithmic(slow.yaxis)
        good.set(title="Requests that meet the objective", ylabel="good requests", ylim=(-0.02, 1.04))
        good.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axes in (slow, good):
            axes.set(xscale="log", xlabel="engines", xticks=sizing.sizes)
            axes.xaxis.set_major_formatter(FuncFormatter(_plain))
            axes.minorticks_off()
        _legend(figure, sizing.policies, theme)

    return _png(draw, (SIZE[0], SIZE[1] * 0.6), theme)


def _cdf(axes: Axes, reports: Sequence[Report], theme: Theme, slo_ttft_ms: float) -> None:
    for report in reports:
        values = np.sort(np.asarray(report["per_request"]["ttft_ms"]))
        share = np.arange(1, len(values) + 1) / len(values)
        shown = np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(int))
        axes.plot(np.maximum(values[shown], 0.1), share[shown], **look(report["policy"], theme))
    axes.set(title="Time to first token", xscale="log", xlabel="TTFT, ms", ylabel="share of requests", ylim=(0, 1.01))
    _logarithmic(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _objective(axes, slo_ttft_ms, theme)


def _hits(axes: Axes, reports: Sequence[Report], theme: Theme) -> None:
    longest = max(max(report["per_request"]["arrival_ms"]) for report in reports) / 1e3
    unit, seconds = ("minutes", 60) if longest >= _MINUTES_FROM_S else ("seconds", 1)
    most = 0.0
    for report in reports:
        times, shares = _hit_shares(report["per_request"])
        most = max(most, *shares)
        axes.plot(times / seconds, shares, **look(report["policy"], theme))
    axes.set(
        title="Prompt tokens found in a cache", xlabel=f"simulated time, {unit}", ylabel="hit share", xlim=(0, None)
    )
    axes.set_ylim(0, min(1.01, max(0.05, 1.08 * most)))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _hit_shares(requests: Requests) -> tuple[FloatArray, FloatArray]:
    """The ends in s of the stretches of time in which there were requests, and the hit share of each."""
    arrival = np.asarray(requests["arrival_ms"]) / 1e3
    stretches = int(np.clip(len(arrival) // _PER_STRETCH, 1, _STRETCHES))
    edges = np.linspace(0, max(float(arrival.max()), 1e-3), stretches + 1)
    place = np.clip(np.searchsorted(edges, arrival, side="left") - 1, 0, stretches - 1)
    prompt = np.bincount(place, requests["prompt"], stretches)
    cached = np.bincount(place, requests["cached"], stretches)
    asked = prompt > 0
    return edges[1:][asked], cached[asked] / prompt[asked]


def _load(axes: Axes, reports: Sequence[Report], theme: Theme) -> None:
    for report in reports:
        mean = sum(engine["busy_s"] for engine in report["per_engine"]) / len(report["per_engine"])
        busy = sorted((engine["busy_s"] / (mean or 1.0) for engine in report["per_engine"]), reverse=True)
        style = look(report["policy"], theme)
        if len(busy) <= _MARKED:
            style |= {"marker": "o", "markersize": 4.5}
        axes.plot(range(1, len(busy) + 1), busy, **style)
    axes.set(title="Load per engine", xlabel="engines, busiest first", ylabel="busy time, multiple of the mean")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.95), max(high, 1.05))


def _dots(axes: Axes, reports: Sequence[Report], theme: Theme, slo_ttft_ms: float) -> None:
    ranked = sorted(reports, key=lambda report: report["summary"]["ttft_ms"]["mean"], reverse=True)
    for place, report in enumerate(ranked):
        spread, colour = report["summary"]["ttft_ms"], look(report["policy"], theme)["color"]
        axes.plot([spread["p50"], spread["p99"]], [place, place], color=colour, linewidth=2, alpha=0.5)
        for name, mark in _MARKS.items():
            axes.plot([spread[name]], [place], mark, color=colour, markersize=9)  # type: ignore[literal-required]
        axes.annotate(
            f"{spread['mean']:,.0f}",
            (spread["mean"], place),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(ranked)), [report["policy"] for report in ranked])
    axes.set(title="Its mean and percentiles", xscale="log", xlabel="TTFT, ms")
    axes.set_ylim(-0.6, len(ranked) - 0.3)
    _logarithmic(axes.xaxis)
    _objective(axes, slo_ttft_ms, theme)
    keys = [Line2D([], [], color=theme.ink, linestyle="", marker=mark, label=name) for name, mark in _MARKS.items()]
    axes.legend(
        handles=keys, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(keys), fontsize=9.5, borderaxespad=0.1
    )


_MARKS: Final = {"p50": "|", "mean": "o", "p90": ">", "p99": "D"}


def _objective(axes: Axes, slo_ttft_ms: float, theme: Theme) -> None:
    low, high = axes.get_xlim()
    if low < slo_ttft_ms < high:
        axes.axvline(slo_ttft_ms, color=theme.ink, linewidth=1, linestyle=":")
        axes.annotate(
            "objective", (slo_ttft_ms, 0.02), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
            fontsize=9,
        )  # fmt: skip


def _frame(figure: Figure, title: str) -> None:
    """Room for the title and the legend, of the same height in every picture."""
    figure.subplots_adjust(left=_LEFT, right=0.975, top=_from_top(figure, 1.47), bottom=0.68 / figure.get_figheight())
    figure.suptitle(title, x=_LEFT, y=_from_top(figure, 0.2), ha="left", va="top", fontsize=17, fontweight="bold")


def _from_top(figure: Figure, inches: float) -> float:
    return float(1 - inches / figure.get_figheight())


def _legend(figure: Figure, policies: Sequence[str], theme: Theme) -> None:
    lines = [Line2D([], [], label=policy, **look(policy, theme)) for policy in policies]
    figure.legend(
        handles=lines,
        loc="upper left",
        bbox_to_anchor=(_LEFT - 0.007, _from_top(figure, 0.5)),
        ncols=len(lines) if len(lines) <= _ONE_ROW else -(-len(lines) // 2),
        fontsize=11,
        handlelength=2.6,
    )


def look(policy: str, theme: Theme) -> dict[str, Any]:
    """A policy looks the same in every picture: a colour, and where those run out, dashes."""
    turn, colour = divmod(SIM_POLICIES.index(policy), len(theme.lines))
    return {
        "color": theme.lines[colour],
        "linestyle": "--" if turn else "-",
        "linewidth": 2.6 if policy == SIM_POLICIES[0] else 1.7,
        "zorder": 3 if policy == SIM_POLICIES[0] else 2,
    }


def _logarithmic(axis: Axis) -> None:
    """Numbers as people write them, where a decade is long enough at 1, 2 and 5."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < low * _SHORT else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _place: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _png(draw: Callable[[Figure], None], size: tuple[float, float], theme: Theme) -> bytes:
    """What is drawn, free of the user's own style, of time stamps and of the version that drew it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        ink = dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), theme.ink
        )
        paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.paper)
        style: dict[Any, Any] = {
            **ink,
            **paper,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 13,
            "axes.titleweight": "bold",
            "axes.labelsize": 11,
            "grid.color": theme.grid,
            "legend.frameon": False,
        }
        mpl.rcParams.update(style)
        figure = Figure(figsize=size)
        draw(figure)
        out = BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
