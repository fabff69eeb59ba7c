"""`python -m nebula_router.bench`: what each benchmark can be told."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nebula_router.bench import machine, peers, record, result, table
from nebula_router.bench import soak as soaking
from nebula_router.bench.error import BenchError
from nebula_router.bench.install import install
from nebula_router.bench.sweep import Plan, sweep

app = typer.Typer(
    name="bench",
    help="Measure the gateway beside its peers, or soak it. All on loopback, bounded in time, nothing left running.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

FAILED = 1
"""Exit status: something that was measured failed."""
UNABLE = 2
"""Exit status: nothing could be measured."""

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Where results go, - is standard output. Default: into .benchmarks/"),
]
Logs = Annotated[
    Path | None,
    typer.Option("--logs", metavar="DIR", help="Keep what each server prints, to see why it fails. Default: /dev/null"),
]
Connections = Annotated[
    list[int] | None,
    typer.Option("--connections", "-c", min=1, max=4096, help="Give it once per number. Default: 1, 8, 64."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A name, or how it starts; more than once. Default: all."),
]


@app.callback()
def _commands() -> None:
    """A callback makes typer ask for a command's name even where there is only one."""


@app.command()
def gateway(
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Time for each number of connections.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often all is repeated; medians are shown.")] = 3,
    connections: Connections = None,
    only: Only = None,
    json: Json = None,
    logs: Logs = None,
) -> None:
    """Requests/s, latency, CPU per request and memory of the gateway, other routers, no router, and the floors.

    A fixed-reply upstream (4 nginx), 4 KB chat prompts, 64 bodies over 8 system prompts, sent by wrk. Peers are
    installed from PyPI the first time, each into an environment of its own under the user's cache directory.

    Needs: `apt-get install nginx-light wrk`

    Examples:
    - `python -m nebula_router.bench gateway`

    - `python -m nebula_router.bench gateway --only nebula --only vllm-router --seconds 10 -c 64`

    - `python -m nebula_router.bench gateway --json - | jq .rows`
    """
    console = _console(json)
    with _reported(console):
        entrants = peers.select(only or [])
        place, meter = machine.describe(), machine.Meter()
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        for package in {entrant.package for entrant in entrants if entrant.package}:
            with console.status(f"looking for {package.requirement}") as status:
                install(package, status.update)
        plan = Plan(seconds, rounds, tuple(connections or (1, 8, 64)), logs)
        with _progress(console) as progress:
            task = progress.add_task("start", total=plan.steps(len(entrants)))
            visits = sweep(entrants, plan, lambda what: progress.update(task, advance=1, description=what))
        remarks = [note for note in (meter.note(), table.setting(plan), *place.lines()) if note]
        table.show(console, visits, plan, remarks)
        rows = result.rows(visits)
        results = {
            "plan": asdict(plan),
            "others_cores": meter.others(),
            "rows": [asdict(row) for row in rows],
            "footprints": [asdict(mark) for mark in result.footprints(visits)],
            "visits": [asdict(visit) for visit in visits],
        }
        saved = record.write("gateway", place, results, json)
        console.print(f"results: {saved}", highlight=False)
    if any(visit.failure for visit in visits) or any(row.failed for row in rows):
        sys.exit(FAILED)


@app.command()
def soak(
    streams: Annotated[int, typer.Option(min=1, max=20_000, help="Concurrent streams.")] = 1000,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long new streams are asked for.")] = 60,
    engines: Annotated[int, typer.Option(min=1, max=64, help="Simulated engines.")] = 4,
    speed: Annotated[float, typer.Option(min=0, help="Of the engines; 1 is real time, 0 waits for nothing.")] = 0.25,
    json: Json = None,
    logs: Logs = None,
) -> None:
    """Many concurrent streams through the gateway and simulated engines: no error, no lost byte, no leak.

    Each stream carries a checksum that its engine computed. Afterwards the gauges of load must be zero and the server's
    memory flat; otherwise, and on any error, the exit status is 1.

    Examples:
    - `python -m nebula_router.bench soak`

    - `python -m nebula_router.bench soak --streams 200 --seconds 10 --speed 1 --logs /tmp/soak`
    """
    console = _console(json)
    with _reported(console):
        place = machine.describe()
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        plan = soaking.Plan(streams, seconds, engines, speed, logs)
        with _progress(console) as progress:
            task = progress.add_task("start", total=seconds)
            report = soaking.soak(plan, lambda at, what: progress.update(task, completed=at, description=what))
        faults = report.faults()
        for name, what in soaking.describe(plan, report):
            console.print(f"{name:>18}  {what}", highlight=False)
        for line in place.lines():
            console.print(line, highlight=False, soft_wrap=True)
        results = {"plan": asdict(plan), **soaking.figures(report)}
        console.print(f"results: {record.write('soak', place, results, json)}", highlight=False)
        for found in faults:
            console.print(f"FAILED {found}", style="red", highlight=False)
    if faults:
        sys.exit(FAILED)


def _console(json: Path | None) -> Console:
    """Where people read: standard error when standard output carries the JSON."""
    console = Console(stderr=json == record.STDOUT)
    console.width = max(console.width, table.WIDTH)
    return console


def _progress(console: Console) -> Progress:
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    return Progress(*columns, console=console, transient=True)


@contextmanager
def _reported(console: Console) -> Iterator[None]:
    """Ends with one line where a benchmark cannot go on. Servers are stopped on SIGTERM, too, as on Ctrl-C."""

    def end(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BenchError as error:
        console.print(f"nebula bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(UNABLE)
    finally:
        signal.signal(signal.SIGTERM, before)
