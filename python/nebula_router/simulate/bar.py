"""How far a simulation is, for someone who waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_COLUMNS: Final = (
    TextColumn("{task.description}", markup=False),
    BarColumn(30),
    MofNCompleteColumn(),
    TextColumn("requests"),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


class Bar:
    """A progress bar over all requests of all runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, visible=False)
        self._runs: int | None = None

    def begin(self, what: str, runs: int | None) -> None:
        """Starts over for so many runs; None where nobody knows how many it takes."""
        self._runs = runs
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(what, total=None)

    def more(self, ended: int, total: int) -> None:
        """Goes on by the requests that have ended, of `total` in a run. Any thread may call it."""
        self._progress.update(self._task, advance=ended, total=self._runs and self._runs * total)


@contextmanager
def shown(console: Console) -> Iterator[Bar]:
    """A bar that is there meanwhile; nothing where nobody looks."""
    with Progress(*_COLUMNS, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress)
