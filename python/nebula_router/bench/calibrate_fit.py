"""Coefficients of a step's time from measured times: least squares that are never negative, and robust."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls  # type: ignore[import-untyped]

from nebula_router.bench.calibrate_probe import Work

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

UNITS = np.array([1e-6, 1e-6, 1e-6, 1e-9, 1e-6, 1e-9])
"""Seconds of each coefficient's unit, in the order of the fields of `Work`."""
SPREADS = 4.0
"""Residuals further out than so many robust standard deviations are outliers."""
CLOSE = 0.05
"""Relative residuals below this one are never outliers."""
MOST_OUTLIERS = 0.2
"""Share of the points that may be left out."""
NORMAL = 1.4826
"""Standard deviations in a median absolute deviation, for normal errors."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The coefficients in the order of the fields of `Work`, and how well they tell the times they were made from."""

    coefficients: tuple[float, ...]
    """In µs, but ns for pairs and for resident tokens."""
    predicted_s: tuple[float, ...]
    """For each point."""
    outlier: tuple[bool, ...]
    """Points that were left out."""
    r2: float
    """Share of the variance of the relative times that is explained."""
    p50: float
    """Relative residuals, all points counted."""
    p90: float
    worst: float


def fit(work: Sequence[Work], seconds: Sequence[float]) -> Fit:
    """The coefficients that make the relative errors of all times smallest, none of them negative.

    Prefills and decodes weigh the same however many there are of each. The few points that fit worst are left out, as
    a machine that was busy elsewhere gives such, and the rest is fitted once more (one step of a trimmed fit).
    """
    rows = np.array([astuple(one) for one in work], dtype=float) * UNITS
    times = np.array(seconds, dtype=float)
    timed_requests = rows[:, 0] > 0
    weights = np.where(timed_requests, 1 / max(1, timed_requests.sum()), 1 / max(1, (~timed_requests).sum())) ** 0.5
    keep = np.ones(len(times), dtype=bool)
    solution = _solve(rows, times, weights, keep)
    keep = ~_outliers(rows @ solution / times - 1)
    solution = _solve(rows, times, weights, keep)
    predicted = rows @ solution
    errors = np.abs(predicted / times - 1)
    logs = np.log(times)
    spread = ((logs - logs.mean()) ** 2).sum()
    r2 = 1 - ((np.log(np.maximum(predicted, 1e-9)) - logs) ** 2).sum() / spread if spread else 1.0
    return Fit(
        coefficients=tuple(float(value) for value in solution),
        predicted_s=tuple(float(value) for value in predicted),
        outlier=tuple(bool(value) for value in ~keep),
        r2=float(r2),
        p50=float(np.quantile(errors, 0.5)),
        p90=float(np.quantile(errors, 0.9)),
        worst=float(errors.max()),
    )


def _solve(rows: Array, times: Array, weights: Array, keep: Mask) -> Array:
    """Least squares of relative errors. Columns are brought to one length first: their units are far apart."""
    scaled = rows[keep] * (weights[keep] / times[keep])[:, None]
    lengths = np.linalg.norm(scaled, axis=0)
    lengths[lengths == 0] = 1.0
    solution, _ = nnls(scaled / lengths, weights[keep])
    found: Array = solution / lengths
    return found


def _outliers(residuals: Array) -> Mask:
    """Which points fit far worse than most, `MOST_OUTLIERS` of them at most."""
    distances = np.abs(residuals - np.median(residuals))
    limit = max(CLOSE, SPREADS * NORMAL * float(np.median(distances)))
    worst = np.argsort(-distances)[: int(len(residuals) * MOST_OUTLIERS)]
    outliers = np.zeros(len(residuals), dtype=bool)
    outliers[worst] = distances[worst] > limit
    return outliers


def typical(values: Sequence[float]) -> float:
    """The median of those values that are not far from the median of all."""
    middle = median(values)
    spread = NORMAL * median(abs(value - middle) for value in values)
    return median(value for value in values if abs(value - middle) <= SPREADS * spread)
