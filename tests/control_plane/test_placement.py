"""Which request goes where on simulated engines, and in which order."""

from collections import Counter
from typing import Any

import pytest
from tests.control_plane.conftest import LONG, Engine, Serve, all_well, asks, begun, instance_of
from tests.gateway.wait import until

from nebula_router.control_plane import (
    ControlPlaneManager,
    Preference,
    RequestPriority,
    RequestStatus,
)

pytestmark = pytest.mark.anyio

COMPLETED, FAILED, QUEUED = RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.QUEUED


async def test_a_decision_stays_with_its_request(engine: Engine, serve: Serve) -> None:
    """Served in another order than submitted, each on the instance that its own decision names."""
    sims = [engine() for _ in range(3)]
    async with serve([], scheduling_policy="priority") as cp:
        for at, sim in enumerate(sims):
            cp.register_instance(instance_of(sim, f"e{at}", model_name="tiny", max_concurrent_requests=4))
        priorities = list(RequestPriority) * 6
        for at, priority in enumerate(priorities):
            await cp.submit_request(asks(f"r{at}", priority=priority, preferred_instance_id=f"e{at % 3}"))
        results = [await cp.result(f"r{at}") for at in range(len(priorities))]
    for at, result in enumerate(results):
        assert result.status is COMPLETED
        assert result.decision == cp.get_decision(f"r{at}")
        assert result.decision
        assert (result.decision.request_id, result.decision.target_instance_id) == (f"r{at}", result.instance_id)
        assert result.decision.reason
    assert cp.get_scheduling_metrics()["decisions"] == len(priorities)


async def test_requests_without_a_decision_stay_queued_and_none_is_lost(engine: Engine, serve: Serve) -> None:
    async with serve([]) as cp:
        cp.register_instance(instance_of(engine(), "e0", max_concurrent_requests=1))
        names = [f"r{at}" for at in range(20)]
        for name in names:
            await cp.submit_request(asks(name, max_tokens=20))
        await begun(cp, "r0")
        status = cp.get_status()
        assert (status["pending_requests"], status["running_requests"]) == (19, 1)
        assert [(await cp.result(name)).status for name in names] == [COMPLETED] * 20


async def test_a_batch_does_not_go_to_one_instance(engine: Engine, serve: Serve) -> None:
    async with serve([engine() for _ in range(4)], scheduling_policy="fifo") as cp:
        await all_well(cp)
        for at in range(40):
            await cp.submit_request(asks(f"r{at}"))
        assert Counter([(await cp.result(f"r{at}")).instance_id for at in range(40)]) == dict.fromkeys(
            ("e0", "e1", "e2", "e3"), 10
        )


@pytest.mark.parametrize("policy", ["fifo", "adaptive"])
async def test_the_routing_strategy_has_an_effect(policy: str, engine: Engine, serve: Serve) -> None:
    sims = [engine() for _ in range(3)]
    seen = {}
    for strategy in ("round_robin", "affinity", "kv"):
        async with serve(sims, scheduling_policy=policy, routing_strategy=strategy) as cp:
            await all_well(cp)
            await prices_known(cp)
            chosen = []
            for at in range(6):
                await cp.submit_request(asks(f"r{at}", "an old story " * 50, user_id="ann"))
                chosen.append((await cp.result(f"r{at}")).instance_id)
                decision = cp.get_decision(f"r{at}")
                assert decision
                assert f"{strategy} among" in decision.reason
            seen[strategy] = len(set(chosen))
    assert seen == {"round_robin": 3, "affinity": 1, "kv": 1}


async def prices_known(cp: ControlPlaneManager) -> None:
    """Returns once the core knows how the engines cut prompts."""
    await until("prices", lambda: all(engine["key"] for engine in cp._engines._started.engines()))


async def test_kv_weighs_what_is_cached_against_load_and_says_so(engine: Engine, serve: Serve) -> None:
    async with serve([engine(), engine()], routing_strategy="kv") as cp:
        await all_well(cp)
        await prices_known(cp)
        for at in range(2):
            await cp.submit_request(asks(f"r{at}", "once upon a time " * 100))
            await cp.result(f"r{at}")
        decision = cp.get_decision("r1")
        assert decision
        assert "0 of" not in decision.reason
        assert "prompt tokens cached" in decision.reason
        result = await cp.result("r1")
        assert result.usage
        assert result.usage["prompt_tokens_details"]["cached_tokens"] > 0
        full = cp.get_instances()[int(decision.target_instance_id[1])]
        full.max_concurrent_requests = 1
        await cp.submit_request(asks("holds", "else", preferred_instance_id=full.instance_id, max_tokens=LONG))
        await begun(cp, "holds")
        await cp.submit_request(asks("r2", "once upon a time " * 100))
        assert (await cp.result("r2")).instance_id != full.instance_id, "one that is full is no candidate"


async def test_the_model_of_a_request_matters(engine: Engine, serve: Serve) -> None:
    async with serve([], model_timeout=0.1) as cp:
        for name in ("blue", "red"):
            cp.register_instance(instance_of(engine(model=name), name, model_name=name))
        for at in range(6):
            await cp.submit_request(asks(f"r{at}", model_name=("blue", "red")[at % 2]))
        assert [(await cp.result(f"r{at}")).instance_id for at in range(6)] == ["blue", "red"] * 3
        await cp.submit_request(asks("any"))
        assert (await cp.result("any")).status is COMPLETED
        await cp.submit_request(asks("none", model_name="green"))
        result = await cp.result("none")
        assert result.status is FAILED
        assert "no instance has the model green" in (result.error or "")
        assert "known models are blue, red" in (result.error or "")


async def test_a_request_waits_for_an_instance_of_its_model(engine: Engine, serve: Serve) -> None:
    async with serve([engine()]) as cp:
        await cp.submit_request(asks("r", model_name="green"))
        await cp.submit_request(asks("other"))
        assert (await cp.result("other")).status is COMPLETED
        assert await cp.get_request_status("r") is QUEUED
        cp.register_instance(instance_of(engine(model="green"), "green", model_name="green"))
        assert (await cp.result("r")).instance_id == "green"


async def test_priority_decides_who_is_next(engine: Engine, serve: Serve) -> None:
    async with serve([], scheduling_policy="priority") as cp:
        cp.register_instance(instance_of(engine(), "e0", max_concurrent_requests=1))
        await cp.submit_request(asks("first", max_tokens=100))
        await begun(cp, "first")
        for priority in reversed(RequestPriority):
            await cp.submit_request(asks(priority.name, priority=priority))
        ends = {priority.name: (await cp.result(priority.name)).queue_wait_ms for priority in RequestPriority}
        ended = [cp._tickets.known(name).request.end_time for name in ends]
    assert ended == sorted(ended, key=lambda time: time or 0)


async def test_an_instance_with_data_parallel_ranks_answers(engine: Engine, serve: Serve) -> None:
    async with serve([], routing_strategy="kv") as cp:
        cp.register_instance(instance_of(engine(data_parallel_size=2), "dp", data_parallel_size=2))
        await cp.submit_request(asks("r"))
        assert (await cp.result("r")).status is COMPLETED


class Broken:
    """A policy that raises, or prefers what it was not shown."""

    name = "broken"

    def __init__(self, *, in_order: bool) -> None:
        self.in_order = in_order

    def order(self, requests: Any, now: float) -> Any:
        return 1 / 0 if self.in_order else sorted(requests, key=lambda _: now)

    def choose(self, request: Any, instances: Any, now: float) -> Any:
        return None if self.in_order else Preference([], f"nothing for {request}, {instances}, {now}")


async def test_a_policy_that_fails_fails_its_request_and_nothing_else(engine: Engine, serve: Serve) -> None:
    async with serve([engine()], scheduling_policy=Broken(in_order=False)) as cp:
        await cp.submit_request(asks("r"))
        result = await cp.result("r")
        assert result.status is FAILED
        assert "the scheduling policy broken failed: ValueError" in (result.error or "")
        cp.update_policy(Broken(in_order=True))
        await cp.submit_request(asks("s"))
        assert (await cp.result("s")).status is COMPLETED, "by arrival"
        cp.update_policy("fifo")
        await cp.submit_request(asks("t"))
        assert (await cp.result("t")).status is COMPLETED
