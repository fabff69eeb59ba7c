"""A run of the core's load generator, watched."""

import json
import resource
import time
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nebula_router.bench.error import BenchError
from nebula_router.core import Load

LOOK_S: Final = 0.1
"""Between two looks at where a run is."""
END_S: Final = 10.0
"""A run that was told to stop gets so long to give what it has."""
SPARE_FILES: Final = 64
"""Files that a process has open beside its connections."""


@dataclass(frozen=True)
class Played:
    """What a run gave."""

    report: dict[str, Any]
    """As the core writes it."""
    cpu_cores: float
    """Cores that this process used meanwhile: the load generator and a little for the progress bar."""
    interrupted: bool


def play(settings: dict[str, Any], record: bytes | None, console: Console) -> Played:
    """Plays a run to its end; on Ctrl-C, what it gave until then.

    Raises:
        BenchError: Nothing could be measured.
    """
    _allow_files(settings)
    try:
        load = Load(json.dumps(settings).encode(), record)
    except ValueError as error:
        raise BenchError(str(error)) from None
    columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    start, cpu = time.monotonic(), time.process_time()
    text: bytes | None
    interrupted = False
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            text = _watch(load, progress)
    except KeyboardInterrupt:
        interrupted = True
        load.stop()
        text = _ended(load, END_S)
    finally:
        load.stop()
    if text is None:
        raise BenchError(f"the load generator did not stop within {END_S:g} s")
    used = (time.process_time() - cpu) / max(time.monotonic() - start, 1e-9)
    return Played(json.loads(text), used, interrupted)


def _watch(load: Load, progress: Progress) -> bytes:
    task = progress.add_task("", total=load.progress()[0])
    text: bytes | None = None
    while text is None:
        text = _ended(load, LOOK_S)
        _, sent, completed, failed, inflight, seconds = load.progress()
        what = f"{inflight} in flight, {failed} failed" if sent or seconds else "waiting for the server"
        progress.update(task, completed=completed + failed, description=what)
    return text


def _ended(load: Load, patience_s: float) -> bytes | None:
    try:
        return load.wait(patience_s)
    except ValueError as error:
        raise BenchError(str(error)) from None


def _allow_files(settings: dict[str, Any]) -> None:
    """Lets this process open a connection per request in flight, as far as the system lets it."""
    run = settings["run"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = run["pace"].get("users") or run["max_concurrency"] or settings["source"]["sessions"]
    wanted = most + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
