"""A fleet in one process: a store in memory, one node and a scheduler, for as long as a gateway needs them."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from nebula_router.fleet.commands.scheduler_command import Options
from nebula_router.fleet.commands.scheduling import asked
from nebula_router.fleet.memory import MemoryStore
from nebula_router.fleet.node import Node
from nebula_router.fleet.placing.one_shot import Ask, place
from nebula_router.fleet.records import ENDPOINTS, EndpointInfo, EndpointStatus, Pool, Role
from nebula_router.fleet.scheduler import Scheduler
from nebula_router.reference import settings as rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from nebula_router.config import Settings
    from nebula_router.fleet.placing.one_shot import Placed
    from nebula_router.fleet.settings import NodeSettings, SchedulerSettings
    from nebula_router.fleet.store import Store
    from nebula_router.sim_settings import SimSettings

T = TypeVar("T")

NODE: Final = "local"
"""The node's name where the settings name none."""
READY_S: Final = 15.0
"""Longest wait for simulated engines; those that come later come later."""
_GPU_GIB: Final = 80
_POLL_S: Final = 0.02
_LOOK_S: Final = 0.25
_OWN: Final = frozenset({"listen", "model", "served_model_names", "name", "seed"})
"""Settings of a simulated engine that are not the same for all."""

_log = logging.getLogger(__name__)


class NoRoomError(Exception):
    """A model that does not fit on this machine."""

    def __init__(self, placed: Placed) -> None:
        super().__init__("; ".join(placed.outcome.refusals.values()))
        self.placed = placed
        """What was tried."""


def _nothing() -> None:
    return


@dataclass(frozen=True)
class LocalFleet:
    """What `nebula up` runs beside its gateway. Called, it is there for as long as the context is entered.

    Engines end with it, and where the process is killed too.
    """

    node: NodeSettings
    scheduler: SchedulerSettings
    asks: tuple[Ask, ...]
    """The models."""
    simulates: bool
    """Whether engines are simulated: they are waited for, and end at once."""
    when_placed: Callable[[], None] = _nothing
    """Called once every model has its place; none is called where one has none."""

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Store]:
        """Run node and scheduler, and give their store.

        Raises:
            NoRoomError: A model does not fit.
            NodeTakenError: Another node has this one's state.
        """
        with _state(self.node) as node:
            store = MemoryStore()
            running = _Running(Node(store, node, ties=True), Scheduler(store, self.scheduler))
            try:
                for ask in self.asks:
                    placed = await running.beside(place(store, ask, self.scheduler))
                    if placed.is_refused:
                        raise NoRoomError(placed)
                self.when_placed()
                if self.simulates:
                    wanted = sum(pool.replicas for ask in self.asks for pool in [ask.pool(None)])
                    await running.beside(_ready(store, wanted))
                yield store
            finally:
                await running.stop(hurry=self.simulates)
                await store.close()


class _Running:
    """Node and scheduler as tasks."""

    def __init__(self, node: Node, scheduler: Scheduler) -> None:
        self._node = node
        self._stops = [asyncio.Event(), asyncio.Event()]
        self._tasks = [
            asyncio.create_task(scheduler.run(self._stops[0])),
            asyncio.create_task(node.run(self._stops[1])),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def beside(self, doing: Coroutine[object, object, T]) -> T:
        """Do something while both run; what ends one of them ends it too."""
        task = asyncio.ensure_future(doing)
        try:
            await asyncio.wait({task, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
            for other in self._tasks:
                if other.done():
                    other.result()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self, *, hurry: bool) -> None:
        """End the scheduler, then the engines; a signal while they end waits for nothing any more."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._node.hurry)
        if hurry:
            self._node.hurry()
        for stop, task in zip(self._stops, self._tasks, strict=True):
            stop.set()
            await asyncio.gather(task, return_exceptions=True)


def simulated(settings: Settings, count: int) -> LocalFleet:
    """So many simulated engines of one model, each on an invented GPU, by the settings of `sim`."""
    pool = Pool(
        replicas=count,
        engine_type="sim",
        extra_args=tuple(_flags(settings.sim)),
        gpus_per_replica=1,
        required_vram_mb=_GPU_GIB * 1024,
    )
    given = settings.node.model_fields_set
    own = {
        "node_id": NODE,
        "gpus": f"fake:{count}x{_GPU_GIB}GiB",
        "host": "127.0.0.1",
        "engine": "sim",
        "engine_host": "127.0.0.1",
        "health_interval_s": _LOOK_S,
    }
    update = {name: value for name, value in own.items() if name not in given} | {"on_stop": "stop"}
    ask = Ask(_uid(settings.sim.model), Role.UNIFIED, lambda before: before or pool, settings.sim.model)
    return LocalFleet(settings.node.model_copy(update=update), settings.scheduler, (ask,), simulates=True)


def configured(settings: Settings, files: Sequence[Path]) -> LocalFleet:
    """A model per file of an engine's settings, on this machine's GPUs; a model is called like its file.

    Raises:
        ConfigError: A file is none.
        EngineConfigError: A file cannot be used.
    """
    name = settings.sim.model if "model" in settings.sim.model_fields_set else None
    asks = tuple(asked(Options(model_uid=_uid(file.stem), engine_config_path=file, model_name=name)) for file in files)
    return LocalFleet(settings.node.model_copy(update={"on_stop": "stop"}), settings.scheduler, asks, simulates=False)


@contextmanager
def _state(node: NodeSettings) -> Iterator[NodeSettings]:
    """The settings with a folder for what a node keeps: of its own where engines are simulated."""
    if node.state_dir is not None or node.engine != "sim":
        yield node
        return
    with tempfile.TemporaryDirectory(prefix="nebula-up-", ignore_cleanup_errors=True) as folder:
        yield node.model_copy(update={"state_dir": folder})


async def _ready(store: Store, wanted: int) -> None:
    """Return once so many engines are ready, or have had their time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + READY_S
    while loop.time() < until:
        entries = (await store.list(ENDPOINTS)).entries
        found = [EndpointInfo.parsed(entry.value, key) for key, entry in entries.items()]
        if sum(endpoint.status is EndpointStatus.READY for endpoint in found) >= wanted:
            return
        await asyncio.sleep(_POLL_S)
    _log.warning("not all simulated engines are ready after %g s; `nebula placements` says why", READY_S)


def _flags(sim: SimSettings) -> Iterator[str]:
    """The settings that are not their defaults, as flags of `nebula sim`."""
    for row in rows():
        value = getattr(sim, row.name) if row.group == "sim" else row.field.default
        if row.name in _OWN or value == row.field.default:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            yield row.flags[0]
            yield str(one)


def _uid(name: str) -> str:
    """A name as a model can have it in a key."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:128] or "model"


def _report(task: asyncio.Task[None]) -> None:
    """Name what ended a task that nobody ended."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the fleet of this process is not looked after any more: %s", error, exc_info=error)
