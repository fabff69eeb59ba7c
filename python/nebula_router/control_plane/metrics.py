"""What the control plane measures of its requests."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from nebula_router.control_plane.request import RequestStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.request import RequestMetadata

WINDOW: Final = 4096
"""The latest completed requests that percentiles are taken of."""
RATE_S: Final = 60.0
"""The time that rates are taken over."""


@dataclass(frozen=True, slots=True)
class PerformanceMetrics:
    """The control plane in figures. Latencies are from arrival to end, of the latest 4096 completed requests."""

    total_requests: int = 0
    completed_requests: int = 0
    failed_requests: int = 0
    cancelled_requests: int = 0
    active_requests: int = 0
    queued_requests: int = 0
    avg_latency_ms: float = 0.0
    p50_latency_ms: float = 0.0
    p95_latency_ms: float = 0.0
    p99_latency_ms: float = 0.0
    tokens_per_second: float = 0.0
    """Of replies, over the last minute."""
    requests_per_second: float = 0.0
    """Completed, over the last minute."""
    avg_gpu_utilization: float = 0.0
    """Mean of what the instances were registered with, as are the next two."""
    total_gpu_memory_gb: float = 0.0
    used_gpu_memory_gb: float = 0.0
    total_cost: float = 0.0
    """Price of the instances' GPUs for the time of each request; requests that ran at once each count in full."""
    cost_per_token: float = 0.0
    slo_violations: int = 0
    slo_compliance_rate: float = 1.0
    """Share of the finished requests with a deadline that completed within it; 1 while there is none."""


class _Completed(NamedTuple):
    at: float
    latency_ms: float
    tokens: int


class Metrics:
    """Counts what ends, and keeps a window of it."""

    def __init__(self, started: float, *, window: int = WINDOW) -> None:
        """Begin at `started`; with a window of 0 only counts are kept."""
        self._started = started
        self._window: deque[_Completed] = deque(maxlen=window)
        self._ended: Counter[RequestStatus] = Counter()
        self._tokens = 0
        self._cost = 0.0
        self._promised = 0
        self.slo_violations = 0
        self.submitted = 0

    def ended(self, request: RequestMetadata, status: RequestStatus, now: float, tokens: int = 0) -> None:
        """Note that a request is over. A cancelled one breaks no promise."""
        self._ended[status] += 1
        latency_ms = request.latency_ms or 0.0
        if status is RequestStatus.COMPLETED:
            self._window.append(_Completed(now, latency_ms, tokens))
            self._tokens += tokens
        if request.slo_deadline_ms is not None and status is not RequestStatus.CANCELLED:
            self._promised += 1
            kept = status is RequestStatus.COMPLETED and latency_ms <= request.slo_deadline_ms
            self.slo_violations += not kept

    def spent(self, cost: float) -> None:
        """Add what an instance's GPUs cost for one attempt."""
        self._cost += cost

    @property
    def slo_compliance_rate(self) -> float:
        """Share of the promised latencies that were kept."""
        return 1 - self.slo_violations / self._promised if self._promised else 1.0

    def snapshot(
        self, instances: Collection[ExecutionInstance], now: float, *, active: int, queued: int
    ) -> PerformanceMetrics:
        """Return the figures of this moment.

        # Cost
        Sorts the window.
        """
        latencies = sorted(completed.latency_ms for completed in self._window)
        span, recent = self._recent(now)
        memory = [(each.gpu_memory_gb, each.gpu_utilization) for each in instances]
        return PerformanceMetrics(
            total_requests=self.submitted,
            completed_requests=self._ended[RequestStatus.COMPLETED],
            failed_requests=self._ended[RequestStatus.FAILED],
            cancelled_requests=self._ended[RequestStatus.CANCELLED],
            active_requests=active,
            queued_requests=queued,
            avg_latency_ms=sum(latencies) / len(latencies) if latencies else 0.0,
            p50_latency_ms=percentile(latencies, 50),
            p95_latency_ms=percentile(latencies, 95),
            p99_latency_ms=percentile(latencies, 99),
            tokens_per_second=sum(completed.tokens for completed in recent) / span,
            requests_per_second=len(recent) / span,
            avg_gpu_utilization=sum(used for _, used in memory) / len(memory) if memory else 0.0,
            total_gpu_memory_gb=sum(size for size, _ in memory),
            used_gpu_memory_gb=sum(size * used for size, used in memory),
            total_cost=self._cost,
            cost_per_token=self._cost / self._tokens if self._tokens else 0.0,
            slo_violations=self.slo_violations,
            slo_compliance_rate=self.slo_compliance_rate,
        )

    def _recent(self, now: float) -> tuple[float, list[_Completed]]:
        """The time that rates are taken over, and what completed in it; a window that is full may be shorter."""
        since = max(self._started, now - RATE_S)
        if len(self._window) == self._window.maxlen and self._window:
            since = max(since, self._window[0].at)
        return max(now - since, 1e-3), [completed for completed in self._window if completed.at >= since]


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that `percent` of all values do not exceed (nearest rank); 0 of none."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]
