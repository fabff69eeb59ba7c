"""One engine's process: has a session of its own, is found again by the next node, and ends with all it started.

The process writes to its log by itself and knows nothing of the node, so it outlives it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.engine.listener import listens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

POLL_S: Final = 0.05
"""Time between two looks at whether it lives: one small file of /proc."""
KILL_S: Final = 10.0
"""Longest wait for the end after SIGKILL; a process that is stuck in a driver may take longer, or for ever."""
_PROC: Final = Path("/proc")
_DEFAULT: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process by a name that no other process ever has, on this machine or after its next boot."""

    pid: int
    start: int
    """Ticks after boot."""
    boot: str

    @property
    def is_alive(self) -> bool:
        """Whether it runs; one that ended and was not waited for does not."""
        stat = self.stat()
        return stat is not None and stat.state not in "ZX"

    def stat(self) -> _Stat | None:
        """What the kernel says of it; none once it is gone, or its number is another's."""
        found = _stat(self.pid)
        return found if found is not None and found.start == self.start and self.boot == boot() else None


class Process:
    """A process with a session of its own. It may be a child of this one, or one that an earlier node started."""

    def __init__(self, own: ProcessId) -> None:
        self.id = own
        self._ended: str | None = None

    @classmethod
    def start(cls, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
        """Start the command; its output is added to the log.

        Raises:
            OSError: There is no such program, or it cannot be started.
        """
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                dict(env),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=_DEFAULT,
            )
        finally:
            os.close(output)
        stat = _stat(pid)
        return cls(ProcessId(pid, stat.start if stat else 0, boot()))

    def ended(self) -> str | None:
        """How it ended; none while it runs."""
        if self._ended is None:
            self._ended = self._looked()
        return self._ended

    async def wait(self, within_s: float) -> str | None:
        """Return how it ended, or none after that time."""
        until = time.monotonic() + within_s
        while True:
            how = self.ended()
            left_s = until - time.monotonic()
            if how is not None or left_s <= 0:
                return how
            await asyncio.sleep(min(POLL_S, left_s))

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> str:
        """End all of its session: SIGTERM, then SIGKILL after the grace, or at once on `hurry`. Return how it ended."""
        until = time.monotonic() + grace_s
        self._signal(signal.SIGTERM)
        while time.monotonic() < until and not (hurry and hurry.is_set()):
            if self._is_gone():
                break
            await asyncio.sleep(POLL_S)
        return await self.finish()

    async def finish(self) -> str:
        """End what is left of its session by SIGKILL, and forget the process. Return how it ended."""
        until = time.monotonic() + KILL_S
        while time.monotonic() < until:
            self._signal(signal.SIGKILL)
            if self._is_gone():
                break
            await asyncio.sleep(POLL_S)
        else:
            _log.error("process %d does not end, even by SIGKILL", self.id.pid)
        how = self.ended() or "does not end, even by SIGKILL"
        self._reap()
        return how

    def listens(self, port: int) -> bool | None:
        """Whether one of its session listens on the port; none where that cannot be seen."""
        return listens(self._members(), port)

    def _looked(self) -> str | None:
        """How it ended, its own status left in place: as long as it is there nobody else gets its number."""
        if self.id.stat() is None:
            return "ended"
        try:
            info = os.waitid(os.P_PID, self.id.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None if self.id.is_alive else "ended"
        if info is None:
            return None
        if info.si_code == os.CLD_EXITED:
            return f"exit status {info.si_status}"
        return f"killed by {signal.Signals(info.si_status).name}"

    def _reap(self) -> None:
        try:
            os.waitpid(self.id.pid, os.WNOHANG)
        except ChildProcessError:
            return

    def _is_gone(self) -> bool:
        """Whether it ended and left nothing behind."""
        return self.ended() is not None and not self._members()

    def _members(self) -> list[int]:
        """The processes of its session that run. Cost: one small file per process of the machine."""
        if self.id.stat() is None and (_stat(self.id.pid) is not None or self.id.boot != boot()):
            return []  # its number is another's now, so nothing of it is left
        return list(_session(self.id.pid))

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._members():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def boot() -> str:
    """A name of the machine's present boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class _Stat:
    """Fields of `/proc/PID/stat` (proc_pid_stat(5))."""

    pid: int
    state: str
    session: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(")")  # the command's name may itself hold spaces and parentheses
    fields = tail.split()
    return _Stat(int(head.split(" ", 1)[0]), fields[0], int(fields[3]), int(fields[19]))


def _session(leader: int) -> Iterator[int]:
    for entry in _PROC.iterdir():
        if (
            entry.name.isdecimal()
            and (stat := _stat(int(entry.name)))
            and stat.session == leader
            and stat.state not in "ZX"
        ):
            yield stat.pid
