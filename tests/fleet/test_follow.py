"""A view of a prefix is what a list has, whatever became of the store in between."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd
from tests.gateway.wait import until

from nebula_router.fleet.etcd import client
from nebula_router.fleet.follow import View, follow
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.store import Entry, Store, StoreClosedError, StoreError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0


def quick(store: Store, prefix: str = "", settle_s: float = 0.0) -> AsyncGenerator[View, None]:
    """Follows as `follow` does, with shorter waits for a store that is lost."""
    return follow(store, prefix, settle_s=settle_s, backoff_s=0.01, backoff_max_s=0.05)


class Follower:
    """Follows a prefix, and checks that what views say of changes makes their entries."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.view: View | None = None
        self.views = 0
        self.losses = 0

    async def run(self, views: AsyncGenerator[View, None]) -> None:
        async with aclosing(views):
            async for view in views:
                for key in view.changed:
                    if key in view.entries:
                        self.entries[key] = view.entries[key]
                    else:
                        self.entries.pop(key, None)
                assert self.entries == view.entries
                assert view.connected or not view.changed
                self.view = view
                self.views += 1
                self.losses += not view.connected

    def has(self, entries: dict[str, Entry], revision: int) -> bool:
        view = self.view
        return view is not None and view.connected and view.revision >= revision and view.entries == entries


@asynccontextmanager
async def following(views: AsyncGenerator[View, None]) -> AsyncIterator[Follower]:
    follower = Follower()
    task = asyncio.create_task(follower.run(views))
    try:
        yield follower
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def next_of(views: AsyncGenerator[View, None]) -> View:
    return await asyncio.wait_for(anext(views), WITHIN_S)


async def test_the_first_view_is_complete_and_each_change_makes_one() -> None:
    store = MemoryStore()
    await store.put("/a/1", b"1")
    await store.put("/b/1", b"1")
    async with aclosing(follow(store, "/a/")) as views:
        view = await next_of(views)
        assert (set(view.entries), set(view.changed), view.connected) == ({"/a/1"}, {"/a/1"}, True)
        await store.put("/b/2", b"1")
        revision = await store.put("/a/2", b"1")
        view = await next_of(views)
        assert (set(view.entries), set(view.changed), view.revision) == ({"/a/1", "/a/2"}, {"/a/2"}, revision)
        await store.delete("/a/1")
        view = await next_of(views)
        assert (set(view.entries), set(view.changed)) == ({"/a/2"}, {"/a/1"})
    assert not store._data.watchers


async def test_no_prefix_means_all() -> None:
    store = MemoryStore()
    await store.put("/a", b"1")
    async with aclosing(follow(store)) as views:
        assert set((await next_of(views)).entries) == {"/a"}


async def test_a_view_cannot_be_written_to() -> None:
    async with aclosing(follow(MemoryStore())) as views:
        view = await next_of(views)
        with pytest.raises(TypeError):
            view.entries["/a"] = Entry("/a", b"", 1)  # type: ignore[index]


async def test_a_store_that_is_down_at_first() -> None:
    other = MemoryStore()
    store = MemoryStore(beside=other)
    await other.put("/a", b"1")
    store.cut()
    async with aclosing(quick(store)) as views:
        view = await next_of(views)
        assert (len(view.entries), view.connected, view.revision, len(view.changed)) == (0, False, 0, 0)
        waiting = asyncio.create_task(next_of(views))
        store.mend()
        view = await waiting
        assert (set(view.entries), view.connected, set(view.changed)) == ({"/a"}, True, {"/a"})


async def test_a_store_that_is_lost_and_comes_back() -> None:
    other = MemoryStore()
    store = MemoryStore(beside=other)
    for key in ("/same", "/changed", "/gone"):
        await other.put(key, b"1")
    async with aclosing(quick(store)) as views:
        before = await next_of(views)
        store.cut()
        lost = await next_of(views)
        assert (set(lost.entries), lost.connected, len(lost.changed)) == (set(before.entries), False, 0)
        assert lost.revision == before.revision
        assert lost.since >= before.since
        await other.put("/changed", b"2")
        await other.put("/new", b"2")
        await other.delete("/gone")
        store.mend()
        back = await next_of(views)
        assert back.connected
        assert back.changed == {"/changed", "/new", "/gone"}
        assert back.entries == (await other.list("")).entries


async def test_a_consumer_that_is_too_slow_misses_nothing() -> None:
    store = MemoryStore(history=4)
    async with aclosing(quick(store)) as views:
        await next_of(views)
        for turn in range(20):
            await store.put(f"/{turn % 7}", str(turn).encode())
        assert not (await next_of(views)).connected
        view = await next_of(views)
        assert view.entries == (await store.list("")).entries
        assert view.changed == set(view.entries)


async def test_changes_settle_in_one_view() -> None:
    store = MemoryStore()
    async with aclosing(follow(store, settle_s=0.2)) as views:
        await next_of(views)
        waiting = asyncio.create_task(next_of(views))
        for turn in range(50):
            await store.put(f"/{turn}", b"1")
            await asyncio.sleep(0)
        view = await waiting
        assert len(view.changed) == 50


async def test_constant_change_still_gives_views() -> None:
    store = MemoryStore()

    async def change() -> None:
        while True:
            await store.put("/a", b"1")
            await asyncio.sleep(0.001)

    changing = asyncio.create_task(change())
    async with following(follow(store, settle_s=0.02)) as follower:
        await until("some views", lambda: follower.views > 5)
    changing.cancel()
    await asyncio.gather(changing, return_exceptions=True)


async def test_a_loss_while_changes_settle_keeps_them() -> None:
    other = MemoryStore()
    store = MemoryStore(beside=other)
    async with aclosing(quick(store, settle_s=WITHIN_S)) as views:
        await next_of(views)
        waiting = asyncio.create_task(next_of(views))
        await other.put("/a", b"1")
        await until("the change to be taken", lambda: len(store._data.watchers) == 1)
        await asyncio.sleep(0)
        store.cut()
        view = await waiting
        seen = [view] if not view.connected else [view, await next_of(views)]
        assert not seen[-1].connected
        assert seen[0].connected is False or seen[0].changed == {"/a"}


async def test_a_closed_store_ends_it() -> None:
    store = MemoryStore()
    async with aclosing(follow(store)) as views:
        await next_of(views)
        await store.close()
        with pytest.raises(StoreClosedError):
            await next_of(views)


async def test_views_of_one_store_stand_beside_each_other() -> None:
    store = MemoryStore()
    async with following(follow(store, "/a/")) as one, following(follow(store, "/b/")) as two:
        await until("both to be there", lambda: one.views == two.views == 1)
        await store.put("/a/1", b"1")
        await until("the change", lambda: one.views == 2)
        assert two.views == 1


@pytest.mark.parametrize("settle_s", [0.0, 0.05])
async def test_whatever_becomes_of_etcd_the_view_is_the_list(
    etcd: Etcd, open_etcd: OpenEtcd, monkeypatch: pytest.MonkeyPatch, settle_s: float
) -> None:
    """Random writes while etcd is killed, frozen and restarted: in the end the view has all of them."""
    monkeypatch.setattr(client, "PROBE_S", 0.1)
    reader, writers = open_etcd(at=etcd, timeout_s=0.5), [open_etcd(at=etcd, timeout_s=0.5) for _ in range(2)]
    done = asyncio.Event()
    writes = 0

    async def write(number: int, store: Store) -> None:
        nonlocal writes
        dice = random.Random(number)
        while not done.is_set():
            key = f"/m/{dice.randrange(20)}"
            try:
                await (store.delete(key) if dice.random() < 0.3 else store.put(key, str(writes).encode()))
                writes += 1
            except StoreError:
                await asyncio.sleep(0.02)

    async def progress(follower: Follower, losses: int) -> None:
        """The loss was seen, and its end; and writes go on."""
        await until("the loss", lambda: follower.losses >= losses)
        await until("its end", lambda: follower.view is not None and follower.view.connected)
        start = writes
        await until("writes", lambda: writes > start + 20)

    async with following(quick(reader, "/m/", settle_s=settle_s)) as follower:
        writing = asyncio.gather(*(write(number, store) for number, store in enumerate(writers)))
        await progress(follower, 0)
        for losses, end in enumerate((etcd.kill, etcd.stop), 1):
            await asyncio.to_thread(end)
            await asyncio.to_thread(etcd.start)
            await progress(follower, losses)
        etcd.freeze()
        await until("the silence to be noticed", lambda: follower.view is not None and not follower.view.connected)
        etcd.thaw()
        await progress(follower, 3)
        done.set()
        await asyncio.wait_for(writing, WITHIN_S)
        listing = await reader.list("/m/")
        await until("the view to be the list", lambda: follower.has(listing.entries, 0))
