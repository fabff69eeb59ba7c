"""A fleet asked from a terminal: what can be asked, and a gateway that follows the fleet's store as who answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from urllib.parse import quote, urlencode

from nebula_router.fleet.asking.documents import (
    Document,
    Done,
    DrainOrder,
    FleetStatus,
    Models,
    NodeDrainOrder,
    Nodes,
    Order,
    Placements,
    ScaleOrder,
)

if TYPE_CHECKING:
    from nebula_router.fleet.records import ModelSpec
    from nebula_router.remote import Remote

TIMEOUT_S: Final = 30
"""Longest wait for a gateway, which itself waits for its store."""
ANSWER_S: Final = 10.0
"""Longest wait for a scheduler's answer to a wish."""
ROOT: Final = "/admin/fleet"
"""What the paths of a gateway's answers begin with."""
_POLL_S: Final = 0.2

D = TypeVar("D", bound=Document)


class Fleet(Protocol):
    """What can be asked of a fleet, whoever answers."""

    def status(self) -> FleetStatus:
        """The fleet in brief."""
        ...

    def models(self) -> Models:
        """Every model."""
        ...

    def nodes(self) -> Nodes:
        """Every node."""
        ...

    def placements(self, model_uid: str | None) -> Placements:
        """Every replica, of one model or of all."""
        ...

    def load(self, spec: ModelSpec) -> Done:
        """Want a model."""
        ...

    def scale(self, model_uid: str, order: ScaleOrder) -> Done:
        """Change how many replicas there are."""
        ...

    def drain(self, model_uid: str, order: DrainOrder) -> Done:
        """Drain a replica."""
        ...

    def drain_node(self, node_id: str, order: NodeDrainOrder) -> Done:
        """Drain a node."""
        ...

    def unload(self, model_uid: str) -> Done:
        """Want a model no more."""
        ...


def load(fleet: Fleet, spec: ModelSpec) -> Done:
    """Want a model, and wait for a scheduler's answer: it is placed, or refused with the reason."""
    done = fleet.load(spec)
    until = time.monotonic() + ANSWER_S
    while time.monotonic() < until:
        row = next((row for row in fleet.models().models if row.model_uid == spec.model_uid), None)
        if row is None or row.request is None:
            return done
        if row.request == "Failed":
            return Done(
                text=f"{spec.model_uid} is refused",
                model_uid=spec.model_uid,
                refused={"": row.why or "it does not say"},
            )
        if row.request != "Pending":
            return Done(
                text=f"{spec.model_uid} is placed, by plan version {row.plan_version}",
                model_uid=spec.model_uid,
                request_id=done.request_id,
                notes=(f"`nebula placements {spec.model_uid}` shows where, and whether it is ready",),
            )
        time.sleep(_POLL_S)
    note = f"no scheduler has taken that in {ANSWER_S:g} s; `nebula scheduler` starts one"
    return done.model_copy(update={"notes": (note,)})


class RemoteFleet:
    """A fleet asked through a gateway that follows its store."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def status(self) -> FleetStatus:
        """The fleet in brief."""
        return self._ask(FleetStatus, "/status")

    def models(self) -> Models:
        """Every model."""
        return self._ask(Models, "/models")

    def nodes(self) -> Nodes:
        """Every node."""
        return self._ask(Nodes, "/nodes")

    def placements(self, model_uid: str | None) -> Placements:
        """Every replica, of one model or of all."""
        return self._ask(Placements, "/placements" + (f"?{urlencode({'model': model_uid})}" if model_uid else ""))

    def load(self, spec: ModelSpec) -> Done:
        """Want a model."""
        return self._ask(Done, "/models", "POST", spec.stored())

    def scale(self, model_uid: str, order: ScaleOrder) -> Done:
        """Change how many replicas there are."""
        return self._ask(Done, f"/models/{_part(model_uid)}/scale", "PUT", _body(order))

    def drain(self, model_uid: str, order: DrainOrder) -> Done:
        """Drain a replica."""
        return self._ask(Done, f"/models/{_part(model_uid)}/drain", "POST", _body(order))

    def drain_node(self, node_id: str, order: NodeDrainOrder) -> Done:
        """Drain a node."""
        return self._ask(Done, f"/nodes/{_part(node_id)}/drain", "POST", _body(order))

    def unload(self, model_uid: str) -> Done:
        """Want a model no more."""
        return self._ask(Done, f"/models/{_part(model_uid)}", "DELETE")

    def _ask(self, kind: type[D], path: str, method: str | None = None, body: bytes | None = None) -> D:
        where = ROOT + path
        return self._remote.parse(kind, where, self._remote.document(where, body, method))


def _part(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def _body(order: Order) -> bytes:
    return order.model_dump_json(exclude_none=True).encode()
