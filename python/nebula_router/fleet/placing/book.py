"""Decides about placements one at a time, whoever decides: so that no two schedulers give away the same GPU.

A decision is a set of writes that belong together. It is first written whole into one key, the book, by
compare-and-swap against the revision at which its author saw the fleet; then its writes are made, each by
compare-and-swap against the revision at which the author saw that key. Whoever finds a decision in the book that is not
done yet does it before deciding anything. So

* of two authors who saw the same fleet, one gets into the book; the other sees the fleet again, with that decision
  done;
* an author who dies or falls asleep anywhere leaves a decision that the next one completes, and when it wakes, all its
  writes come too late: revisions never come back. There is no lock, hence none to expire under its holder;
* a decision that is done is taken out, so that a key which somebody removes later is not made again.

Whoever writes placements past the book may take away, never add: the book does not see it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import Record
from nebula_router.fleet.store import Store, StoreDownError, StoreError

BOOK: Final = "/scheduler/book"
TRIES: Final = 100
"""Lost races after which an author gives up."""
ASLEEP_S: Final = 5.0
"""An author that was away for so long between booking and writing leaves the writes to others."""


class Write(Record):
    """One key's next value."""

    key: str
    expected_revision: int
    value: str | None = None
    """None removes the key."""


class Decision(Record):
    """Writes that belong together."""

    writes: tuple[Write, ...] = ()


class ContendedError(StoreError):
    """Others were first, again and again."""


Values = Mapping[str, bytes | None]
"""Next values by key; none removes the key."""


async def look(store: Store) -> Snapshot:
    """The fleet with every booked decision done.

    Raises:
        StoreError: The store cannot be asked.
    """
    snapshot, _ = await _settled(store)
    return snapshot


async def decide(store: Store, author: Callable[[Snapshot], Values]) -> Snapshot:
    """Let `author` say what is to change in the fleet as it is, and change it; the fleet that was decided upon.

    The author is asked again where somebody else was first, at most `TRIES` times; it says nothing to change nothing.
    Every write is made when this comes back, unless a key was changed meanwhile by someone who does not use the book:
    then the author is asked again, too.

    Raises:
        StoreError: The store cannot be asked; the decision may have been booked, and is then made by whoever is next.
    """
    for _ in range(TRIES):
        snapshot, booked = await _settled(store)
        values = author(snapshot)
        if not values:
            return snapshot
        writes = tuple(
            Write(key=key, expected_revision=snapshot.revision(key), value=None if value is None else value.decode())
            for key, value in values.items()
        )
        decision = Decision(writes=writes)
        at = time.monotonic()
        revision = await store.compare_and_swap(BOOK, booked, decision.stored())
        if revision is not None and await _made(store, decision, revision, at):
            return snapshot
    raise ContendedError(f"the fleet's placements changed {TRIES} times before a decision about them could be written")


async def _settled(store: Store) -> tuple[Snapshot, int]:
    """The fleet with an empty book, and the book's revision."""
    for _ in range(TRIES):
        listing = await store.list("")
        entry = listing.entries.get(BOOK)
        decision = Decision() if entry is None else Decision.parsed(entry.value, BOOK)
        if entry is None or not decision.writes:
            return Snapshot.of(listing), 0 if entry is None else entry.revision
        await _made(store, decision, entry.revision, time.monotonic())
    raise ContendedError(f"{BOOK} held another decision each of {TRIES} times")


async def _made(store: Store, decision: Decision, revision: int, at: float) -> bool:
    """Make a booked decision's writes and take it out of the book; whether all its values stand."""
    stand = True
    for write in decision.writes:
        if time.monotonic() - at > ASLEEP_S:
            raise StoreDownError("the store was too slow to finish a decision about placements; the next one does")
        value = None if write.value is None else write.value.encode()
        if await store.compare_and_swap(write.key, write.expected_revision, value) is None:
            entry = await store.get(write.key)
            stand = stand and (None if entry is None else entry.value) == value
    await store.compare_and_swap(BOOK, revision, Decision().stored())
    return stand
