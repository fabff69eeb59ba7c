"""The store in one process: for tests, and for a fleet of one process that outlives nothing.

Every client of the same data must run on one event loop; nothing here is safe between threads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.store import (
    Change,
    Entry,
    Listing,
    StoreClosedError,
    StoreDownError,
    WatchLostError,
    checked_key,
    checked_prefix,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

HISTORY: Final = 4096
"""Changes that are remembered. It bounds what a watcher may be behind, too: there is no other queue."""


class MemoryStore:
    """A client of data in this process: `MemoryStore()` of its own, with `beside` of that client's.

    `cut` makes a client lose touch, as a broken network does, and `mend` ends that.
    """

    def __init__(self, beside: MemoryStore | None = None, *, history: int = HISTORY) -> None:
        self._data: _Data = _Data(history) if beside is None else beside._data  # noqa: SLF001 - its own kind
        self._closed = False
        self._is_cut = False
        self._expiry: list[asyncio.TimerHandle] = []

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or none."""
        self._check()
        return self._data.entries.get(checked_key(key))

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Set the value and return the revision; with `ttl_s` the key goes with this client."""
        self._check()
        revision = self._data.apply({checked_key(key): value})
        self._own(key, ttl_s)
        return revision

    async def delete(self, key: str) -> bool:
        """Remove the key; whether it was there."""
        self._check()
        there = checked_key(key) in self._data.entries
        if there:
            self._data.apply({key: None})
        return there

    async def list(self, prefix: str) -> Listing:
        """Return all keys that begin with `prefix`. Cost: the number of all keys."""
        self._check()
        prefix = checked_prefix(prefix)
        entries = {key: entry for key, entry in sorted(self._data.entries.items()) if key.startswith(prefix)}
        return Listing(entries, self._data.revision)

    async def compare_and_swap(
        self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
    ) -> int | None:
        """Set the value, or with none remove the key, if its entry still has the revision; else return none."""
        self._check()
        entry = self._data.entries.get(checked_key(key))
        if (0 if entry is None else entry.revision) != expected_revision:
            return None
        if value is not None:
            return await self.put(key, value, ttl_s)
        return self._data.apply({key: None} if entry is not None else {})

    async def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """Yield the changes under `prefix` after the revision, in batches."""
        prefix = checked_prefix(prefix)
        if after_revision > self._data.revision:
            raise WatchLostError(f"the store in memory is at revision {self._data.revision}, before {after_revision}")
        woken = asyncio.Event()
        self._data.watchers.add(woken)
        try:
            while True:
                woken.clear()
                self._check(watching=True)
                changes = self._data.changes(after_revision)
                after_revision = self._data.revision
                batch = [change for change in changes if change.key.startswith(prefix)]
                if batch:
                    yield batch
                else:
                    await woken.wait()
        finally:
            self._data.watchers.discard(woken)

    async def close(self) -> None:
        """Let go: this client's keys with a ttl are gone. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self._is_cut:
                self._data.remove(self)
            self._data.wake()

    def cut(self) -> None:
        """Lose touch: every operation fails, watches break, and keys with a ttl are gone after it."""
        if not self._is_cut:
            self._is_cut = True
            loop = asyncio.get_running_loop()
            for ttl_s in {ttl_s for owner, ttl_s in self._data.owners.values() if owner is self}:
                self._expiry.append(loop.call_later(ttl_s, self._data.remove, self, ttl_s))
            self._data.wake()

    def mend(self) -> None:
        """Be in touch again. What is gone comes back only when it is put again."""
        self._is_cut = False
        for timer in self._expiry:
            timer.cancel()
        self._expiry.clear()

    def _check(self, *, watching: bool = False) -> None:
        if self._closed:
            raise StoreClosedError("the store in memory was closed by this client")
        if self._is_cut:
            kind = WatchLostError if watching else StoreDownError
            raise kind("the store in memory is out of this client's reach")

    def _own(self, key: str, ttl_s: float | None) -> None:
        if ttl_s is not None:
            self._data.owners[key] = (self, ttl_s)


class _Data:
    """What all clients share."""

    def __init__(self, history: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.owners: dict[str, tuple[MemoryStore, float]] = {}
        self.revision = 1
        self.watchers: set[asyncio.Event] = set()
        self._history: deque[Change] = deque()
        self._most = history
        self._forgotten = 0

    def apply(self, values: dict[str, bytes | None]) -> int:
        """Set and remove keys in one revision, which is returned; no owner has them then."""
        if not values:
            return self.revision
        self.revision += 1
        for key, value in values.items():
            self.owners.pop(key, None)
            entry = None if value is None else Entry(key, value, self.revision)
            if entry is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = entry
            self._history.append(Change(key, entry, self.revision))
        while len(self._history) > self._most:
            self._forgotten = self._history.popleft().revision
        self.wake()
        return self.revision

    def remove(self, owner: MemoryStore, ttl_s: float | None = None) -> None:
        """Remove the keys that a client has with this ttl, or with any, in one revision."""
        gone = [key for key, (whose, ttl) in self.owners.items() if whose is owner and ttl_s in {None, ttl}]
        self.apply(dict.fromkeys(gone))

    def changes(self, after: int) -> list[Change]:
        """All changes after a revision. Cost: their number.

        Raises:
            WatchLostError: Some of them are forgotten.
        """
        if after < self._forgotten:
            raise WatchLostError(
                f"the changes after revision {after} are forgotten; the store in memory has those after "
                f"{self._forgotten}"
            )
        found: list[Change] = []
        for change in reversed(self._history):
            if change.revision <= after:
                break
            found.append(change)
        found.reverse()
        return found

    def wake(self) -> None:
        """Let every watcher look."""
        for watcher in self.watchers:
            watcher.set()
