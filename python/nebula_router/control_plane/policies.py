"""Scheduling policies: in which order requests are served, and which instances each would rather have.

A policy that has no preference leaves the choice to the routing strategy; so does one that prefers several instances.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nebula_router.control_plane.decision import estimated_cost, estimated_latency_ms
from nebula_router.control_plane.errors import unknown
from nebula_router.control_plane.request import RequestPriority

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.request import RequestMetadata

GROUP: Final = "nebula_router.policies"
"""The entry points that add policies: each a class, or anything else that makes a policy when called."""

_URGENT: Final = 0.7
_IDLE: Final = 0.3
_AS_GOOD: Final = 1.1
"""Within this of the best, instances count as equal: measured times differ by as much from one minute to the next."""


class Preference(NamedTuple):
    """The instances that a policy would rather have, all equally, and why."""

    instances: Sequence[ExecutionInstance]
    reason: str


class Policy(Protocol):
    """A scheduling policy. Both methods are called from the event loop and must not wait."""

    @property
    def name(self) -> str:
        """What it is called in statuses and reasons."""

    def order(self, requests: Sequence[RequestMetadata], now: float) -> list[RequestMetadata]:
        """Return the requests, the first to be served first; those that are left out wait."""

    def choose(self, request: RequestMetadata, instances: Sequence[ExecutionInstance], now: float) -> Preference | None:
        """Return what it prefers of the instances that can take the request, at least one; `None` for no preference."""


class Fifo:
    """First come, first served."""

    name = "fifo"

    def order(self, requests: Sequence[RequestMetadata], now: float) -> list[RequestMetadata]:  # noqa: ARG002
        """By arrival."""
        return sorted(requests, key=_arrival)

    def choose(self, *_: object) -> Preference | None:
        """No preference."""
        return None


class Priority:
    """The more important first, to where it is answered soonest."""

    name = "priority"

    def order(self, requests: Sequence[RequestMetadata], now: float) -> list[RequestMetadata]:  # noqa: ARG002
        """By priority, then by arrival."""
        return sorted(requests, key=lambda request: (request.priority, _arrival(request)))

    def choose(self, request: RequestMetadata, instances: Sequence[ExecutionInstance], now: float) -> Preference | None:
        """The quickest instances for a critical or high priority."""
        if not _is_important(request):
            return None
        return _least(instances, now, estimated_latency_ms, f"priority {request.priority.name}, lowest latency")


class SloAware:
    """Those first whose promised latency is nearest to being broken."""

    name = "slo_aware"

    def order(self, requests: Sequence[RequestMetadata], now: float) -> list[RequestMetadata]:
        """By urgency, then by arrival."""
        return sorted(requests, key=lambda request: (-request.urgency(now), _arrival(request)))

    def choose(self, request: RequestMetadata, instances: Sequence[ExecutionInstance], now: float) -> Preference | None:
        """The quickest instances for an urgent request."""
        urgency = request.urgency(now)
        if urgency <= _URGENT:
            return None
        return _least(instances, now, estimated_latency_ms, f"urgency {urgency:.2f}, lowest latency")


class CostOptimized:
    """The cheapest GPUs."""

    name = "cost_optimized"

    def order(self, requests: Sequence[RequestMetadata], now: float) -> list[RequestMetadata]:  # noqa: ARG002
        """By priority, then the smallest budget, then by arrival."""
        return sorted(requests, key=lambda request: (request.priority, _budget(request), _arrival(request)))

    def choose(self, request: RequestMetadata, instances: Sequence[ExecutionInstance], now: float) -> Preference | None:
        """The instances that cost least."""
        return _least(instances, now, lambda instance: estimated_cost(request, instance), "lowest cost")


class Adaptive:
    """`priority` while anything important waits, else `cost_optimized` at low load, else `slo_aware`."""

    name = "adaptive"

    def __init__(self) -> None:
        self._important_waits = False

    def order(self, requests: Sequence[RequestMetadata], now: float) -> list[RequestMetadata]:
        """By priority while anything important waits, else by urgency, which without promises is by arrival."""
        self._important_waits = any(map(_is_important, requests))
        return (_PRIORITY if self._important_waits else _SLO_AWARE).order(requests, now)

    def choose(self, request: RequestMetadata, instances: Sequence[ExecutionInstance], now: float) -> Preference | None:
        """What the policy of the moment prefers."""
        policy = self._policy(request, instances)
        preference = policy.choose(request, instances, now)
        return preference and preference._replace(reason=f"{policy.name}, {preference.reason}")

    def _policy(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> Policy:
        load = sum(instance.current_load for instance in instances) / len(instances)
        if self._important_waits or _is_important(request):
            return _PRIORITY
        return _COST_OPTIMIZED if load < _IDLE else _SLO_AWARE


_PRIORITY: Final = Priority()
_SLO_AWARE: Final = SloAware()
_COST_OPTIMIZED: Final = CostOptimized()
_BUILT_IN: Final[dict[str, Callable[[], Policy]]] = {
    policy.name: policy for policy in (Fifo, Priority, SloAware, CostOptimized, Adaptive)
}


def policy_of(policy: str | Policy) -> Policy:
    """Return the policy itself, or the one of that name: built in, or an entry point's.

    Raises:
        ValueError: no policy has the name.

    """
    if not isinstance(policy, str):
        return policy
    added = {entry.name: entry for entry in entry_points(group=GROUP)}
    if policy in _BUILT_IN:
        return _BUILT_IN[policy]()
    if policy in added:
        made: Policy = added[policy].load()()
        return made
    raise unknown("scheduling policy", policy, [*_BUILT_IN, *added])


def _least(
    instances: Sequence[ExecutionInstance], now: float, value: Callable[[ExecutionInstance], float], reason: str
) -> Preference:
    """The instances of the least value, and those that nothing is known of: else they would never get a request."""
    known = [value(instance) for instance in instances if instance.is_known(now)]
    limit = min(known, default=0.0) * _AS_GOOD
    liked = [each for each in instances if not each.is_known(now) or value(each) <= limit]
    return Preference(liked, reason)


def _is_important(request: RequestMetadata) -> bool:
    return request.priority <= RequestPriority.HIGH


def _arrival(request: RequestMetadata) -> float:
    return request.arrival_time or 0.0


def _budget(request: RequestMetadata) -> float:
    return float("inf") if request.cost_budget is None else request.cost_budget
