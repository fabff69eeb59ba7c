"""The comparison with peers: who, in what order, and what the table says of it."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nebula_router.bench import app, floor, install, machine, pacer, peers, record, result, sweep, table, upstream
from nebula_router.bench.error import BenchError
from nebula_router.bench.goals import Goal, goals
from nebula_router.bench.load import Sample
from nebula_router.bench.result import Measured, Part, Streamed, Visit
from nebula_router.bench.stand import Plan
from nebula_router.bench.wave import Wave

PLAN = Plan(seconds=4, rounds=3, connections=(1, 64), streams=(256,), parts=tuple(Part))


def judge(visits: list[Visit]) -> list[Goal]:
    return goals(result.rows(visits), result.stream_rows(visits), result.footprints(visits))


def visit(name: str, number: int, rate: int, cpu_us: float | None, errors: dict[str, int] | None = None) -> Visit:
    """One round at 1 and at 64 connections, alike but for the latency."""
    figures = tuple(
        Measured(
            connections,
            Sample(rate * 4, 4.0, connections * 0.1, connections * 0.2, 9.0, errors or {}),
            cpu_us,
            (0.25, 0.75) if cpu_us else None,
        )
        for connections in PLAN.connections
    )
    return Visit(name, number, Part.REQUESTS, 0.4, 80.0 + number, 90.0, figures)


def streamed(name: str, number: int, cpu_ms: float | None, held: int = 0, cut: int = 0) -> Visit:
    """One round of 256 streams."""
    wave = Wave(256, 25_600, 12_800, 0.1 * number, 0.2, 3.0, held, 1.1, {"cut": cut} if cut else {})
    return Visit(name, number, Part.STREAMS, 0.4, 99.0, 99.0, (Streamed(wave, cpu_ms),))


VISITS = [
    *(visit(peers.DIRECT, number, 20_000, None) for number in (1, 2, 3)),
    *(visit(peers.NEBULA, number, 9_000 + number, 100.0 * number) for number in (1, 2, 3)),
    *(visit(peers.REFERENCE, number, 3_000, 400.0) for number in (1, 2, 3)),
    *(visit(peers.SGLANG, number, 8_000, 150.0, {"status": 5} if number == 3 else None) for number in (1, 2, 3)),
    Visit("vllm-router-round_robin", 1, Part.REQUESTS, failure="vllm-router-round_robin ended with code 1"),
    *(streamed(peers.DIRECT, number, None) for number in (1, 2, 3)),
    *(streamed(peers.NEBULA, number, 20.0 + number, held=number // 3) for number in (1, 2, 3)),
    *(streamed(peers.REFERENCE, number, 20.0, cut=2 if number == 1 else 0) for number in (1, 2, 3)),
]


def test_rows_hold_medians_and_sums() -> None:
    rows = {(row.name, row.connections): row for row in result.rows(VISITS)}
    assert {row.part for row in rows.values()} == {Part.REQUESTS}
    ours = rows[peers.NEBULA, 64]
    assert (ours.rate, ours.rate_range, ours.cpu_us) == (9_002, (9_001, 9_003), 200)
    assert ours.shares == (0.25, 0.75)
    assert ours.requests == (9_001 + 9_002 + 9_003) * 4
    assert rows[peers.SGLANG, 1].errors == {"status": 5}
    assert rows[peers.DIRECT, 1].cpu_us is None
    assert rows[peers.DIRECT, 1].shares is None
    assert [mark.rss_idle_mb for mark in result.footprints(VISITS)] == [82, 82, 82, 82]


def test_rows_of_streams_hold_medians_and_sums() -> None:
    rows = {(row.name, row.streams): row for row in result.stream_rows(VISITS)}
    ours = rows[peers.NEBULA, 256]
    assert (ours.cpu_ms, ours.cpu_range, ours.p50_ms) == (22.0, (21.0, 23.0), 0.2)
    assert (ours.chunks, ours.chunks_per_read, ours.held, ours.asked, ours.failed) == (76_800, 2.0, 1, 768, 0)
    assert rows[peers.REFERENCE, 256].errors == {"cut": 2}
    assert rows[peers.DIRECT, 256].cpu_ms is None


def test_goals_compare_within_the_run() -> None:
    found = {goal.text: goal for goal in judge(VISITS)}
    assert {text: goal.met for text, goal in found.items()} == {
        "CPU per request at 1, as a share of vllm-router-cache_aware's": True,
        "CPU per request at 1, as a share of sglang-router-cache_aware's": False,
        "added latency at 1, p50 ms": True,
        "added latency at 1, p99 ms": True,
        "CPU per request at 64, as a share of vllm-router-cache_aware's": True,
        "CPU per request at 64, as a share of sglang-router-cache_aware's": False,
        "requests/s at 64, in multiples of vllm-router-cache_aware's": True,
        "CPU per 1,000 chunks at 256 streams, as a share of vllm-router-cache_aware's": False,
        "chunks held over 5 ms at 256 streams": False,
        "resident memory when idle, MB": True,
    }
    assert found["CPU per 1,000 chunks at 256 streams, as a share of vllm-router-cache_aware's"].value == 1.1
    assert found["CPU per request at 64, as a share of vllm-router-cache_aware's"].value == 0.5
    assert found["resident memory when idle, MB"].value == 82


def test_goals_without_a_peer_are_left_out() -> None:
    alone = [one for one in VISITS if one.name == peers.NEBULA]
    assert [goal.text for goal in judge(alone)] == [
        "chunks held over 5 ms at 256 streams",
        "resident memory when idle, MB",
    ]


def test_token_prompts_have_goals_of_their_own() -> None:
    tokens = [replace(one, part=Part.TOKENS) for one in VISITS if one.part is Part.REQUESTS]
    assert [(goal.text, goal.value, goal.met) for goal in judge(tokens)][:-1] == [
        ("token ids: CPU per request at 1, as a share of Dynamo's frontend, measured apart", 200 / 11_500, True),
        ("token ids: CPU per request at 64, as a share of Dynamo's frontend, measured apart", 200 / 3_300, False),
    ]


def test_the_table_says_what_failed() -> None:
    console = Console(width=table.WIDTH, file=StringIO(), record=True)
    table.show(console, VISITS, PLAN, ["a remark"])
    text = console.export_text()
    assert "FAILED requests, sglang-router-cache_aware: 5 of 96,000 at 64 connections (status 5)" in text
    assert "FAILED streams, vllm-router-cache_aware: 2 of 768 at 256 streams (cut 2)" in text
    assert "FAILED requests, vllm-router-round_robin ended with code 1" in text
    assert "MISSED" in text
    assert "a remark" in text
    assert "…" not in text  # nothing is cut off


def test_engines_that_did_not_keep_their_pace_are_told_of() -> None:
    late = streamed(peers.NEBULA, 1, 20.0)
    figures = late.figures[0]
    assert isinstance(figures, Streamed)
    late = replace(late, figures=(replace(figures, wave=replace(figures.wave, late_p99_ms=7.5)),))
    assert list(table.lateness(VISITS)) == []
    assert [line[:35] for line in table.lateness([late])] == ["LATE with nebula-kv at 256 streams "]


def test_names_select_by_how_they_start() -> None:
    assert [entrant.name for entrant in peers.select(["vllm", "direct"])] == [
        "direct",
        "vllm-router-cache_aware",
        "vllm-router-round_robin",
    ]
    assert len(peers.select([])) == len(peers.ENTRANTS)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(BenchError, match="nobody here is called nebulakv; did you mean nebula-kv"):
        peers.select(["nebulakv"])


def test_each_router_is_told_its_port_engines_and_policy() -> None:
    engines = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    for entrant in peers.ENTRANTS:
        if entrant.routes:
            assert entrant.command is not None
            command = entrant.command(9, engines)
            assert set(engines) <= set(command)
            policy = "kv" if entrant.name == peers.EXACT else entrant.name.rpartition("-")[2]
            assert command[command.index("--policy") + 1] == policy
            assert {"9", "127.0.0.1:9"} & set(command)


def test_a_router_that_fails_is_left_out_of_later_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake(turn: sweep.Turn) -> Visit:
        broken = turn.entrant.name == "nebula-kv" and turn.stand.part is Part.REQUESTS
        return Visit(turn.entrant.name, turn.round, turn.stand.part, failure="broken" if broken else None)

    @contextmanager
    def engines(*_: object) -> Iterator[upstream.Upstream]:
        yield upstream.Upstream(())

    monkeypatch.setattr(sweep, "_visit", fake)
    monkeypatch.setattr(upstream, "find", str)
    monkeypatch.setattr(upstream, "serve", engines)
    monkeypatch.setattr(pacer, "serve", engines)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    plan = Plan(1, 2, (1,), streams=(8,), parts=(Part.REQUESTS, Part.STREAMS))
    visits = sweep.sweep(peers.select(["direct", "nebula-kv", "floor-asgi"]), plan, lambda _: None)
    assert [(one.round, one.part.value, one.name) for one in visits] == [
        (1, "requests", "direct"),
        (1, "requests", "nebula-kv"),
        (1, "requests", "floor-asgi"),
        (1, "streams", "direct"),
        (1, "streams", "nebula-kv"),
        (2, "requests", "direct"),
        (2, "requests", "floor-asgi"),
        (2, "streams", "direct"),
        (2, "streams", "nebula-kv"),
    ]


def test_a_plan_knows_its_steps() -> None:
    entrants = peers.select(["direct", "sglang", "floor-asgi"])
    assert Plan(1, 1, (1, 8), streams=(64,), parts=(Part.REQUESTS,)).steps(entrants) == 3 * 3
    assert Plan(1, 1, (1, 8), streams=(64,), parts=(Part.TOKENS,)).steps(entrants) == 3  # direct alone
    assert Plan(1, 2, (1, 8), streams=(64,), parts=(Part.STREAMS,)).steps(entrants) == 2 * 2 * 2


def test_an_installed_peer_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = peers.VLLM_ROUTER
    assert package.folder == tmp_path / "nebula-router" / "peer-vllm-router-0.1.17"
    package.python.parent.mkdir(parents=True)
    package.python.touch()
    assert not package.installed  # it was not finished
    (package.folder / install.MARKER).touch()
    said: list[str] = []
    install.install(package, said.append)
    assert said == []


def test_a_failing_installation_leaves_no_marker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(BenchError, match="apt-get install python3-venv"):
        install.install(peers.SGLANG_ROUTER, lambda _: None)
    assert not peers.SGLANG_ROUTER.installed


@pytest.mark.parametrize("name", ["starlette", "asgi"])
def test_the_floors_answer_the_fixed_reply(name: str) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": "http", "method": "POST", "path": upstream.CHAT, "headers": [], "query_string": b""}

    async def run() -> None:
        await floor.APPS[name](scope, receive, send)

    asyncio.run(run())
    assert sent[0]["status"] == 200
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/json"
    assert sent[1]["body"] == upstream.chat_reply()


def test_help_shows_examples() -> None:
    for command in ("gateway", "soak"):
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert "nebula bench" in shown.output


def test_what_cannot_start_says_so_in_one_line() -> None:
    refused = CliRunner().invoke(app, ["gateway", "--only", "nginx"])
    assert refused.exit_code == 2
    assert "nobody here is called nginx; Known: direct, nebula-kv" in refused.output
    assert refused.output.count("\n") == 1


def test_results_go_where_they_are_wanted(tmp_path: Path) -> None:
    file = record.write("gateway", machine.describe(), {"rows": []}, tmp_path / "sub" / "results.json")
    document = json.loads(file.read_text())
    assert document["benchmark"] == "gateway"
    assert document["rows"] == []
    assert set(document["machine"]) >= {"when", "command", "commit", "cpu", "cores"}
