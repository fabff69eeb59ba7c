"""Every fleet of a plan under each load by each policy."""

from collections.abc import Iterator, Mapping
from functools import partial

from nebula_router.simulate import saturation
from nebula_router.simulate.bar import Bar
from nebula_router.simulate.document import Findings, Outcome
from nebula_router.simulate.plan import Plan, Scenario
from nebula_router.simulate.report import Report
from nebula_router.simulate.run import Runner
from nebula_router.simulate.saturation import Saturation


def explore(plan: Plan, bar: Bar) -> Findings:
    """What every fleet does.

    Raises:
        ConfigError: The core refuses what was planned, or a fleet has no speed at which it saturates.
    """
    runner = Runner(plan, bar.more)
    found: Mapping[int, Saturation] = {}
    if plan.options.load:
        bar.begin("looking for saturation", None)
        found = _saturations(plan, runner)
    scenarios = list(_scenarios(plan, found))
    bar.begin("simulating", len(scenarios) * len(plan.policies))
    reports = runner.each(
        partial(runner.run, scenario.engines, scenario.speed, policy)
        for scenario in scenarios
        for policy in plan.policies
    )
    each = len(plan.policies)
    outcomes = tuple(
        Outcome(scenario, found.get(scenario.engines), tuple(reports[place * each : (place + 1) * each]))
        for place, scenario in enumerate(scenarios)
    )
    return Findings(plan, outcomes, runner.notes)


def _saturations(plan: Plan, runner: Runner) -> dict[int, Saturation]:
    def at(engines: int, speed: float) -> Report:
        return runner.run(engines, speed, saturation.POLICY)

    sizes = plan.options.engines
    searches = (partial(saturation.find, size, partial(at, size)) for size in sizes)
    return dict(zip(sizes, runner.each(searches), strict=True))


def _scenarios(plan: Plan, found: Mapping[int, Saturation]) -> Iterator[Scenario]:
    for size in plan.options.engines:
        if size not in found:
            yield Scenario(size, plan.options.speed)
        for load in plan.options.load:
            yield Scenario(size, float(f"{found[size].speed * load:.4g}"), load)
