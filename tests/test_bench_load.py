"""The load generator: what is sent, and what wrk's report says."""

import itertools
import json
from hashlib import sha256

import pytest

from nebula_router.bench import load, prompts
from nebula_router.bench.error import BenchError

# wrk 4.1.0 with our script against a fixed reply, as captured.
GOOD = """\
Running 1s test @ http://127.0.0.1:58975
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    67.09us  140.52us   3.96ms   99.31%
    Req/Sec   121.82k     2.23k  124.02k    81.82%
  133143 requests in 1.10s, 105.64MB read
Requests/sec: 121064.29
Transfer/sec:     96.06MB

nebula-bench {"requests":133143,"us":1099771,"p50_us":57,"p99_us":103,"max_us":3957,\
"connect":0,"read":0,"write":0,"status":0,"timeout":0}

"""
# The same against a path that answers 404.
ALL_404 = """\
Running 1s test @ http://127.0.0.1:58975
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    75.17us  168.91us   3.99ms   99.18%
    Req/Sec    98.97k    22.51k  124.02k    45.45%
  107858 requests in 1.10s, 18.82MB read
  Non-2xx or 3xx responses: 107858
Requests/sec:  98061.02
Transfer/sec:     17.11MB

nebula-bench {"requests":107858,"us":1099907,"p50_us":57,"p99_us":174,"max_us":3987,\
"connect":0,"read":0,"write":0,"status":107858,"timeout":0}

"""


def test_a_good_run_is_read() -> None:
    sample = load.parse(GOOD)
    assert sample == load.Sample(133143, 1.099771, 0.057, 0.103, 3.957, {})
    assert sample.failed == 0
    assert sample.rate == pytest.approx(121064.29, abs=0.01)  # wrk's own figure


def test_failed_requests_are_counted_by_kind() -> None:
    sample = load.parse(ALL_404)
    assert sample.errors == {"status": 107858}
    assert sample.failed == 107858


def test_a_report_without_results_is_refused() -> None:
    with pytest.raises(BenchError, match="printed no results: Running 1s test"):
        load.parse("Running 1s test @ http://127.0.0.1:1\n")


def test_bodies_are_the_same_in_every_run() -> None:
    digest = sha256(b"\n".join(prompts.chat_bodies("tiny"))).hexdigest()
    assert digest.startswith("f71cd0686f247f22")


def test_bodies_share_system_prompts_and_nothing_else() -> None:
    chats = [json.loads(body) for body in prompts.chat_bodies("tiny", extra={"max_tokens": 16})]
    system, user = ([chat["messages"][i]["content"] for chat in chats] for i in (0, 1))
    assert len(chats) == 64
    assert len(set(system)) == 8
    assert len(set(user)) == 64
    assert {len(s) + len(u) for s, u in zip(system, user, strict=True)} == {4096}
    assert {chat["max_tokens"] for chat in chats} == {16}
    assert len({text[:16] for text in system}) == 8  # they part at once


def test_the_script_holds_each_body_as_it_is() -> None:
    bodies = prompts.chat_bodies("tiny")
    script = load.script("/v1/chat/completions", bodies)
    assert script.count("[==[") == script.count("]==]") == 64
    for body in bodies:
        assert f"[==[{body.decode()}]==]," in script
    assert 'wrk.format("POST", "/v1/chat/completions", headers, body)' in script
    assert "$" not in script


def test_token_prompts_are_the_same_in_every_run() -> None:
    digest = sha256(b"\n".join(prompts.token_bodies("tiny"))).hexdigest()
    assert digest.startswith("2b7a7055f8d8bc17")


def test_token_prompts_grow_turn_by_turn() -> None:
    asked = [json.loads(body) for body in prompts.token_bodies("tiny", extra={"max_tokens": 16})]
    assert [len(one["prompt"]) for one in asked] == [850] * 16 + [950] * 16 + [1050] * 16 + [1150] * 16
    for conversation in range(16):
        turns = [one["prompt"] for one in asked[conversation::16]]
        assert all(later[: len(turn)] == turn for turn, later in itertools.pairwise(turns))
    assert len({tuple(one["prompt"][:512]) for one in asked}) == 8
    assert len({tuple(one["prompt"][:513]) for one in asked}) == 16
    assert all(0 <= token < prompts.VOCABULARY for one in asked for token in one["prompt"])
