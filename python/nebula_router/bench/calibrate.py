"""Fits the timing model of the simulator to a live engine, over HTTP alone.

An idle engine answers probes whose steps are known (`calibrate_probe`); medians of what the client saw are fitted by
the coefficients of a step's time (`calibrate_fit`). What HTTP and the engine's front end add to each request is fitted
beside them, as a constant of its own.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from nebula_router.bench import calibrate_engine
from nebula_router.bench.calibrate_client import Client, Target
from nebula_router.bench.calibrate_engine import Engine
from nebula_router.bench.calibrate_probe import Decode, Limits, Prefill, Probe, Work, plan
from nebula_router.bench.error import BenchError
from nebula_router.presets import Timing

if TYPE_CHECKING:
    from nebula_router.bench.calibrate_fit import Fit

FIRST_ROUND = 0.6
"""Share of the time after which the first round asks no more: its probes get longer and longer."""
FEWEST = 4
"""Points of each kind without which nothing can be fitted."""
POOR_P90 = 0.2
"""Relative residual of the worst tenth of the points above which a fit is called poor."""
POOR_R2 = 0.9
SLOWEST_REPLY_S = 120.0
COEFFICIENTS = ("request_us", *(field.name for field in fields(Timing)))
"""What is fitted, in the order of the fields of `Work`."""

Progress = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what is under way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and for how long."""

    base_url: str
    model: str | None
    key: str | None
    limits: Limits
    seconds: float
    rounds: int
    block_size: int | None = None
    """For an engine that does not tell."""
    kv_blocks: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One probe over all rounds: what was measured, and what the fit makes of it."""

    label: str
    prefill: bool
    repeats: int
    measured_ms: float
    """Time to first token of a prefill, time of a step of a decode; the median."""
    predicted_ms: float
    outlier: bool
    """Left out of the fit."""

    @property
    def error(self) -> float:
        """How much more is predicted than measured, as a share."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """An engine's times, and what is known of it."""

    engine: Engine
    plan: Plan
    timing: Timing
    overhead_ms: float
    """What each request's first token takes beside the steps of the engine."""
    points: tuple[Point, ...]
    fit: "Fit"
    seconds: float
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What is written: the settings of a simulated engine by their names, then where they come from."""
        limits = self.plan.limits
        known = {
            "timing": asdict(self.timing),
            "overhead_ms": self.overhead_ms,
            "block_size": self.engine.block_size,
            "kv_blocks": self.engine.kv_blocks,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "max_num_seqs": limits.max_num_seqs,
            "max_model_len": self.engine.max_model_len,
        }
        return {
            **{name: value for name, value in known.items() if value is not None},
            "fit": {
                "r2": self.fit.r2,
                "error_p50": self.fit.p50,
                "error_p90": self.fit.p90,
                "error_max": self.fit.worst,
                "warnings": list(self.warnings),
                "points": [asdict(point) for point in self.points],
            },
            "engine": {"model": self.engine.model, "version": self.engine.version},
            "seconds": self.seconds,
        }


def calibrate(plan: Plan, progress: Progress) -> Calibration:
    """The times of the engine that `plan` names.

    Raises:
        BenchError: it is not there, or refuses, or is too slow for the time that is given.
    """
    return asyncio.run(_calibrate(plan, progress))


async def _calibrate(told: Plan, progress: Progress) -> Calibration:
    try:
        from nebula_router.bench.calibrate_fit import fit, typical  # noqa: PLC0415 - numpy and scipy are extras
    except ImportError as error:
        raise BenchError(f"{error.name} is missing: pip install 'nebula-router[bench]'") from None
    begin = time.monotonic()
    with closing(Client(Target.of(told.base_url, told.key), SLOWEST_REPLY_S)) as client:
        seen = await calibrate_engine.look(client, told.model)
        engine = replace(
            seen, block_size=told.block_size or seen.block_size, kv_blocks=told.kv_blocks or seen.kv_blocks
        )
        survey = Survey(client, engine, told, progress)
        await survey.run()
    points = [(probe, takes) for probe, takes in survey.takes if takes]
    for kind, word in ((Prefill, "prompt lengths"), (Decode, "batches")):
        if sum(isinstance(probe, kind) for probe, _ in points) < FEWEST:
            raise BenchError(f"fewer than {FEWEST} {word} could be measured in {told.seconds:g} s: give more --seconds")
    times = [typical([seconds for seconds, _ in takes]) for _, takes in points]
    fitted = fit([takes[0][1] for _, takes in points], times)
    overhead_us, *coefficients = fitted.coefficients
    return Calibration(
        engine=engine,
        plan=told,
        timing=Timing(*(round(value, 4) for value in coefficients)),
        overhead_ms=round(overhead_us / 1e3, 4),
        points=tuple(
            Point(probe.label, isinstance(probe, Prefill), len(takes), seconds * 1e3, predicted * 1e3, outlier)
            for (probe, takes), seconds, predicted, outlier in zip(
                points, times, fitted.predicted_s, fitted.outlier, strict=True
            )
        ),
        fit=fitted,
        seconds=round(time.monotonic() - begin, 1),
        warnings=(*survey.warnings, *doubts(engine, fitted)),
    )


class Survey:
    """Takes every probe, round by round, until the rounds or the time are over."""

    def __init__(self, client: Client, engine: Engine, told: Plan, progress: Progress) -> None:
        self.warnings: list[str] = []
        self.takes: list[tuple[Probe, list[tuple[float, Work]]]] = [(probe, []) for probe in plan(engine, told.limits)]
        self._client = client
        self._engine = engine
        self._told = told
        self._progress = progress
        self._began = time.monotonic()
        self._busiest = 0.0

    async def run(self) -> None:
        """Fills `takes` and `warnings`.

        The order is another in each round: a time in which the machine is busy elsewhere hits no probe twice.
        """
        order = list(self.takes)
        for turn in range(self._told.rounds):
            self._busiest = max(self._busiest, await calibrate_engine.others(self._client))
            for at, (probe, takes) in enumerate(order):
                spent = (time.monotonic() - self._began) / self._told.seconds
                if spent > (1.0 if turn else FIRST_ROUND):
                    order = order[:at]
                    break
                done = (turn + at / len(order)) / self._told.rounds
                self._progress(max(done, spent), f"round {turn + 1} of {self._told.rounds}: {probe.label}")
                await self._take(probe, takes, warm_up=turn == 0)
            random.shuffle(order)
        self._warn()

    async def _take(self, probe: Probe, takes: list[tuple[float, Work]], *, warm_up: bool) -> None:
        if warm_up and isinstance(probe, Decode):
            # Its prompts get into the cache, so that the streams begin together from now on.
            await asyncio.gather(*(self._client.complete(self._engine.model, one, 1) for one in probe.prompts))
        if took := await probe.take(self._client, self._engine.model, self._told.limits.max_num_batched_tokens):
            takes.append(took)

    def _warn(self) -> None:
        if left := sum(not takes for _, takes in self.takes):
            self.warnings.append(
                f"{left} of {len(self.takes)} probes, the longest, were left out for want of time; --seconds gives it"
            )
        if self._busiest:
            self.warnings.append(
                f"the engine had up to {self._busiest:.0f} requests of others meanwhile: repeat this while it is idle"
            )


def doubts(engine: Engine, fitted: "Fit") -> list[str]:
    """What speaks against trusting a fit, one sentence each."""
    found = []
    if engine.ranks > 1:
        found.append(f"{engine.ranks} data-parallel ranks share this URL: what was fitted is none of them alone")
    if engine.block_size is None or engine.kv_blocks is None:
        found.append("the engine does not tell its KV cache: --block-size and --kv-blocks do")
    if fitted.p90 > POOR_P90 or fitted.r2 < POOR_R2:
        found.append(
            f"the fit is poor: a tenth of the points is off by {fitted.p90:.0%} or more (R² {fitted.r2:.3f}). Was the "
            "machine busy? Is --max-num-batched-tokens what the engine was started with?"
        )
    zero = [name for name, value in zip(COEFFICIENTS, fitted.coefficients, strict=True) if value == 0]
    if zero:
        found.append(f"no effect was found of {', '.join(zero)}: too small to see, or hidden by noise")
    return found
