"""Engines that fail in every way that the simulator knows."""

import asyncio
import socket

import pytest
from tests.control_plane.conftest import LONG, Engine, Serve, all_well, asks, begun, instance_of, post
from tests.gateway.wait import until

from nebula_router.control_plane import ControlPlaneManager, ExecutionInstance, RequestFailedError, RequestStatus

pytestmark = pytest.mark.anyio

COMPLETED, FAILED = RequestStatus.COMPLETED, RequestStatus.FAILED


async def removed(cp: ControlPlaneManager, name: str) -> None:
    def is_removed() -> bool:
        member = cp._fleet.find(name)
        return member is not None and member.health.is_removed

    await until(f"{name} to be removed", is_removed)


async def test_an_instance_that_dies_loses_nothing_and_returns_after_its_recovery(engine: Engine, serve: Serve) -> None:
    sims = [engine(), engine()]
    async with serve(sims, scheduling_policy="fifo", routing_strategy="round_robin") as cp:
        await all_well(cp)
        for at in range(8):
            await cp.submit_request(asks(f"r{at}", max_tokens=400))
        await begun(cp, *(f"r{at}" for at in range(8)))
        await post(sims[0], "/sim/restart", down_ms=1500)
        results = [await cp.result(f"r{at}") for at in range(8)]
        assert [result.status for result in results] == [COMPLETED] * 8
        assert [len(result.text.split()) for result in results] == [400] * 8
        assert {result.instance_id for result in results if result.attempts > 1} == {"e1"}
        assert cp.get_scheduling_metrics()["requeued_requests"] == 4
        await removed(cp, "e0")
        assert not cp.get_instances()[0].is_available
        await until("the instance to be back", lambda: cp.get_instances()[0].can_accept_request)
        for at in range(4):
            await cp.submit_request(asks(f"after{at}"))
        assert {(await cp.result(f"after{at}")).instance_id for at in range(4)} == {"e0", "e1"}


async def test_what_was_read_of_a_reply_is_never_begun_again_elsewhere(engine: Engine, serve: Serve) -> None:
    sims = [engine(), engine()]
    async with serve(sims) as cp:
        await all_well(cp)
        await cp.submit_request(asks("r", max_tokens=LONG, preferred_instance_id="e0"))
        pieces = cp.stream("r")
        await anext(pieces)
        await post(sims[0], "/sim/restart", down_ms=100)
        with pytest.raises(RequestFailedError, match=r"r: instance e0: .*already read"):
            [piece async for piece in pieces]
        result = await cp.result("r")
    assert (result.status, result.attempts) == (FAILED, 1)
    assert result.text


async def test_a_request_is_sent_at_most_four_times(engine: Engine, serve: Serve) -> None:
    async with serve([engine(faults=["reset"])]) as cp:
        await cp.submit_request(asks("r"))
        result = await cp.result("r")
    assert (result.status, result.attempts) == (FAILED, 4)
    assert "sent 4 times (max_retries=3)" in (result.error or "")
    assert cp.get_instance_metrics("e0")["failed_requests"] == 4  # type: ignore[index]


async def test_a_request_that_is_queued_again_is_the_next(engine: Engine, serve: Serve) -> None:
    sim = engine(faults=["reset;count=1"])
    async with serve([], scheduling_policy="fifo") as cp:
        cp.register_instance(instance_of(sim, "e0", max_concurrent_requests=1))
        for name in "abc":
            await cp.submit_request(asks(name))
        ends = [(await cp.result(name)).latency_ms for name in "abc"]
        ended = [cp._tickets.known(name).request.end_time for name in "abc"]
        assert (await cp.result("a")).attempts == 2
    assert None not in ends
    assert ended == sorted(ended, key=lambda time: time or 0)


async def test_a_removed_instances_running_requests_are_queued_again(engine: Engine, serve: Serve) -> None:
    hung = engine(faults=["hang"])
    async with serve([hung], health_check_interval=60) as cp:
        await all_well(cp)
        await cp.submit_request(asks("r"))
        await until("it to run", lambda: cp.get_status()["running_requests"] == 1)
        cp.register_instance(instance_of(engine(), "e1"))
        await all_well(cp)
        member = cp._fleet.find("e0")
        assert member
        for _ in range(3):
            cp._dispatcher.monitor.failed(member, "in this test")
        result = await cp.result("r")
    assert (result.status, result.attempts, result.instance_id) == (COMPLETED, 2, "e1")


async def test_requests_that_fail_do_not_end_others_on_their_instance(engine: Engine, serve: Serve) -> None:
    sim = engine()
    async with serve([sim]) as cp:
        await cp.submit_request(asks("runs", max_tokens=500))
        await begun(cp, "runs")
        await post(sim, "/sim/fault", kind="reset", count=3)
        for name in "abc":
            await cp.submit_request(asks(name))
        results = [await cp.result(name) for name in ("runs", "a", "b", "c")]
    assert [result.status for result in results] == [COMPLETED] * 4
    assert results[0].attempts == 1
    assert sum(result.attempts for result in results[1:]) == 6


@pytest.mark.parametrize("fault", ["queue_full;count=2", "status;status=429;count=2"])
async def test_an_engine_without_room_gets_the_request_again_later_and_is_not_removed(
    fault: str, engine: Engine, serve: Serve
) -> None:
    async with serve([engine(faults=[fault])]) as cp:
        await cp.submit_request(asks("r"))
        result = await cp.result("r")
        assert (result.status, result.attempts) == (COMPLETED, 3)
        assert cp.get_instance_metrics("e0")["consecutive_failures"] == 0  # type: ignore[index]


async def test_what_an_engine_refuses_fails_at_once_with_its_words(engine: Engine, serve: Serve) -> None:
    async with serve([engine(max_model_len=64), engine(max_model_len=64)]) as cp:
        await cp.submit_request(asks("r", "word " * 500))
        result = await cp.result("r")
        assert (result.status, result.attempts) == (FAILED, 1)
        assert "64" in (result.error or "")
        with pytest.raises(RequestFailedError, match="64"):
            [piece async for piece in cp.stream("r")]
        assert all(instance.can_accept_request for instance in cp.get_instances())


async def test_an_engines_own_failure_fails_the_request_alone(engine: Engine, serve: Serve) -> None:
    async with serve([engine(faults=["status;status=500;count=1"])]) as cp:
        await cp.submit_request(asks("r"))
        assert (await cp.result("r")).status is FAILED
        await cp.submit_request(asks("s"))
        assert (await cp.result("s")).status is COMPLETED


async def test_an_instance_whose_engine_has_another_model_gets_nothing(
    engine: Engine, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve([]) as cp:
        cp.register_instance(instance_of(engine(model="red"), "wrong", model_name="blue"))
        cp.register_instance(instance_of(engine(model="blue"), "right", model_name="blue"))
        await removed(cp, "wrong")
        for at in range(4):
            await cp.submit_request(asks(f"r{at}", model_name="blue"))
        assert {(await cp.result(f"r{at}")).instance_id for at in range(4)} == {"right"}
    assert "instance wrong gets no requests" in caplog.text
    assert "registered with model blue, and its engine serves red" in caplog.text


async def test_requests_wait_for_an_engine_that_is_not_there_yet(engine: Engine, serve: Serve) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        async with serve([]) as cp:
            cp.register_instance(ExecutionInstance("late", "127.0.0.1", port, "tiny"))
            await cp.submit_request(asks("r"))
            await removed(cp, "late")
            assert await cp.get_request_status("r") is RequestStatus.QUEUED
            held.close()
            engine(listen=f"127.0.0.1:{port}")
            result = await cp.result("r")
    assert (result.status, result.attempts) == (COMPLETED, 1)


async def test_a_stop_waits_for_no_engine_that_hangs(engine: Engine, serve: Serve) -> None:
    async with serve([engine(faults=["hang"])]) as cp:
        await cp.submit_request(asks("r"))
        await until("it to run", lambda: cp.get_status()["running_requests"] == 1)
        await asyncio.wait_for(cp.stop(), 20)
        assert (await cp.result("r")).status is RequestStatus.CANCELLED
