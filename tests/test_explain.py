import io
import json
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.canned_gateway import Canned

from nebula_router.cli import main
from nebula_router.explain import Explanation, reason

Run = Callable[..., tuple[object, str, str]]

REQUEST = b'{"model": "tiny",  "messages": [{"role": "user", "content": "hello"}], "n": 1.50}'
ANSWER: dict[str, Any] = {
    "model": "tiny",
    "key": {"kind": "tokens", "source": "local", "why": "checked against engine-a"},
    "prompt_tokens": 4096,
    "policy": "kv",
    "text_chars": 16_000,
    "choice": {"engine": "engine-b", "rank": 0},
    "shadow": {"policy": "least_loaded", "engine": "engine-a", "rank": 1},
    "ranks": [
        {
            "engine": "engine-a",
            "rank": 1,
            "status": "ready",
            "runner_up": True,
            "block_tokens": 21.333333,
            "blocks": 256,
            "overlap": {"gpu": 1024, "cpu": 0, "storage": 0},
            "credit": 1.0,
            "load": {"prefill_tokens": 0, "resident_tokens": 0, "running": 0, "kv_usage": 0.1},
            "terms": {"uncached": 7680.0, "prefill_backlog": 0.0, "decode": 0.0, "pressure": 0.0, "total": 7680.0},
        },
        {
            "engine": "engine-b",
            "rank": 0,
            "status": "ready",
            "chosen": True,
            "block_tokens": 16,
            "blocks": 256,
            "overlap": {"gpu": 3072, "cpu": 512, "storage": 0},
            "credit": 1.0,
            "load": {"prefill_tokens": 900, "resident_tokens": 100, "running": 3, "kv_usage": 0.4},
            "terms": {"uncached": 1280.0, "prefill_backlog": 900.0, "decode": 75.0, "pressure": 0.0, "total": 2255.0},
        },
        {"engine": "engine-c", "rank": 0, "status": "down", "terms": None, "extra": {"of": "a later version"}},
    ],
}


@pytest.fixture
def gateway() -> Canned:
    canned = Canned()
    canned.says("/route/explain", ANSWER)
    return canned


@pytest.fixture
def url(gateway: Canned) -> Iterator[str]:
    with gateway.served() as url:
        yield url


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str, stdin: bytes = REQUEST) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            main(["explain", *arguments])
        return (caught.value.code, *capsys.readouterr())

    return call


def explained(**changes: object) -> Explanation:
    return Explanation.model_validate({**deepcopy(ANSWER), **changes})


def test_the_decision_is_a_table_with_the_cheapest_first_and_one_reason(run: Run, url: str) -> None:
    status, out, err = run("-", "--url", url)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "model tiny, 4,096 prompt tokens, 16,000 characters, policy kv"
    assert lines[1] == "key: tokens, the gateway's own tokenizer made them (checked against engine-a)"
    assert all(len(line) <= 100 for line in lines[:-2])
    rows = [line.split() for line in lines if "engine-" in line and ("ready" in line or "down" in line)]
    assert rows == [
        ["►", "engine-b", "0", "ready", "3,072", "512", "1,280", "900", "75", "0", "2,255"],
        ["2", "engine-a", "1", "ready", "1,024", "0", "7,680", "0", "0", "0", "7,680"],
        ["engine-c", "0", "down", "0", "0", "-", "-", "-", "-", "-"],
    ]
    assert lines[-2] == (
        "engine-b rank 0 wins over engine-a rank 1 by 5,425, most of all by what it must compute of the prompt: "
        "1,280 against 7,680, though the prompts before it cost 900 more."
    )
    assert lines[-1] == "In its shadow, the policy least_loaded chooses engine-a rank 1."


def test_the_request_arrives_as_it_is_written(run: Run, url: str, gateway: Canned, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_bytes(REQUEST)
    assert run(str(file), "--url", f"{url}/v1/")[0] == 0
    assert run("-", "--url", url, "--path", "/v1/completions")[0] == 0
    paths, keys, bodies = zip(*gateway.asked, strict=True)
    assert paths == ("/route/explain", "/route/explain?path=/v1/completions")
    assert keys == (None, None)
    assert bodies == (REQUEST, REQUEST)


def test_json_is_what_the_gateway_said(run: Run, url: str) -> None:
    status, out, _ = run("-", "--url", url, "--json")
    assert status == 0
    assert json.loads(out) == ANSWER


def test_the_gateway_and_its_token_are_those_of_the_settings(
    run: Run, url: str, gateway: Canned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[gateway]\nlisten = "{url.removeprefix("http://")}"\napi_keys = ["key"]\n')
    assert run("-", "--config", str(file))[0] == 0
    monkeypatch.setenv("NEBULA_GATEWAY__ADMIN_TOKEN", "hush")
    assert run("-", "--config", str(file))[0] == 0
    assert [key for _, key, _ in gateway.asked] == ["Bearer key", "Bearer hush"]


def test_the_credit_is_shown_where_a_rank_is_not_fully_believed(run: Run, url: str, gateway: Canned) -> None:
    doubted = deepcopy(ANSWER)
    doubted["ranks"][0]["credit"] = 0.25
    gateway.says("/route/explain", doubted)
    out = run("-", "--url", url)[1]
    assert "credit" in out
    assert "0.25" in out


@pytest.mark.parametrize(
    ("stdin", "line"),
    [
        (b"{", "nebula: standard input: is not JSON: "),
        (b"\xff", "nebula: standard input: is not JSON: "),
        (b"[]", "nebula: standard input: is not a JSON object; a request's body is needed, "),
    ],
)
def test_what_is_no_request_is_not_sent(stdin: bytes, line: str, run: Run, url: str, gateway: Canned) -> None:
    status, out, err = run("-", "--url", url, stdin=stdin)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)
    assert gateway.asked == []


def test_a_file_that_is_not_there_is_named(run: Run) -> None:
    status, _, err = run("no-such.json")
    assert status == 2
    assert err == "nebula: no-such.json: cannot be read: No such file or directory; - reads standard input\n"


@pytest.mark.parametrize(
    ("status", "answer", "says"),
    [
        (401, {"error": {"message": "the admin token is needed"}}, "NEBULA_GATEWAY__ADMIN_TOKEN"),
        (404, {"error": {"message": "no model `tiny`"}}, "answers 404: no model `tiny`"),
        (400, "plain words", "answers 400: plain words"),
        (200, [], "does not answer as a gateway of this version does"),
        (200, {"model": "m"}, "key: Field required"),
    ],
)
def test_an_answer_that_is_none_says_what_to_do(
    status: int, answer: object, says: str, run: Run, url: str, gateway: Canned
) -> None:
    gateway.says("/route/explain", answer, status)
    code, out, err = run("-", "--url", url)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_gateway_that_is_not_there_says_so(run: Run) -> None:
    with Canned().served() as gone:
        pass
    status, _, err = run("-", "--url", gone)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"nebula: no gateway answers on {gone} (Connection refused); start one, as `nebula gateway")


@pytest.mark.parametrize("url", ["127.0.0.1:8081", "ftp://a:1", "http://user:pw@a:1", "http://a:1/x", "http://a:0"])
def test_a_url_that_is_none_is_refused(url: str, run: Run) -> None:
    status, _, err = run("-", "--url", url)
    assert status == 2
    assert err.startswith("nebula: --url: expected http://host:port")
    assert "pw" not in err


def test_the_reason_is_honest_where_the_price_did_not_decide() -> None:
    ranks = deepcopy(ANSWER["ranks"])
    assert "does not go by this price" in reason(explained(policy="round_robin"))
    assert reason(explained(ranks=ranks[1:2])) == "engine-b rank 0 is the only one that can take it."
    assert reason(explained(ranks=[], choice=None)) == "No engine can take it: none serves the model tiny."
    assert reason(explained(ranks=ranks[2:], choice=None)) == "No engine can take it: engine-c rank 0 is down."
    ranks[0]["terms"] = ranks[1]["terms"]
    assert reason(explained(ranks=ranks)).endswith("cost the same, and chance decided.")
    ranks[0]["terms"] = {**ranks[1]["terms"], "total": 1000.0}
    assert "something else than the price decided" in reason(explained(ranks=ranks))
