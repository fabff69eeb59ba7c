"""Start and stop, and what is taken in between; each under asyncio's loop and under uvloop."""

from typing import Any

import pytest
from tests.control_plane.conftest import LONG, Engine, Serve, asks, begun, idle, instance_of

from nebula_router.control_plane import (
    ControlPlaneManager,
    DuplicateRequestError,
    ExecutionInstance,
    QueueFullError,
    RequestFailedError,
    RequestMetadata,
    RequestStatus,
    StoppedError,
)

pytestmark = pytest.mark.anyio

COMPLETED, CANCELLED, QUEUED = RequestStatus.COMPLETED, RequestStatus.CANCELLED, RequestStatus.QUEUED


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_a_request_needs_one_kind_of_prompt_and_an_id_of_its_own() -> None:
    cp = ControlPlaneManager()
    with pytest.raises(ValueError, match="r: needs either a prompt or messages"):
        await cp.submit_request(RequestMetadata("r"))
    with pytest.raises(ValueError, match="s: cannot be written as JSON"):
        await cp.submit_request(asks("s", "\ud800"))
    with pytest.raises(ValueError, match="s: needs"):
        await cp.submit_request(RequestMetadata("s", prompt="x", messages=[]))
    await cp.submit_request(asks("r"))
    with pytest.raises(DuplicateRequestError, match="r: this id is taken"):
        await cp.submit_request(asks("r"))
    await cp.stop()


async def test_the_queue_has_a_bound_that_is_named() -> None:
    cp = ControlPlaneManager(queue_limit=2)
    for name in "ab":
        await cp.submit_request(asks(name))
    with pytest.raises(QueueFullError, match=r"c: .*queue_limit=2"):
        await cp.submit_request(asks("c"))
    assert await cp.cancel_request("a")
    await cp.submit_request(asks("c"))
    await cp.stop()


async def test_what_is_submitted_before_the_start_is_served_after_it(engine: Engine) -> None:
    cp = ControlPlaneManager()
    cp.register_instance(instance_of(engine(), "e0"))
    await cp.submit_request(asks("r"))
    assert cp.get_status()["pending_requests"] == 1
    await cp.start()
    await cp.start()
    assert (await cp.result("r")).status is COMPLETED
    await cp.stop()
    await cp.stop()


async def test_after_the_stop_nothing_is_taken_until_a_new_start(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        await cp.stop()
        with pytest.raises(StoppedError, match="r: the control plane has stopped"):
            await cp.submit_request(asks("r"))
        await cp.start()
        await cp.submit_request(asks("r"))
        assert (await cp.result("r")).status is COMPLETED


async def test_a_stop_lets_finish_what_runs_and_cancels_what_waits(engine: Engine) -> None:
    cp = ControlPlaneManager(stop_timeout=60)
    cp.register_instance(instance_of(engine(), "e0", max_concurrent_requests=1))
    await cp.start()
    await cp.submit_request(asks("runs", max_tokens=200))
    await cp.submit_request(asks("waits"))
    await begun(cp, "runs")
    await cp.stop()
    assert [(await cp.result(name)).status for name in ("runs", "waits")] == [COMPLETED, CANCELLED]
    with pytest.raises(RequestFailedError, match="waits: cancelled while it waited"):
        [piece async for piece in cp.stream("waits")]


async def test_a_stop_cancels_what_does_not_finish_in_time(engine: Engine) -> None:
    sim = engine()
    cp = ControlPlaneManager(stop_timeout=0.05)
    cp.register_instance(instance_of(sim, "e0"))
    await cp.start()
    await cp.submit_request(asks("r", max_tokens=LONG))
    await begun(cp, "r")
    await cp.stop()
    result = await cp.result("r")
    assert result.status is CANCELLED
    assert result.text
    await idle(sim)


async def test_an_instance_that_is_unregistered_finishes_what_it_has(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        await cp.submit_request(asks("r", max_tokens=300))
        await begun(cp, "r")
        instance = cp.get_instances()[0]
        assert cp.unregister_instance("e0")
        assert not cp.unregister_instance("e0")
        await cp.submit_request(asks("waits"))
        assert (await cp.result("r")).status is COMPLETED
        assert instance.active_requests == 0
        assert await cp.get_request_status("waits") is QUEUED
        assert cp.get_status()["registered_instances"] == 0


async def test_figures_follow_what_happens(engine: Engine, serve: Serve) -> None:
    async with serve([engine(), engine()]) as cp:
        for at in range(4):
            await cp.submit_request(asks(f"r{at}", slo_deadline_ms=60_000))
            await cp.result(f"r{at}")
        figures, scheduling = cp.get_metrics(), cp.get_scheduling_metrics()
        assert (figures.total_requests, figures.completed_requests, figures.active_requests) == (4, 4, 0)
        assert 0 < figures.p50_latency_ms <= figures.p95_latency_ms <= figures.p99_latency_ms
        assert figures.tokens_per_second > 0
        assert (figures.total_cost > 0, figures.slo_compliance_rate) == (True, 1)
        assert (scheduling["decisions_by_policy"], scheduling["requeued_requests"]) == ({"adaptive": 4}, 0)
        instances = cp.get_all_instance_metrics()
        assert sum(each["completed_requests"] for each in instances.values()) == 4
        assert instances["e0"] == cp.get_instance_metrics("e0")
        assert cp.get_instance_metrics("nobody") is None
        assert cp.get_status()["metrics"].total_requests == 4
        busy = [instance for instance in cp.get_instances() if instance.avg_latency_ms > 0]
        assert busy
        assert all(instance.throughput_tokens_per_sec > 0 for instance in busy)


def test_an_unreachable_address_is_no_reason_not_to_register() -> None:
    cp = ControlPlaneManager()
    cp.register_instance(ExecutionInstance("a", "192.0.2.1", 8000, "m"))
    assert cp.get_status()["registered_instances"] == 1
