"""A machine with nodes on it: they share a store, and nothing of them is left when the test ends."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import isawaitable
from pathlib import Path
from typing import Any

from tests.e2e.process import free_port

from nebula_router.fleet.engine import saved
from nebula_router.fleet.engine.process import Process
from nebula_router.fleet.gpu import open_gpus
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.node import Node
from nebula_router.fleet.records import (
    Assignment,
    EndpointInfo,
    EndpointStatus,
    NodeStatus,
    PlacementPlan,
    endpoint_key,
    node_key,
    placement_key,
)
from nebula_router.fleet.settings import NodeSettings
from nebula_router.fleet.waiting import ended

WITHIN_S = 30.0
"""Far above what anything here takes: the machine may be busy with much else."""
STEP_S = 0.02
UID = "tiny-uid"
NAME = "org/tiny"


async def until(what: str, probe: Callable[[], Any | Awaitable[Any]], within_s: float = WITHIN_S) -> Any:
    """What `probe` gives, once that is true.

    Raises:
        TimeoutError: it never was; the text names `what`.
    """
    deadline = time.monotonic() + within_s
    while True:
        is_last = time.monotonic() >= deadline
        value = probe()
        if isawaitable(value):
            value = await value
        if value:
            return value
        if is_last:
            raise TimeoutError(f"{what}: not within {within_s} s")
        await asyncio.sleep(STEP_S)


class Machine:
    """Nodes with their state in one folder, and what the store says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.first_port = free_port()
        self._version = 0

    def settings(self, **own: Any) -> NodeSettings:
        quick = {
            "node_id": "n1",
            "gpus": "fake:2x24GiB",
            "vllm_port": min(self.first_port, 65000),
            "port_count": 16,
            "engine_host": "127.0.0.1",
            "engine": "sim",
            "state_dir": str(self.folder / "state"),
            "heartbeat_s": 0.1,
            "lease_s": 1.0,
            "health_interval_s": 0.1,
            "restart_backoff_s": 0.05,
            "restart_backoff_max_s": 0.2,
            "stop_grace_s": 10.0,
        }
        return NodeSettings.model_validate(quick | own)

    @asynccontextmanager
    async def node(self, store: MemoryStore | None = None, **own: Any) -> AsyncIterator[Node]:
        """A node that runs, for as long as the block lasts. What it failed with is raised."""
        settings = self.settings(**own)
        node = Node(store or self.store, settings, gpus=open_gpus(settings.gpus, None))
        stop = asyncio.Event()
        running = asyncio.create_task(node.run(stop))
        try:
            yield node
            stop.set()
            await asyncio.wait_for(running, WITHIN_S)
        finally:
            await ended([running])

    async def place(self, *assignments: dict[str, Any], uid: str = UID, model: str = NAME, **plan: Any) -> int:
        """Write a placement; its version, one above the last."""
        self._version += 1
        told = tuple(Assignment.model_validate({"replica_id": 0, "node_id": "n1"} | one) for one in assignments)
        record = PlacementPlan(
            model_uid=uid, model_name=model, **({"version": self._version, "assignments": told} | plan)
        )
        await self.store.put(placement_key(uid), record.stored())
        return self._version

    async def endpoint(self, replica: int = 0, uid: str = UID) -> EndpointInfo | None:
        key = endpoint_key(uid, replica)
        entry = await self.store.get(key)
        return None if entry is None else EndpointInfo.parsed(entry.value, key)

    async def status(self, node_id: str = "n1") -> NodeStatus | None:
        key = node_key(node_id)
        entry = await self.store.get(key)
        return None if entry is None else NodeStatus.parsed(entry.value, key)

    async def error(self, replica: int = 0, uid: str = UID) -> str:
        status = await self.status()
        return ((status and status.errors) or {}).get(f"{uid}/{replica}", "")

    async def ready(self, replica: int = 0, uid: str = UID, but: int | None = None, version: int = 0) -> EndpointInfo:
        """The endpoint, once it is ready, with another process than `but` and for this plan version at least."""

        async def probe() -> EndpointInfo | None:
            found = await self.endpoint(replica, uid)
            if found is None or found.status is not EndpointStatus.READY or found.plan_version < version:
                return None
            return found if self.pid(replica, uid) not in {None, but} else None

        found = await until(f"{uid}/{replica} to be ready", probe)
        assert isinstance(found, EndpointInfo)
        return found

    async def gone(self, replica: int = 0, uid: str = UID) -> None:
        async def probe() -> bool:
            return await self.endpoint(replica, uid) is None

        await until(f"{uid}/{replica} to be gone", probe)

    def pid(self, replica: int = 0, uid: str = UID, node_id: str = "n1") -> int | None:
        """The process of the replica's engine, as its node wrote it down."""
        file = saved.folder(self.folder / "state" / node_id, uid, replica) / "engine.json"
        try:
            return int(json.loads(file.read_text())["pid"])
        except FileNotFoundError:
            return None

    def known_pid(self, replica: int = 0, uid: str = UID) -> int:
        pid = self.pid(replica, uid)
        assert pid is not None
        return pid

    def log(self, replica: int = 0, uid: str = UID) -> str:
        return (saved.folder(self.folder / "state" / "n1", uid, replica) / "engine.log").read_text()

    async def clear(self) -> None:
        """End every engine that a node left running."""
        for state in (self.folder / "state").glob("*"):
            for found in saved.read_all(state):
                await Process(found.process).finish()


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that ended and was not waited for does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
