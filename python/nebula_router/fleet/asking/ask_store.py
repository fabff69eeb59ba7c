"""A fleet asked from a terminal through its store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from nebula_router.fleet import operations
from nebula_router.fleet.asking.documents import (
    Document,
    Done,
    DrainOrder,
    FleetStatus,
    Models,
    NodeDrainOrder,
    Nodes,
    Placements,
    ScaleOrder,
)
from nebula_router.fleet.open import opened_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nebula_router.config import Settings
    from nebula_router.fleet.records import ModelSpec
    from nebula_router.fleet.store import Store

D = TypeVar("D", bound=Document)


class StoredFleet:
    """A fleet asked through its store. Each question opens it anew; there is one per command."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scheduler = settings.scheduler

    def status(self) -> FleetStatus:
        """The fleet in brief."""
        return self._ask(operations.status)

    def models(self) -> Models:
        """Every model."""
        return self._ask(operations.models)

    def nodes(self) -> Nodes:
        """Every node."""
        return self._ask(operations.nodes)

    def placements(self, model_uid: str | None) -> Placements:
        """Every replica, of one model or of all."""
        return self._ask(lambda store: operations.placements(store, model_uid))

    def load(self, spec: ModelSpec) -> Done:
        """Want a model."""
        return self._ask(lambda store: operations.load(store, spec))

    def scale(self, model_uid: str, order: ScaleOrder) -> Done:
        """Change how many replicas there are."""
        return self._ask(lambda store: operations.scale(store, model_uid, order, self._scheduler))

    def drain(self, model_uid: str, order: DrainOrder) -> Done:
        """Drain a replica."""
        return self._ask(lambda store: operations.drain(store, model_uid, order, self._scheduler))

    def drain_node(self, node_id: str, order: NodeDrainOrder) -> Done:
        """Drain a node."""
        return self._ask(lambda store: operations.drain_node(store, node_id, order, self._scheduler))

    def unload(self, model_uid: str) -> Done:
        """Want a model no more."""
        return self._ask(lambda store: operations.unload(store, model_uid))

    def _ask(self, question: Callable[[Store], Awaitable[D]]) -> D:
        async def asked() -> D:
            async with opened_store(self._settings.store) as store:
                return await question(store)

        return asyncio.run(asked())
