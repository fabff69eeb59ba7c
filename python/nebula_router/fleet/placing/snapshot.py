"""Everything that the store holds of the fleet at one revision, as records. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from nebula_router.fleet.records import (
    ENDPOINTS,
    MODEL_REQUESTS,
    MODELS,
    NODES,
    PLACEMENTS,
    Assignment,
    EndpointInfo,
    EndpointStatus,
    ModelRequest,
    ModelSpec,
    NodeDrain,
    NodeStatus,
    PlacementPlan,
    Record,
    RecordError,
    model_request_key,
    placement_key,
    spec_key,
)
from nebula_router.fleet.store import Entry, Listing

R = TypeVar("R", bound=Record)
Replica = tuple[str, int]
"""A model's uid and a replica's id."""


@dataclass(frozen=True)
class Snapshot:
    """The fleet at one revision of the store."""

    nodes: Mapping[str, NodeStatus] = field(default_factory=dict)
    """Those that are there; one that is to be drained says so itself here."""
    drains: Mapping[str, NodeDrain] = field(default_factory=dict)
    """Wishes that a node be drained, by its name, whether it is there or not."""
    specs: Mapping[str, ModelSpec] = field(default_factory=dict)
    plans: Mapping[str, PlacementPlan] = field(default_factory=dict)
    endpoints: Mapping[Replica, EndpointInfo] = field(default_factory=dict)
    requests: Mapping[str, ModelRequest] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    """Of every key; one that is missing has 0."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Keys whose record cannot be read, and why."""

    @classmethod
    def of(cls, listing: Listing) -> "Snapshot":
        """The records in a listing of all keys. What cannot be read is left out and named."""
        bad: dict[str, str] = {}
        found = listing.entries
        drains = {drain.node_id: drain for drain in _records(found, NODES, NodeDrain, bad, "/drain").values()}
        nodes = _records(found, NODES, NodeStatus, bad, "/status")
        specs = _records(found, MODELS, ModelSpec, bad)
        plans = _records(found, PLACEMENTS, PlacementPlan, bad)
        endpoints = _records(found, ENDPOINTS, EndpointInfo, bad)
        requests = _records(found, MODEL_REQUESTS, ModelRequest, bad)
        return cls(
            nodes={
                node.node_id: node.model_copy(update={"draining": True}) if node.node_id in drains else node
                for node in nodes.values()
            },
            drains=drains,
            specs={spec.model_uid: spec for key, spec in specs.items() if key == spec_key(spec.model_uid)},
            plans={plan.model_uid: plan for key, plan in plans.items() if key == placement_key(plan.model_uid)},
            endpoints={(endpoint.model_uid, endpoint.replica_id): endpoint for endpoint in endpoints.values()},
            requests={request.id: request for key, request in requests.items() if key == model_request_key(request.id)},
            revisions={key: entry.revision for key, entry in found.items()},
            unreadable=bad,
        )

    def revision(self, key: str) -> int:
        """Of the key's last change; 0 where it is missing."""
        return self.revisions.get(key, 0)

    def with_spec(self, spec: ModelSpec) -> "Snapshot":
        """The same fleet in which somebody wants this model."""
        return replace(self, specs={**self.specs, spec.model_uid: spec})

    def ready(self, plan: PlacementPlan, assignment: Assignment) -> EndpointInfo | None:
        """The endpoint that serves an assignment now."""
        endpoint = self.endpoints.get((plan.model_uid, assignment.replica_id))
        if endpoint is None or endpoint.status is not EndpointStatus.READY or not endpoint.is_current(plan):
            return None
        return endpoint

    @property
    def hosts(self) -> dict[str, str]:
        """What of each node has ports: nodes of one machine share it."""
        return {node_id: node.host or node_id for node_id, node in self.nodes.items()}


def _records(
    entries: Mapping[str, Entry], prefix: str, kind: type[R], bad: dict[str, str], suffix: str = ""
) -> dict[str, R]:
    found: dict[str, R] = {}
    for key, entry in entries.items():
        if key.startswith(prefix) and key.endswith(suffix):
            try:
                found[key] = kind.parsed(entry.value, key)
            except RecordError as error:
                bad[key] = str(error)
    return found
