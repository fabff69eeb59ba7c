"""Many schedulers at once: never a GPU or a port twice, one winner per version, whoever dies or falls asleep."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import pytest
from tests.fleet.fleets import all_placements, announce, doubles, gpu, node, placement, spec

from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.placing import book
from nebula_router.fleet.placing.book import BOOK, ContendedError, Decision, Values, Write, decide, look
from nebula_router.fleet.placing.one_shot import Ask, place
from nebula_router.fleet.placing.snapshot import Snapshot
from nebula_router.fleet.records import Pool, Role, placement_key, spec_key
from nebula_router.fleet.schedule import plan
from nebula_router.fleet.settings import SchedulerSettings
from nebula_router.fleet.store import Change, Entry, Listing, StoreDownError

pytestmark = pytest.mark.anyio

SETTINGS = SchedulerSettings()


class Unsteady:
    """A store in memory whose every operation takes some turns of the loop, and after `lives` of them fails."""

    def __init__(self, beside: MemoryStore, random_: random.Random, lives: int | None = None) -> None:
        self.inner = MemoryStore(beside=beside)
        self.random = random_
        self.lives = lives

    async def _turn(self) -> None:
        for _ in range(self.random.randrange(5)):
            await asyncio.sleep(0)
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise StoreDownError("dead")

    async def get(self, key: str) -> Entry | None:
        await self._turn()
        return await self.inner.get(key)

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        await self._turn()
        return await self.inner.put(key, value, ttl_s)

    async def delete(self, key: str) -> bool:
        await self._turn()
        return await self.inner.delete(key)

    async def list(self, prefix: str) -> Listing:
        await self._turn()
        found = await self.inner.list(prefix)
        await asyncio.sleep(0)
        return found

    async def compare_and_swap(
        self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
    ) -> int | None:
        await self._turn()
        return await self.inner.compare_and_swap(key, expected_revision, value, ttl_s)

    def watch(self, prefix: str, after_revision: int) -> "AsyncGenerator[Sequence[Change], None]":
        return self.inner.watch(prefix, after_revision)

    async def close(self) -> None:
        await self.inner.close()


def ask(uid: str, replicas: int = 1, **pool: object) -> Ask:
    return Ask(
        model_uid=uid,
        role=Role.UNIFIED,
        pool=lambda _: Pool.model_validate({"replicas": replicas, "required_vram_mb": 1000, **pool}),
        model_name=uid,
        wait_s=0,
    )


async def watched(store: MemoryStore, work: Awaitable[object]) -> None:
    """Does the work, and looks after every change whether anything is given twice, and whether versions grow by one."""
    versions: dict[str, int] = {}
    faults: list[str] = []

    async def follow() -> None:
        async for changes in store.watch("/placements/", 0):
            faults.extend(doubles(await all_placements(store)))
            for change in changes:
                written = None if change.entry is None else change.entry
                if written is not None:
                    version = int(written.value.split(b'"version":')[1].split(b",")[0])
                    if version != versions.get(change.key, 0) + 1:
                        faults.append(f"{change.key}: version {version} after {versions.get(change.key)}")
                    versions[change.key] = version

    follower = asyncio.create_task(follow())
    try:
        await work
        for _ in range(3):
            await asyncio.sleep(0)
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
    assert faults == []


@pytest.mark.parametrize("seed", range(15))
async def test_one_shots_at_once_never_take_one_gpu(seed: int) -> None:
    first = MemoryStore()
    await announce(first, *(node(f"n{i}", gpu(0), gpu(1)) for i in range(3)))
    random_ = random.Random(seed)

    async def one(number: int) -> bool:
        placed = await place(Unsteady(first, random_), ask(f"m{number % 6}", random_.randrange(1, 3)), SETTINGS)
        return not placed.is_refused

    async def all_at_once() -> None:
        results = await asyncio.gather(*(one(number) for number in range(12)))
        assert any(results)

    await watched(first, all_at_once())
    assert doubles(await all_placements(first)) == []


@pytest.mark.parametrize("seed", range(15))
async def test_authors_that_die_anywhere_harm_nobody(seed: int) -> None:
    first = MemoryStore()
    await announce(first, node("n", *(gpu(i) for i in range(4))))
    random_ = random.Random(seed)

    async def one(number: int) -> None:
        store = Unsteady(first, random_, lives=random_.randrange(1, 12))
        try:
            await place(store, ask(f"m{number}", 1), SETTINGS)
        except StoreDownError:
            return

    async def all_at_once() -> None:
        await asyncio.gather(*(one(number) for number in range(10)))

    await watched(first, all_at_once())
    await look(first)
    for written in await all_placements(first):
        assert await first.get(spec_key(written.model_uid)) is not None  # what belongs together was written together
    assert doubles(await all_placements(first)) == []


async def test_a_decision_is_finished_by_the_next_one_and_a_late_write_does_nothing() -> None:
    store = MemoryStore()
    key = "/placements/m"
    decision = Decision(writes=(Write(key=key, expected_revision=0, value="1"),))
    booked = await store.compare_and_swap(BOOK, 0, decision.stored())
    assert booked is not None
    await look(store)
    entry = await store.get(key)
    assert entry is not None
    assert entry.value == b"1"
    await store.put(key, b"2")
    assert await store.compare_and_swap(key, entry.revision, b"late") is None
    held = await store.get(BOOK)
    assert held is not None
    assert Decision.parsed(held.value, BOOK).writes == ()


async def test_what_was_decided_and_then_removed_is_not_made_again() -> None:
    store = MemoryStore()
    await decide(store, lambda fleet: {"/models/m/spec": b"x"} if not fleet.revision("/models/m/spec") else {})
    await store.delete("/models/m/spec")
    await look(store)
    assert await store.get("/models/m/spec") is None


async def test_an_author_whose_key_was_changed_past_the_book_is_asked_again() -> None:
    store = MemoryStore()
    await store.put("/models/m/spec", b"1")
    asked: list[int] = []

    class Meddler(Unsteady):
        async def compare_and_swap(
            self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
        ) -> int | None:
            if key == BOOK and len(asked) == 1:
                await self.inner.put("/models/m/spec", b"somebody's")
            return await super().compare_and_swap(key, expected_revision, value, ttl_s)

    def author(fleet: Snapshot) -> Values:
        asked.append(fleet.revision("/models/m/spec"))
        return {"/models/m/spec": b"mine"}

    await decide(Meddler(store, random.Random(0)), author)
    assert len(asked) == 2
    entry = await store.get("/models/m/spec")
    assert entry is not None
    assert entry.value == b"mine"


async def test_an_author_that_slept_leaves_its_writes_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    monkeypatch.setattr(book, "ASLEEP_S", -1.0)
    with pytest.raises(StoreDownError, match="too slow"):
        await decide(store, lambda _: {"/models/m/spec": b"x"})
    monkeypatch.undo()
    await look(store)
    assert await store.get("/models/m/spec") is not None


async def test_an_author_that_never_wins_gives_up() -> None:
    store = MemoryStore()

    class Rival(Unsteady):
        async def list(self, prefix: str) -> Listing:
            found = await super().list(prefix)
            await self.inner.put(BOOK, Decision().stored())
            return found

    with pytest.raises(ContendedError):
        await decide(Rival(store, random.Random(0)), lambda _: {"/models/m/spec": b"x"})


async def test_one_winner_per_version() -> None:
    first = MemoryStore()
    await announce(first, node("n", *(gpu(i) for i in range(4))))
    random_ = random.Random(1)
    wins: list[int] = []

    def author(wish: int) -> Callable[[Snapshot], Values]:
        def decided(fleet: Snapshot) -> Values:
            if any(written.version > 3 for written in fleet.plans.values()):
                return {}
            outcome = plan(fleet.with_spec(spec("m", engine_args={"wish": wish, "v": len(wins)})))["m"]
            return {placement_key("m"): outcome.plan.stored()} if outcome.changed else {}

        return decided

    async def one(wish: int) -> None:
        fleet = await decide(Unsteady(first, random_), author(wish))
        wins.append(fleet.plans["m"].version if "m" in fleet.plans else 0)

    await watched(first, asyncio.gather(*(one(wish) for wish in range(20))))
    written = await placement(first, "m")
    assert written is not None
    assert written.version == 4
