"""What etcd and the network can do to the store."""

import asyncio
import time
from contextlib import aclosing

import pytest
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd
from tests.fleet.test_store import seen
from tests.gateway.wait import until

from nebula_router.fleet.etcd import EtcdStore, client, feed
from nebula_router.fleet.store import StoreClosedError, StoreDownError, WatchLostError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
TTL_S = 2.0
QUICK_S = 0.5


async def answers(store: EtcdStore) -> bool:
    try:
        await store.list("")
    except StoreDownError:
        return False
    return True


async def gone(store: EtcdStore, key: str) -> bool:
    return await store.get(key) is None


async def test_an_etcd_that_dies_is_told_and_found_again(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(at=etcd)
    revision = await store.put("/a", b"1")
    watching = asyncio.create_task(seen(store.watch("/", revision), 1))
    assert await store.get("/a") is not None
    etcd.kill()
    with pytest.raises(WatchLostError, match=etcd.url):
        await watching
    with pytest.raises(StoreDownError, match=rf"etcd at {etcd.url} .* is it running there\? --etcd-endpoint"):
        await store.put("/a", b"2")
    with pytest.raises(WatchLostError, match=etcd.url):
        await seen(store.watch("/", revision), 1)
    etcd.start()
    await until("the store to answer", lambda: answers(store))
    assert await store.get("/a") == ("/a", b"1", revision)


async def test_an_etcd_that_hangs_is_noticed(etcd: Etcd, open_etcd: OpenEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PROBE_S", 0.1)
    store, other = open_etcd(at=etcd, timeout_s=QUICK_S), open_etcd(at=etcd, timeout_s=QUICK_S)
    revision = await store.put("/a", b"1")
    async with aclosing(store.watch("/", revision - 1)) as watch:
        await seen(watch, 1)
        await other.get("/a")
        etcd.freeze()
        with pytest.raises(WatchLostError, match="no answer within"):
            await seen(watch, 1)
    asked = [other.get("/a"), other.put("/a", b"2"), other.list(""), other.delete("/a")]
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, StoreDownError)
    etcd.thaw()
    await until("the store to answer", lambda: answers(store))
    await until("the other to answer", lambda: answers(other))


async def test_one_slow_answer_breaks_no_watch(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    """A connection is given up for its silence, not for one answer that is late beside others."""
    store = open_etcd(at=etcd, timeout_s=QUICK_S)
    revision = await store.put("/slow", b"1")
    async with aclosing(store.watch("/slow", revision - 1)) as watch:
        await seen(watch, 1)
        link = store._client._links._link
        assert link is not None
        link._heard_s = time.monotonic() + WITHIN_S
        etcd.freeze()
        with pytest.raises(StoreDownError, match="no answer within"):
            await store.get("/slow")
        etcd.thaw()
        await store.put("/slow", b"2")
        assert len(await seen(watch, 1)) == 1
        assert link is store._client._links._link


async def test_a_restart_of_etcd_loses_nothing(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(at=etcd)
    await store.put("/kept", b"1")
    await store.put("/leased", b"1", 10.0)
    etcd.stop()
    etcd.start()
    await until("the store to answer", lambda: answers(store))
    assert set((await store.list("")).entries) == {"/kept", "/leased"}
    await store.put("/leased", b"2", 10.0)
    await store.close()
    assert set((await open_etcd(at=etcd).list("")).entries) == {"/kept"}


async def test_a_store_that_hangs_can_be_closed(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(at=etcd, timeout_s=QUICK_S)
    revision = await store.put("/a", b"1", TTL_S)
    etcd.freeze()
    asked = (seen(store.watch("/", revision), 1), store.get("/a"))
    waiting = [asyncio.create_task(ask) for ask in asked]
    await asyncio.sleep(0)
    await asyncio.wait_for(store.close(), WITHIN_S)
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, StoreClosedError)


async def test_a_consumer_that_lags_gets_every_change(open_etcd: OpenEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_BATCHES", 4)
    store = open_etcd(etcd_prefix="/lag")
    before = await store.put("/a", b"")
    async with aclosing(store.watch("/", before)) as watch:
        revisions = [await store.put("/a", b"")]
        changes = await seen(watch, 1)
        for _ in range(5):
            revisions += [await store.put("/a", b"") for _ in range(20)]
            changes += await seen(watch, 1)
        changes += await seen(watch, len(revisions) - len(changes))
    assert [change.revision for change in changes] == revisions


async def test_compacted_changes_cannot_be_watched(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(at=etcd)
    first = await store.put("/a", b"1")
    last = [await store.put("/a", b"2") for _ in range(4)][-1]
    async with aclosing(store.watch("/", last - 1)) as watch:
        await seen(watch, 1)
        etcd.ctl("compact", str(last))
        with pytest.raises(WatchLostError, match=f"after revision {first}: those up to {last} are compacted"):
            await seen(store.watch("/", first), 1)
        # One that has them already goes on.
        await store.put("/a", b"3")
        assert len(await seen(watch, 1)) == 1


async def test_a_lease_that_was_lost_is_granted_anew(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(at=etcd)
    for turn in range(2):
        revision = await store.put("/a", b"1", TTL_S)
        for lease in etcd.ctl("lease", "list").split()[3:]:
            etcd.ctl("lease", "revoke", lease)
        assert await gone(store, "/a")
        if turn:
            assert await store.compare_and_swap("/a", revision, b"2", TTL_S) is None
            assert await store.compare_and_swap("/a", 0, b"2", TTL_S)
            continue
        await store.put("/a", b"2", TTL_S)
    assert not await gone(store, "/a")
    await store.close()
    assert await gone(open_etcd(at=etcd), "/a")


async def test_a_lease_that_ended_unnoticed_is_told(
    etcd: Etcd, open_etcd: OpenEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_etcd(at=etcd)
    await store.put("/a", b"1", TTL_S)
    etcd.ctl("lease", "revoke", etcd.ctl("lease", "list").split()[-1])
    await until("the loss to be told", lambda: "its keys are gone until they are put again" in caplog.text)
