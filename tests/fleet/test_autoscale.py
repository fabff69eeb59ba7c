from typing import Any

import pytest
from tests.fleet.fleets import endpoint

from nebula_router.fleet.placing.autoscale import STALE_MS, Step, load, step
from nebula_router.fleet.records import Assignment, EndpointInfo, PlacementPlan, Pool
from nebula_router.fleet.settings import SchedulerSettings

NOW_MS = 1_700_000_000_000
SETTINGS = SchedulerSettings(cooldown_s=60)
PLAN = PlacementPlan(model_uid="m", model_name="m", version=1)


def endpoints(*stats: dict[str, Any]) -> list[EndpointInfo]:
    return [
        endpoint(PLAN, Assignment(replica_id=i, node_id="n"), **{"read_at_ms": NOW_MS, **one})
        for i, one in enumerate(stats)
    ]


def pool(replicas: int, low: int = 1, high: int = 4, **more: Any) -> Pool:
    return Pool(replicas=replicas, min_replicas=low, max_replicas=high, **more)


def replicas(found: Step | None) -> int | None:
    return None if found is None else found.replicas


CALM = {"kv_usage": 0.1, "waiting": 0, "running": 0, "ttft_ms": 50.0}


@pytest.mark.parametrize(
    ("stats", "why"),
    [
        ({"kv_usage": 0.9, "waiting": 0}, "mean KV cache use 90% is above 80%"),
        ({"kv_usage": 0.5, "waiting": 9}, "mean waiting requests 9.0 are above 5"),
        ({"kv_usage": 0.5, "waiting": 0, "ttft_ms": 900.0}, "mean time to first token 900 ms is above 500 ms"),
    ],
)
def test_one_more_where_it_is_too_much(stats: dict[str, Any], why: str) -> None:
    assert step(pool(2, target_ttft_ms=500), endpoints(stats, stats), NOW_MS, SETTINGS) == Step(3, why)


def test_the_mean_counts() -> None:
    mixed = endpoints({"kv_usage": 0.99, "waiting": 0}, {"kv_usage": 0.2, "waiting": 0})
    assert load(mixed, NOW_MS).kv_usage == pytest.approx(0.595)
    assert step(pool(2), mixed, NOW_MS, SETTINGS) is None


def test_one_less_where_nobody_waits_and_the_cache_is_empty() -> None:
    found = step(pool(2), endpoints(CALM, CALM), NOW_MS, SETTINGS)
    assert found == Step(1, "nobody waits and the mean KV cache use is 10%")


@pytest.mark.parametrize(
    "stats",
    [
        {**CALM, "kv_usage": 0.5},
        {**CALM, "waiting": 1},
        {**CALM, "ttft_ms": 300.0},
        {**CALM, "kv_usage": None},
    ],
    ids=["cache", "waiting", "slow", "unknown"],
)
def test_none_goes_while_there_is_work(stats: dict[str, Any]) -> None:
    assert step(pool(2, target_ttft_ms=500), endpoints(stats, stats), NOW_MS, SETTINGS) is None


def test_none_goes_that_would_be_asked_for_again() -> None:
    settings = SchedulerSettings(scale_down_kv_usage=0.6, scale_up_kv_usage=0.8)
    busy = {**CALM, "kv_usage": 0.5}
    assert step(pool(2), endpoints(busy, busy), NOW_MS, settings) is None
    assert replicas(step(pool(3), endpoints(busy, busy, busy), NOW_MS, settings)) == 2


def test_the_bounds_hold() -> None:
    full = {"kv_usage": 1.0, "waiting": 50}
    assert step(pool(4), endpoints(full, full, full, full), NOW_MS, SETTINGS) is None
    assert step(pool(1), endpoints(CALM), NOW_MS, SETTINGS) is None
    assert step(pool(2, low=2), endpoints(CALM, CALM), NOW_MS, SETTINGS) is None
    assert step(pool(1, low=0), endpoints(CALM), NOW_MS, SETTINGS) is None
    assert step(Pool(replicas=1), endpoints(full), NOW_MS, SETTINGS) is None


def test_nothing_happens_within_the_cooldown() -> None:
    full = {"kv_usage": 1.0, "waiting": 50}
    assert step(pool(1, scaled_at_ms=NOW_MS - 59_000), endpoints(full), NOW_MS, SETTINGS) is None
    assert replicas(step(pool(1, scaled_at_ms=NOW_MS - 60_000), endpoints(full), NOW_MS, SETTINGS)) == 2


def test_nothing_happens_while_a_replica_is_missing_or_silent() -> None:
    full = {"kv_usage": 1.0, "waiting": 50}
    stale = {**full, "read_at_ms": NOW_MS - STALE_MS - 1}
    assert step(pool(2), endpoints(full), NOW_MS, SETTINGS) is None
    assert step(pool(2), endpoints(full, stale), NOW_MS, SETTINGS) is None
    assert load(endpoints(stale), NOW_MS).kv_usage is None
