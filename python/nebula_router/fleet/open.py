"""From the settings to the store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nebula_router.fleet.settings import StoreSettings
    from nebula_router.fleet.store import Store


def open_store(settings: StoreSettings) -> Store:
    """The store that the settings name. It is reached for when it is first asked, by the loop that asks."""
    # gRPC takes a while to load and some memory: only who has an etcd pays for that.
    from nebula_router.fleet.etcd import EtcdStore

    return EtcdStore(settings)


@asynccontextmanager
async def opened_store(settings: StoreSettings) -> AsyncIterator[Store]:
    """The same for as long as the context is entered; it is closed then."""
    store = open_store(settings)
    try:
        yield store
    finally:
        await store.close()
