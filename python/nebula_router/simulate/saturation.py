"""The fastest that a fleet keeps up with.

A fleet that is asked for more than it can do lets work pile up: conversations wait ever longer, in proportion to the
time that this goes on. So a fleet keeps up at a speed while two things hold. A conversation's time of waiting for first
tokens, over all its turns, exceeds on average that of an idle fleet by at most `SLACK` of the simulated time; a fleet
that is asked for 2% more than its capacity is about there, however long the workload is. And the workload is done no
later than at a lower speed: what thrashes does less the more it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nebula_router.simulate.report import Report, Summary
from nebula_router.sources import ConfigError

POLICY: Final = "least_loaded"
"""The plain balancer by which all are measured."""
SLACK: Final = 0.01
IDLE: Final = 0.001
"""Speed at which practically no two requests meet."""
PRECISION: Final = 1.01
"""Most that the speed may be off, as a ratio."""
_UPWARD: Final = 16
"""Doublings after which a workload is too short for a fleet to have such a speed."""
_DOWNWARD: Final = 9
"""Halvings after which a fleet is too small: it is idle at no speed that is above `IDLE`."""
_LONG: Final = 10
"""Times that one request takes, in which all should come."""

Run = Callable[[float], Report]
"""What becomes of the workload at a speed."""


@dataclass(frozen=True)
class Saturation:
    """Where a fleet stops keeping up."""

    engines: int
    speed: float
    """The highest that was found to be kept up with."""
    requests_per_s: float
    """Answered at that speed."""
    output_tokens_per_s: float
    arrivals_s: float
    """Time in which all requests came at that speed."""
    request_s: float
    """Time that one took then, on average."""

    @property
    def short(self) -> bool:
        """Whether the requests came in so short a time that this tells more of a burst than of a load."""
        return self.arrivals_s < _LONG * self.request_s


def find(engines: int, run: Run) -> Saturation:
    """The highest speed at which a fleet keeps up, within 1%.

    Raises:
        ConfigError: The fleet keeps up at every speed, or at none.
    """
    idle = run(IDLE)
    idle_s = waited_s(idle)
    if idle_s > SLACK * idle["summary"]["duration_s"]:
        raise _never(engines, IDLE)
    kept: dict[float, Summary] = {}

    def keeps_up(speed: float) -> bool:
        report = run(speed)
        lasts = report["summary"]["duration_s"]
        slower = min((summary["duration_s"] for summary in kept.values()), default=lasts)
        fits = waited_s(report) - idle_s <= SLACK * lasts and lasts <= slower
        if fits:
            kept[speed] = report["summary"]
        return fits

    low, high = _bracket(engines, keeps_up)
    while high / low > PRECISION:
        middle = float(f"{(low * high) ** 0.5:.4g}")
        low, high = (middle, high) if keeps_up(middle) else (low, middle)
    best = kept[low]
    return Saturation(
        engines=engines,
        speed=low,
        requests_per_s=best["requests_per_s"],
        output_tokens_per_s=best["output_tokens_per_s"],
        arrivals_s=best["duration_s"] - best["drain_s"],
        request_s=best["e2e_ms"]["mean"] / 1e3,
    )


def waited_s(report: Report) -> float:
    """The time that a conversation waits for first tokens, over all its turns, on average."""
    return report["summary"]["ttft_ms"]["mean"] / 1e3 * report["requests"] / report["sessions"]


def _bracket(engines: int, keeps_up: Callable[[float], bool]) -> tuple[float, float]:
    """A speed that is kept up with, and twice it, which is not."""
    speed = 1.0
    up = keeps_up(speed)
    for _ in range(_UPWARD if up else _DOWNWARD):
        following = speed * 2 if up else speed / 2
        if keeps_up(following) != up:
            return min(speed, following), max(speed, following)
        speed = following
    if up:
        raise ConfigError(
            f"--load: {engines:,} engines keep up however fast they are asked: the workload is too short to fill them; "
            "use more requests or fewer --engines, or set --speed"
        )
    raise _never(engines, speed)


def _never(engines: int, speed: float) -> ConfigError:
    return ConfigError(
        f"--load: {engines:,} engines do not keep up even at speed {speed:g}; they are too few, or the workload spans "
        "hardly any time; use more --engines or more requests, or set --speed"
    )
