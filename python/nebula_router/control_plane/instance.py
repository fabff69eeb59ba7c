"""An instance: one engine that is registered, and what the control plane knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from nebula_router.control_plane.request import ParallelismType

_FULL_LOAD: Final = 0.95
_LEARNING: Final = 0.2
"""Weight of the newest request in what an instance's requests take on average."""


_KNOWN_S: Final = 60.0
"""Age up to which such an average says something of the next request."""


class ExecutionInstanceType(str, Enum):
    """What an instance is meant for, or which phase weighs most in a request."""

    GENERAL = "general"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    HYBRID = "hybrid"


@dataclass(frozen=True, slots=True)
class PrefillingConfig:
    """How an instance takes requests of long prompts."""

    max_concurrent_requests: int | None = None
    """Of those at once; without a number, as many as of any."""


@dataclass(frozen=True, slots=True)
class DecodingConfig:
    """How an instance takes requests of long replies."""

    max_concurrent_requests: int | None = None
    """Of those at once; without a number, as many as of any."""


@dataclass(slots=True)
class ExecutionInstance:
    """One engine's address, its shape, and its state, which the control plane keeps current."""

    instance_id: str
    host: str
    port: int
    model_name: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    instance_type: ExecutionInstanceType = ExecutionInstanceType.GENERAL
    prefilling_config: PrefillingConfig | None = None
    decoding_config: DecodingConfig | None = None
    gpu_count: int = 1
    gpu_memory_gb: float = 0.0
    gpu_utilization: float = 0.0
    """As whoever registers it says; the control plane does not measure GPUs."""
    is_available: bool = True
    is_healthy: bool = True
    current_load: float = 0.0
    avg_latency_ms: float = 0.0
    """Of its requests, from their start; 0 while none is known."""
    throughput_tokens_per_sec: float = 0.0
    """Of one request; 0 while none is known."""
    active_requests: int = 0
    max_concurrent_requests: int = 100
    prefilling_active_requests: int = 0
    decoding_active_requests: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    price_per_gpu_hour: float = 1.0
    measured_at: float | None = None
    """When a request last ended here; without a time, latency and throughput are as registered."""

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def can_accept_request(self) -> bool:
        """Whether it takes one more request now."""
        has_room = self.active_requests < self.max_concurrent_requests and self.current_load < _FULL_LOAD
        return self.is_available and self.is_healthy and has_room

    @property
    def parallelism(self) -> set[ParallelismType]:
        """How its model is spread; expert parallelism where `metadata` has `enable_expert_parallel`."""
        sizes = {
            ParallelismType.TENSOR_PARALLEL: self.tensor_parallel_size,
            ParallelismType.PIPELINE_PARALLEL: self.pipeline_parallel_size,
            ParallelismType.DATA_PARALLEL: self.data_parallel_size,
            ParallelismType.EXPERT_PARALLEL: 2 if self.metadata.get("enable_expert_parallel") else 1,
        }
        spread = {kind for kind, size in sizes.items() if size > 1}
        return spread | {ParallelismType.HYBRID} if len(spread) > 1 else spread

    def takes(self, phase: ExecutionInstanceType | None) -> bool:
        """Return whether it takes one more request of that phase."""
        limit, active = None, 0
        if phase is ExecutionInstanceType.PREFILLING and self.prefilling_config:
            limit, active = self.prefilling_config.max_concurrent_requests, self.prefilling_active_requests
        elif phase is ExecutionInstanceType.DECODING and self.decoding_config:
            limit, active = self.decoding_config.max_concurrent_requests, self.decoding_active_requests
        return self.can_accept_request and (limit is None or active < limit)

    def book(self, phase: ExecutionInstanceType | None) -> None:
        """Count one more request."""
        self._count(phase, 1)

    def release(self, phase: ExecutionInstanceType | None) -> None:
        """Count one less."""
        self._count(phase, -1)

    def is_known(self, now: float) -> bool:
        """Return whether its latency and throughput are known, and not from long ago."""
        return self.avg_latency_ms > 0 and (self.measured_at is None or now - self.measured_at <= _KNOWN_S)

    def learn(self, latency_ms: float, tokens: int, now: float) -> None:
        """Take into account how long a request took, and for how many tokens."""
        self.measured_at = now
        self.avg_latency_ms = _averaged(self.avg_latency_ms, latency_ms)
        if tokens and latency_ms > 0:
            rate = tokens * 1000 / latency_ms
            self.throughput_tokens_per_sec = _averaged(self.throughput_tokens_per_sec, rate)

    def _count(self, phase: ExecutionInstanceType | None, change: int) -> None:
        self.active_requests += change
        self.current_load = self.active_requests / self.max_concurrent_requests
        if phase is ExecutionInstanceType.PREFILLING:
            self.prefilling_active_requests += change
        elif phase is ExecutionInstanceType.DECODING:
            self.decoding_active_requests += change


def _averaged(before: float, new: float) -> float:
    return before + _LEARNING * (new - before) if before else new
