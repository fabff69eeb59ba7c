"""What every backend of the store promises: one suite for all of them."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from tests.fleet.conftest import Clients
from tests.gateway.wait import until

from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.store import Change, Store, StoreClosedError, WatchLostError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
TTL_S = 2.0
"""The shortest that etcd grants."""
FOREIGN = ("", "a", "a/b")


async def lose(client: Store) -> None:
    """What the death of the client's process is to the store."""
    if isinstance(client, MemoryStore):
        client.cut()
    elif isinstance(client, EtcdStore) and client._thread is not None:
        client._thread.kill()
        client._closed = True


async def seen(watch: AsyncGenerator[Sequence[Change], None], count: int) -> list[Change]:
    """The next changes, at least so many."""
    changes: list[Change] = []
    while len(changes) < count:
        changes += await asyncio.wait_for(anext(watch), WITHIN_S)
    return changes


async def test_what_was_put_is_read_and_what_was_deleted_is_not(clients: Clients) -> None:
    store, other = clients(), clients()
    assert await store.get("/a") is None
    for value in (b"", b"\x00\xff", b"1"):
        revision = await store.put("/a", value)
        entry = await other.get("/a")
        assert entry == ("/a", value, revision)
    assert await other.delete("/a") is True
    assert await store.get("/a") is None
    assert await store.delete("/a") is False


async def test_keys_are_any_text_after_a_slash(clients: Clients) -> None:
    store = clients()
    keys = ["/", "/a b", "/ä/ö", "/\U0010ffff", "/a/"]
    for key in keys:
        await store.put(key, key.encode())
    listing = await store.list("")
    assert {key: entry.value for key, entry in listing.entries.items()} == {key: key.encode() for key in keys}
    assert list((await store.list("/ä")).entries) == ["/ä/ö"]
    assert list((await store.list("/\U0010ffff")).entries) == ["/\U0010ffff"]


@pytest.mark.parametrize("key", FOREIGN)
async def test_what_is_no_key_is_refused(clients: Clients, key: str) -> None:
    store = clients()
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.get(key),
        lambda: store.put(key, b""),
        lambda: store.delete(key),
        lambda: store.compare_and_swap(key, 0, b""),
    ]
    if key:
        asked += [lambda: store.list(key), lambda: anext(store.watch(key, 0))]
    for ask in asked:
        with pytest.raises(ValueError, match="begins with '/'"):
            await ask()


async def test_every_change_raises_the_revision(clients: Clients) -> None:
    store = clients()
    first = await store.put("/a", b"1")
    second = await store.put("/b", b"1")
    third = await store.put("/a", b"1")
    assert 0 < first < second < third
    await store.delete("/b")
    listing = await store.list("/")
    assert listing.revision > third
    assert listing.entries["/a"].revision == third


async def test_a_list_has_all_under_its_prefix_and_nothing_else(clients: Clients) -> None:
    store = clients()
    for key in ("/a/1", "/a/2", "/ab", "/b/1"):
        await store.put(key, key.encode())
    assert list((await store.list("/a/")).entries) == ["/a/1", "/a/2"]
    assert list((await store.list("/a")).entries) == ["/a/1", "/a/2", "/ab"]
    assert (
        list((await store.list("")).entries) == list((await store.list("/")).entries) == ["/a/1", "/a/2", "/ab", "/b/1"]
    )
    assert (await store.list("/c")).entries == {}


async def test_a_swap_needs_the_revision(clients: Clients) -> None:
    store = clients()
    first = await store.compare_and_swap("/a", 0, b"1")
    assert first is not None
    assert await store.compare_and_swap("/a", 0, b"2") is None
    assert await store.compare_and_swap("/a", first - 1, b"2") is None
    second = await store.compare_and_swap("/a", first, b"2")
    assert second is not None
    assert second > first
    assert await store.get("/a") == ("/a", b"2", second)


async def test_a_swap_can_remove(clients: Clients) -> None:
    store = clients()
    first = await store.put("/a", b"1")
    assert await store.compare_and_swap("/a", 0, None) is None
    assert await store.compare_and_swap("/a", first + 1, None) is None
    gone = await store.compare_and_swap("/a", first, None)
    assert gone is not None
    assert gone > first
    assert await store.get("/a") is None
    assert await store.compare_and_swap("/a", first, b"") is None
    # What shall be gone and is gone already is as wanted.
    assert await store.compare_and_swap("/a", 0, None) == (await store.list("")).revision


async def test_of_many_who_swap_one_wins_each_revision(clients: Clients) -> None:
    rivals, rounds = 6, 8
    won: list[int] = []

    async def count(store: Store) -> None:
        done = 0
        while done < rounds:
            entry = await store.get("/count")
            revision, value = (0, 0) if entry is None else (entry.revision, int(entry.value))
            if await store.compare_and_swap("/count", revision, str(value + 1).encode()):
                won.append(revision)
                done += 1

    await asyncio.wait_for(asyncio.gather(*(count(clients()) for _ in range(rivals))), WITHIN_S)
    entry = await clients().get("/count")
    assert entry is not None
    assert int(entry.value) == rivals * rounds
    assert len(set(won)) == rivals * rounds


async def test_a_watch_tells_every_change_in_order(clients: Clients) -> None:
    """Whoever replays a watch from a revision has what a list has, at every revision between."""
    writers, writes = 4, 40
    reader = clients()
    await reader.put("/w/0", b"before")
    start = await reader.list("/w/")

    async def write(number: int, store: Store) -> None:
        dice = random.Random(number)
        for turn in range(writes):
            key = f"/w/{dice.randrange(6)}"
            if dice.random() < 0.3:
                await store.delete(key)
            else:
                await store.put(key, f"{number} {turn}".encode())
            await store.put(f"/other/{number}", b"")

    async with aclosing(reader.watch("/w/", start.revision)) as watch:
        writing = asyncio.gather(*(write(number, clients()) for number in range(writers)))
        first = await seen(watch, 20)
        await asyncio.wait_for(writing, WITHIN_S)
        last = await reader.put("/w/end", b"")
        entries = dict(start.entries)
        changes = first
        while changes[-1].revision < last:
            changes += await seen(watch, 1)
    for change in changes:
        assert change.key.startswith("/w/")
        if change.entry is None:
            assert entries.pop(change.key), "a key is removed once"
        else:
            assert change.entry.revision == change.revision
            entries[change.key] = change.entry
    revisions = [change.revision for change in changes]
    assert revisions == sorted(set(revisions))
    assert entries == (await reader.list("/w/")).entries
    # All of it is told again to whoever asks for it.
    async with aclosing(reader.watch("/w/", start.revision)) as again:
        assert await seen(again, len(changes)) == changes


async def test_a_watch_begins_after_its_revision(clients: Clients) -> None:
    store = clients()
    first = await store.put("/a", b"1")
    second = await store.put("/a", b"2")
    async with aclosing(store.watch("/a", first)) as watch:
        assert await seen(watch, 1) == [("/a", ("/a", b"2", second), second)]
        await store.delete("/a")
        (gone,) = await seen(watch, 1)
        assert gone[:2] == ("/a", None)


async def test_a_revision_that_is_not_yet_belongs_to_other_data(clients: Clients) -> None:
    store = clients()
    revision = await store.put("/a", b"")
    with pytest.raises(WatchLostError, match=f"before {revision + 1_000_000}"):
        await anext(store.watch("/", revision + 1_000_000))


async def test_a_watch_that_waits_can_be_ended(clients: Clients) -> None:
    store = clients()
    revision = await store.put("/a", b"")
    waiting = [asyncio.create_task(seen(store.watch("/", revision), 1)) for _ in range(3)]
    told = asyncio.create_task(seen(store.watch("/", revision - 1), 1))
    assert len(await told) == 1
    for task in waiting:
        task.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in ended)
    assert await store.get("/a") is not None


async def test_a_key_with_a_ttl_lives_as_long_as_its_store(clients: Clients) -> None:
    """One that died is gone after the ttl; one that lives keeps its keys beyond that; one that closes, at once."""
    reader, lives, dies = clients(), clients(), clients()
    await lives.put("/lives", b"", TTL_S)
    revision = await dies.put("/dies", b"", TTL_S)
    await dies.put("/stays", b"")
    assert await lives.compare_and_swap("/swapped", 0, b"", TTL_S)
    await lose(dies)
    assert await reader.get("/dies") is not None
    async with aclosing(reader.watch("/dies", revision)) as watch:
        (gone,) = await seen(watch, 1)
        assert gone[:2] == ("/dies", None)
    assert set((await reader.list("")).entries) == {"/lives", "/stays", "/swapped"}
    await lives.close()
    assert set((await reader.list("")).entries) == {"/stays"}


async def test_a_key_belongs_to_who_put_it_last(clients: Clients) -> None:
    first, second = clients(), clients()
    for key in ("/kept", "/moved", "/swapped", "/deleted"):
        await first.put(key, b"1", TTL_S)
    await second.put("/kept", b"2")
    await second.put("/moved", b"2", TTL_S)
    await second.delete("/deleted")
    await second.put("/deleted", b"2")
    entry = await second.get("/swapped")
    assert entry is not None
    assert await second.compare_and_swap("/swapped", entry.revision, b"2")
    await first.close()
    assert set((await second.list("")).entries) == {"/kept", "/moved", "/swapped", "/deleted"}
    await second.close()
    assert set((await clients().list("")).entries) == {"/kept", "/swapped", "/deleted"}


async def test_a_closed_store_does_nothing_more(clients: Clients) -> None:
    store, other = clients(), clients()
    revision = await store.put("/a", b"")
    waiting = asyncio.create_task(seen(store.watch("/", revision), 1))
    begun = asyncio.create_task(seen(store.watch("/", revision - 1), 1))
    await begun
    await store.close()
    await store.close()
    with pytest.raises(StoreClosedError):
        await waiting
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.get("/a"),
        lambda: store.put("/a", b"2"),
        lambda: store.put("/a", b"2", TTL_S),
        lambda: store.delete("/a"),
        lambda: store.list(""),
        lambda: store.compare_and_swap("/a", revision, b"2"),
        lambda: anext(store.watch("/", 0)),
    ]
    for ask in asked:
        with pytest.raises(StoreClosedError):
            await ask()
    assert await other.get("/a") == ("/a", b"", revision)


async def test_a_store_that_was_never_asked_can_be_closed(clients: Clients) -> None:
    await clients().close()


@pytest.mark.parametrize("seed", range(3))
async def test_it_is_a_dictionary(clients: Clients, seed: int) -> None:
    """Any operations of any client have the outcome that they have on a dictionary."""
    dice = random.Random(seed)
    stores = [clients() for _ in range(3)]
    model: dict[str, tuple[bytes, int]] = {}
    for turn in range(120):
        store, key, value = dice.choice(stores), f"/{dice.randrange(4)}", str(turn).encode()
        held = model.get(key)
        match dice.randrange(5):
            case 0:
                model[key] = (value, await store.put(key, value))
            case 1:
                assert await store.delete(key) is (model.pop(key, None) is not None)
            case 2:
                entry = await store.get(key)
                assert (None if entry is None else entry[1:]) == held
            case 3:
                listing = await store.list("")
                assert {name: entry[1:] for name, entry in listing.entries.items()} == model
            case _:
                expected = dice.choice([0, 1, *(revision for _, revision in model.values())])
                swapped = await store.compare_and_swap(key, expected, dice.choice([value, value]))
                assert (swapped is not None) is (expected == (0 if held is None else held[1]))
                if swapped is not None:
                    model[key] = ((await stores[0].get(key)) or ("", b"", 0))[1:]


async def test_memory_forgets_old_changes() -> None:
    store = MemoryStore(history=3)
    first = await store.put("/a", b"0")
    async with aclosing(store.watch("/", first - 1)) as watch:
        assert len(await seen(watch, 1)) == 1
        for turn in range(3):
            await store.put("/a", str(turn).encode())
        assert len(await seen(watch, 3)) == 3
        for turn in range(4):
            await store.put("/a", str(turn).encode())
        with pytest.raises(WatchLostError, match="forgotten"):
            await anext(watch)


async def test_memory_out_of_touch_and_back() -> None:
    near = MemoryStore()
    far = MemoryStore(beside=near)
    await far.put("/kept", b"", 60.0)
    await far.put("/lost", b"", 0.01)
    far.cut()
    await until("the key to go", lambda: "/lost" not in near._data.entries)
    far.mend()
    assert set((await far.list("")).entries) == {"/kept"}
    await far.put("/lost", b"", 0.01)
    assert await near.get("/lost") is not None
