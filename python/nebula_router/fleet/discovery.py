"""From the store to a gateway's engines: which endpoints get traffic, now."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from nebula_router.config import EngineSettings
from nebula_router.fleet.follow import follow
from nebula_router.fleet.records import (
    ENDPOINTS,
    PLACEMENTS,
    EndpointInfo,
    EndpointStatus,
    PlacementPlan,
    Record,
    RecordError,
    Role,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nebula_router.fleet.follow import View
    from nebula_router.fleet.store import Store

_LOG: Final = logging.getLogger(__name__)

SETTLE_S: Final = 0.05
"""Changes that come within it reach the gateway together: a fleet that is always changing must not keep it busy."""
RETURN_GRACE_S: Final = 15.0
"""Time that what was there before the store was lost stays after its return. Leases ran out meanwhile; nodes that live
announce themselves again within a heartbeat, and an engine that is dead gets no traffic by its probes."""

R = TypeVar("R", bound=Record)


class Found(NamedTuple):
    """What the store says of the engines."""

    specs: list[dict[str, Any]]
    """As `EngineSettings` dumps them, by name."""
    aliases: dict[str, str]
    """Model uids, where the engines do not serve their model by them, and the names that they serve it by."""
    left_out: dict[str, str]
    """Why an endpoint gets no traffic, by `model_uid/replica_id`."""


def found(endpoints: Iterable[EndpointInfo], plans: Mapping[str, PlacementPlan]) -> Found:
    """Choose the endpoints that get traffic: ready, meant by the current plan, and not draining. Pure; O(endpoints).

    A prefill engine answers no client: it computes for the decode engines.
    """
    specs: list[dict[str, Any]] = []
    names: dict[str, set[str]] = {}
    left_out: dict[str, str] = {}
    for endpoint in endpoints:
        name = f"{endpoint.model_uid}/{endpoint.replica_id}"
        plan = plans.get(endpoint.model_uid)
        why = _why_not(endpoint, plan)
        spec = None if why else _spec(name, endpoint)
        if spec is None or plan is None:
            left_out[name] = why or f"its base_url is no http://host:port: {endpoint.base_url!r}"
            continue
        specs.append(spec)
        names.setdefault(endpoint.model_uid, set()).update(endpoint.served_names or (plan.model_name,))
    specs.sort(key=lambda spec: str(spec["name"]))
    aliases = {
        uid: plans[uid].model_name
        for uid, served in names.items()
        if uid not in served and plans[uid].model_name in served
    }
    return Found(specs, aliases, left_out)


def _why_not(endpoint: EndpointInfo, plan: PlacementPlan | None) -> str | None:
    if endpoint.endpoint_kind != "native_http":
        return f"its kind is {endpoint.endpoint_kind}; the gateway speaks HTTP"
    if endpoint.status is not EndpointStatus.READY:
        return f"it is {endpoint.status.value}"
    if plan is None or not endpoint.is_current(plan):
        current = "its model has no placement" if plan is None else f"the current one is {plan.version}"
        return f"it is left over from plan version {endpoint.plan_version}; {current}"
    if any(a.draining for a in plan.assignments if a.replica_id == endpoint.replica_id):
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


class Discovery:
    """Keeps a gateway's engines as the store has them.

    Loss of the store changes nothing: the last fleet stays until the store is back and has been given time to fill.
    """

    def __init__(self, store: Store, swap: Callable[[Sequence[Mapping[str, Any]], Mapping[str, str]], None]) -> None:
        """Follow `store`, and call `swap` with all engines and aliases whenever they may have changed."""
        self._store = store
        self._swap = swap
        self._endpoints: _Prefix[EndpointInfo] = _Prefix(ENDPOINTS, EndpointInfo)
        self._plans: _Prefix[PlacementPlan] = _Prefix(PLACEMENTS, PlacementPlan)
        self._found = Found([], {}, {})
        self._changes = 0

    async def run(self) -> None:
        """Follow until cancelled."""
        following = [asyncio.ensure_future(self._follow(prefix)) for prefix in (self._endpoints, self._plans)]
        try:
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    def state(self) -> dict[str, Any]:
        """How the store is doing, for /health."""
        return {
            "connected": self.connected,
            "last_contact_s": round(self.last_contact_s, 1),
            "engines": len(self._found.specs),
            "left_out": dict(self._found.left_out),
        }

    @property
    def connected(self) -> bool:
        """Whether changes of the store come in."""
        return self._endpoints.connected and self._plans.connected

    @property
    def last_contact_s(self) -> float:
        """Seconds since the store was last known to be in touch; 0 while it is."""
        if self.connected:
            return 0.0
        return max(0.0, time.monotonic() - min(self._endpoints.since, self._plans.since))

    @property
    def changes(self) -> int:
        """How often the engines were looked at anew."""
        return self._changes

    @property
    def engines(self) -> int:
        """How many engines the store told of and get traffic."""
        return len(self._found.specs)

    async def _follow(self, prefix: _Prefix[Any]) -> None:
        async with aclosing(follow(self._store, prefix.prefix, settle_s=SETTLE_S)) as views:
            waiting = asyncio.ensure_future(anext(views))
            try:
                while True:
                    done, _ = await asyncio.wait({waiting}, timeout=prefix.grace_left_s())
                    if done:
                        prefix.take(waiting.result())
                        waiting = asyncio.ensure_future(anext(views))
                    else:
                        prefix.end_grace()
                    self._look()
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    def _look(self) -> None:
        plans = self._plans.records
        if not (self._endpoints.told and self._plans.told):
            return
        self._changes += 1
        self._found = found(self._endpoints.records.values(), {plan.model_uid: plan for plan in plans.values()})
        try:
            self._swap(self._found.specs, self._found.aliases)
        except ValueError as error:
            _LOG.error("the engines stay as they were: %s", error)


class _Prefix(Generic[R]):
    """The records under one prefix, as far as they can be read."""

    def __init__(self, prefix: str, kind: type[R]) -> None:
        self.prefix = prefix
        self.records: dict[str, R] = {}
        self.connected = False
        self.told = False
        """Whether the store was ever reached."""
        self.since = time.monotonic()
        self._kind = kind
        self._held: set[str] = set()
        """Keys that the store did not have when it came back, and that stay until the grace is over."""
        self._grace_until: float | None = None

    def take(self, view: View) -> None:
        """Move on to a view."""
        returned = view.connected and self.told and not self.connected
        self.connected, self.since = view.connected, view.since
        self.told |= view.connected
        if returned:
            self._grace_until = time.monotonic() + RETURN_GRACE_S
        for key in view.changed:
            entry = view.entries.get(key)
            if entry is None and returned and key in self.records:
                self._held.add(key)
                continue
            self._held.discard(key)
            self.records.pop(key, None)
            if entry is not None:
                self._read(key, entry.value)

    def grace_left_s(self) -> float | None:
        """Seconds until the grace is over; none while there is none."""
        return None if self._grace_until is None else max(0.0, self._grace_until - time.monotonic())

    def end_grace(self) -> None:
        """Let go what nobody announced again."""
        for key in self._held:
            self.records.pop(key, None)
        self._held.clear()
        self._grace_until = None

    def _read(self, key: str, value: bytes) -> None:
        try:
            self.records[key] = self._kind.parsed(value, key)
        except RecordError as error:
            _LOG.warning("left out: %s", error)
