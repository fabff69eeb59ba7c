"""Requests on simulated engines, from submission to result; each under asyncio's loop and under uvloop."""

import asyncio
from typing import Any

import pytest
from tests.control_plane.conftest import (
    LONG,
    Engine,
    Serve,
    asks,
    begun,
    figure,
    idle,
    instance_of,
    status_of,
)

from nebula_router.control_plane import (
    ControlPlaneManager,
    RequestMetadata,
    RequestStatus,
    UnknownRequestError,
)

pytestmark = pytest.mark.anyio

COMPLETED, CANCELLED, FAILED, RUNNING, QUEUED = (
    RequestStatus.COMPLETED,
    RequestStatus.CANCELLED,
    RequestStatus.FAILED,
    RequestStatus.RUNNING,
    RequestStatus.QUEUED,
)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_a_result_is_kept_and_can_be_awaited_again_and_again(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        assert await cp.submit_request(asks("r")) == "r"
        first, second = await asyncio.gather(cp.result("r"), cp.result("r"))
        assert first == second == await cp.result("r")
    assert first == await cp.result("r"), "after the stop too"
    assert (first.status, first.finish_reason, first.attempts, first.error) == (COMPLETED, "length", 1, None)
    assert len(first.text.split()) == 3
    assert first.usage
    assert first.usage["completion_tokens"] == 3
    assert first.instance_id == "e0"
    assert first.latency_ms
    assert first.time_to_first_token_ms
    assert first.queue_wait_ms is not None
    assert 0 <= first.queue_wait_ms < first.time_to_first_token_ms <= first.latency_ms


async def test_only_the_latest_results_are_kept(engine: Engine, serve: Serve) -> None:
    async with serve([engine()], results_kept=2) as cp:
        for name in "abc":
            await cp.submit_request(asks(name))
            await cp.result(name)
        with pytest.raises(UnknownRequestError, match=r"a: .*results_kept=2"):
            await cp.result("a")
        assert await cp.get_request_status("a") is None
        assert [(await cp.result(name)).status for name in "bc"] == [COMPLETED, COMPLETED]


async def test_a_status_goes_from_queued_to_completed(engine: Engine, serve: Serve) -> None:
    request = asks("r", max_tokens=300)
    async with serve([engine()]) as cp:
        assert await cp.get_request_status("r") is None
        await cp.submit_request(request)
        assert await cp.get_request_status("r") is QUEUED
        await status_of(cp, "r", RUNNING)
        await status_of(cp, "r", COMPLETED)
    times = [request.arrival_time, request.queue_time, request.schedule_time, request.start_time, request.end_time]
    assert None not in times
    assert times == sorted(times, key=lambda time: time or 0)


async def test_a_stream_gives_the_pieces_as_they_come_and_to_everybody_all_of_them(
    engine: Engine, serve: Serve
) -> None:
    async with serve([engine()]) as cp:
        await cp.submit_request(asks("r", max_tokens=50))
        pieces = []
        async for piece in cp.stream("r"):
            pieces.append(piece)
            if len(pieces) == 1:
                assert await cp.get_request_status("r") is RUNNING
        assert len(pieces) > 1
        assert [piece async for piece in cp.stream("r")] == pieces
        assert (await cp.result("r")).text == "".join(pieces)


async def test_messages_make_a_chat(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        await cp.submit_request(RequestMetadata("r", messages=[{"role": "user", "content": "hi"}], max_tokens=4))
        result = await cp.result("r")
    assert (result.status, len(result.text.split())) == (COMPLETED, 4)


async def test_ids_can_be_the_prompt(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        await cp.submit_request(RequestMetadata("r", prompt=[5, 6, 7, 8], max_tokens=2))
        usage = (await cp.result("r")).usage
    assert usage
    assert usage["prompt_tokens"] == 4


async def test_a_request_is_cancelled_while_it_waits() -> None:
    cp = ControlPlaneManager()
    await cp.submit_request(asks("r"))
    assert await cp.cancel_request("r")
    assert not await cp.cancel_request("r")
    assert not await cp.cancel_request("nobody")
    assert (await cp.result("r")).status is CANCELLED
    assert cp.get_status()["pending_requests"] == 0
    await cp.stop()


async def test_a_request_is_cancelled_while_it_runs_and_its_engine_stops(engine: Engine, serve: Serve) -> None:
    sim = engine()
    async with serve([sim]) as cp:
        await cp.submit_request(asks("r", max_tokens=LONG))
        await begun(cp, "r")
        assert await figure(sim, "vllm:num_requests_running") == 1
        assert await cp.cancel_request("r")
        assert await cp.get_request_status("r") is CANCELLED
        assert cp.get_instances()[0].active_requests == 0
        await idle(sim)
        assert not await cp.cancel_request("r")


async def test_a_request_that_is_over_cannot_be_cancelled(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        await cp.submit_request(asks("r"))
        await cp.result("r")
        assert not await cp.cancel_request("r")
        assert await cp.get_request_status("r") is COMPLETED


async def test_a_request_fails_when_it_has_waited_too_long(engine: Engine, serve: Serve) -> None:
    async with serve([], queue_timeout=0.1) as cp:
        cp.register_instance(instance_of(engine(), "e0", max_concurrent_requests=1))
        await cp.submit_request(asks("runs", max_tokens=LONG))
        await begun(cp, "runs")
        await cp.submit_request(asks("waits"))
        error = (await cp.result("waits")).error
    assert error
    assert "queue_timeout" in error


async def test_a_reply_that_takes_too_long_fails_and_stops_its_engine(engine: Engine, serve: Serve) -> None:
    sim = engine()
    async with serve([sim], request_timeout=0.2) as cp:
        await cp.submit_request(asks("r", max_tokens=LONG))
        result = await cp.result("r")
        assert result.status is FAILED
        assert "request_timeout=0.2" in (result.error or "")
        await idle(sim)
