"""Calibration without an engine: what is asked, what is read from a stream, and what is made of the times."""

import json
import random
from dataclasses import astuple

import pytest
from numpy import testing

from nebula_router.bench import calibrate_engine
from nebula_router.bench.calibrate import doubts
from nebula_router.bench.calibrate_client import Stream, Target, parse
from nebula_router.bench.calibrate_engine import Engine
from nebula_router.bench.calibrate_fit import UNITS, Fit, fit, typical
from nebula_router.bench.calibrate_probe import Decode, Limits, Prefill, Work, geometric, plan, steady
from nebula_router.bench.error import BenchError

ENGINE = Engine("m", max_model_len=4096, block_size=16, kv_blocks=1001, prefix_caching=True)
LIMITS = Limits(max_num_batched_tokens=512, max_num_seqs=64, streams=32)
TRUE = (4000.0, 2000.0, 20.0, 30.0, 90.0, 150.0)

METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 2.0
vllm:num_requests_running_by_lora{engine="0"} 9.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="32",cache_dtype="auto",enable_prefix_caching="True",engine="0",\
kv_cache_dtype_skip_layers="[]",num_cpu_blocks="None",num_gpu_blocks="160"} 1.0
"""


def event(document: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def token(count: int) -> bytes:
    usage = {"prompt_tokens": 7, "total_tokens": 7 + count, "completion_tokens": count}
    return event({"choices": [{"text": "x"}], "usage": usage})


def decoding(begin: float, gap: float, tokens: int, prompt: int = 100) -> Stream:
    return Stream(0.0, tuple((i + 1, begin + gap * i) for i in range(tokens)), prompt, 0)


# === calibrate_client ===


def test_a_token_comes_when_the_last_byte_of_its_event_does() -> None:
    events = [token(1), token(3), event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})]
    body = b"".join([*events, b"data: [DONE]\n\n"])
    cut = len(events[0]) + len(events[1]) - 1  # the second event lacks a byte
    stream = parse(body, [(len(events[0]), 1.5), (cut, 2.0), (len(body), 2.5)], asked=1.0)
    assert stream.tokens == ((1, 1.5), (3, 2.5))
    assert (stream.ttft_s, stream.prompt_tokens, stream.cached_tokens) == (0.5, 7, None)


def test_a_chunk_that_counts_nothing_is_one_token() -> None:
    last = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    body = event({"choices": [{"text": "a"}]}) * 2 + event({"choices": [], "usage": last})
    stream = parse(body, [(len(body), 1.0)], asked=0.0)
    assert [count for count, _ in stream.tokens] == [1, 2]
    assert stream.cached_tokens == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (token(1) + event({"error": {"message": "out of blocks"}}), "the engine ended a stream: out of blocks"),
        (b"data: nonsense\n\n", "an event that is no JSON object: b'nonsense'"),
        (b"data: [1]\n\n", "an event that is no JSON object"),
    ],
)
def test_a_stream_that_is_none_is_told(body: bytes, message: str) -> None:
    with pytest.raises(BenchError, match=message.replace("[", r"\[")):
        parse(body, [(len(body), 1.0)], asked=0.0)


def test_a_target_is_a_url_with_or_without_v1() -> None:
    assert Target.of("http://gpu-7:8000/v1/") == Target("gpu-7", 8000)
    assert Target.of("https://api.example/team/v1", "k") == Target(
        "api.example", 443, tls=True, prefix="/team", key="k"
    )
    message = Target.of("http://[::1]:80/v1", "k").message("/v1/completions", b"{}")
    assert message.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: [::1]:80\r\nAuthorization: Bearer k\r\n")
    assert message.endswith(b"Content-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a?x=1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match=r"--base-url "):
        Target.of(url)


# === calibrate_engine ===


def test_the_cache_is_read_from_the_metrics() -> None:
    assert calibrate_engine.cache(METRICS) == {
        "block_size": 32,
        "kv_blocks": 160,
        "prefix_caching": True,
        "ranks": 1,
    }
    assert calibrate_engine.cache("") == {}
    assert [value for _, value in calibrate_engine.samples(METRICS, "vllm:num_requests_running")] == [2.0]


def test_a_model_is_picked() -> None:
    cards = {"data": [{"id": "base", "max_model_len": 4096}, {"id": "lora", "max_model_len": 2048}]}
    assert calibrate_engine.pick(cards, None) == ("base", 4096)
    assert calibrate_engine.pick(cards, "lora") == ("lora", 2048)
    with pytest.raises(BenchError, match="--model nope: the engine serves base, lora"):
        calibrate_engine.pick(cards, "nope")
    with pytest.raises(BenchError, match="no max_model_len of x"):
        calibrate_engine.pick({"data": [{"id": "x"}]}, None)
    with pytest.raises(BenchError, match="lists no model"):
        calibrate_engine.pick({"data": []}, "m")


# === calibrate_probe ===


def test_probes_reach_the_engine_s_limits_and_keep_within_them() -> None:
    probes = plan(ENGINE, LIMITS)
    prefills = [probe for probe in probes if isinstance(probe, Prefill)]
    decodes = [probe for probe in probes if isinstance(probe, Decode)]
    assert max(probe.tokens for probe in prefills) == 4095
    assert any(probe.prefix for probe in prefills)
    for one in prefills:
        assert one.tokens + len(one.prefix) < ENGINE.max_model_len
        assert len(one.prefix) % 16 == 0
    assert {len(probe.prompts) for probe in decodes} == {1, 2, 4, 8, 16, 32}
    assert max(len(probe.prompts[0]) for probe in decodes) == 4095 // 2
    for other in decodes:
        assert len(other.prompts) * (len(other.prompts[0]) + other.tokens) <= 0.8 * 16_000


@pytest.mark.parametrize(
    ("engine", "streams", "batches"),
    [
        (Engine("m", 4096, block_size=16, kv_blocks=4097, prefix_caching=False), 5, {1, 2, 4}),
        (Engine("m", 64), 32, {1}),
        (Engine("m", 1), 32, set()),
    ],
)
def test_a_plan_fits_every_engine(engine: Engine, streams: int, batches: set[int]) -> None:
    probes = plan(engine, Limits(512, 64, streams))
    assert {len(probe.prompts) for probe in probes if isinstance(probe, Decode)} == batches
    assert not any(isinstance(probe, Prefill) and probe.prefix for probe in probes)


def test_no_prompt_is_asked_twice() -> None:
    first, again = ([probe for probe in plan(ENGINE, LIMITS) if isinstance(probe, Decode)] for _ in range(2))
    assert not {prompt for probe in first for prompt in probe.prompts} & {
        prompt for probe in again for prompt in probe.prompts
    }


def test_a_long_prompt_takes_several_steps() -> None:
    # 512 + 512 + 76 tokens: the pairs of each step, summed.
    steps = [(512, 0), (512, 512), (76, 1024)]
    pairs = sum(new * before + new * new / 2 for new, before in steps)
    assert Prefill(1100).work(budget=512) == Work(1, 3, 1100, pairs)


def test_cached_tokens_are_not_computed() -> None:
    probe = Prefill(16, prefix=(1,) * 480)
    assert probe.work(budget=512) == Work(1, 1, 16, 16 * 480 + 128)
    assert probe.work(budget=512, cached=0) == Work(1, 1, 496, 496**2 / 2)  # it was evicted meanwhile


def test_a_step_is_timed_while_all_streams_decode() -> None:
    # The second joins at 1.0; until then the steps of the first are short.
    early = tuple((i + 1, 0.1 + 0.01 * i) for i in range(90))
    joint = tuple((91 + i, 1.0 + 0.05 * i) for i in range(33))
    found = steady([Stream(0.0, early + joint, 100, 0), decoding(1.0, 0.05, 33)])
    assert found is not None
    seconds, work = found
    assert seconds == pytest.approx(0.05)
    assert (work.steps, work.decode_seqs, work.requests) == (1, 2, 0)
    # In the middle of that time they have 107 and 17 tokens; the last two of each are not read.
    assert work.resident_tokens == 100 + 107 - 2 + 100 + 17 - 2


def test_chunks_that_come_together_do_not_shorten_a_step() -> None:
    even = [(i + 1, 0.02 * i) for i in range(64)]
    clumped = tuple((count, at if count % 4 == 1 else at + 0.02 * ((1 - count) % 4)) for count, at in even)
    found = steady([Stream(0.0, clumped, 10, 0)])
    assert found is not None
    assert found[0] == pytest.approx(0.02, rel=0.05)


def test_streams_that_never_decode_together_tell_nothing() -> None:
    assert steady([decoding(0.0, 0.01, 20), decoding(5.0, 0.01, 20)]) is None
    assert steady([decoding(0.0, 0.0, 20)]) is None


def test_lengths_grow_by_a_ratio() -> None:
    assert geometric(16, 1024, 7) == [16, 32, 64, 128, 256, 512, 1024]
    assert geometric(16, 9, 7) == [9]
    assert geometric(16, 0, 7) == []


# === calibrate_fit ===


def points(noise: float = 0.0) -> tuple[list[Work], list[float]]:
    chance = random.Random(1)
    prefills = [Prefill(n).work(512) for n in geometric(16, 4095, 10)]
    decodes = [Work(steps=1, decode_seqs=n, resident_tokens=n * c) for n in (1, 2, 4, 8, 16) for c in (16, 500, 2000)]
    work = [*prefills, *decodes]
    times = [sum(a * b * c for a, b, c in zip(astuple(one), TRUE, UNITS, strict=True)) for one in work]
    return work, [time * (1 + chance.uniform(-noise, noise)) for time in times]


def test_a_fit_finds_what_made_the_times() -> None:
    found = fit(*points())
    testing.assert_allclose(found.coefficients, TRUE, rtol=1e-6)
    assert found.r2 == pytest.approx(1)
    assert found.worst < 1e-6
    assert not any(found.outlier)


def test_a_fit_endures_noise_and_outliers() -> None:
    work, times = points(noise=0.03)
    wrong = [3, 14]
    for at in wrong:
        times[at] *= 5
    found = fit(work, times)
    assert [at for at, outlier in enumerate(found.outlier) if outlier] == wrong
    testing.assert_allclose(found.coefficients, TRUE, rtol=0.15)
    assert found.p50 < 0.03
    assert found.worst > 0.5  # the outliers count in what is told


def test_no_coefficient_is_negative() -> None:
    work = [Prefill(n).work(10_000) for n in (16, 64, 256, 1024, 4096)]
    work += [Work(steps=1, decode_seqs=n, resident_tokens=n * 100) for n in (1, 2, 4, 8)]
    # Faster the longer: no such engine exists, but noise may look like it.
    found = fit(work, [0.05, 0.045, 0.04, 0.035, 0.03, 0.02, 0.02, 0.02, 0.02])
    assert min(found.coefficients) == 0
    assert max(found.coefficients) > 0


def test_the_typical_value_is_none_of_the_outliers() -> None:
    assert typical([1.0, 1.1, 0.9, 1.0, 50.0]) == 1.0
    assert typical([2.0]) == 2.0


def test_doubts_are_told() -> None:
    good = Fit((1.0,) * 6, (1.0,), (False,), r2=0.99, p50=0.01, p90=0.02, worst=0.03)
    assert doubts(ENGINE, good) == []
    poor = Fit((1.0, 1.0, 1.0, 0.0, 1.0, 1.0), (1.0,), (False,), r2=0.5, p50=0.1, p90=0.4, worst=0.5)
    told = doubts(Engine("m", 4096, ranks=2), poor)
    assert [line.partition(":")[0] for line in told] == [
        "2 data-parallel ranks share this URL",
        "the engine does not tell its KV cache",
        "the fit is poor",
        "no effect was found of prefill_ns_per_pair",
    ]
