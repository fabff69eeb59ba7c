import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nebula_router.cli import main
from nebula_router.simulate.trace import guess, open_trace
from nebula_router.sources import ConfigError

MOONCAKE: list[dict[str, Any]] = [
    {"timestamp": 0, "input_length": 900, "output_length": 20, "hash_ids": [1, 2]},
    {"timestamp": 1500, "input_length": 1300, "output_length": 30, "hash_ids": [1, 2, 3]},
    {"timestamp": 2500, "input_length": 100, "output_length": 9, "hash_ids": [4]},
]
CHATS = [
    {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "What is a router?"},
            {"from": "gpt", "value": "It sends each request somewhere."},
            {"from": "human", "value": "Where?"},
            {"from": "gpt", "value": "To an engine."},
        ],
    },
    {"id": "b", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day"}]},
]
LOG: list[dict[str, Any]] = [
    {"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "target": "nebula", "message": "serves"},
    *(
        {
            "timestamp": f"2026-01-31T12:00:0{second}Z",
            "target": "nebula.request",
            "status": 200,
            "prompt": 64,
            "completion": 12,
            "total_ms": 100.0,
            "blocks": f"{second:016x}",
            "block_tokens": 64.0,
        }
        for second in (1, 2, 3)
    ),
]
Replay = Callable[..., Any]


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Replay:
    """Runs a trace and gives its JSON, or the one line that refuses it."""

    def call(text: str, *flags: str) -> Any:
        file = tmp_path / "trace"
        file.write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["simulate", "--trace", str(file), "--engines", "2", "--policy", "kv", "--json", *flags])
        out, err = capsys.readouterr()
        if caught.value.code == 0:
            return json.loads(out)
        assert (caught.value.code, out) == (2, "")
        return err.removesuffix("\n")

    return call


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "kind", "requests"),
    [
        (lines(MOONCAKE), "mooncake", 3),
        (json.dumps(CHATS, indent=1), "sharegpt", 3),
        (lines(CHATS), "sharegpt", 3),
        (lines(LOG), "decisions", 3),
        ("starting up\n" + lines(LOG), "decisions", 3),
    ],
)
def test_the_beginning_of_a_trace_tells_its_format(text: str, kind: str, requests: int, replay: Replay) -> None:
    for flags in ((), ("--format", kind)):
        result = replay(text, *flags)
        assert result["workload"]["kind"] == kind
        assert result["workload"]["requests"] == requests


def test_a_trace_of_no_known_format_is_refused(replay: Replay) -> None:
    assert guess(b"hello\n") is None
    line = replay("hello\n")
    assert line.endswith(
        "trace: its beginning is of no known format; --format says which: mooncake, sharegpt, decisions"
    )
    assert replay(lines(MOONCAKE), "--format", "mooncak").endswith("--format mooncak: unknown; did you mean mooncake?")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (lines([*MOONCAKE, {**MOONCAKE[0], "input_length": "x"}]), "--trace trace: line 4: input_length: "),
        (lines(MOONCAKE) + "\n\n{", "--trace trace: line 6: is not valid JSON"),
        (
            json.dumps([{"conversations": [{"from": "human", "value": 3}]}]),
            "--trace trace: [0].conversations[0].value: ",
        ),
        (lines([*LOG, {**LOG[1], "blocks": "zz"}]), "--trace trace: line 5: blocks: "),
    ],
)
def test_a_bad_line_is_named(text: str, where: str, replay: Replay) -> None:
    assert replay(text).startswith(f"nebula: {where}")


@pytest.mark.parametrize(
    ("text", "limit", "requests"),
    [
        (lines(MOONCAKE), 2, 2),
        ("\n" + lines(MOONCAKE), 2, 2),
        (lines(MOONCAKE), 9, 3),
        ("starting up\n" + lines(LOG), 2, 2),
        (json.dumps(CHATS), 1, 2),
        (lines(CHATS), 3, 3),
    ],
)
def test_a_limit_keeps_the_first_requests(text: str, limit: int, requests: int, replay: Replay) -> None:
    assert replay(text, "--limit", str(limit))["workload"]["requests"] == requests


def test_a_limit_keeps_the_numbers_of_lines(replay: Replay) -> None:
    assert replay("\n\n" + lines([{}, *MOONCAKE]), "--limit", "2").startswith("nebula: --trace trace: line 3: ")


def test_the_whole_file_is_named_by_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(lines(MOONCAKE))
    trace = open_trace(str(file), None)
    assert trace.first(1).sha256 == trace.sha256
    assert trace.first(1).text == json.dumps(MOONCAKE[0]).encode()
    file.write_text(lines(MOONCAKE[:2]))
    assert open_trace(str(file), None).sha256 != trace.sha256


def test_speed_brings_arrivals_together(replay: Replay) -> None:
    def lasts(speed: str) -> float:
        found = replay(lines(MOONCAKE), "--speed", speed)["scenarios"][0]["runs"][0]["summary"]
        return float(found["duration_s"])

    assert lasts("0.1") > 20
    assert lasts("10") < 2


def test_chats_without_times_take_a_pace(replay: Replay) -> None:
    result = replay(json.dumps(CHATS), "--rate-per-s", "0.5", "--think-s", "3", "--seed", "5")
    assert result["workload"] == result["workload"] | {"rate_per_s": 0.5, "think_s": 3.0, "seed": 5}
    assert "no parameter of mooncake" in replay(lines(MOONCAKE), "--think-s", "3")


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        open_trace(str(tmp_path), None)
