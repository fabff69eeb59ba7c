"""What etcd and the network can do to the store."""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import aclosing

import pytest
import uvloop
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd, free_port
from tests.fleet.test_store import lose, seen
from tests.gateway.wait import until

from nebula_router.fleet.etcd import EtcdStore, client, leases
from nebula_router.fleet.open import open_store
from nebula_router.fleet.store import StoreClosedError, StoreDownError, StoreError, WatchLostError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
TTL_S = 2.0
QUICK_S = 0.5
MakeEtcd = Callable[..., Etcd]


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


async def test_keys_of_a_process_that_was_killed_go(shared_etcd: Etcd, open_etcd: OpenEtcd) -> None:
    script = f"""
import asyncio
from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.settings import StoreSettings
async def main():
    await EtcdStore(StoreSettings(etcd_endpoints=("{shared_etcd.url}",))).put("/killed", b"", {TTL_S})
    print("put", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), WITHIN_S) == b"put\n"
    store = open_etcd()
    assert not await gone(store, "/killed")
    child.kill()
    await child.wait()
    await until("its key to go", lambda: gone(store, "/killed"))


async def test_a_loop_that_hangs_shortly_keeps_its_keys_and_one_that_hangs_long_does_not(
    shared_etcd: Etcd, open_etcd: OpenEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, dies = open_etcd(etcd_prefix="/hang"), open_etcd(etcd_prefix="/hang")

    def hang_until_gone(key: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while shared_etcd.ctl("get", f"/hang{key}"):
            assert time.monotonic() < deadline

    await hangs.put("/hangs", b"1", TTL_S)
    await dies.put("/dies", b"1", TTL_S)
    await lose(dies)
    hang_until_gone("/dies")
    assert shared_etcd.ctl("get", "/hang/hangs")
    monkeypatch.setattr(leases, "HANG_S", 0.0)
    hang_until_gone("/hangs")
    monkeypatch.undo()
    await hangs.put("/hangs", b"2", TTL_S)
    assert shared_etcd.ctl("get", "/hang/hangs")


async def test_prefixes_are_worlds_of_their_own(shared_etcd: Etcd, open_etcd: OpenEtcd) -> None:
    one, two, bare = open_etcd(etcd_prefix="/w"), open_etcd(etcd_prefix="/w2"), open_etcd(etcd_prefix="")
    first = await one.put("/a", b"1")
    await two.put("/a", b"2")
    assert shared_etcd.ctl("get", "--prefix", "/w").split() == ["/w/a", "1", "/w2/a", "2"]
    assert list((await one.list("")).entries) == ["/a"]
    assert await bare.get("/w2/a") is not None
    async with aclosing(one.watch("", first)) as watch:
        await two.delete("/a")
        await one.delete("/a")
        assert [change.key for change in await seen(watch, 1)] == ["/a"]


async def test_a_foreign_key_that_is_no_text_hurts_nobody(shared_etcd: Etcd, open_etcd: OpenEtcd) -> None:
    store = open_etcd(etcd_prefix="/foreign")
    shared_etcd.ctl("put", b"/foreign/\xff\xfe".decode(errors="surrogateescape"), "1")
    (key,) = (await store.list("")).entries
    assert await store.delete(key)


async def test_endpoints_that_are_dead_or_silent_are_passed_over(etcd: Etcd, open_etcd: OpenEtcd) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        dead = f"http://127.0.0.1:{free_port()}"
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = open_etcd(at=etcd, etcd_endpoints=[dead, mute, etcd.url], timeout_s=3.0)
        assert await store.put("/a", b"1")
        await store.close()
        lost = open_etcd(etcd_endpoints=[dead, mute], timeout_s=0.4)
        with pytest.raises(StoreDownError) as error:
            await lost.get("/a")
        assert dead in str(error.value)
        assert mute in str(error.value)


async def test_a_fleet_outlives_one_member_of_etcd(
    make_etcd: MakeEtcd, open_etcd: OpenEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PROBE_S", 0.1)
    members = [make_etcd() for _ in range(3)]
    cluster = ",".join(f"m{i}={member.peer}" for i, member in enumerate(members))
    for i, member in enumerate(members):
        member.extra = ("--name", f"m{i}", "--initial-cluster", cluster)
        member.launch()
    for member in members:
        member.await_ready()
    urls = [member.url for member in members]
    stores = [open_etcd(etcd_endpoints=urls[i:] + urls[:i], etcd_prefix="/cluster", timeout_s=1.0) for i in range(3)]
    revision = await stores[0].put("/a", b"1", 10.0)
    watching = asyncio.create_task(seen(stores[0].watch("/", revision), 1))
    assert [await store.get("/a") for store in stores] == [("/a", b"1", revision)] * 3
    members[0].freeze()
    with pytest.raises(WatchLostError):
        await watching

    async def put() -> bool:
        try:
            await asyncio.gather(*(store.put("/a", b"2", 10.0) for store in stores))
        except StoreDownError:
            return False
        return True

    await until("all to be served by the others", put)


async def test_who_asks_is_known_by_name_and_password(
    etcd: Etcd, open_etcd: OpenEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="nebula_router")
    admin, password = "root:rootpw", "sesame-42"
    etcd.ctl("user", "add", admin)
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("user", "add", f"nebula:{password}")
    etcd.ctl("role", "add", "nebula")
    etcd.ctl("role", "grant-permission", "nebula", "--prefix=true", "readwrite", "/nebula/")
    etcd.ctl("user", "grant-role", "nebula", "nebula")
    etcd.ctl("auth", "enable")
    login = {"etcd_user": "nebula", "etcd_password": password}

    store = open_etcd(at=etcd, **login)
    revision = await store.put("/a", b"1", TTL_S)
    async with aclosing(store.watch("/", revision - 1)) as watch:
        assert len(await seen(watch, 1)) == 1
        # A new password, though it be the same, ends all tokens of the user.
        etcd.ctl("user", "passwd", "nebula", "--interactive=false", user=admin, given=password)
        assert await store.get("/a") == ("/a", b"1", revision)
        await store.put("/a", b"2", TTL_S)
        assert len(await seen(watch, 1)) == 1
    texts = []
    for wrong in ({}, {**login, "etcd_password": "guess-43"}, {**login, "etcd_prefix": "/secret"}):
        with pytest.raises(StoreError) as error:
            await open_etcd(at=etcd, **wrong).get("/a")
        assert not isinstance(error.value, StoreDownError)
        texts.append(str(error.value))
    assert "it may want etcd_user and etcd_password" in texts[0]
    assert "check etcd_password" in texts[1]
    assert "user 'nebula' needs a role with the keys under etcd_prefix" in texts[2]
    etcd.stop()
    etcd.start()
    await until("the store to answer", lambda: answers(store))
    for secret in (password, "guess-43"):
        assert secret not in caplog.text + "".join(texts)


async def test_tls_on_both_sides(
    make_etcd: MakeEtcd, open_etcd: OpenEtcd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=WITHIN_S)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("etcd", "store"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    files = {part: str(folder / part) for part in ("ca.pem", "store.pem", "store.key", "etcd.pem", "etcd.key")}
    etcd = make_etcd(
        *("--cert-file", files["etcd.pem"], "--key-file", files["etcd.key"]),
        *("--client-cert-auth", "--trusted-ca-file", files["ca.pem"]),
        scheme="https",
    ).start()
    ca = {"etcd_ca_file": files["ca.pem"]}
    own = {"etcd_cert_file": files["store.pem"], "etcd_key_file": files["store.key"]}
    assert await open_etcd(at=etcd, **ca, **own).put("/a", b"1", TTL_S)
    for lacking in (ca, own):
        with pytest.raises(StoreDownError, match=etcd.url):
            await open_etcd(at=etcd, **lacking, timeout_s=1.0).get("/a")
    with pytest.raises(StoreError, match=r"etcd_key_file: .*nowhere.* cannot be read: No such file"):
        await open_etcd(at=etcd, **ca, **own | {"etcd_key_file": str(folder / "nowhere")}).get("/a")


async def test_loops_of_both_kinds_beside_each_other(shared_etcd: Etcd) -> None:
    """Several stores on several event loops at once, opened from the settings as a daemon does."""
    outcomes: list[int] = []

    async def work() -> None:
        store = open_store(shared_etcd.settings(etcd_prefix="/loops"))
        revision = await store.put("/a", b"", TTL_S)
        async with aclosing(store.watch("/", revision - 1)) as watch:
            await seen(watch, 1)
        outcomes.append(len((await store.list("")).entries))
        await store.close()

    threads = [threading.Thread(target=lambda run=run: run(work())) for run in (asyncio.run, uvloop.run) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, WITHIN_S)
    assert outcomes == [1] * len(threads)


async def test_nothing_is_left_of_a_store(shared_etcd: Etcd) -> None:
    def threads() -> list[str]:
        gc.collect()
        return [thread.name for thread in threading.enumerate() if "nebula-store" in thread.name]

    before = len(threads())
    closed, dropped = EtcdStore(shared_etcd.settings()), EtcdStore(shared_etcd.settings())
    for store in (closed, dropped):
        await store.put("/left", b"")
        await anext(store.watch("/left", 0))
    assert len(threads()) == before + 2
    await closed.close()
    assert len(threads()) == before + 1
    del store, dropped
    await until("the thread of the one that was dropped to end", lambda: len(threads()) == before)


async def test_another_process_cannot_use_it(open_etcd: OpenEtcd) -> None:
    store = open_etcd()
    await store.get("/a")
    own, store._pid = store._pid, 1
    with pytest.raises(StoreClosedError, match="another process"):
        await store.get("/a")
    store._pid = own


def test_a_program_that_forgets_to_close_ends_in_silence(shared_etcd: Etcd) -> None:
    script = f"""
import asyncio
from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.settings import StoreSettings
store = EtcdStore(StoreSettings(etcd_endpoints=("{shared_etcd.url}",)))
async def main():
    await store.put("/forgotten", b"", 60)
    await anext(store.watch("/", 0))
asyncio.run(main())
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=WITHIN_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_protobuf_stays_as_it_is() -> None:
    """Nothing is forced upon other users of protobuf in the process."""
    script = """
import os
from google.protobuf.internal import api_implementation
before = api_implementation.Type()
import nebula_router.fleet.etcd
from nebula_router.fleet.etcd.rpc import message
message("PutRequest")(key=b"/")
assert api_implementation.Type() == before
assert not any("PROTOCOL_BUFFERS" in name for name in os.environ)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=WITHIN_S)
