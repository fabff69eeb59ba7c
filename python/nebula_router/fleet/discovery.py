"""From the store to a gateway's engines: which endpoints get traffic, now."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from nebula_router.fleet.follow import follow
from nebula_router.fleet.records import (
    ENDPOINTS,
    PLACEMENTS,
    EndpointInfo,
    PlacementPlan,
    Record,
    RecordError,
    endpoint_key,
    placement_key,
)
from nebula_router.fleet.roster import Found, Roster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nebula_router.fleet.follow import View
    from nebula_router.fleet.store import Store

_LOG: Final = logging.getLogger(__name__)

SETTLE_S: Final = 0.1
"""Changes that come within it reach the gateway together: a fleet that is always changing must not keep it busy."""
RETURN_GRACE_S: Final = 15.0
"""Time that what was there before the store was lost stays after its return. Leases ran out meanwhile; nodes that live
announce themselves again within a heartbeat, and an engine that is dead gets no traffic by its probes."""

R = TypeVar("R", bound=Record)


class Discovery:
    """Keeps a gateway's engines as the store has them.

    Loss of the store changes nothing: the last fleet stays until the store is back and has been given time to fill.
    """

    def __init__(self, store: Store, swap: Callable[[Sequence[Mapping[str, Any]], Mapping[str, str]], None]) -> None:
        """Follow `store`, and call `swap` with all engines and aliases whenever they may have changed."""
        self._store = store
        self._swap = swap
        self._roster = Roster()
        self._found = Found([], {}, {})
        self._endpoints = _Records(EndpointInfo, _endpoint_key, self._endpoint)
        self._plans = _Records(PlacementPlan, _plan_key, self._plan)
        self._looked_at: int | None = None
        """Revision of the roster that the gateway has."""
        self._swaps = 0

    async def run(self) -> None:
        """Follow until cancelled."""
        following = [
            asyncio.ensure_future(self._follow(ENDPOINTS, self._endpoints)),
            asyncio.ensure_future(self._follow(PLACEMENTS, self._plans)),
        ]
        try:
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            # Whatever ended it: nobody may believe that changes still come in.
            self._endpoints.connected = self._plans.connected = False

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
    def swaps(self) -> int:
        """How often the engines were replaced."""
        return self._swaps

    @property
    def engines(self) -> int:
        """How many engines the store told of and get traffic."""
        return len(self._found.specs)

    async def _follow(self, prefix: str, records: _Records[Any]) -> None:
        async with aclosing(follow(self._store, prefix, settle_s=SETTLE_S)) as views:
            waiting = asyncio.ensure_future(anext(views))
            try:
                while True:
                    done, _ = await asyncio.wait({waiting}, timeout=records.grace_left_s())
                    if done:
                        records.take(waiting.result())
                        waiting = asyncio.ensure_future(anext(views))
                    else:
                        records.end_grace()
                    self._look()
            finally:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    def _look(self) -> None:
        if not (self._endpoints.told and self._plans.told) or self._roster.revision == self._looked_at:
            return
        self._looked_at = self._roster.revision
        self._found = self._roster.found()
        self._swaps += 1
        try:
            self._swap(self._found.specs, self._found.aliases)
        except ValueError as error:
            _LOG.error("the engines stay as they were: %s", error)

    def _endpoint(self, endpoint: EndpointInfo, there: bool) -> None:  # noqa: FBT001 - there or gone
        self._roster.endpoint(endpoint.model_uid, endpoint.replica_id, endpoint if there else None)

    def _plan(self, plan: PlacementPlan, there: bool) -> None:  # noqa: FBT001 - there or gone
        self._roster.plan(plan.model_uid, plan if there else None)


def _endpoint_key(endpoint: EndpointInfo) -> str:
    return endpoint_key(endpoint.model_uid, endpoint.replica_id)


def _plan_key(plan: PlacementPlan) -> str:
    return placement_key(plan.model_uid)


class _Records(Generic[R]):
    """The records under one prefix, as far as they can be read."""

    def __init__(self, kind: type[R], key_of: Callable[[R], str], tell: Callable[[R, bool], None]) -> None:
        self.connected = False
        self.told = False
        """Whether the store was ever reached."""
        self.since = time.monotonic()
        self._kind = kind
        self._key_of = key_of
        self._tell = tell
        self._records: dict[str, R] = {}
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
            if entry is None and returned and key in self._records:
                self._held.add(key)
                continue
            self._held.discard(key)
            self._set(key, None if entry is None else self._read(key, entry.value))

    def grace_left_s(self) -> float | None:
        """Seconds until the grace is over; none while there is none."""
        return None if self._grace_until is None else max(0.0, self._grace_until - time.monotonic())

    def end_grace(self) -> None:
        """Let go what nobody announced again."""
        for key in self._held:
            self._set(key, None)
        self._held.clear()
        self._grace_until = None

    def _set(self, key: str, record: R | None) -> None:
        before = self._records.pop(key, None)
        if record is not None:
            self._records[key] = record
            self._tell(record, True)
        elif before is not None:
            self._tell(before, False)

    def _read(self, key: str, value: bytes) -> R | None:
        try:
            record = self._kind.parsed(value, key)
        except RecordError as error:
            _LOG.warning("left out: %s", error)
            return None
        if self._key_of(record) != key:
            _LOG.warning("left out: %s: it says that it belongs under %s", key, self._key_of(record))
            return None
        return record
