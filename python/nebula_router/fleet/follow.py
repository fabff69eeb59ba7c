"""Keeps a view of all keys under a prefix, whatever becomes of the store."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from nebula_router.fleet.store import Change, Entry, Listing, Store, StoreClosedError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence

BACKOFF_S: Final = 0.1
"""Wait before a store that was lost is asked again, at first."""
BACKOFF_MAX_S: Final = 2.0
"""Longest such wait."""

_log = logging.getLogger(__name__)


class View(NamedTuple):
    """What is known of the keys under a prefix."""

    entries: Mapping[str, Entry]
    """All of them, by key. The mapping moves on: it stands still only until the next view is asked for."""
    revision: int
    """Of the store, up to which the entries are complete; 0 where it was never reached."""
    connected: bool
    """Whether changes come in. While they do not, the entries are those last seen."""
    since: float
    """When the store was last known to be in touch, by `time.monotonic`; of one that never was, when that began."""
    changed: frozenset[str]
    """Keys that came, changed or went since the view before, maybe came and went; in the first one, all."""


async def follow(
    store: Store,
    prefix: str = "",
    *,
    settle_s: float = 0.0,
    backoff_s: float = BACKOFF_S,
    backoff_max_s: float = BACKOFF_MAX_S,
) -> AsyncGenerator[View, None]:
    """Yield a complete view of the keys under `prefix`, and a new one with every change; never ends by itself.

    A store that is lost gives one view that is not connected, with the entries as last seen, and one that is when it
    is back; in between it is asked again after `backoff_s`, which doubles up to `backoff_max_s`. With `settle_s` a
    change waits that long for others, which come in the same view: constant change still gives a view each time.
    Nothing happens but while a view is waited for; close the generator when done (`contextlib.aclosing`).

    Cost: a view costs its changes; the first one, and one that is connected again, all entries.

    Raises:
        StoreClosedError: The store object was closed.
    """
    seen = _Seen()
    failures = 0
    while True:
        if failures:
            await asyncio.sleep(_pause_s(failures, backoff_s, backoff_max_s))
        try:
            listing = await store.list(prefix)
        except StoreClosedError:
            raise
        except StoreError as error:
            failures += 1
            if seen.lose():
                _log.warning("the store is lost, what was last seen under %r stands: %s", prefix, error)
                yield seen.view()
            continue
        yield seen.replace(listing)
        began = time.monotonic()
        try:
            async with aclosing(_settled(store, prefix, listing.revision, settle_s)) as batches:
                async for changes in batches:
                    yield seen.apply(changes)
        except StoreClosedError:
            raise
        except StoreError as error:
            _log.info("what is under %r is listed again: %s", prefix, error)
        # A watch that lived is asked for again at once; one that breaks at once must not make a busy loop.
        failures = 0 if time.monotonic() - began > backoff_max_s else failures + 1
        seen.lose()
        yield seen.view()


class _Seen:
    """The entries as they were last seen."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._revision = 0
        self._connected: bool | None = None
        self._since = time.monotonic()

    def view(self, changed: Iterable[str] = ()) -> View:
        entries = MappingProxyType(self._entries)
        return View(entries, self._revision, self._connected is True, self._since, frozenset(changed))

    def replace(self, listing: Listing) -> View:
        before, self._entries = self._entries, dict(listing.entries)
        changed = {key for key, entry in self._entries.items() if before.get(key) != entry}
        return self._touched(listing.revision, changed | (before.keys() - self._entries.keys()))

    def apply(self, changes: Collection[Change]) -> View:
        for key, entry, _ in changes:
            if entry is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = entry
        return self._touched(max(change.revision for change in changes), {change.key for change in changes})

    def lose(self) -> bool:
        """Whether that is news."""
        news = self._connected is not False
        if self._connected:
            self._since = time.monotonic()
        self._connected = False
        return news

    def _touched(self, revision: int, changed: Iterable[str]) -> View:
        self._revision, self._connected, self._since = revision, True, time.monotonic()
        return self.view(changed)


async def _settled(store: Store, prefix: str, after: int, settle_s: float) -> AsyncGenerator[Collection[Change], None]:
    """Yield the changes of a watch, those that follow one within `settle_s` together with it, only the last per key."""
    pending: asyncio.Task[Sequence[Change]] | None = None
    async with aclosing(store.watch(prefix, after)) as watch:
        try:
            while True:
                latest = {change.key: change for change in await (pending or _next(watch))}
                pending = None
                until = time.monotonic() + settle_s
                while (left_s := until - time.monotonic()) > 0:
                    pending = asyncio.create_task(_next(watch))
                    await asyncio.wait({pending}, timeout=left_s)
                    if not pending.done() or pending.exception() is not None:
                        break
                    latest.update((change.key, change) for change in pending.result())
                    pending = None
                yield latest.values()
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)


async def _next(watch: AsyncGenerator[Sequence[Change], None]) -> Sequence[Change]:
    return await anext(watch)


def _pause_s(failures: int, first_s: float, most_s: float) -> float:
    """Wait after so many failures; spread, so that not all of a fleet ask at once."""
    return min(first_s * 2.0 ** min(failures - 1, 30), most_s) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
