"""The manager of one machine: it tells of its GPUs, and runs the engines that placements give it.

What survives what:

======================================  ===========================================================================
the store is away                       engines go on; they are announced again when it is back
the store comes back with less in it    nothing that is missing in it is stopped: it lost its data
the node gets SIGTERM, or is killed     engines go on, announced until the lease ends; the next node takes them over
the node is stopped for good            engines are drained, then ended (`node.on_stop`, Ctrl-C)
a placement or assignment is gone       its engine is drained, then ended
======================================  ===========================================================================
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import nebula_router
from nebula_router.fleet.claim import Claim, Lock, NodeTakenError
from nebula_router.fleet.clock import now_ms
from nebula_router.fleet.engine import saved as saving
from nebula_router.fleet.engine.command import Machine
from nebula_router.fleet.engine.house import House
from nebula_router.fleet.engine.job import Job
from nebula_router.fleet.engine.keeper import Keeper
from nebula_router.fleet.engine.ports import PortTable
from nebula_router.fleet.follow import follow
from nebula_router.fleet.gpu import open_gpus
from nebula_router.fleet.records import PLACEMENTS, NodeStatus, PlacementPlan, RecordError, checked_id
from nebula_router.fleet.store import StoreClosedError, StoreError
from nebula_router.fleet.waiting import ended

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nebula_router.fleet.engine.saved import Saved
    from nebula_router.fleet.follow import View
    from nebula_router.fleet.gpu import Gpus
    from nebula_router.fleet.records import GpuStatus
    from nebula_router.fleet.settings import NodeSettings
    from nebula_router.fleet.store import Entry, Store

_SETTLE_S: Final = 0.05

_log = logging.getLogger(__name__)


class Node:
    """One machine's manager. `run` is its whole life.

    Args:
        store: Where the fleet is written down. The caller closes it: where engines are kept, only after the process
            is done, for a closed store forgets them at once.
        settings: Its settings.
        host: By which others reach its engines; `node.host` wins.
        gpus: Its GPUs; without them, those of `node.gpus`.
        ties: Whether its engines end with this process, even where it is killed.

    Raises:
        ValueError: The machine's host name cannot be a node's, and the settings name none.
    """

    def __init__(
        self,
        store: Store,
        settings: NodeSettings,
        *,
        host: str = "127.0.0.1",
        gpus: Gpus | None = None,
        ties: bool = False,
    ) -> None:
        self.node_id: Final = settings.node_id or checked_id(socket.gethostname().partition(".")[0])
        self.keeps_engines = settings.on_stop == "keep"
        """Whether engines run on when `run` ends."""
        self._store = store
        self._settings = settings
        self._host = settings.host or host
        self._gpus = gpus
        self._ties = ties
        self._keepers: dict[str, tuple[Keeper, asyncio.Task[None]]] = {}
        self._plans: dict[str, PlacementPlan] = {}
        self._unread: dict[str, str] = {}
        self._revision = 0
        self._hurry = asyncio.Event()
        self._claim: Claim | None = None
        self._has_looked = False

    def hurry(self) -> None:
        """Wait for no request and no engine any more, where it is stopping."""
        self._hurry.set()

    @property
    def keepers(self) -> Mapping[str, Keeper]:
        """Its replicas, by `model_uid/replica_id`."""
        return {key: keeper for key, (keeper, _) in self._keepers.items()}

    async def run(self, stop: asyncio.Event) -> None:
        """Manage the machine until `stop` is set. Cancelled, it leaves the engines alone.

        Raises:
            NodeTakenError: Another node has its name. Engines that run are left alone.
            OSError: The state's folder cannot be used.
            StoreClosedError: The store object was closed.
        """
        state = saving.prepared(self._settings.state_dir, self.node_id)
        lock = Lock(state)
        ports = PortTable(self._settings.vllm_port, self._settings.port_count, self._settings.engine_host)
        tasks: list[asyncio.Task[None]] = []
        try:
            house = await self._house(state, ports)
            self._claim = Claim(self._store, self._settings, self.node_id, lock.instance)
            stopping = asyncio.create_task(_until(stop))
            tasks.append(stopping)
            tasks.append(asyncio.create_task(self._live(house)))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stopping not in done:
                await tasks[1]
                return
            if not self.keeps_engines:
                await ended(tasks)
                self._find(house, {})
                await self._stop_all(house)
        finally:
            await ended([*tasks, *(task for _, task in self._keepers.values())])
            ports.close()
            lock.release()

    async def _house(self, state: Path, ports: PortTable) -> House:
        settings = self._settings
        gpus = self._gpus
        if gpus is None:
            gpus = await asyncio.to_thread(open_gpus, settings.gpus, _visible())
        machine = Machine(settings, self._host, gpus, self.node_id, ties=self._ties)
        return House(self._store, machine, ports, state, self._hurry)

    async def _live(self, house: House) -> None:
        """Be in the fleet."""
        await self._taken_claim.take(await self._status(house))
        _log.info(
            "node %s: %s; engines at %s, ports %d to %d",
            self.node_id,
            _described(await asyncio.to_thread(house.machine.gpus.read)),
            self._host,
            house.ports.engines.start,
            house.ports.engines.stop - 1,
        )
        parts = [asyncio.create_task(self._beat(house)), asyncio.create_task(self._follow(house))]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                await part
        finally:
            await ended(parts)

    # === what it tells ===

    async def _beat(self, house: House) -> None:
        """Tell how it is, again and again; and see that every keeper lives."""
        is_lost = False
        while True:
            self._check_keepers()
            try:
                await self._taken_claim.write(await self._status(house))
                is_lost = False
            except StoreClosedError:
                raise
            except StoreError as error:
                if not is_lost:
                    _log.warning("the node is not announced, its engines go on: %s", error)
                is_lost = True
            await asyncio.sleep(self._settings.heartbeat_s)

    async def _status(self, house: House) -> NodeStatus:
        gpus = await asyncio.to_thread(house.machine.gpus.read)
        errors = {key: keeper.error for key, (keeper, _) in self._keepers.items() if keeper.error}
        return NodeStatus(
            node_id=self.node_id,
            last_heartbeat_ms=now_ms(),
            gpus=gpus,
            host=self._host,
            ports=(house.ports.engines.start, house.ports.engines.stop - 1),
            version=nebula_router.__version__,
            errors={**self._unread, **errors} or None,
            draining=self._taken_claim.draining,
        )

    @property
    def _taken_claim(self) -> Claim:
        if self._claim is None:
            raise AssertionError("the node does not run")
        return self._claim

    # === what it is told ===

    async def _follow(self, house: House) -> None:
        async with aclosing(follow(self._store, PLACEMENTS, settle_s=_SETTLE_S)) as views:
            async for view in views:
                if view.connected:
                    self._read(view)
                    self._apply(house)

    def _read(self, view: View) -> None:
        """Take what the view says. What cannot be read stays as it was, and so does what a store lost with its data."""
        lost_data = view.revision < self._revision
        self._revision = view.revision
        for key in view.changed:
            entry = view.entries.get(key)
            if entry is not None:
                self._read_plan(key, entry)
            elif lost_data:
                if key in self._plans:
                    _log.warning("%s is gone with the store's data; its engines here go on", key)
            else:
                self._plans.pop(key, None)
                self._unread.pop(key.removeprefix(PLACEMENTS), None)

    def _read_plan(self, key: str, entry: Entry) -> None:
        uid = key.removeprefix(PLACEMENTS)
        try:
            plan = PlacementPlan.parsed(entry.value, key)
            if plan.model_uid != uid:
                raise RecordError(f"{key}: names the model {plan.model_uid!r}")  # noqa: TRY301 - one place to catch
        except RecordError as error:
            _log.error("%s; what it said before stands", error)
            self._unread[uid] = str(error)
            return
        self._unread.pop(uid, None)
        self._plans[key] = plan

    def _apply(self, house: House) -> None:
        """Tell each keeper what its replica should be; make those that are missing."""
        jobs = {
            job.key: job
            for plan in self._plans.values()
            for assignment in plan.assignments
            if assignment.node_id == self.node_id
            for job in [Job.of(plan, assignment)]
        }
        self._find(house, jobs)
        self._check_keepers()
        for key, (keeper, _) in self._keepers.items():
            keeper.want(jobs.get(key))
        for key, job in jobs.items():
            if key not in self._keepers:
                self._keep(house, job.model_uid, job.assignment.replica_id).want(job)

    def _find(self, house: House, jobs: Mapping[str, Job]) -> None:
        """Take over what an earlier node left, once: only by then it is known what should run."""
        if self._has_looked:
            return
        self._has_looked = True
        for saved in saving.read_all(house.state):
            key = f"{saved.model_uid}/{saved.replica_id}"
            self._keep(house, saved.model_uid, saved.replica_id, saved).want(jobs.get(key))

    def _keep(self, house: House, model_uid: str, replica_id: int, found: Saved | None = None) -> Keeper:
        keeper = Keeper(house, model_uid, replica_id, found)
        self._keepers[f"{model_uid}/{replica_id}"] = (keeper, asyncio.create_task(keeper.run()))
        return keeper

    def _check_keepers(self) -> None:
        """Forget those that are done. One that failed fails the node: its engine is the next node's to take over."""
        for key, (_, task) in list(self._keepers.items()):
            if task.done():
                task.result()
                del self._keepers[key]

    async def _stop_all(self, house: House) -> None:
        """Drain and end all engines, and take the node out of the fleet."""
        for keeper, _ in self._keepers.values():
            keeper.want(None)
        self._taken_claim.draining = True
        with suppress(StoreError, NodeTakenError):
            await self._taken_claim.write(await self._status(house))
        hurried = asyncio.create_task(_until(self._hurry))
        try:
            while tasks := [task for _, task in self._keepers.values()]:
                wakes = [] if self._hurry.is_set() else [hurried]
                await asyncio.wait([*tasks, *wakes], return_when=asyncio.FIRST_COMPLETED)
                self._check_keepers()
        finally:
            await ended([hurried])
        await self._taken_claim.withdraw()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _described(gpus: Sequence[GpuStatus]) -> str:
    if not gpus:
        return "no GPUs"
    return "GPUs " + ", ".join(f"{gpu.index} ({gpu.memory_total_mb / 1024:.0f} GiB)" for gpu in gpus)


def own_host(etcd: Sequence[str]) -> str:
    """The machine's address towards the first of these URLs that it has a route to. Nothing is sent."""
    for url in etcd:
        parts = urlsplit(url)
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                parts.hostname, parts.port or 2379, type=socket.SOCK_DGRAM
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
