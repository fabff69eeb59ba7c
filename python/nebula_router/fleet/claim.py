"""A node's name is one node's: on its machine by a lock, in the fleet by its status in the store."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.records import NodeStatus, RecordError, node_key
from nebula_router.fleet.store import StoreClosedError, StoreDownError, StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from nebula_router.fleet.settings import NodeSettings
    from nebula_router.fleet.store import Store

_RETRY_S: Final = 0.25

_log = logging.getLogger(__name__)


class NodeTakenError(Exception):
    """Another node has this name."""


class Lock:
    """The right to use a state folder; it ends with the process, however that ends."""

    def __init__(self, state: Path) -> None:
        """Take it.

        Raises:
            NodeTakenError: Another node on this machine has it.
            OSError: The folder cannot be written to.
        """
        file = state / "lock"
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            raise NodeTakenError(
                f"another node runs on this machine with the state in {state} (process {pid or 'unknown'}); "
                "--node-id or --state-dir makes this one another"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        self.instance: Final = _instance(state / "instance")
        """Tells this node, over its restarts, from another one that has its name."""

    def release(self) -> None:
        """Let another node have it."""
        os.close(self._fd)


class Claim:
    """The node's status in the store, which only one node can write under one name."""

    def __init__(self, store: Store, settings: NodeSettings, node_id: str, instance: str) -> None:
        self._store = store
        self._settings = settings
        self._node_id = node_id
        self._key = node_key(node_id)
        self._instance = instance
        self._revision = 0
        self.draining = False
        """What somebody wrote into the status."""

    async def take(self, status: NodeStatus) -> None:
        """Write the first status: as soon as the store answers, and the name is free or was this node's own.

        Raises:
            NodeTakenError: Another node has the name, and lives.
        """
        until: float | None = None
        theirs: tuple[int, int] | None = None
        is_said = False
        while True:
            try:
                found = await self._found()
                if found is None or found[1] == self._instance:
                    self._revision = 0 if found is None else found[0]
                    if await self._written(status):
                        return
                elif theirs is not None and found[0] != theirs[0]:
                    raise NodeTakenError(self._taken())
                else:
                    theirs = (found[0], 0)
                    until = until or time.monotonic() + self._settings.lease_s + 2 * self._settings.heartbeat_s
                    if time.monotonic() > until:
                        raise NodeTakenError(self._taken())
            except StoreClosedError:
                raise
            except StoreError as error:
                if not is_said:
                    _log.warning("waiting for the store: %s", error)
                is_said = True
            await asyncio.sleep(_RETRY_S)

    async def write(self, status: NodeStatus) -> None:
        """Write the status anew.

        Raises:
            NodeTakenError: Another node has taken the name, while this one's status was gone.
            StoreError: The store refused, or did not answer.
        """
        if await self._written(status):
            return
        found = await self._found()
        if found is not None and found[1] != self._instance:
            raise NodeTakenError(self._taken())
        # Its lease ended while the store was away, an answer was lost, or somebody wrote into it.
        self._revision = 0 if found is None else found[0]
        if not await self._written(status.model_copy(update={"draining": self.draining})):
            raise StoreDownError(f"{self._key} changes faster than it can be written")

    async def withdraw(self) -> None:
        """Remove the status."""
        with suppress(StoreError):
            await self._store.compare_and_swap(self._key, self._revision, None)

    async def _written(self, status: NodeStatus) -> bool:
        own = NodeStatus.model_validate({**status.model_dump(), "instance": self._instance})
        done = await self._store.compare_and_swap(self._key, self._revision, own.stored(), self._settings.lease_s)
        if done is not None:
            self._revision = done
        return done is not None

    async def _found(self) -> tuple[int, str | None] | None:
        """Revision and instance of what is there."""
        entry = await self._store.get(self._key)
        if entry is None:
            return None
        try:
            status = NodeStatus.parsed(entry.value, self._key)
        except RecordError as error:
            _log.warning("overwritten: %s", error)
            return entry.revision, self._instance
        self.draining = status.draining
        return entry.revision, (status.model_extra or {}).get("instance")

    def _taken(self) -> str:
        return (
            f"another node has the name {self._node_id!r} and lives: {self._key} is written by it; --node-id gives "
            "this one another name"
        )


def _instance(file: Path) -> str:
    try:
        found = file.read_text().strip()
    except FileNotFoundError:
        found = ""
    if not found:
        found = uuid.uuid4().hex
        file.write_text(f"{found}\n")
    return found
