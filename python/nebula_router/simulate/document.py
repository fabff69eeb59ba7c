"""All that was found, and what is needed to find it again.

It holds neither the time nor the machine: equal flags give equal bytes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nebula_router
from nebula_router.simulate.plan import Plan, Scenario
from nebula_router.simulate.report import Report
from nebula_router.simulate.saturation import Saturation


@dataclass(frozen=True)
class Outcome:
    """What one fleet under one load did, by policy."""

    scenario: Scenario
    saturation: Saturation | None
    """Where the load is a share of it."""
    reports: tuple[Report, ...]


@dataclass(frozen=True)
class Findings:
    """What every fleet did."""

    plan: Plan
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    """What was assumed while the workload was read."""

    @property
    def requests(self) -> int:
        """Requests of each run."""
        return self.outcomes[0].reports[0]["requests"]


def document(findings: Findings) -> dict[str, Any]:
    """The findings as JSON takes them, but for single requests."""
    plan = findings.plan
    trace = plan.trace
    return {
        "nebula_router": nebula_router.__version__,
        "workload": {
            **plan.source,
            "trace": trace and {"name": trace.name, "sha256": trace.sha256, "limit": plan.options.limit},
            "requests": findings.requests,
            "notes": list(findings.notes),
        },
        "seed": plan.options.seed,
        "slo": plan.slo,
        "events": plan.events,
        "preset": plan.preset,
        "calibration": plan.calibration,
        "engine": plan.engine,
        "route": plan.route,
        "scenarios": [_scenario(outcome) for outcome in findings.outcomes],
    }


def _scenario(outcome: Outcome) -> dict[str, Any]:
    return {
        **asdict(outcome.scenario),
        "saturation": outcome.saturation and asdict(outcome.saturation),
        "runs": [_run(report) for report in outcome.reports],
    }


def _run(report: Report) -> dict[str, Any]:
    return {name: report[name] for name in ("policy", "summary", "per_engine", "series")}


def about(findings: Findings) -> Sequence[tuple[str, str]]:
    """What a reader must know of the runs, as pairs of a word and what it says."""
    plan = findings.plan
    options, engine = plan.options, plan.engine
    if plan.trace:
        guessed = ", as its beginning tells" if plan.trace.guessed else ""
        workload = f"{plan.trace.name}, {plan.trace.kind}{guessed}"
    else:
        values = plan.workload.model_dump().items()
        workload = f"{plan.workload.name} ({', '.join(f'{name} {value}' for name, value in values)})"
    times = f"times from {plan.calibration}" if plan.calibration else f"preset {plan.preset}"
    tokens = (engine["kv_blocks"] - 1) * engine["block_size"]
    lost = f"{options.event_loss:.1%} lost" if options.event_loss else "none lost"
    events = (
        f"after {options.event_delay_ms:g} ms, {lost}"
        if options.events
        else "none: what was routed is all that is known"
    )
    step = f"{engine['max_num_batched_tokens']:,} tokens and {engine['max_num_seqs']:,} requests per step"
    return (
        ("workload", f"{workload}; {findings.requests:,} requests, seed {options.seed}"),
        ("engine", f"{times}; {tokens:,} tokens of KV cache, {step}"),
        ("events", events),
        ("objective", f"first token in {options.slo_ttft_ms:g} ms, then {options.slo_itl_ms:g} ms per token or less"),
        *(("note", note) for note in findings.notes),
    )
