"""Pictures of a comparison. Needs matplotlib, which the extra `plot` brings."""

from io import BytesIO
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from nebula_router.bench.live.compare import Run, Values

DPI: Final = 100
SIZE: Final = (14.0, 9.0)
_POINTS: Final = 1500
"""Of a curve: more cannot be seen."""
_LEAST_MS: Final = 0.01
"""Shown for anything below: the axis is logarithmic."""
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Told apart by people of any colour vision (after Okabe and Ito, 2008)."""
_STYLE: Final[dict[Any, Any]] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "#e1e4e8",
    "legend.frameon": False,
}


def picture(runs: list[Run]) -> bytes:
    """A PNG: how many requests were at most so slow, and the throughput; equal runs give equal bytes."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=SIZE)
        (first, gaps), (whole, bars) = figure.subplots(2, 2, gridspec_kw={"hspace": 0.32, "wspace": 0.2})
        figure.subplots_adjust(left=0.07, right=0.97, top=0.88, bottom=0.08)
        _curves(first, "Time to first token", runs, [_shares(run.values("ttft")) for run in runs])
        _curves(gaps, "Time between tokens", runs, [run.gaps() for run in runs])
        _curves(whole, "Time to the end of the reply", runs, [_shares(run.values("e2el")) for run in runs])
        _bars(bars, runs)
        handles = [mpl.lines.Line2D([], [], label=run.name, **_look(place)) for place, run in enumerate(runs)]
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.06, 0.97), ncols=min(6, len(runs)))
        out = BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _shares(values: Values) -> tuple[Values, Values]:
    ordered = np.sort(values)
    return ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered))


def _curves(axes: Axes, title: str, runs: list[Run], curves: list[tuple[Values, Values]]) -> None:
    for place, (ms, share) in enumerate(curves[: len(runs)]):
        shown = np.unique(np.linspace(0, max(0, len(ms) - 1), min(_POINTS, len(ms))).astype(int))
        axes.plot(np.maximum(ms[shown], _LEAST_MS), share[shown], drawstyle="steps-post", **_look(place))
    axes.set(title=title, xscale="log", xlabel="ms", ylabel="at most", ylim=(0, 1.01))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _bars(axes: Axes, runs: list[Run]) -> None:
    found = [run.line["output_throughput"] for run in runs]
    bars = axes.barh(range(len(runs)), found, color=[_look(place)["color"] for place in range(len(runs))])
    requests = [
        f" {value:,.0f} tok/s, {run.line['request_throughput']:,.1f} req/s"
        for value, run in zip(found, runs, strict=True)
    ]
    axes.bar_label(bars, requests)
    axes.set_yticks(range(len(runs)), [run.name for run in runs])
    axes.invert_yaxis()
    axes.set(title="Throughput", xlabel="output tokens per second", xlim=(0, 1.45 * max(*found, 1e-9)))


def _look(place: int) -> dict[str, Any]:
    """A run looks the same in every picture: a colour, and where those run out, dashes."""
    turn, colour = divmod(place, len(_COLOURS))
    return {"color": _COLOURS[colour], "linestyle": "--" if turn else "-", "linewidth": 1.8}
