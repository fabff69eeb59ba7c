"""A request: what is asked for, and what became of it. Times are seconds of the monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nebula_router.control_plane.decision import SchedulingDecision


class RequestPriority(IntEnum):
    """How urgent a request is; the lower number goes first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    BACKGROUND = 4


class RequestStatus(str, Enum):
    """How far a request is."""

    PENDING = "pending"
    """Not submitted."""
    QUEUED = "queued"
    """Waits for an instance."""
    SCHEDULED = "scheduled"
    """An instance is chosen and booked."""
    RUNNING = "running"
    """The instance has it."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the request."""
        return self in {RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELLED}


class ParallelismType(str, Enum):
    """How a model is spread over GPUs."""

    TENSOR_PARALLEL = "tp"
    PIPELINE_PARALLEL = "pp"
    DATA_PARALLEL = "dp"
    EXPERT_PARALLEL = "ep"
    HYBRID = "hybrid"


@dataclass(slots=True)
class RequestMetadata:
    """One request. Only its id and either a prompt or messages are needed."""

    request_id: str
    prompt: str | list[int] | None = field(default=None, repr=False)
    """Text, or the ids of its tokens."""
    user_id: str | None = None
    priority: RequestPriority = RequestPriority.NORMAL
    slo_deadline_ms: float | None = None
    """The latency that was promised, from arrival to the last token."""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    model_name: str | None = None
    """The model that must answer; without one, any instance's own."""
    arrival_time: float | None = None
    queue_time: float | None = None
    schedule_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    preferred_instance_id: str | None = None
    """The instance to take while it can accept the request."""
    parallelism_hint: ParallelismType | None = None
    """Instances that are spread so come first."""
    cost_budget: float | None = None
    """What it may cost; `cost_optimized` serves small budgets first."""
    billing_tier: str = "standard"
    tags: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] | None = field(default=None, repr=False)
    """A chat, in the place of a prompt."""

    @property
    def latency_ms(self) -> float | None:
        """Time from arrival to end."""
        return _span_ms(self.arrival_time, self.end_time)

    @property
    def queue_wait_ms(self) -> float | None:
        """Time in the queue, the last time that it waited there."""
        return _span_ms(self.queue_time, self.schedule_time)

    def urgency(self, now: float) -> float:
        """Return the share of its promised latency that is over: 0 without a promise, 1 when it is broken."""
        if self.slo_deadline_ms is None or self.arrival_time is None:
            return 0.0
        elapsed_ms = (now - self.arrival_time) * 1000
        return min(1.0, elapsed_ms / self.slo_deadline_ms) if self.slo_deadline_ms > 0 else 1.0


@dataclass(frozen=True, slots=True)
class RequestResult:
    """What became of a request."""

    request_id: str
    status: RequestStatus
    text: str
    """The reply; of a request that did not complete, what there was of it."""
    finish_reason: str | None
    usage: dict[str, Any] | None
    """Tokens as the engine counted them."""
    instance_id: str | None
    """The instance that answered, or tried last."""
    decision: SchedulingDecision | None
    attempts: int
    """Instances that it was sent to."""
    error: str | None
    queue_wait_ms: float | None
    time_to_first_token_ms: float | None
    """Time from arrival to the first text."""
    latency_ms: float | None


def _span_ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else (end - start) * 1000
