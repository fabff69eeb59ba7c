"""Shows a calibration: coefficients, what was measured beside what they predict, and doubts."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.bench.calibrate import Calibration

FAR = 0.25
"""Relative error from which a line is marked."""
TERMS = (
    ("step_base_us", "µs", "each step"),
    ("prefill_us_per_token", "µs", "per prompt token that it computes"),
    ("prefill_ns_per_pair", "ns", "per pair of a prompt token and a token before it"),
    ("decode_us_per_seq", "µs", "per decoding request"),
    ("decode_ns_per_resident_token", "ns", "per token in the contexts of decoding requests"),
)


def show(console: Console, found: Calibration, remarks: Iterable[str]) -> None:
    """Prints everything, warnings and `remarks` last."""
    console.print(_coefficients(found))
    console.print(_points(found))
    fit = found.fit
    console.print(
        f"R² {fit.r2:.4f} (of the logarithms of the times); error p50 {fit.p50:.1%}, p90 {fit.p90:.1%}, "
        f"max {fit.worst:.1%}; {len(found.points)} points in {found.seconds:g} s",
        highlight=False,
    )
    for warning in found.warnings:
        console.print(Text(f"WARNING {warning}", "yellow"), soft_wrap=True)
    for line in remarks:
        console.print(Text(line), soft_wrap=True)


def _coefficients(found: Calibration) -> Table:
    engine = found.engine
    version = f", version {engine.version}" if engine.version else ""
    table = Table(
        title=f"time of a step: {engine.model}{version}", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for heading in ("coefficient", "value", "", "counts"):
        table.add_column(heading, justify="right" if heading == "value" else "left", no_wrap=True)
    for name, unit, what in TERMS:
        table.add_row(name, f"{getattr(found.timing, name):,.2f}", unit, what)
    table.add_row("overhead_ms", f"{found.overhead_ms:,.2f}", "ms", "per request, in its time to first token alone")
    return table


def _points(found: Calibration) -> Table:
    table = Table(title="measured and predicted", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("probe", no_wrap=True)
    for heading in ("times", "measured ms", "predicted ms", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for point in sorted(found.points, key=lambda point: not point.prefill):
        table.add_row(
            point.label,
            str(point.repeats),
            f"{point.measured_ms:,.2f}",
            f"{point.predicted_ms:,.2f}",
            Text(f"{point.error:+.1%}", "yellow" if abs(point.error) > FAR else ""),
            "outlier, left out" if point.outlier else "",
        )
    return table
