"""The store's operations in etcd."""

from __future__ import annotations

import asyncio
import os
import weakref
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nebula_router.fleet.etcd.client import Client
from nebula_router.fleet.etcd.feed import Feed
from nebula_router.fleet.etcd.leases import Leases
from nebula_router.fleet.etcd.rpc import message
from nebula_router.fleet.etcd.thread import IoThread
from nebula_router.fleet.store import (
    Change,
    Entry,
    Listing,
    StoreClosedError,
    StoreDownError,
    checked_key,
    checked_prefix,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence
    from concurrent.futures import Future

    from nebula_router.fleet.settings import StoreSettings

T = TypeVar("T")

_GRACE_S: Final = 0.25
"""What an operation may take beyond its timeout: the errors that the timeout gives tell more."""
_UNFIT: Final = "surrogateescape"
"""Keys of others may be no text."""


class EtcdStore:
    """A store in etcd, for one event loop of one process. It connects when it is first asked.

    Must be closed; one that is only dropped ends its thread, and its keys with a ttl go after it.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._prefix = settings.etcd_prefix.encode()
        self._timeout_s = settings.timeout_s + _GRACE_S
        self._where = ", ".join(settings.endpoints)
        self._client = Client(settings)
        self._leases = Leases(self._client)
        self._thread: IoThread | None = None
        self._pid = os.getpid()
        self._closed = False
        self._working: set[asyncio.Task[Any]] = set()

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or none."""
        request = message("RangeRequest")(key=self._stored(key))
        answer = await self._run(self._client.ask("Range", request, is_read=True))
        return self._entry(answer.kvs[0]) if answer.kvs else None

    async def put(self, key: str, value: bytes, ttl_s: float | None = None) -> int:
        """Set the value and return the revision; with `ttl_s` the key goes with this object."""
        stored = self._stored(key)

        async def write(lease: int = 0) -> int:
            answer = await self._client.ask("Put", message("PutRequest")(key=stored, value=value, lease=lease))
            return int(answer.header.revision)

        if ttl_s is None:
            return await self._run(write())
        return await self._run(self._leases.use(ttl_s, asyncio.get_running_loop(), write))

    async def delete(self, key: str) -> bool:
        """Remove the key; whether it was there."""
        answer = await self._run(self._client.ask("DeleteRange", message("DeleteRangeRequest")(key=self._stored(key))))
        return bool(answer.deleted)

    async def list(self, prefix: str) -> Listing:
        """Return all keys that begin with `prefix`, at one revision."""
        start = self._stored(prefix, is_prefix=True)
        request = message("RangeRequest")(key=start, range_end=_after(start))
        answer = await self._run(self._client.ask("Range", request, is_read=True))
        entries = map(self._entry, answer.kvs)
        return Listing({entry.key: entry for entry in entries}, answer.header.revision)

    async def compare_and_swap(
        self, key: str, expected_revision: int, value: bytes | None, ttl_s: float | None = None
    ) -> int | None:
        """Set the value, or with none remove the key, if its entry still has the revision; else return none."""
        stored = self._stored(key)

        async def write(lease: int = 0) -> int | None:
            answer = await self._client.ask("Txn", _swap(stored, expected_revision, value, lease))
            return int(answer.header.revision) if answer.succeeded else None

        if ttl_s is None or value is None:
            return await self._run(write())
        return await self._run(self._leases.use(ttl_s, asyncio.get_running_loop(), write))

    async def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """Yield the changes under `prefix` after the revision, in batches.

        A consumer that is slow is never lost for that: what it does not take stays in etcd, until it is compacted.
        """
        start = self._stored(prefix, is_prefix=True)
        request = message("WatchCreateRequest")(key=start, range_end=_after(start), start_revision=after_revision + 1)
        feed: Feed[Change] = Feed()
        pumped = self._begin(feed.pump(self._changes(request, after_revision)), None)
        pumped.add_done_callback(feed.end)
        try:
            while True:
                yield await feed.next()
        finally:
            pumped.cancel()

    async def close(self) -> None:
        """Let go: this object's keys with a ttl are gone, and so is the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None and self._pid == os.getpid():
            try:
                await self._thread.run(self._end())
            finally:
                await self._thread.stop()

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of work on the I/O thread, within the timeout."""
        return await asyncio.wrap_future(self._begin(work, self._timeout_s))

    def _begin(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> Future[T]:
        if self._closed or self._pid != os.getpid():
            work.close()
            why = "it was closed" if self._closed else "another process opened it, of which this one is a fork"
            raise StoreClosedError(f"the store cannot be used: {why}")
        if self._thread is None:
            self._thread = IoThread("nebula-store")
            weakref.finalize(self, self._thread.kill)
        return self._thread.begin(self._bounded(work, timeout_s))

    async def _bounded(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        task = asyncio.ensure_future(work)
        self._working.add(task)
        try:
            return await asyncio.wait_for(task, timeout_s)
        except asyncio.TimeoutError:
            raise StoreDownError(f"etcd at {self._where} does not answer within {self._timeout_s:.2f} s") from None
        except asyncio.CancelledError:
            if not self._closed:
                raise
            raise StoreClosedError("the store was closed") from None
        finally:
            self._working.discard(task)

    async def _end(self) -> None:
        working = tuple(self._working)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await self._leases.close()
        await self._client.close()

    async def _changes(self, request: object, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        async with aclosing(self._client.watch(request, after_revision)) as answers:
            async for events in answers:
                yield [self._change(event) for event in events]

    def _stored(self, key: str, *, is_prefix: bool = False) -> bytes:
        return self._prefix + (checked_prefix(key) if is_prefix else checked_key(key)).encode(errors=_UNFIT)

    def _key(self, stored: bytes) -> str:
        return stored[len(self._prefix) :].decode(errors=_UNFIT)

    def _entry(self, pair: Any) -> Entry:  # noqa: ANN401 - made at run time
        return Entry(self._key(pair.key), pair.value, pair.mod_revision)

    def _change(self, event: Any) -> Change:  # noqa: ANN401 - made at run time
        pair = event.kv
        return Change(self._key(pair.key), None if event.type else self._entry(pair), pair.mod_revision)


def _after(prefix: bytes) -> bytes:
    """The first key behind all that begin so. No text ends with the byte 255, which could not be raised."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def _swap(key: bytes, expected_revision: int, value: bytes | None, lease: int) -> Any:  # noqa: ANN401 - made at run time
    """If the key's revision is as expected (0 where it is missing), put the value or remove the key."""
    compare = message("Compare")
    still = compare(key=key, result=compare.EQUAL, target=compare.MOD, mod_revision=expected_revision)
    if value is None:
        change = message("RequestOp")(request_delete_range=message("DeleteRangeRequest")(key=key))
    else:
        put = message("PutRequest")(key=key, value=value, lease=lease)
        change = message("RequestOp")(request_put=put)
    return message("TxnRequest")(compare=[still], success=[change])
