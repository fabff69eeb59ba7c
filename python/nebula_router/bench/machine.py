"""What the figures were measured on: without it, they cannot be repeated."""

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from nebula_router.bench import process

NOISY = 0.05
"""Above this share of the cores used by others, the figures say little."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The place, the time, the code and the command."""

    when: str
    command: str
    commit: str | None
    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    nginx: str | None
    wrk: str | None

    def lines(self) -> tuple[str, str]:
        """The same, to be read."""
        tools = f"Python {self.python}, {self.nginx or 'no nginx'}, {self.wrk or 'no wrk'}"
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gb} GB, {self.system}, {tools}",
            f"commit {self.commit or 'unknown'}, {self.when}: {self.command}",
        )


class Meter:
    """How much CPU others use on this machine while a benchmark runs."""

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._start = self._now()

    def others(self) -> float:
        """Cores in use, on average since the start, by processes that the benchmark did not start."""
        then, now = self._start, self._now()
        wall, busy, own = (late - early for early, late in zip(then, now, strict=True))
        return max(0.0, busy - own) / wall

    def note(self) -> str | None:
        """One line of warning, where the machine was not for us alone."""
        others = self.others()
        if others <= NOISY * self._cores:
            return None
        return f"NOISY: others used {others:.2f} of {self._cores} cores meanwhile; repeat this on a quiet machine"

    def _now(self) -> tuple[float, float, float]:
        """Seconds: of the clock, of CPU on the whole machine, of CPU in our own tree."""
        busy = parse_busy(Path("/proc/stat").read_text()) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, process.usage(os.getpid()).cpu_s


def parse_busy(text: str) -> int:
    """Clock ticks of all cores that were not idle, from `/proc/stat` (proc_stat(5)); steal counts as busy."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in text.split()[1:9])
    return user + nice + system + irq + softirq + steal


def describe() -> Machine:
    """This machine, now."""
    return Machine(
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["nebula", "bench", *sys.argv[1 + (sys.argv[1:2] == ["bench"]) :]]),
        commit=_commit(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        nginx=_first_line(["nginx", "-v"]),
        wrk=_first_line(["wrk", "-v"]),
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = _first_line([*git, "rev-parse", "--short=12", "HEAD"])
    if commit is None or not commit.isalnum():
        return None
    return f"{commit} and uncommitted changes" if _first_line([*git, "status", "--porcelain"]) else commit


def _first_line(command: list[str]) -> str | None:
    """Nginx and wrk print their version to stderr, wrk with exit code 1 and its copyright."""
    try:
        finished = process.run(command, timeout_s=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    line = next(iter((finished.stdout or finished.stderr).splitlines()), "")
    return line.partition(" Copyright")[0].removeprefix("nginx version: ") or None
