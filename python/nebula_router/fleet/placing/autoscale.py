"""How many replicas a pool should have by its load: one step at a time. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from nebula_router.fleet.records import EndpointInfo, EngineStats, Pool
from nebula_router.fleet.schedule import wanted_replicas
from nebula_router.fleet.settings import SchedulerSettings

STALE_MS: Final = 15_000
"""Age from which an engine's figures say nothing of now: five heartbeats as they come by default."""
WELL_UNDER: Final = 0.5
"""Part of the target below which a time to first token leaves room for one replica less."""


@dataclass(frozen=True)
class Step:
    """A number of replicas, and why."""

    replicas: int
    why: str


@dataclass(frozen=True)
class Load:
    """Means over the replicas of a pool that serve and told their figures lately; none where nobody told."""

    replicas: int
    kv_usage: float | None
    waiting: float | None
    ttft_ms: float | None


def load(endpoints: Sequence[EndpointInfo], now_ms: int) -> Load:
    """The load of endpoints that serve."""
    fresh = [e.stats for e in endpoints if e.stats is not None and _is_fresh(e.stats, now_ms)]
    return Load(
        replicas=len(fresh),
        kv_usage=_mean([stats.kv_usage for stats in fresh]),
        waiting=_mean([stats.waiting for stats in fresh]),
        ttft_ms=_mean([stats.ttft_ms for stats in fresh]),
    )


def step(pool: Pool, endpoints: Sequence[EndpointInfo], now_ms: int, settings: SchedulerSettings) -> Step | None:
    """The pool's next number of replicas, or none where it stays.

    Nothing is decided while a replica is missing or does not tell its figures, nor within `cooldown_s` of the step
    before: the last decision must show its effect first. The last replica stays: without one, no load would be seen.

    Args:
        pool: With bounds; without both, nothing changes.
        endpoints: Of the pool's replicas that serve now and do not drain.
        now_ms: Unix time.
        settings: The thresholds.
    """
    if pool.min_replicas is None or pool.max_replicas is None:
        return None
    now = wanted_replicas(pool)
    if pool.scaled_at_ms is not None and now_ms - pool.scaled_at_ms < settings.cooldown_s * 1000:
        return None
    seen = load(endpoints, now_ms)
    if now == 0 or seen.replicas < now:
        return None
    if now < pool.max_replicas and (why := _too_much(pool, seen, settings)):
        return Step(now + 1, why)
    if now > max(pool.min_replicas, 1) and _is_idle(pool, seen, now, settings):
        kv = f"{seen.kv_usage:.0%}" if seen.kv_usage is not None else "unknown"
        return Step(now - 1, f"nobody waits and the mean KV cache use is {kv}")
    return None


def _too_much(pool: Pool, seen: Load, settings: SchedulerSettings) -> str | None:
    if seen.kv_usage is not None and seen.kv_usage > settings.scale_up_kv_usage:
        return f"mean KV cache use {seen.kv_usage:.0%} is above {settings.scale_up_kv_usage:.0%}"
    if seen.waiting is not None and seen.waiting > settings.scale_up_waiting:
        return f"mean waiting requests {seen.waiting:.1f} are above {settings.scale_up_waiting:g}"
    if pool.target_ttft_ms is not None and seen.ttft_ms is not None and seen.ttft_ms > pool.target_ttft_ms:
        return f"mean time to first token {seen.ttft_ms:.0f} ms is above {pool.target_ttft_ms:g} ms"
    return None


def _is_idle(pool: Pool, seen: Load, replicas: int, settings: SchedulerSettings) -> bool:
    """Whether one replica less would do, and would not ask for that one again."""
    quick = pool.target_ttft_ms is None or seen.ttft_ms is None or seen.ttft_ms < WELL_UNDER * pool.target_ttft_ms
    if seen.waiting != 0 or seen.kv_usage is None or not quick:
        return False
    then = seen.kv_usage * replicas / (replicas - 1)
    return seen.kv_usage < settings.scale_down_kv_usage and then < settings.scale_up_kv_usage


def _is_fresh(stats: EngineStats, now_ms: int) -> bool:
    return stats.read_at_ms is not None and now_ms - stats.read_at_ms <= STALE_MS


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return fmean(told) if told else None
