"""From the settings to the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nebula_router.fleet.settings import StoreSettings
    from nebula_router.fleet.store import Store


def open_store(settings: StoreSettings) -> Store:
    """The store that the settings name. It is reached for when it is first asked, by the loop that asks."""
    # gRPC takes a while to load and some memory: only who has an etcd pays for that.
    from nebula_router.fleet.etcd import EtcdStore

    return EtcdStore(settings)
