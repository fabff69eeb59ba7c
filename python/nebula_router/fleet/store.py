"""The store of the fleet: a few operations on keys, with the guarantees that the rest is built on.

A key is text that begins with `/`; a value is bytes. Every change of any key raises the store's **revision** by at
least one; an entry carries the revision of its last change. Reads and writes are linearizable: who reads after a write
came back sees it.

    StoreError
    ├── StoreDownError     it did not answer, or not in time: the call may have had its effect, or not
    ├── StoreClosedError   this object was closed; it does nothing any more
    └── WatchLostError     the changes since a revision cannot be told any more: list again
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


class StoreError(Exception):
    """The store refused, or could not be asked."""


class StoreDownError(StoreError):
    """The store did not answer in time. A write may have had its effect, or not."""


class StoreClosedError(StoreError):
    """This store object was closed."""


class WatchLostError(StoreError):
    """Changes may have been missed: list again and watch from there."""


class Entry(NamedTuple):
    """A key with its value."""

    key: str
    value: bytes
    revision: int
    """Of the entry's last change."""


class Change(NamedTuple):
    """What became of a key."""

    key: str
    entry: Entry | None
    """None where the key is gone."""
    revision: int


class Listing(NamedTuple):
    """All keys under a prefix at one moment."""

    entries: dict[str, Entry]
    revision: int
    """Of the store at that moment: a watch after it misses nothing."""


def checked_key(key: str) -> str:
    """The key, if it is one.

    Raises:
        ValueError: It does not begin with `/`.
    """
    if not key.startswith("/"):
        raise ValueError(f"{key!r} is no key of the store: a key begins with '/'")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix as what all keys under it begin with; an empty one means all keys.

    Raises:
        ValueError: No key begins so.
    """
    return checked_key(prefix or "/")


class Store(Protocol):
    """Keys and values. Every operation ends by itself: with an answer or, after `store.timeout_s`, an error.

    A key or prefix that does not begin with `/` is a ValueError; an empty prefix means all keys.
    """

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or none. One round trip."""
        ...

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Set the value and return the revision. One round trip.

        With `ttl_s` the key lives as long as this store object does: it is kept alive meanwhile, it is gone at once
        when the object is closed, and after about `ttl_s` (etcd: whole seconds, at least 2) where its process died,
        hung or lost touch.
        A key that went that way comes back when it is put again. Without `ttl_s` the key stays.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Remove the key; whether it was there. One round trip."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Return all keys that begin with `prefix`, at one revision. Cost: their total size."""
        ...

    async def compare_and_swap(
        self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
    ) -> int | None:
        """Set the value (with none, remove the key) if its entry still has the revision; 0 is that of a missing key.

        Return the new revision, or none where somebody else was first. One round trip. A missing key that shall be
        removed is as wanted: the revision is the store's. After a `StoreDownError` nobody knows who won: read it.
        """
        ...

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """Yield every change under `prefix` after the revision, in order, in batches; never ends by itself.

        Raises `WatchLostError` where that cannot be promised: the connection broke or fell silent, the revision is
        compacted, or the consumer is too slow. Closing the generator ends the watch (`contextlib.aclosing`).
        """
        ...

    async def close(self) -> None:
        """Let go: keys with a ttl that this object put are gone. Idempotent."""
        ...
