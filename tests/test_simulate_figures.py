"""What is made of reports: the search for saturation, tables, pictures, the page."""

import struct
from dataclasses import replace
from typing import Any, cast

import pytest
from rich.console import Console

from nebula_router.config import Settings
from nebula_router.core import SIM_POLICIES
from nebula_router.simulate import column, page, plot, saturation, table
from nebula_router.simulate.document import Findings, Outcome
from nebula_router.simulate.options import Options
from nebula_router.simulate.plan import Plan, Scenario, plan
from nebula_router.simulate.report import Report
from nebula_router.simulate.run import Runner
from nebula_router.simulate.trace import Trace
from nebula_router.sources import ConfigError

COUNTS = {"requests": 1000, "sessions": 1000}


def planned(**flags: Any) -> Plan:
    options = Options.model_validate({"workload": "shared_prefix", "engines": [4], **flags})
    return plan(Settings(), options, {"requests": "200"})


def findings(policies: str, engines: int = 4) -> Findings:
    plan = planned(policies=[policies])
    runner = Runner(plan, lambda _ended, _total: None)
    reports = tuple(runner.run(engines, 1.0, policy) for policy in plan.policies)
    return Findings(plan, (Outcome(Scenario(engines, 1.0), None, reports),), runner.notes)


def fluid(capacity: float) -> saturation.Run:
    """A fleet of which nothing is known but its capacity: behind it, work piles up for the 100 s that are asked."""

    def run(speed: float) -> Report:
        late = max(0.0, speed / capacity - 1)
        lasts = 100 / speed * (1 + late)
        summary = {
            "ttft_ms": {"mean": 40.0 + late * 100 / speed / 2 * 1e3},
            "duration_s": lasts,
            "requests_per_s": 1000 / lasts,
            "output_tokens_per_s": 5000 / lasts,
            "drain_s": 0.0,
            "e2e_ms": {"mean": 2000.0},
        }
        return cast("Report", {"summary": summary, **COUNTS})

    return run


@pytest.mark.parametrize("capacity", [0.003, 0.7, 1.0, 5.13, 900.0])
def test_saturation_is_the_capacity(capacity: float) -> None:
    found = saturation.find(8, fluid(capacity))
    assert found.speed == pytest.approx(capacity * 1.02, rel=0.015)
    assert found.requests_per_s == pytest.approx(10 * capacity, rel=0.02)
    assert found == saturation.find(8, fluid(capacity))
    assert found.short == (capacity > 100 / 20), "all come within ten times what one takes"


def test_a_fleet_that_does_less_the_more_it_is_asked_for_does_not_keep_up() -> None:
    def thrashing(speed: float) -> Report:
        """Nobody waits, but what is done per second falls from speed 3 on."""
        summary = fluid(1e6)(speed)["summary"] | {"duration_s": 100 / min(speed, 9 / speed)}
        return cast("Report", {"summary": summary, **COUNTS})

    assert 2.9 < saturation.find(8, thrashing).speed < 4.6


@pytest.mark.parametrize(
    ("capacity", "what"),
    [(1e9, "keep up however fast"), (1.5e-3, "even at speed 0.00195"), (1e-9, "even at speed 0.001;")],
)
def test_a_fleet_that_never_or_always_keeps_up_is_refused(capacity: float, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        saturation.find(8, fluid(capacity))


def test_the_best_of_a_column_is_marked_and_a_bound_is_not() -> None:
    [outcome] = findings("kv,round_robin,oracle").outcomes
    kv, robin, oracle = outcome.reports
    for report, mean, hits in ((kv, 20.0, 0.5), (robin, 10.0, 0.7), (oracle, 1.0, 0.9)):
        report["summary"]["ttft_ms"]["mean"] = mean
        report["summary"]["hit_share"] = hits
        report["summary"]["preemptions"] = 3
    names = [(it.group, it.name) for it in column.COLUMNS]
    cells = {
        row.policy: {name: (cell.text, cell.best) for name, cell in zip(names, row.cells, strict=True)}
        for row in column.rows(outcome)
    }
    assert cells["round_robin"]["TTFT ms", "mean"] == ("10.0", True)
    assert cells["kv"]["TTFT ms", "mean"] == ("20.0", False)
    assert cells["oracle"]["TTFT ms", "mean"] == ("1.0", False)
    assert cells["round_robin"]["hit", "%"] == ("70.0", True)
    assert not any(row["pre-", "empted"][1] for row in cells.values()), "all are the same"


def test_the_table_fits_its_width() -> None:
    console = Console(width=table.WIDTH, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        table.show(console, findings("all"))
    lines = captured.get().splitlines()
    heads = [line for line in lines if line.startswith("policy")]
    assert len(heads) == 1
    assert heads[0].split() == ["policy", *(it.name for it in column.COLUMNS)]
    assert [line.split()[0] for line in lines[lines.index(heads[0]) + 1 :]][: len(SIM_POLICIES)] == list(SIM_POLICIES)


@pytest.mark.parametrize(
    ("policies", "engines", "theme"), [("kv", 1, plot.LIGHT), ("all", 5, plot.DARK), ("kv,oracle", 40, plot.LIGHT)]
)
def test_a_picture_is_1600_pixels_wide_and_always_the_same(policies: str, engines: int, theme: plot.Theme) -> None:
    [outcome] = findings(policies, engines).outcomes
    png = plot.picture(outcome, 2000.0, theme)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", png[16:20]) == (1600,)
    assert b"Software" not in png
    assert png == plot.picture(outcome, 2000.0, theme)


def test_each_policy_has_a_look_of_its_own() -> None:
    for theme in (plot.LIGHT, plot.DARK):
        looks = {(look["color"], look["linestyle"]) for look in (plot.look(policy, theme) for policy in SIM_POLICIES)}
        assert len(looks) == len(SIM_POLICIES)


def test_a_page_escapes_what_others_named() -> None:
    found = findings("kv")
    trace = Trace('<b>"&.jsonl', b"", "mooncake", guessed=True, sha256="0")
    noted = replace(found, plan=replace(found.plan, trace=trace), notes=("<script>",))
    text = page.page(noted, {})
    assert "<b>" not in text
    assert "<script>" not in text
    assert "&lt;b&gt;&quot;&amp;.jsonl" in text
