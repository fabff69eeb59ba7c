"""The live benchmark against simulated engines, alone and behind the gateway."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from nebula_router.bench import app, net, process
from nebula_router.core import Sim
from nebula_router.sim_settings import SimSettings

RUNNER = CliRunner()
# Each step takes a millisecond, whatever is computed in it.
PACE = {"prefill_us_per_token": 0.0, "decode_us_per_seq": 0.0, "step_base_us": 1000.0}
SMALL = ("--random-input-len", "64", "--random-output-len", "8", "--ignore-eos")

Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def sim() -> Iterator[Sim]:
    engine = Sim(SimSettings.model_validate({"listen": "127.0.0.1:0", "model": "tiny", **PACE}).core_json())
    yield engine
    engine.stop()


@pytest.fixture
def gateway(sim: Sim) -> Iterator[str]:
    port = net.free_port()
    command = [sys.executable, "-m", "nebula_router", "gateway", "--listen", f"{net.HOST}:{port}"]
    with process.started("nebula gateway", [*command, "--engine", sim.url, "--no-log-requests"]) as child:
        child.await_ready(partial(net.complaint, port, "/ready"), 60.0)
        yield f"http://{net.HOST}:{port}"


@pytest.fixture
def bench(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the benchmark, against the engine where no other URL is given, and gives its line."""
    monkeypatch.setenv("OPENAI_API_KEY", "hush")

    def call(*words: str, url: str | None = None, status: int = 0) -> dict[str, Any]:
        ran = RUNNER.invoke(app, ["--base-url", url or sim.url, "--json", *words], env={"COLUMNS": "400"})
        assert ran.exit_code == status, ran.output
        assert "hush" not in ran.output
        line: dict[str, Any] = json.loads(ran.stdout)
        return line

    return call


def fault(sim: Sim, kind: str, **parameters: float) -> None:
    httpx.post(f"{sim.url}/sim/fault", json={"kind": kind, **parameters}, trust_env=False).raise_for_status()


@pytest.mark.parametrize("backend", ["openai", "vllm", "openai-chat"])
def test_every_reply_is_checked(bench: Bench, gateway: str, backend: str) -> None:
    for url in (None, gateway):
        line = bench(*SMALL, "--backend", backend, "--num-prompts", "30", "--checksum", url=url)
        assert (line["completed"], line["failed"], line["checksums_verified"]) == (30, 0, 30)
        assert (line["total_output_tokens"], line["model_id"]) == (240, "tiny")
        assert line["metrics"]["itl"]["count"] == 30 * 7
        assert line["total_input_tokens"] >= 30 * 64


def test_whole_replies(bench: Bench) -> None:
    line = bench(*SMALL, "--no-streaming", "--num-prompts", "10", "--goodput", "e2el:10000")
    assert (line["completed"], line["total_output_tokens"]) == (10, 80)
    assert "ttft" not in line["metrics"]
    assert line["request_goodput"] == line["request_throughput"]


def test_conversations_are_answered_from_the_cache(bench: Bench, gateway: str) -> None:
    words = ["--dataset-name", "multi_turn", "--num-prompts", "6", "--min-turns", "3", "--max-turns", "3"]
    words += ["--user-tokens", "100", "--system-tokens", "200", "--output-tokens", "50", "--think-s", "0.01"]
    line = bench(
        *words, "--backend", "openai-chat", "--max-concurrency", "2", "--ignore-eos", "--checksum", url=gateway
    )
    assert (line["completed"], line["failed"], line["max_concurrent_requests"]) == (18, 0, 2)
    # All of a prompt but the last message and a few tokens of rounding was in the prompt before it, or in its reply.
    assert line["cached_share"] > 0.5
    requests = line["requests"]
    later = [cached for turn, cached in zip(requests["turn"], requests["cached_tokens"], strict=True) if turn > 0]
    assert all(cached >= 200 for cached in later)


def test_a_trace_is_played_in_its_time(bench: Bench, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 1000 + 40 * i, "input_length": 700, "output_length": 4, "hash_ids": [1, 2 + i]} for i in range(9)
    ]
    trace.write_text("\n".join(map(json.dumps, rows)))
    words = ["--dataset-name", "mooncake", "--dataset-path", str(trace), "--ignore-eos"]
    line = bench(*words, "--speed", "2", "--num-prompts", "8")
    assert sorted(line["requests"]["start_us"]) == [20_000 * i for i in range(8)]
    assert line["notes"] == ["the first 8 of 9 sessions are played"]
    assert line["dataset"]["name"] == "trace.jsonl"
    assert line["total_input_tokens"] == 8 * 700
    assert sum(line["requests"]["cached_tokens"]) == 7 * 512
    line = bench(*words, "--request-rate", "100", "--burstiness", "inf")
    assert sorted(line["requests"]["start_us"]) == [10_000 * i for i in range(1, 10)]


def test_prompts_that_are_all_prefix_are_in_the_cache_but_for_the_first(bench: Bench) -> None:
    words = ["--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", "320", "--max-concurrency", "1"]
    words += ["--prefix-repetition-suffix-len", "0", "--prefix-repetition-num-prefixes", "1", "--num-prompts", "5"]
    line = bench(*words, "--prefix-repetition-output-len", "3", "--ignore-eos")
    assert line["requests"]["prompt_tokens"] == [320] * 5
    # An engine computes at least the last token again, and caches whole blocks.
    assert line["requests"]["cached_tokens"] == [0, 304, 304, 304, 304]


def test_recorded_chats_carry_what_the_engine_says(bench: Bench, tmp_path: Path) -> None:
    said = [("human", "How are you " * 30), ("gpt", "fine, thank you"), ("human", "Why?"), ("gpt", "because")]
    chat = {"conversations": [{"from": who, "value": text} for who, text in said]}
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([chat]))
    words = ["--dataset-name", "sharegpt", "--dataset-path", str(file), "--sharegpt-output-len", "40", "--ignore-eos"]
    line = bench(*words, "--think-s", "0", "--backend", "openai-chat")
    assert line["requests"]["output_tokens"] == [40, 40]
    first, second = line["requests"]["prompt_tokens"]
    cached = line["requests"]["cached_tokens"][1]
    assert first + 40 - 32 <= cached < second


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        ("reset", "reset"),
        ("status;status=503", "status_503"),
        ("die_mid_stream;after_chunks=3", "cut"),
        ("hang", "timeout"),
        ("hang_mid_stream;after_chunks=3", "timeout"),
    ],
)
def test_a_fault_is_told_by_its_kind(bench: Bench, wish: str, kind: str) -> None:
    words = [*SMALL, "--num-prompts", "3", "--request-timeout-sec", "0.5", "--header", f"x-sim-fault={wish}"]
    line = bench(*words, "--model", "tiny", status=1)
    assert (line["completed"], line["failed"]) == (0, 3)
    assert list(line["errors"]) == [kind]
    assert line["errors"][kind]["example"]


def test_a_request_that_the_engine_refuses_is_told_without_its_prompt(bench: Bench) -> None:
    line = bench("--model", "none", "--num-prompts", "2", *SMALL, status=1)
    assert line["errors"]["status_404"] == {
        "count": 2,
        "example": "The model `none` does not exist. Valid aliases: tiny.",
    }


def test_a_stall_is_charged_to_all_that_were_due_meanwhile(bench: Bench, sim: Sim) -> None:
    fault(sim, "hang", count=1)
    words = [*SMALL, "--model", "tiny", "--num-prompts", "11", "--request-rate", "50", "--burstiness", "inf"]
    line = bench(*words, "--max-concurrency", "1", "--request-timeout-sec", "1", status=1)
    assert (line["completed"], line["failed"]) == (10, 1)
    # The last one was due 200 ms after the one that hung for a second.
    assert line["metrics"]["ttft"]["min"] > 700
    assert line["metrics"]["ttft_from_send"]["median"] < 300
    assert min(line["requests"]["queued_us"]) > 700_000


def test_a_smoke_test_shows_the_reply(sim: Sim, gateway: str) -> None:
    for url in (sim.url, gateway):
        ran = RUNNER.invoke(app, ["--smoke", "--base-url", url, "--model", "tiny"])
        assert ran.exit_code == 0, ran.output
        assert '"completion_tokens": 100' in ran.stdout
        assert [name in ran.stdout for name in ("ttft: ", "mean tpot: ", "std tpot: ", "p99 tpot: ")] == [True] * 4
        figures = json.loads(RUNNER.invoke(app, ["--smoke", "--base-url", url, "--json"]).stdout)
        assert len(figures["text"]) == 400
        assert figures["mean_tpot_ms"] > 0


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("status;status=503", "answers 503"),
        ("reset", "Connection reset|closed connection"),
        ("die_mid_stream", "ended without"),
        ("hang", "timed out"),
    ],
)
def test_a_smoke_test_fails_on_any_error(sim: Sim, wish: str, said: str) -> None:
    words = ["--smoke", "--base-url", sim.url, "--model", "tiny", "--header", f"x-sim-fault={wish}"]
    ran = RUNNER.invoke(app, [*words, "--request-timeout-sec", "0.5"], env={"COLUMNS": "400"})
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert re.search(said, ran.stderr)


def test_a_server_that_comes_late_is_waited_for_and_one_that_does_not_is_told_of(bench: Bench, sim: Sim) -> None:
    fault(sim, "refuse", for_ms=400)
    line = bench(
        *SMALL, "--model", "tiny", "--num-prompts", "5", "--ready-check-timeout-sec", "30", "--num-warmups", "2"
    )
    assert (line["completed"], line["failed_warmups"], line["cached_tokens"]) == (5, 0, 0)
    words = ["--base-url", f"http://127.0.0.1:{net.free_port()}", "--model", "tiny", "--ready-check-timeout-sec", "0.4"]
    ran = RUNNER.invoke(app, words, env={"COLUMNS": "400"})
    assert ran.exit_code == 2
    assert "not ready" in ran.stderr
    assert "refused" in ran.stderr


def test_ctrl_c_keeps_what_there_is(sim: Sim, tmp_path: Path) -> None:
    words = ["--base-url", sim.url, *SMALL, "--num-prompts", "100000", "--request-rate", "200", "--save-result"]
    # What runs in the background may have been told to ignore the signal.
    default = ["env", "--default-signal=INT"]
    command = [*default, sys.executable, "-m", "nebula_router", "bench", *words, "--result-dir", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as run:
        until = time.monotonic() + 60
        while time.monotonic() < until and running(sim) < 20:
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        try:
            out, _ = run.communicate(timeout=30)
        finally:
            run.kill()
    assert run.returncode == 130
    assert b"interrupted" in out
    [file] = tmp_path.iterdir()
    line = json.loads(file.read_text())
    assert line["interrupted"]
    assert 0 < line["completed"] < 100_000


def running(sim: Sim) -> float:
    """Replies that the engine has finished."""
    metrics = httpx.get(f"{sim.url}/metrics", trust_env=False).text
    rows = [row for row in metrics.splitlines() if row.startswith("vllm:request_success_total{")]
    return sum(float(row.rpartition(" ")[2]) for row in rows)
