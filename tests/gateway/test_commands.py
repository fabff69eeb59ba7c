"""`nebula explain` and `nebula top` ask a gateway that runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.gateway.conftest import MODEL, OpenGateway
from tests.gateway.fleet import BLOCK, name, opened, play, publishes, talks, unheard_of

pytestmark = pytest.mark.anyio


async def nebula(*words: str, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What the command says."""
    command = [sys.executable, "-m", "nebula_router", *words]
    return await anyio.run_process(command, input=given, check=False, env={**plain_environment(), **environment})


def plain_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("NEBULA_")}


async def test_explain_shows_the_decision_that_is_then_made(open_gateway: OpenGateway, tmp_path: Path) -> None:
    async with opened(open_gateway, "--shadow-policy", "least_loaded", **publishes()) as fleet:
        users = talks(8)
        await play(fleet, users, 2)
        body = {"model": MODEL, **users[0].body}
        given = json.dumps(body).encode()
        shown = await nebula("explain", "-", "--url", fleet.gateway.url, given=given)
        assert (shown.returncode, shown.stderr) == (0, b"")
        table = shown.stdout.decode()
        as_json = await nebula("explain", "-", "--json", "--url", fleet.gateway.url, given=given)
        explained = json.loads(as_json.stdout)
        (tmp_path / "request.json").write_bytes(given)
        of_file = await nebula("explain", str(tmp_path / "request.json"), "--url", f"{fleet.gateway.url}/v1/")
        assert of_file.stdout == shown.stdout
        answer = await users[0].go_on(fleet)
        assert (explained["choice"]["engine"], explained["prompt_tokens"]) == (answer.engine, answer.prompt)
        for said in (f"{answer.prompt:,} prompt tokens", "an engine made them", f"{answer.engine} rank 0 wins over"):
            assert said in table
        assert "In its shadow, the policy least_loaded chooses" in table
        [line] = [line for line in table.splitlines() if line.startswith("►")]
        assert line.split()[1:5] == [answer.engine, "0", "ready", str(answer.overlap)]


async def test_explain_shows_what_a_text_is_looked_up_by(open_gateway: OpenGateway) -> None:
    # A block of text then stands for 21 tokens and a third.
    async with opened(open_gateway, "--bytes-per-token", "3", count=1) as fleet:
        given = b'{"model": "tiny", "prompt": "once upon a time"}'
        shown = await nebula("explain", "-", "--url", fleet.gateway.url, given=given)
        assert (shown.returncode, shown.stderr) == (0, b"")
        assert "key: text, blocks of the text" in shown.stdout.decode()


async def test_a_gateway_says_why_it_explains_nothing(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, count=1, **publishes()) as fleet:
        url = ("--url", fleet.gateway.url)
        unknown = await nebula("explain", "-", *url, given=b'{"model": "nobody", "prompt": "x"}')
        assert (unknown.returncode, unknown.stdout) == (2, b"")
        assert b"404" in unknown.stderr
        assert b"nobody" in unknown.stderr
        path = await nebula("explain", "-", "--path", "/v1/nope", *url, given=b'{"model": "tiny", "prompt": "x"}')
        assert (path.returncode, b"/v1/nope" in path.stderr) == (2, True)


async def test_both_show_the_token(open_gateway: OpenGateway) -> None:
    secret: dict[str, Any] = {"NEBULA_GATEWAY__ADMIN_TOKEN": "open-sesame"}
    async with open_gateway(**secret) as gateway:
        words = ("top", "--once", "--json", "--interval", "0.1", "--url", gateway.url)
        refused = await nebula(*words)
        assert (refused.returncode, b"NEBULA_GATEWAY__ADMIN_TOKEN" in refused.stderr) == (2, True)
        assert json.loads((await nebula(*words, **secret)).stdout)["ranks"] == []


async def test_top_shows_every_rank_as_it_is(open_gateway: OpenGateway) -> None:
    # The command takes its time to start, and the stream that it is to see says nothing meanwhile.
    async with opened(open_gateway, "--idle-timeout-s", "60", ranks=2, **publishes()) as fleet:
        answers = await play(fleet, talks(8), 3)
        words = ("top", "--once", "--interval", "0.1", "--url", fleet.gateway.url)
        shown = await nebula(*words, "--json")
        assert (shown.returncode, shown.stderr) == (0, b"")
        seen = json.loads(shown.stdout)
        assert (seen["in_flight"], seen["requests_per_s"]) == (0, 0)
        share = sum(answer.cached for answer in answers) / sum(answer.prompt for answer in answers)
        assert seen["hit_share"] == pytest.approx(share)
        assert [(rank["engine"], rank["rank"]) for rank in seen["ranks"]] == sorted(
            (name(sim), rank) for sim in fleet.sims for rank in range(2)
        )
        for rank in seen["ranks"]:
            assert_row(rank, sum((a.engine, a.rank) == (rank["engine"], rank["rank"]) for a in answers))
        table = (await nebula(*words)).stdout.decode()
        assert "2 of 2 engines ready" in table
        assert all(name(sim)[:18] in table for sim in fleet.sims)
        body = {"model": MODEL, "prompt": unheard_of(4 * BLOCK), "stream": True}
        headers = {"x-sim-fault": "hang_mid_stream"}
        async with fleet.gateway.http.stream("POST", "/v1/completions", json=body, headers=headers):
            seen = json.loads((await nebula(*words, "--json")).stdout)
        assert (seen["in_flight"], sum(rank["running"] for rank in seen["ranks"])) == (1, 1)


def assert_row(rank: dict[str, Any], checked: int) -> None:
    assert (rank["status"], rank["running"], rank["prefill_tokens"], rank["events"]) == ("ready", 0, 0, "on")
    assert (rank["checked"], rank["credit"]) == (checked, 1.0)
    assert (rank["error_mean"], rank["error_std"]) == ((0.0, 0.0) if checked else (None, None))
