"""Keeps one replica as its plan wants it: starts its engine, looks after it, starts it again, drains and ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.engine import saved as saving
from nebula_router.fleet.engine.announcement import Announcement
from nebula_router.fleet.engine.container import clean
from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.engine.engine_log import tail, turn_over
from nebula_router.fleet.engine.ports import PortError
from nebula_router.fleet.engine.probe import Probe
from nebula_router.fleet.engine.process import Process
from nebula_router.fleet.engine.replica import Phase, Replica
from nebula_router.fleet.engine.running import Running
from nebula_router.fleet.engine.tie import tied
from nebula_router.fleet.records import EndpointInfo, endpoint_key
from nebula_router.fleet.waiting import ended, happened

if TYPE_CHECKING:
    from nebula_router.fleet.engine.house import House
    from nebula_router.fleet.engine.job import Job
    from nebula_router.fleet.engine.saved import Saved

LOG: Final = "engine.log"
_POLL_S: Final = 0.1
"""Time in which the end of a process is seen."""
_STARTING_EVERY_S: Final = 0.25
"""Longest time between two looks at an engine that starts."""
_MB: Final = 1 << 20
_RETRY_S: Final = 1.0
_TAIL_LINES: Final = 6
_TAIL_CHARACTERS: Final = 1200
_HUNG_GRACE_S: Final = 5.0
"""Longest time to end by itself for an engine that does not answer anyway."""
_SAID_S: Final = 5.0
_SAID_HURRIED_S: Final = 0.5
_IDLE_LOOKS: Final = 2
_IDLE_EVERY_S: Final = 0.5
"""Between two looks at whether requests are left: gateways have heard of the drain by the second one."""

_log = logging.getLogger(__name__)


class Keeper:
    """One replica. `want` says what it should be; `run` makes it so and ends once nothing of it is left."""

    def __init__(self, house: House, model_uid: str, replica_id: int, found: Saved | None = None) -> None:
        self._house = house
        self._settings = house.machine.settings
        self._model_uid = model_uid
        self._replica_id = replica_id
        self._key = f"{model_uid}/{replica_id}"
        self._folder = saving.folder(house.state, model_uid, replica_id)
        self._announcement = Announcement(
            house.store, self._settings, house.machine.node_id, endpoint_key(model_uid, replica_id)
        )
        self._found = found
        self._wanted: Job | None = None
        self._job: Job | None = None
        self._digest = ""
        self._state = Replica(house.limits)
        self._running: Running | None = None
        self._woken = asyncio.Event()
        self._next_care = 0.0
        self.is_done = False

    @property
    def error(self) -> str | None:
        """Why it does not run, or not as it should."""
        return self._state.why

    @property
    def phase(self) -> Phase:
        """Where it is."""
        return self._state.phase

    @property
    def pid(self) -> int | None:
        """Its engine's process."""
        return self._running.process.id.pid if self._running and self._state.has_process else None

    def want(self, job: Job | None) -> None:
        """Be this, or with none: end."""
        if job != self._wanted:
            self._wanted = job
            self._woken.set()

    async def run(self) -> None:
        """Keep it so, until it is not wanted and nothing is left of it. Cancelled, it leaves the engine alone."""
        announcing = asyncio.create_task(self._announcement.run())
        try:
            await self._find()
            self._say()
            while not self.is_done:
                self._woken.clear()
                self._reconcile()
                try:
                    await self._act()
                except OSError as error:  # a full disk, no more files: the engine itself goes on
                    _log.error("%s: %s", self._key, error)
                    await self._pause(_RETRY_S)
        finally:
            await ended([announcing])

    # === what it should be ===

    async def _find(self) -> None:
        """Take over the engine that an earlier node left, or clear away what is left of it."""
        found, job = self._found, self._wanted
        self._job = job
        self._digest = job.digest(self._settings) if job else ""
        if found is None:
            return
        process = Process(found.process)
        self._running = Running(
            process, Probe(self._house.machine.near, found.had.engine), found.plan_version, cleanup=found.cleanup
        )
        if process.ended() is not None:
            _log.info("%s: the engine that ran before is gone", self._key)
            await self._finish()
            return
        _log.info("%s: the engine of before runs on, process %d, port %d", self._key, found.pid, found.had.engine)
        self._house.ports.claim(self._key, found.had)
        self._digest = found.digest
        self._state = self._state.started(time.monotonic())
        if job is not None and job.digest(self._settings) == found.digest:
            with contextlib.suppress(EngineConfigError):  # it runs; that its file is gone is the next start's trouble
                told = await asyncio.to_thread(job.told)
                launch = self._house.machine.launch(job, told, found.had, self._folder)
                self._running = Running.of(process, launch, self._house.machine.near, found.plan_version)
            # Looked at before anything is said: gateways need not notice that its node was away.
            self._state = self._state.looked(await self._health(), time.monotonic())
        else:
            # It was started for another plan. Whether it has requests is not known: it gets the time to end them.
            self._job = None
            self._state = self._state.looked(None, time.monotonic())

    def _reconcile(self) -> None:
        """Hold what is wanted against what is."""
        wanted = self._wanted
        is_same = wanted is not None and not wanted.assignment.draining
        is_same = is_same and wanted is not None and wanted.digest(self._settings) == self._digest
        if self._state.is_retired:
            if is_same and self._state.phase is Phase.DRAINING:
                self._become(self._state.wanted_again())
        elif not is_same:
            _log.info("%s: %s", self._key, self._farewell(wanted))
            self._become(self._state.retired())
        elif wanted is not self._job:
            self._job = wanted
            if self._state.phase is Phase.GIVEN_UP:
                self._state = Replica(self._house.limits)
            self._remember()
            self._say()

    def _farewell(self, wanted: Job | None) -> str:
        if wanted is None:
            return "not wanted here any more"
        return "to be drained" if wanted.assignment.draining else f"changed with plan version {wanted.plan_version}"

    async def _act(self) -> None:
        """Do the next thing, and wait where there is none."""
        phase = self._state.phase
        if phase is Phase.WAITING:
            wait_s = self._state.due - time.monotonic()
            await (self._start() if wait_s <= 0 else self._pause(wait_s))
        elif phase in {Phase.STARTING, Phase.READY, Phase.UNHEALTHY}:
            await self._look()
        elif phase is Phase.DRAINING:
            await self._drain()
        elif phase in {Phase.ENDING, Phase.STOPPING}:
            await self._end()
        elif phase is Phase.STOPPED:
            await self._settle()
        else:
            await self._woken.wait()

    # === its engine ===

    async def _start(self) -> None:
        job, machine = self._job, self._house.machine
        if job is None:
            raise AssertionError("a replica without a job does not start")
        log = self._folder / LOG
        try:
            told = await asyncio.to_thread(job.told)
            needs = machine.needs(job, told)
            before = self._running.probe.port if self._running else None
            ports = self._house.ports.take(self._key, replace(needs, preferred=needs.preferred or before))
            launch = machine.launch(job, told, ports, self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            await clean(launch.cleanup)
            if launch.config is not None:
                (self._folder / "engine.yaml").write_text(launch.config)
            skip = log.stat().st_size if log.exists() else 0
            # Nothing is waited for from here to the end: an engine that runs is always remembered.
            process = Process.start(tied(launch.argv) if machine.ties else launch.argv, launch.env, log)
        except (EngineConfigError, PortError, OSError) as error:
            self._become(self._state.ended(str(error), time.monotonic()))
            return
        self._running = Running.of(process, launch, self._house.machine.near, job.plan_version, skip)
        self._become(self._state.started(time.monotonic()))
        self._remember()
        _log.info("%s: engine started, process %d, port %d, log %s", self._key, process.id.pid, ports.engine, log)
        _log.debug("%s: %s", self._key, launch.hidden(" ".join(launch.argv)))

    async def _look(self) -> None:
        running = self._engine
        every_s = self._settings.health_interval_s
        await self._pause(min(every_s, _STARTING_EVERY_S) if self._state.phase is Phase.STARTING else every_s)
        if running.process.ended() is not None:
            await self._finish()
            return
        if self._woken.is_set():
            return
        why = await self._health()
        if running.process.ended() is not None:
            await self._finish()
            return
        self._become(self._state.looked(why, time.monotonic()))
        await self._care()

    async def _health(self) -> str | None:
        """What is wrong with it, none if nothing is; one that was not ready is asked for more than its health."""
        why = await self._engine.probe.health()
        if why is None and self._state.phase is not Phase.READY:
            return await self._engine.learn(self._house.machine.host)
        return why

    async def _care(self) -> None:
        """What is due every heartbeat: its load, and its log."""
        now = time.monotonic()
        if now < self._next_care:
            return
        self._next_care = now + self._settings.heartbeat_s
        await asyncio.to_thread(turn_over, self._folder / LOG, self._settings.log_max_mb * _MB, self._settings.log_keep)
        if self._state.phase is Phase.READY and await self._engine.measure():
            self._say()

    async def _drain(self) -> None:
        """Wait until it has no requests, or its time is over."""
        running = self._engine
        await self._announcement.said(self._said_s)
        until = time.monotonic() + self._settings.stop_grace_s
        idle = 0
        while not self._is_hurried and time.monotonic() < until and running.process.ended() is None:
            load = await running.probe.load()
            idle = idle + 1 if load is not None and load.is_idle else 0
            if idle >= _IDLE_LOOKS:
                break
            await self._pause(min(_IDLE_EVERY_S, max(until - time.monotonic(), 0)))
            if self._woken.is_set():
                self._woken.clear()
                self._reconcile()
                if not self._state.is_retired:
                    return
        self._become(self._state.drained())

    async def _end(self) -> None:
        grace_s = self._settings.stop_grace_s
        if self._state.phase is Phase.ENDING:
            grace_s = min(grace_s, _HUNG_GRACE_S)
        why = self._state.why
        await self._engine.process.stop(0 if self._is_hurried else grace_s, self._house.hurry)
        await self._finish(why)

    async def _finish(self, why: str | None = None) -> None:
        """Clear away what is left of a process that ended, and say why it did."""
        running = self._engine
        how = await running.process.finish()
        await clean(running.cleanup)
        saving.forget(self._house.state, self._model_uid, self._replica_id)
        if self._state.phase is Phase.WAITING:
            self._running = None
            return  # found dead
        said = running.hidden("\n".join(tail(self._folder / LOG, _TAIL_LINES, running.log_from)))[-_TAIL_CHARACTERS:]
        text = f"{why or f'engine ended: {how}'}" + (f"; it last wrote:\n{said}" if said else "")
        if not self._state.is_retired:
            _log.warning("%s: %s", self._key, text)
        self._become(self._state.ended(text, time.monotonic()))
        if self._state.phase is Phase.GIVEN_UP:
            _log.error("%s: given up after %d starts that failed", self._key, self._state.failed)

    async def _settle(self) -> None:
        """It is stopped: end, wait, or be what is wanted now."""
        self._house.ports.release(self._key)
        self._running = None
        wanted = self._wanted
        if wanted is not None and not wanted.assignment.draining:
            self._job, self._digest = wanted, wanted.digest(self._settings)
            self._become(Replica(self._house.limits))
            return
        self._announcement.say(None)
        if wanted is not None:
            await self._woken.wait()
            return
        if not await self._announcement.said(self._said_s):
            _log.warning("%s: stopped, but the store does not know; its lease ends by itself", self._key)
        self.is_done = self._wanted is None

    # === what is known of it ===

    @property
    def _engine(self) -> Running:
        if self._running is None:
            raise AssertionError(f"{self._key} is {self._state.phase.value} without a process")
        return self._running

    @property
    def _is_hurried(self) -> bool:
        return self._house.hurry.is_set()

    @property
    def _said_s(self) -> float:
        """Longest wait for the store to have what is announced; engines do not depend on it."""
        return _SAID_HURRIED_S if self._is_hurried else _SAID_S

    def _become(self, state: Replica) -> None:
        before, self._state = self._state, state
        if before.phase is not state.phase:
            _log.info("%s: %s", self._key, state.phase.value)
        if before.status is not state.status or before.phase is not state.phase:
            self._say()

    def _say(self) -> None:
        """Announce it as it is."""
        status, running, job = self._state.status, self._running, self._job
        if status is None:
            return
        info = EndpointInfo(
            model_uid=self._model_uid,
            replica_id=self._replica_id,
            node_id=self._house.machine.node_id,
            plan_version=job.plan_version if job else running.plan_version if running else 0,
            status=status,
            last_heartbeat_ms=0,
        )
        if job is not None:
            info = info.model_copy(update={"role": job.assignment.role})
        if running is not None and self._state.has_process:
            info = running.described(info, self._house.machine.host)
        self._announcement.say(info, shares=self._wanted is None)

    def _remember(self) -> None:
        """Write down what the next node must know of the engine."""
        running, job = self._running, self._job
        if running is None or running.ports is None or job is None:
            return
        own = running.process.id
        record = saving.Saved(
            model_uid=self._model_uid,
            replica_id=self._replica_id,
            plan_version=job.plan_version,
            digest=self._digest,
            pid=own.pid,
            start=own.start,
            boot=own.boot,
            ports=running.ports.document(),
            cleanup=running.cleanup,
        )
        try:
            saving.write(self._house.state, record)
        except OSError as error:
            _log.error("%s: a restart of this node will not know the engine: %s", self._key, error)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until something is to be done: another wish, or the end of the process."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0 and not self._woken.is_set() and not self._is_hurried:
            if self._running is not None and self._state.has_process and self._running.process.ended() is not None:
                return
            await happened(self._woken, min(left_s, _POLL_S))
