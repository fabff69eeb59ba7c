"""One endpoint's record in the store: what was said last is there, again and again, whatever becomes of the store."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nebula_router.fleet.clock import now_ms
from nebula_router.fleet.records import EndpointInfo, RecordError
from nebula_router.fleet.store import StoreClosedError, StoreError
from nebula_router.fleet.waiting import happened

if TYPE_CHECKING:
    from nebula_router.fleet.settings import NodeSettings
    from nebula_router.fleet.store import Store

_log = logging.getLogger(__name__)


class Announcement:
    """The endpoint of one replica on this node. `say` returns at once; `run` tells the store, one write at a time."""

    def __init__(self, store: Store, settings: NodeSettings, node_id: str, key: str) -> None:
        self._store = store
        self._settings = settings
        self._node_id = node_id
        self._key = key
        self._info: EndpointInfo | None = None
        self._shares = False
        self._is_said = asyncio.Event()
        self._news = asyncio.Event()
        self._is_lost = False

    def say(self, info: EndpointInfo | None, *, shares: bool = False) -> None:
        """Announce this, or with none that there is no such endpoint.

        With `shares` another node may have the replica now: then its record is left alone.
        """
        self._info, self._shares = info, shares
        self._is_said.clear()
        self._news.set()

    async def said(self, within_s: float) -> bool:
        """Whether the store has what was said last; waits for that so long."""
        return await happened(self._is_said, within_s)

    async def run(self) -> None:
        """Tell the store, with each news and every `node.heartbeat_s`. Ends when cancelled, or its store is closed."""
        await self._news.wait()
        while True:
            self._news.clear()
            try:
                await self._tell(self._info)
            except StoreClosedError:
                return
            except StoreError as error:
                if not self._is_lost:
                    _log.warning("%s: not announced, the engine goes on: %s", self._key, error)
                self._is_lost = True
            else:
                self._is_lost = False
                if not self._news.is_set():
                    self._is_said.set()
            is_over = self._info is None and self._is_said.is_set()
            await happened(self._news, None if is_over else self._settings.heartbeat_s)

    async def _tell(self, info: EndpointInfo | None) -> None:
        if info is None:
            await self._withdraw()
            return
        value = info.model_copy(update={"last_heartbeat_ms": now_ms()}).stored()
        if not self._shares:
            await self._store.put(self._key, value, self._settings.lease_s)
            return
        entry = await self._store.get(self._key)
        if entry is None or self._is_of(entry.value, info.node_id):
            revision = 0 if entry is None else entry.revision
            await self._store.compare_and_swap(self._key, revision, value, self._settings.lease_s)

    async def _withdraw(self) -> None:
        """Remove the record, if it is not another node's."""
        entry = await self._store.get(self._key)
        if entry is not None and self._is_of(entry.value, self._node_id):
            await self._store.compare_and_swap(self._key, entry.revision, None)

    def _is_of(self, value: bytes, node_id: str) -> bool:
        try:
            return EndpointInfo.parsed(value, self._key).node_id == node_id
        except RecordError:
            return False
