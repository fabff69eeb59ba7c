"""Figures from made-up requests at made-up times."""

import pytest

from nebula_router.control_plane import ExecutionInstance, RequestMetadata, RequestStatus
from nebula_router.control_plane.metrics import Metrics, PerformanceMetrics, percentile

COMPLETED, FAILED, CANCELLED = RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELLED


def request(latency_ms: float, slo: float | None = None, end: float = 10.0) -> RequestMetadata:
    return RequestMetadata("r", "x", arrival_time=end - latency_ms / 1000, end_time=end, slo_deadline_ms=slo)


def snapshot(metrics: Metrics, *instances: ExecutionInstance, now: float = 10.0) -> PerformanceMetrics:
    return metrics.snapshot(instances, now, active=0, queued=0)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert [percentile(range(1, 101), percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert [percentile([7.0], percent) for percent in (0, 50, 99)] == [7, 7, 7]
    assert percentile([], 50) == 0


def test_latencies_are_of_the_latest_completed_requests_alone() -> None:
    metrics = Metrics(0.0, window=3)
    metrics.ended(request(5), FAILED, 10.0)
    for latency_ms in (9000, 100, 200, 300):
        metrics.ended(request(latency_ms), COMPLETED, 10.0)
    found = snapshot(metrics)
    assert (found.completed_requests, found.failed_requests) == (4, 1)
    assert found.avg_latency_ms == pytest.approx(200)
    assert found.p50_latency_ms == pytest.approx(200)
    assert found.p99_latency_ms == pytest.approx(300)


def test_rates_are_of_the_last_minute_or_of_all_the_time_there_was() -> None:
    metrics = Metrics(0.0)
    metrics.ended(request(1), COMPLETED, 10.0, tokens=40)
    assert snapshot(metrics, now=20.0).tokens_per_second == 2
    metrics.ended(request(1), COMPLETED, 100.0, tokens=120)
    found = snapshot(metrics, now=120.0)
    assert found.tokens_per_second == 2
    assert found.requests_per_second == pytest.approx(1 / 60)


def test_a_promise_is_broken_by_lateness_and_by_failure_and_not_by_whoever_cancels() -> None:
    metrics = Metrics(0.0)
    assert snapshot(metrics).slo_compliance_rate == 1
    for latency_ms, status in ((90, COMPLETED), (110, COMPLETED), (10, FAILED), (10, CANCELLED)):
        metrics.ended(request(latency_ms, slo=100), status, 10.0)
    metrics.ended(request(9999), COMPLETED, 10.0)
    found = snapshot(metrics)
    assert found.slo_violations == 2
    assert found.slo_compliance_rate == pytest.approx(1 / 3)


def test_costs_and_gpus_are_summed() -> None:
    metrics = Metrics(0.0)
    metrics.spent(0.5)
    metrics.ended(request(1), COMPLETED, 10.0, tokens=10)
    half = ExecutionInstance("a", "h", 1, "m", gpu_memory_gb=80, gpu_utilization=0.5)
    found = snapshot(metrics, half, ExecutionInstance("b", "h", 2, "m", gpu_memory_gb=80))
    assert (found.total_cost, found.cost_per_token) == (0.5, 0.05)
    assert (found.total_gpu_memory_gb, found.used_gpu_memory_gb, found.avg_gpu_utilization) == (160, 40, 0.25)


def test_without_a_window_only_counts_are_kept() -> None:
    metrics = Metrics(0.0, window=0)
    metrics.ended(request(100), COMPLETED, 10.0, tokens=5)
    found = snapshot(metrics)
    assert (found.completed_requests, found.avg_latency_ms, found.tokens_per_second) == (1, 0, 0)
