"""What the store is to the process that has it."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from contextlib import aclosing

import pytest
import uvloop
from tests.fleet.conftest import OpenEtcd
from tests.fleet.etcd import Etcd
from tests.fleet.test_etcd import gone
from tests.fleet.test_store import lose, seen
from tests.gateway.wait import until

from nebula_router.fleet.etcd import EtcdStore, leases
from nebula_router.fleet.open import open_store
from nebula_router.fleet.store import StoreClosedError

pytestmark = pytest.mark.anyio

WITHIN_S = 20.0
TTL_S = 2.0


def program(etcd: Etcd, body: str, run: str = "asyncio.run") -> list[str]:
    """The flags for a Python that runs the body with a store."""
    script = f"""
import asyncio, uvloop
from nebula_router.fleet.etcd import EtcdStore
from nebula_router.fleet.settings import StoreSettings
store = EtcdStore(StoreSettings(etcd_endpoints=("{etcd.url}",)))
async def main():
    await store.put("/program", b"", {TTL_S})
{body}
{run}(main())
"""
    return ["-W", "error", "-c", script]


def ends_in_silence(*flags: str) -> None:
    done = subprocess.run([sys.executable, *flags], capture_output=True, timeout=WITHIN_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def test_keys_of_a_process_that_was_killed_go(shared_etcd: Etcd, open_etcd: OpenEtcd) -> None:
    waits = '    print("put", flush=True)\n    await asyncio.Event().wait()'
    child = await asyncio.create_subprocess_exec(sys.executable, *program(shared_etcd, waits), stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), WITHIN_S) == b"put\n"
    store = open_etcd()
    assert not await gone(store, "/program")
    child.kill()
    await child.wait()
    await until("its key to go", lambda: gone(store, "/program"))


def test_a_program_that_forgets_to_close_ends_in_silence(shared_etcd: Etcd) -> None:
    ends_in_silence("-X", "dev", *program(shared_etcd, '    await anext(store.watch("/", 0))'))


def test_a_watch_that_is_left_just_before_the_end_makes_no_noise(shared_etcd: Etcd) -> None:
    leaves = """
    for _ in range(20):
        watch = store.watch("/", 0)
        waiting = asyncio.ensure_future(anext(watch))
        await store.get("/program")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await store.close()
    await store.close()
"""
    ends_in_silence("-X", "dev", *program(shared_etcd, leaves))


def test_a_process_that_starts_others_under_uvloop_hears_nothing_of_it(shared_etcd: Etcd) -> None:
    starts = f"""
    for _ in range(3):
        child = await asyncio.create_subprocess_exec("true")
        assert await child.wait() == 0
        await store.put("/program", b"", {TTL_S})
    await store.close()
"""
    ends_in_silence(*program(shared_etcd, starts, "uvloop.run"))


def test_protobuf_stays_as_it_is() -> None:
    """Nothing is forced upon other users of protobuf or gRPC in the process."""
    script = """
import os
from google.protobuf.internal import api_implementation
before, environment = api_implementation.Type(), dict(os.environ)
import nebula_router.fleet.etcd
from nebula_router.fleet.etcd.rpc import message
message("PutRequest")(key=b"/")
assert api_implementation.Type() == before
assert os.environ == environment
"""
    ends_in_silence("-W", "error", "-c", script)


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


async def test_loops_of_both_kinds_beside_each_other(shared_etcd: Etcd) -> None:
    """Several stores on several event loops at once, opened from the settings as a daemon does."""
    outcomes: list[int] = []

    async def work() -> None:
        store = open_store(shared_etcd.settings(etcd_prefix="/loops"))
        revision = await store.put("/a", b"")
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
