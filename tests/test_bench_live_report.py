"""Comparisons of the live benchmark's results."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nebula_router.bench import app
from nebula_router.bench.live.compare import FEWEST, Row, Run, compare, named
from nebula_router.bench.live.plot import picture
from nebula_router.bench.live.report import remarks

RUNNER = CliRunner()
PNG = b"\x89PNG\r\n\x1a\n"


def run(label: str, scale: float = 1.0, count: int = 400, **told: Any) -> dict[str, Any]:
    """A result whose times are gamma distributed around `scale` times 100 ms."""
    rng = np.random.default_rng([count, round(scale * 100), *label.encode()])
    ttft = (rng.gamma(4.0, 25_000 * scale, count)).astype(int).tolist()
    return {
        "benchmark": "live",
        "label": label,
        "date": "2026-01-01T00:00:00+00:00",
        "base_url": "http://h:1",
        "model_id": "tiny",
        "completed": count,
        "failed": 0,
        "errors": {},
        "interrupted": False,
        "options": {},
        "request_rate": "5.0",
        "max_concurrency": None,
        "source": {"seed": 0},
        "dataset": None,
        "machine": {"cpu": "one", "cores": 2},
        "request_throughput": 5.0,
        "output_throughput": 500.0 / scale,
        "request_goodput": None,
        "cached_share": 0.5,
        "itl": {"us": [round(9_000 * scale), round(30_000 * scale)], "count": [98, 2]},
        "requests": {
            "start_us": list(range(count, 0, -1)),
            "ttft_us": ttft,
            "tpot_us": [None] * count,
            "e2el_us": [value * 3 for value in ttft],
        },
        **told,
    }


def rows(*lines: dict[str, Any]) -> dict[str, Row]:
    return {row.name: row for row in compare(named([(Path("x"), list(lines))]), seed=1)}


def test_a_slower_run_differs_for_sure_and_an_equal_one_does_not() -> None:
    found = rows(run("base"), run("slow", 1.5), run("same"))
    for name in ("mean TTFT", "median TTFT", "mean E2EL"):
        base, slow, same = found[name].figures
        assert slow.sure
        assert not same.sure
        assert slow.difference is not None
        assert slow.difference == pytest.approx(0.5, abs=0.15)
        assert slow.difference_interval is not None
        assert slow.difference_interval[0] < slow.difference < slow.difference_interval[1]
        assert base.interval is not None
        assert base.value is not None
        assert base.interval[0] < base.value < base.interval[1]
        assert base.difference is None
    throughput = found["output throughput"].figures[1]
    assert throughput.difference == pytest.approx(1 / 1.5 - 1)
    assert throughput.interval is None
    assert found["p99 ITL"].figures[1].value == 45.0
    assert found["median ITL"].figures[0].value == 9.0
    assert not any("TPOT" in name for name in found)  # no request has one


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    # The mean of the distribution is 100 ms.
    held = 0
    for label in map(str, range(60)):
        interval = rows(run(label, count=60))["mean TTFT"].figures[0].interval
        assert interval is not None
        held += interval[0] <= 100.0 <= interval[1]
    assert 48 <= held <= 60


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    ttft = sorted(run("a")["requests"]["ttft_us"])
    shuffled = np.random.default_rng(0).permutation(ttft).tolist()

    def width(values: list[int]) -> float:
        line = run("a")
        line["requests"]["ttft_us"] = values
        interval = rows(line)["mean TTFT"].figures[0].interval
        assert interval is not None
        return interval[1] - interval[0]

    assert width(ttft) > 1.5 * width(shuffled)


def test_a_few_requests_tell_no_interval() -> None:
    figure = rows(run("a", count=FEWEST - 1), run("b", count=400))["mean TTFT"].figures
    assert figure[0].interval is None
    assert figure[1].difference is not None
    assert figure[1].difference_interval is None
    assert rows(run("a", count=0))["request throughput"].figures[0].value == 5.0


def test_equal_seeds_give_equal_intervals() -> None:
    assert rows(run("a"), run("b")) == rows(run("a"), run("b"))


def test_names_tell_runs_apart() -> None:
    one, other = run("one"), run("other")

    def names(*files: tuple[Path, list[dict[str, Any]]]) -> list[str]:
        return [it.name for it in named(list(files))]

    assert names((Path("a.json"), [one, other])) == ["one", "other"]
    assert names((Path("a.json"), [one]), (Path("b.json"), [one])) == ["a", "b"]
    assert names((Path("a.json"), [one, one]), (Path("b.json"), [one])) == ["a #1", "a #2", "b #1"]


def test_what_makes_runs_less_comparable_is_told() -> None:
    other = run(
        "other",
        failed=3,
        interrupted=True,
        source={"seed": 1},
        request_rate="9.0",
        machine={"cpu": "two", "cores": 2},
    )
    said = remarks([Run("base", run("base")), Run("other", other)])
    starts = ["other was interrupted", "other: 3 requests failed", "other asked something else than base"]
    starts += ["other has --request-rate 9.0, base 5.0", "other was measured from another machine"]
    assert [text.startswith(start) for text, start in zip(said, starts, strict=True)] == [True] * 5
    assert remarks([Run("base", run("base")), Run("same", run("same"))]) == []


def test_a_picture_is_drawn_of_whatever_there_is() -> None:
    drawn = picture([Run("a", run("a")), Run("b", run("b", 1.5))])
    assert drawn.startswith(PNG)
    assert len(drawn) > 20_000
    assert picture([Run("a", run("a")), Run("b", run("b", 1.5))]) == drawn
    bare = run("bare", count=0, itl={"us": [], "count": []}, output_throughput=0.0)
    assert picture([Run(str(place), bare) for place in range(9)]).startswith(PNG)


def test_the_command_shows_a_table_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for label, scale in (("before", 1.0), ("after", 0.5)):
        Path(f"{label}.json").write_text(json.dumps(run(label, scale)) + "\n")
    ran = RUNNER.invoke(app, ["report", "before.json", "after.json"], env={"COLUMNS": "200"})
    assert ran.exit_code == 0, ran.stderr
    assert "against before" in ran.stdout
    assert "mean TTFT, ms" in ran.stdout
    assert Path("report.png").read_bytes().startswith(PNG)
    ran = RUNNER.invoke(app, ["report", "before.json", "after.json", "--json", "--plot", "own.png"])
    document = json.loads(ran.stdout)
    assert [it["name"] for it in document["runs"]] == ["before", "after"]
    assert next(row for row in document["rows"] if row["name"] == "mean TTFT")["figures"][1]["difference"] < -0.3
    assert Path("own.png").exists()


def test_a_file_that_is_no_result_ends_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    ran = RUNNER.invoke(app, ["report", str(tmp_path / "a.json")], env={"COLUMNS": "400"})
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "is no result" in ran.stderr


def test_what_is_missing_is_told_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report", "compare", "plot"):
        monkeypatch.delitem(sys.modules, f"nebula_router.bench.live.{name}")
    monkeypatch.setitem(sys.modules, "numpy", None)
    ran = RUNNER.invoke(app, ["report", str(tmp_path / "a.json")], env={"COLUMNS": "400"})
    assert ran.exit_code == 2
    assert ran.stderr == "nebula bench: numpy is missing; `pip install 'nebula-router[plot]'` brings it\n"
