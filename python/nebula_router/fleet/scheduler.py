"""Keeps placements true: follows the fleet, and decides again whenever it changes or an interval has passed.

Any number of schedulers may run, and one-shot commands beside them: what each decides goes through the one book
(`nebula_router.fleet.placing.book`). While the store is out of reach nothing is decided, and engines go on as they are.
"""

import asyncio
import logging
import time
from contextlib import aclosing
from typing import Final

from nebula_router.fleet.clock import now_ms
from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.follow import View, follow
from nebula_router.fleet.model.model_files import ModelFilesError
from nebula_router.fleet.model.sizing import sized_spec
from nebula_router.fleet.placing.book import Values, decide, look
from nebula_router.fleet.placing.decider import Decider, Sizing
from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import (
    MODEL_REQUESTS,
    MODELS,
    NODES,
    PLACEMENTS,
    ModelSpec,
    RecordError,
    model_request_key,
    spec_key,
)
from nebula_router.fleet.settings import SchedulerSettings
from nebula_router.fleet.store import Store, StoreClosedError, StoreError

GATHER_S: Final = 0.05
"""Changes that come so close together are looked at together."""

_log: Final = logging.getLogger(__name__)


class Scheduler:
    """Places models on nodes until it is stopped; `store` stays the caller's."""

    def __init__(self, store: Store, settings: SchedulerSettings) -> None:
        self._store = store
        self._settings = settings
        self._decider = Decider(settings)
        self._sizings: dict[str, tuple[int, Sizing]] = {}
        self._woken = asyncio.Event()
        self._in_reach = True

    async def run(self, stop: asyncio.Event) -> None:
        """Decide on every change and every `interval_s`, until `stop` is set.

        Raises:
            StoreClosedError: The store was closed under it.
        """
        follower = asyncio.create_task(self._follow())
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._woken.clear()
                await self._pass()
                await self._wait(stopped)
                if follower.done():
                    follower.result()
        finally:
            for task in (follower, stopped):
                task.cancel()
            await asyncio.gather(follower, stopped, return_exceptions=True)

    async def once(self) -> Snapshot:
        """Decide once; the fleet that was decided upon.

        Raises:
            StoreError: The store cannot be asked.
            RecordError: What is in the book cannot be read.
        """
        await self._size(await look(self._store))
        fleet = await decide(self._store, self._changes)
        for level, text in self._decider.words:
            _log.log(level, "%s", text)
        return fleet

    async def _pass(self) -> None:
        try:
            await self.once()
        except StoreClosedError:
            raise
        except (StoreError, RecordError) as error:
            if self._in_reach:
                _log.warning("nothing is placed or moved for now: %s", error)
            self._in_reach = False
            self._decider.doubt(time.monotonic())
        else:
            self._in_reach = True

    async def _wait(self, stopped: "asyncio.Task[bool]") -> None:
        """Until something changes, is due, or the interval is over."""
        due = self._decider.next_at()
        left_s = self._settings.interval_s if due is None else max(0.0, due - time.monotonic())
        woken = asyncio.create_task(self._woken.wait())
        try:
            timeout_s = min(left_s + GATHER_S, self._settings.interval_s)
            await asyncio.wait({woken, stopped}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            await asyncio.gather(woken, return_exceptions=True)

    async def _follow(self) -> None:
        """Wakes the loop on a change that calls for a decision; heartbeats do not."""
        nodes: frozenset[str] = frozenset()
        async with aclosing(follow(self._store, settle_s=GATHER_S)) as views:
            async for view in views:
                if not view.connected:
                    self._decider.doubt(time.monotonic())
                    continue
                before, nodes = nodes, frozenset(key for key in view.entries if key.startswith(NODES))
                if nodes != before or _calls(view):
                    self._woken.set()

    def _changes(self, fleet: Snapshot) -> Values:
        sizings = {key: sizing for key, (revision, sizing) in self._sizings.items() if revision == fleet.revision(key)}
        if not _to_size(fleet).keys() <= sizings.keys():
            self._woken.set()  # Somebody asked for something since: what that needs is looked up first.
            return {}
        return self._decider.changes(fleet, sizings, time.monotonic(), now_ms())

    async def _size(self, fleet: Snapshot) -> None:
        """Looks up what models need, in their files; again only when a spec has changed."""
        specs = _to_size(fleet)
        self._sizings = {key: found for key, found in self._sizings.items() if key in specs}
        for key, spec in specs.items():
            revision = fleet.revision(key)
            if self._sizings.get(key, (0, None))[0] != revision:
                sizing = await asyncio.to_thread(_sizing, spec, self._settings.vram_overhead_mb)
                self._sizings[key] = (revision, sizing)


def _to_size(fleet: Snapshot) -> dict[str, ModelSpec]:
    """What is wanted and asked for, by the key that has it."""
    specs = {spec_key(uid): spec for uid, spec in fleet.specs.items()}
    return specs | {model_request_key(r.id): r.request for r in fleet.requests.values() if r.status == "Pending"}


def _sizing(spec: ModelSpec, overhead_mb: int) -> Sizing:
    try:
        return Sizing(sized_spec(spec, overhead_mb))
    except (EngineConfigError, ModelFilesError) as error:
        return Sizing(spec, str(error))


def _calls(view: View) -> bool:
    """Whether a change is of what people ask for, or of what was decided."""
    return any(key.startswith((MODELS, PLACEMENTS, MODEL_REQUESTS)) for key in view.changed)
