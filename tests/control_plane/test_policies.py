"""Policies by themselves: the order of a queue, and what is preferred."""

import sys
from pathlib import Path
from typing import Any

import pytest

from nebula_router.control_plane import ControlPlaneManager, ExecutionInstance, RequestMetadata, RequestPriority
from nebula_router.control_plane.decision import estimated_cost, estimated_latency_ms
from nebula_router.control_plane.policies import Policy, policy_of

NOW = 100.0


def asked(name: str, arrival: float = NOW, **fields: Any) -> RequestMetadata:
    return RequestMetadata(name, prompt="x", arrival_time=arrival, **fields)


def on(name: str, **fields: Any) -> ExecutionInstance:
    return ExecutionInstance(name, "h", 1, "m", **fields)


def order(policy: str, *requests: RequestMetadata) -> list[str]:
    return [request.request_id for request in policy_of(policy).order(requests, NOW)]


def liked(policy: Policy | str, request: RequestMetadata, *instances: ExecutionInstance) -> list[str] | None:
    preference = policy_of(policy).choose(request, instances, NOW)
    return None if preference is None else [instance.instance_id for instance in preference.instances]


SLOW = on("slow", avg_latency_ms=900.0, throughput_tokens_per_sec=10.0)
QUICK = on("quick", avg_latency_ms=100.0, throughput_tokens_per_sec=90.0, gpu_count=16)


def test_fifo_serves_by_arrival_and_prefers_nothing() -> None:
    assert order("fifo", asked("b", 2), asked("a", 1), asked("c", 3)) == ["a", "b", "c"]
    assert liked("fifo", asked("a", priority=RequestPriority.CRITICAL), SLOW, QUICK) is None


def test_priority_serves_by_priority_then_arrival() -> None:
    requests = [
        asked("background", 1, priority=RequestPriority.BACKGROUND),
        asked("later", 3),
        asked("sooner", 2),
        asked("critical", 4, priority=RequestPriority.CRITICAL),
    ]
    assert order("priority", *requests) == ["critical", "sooner", "later", "background"]


@pytest.mark.parametrize("policy", ["priority", "adaptive"])
def test_what_is_important_goes_to_the_quickest(policy: str) -> None:
    for priority in (RequestPriority.CRITICAL, RequestPriority.HIGH):
        assert liked(policy, asked("a", priority=priority), SLOW, QUICK) == ["quick"]
    assert liked("priority", asked("a"), SLOW, QUICK) is None


def test_slo_aware_serves_by_the_share_of_the_promise_that_is_over() -> None:
    requests = [
        asked("no promise", NOW - 60),
        asked("half", NOW - 5, slo_deadline_ms=10_000),
        asked("broken", NOW - 1, slo_deadline_ms=500),
        asked("most", NOW - 0.9, slo_deadline_ms=1000),
    ]
    assert order("slo_aware", *requests) == ["broken", "most", "half", "no promise"]
    assert [request.urgency(NOW) for request in requests] == [0, 0.5, 1, pytest.approx(0.9)]


def test_slo_aware_sends_the_urgent_to_the_quickest() -> None:
    assert liked("slo_aware", asked("a", NOW - 0.8, slo_deadline_ms=1000), SLOW, QUICK) == ["quick"]
    assert liked("slo_aware", asked("a", NOW - 0.6, slo_deadline_ms=1000), SLOW, QUICK) is None


def test_cost_optimized_serves_small_budgets_first_and_prefers_what_costs_least() -> None:
    requests = [asked("none", 1), asked("big", 2, cost_budget=5), asked("small", 3, cost_budget=1)]
    assert order("cost_optimized", *requests) == ["small", "big", "none"]
    assert liked("cost_optimized", asked("a"), SLOW, QUICK) == ["slow"]


def test_a_cost_is_the_gpus_price_for_the_seconds_of_the_reply() -> None:
    assert estimated_cost(asked("a", max_tokens=180), QUICK) == pytest.approx(16 / 3600 * 2)
    assert estimated_cost(asked("a"), SLOW) == pytest.approx(1 / 3600 * 10)
    assert estimated_cost(asked("a"), on("new", gpu_count=2, price_per_gpu_hour=3.0)) == pytest.approx(6 / 3600)


def test_adaptive_saves_cost_while_little_runs_and_minds_promises_when_much_does() -> None:
    idle, busy = on("idle", current_load=0.1), on("busy", current_load=0.6, avg_latency_ms=500.0)
    late = asked("late", NOW - 1, slo_deadline_ms=1000)
    assert "cost_optimized" in policy_of("adaptive").choose(late, [idle], NOW).reason  # type: ignore[union-attr]
    assert "slo_aware" in policy_of("adaptive").choose(late, [busy], NOW).reason  # type: ignore[union-attr]
    assert liked("adaptive", asked("calm"), busy) is None


def test_adaptive_goes_by_priority_while_anything_important_waits() -> None:
    adaptive = policy_of("adaptive")
    adaptive.order([asked("a"), asked("b", priority=RequestPriority.HIGH)], NOW)
    assert adaptive.choose(asked("a"), [SLOW, QUICK], NOW) is None, "as priority does for what is not important"
    adaptive.order([asked("a")], NOW)
    assert liked(adaptive, asked("a"), SLOW, QUICK) == ["slow"]


def test_latency_counts_load_so_that_a_burst_does_not_end_on_one_instance() -> None:
    first, second = on("first", avg_latency_ms=100.0), on("second", avg_latency_ms=115.0)
    urgent = asked("a", priority=RequestPriority.CRITICAL)
    assert liked("priority", urgent, first, second) == ["first"]
    for _ in range(30):
        first.book(None)
    assert estimated_latency_ms(first) == pytest.approx(130)
    assert liked("priority", urgent, first, second) == ["second"]


def test_what_is_as_good_is_preferred_alike() -> None:
    nearly = on("nearly", avg_latency_ms=105.0)
    assert liked("priority", asked("a", priority=RequestPriority.HIGH), SLOW, QUICK, nearly) == ["quick", "nearly"]


def test_an_instance_that_nothing_is_known_of_gets_its_chance_and_again_when_that_was_long_ago() -> None:
    new, urgent = on("new"), asked("a", priority=RequestPriority.HIGH, max_tokens=1)
    assert liked("priority", urgent, SLOW, QUICK, new) == ["quick", "new"]
    assert liked("cost_optimized", urgent, SLOW, QUICK, new) == ["slow", "new"]
    new.learn(5000.0, 5, NOW - 1)
    assert liked("priority", urgent, SLOW, QUICK, new) == ["quick"]
    new.learn(5000.0, 5, NOW - 61)
    assert liked("priority", urgent, SLOW, QUICK, new) == ["quick", "new"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scheduling_policy": "adaptiv"}, "known are fifo, .*did you mean adaptive"),
        ({"scheduling_policy": "zzz"}, "known are fifo, priority, slo_aware, cost_optimized, adaptive"),
        ({"routing_strategy": "round-robin"}, "known are .*did you mean round_robin"),
        ({"health_check_intervall": 1}, "did you mean health_check_interval"),
        ({"queue_limit": 0}, "queue_limit: .*greater than or equal to 1"),
        ({"enable_auto_scaling": True}, "enable_auto_scaling.*starts no engines"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ControlPlaneManager(**arguments)


def test_a_policy_can_be_changed_and_never_to_one_that_is_not_known() -> None:
    cp = ControlPlaneManager()
    assert cp.get_status()["scheduling_policy"] == "adaptive"
    cp.update_policy("fifo")
    with pytest.raises(ValueError, match="did you mean fifo"):
        cp.update_policy("fifa")
    assert cp.get_status()["scheduling_policy"] == "fifo"


def test_an_installed_package_can_add_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "from nebula_router.control_plane.policies import Fifo\nclass Own(Fifo):\n    name = 'own'\n"
    (tmp_path / "added_policy.py").write_text(module)
    info = tmp_path / "added-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nebula_router.policies]\nown = added_policy:Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert policy_of("own").name == "own"
    with pytest.raises(ValueError, match=r"known are .*adaptive, own; did you mean own"):
        policy_of("owm")
    sys.modules.pop("added_policy")
