import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.canned_gateway import Canned

from nebula_router.fleet.engine.probe import Load, Probe

REAL = Path(__file__).parents[3] / "rust_core" / "sim" / "tests" / "data" / "metrics.txt"
"""As a vLLM wrote it."""
PAGE = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a \\"}b"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 3 1395066363000
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 70.0
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 4.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 4.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 2.0
"""


def test_metrics_are_read_by_their_whole_names() -> None:
    load = Load.parsed(PAGE)
    assert load == Load(kv_usage=0.75, waiting=5, running=5, ttft_s=2.0, ttft_count=4.0)
    assert load.is_idle is False
    assert Load.parsed("").is_idle is None
    assert Load.parsed("vllm:num_requests_waiting 0\nvllm:num_requests_running 0.0\n").is_idle is True
    assert Load.parsed("vllm:gpu_cache_usage_perc 0.5\n").kv_usage == 0.5
    assert Load.parsed("vllm:kv_cache_usage_perc NaN\n").kv_usage is None


def test_a_page_of_vllm_is_read() -> None:
    load = Load.parsed(REAL.read_text())
    assert None not in {load.kv_usage, load.waiting, load.running, load.ttft_s, load.ttft_count}


def test_times_to_first_token_are_those_since_the_last_look() -> None:
    load = Load.parsed(PAGE)
    assert load.stats(None).ttft_ms is None
    later = Load(0.0, 0, 0, ttft_s=2.6, ttft_count=6)
    assert later.stats(load).ttft_ms == pytest.approx(300)
    assert later.stats(later).ttft_ms is None
    restarted = Load(0.0, 0, 0, ttft_s=0.2, ttft_count=1)
    assert restarted.stats(later).ttft_ms == pytest.approx(200)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_no_page_is_too_strange(text: str) -> None:
    Load.parsed(text)


@pytest.mark.anyio
async def test_an_engine_tells_of_itself() -> None:
    engine = Canned()
    with engine.served() as url:
        probe = Probe("127.0.0.1", int(url.rpartition(":")[2]), api_key="k")
        assert await probe.health() == "/health answers 404"
        assert (await probe.names(), await probe.events(), await probe.load()) == (None, None, None)
        engine.says("/health", "")
        engine.says("/v1/models", {"data": [{"id": "a"}, {"id": "b"}]})
        engine.says("/kv_event_sources", {"0": {"endpoint": "tcp://*:1"}, "1": {}})
        engine.says("/metrics", PAGE)
        assert await probe.health() is None
        assert await probe.names() == ("a", "b")
        assert await probe.events() == {"endpoint": "tcp://*:1"}
        load = await probe.load()
        assert load is not None
        assert load.waiting == 5
        assert engine.asked[-1][1] == "Bearer k"
        engine.says("/health", "", status=503)
        assert await probe.health() == "/health answers 503"
        engine.says("/v1/models", "[1]")
        assert await probe.names() is None
    assert await probe.health() is not None


@pytest.mark.anyio
async def test_an_engine_that_hangs_or_babbles_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nebula_router.fleet.engine.probe.TIMEOUT_S", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def babbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    for server, told in ((silent, "does not answer within 0.05 s"), (babbling, "no HTTP")):
        async with await asyncio.start_server(server, "127.0.0.1", 0) as serving:
            port = serving.sockets[0].getsockname()[1]
            if server is babbling:
                monkeypatch.setattr("nebula_router.fleet.engine.probe.TIMEOUT_S", 10)
            assert told in (await Probe("127.0.0.1", port).health() or "")
