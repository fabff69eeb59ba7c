"""Calibration of a simulated engine, whose times are known."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from nebula_router.bench import app, net
from nebula_router.bench.calibrate import Calibration, Plan, calibrate
from nebula_router.bench.calibrate_probe import Limits
from nebula_router.bench.error import BenchError
from nebula_router.calibration import calibrated
from nebula_router.core import Sim
from nebula_router.sim_settings import SimSettings
from nebula_router.sources import ConfigError

SIM = SimSettings(
    listen="127.0.0.1:0",
    block_size=16,
    kv_blocks=400,
    max_num_seqs=16,
    max_num_batched_tokens=256,
    max_model_len=512,
    # Long beside what a busy machine delays a client by.
    step_base_us=5000,
    prefill_us_per_token=150,
    prefill_ns_per_pair=500,
    decode_us_per_seq=2000,
    decode_ns_per_resident_token=5000,
)
LIMITS = Limits(SIM.max_num_batched_tokens, SIM.max_num_seqs, streams=4)


@contextmanager
def simulated(sim: SimSettings = SIM) -> Iterator[str]:
    engine = Sim(sim.core_json())
    try:
        yield engine.url
    finally:
        engine.stop()


def measure(url: str, rounds: int = 1, seconds: float = 60.0, model: str | None = None) -> Calibration:
    return calibrate(Plan(url, model, None, LIMITS, seconds, rounds), lambda _share, _what: None)


@pytest.fixture(scope="module")
def found() -> Calibration:
    with simulated() as url:
        return measure(url, rounds=2)


def test_the_coefficients_are_found_again(found: Calibration) -> None:
    shares = {name: value / getattr(SIM, name) for name, value in asdict(found.timing).items()}
    assert shares == pytest.approx(dict.fromkeys(shares, 1.0), rel=0.3)
    assert found.fit.r2 > 0.95


def test_the_size_of_the_engine_is_told(found: Calibration) -> None:
    document = found.document()
    assert {name: document[name] for name in ("block_size", "kv_blocks", "max_model_len")} == {
        "block_size": 16,
        "kv_blocks": 400,
        "max_model_len": 512,
    }
    assert document["engine"]["model"] == SIM.model
    assert not any("--block-size" in warning for warning in found.warnings)


def test_a_simulated_engine_takes_the_calibration(found: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    file.write_text(json.dumps(found.document()))
    sim = calibrated(SimSettings(block_size=32, step_base_us=1.0), file)
    assert (sim.block_size, sim.step_base_us) == (32, 1.0)  # what is given wins
    assert (sim.kv_blocks, sim.max_num_seqs, sim.max_model_len) == (400, 16, 512)
    assert sim.timing.decode_us_per_seq == found.timing.decode_us_per_seq
    assert sim.request_us == pytest.approx(found.overhead_ms * 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected {.timing.: {…}, .overhead_ms.: …} with step_base_us"),
        ('{"timing": {"step_base_us": 1}}', "expected {.timing.: {…}, .overhead_ms.: …} with step_base_us"),
        (json.dumps({"timing": asdict(SIM.timing), "overhead_ms": "4"}), "expected {.timing.: {…}, .overhead_ms.: …}"),
        (
            json.dumps({"timing": asdict(SIM.timing) | {"step_base_us": -1}}),
            "engine.json: step_base_us = -1: Input should",
        ),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        calibrated(SimSettings(), file)
    with pytest.raises(ConfigError, match="cannot be read"):
        calibrated(SimSettings(), tmp_path / "none.json")


def test_another_user_of_the_engine_is_told_of() -> None:
    with simulated(SIM.model_copy(update={"speed": 5.0})) as url:
        body = {"model": SIM.model, "prompt": [1], "max_tokens": 500, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, trust_env=False) as other:
            reader = threading.Thread(target=other.read)
            told = measure(url, seconds=20).warnings
            reader.start()
            reader.join()
    assert "the engine had up to 1 requests of others meanwhile: repeat this while it is idle" in told


def test_time_that_does_not_suffice_is_told() -> None:
    with simulated() as url, pytest.raises(BenchError, match="could be measured in 1e-06 s: give more --seconds"):
        measure(url, seconds=1e-6)


def test_a_model_that_is_not_there_is_told() -> None:
    with simulated() as url, pytest.raises(BenchError, match=f"--model nope: the engine serves {SIM.model}"):
        measure(url, model="nope")


def test_a_server_that_is_no_engine_is_told() -> None:
    with simulated() as url, pytest.raises(BenchError, match="/elsewhere/v1/models answers 404"):
        measure(f"{url}/elsewhere")


def test_the_command_says_that_nobody_answers() -> None:
    url = f"http://127.0.0.1:{net.free_port()}"
    result = CliRunner().invoke(app, ["calibrate", "--base-url", url])
    assert result.exit_code == 2
    assert f"nebula bench: no engine answers on {url} (" in result.output
    assert "--base-url" in result.output


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    with simulated(SIM.model_copy(update={"speed": 20.0})) as url:
        flags = ["--base-url", url, "--max-num-batched-tokens", "256", "--max-num-seqs", "4", "--rounds", "1"]
        result = CliRunner().invoke(app, ["calibrate", *flags, "--out", str(file)])
    assert result.exit_code == 0, result.output
    assert "step_base_us" in result.output
    assert "decode 4 streams of 63 tokens" in result.output
    written = json.loads(file.read_text())
    assert (written["benchmark"], written["max_num_batched_tokens"], written["max_num_seqs"]) == ("calibrate", 256, 4)
    assert written["machine"]["cores"] > 0
    assert len(written["fit"]["points"]) > 15
