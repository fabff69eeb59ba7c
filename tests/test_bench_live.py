"""The live benchmark without a server: what it can be told, what the core hears of it, what is kept and shown."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from nebula_router.bench import app
from nebula_router.bench.error import BenchError
from nebula_router.bench.live import dataset, document, line, summary
from nebula_router.bench.live.group import spread
from nebula_router.bench.live.options import DATASETS, Options
from nebula_router.bench.live.pace import pace
from nebula_router.bench.live.play import Played
from nebula_router.bench.live.server import Server
from nebula_router.simulate.options import read

RUNNER = CliRunner()
REQUESTS = {
    "session": [1, 0],
    "turn": [0, 0],
    "start_us": [20_000, 10_000],
    "queued_us": [3, 4],
    "ttft_us": [100_000, 300_000],
    "tpot_us": [20_000, None],
    "e2el_us": [500_000, 300_000],
    "prompt_tokens": [60, 40],
    "cached_tokens": [48, None],
    "output_tokens": [20, 1],
}


def options(**told: Any) -> Options:
    return read(Options, told)


def metric(mean: float) -> dict[str, Any]:
    return {
        "count": 2,
        "mean": mean,
        "std": 1.0,
        "median": mean,
        "p99": mean * 2,
        "min": 0.1,
        "max": mean * 2,
        "percentiles": [[90.0, mean * 1.5], [99.9, mean * 2]],
    }


def report(**told: Any) -> dict[str, Any]:
    """What the core reports of a run of three requests, one of which failed."""
    return {
        "stopped": False,
        "requested": 3,
        "completed": 2,
        "failed": 1,
        "skipped": 0,
        "duration_s": 2.0,
        "failed_warmups": 0,
        "prompt_tokens": 100,
        "output_tokens": 21,
        "with_usage": 2,
        "with_cached": 1,
        "prompt_tokens_with_cached": 60,
        "cached_tokens": 48,
        "chunks": 21,
        "verified": 0,
        "peak_inflight": 2,
        "peak_chunks_per_second": 15,
        "errors": {"status_503": {"count": 1, "example": "busy"}},
        "metrics": {"ttft": metric(200.0), "e2el": metric(400.0), "generator_lag": metric(0.1)},
        "itl": {"us": [10_000, 30_000], "count": [10, 9]},
        "requests": REQUESTS,
        "notes": ["the first 3 of 9 sessions are played"],
        **told,
    }


def result(told: Options | None = None, **reported: Any) -> dict[str, Any]:
    told = told or options()
    played = Played(report(**reported), 0.25, interrupted=False)
    return line.line(told, {}, dataset.Dataset({"workload": {}}, None, None), "org/tiny", played)


# === what it can be told ===


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({}, {"pace": {"kind": "at_once"}, "max_concurrency": None}),
        ({"request_rate": "inf"}, {"pace": {"kind": "at_once"}, "max_concurrency": None}),
        ({"max_concurrency": "8"}, {"pace": {"kind": "users", "users": 8}, "max_concurrency": None}),
        (
            {"request_rate": "5", "max_concurrency": "8"},
            {"pace": {"kind": "rate", "per_second": 5.0, "burstiness": 1.0}, "max_concurrency": 8},
        ),
        (
            {"request_rate": "5", "burstiness": "inf"},
            {"pace": {"kind": "rate", "per_second": 5.0, "burstiness": None}, "max_concurrency": None},
        ),
        ({"dataset_name": "mooncake", "speed": "2"}, {"pace": {"kind": "trace"}, "max_concurrency": None}),
        ({"dataset_name": "mooncake", "self_timed": False}, {"pace": {"kind": "at_once"}, "max_concurrency": None}),
        (
            {"dataset_name": "decisions", "request_rate": "2"},
            {"pace": {"kind": "rate", "per_second": 2.0, "burstiness": 1.0}, "max_concurrency": None},
        ),
    ],
)
def test_when_requests_are_sent(told: dict[str, Any], kind: dict[str, Any]) -> None:
    assert pace(options(**told)) == kind


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"burstiness": "2"}, "--burstiness"),
        ({"request_rate": "inf", "burstiness": "2"}, "--burstiness"),
        ({"speed": "2"}, "--speed: random"),
        ({"dataset_name": "mooncake", "request_rate": "2", "speed": "2"}, "--speed: mooncake"),
        ({"self_timed": True}, "--self-timed: random holds no times"),
        ({"dataset_name": "mooncake", "self_timed": True, "request_rate": "3"}, "--request-rate"),
    ],
)
def test_a_pace_that_contradicts_itself_is_refused(told: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BenchError, match=wrong):
        pace(options(**told))


def test_every_dataset_is_one_that_the_core_knows(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for name, kind in DATASETS.items():
        told = {"dataset_name": name, "num_prompts": "7", "seed": "3"}
        if name in dataset.RECORDED:
            told["dataset_path"] = str(file)
        asked = dataset.dataset(options(**told), {})
        assert asked.source["workload"]["kind"] == kind
        assert (asked.source["sessions"], asked.source["seed"]) == (7, 3)
        assert (asked.record == b"x") == (name in dataset.RECORDED)
        assert (asked.file is None) == (asked.record is None)


def test_the_numbers_of_a_dataset_reach_the_core() -> None:
    told = options(dataset_name="prefix_repetition", prefix_repetition_prefix_len="9", num_prompts="30")
    workload = dataset.dataset(told, {}).source["workload"]
    assert (workload["prefix_len"], workload["suffix_len"], workload["requests"]) == (9, 256, 30)
    workload = dataset.dataset(options(random_input_len="5", random_output_len="6"), {}).source["workload"]
    assert (workload["input_tokens"], workload["output_tokens"], workload["spread"]) == (5, 6, 0.0)
    workload = dataset.dataset(options(dataset_name="agents", num_prompts="4"), {"max_steps": "9"}).source["workload"]
    assert (workload["tasks"], workload["max_steps"], workload["tool_sets"]) == (4, 9, 4)


@pytest.mark.parametrize(
    ("told", "shape", "wrong"),
    [
        ({"prefix_repetition_output_len": "4"}, {}, "--prefix-repetition-output-len: means nothing to random"),
        ({"dataset_name": "agents", "random_input_len": "4"}, {}, "--random-input-len: means nothing to agents"),
        ({"dataset_path": "x"}, {}, "--dataset-path: means nothing to random"),
        ({"dataset_name": "sharegpt"}, {}, "--dataset-path: is missing"),
        ({"dataset_name": "sharegpt", "dataset_path": "/nowhere"}, {}, "/nowhere: cannot be read"),
        ({}, {"max_turns": "3"}, "--max-turns: means nothing to random; it is for --dataset-name multi_turn"),
        ({"dataset_name": "multi_turn"}, {"zipf": "1"}, "--zipf: means nothing to multi_turn"),
    ],
)
def test_what_means_nothing_to_a_dataset_is_refused(told: dict[str, Any], shape: dict[str, str], wrong: str) -> None:
    with pytest.raises(BenchError, match=wrong):
        dataset.dataset(options(**told), shape)


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"backend": "openai-chat", "endpoint": "/v1/completions"}, "--endpoint /v1/completions"),
        ({"backend": "vllm", "endpoint": "/v1/chat/completions"}, "openai-chat asks the other one"),
        ({"extra_body": "{"}, "--extra-body: is no JSON"),
        ({"extra_body": "[]"}, "expected a JSON object"),
        ({"metric_percentiles": "50,101"}, "--metric-percentiles"),
        ({"metric_percentiles": "many"}, "--metric-percentiles"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(told: dict[str, Any], wrong: str) -> None:
    asked = options(**told)
    with pytest.raises(BenchError, match=wrong):
        document.document(asked, Server.of(asked), "tiny", dataset.dataset(asked, {}))


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"goodput": ["ttft"]}, "--goodput ttft: expected"),
        ({"goodput": ["itl:3"]}, "--goodput itl:3"),
        ({"goodput": ["ttft:-1"]}, "--goodput"),
        ({"goodput": ["ttft:1"], "streaming": False}, "whole replies have no ttft"),
        ({"percentile_metrics": "ttft,e2e"}, "--percentile-metrics e2e"),
        ({"percentile_metrics": "ttft", "streaming": False}, "--percentile-metrics ttft"),
    ],
)
def test_a_figure_that_is_not_measured_is_refused(told: dict[str, Any], wrong: str) -> None:
    with pytest.raises(BenchError, match=wrong):
        (document.metrics(options(**told)), document.objectives(options(**told)))


def test_words_behind_one_flag_get_one_each() -> None:
    words = ["--goodput", "ttft:200", "tpot:50", "--model", "m", "--header", "a=b", "c=d"]
    each = ["--goodput", "ttft:200", "--goodput", "tpot:50", "--model", "m", "--header", "a=b", "--header", "c=d"]
    assert spread(words, ()) == each
    assert spread(each, ()) == each
    assert spread(["gateway", "--goodput", "a", "b"], {"gateway"}) == ["gateway", "--goodput", "a", "b"]
    assert spread(["--goodput", "a:1", "gateway", "x"], {"gateway"}) == ["--goodput", "a:1", "gateway", "x"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--model", "m", "gateway"], 2, "--model: is for the live benchmark, not for gateway"),
        (["--max-turns", "3", "soak"], 2, "--max-turns: is for the live benchmark, not for soak"),
        (["--result-dir", "x", "--model", "m"], 2, "--result-dir: says where --save-result goes"),
        (["--smoke", "--num-prompts", "3"], 2, "--num-prompts: --smoke asks one completion of its own"),
        (["--smoke", "--backend", "openai-chat"], 2, "--backend openai-chat"),
        (["--header", "secret-without-a-name"], 2, "--header: expected KEY=VALUE"),
        (["--metadata", "x", "--model", "m"], 2, "--metadata: expected KEY=VALUE"),
        (["--base-url", "http://user:secret@host"], 2, "--base-url: expected http://host:port"),
        (["--base-url", "host:80"], 2, "--base-url host:80: expected"),
        (["--dataset-name", "agents", "--min-steps", "9", "--max-steps", "3", "--model", "m"], 2, "min_steps"),
        (["--smoke", "--port", "1"], 1, "Connection refused"),
        (["--port", "1"], 2, "Connection refused"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(words: list[str], status: int, said: str) -> None:
    ran = RUNNER.invoke(app, words, env={"COLUMNS": "400"})
    assert (ran.exit_code, ran.stdout) == (status, "")
    assert said in ran.stderr
    assert ran.stderr.startswith("nebula bench: ")
    assert "secret" not in ran.stderr


def test_help_names_every_option_with_an_example() -> None:
    ran = RUNNER.invoke(app, ["--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert ran.exit_code == 0
    for word in ("--request-rate", "--goodput", "--max-turns", "--smoke", "gateway", "report", "Examples"):
        assert word in ran.stdout
    assert "nebula bench" in ran.stdout.partition("Examples")[2]


# === the server ===


class Handler(BaseHTTPRequestHandler):
    """Answers with what it is told to, and keeps the last request's headers."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b'{"data":[{"id":"first"},{"id":"second"}]}'
    heard: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        type(self).heard = dict(self.headers.items())
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_first_model_of_the_server_is_asked_with_the_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hush")
    asked = Server.of(options(base_url=f"{url}/v1", header=["x-one=1"]))
    assert asked.first_model() == "first"
    assert (Handler.heard["Authorization"], Handler.heard["x-one"]) == ("Bearer hush", "1")
    own = Server.of(options(base_url=url, header=["authorization=Basic x"]))
    assert list(own.headers.items()) == [("authorization", "Basic x")]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'{"data":[]}', "names no model; --model says which"),
        (200, b"<html>", "names no model"),
        (401, b'{"error":{"message":"no such key"}}', "answers 401: no such key"),
        (502, b"bad gateway", "answers 502: bad gateway"),
    ],
)
def test_a_server_that_names_no_model_is_told_of(
    url: str, status: int, body: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "status", status)
    monkeypatch.setattr(Handler, "body", body)
    with pytest.raises(BenchError, match=said):
        Server.of(options(base_url=url)).first_model()


# === what is kept and shown ===


def test_a_line_repeats_the_run_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hush")
    told = options(header=["x-key=mum"], request_rate="5", save_result=True, streaming=True, metadata=["tp=2"])
    kept = result(told)
    text = json.dumps(kept)
    assert "hush" not in text
    assert "mum" not in text
    assert kept["machine"]["command"] == (
        "nebula bench --header 'x-key=…' --streaming --request-rate 5.0 --save-result --metadata tp=2"
    )
    assert kept["options"]["header"] == ["x-key=…"]
    assert kept["options"]["num_prompts"] == 1000
    assert kept["metadata"] == {"tp": "2"}
    assert kept["machine"]["cores"] > 0
    asked = document.document(told, Server.of(told), "tiny", dataset.dataset(told, {}))
    assert asked["run"]["headers"] == [("x-key", "mum"), ("Authorization", "Bearer hush")]


def test_figures_have_the_names_that_vllm_gives_them() -> None:
    kept = result(options(goodput=["ttft:200", "tpot:30"]))
    assert (kept["completed"], kept["total_input_tokens"], kept["total_output_tokens"]) == (2, 100, 21)
    assert (kept["request_throughput"], kept["output_throughput"]) == (1.0, 10.5)
    assert (kept["mean_ttft_ms"], kept["p99.9_e2el_ms"]) == (200.0, 800.0)
    assert kept["cached_share"] == 0.8
    # The second request is too late; a reply of one token has no time per token, which is no fault.
    assert kept["request_goodput"] == 0.5
    assert result(options(goodput=["tpot:30"]))["request_goodput"] == 1.0
    assert result()["request_goodput"] is None


def test_results_are_appended_and_read_again(tmp_path: Path) -> None:
    told = options(save_result=True, result_dir=str(tmp_path / "new"), label="one", request_rate="5")
    first = line.save(told, result(told))
    assert first is not None
    assert first.parent == tmp_path / "new"
    assert first.name.startswith("one-5.0qps-tiny-")
    again = options(save_result=True, result_dir=str(first.parent), result_filename=first.name)
    assert line.save(again, result(again)) == first
    assert [run["label"] for run in line.read(first)] == ["one", "openai"]
    assert line.save(options(), result()) is None


@pytest.mark.parametrize(("text", "said"), [("", "holds no result"), ("{}\n", "line 1"), ("\n[", "line 2")])
def test_a_file_without_results_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(BenchError, match=said):
        line.read(file)
    with pytest.raises(BenchError, match="cannot be read"):
        line.read(tmp_path / "none.json")
    with pytest.raises(BenchError, match="cannot be written"):
        line.save(options(save_result=True, result_dir=str(file)), result())


def test_the_block_is_like_that_of_vllm() -> None:
    rows = list(summary.block(result(options(request_rate="5")), ["ttft", "tpot"]))
    assert rows[0] == "============ Serving Benchmark Result ============"
    shown = {name.strip(): value for name, _, value in (row.partition(":") for row in rows)}
    assert int(shown["Successful requests"]) == 2
    assert float(shown["Request rate configured (RPS)"]) == 5
    assert float(shown["Cached share of input tokens (%)"]) == 80
    assert float(shown["P99.9 TTFT (ms)"]) == 400
    assert "---------------Time to First Token----------------" in rows
    assert not any("TPOT" in row for row in rows)  # no request has one
    assert "Skipped turns" not in shown


def test_what_must_be_known_stands_below_the_block() -> None:
    said = [text for _, text in summary.remarks(result(), ["ttft"])]
    assert said == [
        "FAILED status_503: 1 requests, the first: busy",
        "the first 3 of 9 sessions are played",
    ]
    waited = {"client_queue_time": metric(50.0), "ttft_from_send": metric(20.0), "generator_lag": metric(0.6)}
    kept = result(metrics=waited, errors={}, notes=[], with_usage=1, failed_warmups=2)
    said = [text for _, text in summary.remarks(kept | {"interrupted": True, "generator_cpu_cores": 0.95}, ["ttft"])]
    starts = ["interrupted", "2 warm-up requests", "1 replies told no usage", "requests waited 50.0 ms"]
    starts += ["the generator itself was late, one request in a hundred by 1.2 ms", "the generator used 0.95 cores"]
    assert [text.startswith(start) for text, start in zip(said, starts, strict=True)] == [True] * 6
