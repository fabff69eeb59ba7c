"""One request's decision: what it needs narrows the instances, the policy prefers some, the strategy picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from nebula_router.control_plane.decision import SchedulingDecision, estimated_cost, estimated_latency_ms
from nebula_router.control_plane.routing import Pick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nebula_router.control_plane.fleet import Member
    from nebula_router.control_plane.instance import ExecutionInstance, ExecutionInstanceType
    from nebula_router.control_plane.phases import PDSeparationConfig
    from nebula_router.control_plane.policies import Policy
    from nebula_router.control_plane.request import RequestMetadata
    from nebula_router.control_plane.routing import Strategy

_WELL_KNOWN: Final = 20
"""Requests after which an instance's averages are trusted in full."""


class Placement(NamedTuple):
    """A decision with what it books."""

    member: Member
    phase: ExecutionInstanceType | None
    decision: SchedulingDecision

    @property
    def instance(self) -> ExecutionInstance:
        """The instance that gets the request."""
        return self.member.instance


class Scheduler:
    """Decides for one request at a time, so that each decision sees the bookings of those before it."""

    def __init__(self, policy: Policy, strategy: Strategy, pd: PDSeparationConfig | None) -> None:
        """Without `pd` the instances' types do not matter."""
        self.policy = policy
        self.strategy = strategy
        self._pd = pd

    async def place(self, request: RequestMetadata, members: Sequence[Member], now: float) -> Placement | None:
        """Return where the request goes; `None` while no instance can take it.

        Raises:
            ValueError: the policy prefers none of the instances that it was shown.

        """
        phase = self._pd.phase(request) if self._pd else None
        able = [member.instance for member in members if _can_take(member, request, phase)]
        if not able:
            return None
        pick = await self._pick(request, able, phase, now)
        member = next(member for member in members if member.instance is pick.instance)
        decision = SchedulingDecision(
            request_id=request.request_id,
            target_instance_id=pick.instance.instance_id,
            reason=pick.reason,
            estimated_latency_ms=estimated_latency_ms(pick.instance),
            estimated_cost=estimated_cost(request, pick.instance),
            confidence=min(1.0, member.completed / _WELL_KNOWN),
        )
        return Placement(member, phase, decision)

    async def _pick(
        self,
        request: RequestMetadata,
        able: Sequence[ExecutionInstance],
        phase: ExecutionInstanceType | None,
        now: float,
    ) -> Pick:
        for instance in able:
            if instance.instance_id == request.preferred_instance_id:
                return Pick(instance, "the request's preferred instance")
        if self._pd and phase:
            able = self._pd.suited(able, phase)
        able = [each for each in able if request.parallelism_hint in each.parallelism] or able
        liked, why = self._liked(request, able, now)
        pick = await self.strategy.pick(request, liked)
        among = f"{self.strategy.name} among {len(liked)} of {len(able)}"
        return pick._replace(reason=f"{self.policy.name}{why}; {among}: {pick.reason}")

    def _liked(
        self, request: RequestMetadata, able: Sequence[ExecutionInstance], now: float
    ) -> tuple[Sequence[ExecutionInstance], str]:
        preference = self.policy.choose(request, able, now)
        if preference is None:
            return able, ""
        liked = [instance for instance in able if any(instance is each for each in preference.instances)]
        if not liked:
            raise ValueError(f"the policy {self.policy.name} prefers none of the instances that it was shown")
        return liked, f": {preference.reason}"


def _can_take(member: Member, request: RequestMetadata, phase: ExecutionInstanceType | None) -> bool:
    instance = member.instance
    return request.model_name in {None, instance.model_name} and not member.health.is_new and instance.takes(phase)
