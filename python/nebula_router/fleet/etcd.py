"""The store in etcd."""
# ruff: noqa: ARG002 - a placeholder reads nothing

from __future__ import annotations

from typing import TYPE_CHECKING

from nebula_router.fleet.store import Change, Entry, Listing, StoreDownError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from nebula_router.fleet.settings import StoreSettings


class EtcdStore:
    """Placeholder of the backend, which answers nothing yet."""

    def __init__(self, settings: StoreSettings) -> None:
        self._down = StoreDownError(f"etcd at {settings.endpoints} is not asked by this version")

    async def get(self, key: str) -> Entry | None:
        """Fail."""
        raise self._down

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Fail."""
        raise self._down

    async def delete(self, key: str) -> bool:
        """Fail."""
        raise self._down

    async def list(self, prefix: str) -> Listing:
        """Fail."""
        raise self._down

    async def compare_and_swap(
        self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
    ) -> int | None:
        """Fail."""
        raise self._down

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """Fail."""
        raise self._down

    async def close(self) -> None:
        """Do nothing."""
