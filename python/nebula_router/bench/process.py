"""Starts and stops servers, and reads CPU and memory of a whole process tree from /proc."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nebula_router.bench.error import BenchError

PROC = Path("/proc")
STOP_S = 5.0
"""How long a server may take to end after SIGTERM."""
POLL_S = 0.05
CPUCLOCK_SCHED = 2
"""With a process's number, the name of its CPU clock (clock_getcpuclockid(3)); a wave of streams is few clock ticks."""


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of `/proc/PID/stat` that are used here (proc_pid_stat(5))."""

    pid: int
    state: str
    parent: int
    session: int
    ticks: int
    """User and system time, in clock ticks."""
    waited_ticks: int
    """The same of its children that ended."""
    start: int
    """Ticks after boot; with the pid, the name of this very process."""
    pages: int
    """Resident set."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree has used so far and holds now."""

    cpu_s: float
    rss_mb: float
    processes: int


def parse_stat(text: str) -> Stat:
    """Reads one `/proc/PID/stat`. The command's name may itself hold spaces and parentheses."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Stat(
        pid=int(head.split(" ", 1)[0]),
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        ticks=sum(int(field) for field in fields[11:13]),
        waited_ticks=sum(int(field) for field in fields[13:15]),
        start=int(fields[19]),
        pages=int(fields[21]),
    )


def tree(root: int) -> list[Stat]:
    """`root`, all its descendants, and whatever still lives in its session, zombies left out.

    The session is what finds a worker whose parent ended before it.
    """
    stats = {stat.pid: stat for stat in _all_stats() if stat.state != "Z"}
    members = {pid for pid, stat in stats.items() if root in {pid, stat.session}}
    grown = True
    while grown:
        children = {pid for pid, stat in stats.items() if stat.parent in members} - members
        members |= children
        grown = bool(children)
    return [stats[pid] for pid in sorted(members)]


def usage(root: int) -> Usage:
    """CPU time and resident memory of `root`'s tree, summed; pages shared by two processes count twice."""
    stats = tree(root)
    return Usage(
        cpu_s=sum(cpu_s(stat) for stat in stats),
        rss_mb=sum(stat.pages for stat in stats) * os.sysconf("SC_PAGE_SIZE") / 1e6,
        processes=len(stats),
    )


def cpu_s(stat: Stat) -> float:
    """CPU time of a process and of its children that ended; to the nanosecond while it lives, else to a clock tick."""
    hz = os.sysconf("SC_CLK_TCK")
    try:
        own = time.clock_gettime(~stat.pid << 3 | CPUCLOCK_SCHED)
    except OSError:
        own = stat.ticks / hz
    return own + stat.waited_ticks / hz


def _all_stats() -> Iterator[Stat]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                yield parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we were looking


@dataclass(frozen=True, slots=True)
class Child:
    """A server that was started here, in a session of its own."""

    name: str
    command: tuple[str, ...]
    popen: subprocess.Popen[bytes]
    log: Path | None
    """Where it prints to; None: nowhere."""

    @property
    def pid(self) -> int:
        """The process that was started; its descendants are found through it."""
        return self.popen.pid

    def usage(self) -> Usage:
        """See `usage`."""
        return usage(self.pid)

    def await_ready(self, ready: Callable[[], str | None], deadline_s: float) -> float:
        """The seconds it took until `ready()` had nothing to complain of any more.

        Raises:
            BenchError: with the last complaint, when the process ends or the deadline passes first.
        """
        begin = time.monotonic()
        while (complaint := ready()) is not None:
            self.check_alive()
            if time.monotonic() - begin > deadline_s:
                raise BenchError(self._failure(f"was not ready after {deadline_s:g} s ({complaint})"))
            time.sleep(POLL_S)
        return time.monotonic() - begin

    def check_alive(self) -> None:
        """Passes while the process that was started runs.

        Raises:
            BenchError: once it has ended.
        """
        code = self.popen.poll()
        if code is not None:
            raise BenchError(self._failure(f"ended with code {code}"))

    def _failure(self, what: str) -> str:
        why = f"see {self.log}" if self.log else "see why with --logs DIR"
        return f"{self.name} {what}; {why}, or start it yourself: {shlex.join(self.command)}"

    def stop(self) -> None:
        """SIGTERM, then after `STOP_S` SIGKILL for all that is left of its tree."""
        members = {(stat.pid, stat.start) for stat in tree(self.pid)}
        self.popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_S)
        until = time.monotonic() + STOP_S
        while (left := self._left(members)) and time.monotonic() < until:
            for stat in left:
                with suppress(ProcessLookupError):
                    os.kill(stat.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_S)

    def _left(self, members: set[tuple[int, int]]) -> list[Stat]:
        """Who of `members` or of the session is still alive."""
        alive = (stat for stat in _all_stats() if stat.state != "Z")
        return [stat for stat in alive if stat.session == self.pid or (stat.pid, stat.start) in members]


@contextmanager
def started(name: str, command: Sequence[str], log: Path | None = None) -> Iterator[Child]:
    """A running `command`, stopped on the way out. What it prints goes into `log`, else to /dev/null."""
    with (log or Path(os.devnull)).open("wb") as sink:
        popen = subprocess.Popen(  # noqa: S603 - every command is built in this package
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child = Child(name, tuple(command), popen, log)
    try:
        yield child
    finally:
        child.stop()


def run(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a short `command` to its end and gives back what it printed, whatever its exit code.

    Raises:
        FileNotFoundError: if there is no such program.
        subprocess.TimeoutExpired: after `timeout_s`.
    """
    return subprocess.run(  # noqa: S603 - every command is built in this package
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
