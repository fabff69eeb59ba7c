"""The registered instances, each with its health and the count of its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nebula_router.config import EngineSettings
from nebula_router.control_plane.health import InstanceHealth

if TYPE_CHECKING:
    from nebula_router.control_plane.instance import ExecutionInstance


@dataclass(slots=True)
class Member:
    """An instance that is registered."""

    instance: ExecutionInstance
    health: InstanceHealth
    completed: int = 0
    failed: int = 0
    """Attempts that ended without a whole reply, other than by being cancelled."""

    def metrics(self) -> dict[str, Any]:
        """Return its figures."""
        instance = self.instance
        return {
            "instance_id": instance.instance_id,
            "model_name": instance.model_name,
            "instance_type": instance.instance_type.value,
            "is_available": instance.is_available,
            "is_healthy": instance.is_healthy,
            "consecutive_failures": self.health.failures,
            "active_requests": instance.active_requests,
            "prefilling_active_requests": instance.prefilling_active_requests,
            "decoding_active_requests": instance.decoding_active_requests,
            "current_load": instance.current_load,
            "avg_latency_ms": instance.avg_latency_ms,
            "throughput_tokens_per_sec": instance.throughput_tokens_per_sec,
            "completed_requests": self.completed,
            "failed_requests": self.failed,
        }


class Fleet:
    """The instances by id, in the order in which they came."""

    def __init__(self, threshold: int) -> None:
        """Remove an instance after `threshold` failures in a row."""
        self._threshold = threshold
        self._members: dict[str, Member] = {}

    def add(self, instance: ExecutionInstance) -> None:
        """Take an instance in.

        Raises:
            ValueError: another one has its id or its address, or it describes no engine.

        """
        name = instance.instance_id
        if name in self._members:
            raise ValueError(f"instance {name}: this id is taken; unregister the other one first")
        same = next((each for each in self.instances if each.url == instance.url), None)
        if same is not None:
            raise ValueError(f"instance {name}: {instance.url} is instance {same.instance_id}; each needs its own")
        if instance.max_concurrent_requests < 1:
            raise ValueError(f"instance {name}: max_concurrent_requests is less than 1")
        engine_spec(instance)
        self._members[name] = Member(instance, InstanceHealth(instance, self._threshold))

    def remove(self, instance_id: str) -> bool:
        """Let an instance go; return whether there was one."""
        return self._members.pop(instance_id, None) is not None

    def find(self, instance_id: str) -> Member | None:
        """Return the member of that id."""
        return self._members.get(instance_id)

    @property
    def members(self) -> list[Member]:
        """All of them."""
        return list(self._members.values())

    @property
    def instances(self) -> list[ExecutionInstance]:
        """All of them."""
        return [member.instance for member in self._members.values()]

    @property
    def models(self) -> set[str]:
        """The models that some instance has, well or not."""
        return {member.instance.model_name for member in self._members.values()}


def engine_spec(instance: ExecutionInstance) -> dict[str, Any]:
    """Return what the core knows an instance by.

    Raises:
        ValueError: its id, address or size is none.

    """
    try:
        spec = EngineSettings(url=instance.url, name=instance.instance_id, ranks=instance.data_parallel_size)
    except ValueError as error:
        raise ValueError(f"instance {instance.instance_id}: {error}") from None
    return spec.model_dump()
