"""One line per request tells the decision, and never a word of a prompt."""

import json
import re

import pytest
from tests.gateway.conftest import MODEL, OpenGateway, await_sims
from tests.gateway.process import Gateway
from tests.gateway.upstream import Upstream
from tests.gateway.wait import until

from nebula_router.core import Sim

pytestmark = pytest.mark.anyio

SECRET = "xyzzy-plugh"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def lines_of(gateway: Gateway, request_id: str) -> list[str]:
    def found() -> list[str]:
        return [line for line in gateway.lines() if request_id in line]

    await until(f"the line of {request_id}", lambda: bool(found()))
    return found()


async def test_each_request_leaves_one_line_with_its_decision(gateway: Gateway) -> None:
    body = {"model": "short", "prompt": "once upon a time " * 40, "max_tokens": 3}
    for number in range(2):
        headers = {"x-request-id": f"log-{number}"}
        (await gateway.http.post(COMPLETIONS, json=body, headers=headers)).raise_for_status()
    first, second = [await lines_of(gateway, f"log-{number}") for number in range(2)]
    assert (len(first), len(second)) == (1, 1)
    line = second[0]
    assert " routing " in line
    for fact in (f'model="{MODEL}"', "status=200", "attempts=1", "candidates=2", f'path="{COMPLETIONS}"'):
        assert fact in line
    for figure in ("overlap", "prompt", "cached", "cost", "queue", "ttft_ms", "total_ms", "rank"):
        assert re.search(rf"\b{figure}=[0-9.]+", line), figure
    assert int(re.findall(r"\boverlap=(\d+)", line)[0]) > 0
    assert int(re.findall(r"\boverlap=(\d+)", first[0])[0]) == 0
    assert re.search(r'engine="127\.0\.0\.1:\d+"', line)
    assert "\x1b" not in line


BODIES = [
    {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 1},
    {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 1, "stream": True},
    {"model": MODEL, "messages": SECRET},
    {"model": MODEL, "messages": [SECRET]},
    {"model": MODEL, "messages": [{"role": SECRET, "content": [{"type": SECRET, "text": SECRET}]}], "user": SECRET},
    {"model": MODEL, "messages": {SECRET: SECRET}},
    {"model": MODEL, "prompt": SECRET, "tools": SECRET, "cache_salt": SECRET},
    {"model": "nobody", "messages": [{"role": "user", "content": SECRET}]},
    {"model": {SECRET: SECRET}, "messages": SECRET},
]


@pytest.mark.parametrize("number", range(len(BODIES)))
async def test_no_word_of_a_prompt_is_in_the_log(number: int, gateway: Gateway) -> None:
    before = len(gateway.lines())
    await gateway.http.post(CHAT, json=BODIES[number], headers={"x-request-id": f"quiet-{number}"})
    await lines_of(gateway, f"quiet-{number}")
    assert [line for line in gateway.lines()[before:] if SECRET in line] == []


@pytest.mark.parametrize("body", [SECRET, f'{{"{SECRET}": {SECRET}', f'["{SECRET}"]', f'"{SECRET}"'])
async def test_no_word_of_a_broken_body_is_in_the_log(body: str, gateway: Gateway) -> None:
    before = len(gateway.lines())
    await gateway.http.post(CHAT, content=body, headers={"x-request-id": "broken"})
    await until("its line", lambda: "broken" in "".join(gateway.lines()[before:]))
    assert [line for line in gateway.lines()[before:] if SECRET in line] == []


async def test_a_line_per_request_that_failed_or_was_left(gateway: Gateway, upstream: Upstream) -> None:
    await gateway.http.post(CHAT, json={"model": "nobody", "messages": []}, headers={"x-request-id": "unknown-1"})
    (line,) = await lines_of(gateway, "unknown-1")
    assert "status=404" in line
    assert "error=" in line
    assert upstream.seen == []


async def test_no_line_forges_another(gateway: Gateway) -> None:
    forged = 'x"\n2026-01-01T00:00:00Z  INFO nebula.request: routing forged\x1b[31m'
    await gateway.http.post(CHAT, json={"model": forged, "messages": []}, headers={"x-request-id": "forged-1"})
    await lines_of(gateway, "forged-1")
    assert [line for line in gateway.lines() if line.startswith("2026-01-01T00:00:00Z")] == []
    assert "\x1b" not in gateway.log.read_text()


async def test_json_lines_can_be_parsed(open_gateway: OpenGateway, sims: list[Sim]) -> None:
    engines = [word for sim in sims for word in ("--engine", sim.url)]
    async with open_gateway(*engines, "--log-format", "json") as gateway:
        await await_sims(gateway)
        body = {"model": MODEL, "prompt": SECRET * 50, "max_tokens": 2}
        for headers in ({"x-request-id": "json-1"}, {"x-request-id": 'quo"te\\'}):
            await gateway.http.post(COMPLETIONS, json=body, headers=headers)
        await lines_of(gateway, "json-1")
    entries = [json.loads(line) for line in gateway.lines()]
    (entry, again) = [entry for entry in entries if entry["target"] == "nebula.request"]
    assert entry["message"] == "routing"
    assert (entry["id"], entry["status"], entry["model"], entry["overlap"]) == ("json-1", 200, MODEL, 0)
    assert again["id"] == 'quo"te\\'
    assert again["overlap"] > 0
    assert SECRET not in gateway.log.read_text()


async def test_hashes_of_prompts_are_logged_on_request(open_gateway: OpenGateway, sims: list[Sim]) -> None:
    engines = [word for sim in sims for word in ("--engine", sim.url)]
    prompt = list(range(1000, 2300))
    prompts = {"whole": prompt, "again": prompt, "longer": [*prompt, *range(600)], "other": [*prompt[:600], *prompt]}
    async with open_gateway(*engines, "--log-format", "json", "--log-prompt-hashes") as gateway:
        await await_sims(gateway)
        for name, tokens in prompts.items():
            body = {"model": MODEL, "prompt": tokens, "max_tokens": 3}
            await gateway.http.post(COMPLETIONS, json=body, headers={"x-request-id": f"hash-{name}"})
        words = {"model": MODEL, "messages": [{"role": "user", "content": SECRET * 300}], "max_tokens": 2}
        await gateway.http.post(CHAT, json=words, headers={"x-request-id": "hash-text"})
        entries = {name: json.loads((await lines_of(gateway, f"hash-{name}"))[0]) for name in (*prompts, "text")}
    digits = {name: re.findall("[0-9a-f]{16}", entry["blocks"]) for name, entry in entries.items()}
    assert {name: "".join(found) for name, found in digits.items()} == {n: e["blocks"] for n, e in entries.items()}
    assert [len(digits[name]) for name in prompts] == [3, 3, 4, 4]
    assert digits["again"] == digits["whole"]
    assert digits["longer"][:2] == digits["whole"][:2]
    assert digits["other"][0] == digits["whole"][0]
    assert not {*digits["other"][1:]} & {*digits["whole"]}
    assert {entries[name]["block_tokens"] for name in entries} == {512.0}
    assert [entry["completion"] for entry in entries.values()] == [3, 3, 3, 3, 2]
    assert len(digits["text"]) == len(SECRET) * 300 // 4 // 512 + 1
    assert SECRET not in gateway.log.read_text()


async def test_without_being_asked_for_no_hashes_are_logged(gateway: Gateway) -> None:
    body = {"model": MODEL, "prompt": "once upon a time " * 40, "max_tokens": 3}
    await gateway.http.post(COMPLETIONS, json=body, headers={"x-request-id": "plain-1"})
    (line,) = await lines_of(gateway, "plain-1")
    assert "completion=3" in line
    assert "block" not in line


async def test_requests_can_be_left_out_of_the_log(open_gateway: OpenGateway, sims: list[Sim]) -> None:
    async with open_gateway("--engine", sims[0].url, "--no-log-requests") as gateway:
        await await_sims(gateway, 1)
        reply = await gateway.http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "max_tokens": 1})
        assert reply.status_code == 200
    assert [line for line in gateway.lines() if "routing" in line] == []


@pytest.mark.parametrize("form", ["text", "json"])
async def test_what_python_says_has_the_form_of_the_rest(form: str, open_gateway: OpenGateway) -> None:
    async with open_gateway("--etcd-endpoint", "http://127.0.0.1:1", "--log-format", form) as gateway:

        def found() -> list[str]:
            return [line for line in gateway.lines() if "the store is lost" in line]

        await until("the loss in the log", lambda: bool(found()))
        assert (await gateway.http.get("/health")).json()["store"]["connected"] is False
    line = found()[0]
    if form == "json":
        said = json.loads(line)
        assert (said["level"], said["target"]) == ("WARN", "nebula_router.fleet.follow")
        assert "http://127.0.0.1:1 does not answer" in said["message"]
    else:
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z  WARN nebula_router\.fleet\.follow: the store is lost", line)
