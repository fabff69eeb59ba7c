import csv
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest

from nebula_router.cli import main
from nebula_router.core import SIM_POLICIES
from nebula_router.presets import PRESETS, Timing
from nebula_router.simulate.options import Options
from nebula_router.simulate.workload import KINDS

SMALL = ("--workload", "multi_turn", "--sessions", "30", "--rate-per-s", "3", "--think-s", "2", "--engines", "3")
Run = Callable[..., "Ran"]


class Ran:
    def __init__(self, status: object, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as caught:
            main(["simulate", *arguments])
        return Ran(caught.value.code, *capsys.readouterr())

    return call


def refused(ran: Ran) -> str:
    assert (ran.status, ran.out) == (2, "")
    line, end = ran.err.split("\n")
    assert end == ""
    return line


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Page(HTMLParser):
    """What a page holds, and whether it needs anything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "srcset", "href"}]
        if tag == "tr":
            self.rows.append([])
        if tag not in {"meta", "br", "img", "source"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


def test_each_policy_gets_a_row_and_its_files(run: Run, tmp_path: Path) -> None:
    ran = run(*SMALL, "--policy", "kv", "--policy", "round_robin,random")
    assert (ran.status, ran.err) == (0, "")
    table = [line.split() for line in ran.out.splitlines()]
    rows = {line[0]: line for line in table if line and line[0] in SIM_POLICIES}
    assert list(rows) == ["kv", "round_robin", "random"]
    assert "3 engines, speed 1" in ran.out
    assert "multi_turn" in ran.out

    folder = tmp_path / "simulation"
    assert set(files(folder)) == {"result.json", "requests.csv", "3-engines.png", "index.html"}
    assert all(f"simulation/{name}" in ran.out for name in files(folder))

    result = json.loads((folder / "result.json").read_text())
    assert [found["policy"] for found in result["scenarios"][0]["runs"]] == ["kv", "round_robin", "random"]
    assert result["workload"]["sessions"] == 30
    best = max(result["scenarios"][0]["runs"], key=lambda found: float(found["summary"]["hit_share"]))
    assert rows["kv"][9] == f"{best['summary']['hit_share'] * 100:.1f}*", "kv finds most, and is marked for it"

    lines = list(csv.DictReader(StringIO((folder / "requests.csv").read_text())))
    assert len(lines) == 3 * result["workload"]["requests"]
    kv = [line for line in lines if line["policy"] == "kv"]
    summary = result["scenarios"][0]["runs"][0]["summary"]
    mean = sum(float(line["ttft_ms"]) for line in kv) / len(kv)
    assert mean == pytest.approx(summary["ttft_ms"]["mean"], abs=1e-3)
    assert sum(int(line["cached"]) for line in kv) == summary["cached_tokens"]


def test_the_page_holds_all_and_needs_nothing_else(run: Run, tmp_path: Path) -> None:
    assert run(*SMALL, "--policy", "kv,oracle", "--engines", "2").status == 0
    page = Page((tmp_path / "simulation" / "index.html").read_text())
    assert page.open == []
    assert {row[0] for row in page.rows if row} == {"kv", "oracle"}
    assert len(page.sources) == 6, "two sizes and their comparison, light and dark"
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(set(page.sources)) == 6


def test_equal_flags_give_equal_bytes_however_many_jobs(run: Run, tmp_path: Path) -> None:
    flags = (*SMALL, "--policy", "kv,random,power_of_two,oracle", "--event-loss", "0.3")
    assert run(*flags, "--out", "a", "--jobs", "1").status == 0
    assert run(*flags, "--out", "b", "--jobs", "3").status == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert run(*flags, "--out", "c", "--seed", "2").status == 0
    assert files(tmp_path / "c")["requests.csv"] != files(tmp_path / "a")["requests.csv"]


def test_json_goes_to_stdout_alone(run: Run, tmp_path: Path) -> None:
    ran = run(*SMALL, "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["scenarios"][0]["runs"][0]["policy"] == "kv"
    assert list(tmp_path.iterdir()) == []
    ran = run(*SMALL, "--json", "--out", "kept")
    assert (tmp_path / "kept" / "result.json").read_text() == ran.out


def test_sizes_of_the_fleet_stand_beside_each_other(run: Run, tmp_path: Path) -> None:
    ran = run("--workload", "unique", "--requests", "300", "--engines", "1,2", "--engines", "4", "--policy", "kv")
    assert ran.status == 0
    assert "sizes of the fleet at speed 1" in ran.out
    names = set(files(tmp_path / "simulation"))
    assert {"1-engines.png", "2-engines.png", "4-engines.png", "sizes.png"} < names
    result = json.loads((tmp_path / "simulation" / "result.json").read_text())
    slowest = [found["runs"][0]["summary"]["ttft_ms"]["p99"] for found in result["scenarios"]]
    assert slowest == sorted(slowest, reverse=True), "more engines answer sooner"


def test_a_load_is_a_share_of_the_speed_that_saturates(run: Run) -> None:
    flags = ("--workload", "unique", "--requests", "800", "--engines", "2", "--policy", "least_loaded", "--json")
    ran = run(*flags, "--load", "0.5,1.2", "--max-num-seqs", "16")
    half, over = json.loads(ran.out)["scenarios"]
    assert half["saturation"] == over["saturation"]
    assert half["speed"] == pytest.approx(0.5 * half["saturation"]["speed"], rel=1e-3)
    waits = [found["runs"][0]["summary"]["ttft_ms"]["p50"] for found in (half, over)]
    assert waits[1] > 5 * waits[0]


def test_a_workload_that_fills_no_fleet_has_no_saturation(run: Run) -> None:
    line = refused(run("--workload", "multi_turn", "--sessions", "30", "--engines", "8", "--load", "0.5"))
    assert line.startswith("nebula: --load: 8 engines keep up however fast they are asked")


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.recorded])
def test_every_workload_runs_with_its_defaults(kind: str, run: Run) -> None:
    ran = run("--workload", kind, f"--{KINDS[kind].counts}", "10", "--policy", "kv", "--json")
    assert ran.status == 0
    assert json.loads(ran.out)["workload"]["kind"] == kind


def test_every_policy_runs(run: Run) -> None:
    ran = run(*SMALL, "--policy", "all", "--json")
    assert [found["policy"] for found in json.loads(ran.out)["scenarios"][0]["runs"]] == list(SIM_POLICIES)


def test_settings_reach_the_router_and_the_engine(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text("[route]\npressure_tokens = 77.0\n[sim]\nblock_size = 32\n")
    ran = run(*SMALL, "--config", "gateway.toml", "--decode-request-tokens", "9", "--preset", "llama-8b-a100", "--json")
    result = json.loads(ran.out)
    assert (result["route"]["pressure_tokens"], result["route"]["decode_request_tokens"]) == (77.0, 9.0)
    assert (result["engine"]["block_size"], result["preset"]) == (32, "llama-8b-a100")


def test_an_engine_that_was_measured_takes_the_place_of_the_preset(run: Run, tmp_path: Path) -> None:
    timing = {
        "step_base_us": 9000.0,
        "prefill_us_per_token": 50.0,
        "prefill_ns_per_pair": 1.0,
        "decode_us_per_seq": 20.0,
        "decode_ns_per_resident_token": 3.0,
    }
    (tmp_path / "engine.json").write_text(json.dumps({"timing": timing, "kv_blocks": 5000}))
    ran = run(*SMALL, "--calibration", "engine.json", "--decode-us-per-seq", "33", "--json")
    result = json.loads(ran.out)
    assert result["engine"]["timing"] == timing | {"decode_us_per_seq": 33.0}
    assert (result["engine"]["kv_blocks"], result["calibration"]) == (5000, "engine.json")
    (tmp_path / "engine.json").write_text("{}")
    assert refused(run(*SMALL, "--calibration", "engine.json")).startswith("nebula: engine.json: expected")


def test_late_and_lost_events_cost_hits(run: Run) -> None:
    def hits(*flags: str) -> float:
        found = json.loads(run(*SMALL, "--policy", "kv", "--json", *flags).out)
        return float(found["scenarios"][0]["runs"][0]["summary"]["hit_share"])

    assert hits("--event-delay-ms", "60000") < hits()
    assert hits("--no-events") > 0.5, "the index then knows what was routed"


def test_without_matplotlib_all_but_the_pictures_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "nebula_router.simulate.plot", raising=False)
    import nebula_router.simulate as room  # noqa: PLC0415 - its attribute is what an earlier import left

    monkeypatch.delattr(room, "plot", raising=False)
    ran = run(*SMALL)
    assert ran.status == 0
    assert "pip install 'nebula-router[plot]'" in ran.out
    assert set(files(tmp_path / "simulation")) == {"result.json", "requests.csv", "index.html"}
    assert Page((tmp_path / "simulation" / "index.html").read_text()).sources == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            [],
            "what is asked? --trace FILE replays it, --workload makes it up: multi_turn, shared_prefix, agents, unique",
        ),
        (["--trace", "gone"], "--trace gone: cannot be read: No such file or directory"),
        (["--trace", "x", "--workload", "unique"], "--trace and --workload exclude each other: one replays requests"),
        (["--workload", "unik"], "--workload unik: unknown; did you mean unique?"),
        (["--workload", "mooncake"], "--workload mooncake: is read from a file: --trace FILE --format mooncake"),
        (["--workload", "unique", "--max-turns", "3"], "--max-turns is no parameter of unique; it has --requests"),
        (["--workload", "unique", "--prefix-len", "3"], "--prefix-len is no parameter of unique; it has --requests"),
        (["--workload", "unique", "--requests", "0"], "--requests 0: expected integer, 1 to 10000000"),
        (["--workload", "multi_turn", "--min-turns", "9"], "--min-turns: must be at most 8, is 9"),
        (["--workload", "unique", "--engines", "4,none"], "--engines none: expected a valid integer"),
        (
            ["--workload", "unique", "--policy", "round-robin"],
            "--policy round-robin: unknown; did you mean round_robin?",
        ),
        (["--workload", "unique", "--load", "1", "--speed", "2"], "--speed and --load exclude each other"),
        (["--workload", "unique", "--limit", "5"], "--workload and --limit exclude each other"),
        (["--workload", "unique", "--format", "mooncake"], "--workload and --format exclude each other"),
        (["--workload", "unique", "--no-events", "--event-loss", "0.1"], "--event-loss and --no-events exclude each"),
        (["--workload", "unique", "--event-loss", "2"], "--event-loss 2: expected number, 0 to 1"),
        (["--workload", "unique", "--kv-blocks", "20"], "request "),
        (["--workload", "unique", "--max-model-len", "9", "--kv-blocks", "1"], "--kv-blocks: one request of max_model"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(arguments: list[str], line: str, run: Run, tmp_path: Path) -> None:
    assert refused(run(*arguments)).startswith(f"nebula: {line}")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_too_small_is_told_how_large_it_must_be(run: Run) -> None:
    flags = ("--workload", "prefix_repetition", "--requests", "20", "--policy", "kv")
    line = refused(run(*flags, "--kv-blocks", "30", "--max-model-len", "100"))
    assert "has 640 tokens of prompt and reply, an engine takes 100: " in line
    assert line.endswith("--max-model-len 640 and --kv-blocks 41 would do")
    assert run(*flags, "--max-model-len", "640", "--kv-blocks", "41").status == 0


def test_a_folder_that_is_none_is_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file is no folder that can be written to" in refused(run(*SMALL, "--out", "file/below"))


def test_help_has_every_flag_and_examples(run: Run) -> None:
    ran = run("--help")
    assert ran.status == 0
    assert "nebula simulate --trace conversation.jsonl --engines 16" in ran.out.partition("Examples")[2]
    flags = {f"--{name.replace('_', '-')}" for kind in KINDS.values() for name in kind.model_fields}
    flags |= {
        f"--{name.replace('_', '-')}" for name in Options.model_fields if name not in {"policies", "trace_format"}
    }
    for flag in flags | {"--policy", "--format", "--json", "--config", "--preset", "--pressure-tokens"}:
        assert flag in ran.out
    assert "--listen" not in ran.out


def test_the_page_in_docs_knows_all_names_and_numbers() -> None:
    text = (Path(__file__).parents[1] / "docs" / "simulate.md").read_text()
    for name in (*SIM_POLICIES, *KINDS, *[field.name for field in fields(Timing)][1:]):
        assert name in text
    for name, preset in PRESETS.items():
        it = preset.timing
        prefill = f"{it.prefill_us_per_token:.1f} | {it.prefill_ns_per_pair:.2f}"
        decode = f"{it.decode_us_per_seq:.1f} | {it.decode_ns_per_resident_token:.1f}"
        assert f"| `{name}` | {it.step_base_us:,.0f} | {prefill} | {decode} | {preset.kv_blocks(16):,} |" in text
