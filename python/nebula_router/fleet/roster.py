"""Which endpoints of the store get traffic. Pure: records come in one by one, and the engines come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nebula_router.config import EngineSettings
from nebula_router.fleet.records import EndpointInfo, EndpointStatus, PlacementPlan, Role

if TYPE_CHECKING:
    from collections.abc import Iterable


class Found(NamedTuple):
    """What the store says of the engines."""

    specs: list[dict[str, Any]]
    """As `EngineSettings` dumps them, by name."""
    aliases: dict[str, str]
    """Model uids, where the engines do not serve their model by them, and the names that they serve it by."""
    left_out: dict[str, str]
    """Why an endpoint gets no traffic, by `model_uid/replica_id`."""


class Roster:
    """The endpoints that get traffic: ready, meant by the current plan, and not draining.

    A prefill engine answers no client: it computes for the decode engines.

    Cost: an endpoint that changes is looked at alone, a plan that changes with all endpoints of its model.
    """

    def __init__(self) -> None:
        self._plans: dict[str, PlacementPlan] = {}
        self._endpoints: dict[str, dict[int, EndpointInfo]] = {}
        self._specs: dict[str, dict[str, Any]] = {}
        self._left_out: dict[str, str] = {}
        self.revision = 0
        """Grows whenever what is found may have changed. Heartbeats change records all the time, and seldom that."""

    def plan(self, model_uid: str, plan: PlacementPlan | None) -> None:
        """Take a model's plan; none where it has none any more."""
        if plan is None:
            self._plans.pop(model_uid, None)
        else:
            self._plans[model_uid] = plan
        self.revision += 1
        for endpoint in self._endpoints.get(model_uid, {}).values():
            self._judge(endpoint)

    def endpoint(self, model_uid: str, replica_id: int, endpoint: EndpointInfo | None) -> None:
        """Take an endpoint; none where it is gone."""
        if endpoint is not None:
            endpoints = self._endpoints.setdefault(model_uid, {})
            before, endpoints[replica_id] = endpoints.get(replica_id), endpoint
            self.revision += before is None or before.served_names != endpoint.served_names
            self._judge(endpoint)
            return
        self.revision += 1
        endpoints = self._endpoints.get(model_uid, {})
        endpoints.pop(replica_id, None)
        if not endpoints:
            self._endpoints.pop(model_uid, None)
        name = _name(model_uid, replica_id)
        self._specs.pop(name, None)
        self._left_out.pop(name, None)

    def found(self) -> Found:
        """The engines as they are now. O(endpoints), at a fraction of a microsecond each."""
        aliases = {
            uid: plan.model_name
            for uid, plan in self._plans.items()
            if self._needs_alias(uid, plan.model_name, self._endpoints.get(uid, {}).values())
        }
        return Found([self._specs[name] for name in sorted(self._specs)], aliases, dict(self._left_out))

    def _needs_alias(self, uid: str, model_name: str, endpoints: Iterable[EndpointInfo]) -> bool:
        by_name = False
        for endpoint in endpoints:
            if _name(uid, endpoint.replica_id) in self._specs:
                if uid in endpoint.served_names:
                    return False
                by_name |= not endpoint.served_names or model_name in endpoint.served_names
        return by_name

    def _judge(self, endpoint: EndpointInfo) -> None:
        name = _name(endpoint.model_uid, endpoint.replica_id)
        why = _why_not(endpoint, self._plans.get(endpoint.model_uid))
        spec = None if why else _spec(name, endpoint)
        if spec is None:
            why = why or f"its base_url is no http://host:port: {endpoint.base_url!r}"
        if (spec, why) == (self._specs.get(name), self._left_out.get(name)):
            return
        self.revision += 1
        if spec is not None:
            self._specs[name] = spec
            self._left_out.pop(name, None)
        elif why is not None:
            self._specs.pop(name, None)
            self._left_out[name] = why


def _name(model_uid: str, replica_id: int) -> str:
    return f"{model_uid}/{replica_id}"


def _why_not(endpoint: EndpointInfo, plan: PlacementPlan | None) -> str | None:
    if endpoint.endpoint_kind != "native_http":
        return f"its kind is {endpoint.endpoint_kind}; the gateway speaks HTTP"
    if endpoint.status is not EndpointStatus.READY:
        return f"it is {endpoint.status.value}"
    if plan is None or not endpoint.is_current(plan):
        current = "its model has no placement" if plan is None else f"the current one is {plan.version}"
        return f"it is left over from plan version {endpoint.plan_version}; {current}"
    if plan.by_replica[endpoint.replica_id].draining:
        return "it is draining"
    if endpoint.role is Role.PREFILL:
        return "it is a prefill engine: it computes for decode engines and answers no client"
    return None


def _spec(name: str, endpoint: EndpointInfo) -> dict[str, Any] | None:
    try:
        return EngineSettings(
            url=endpoint.base_url or "",
            name=name,
            ranks=endpoint.ranks,
            events=endpoint.events or "auto",
            events_replay=endpoint.events_replay,
            events_topic=endpoint.events_topic or "",
        ).model_dump()
    except ValueError:
        return None
