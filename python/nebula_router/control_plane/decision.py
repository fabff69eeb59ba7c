"""Where a request goes, and why; what it will take there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.request import RequestMetadata

_USUAL_TOKENS: Final = 100
"""Length that a reply of no stated length is taken for."""


@dataclass(frozen=True, slots=True)
class SchedulingDecision:
    """The instance that a request is sent to."""

    request_id: str
    target_instance_id: str
    reason: str
    estimated_latency_ms: float
    """0 while nothing is known of the instance."""
    estimated_cost: float
    confidence: float
    """How much the estimates rest on: 0 on no request that the instance has answered, 1 on twenty or more."""


def estimated_latency_ms(instance: ExecutionInstance) -> float:
    """Return the time that a request will take: the average of those before, and more where more run beside it.

    The original rule is the average alone. Without the load, every request of a burst would go to the same instance.
    """
    return instance.avg_latency_ms * (1 + instance.current_load)


def estimated_cost(request: RequestMetadata, instance: ExecutionInstance) -> float:
    """Return what the instance's GPUs cost for the time that the reply takes; 1 s where its pace is not known.

    Source: `price_per_gpu_hour * gpu_count / 3600 * tokens / throughput`, the rule of sageLLM's control plane.
    """
    tokens = request.max_tokens or _USUAL_TOKENS
    pace = instance.throughput_tokens_per_sec
    return cost_per_second(instance) * (tokens / pace if pace > 0 else 1.0)


def cost_per_second(instance: ExecutionInstance) -> float:
    """Return what the instance's GPUs cost in a second."""
    return instance.price_per_gpu_hour * instance.gpu_count / 3600
