"""`python -m nebula_router.bench`: what each benchmark can be told."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nebula_router.bench import calibrate as calibrating
from nebula_router.bench import calibrate_table, machine, peers, record, result, table
from nebula_router.bench import soak as soaking
from nebula_router.bench.calibrate_probe import Limits
from nebula_router.bench.error import BenchError
from nebula_router.bench.install import install
from nebula_router.bench.live.ask import ask
from nebula_router.bench.live.group import Group, refuse_with_command
from nebula_router.bench.live.options import Options, takes_options
from nebula_router.bench.pacer import Pace
from nebula_router.bench.result import Part
from nebula_router.bench.stand import Plan
from nebula_router.bench.sweep import sweep
from nebula_router.flags import examples
from nebula_router.sources import ConfigError

app = typer.Typer(
    name="bench",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
Streams = Annotated[
    list[int] | None,
    typer.Option("--streams", min=1, max=4096, help="Give it once per number. Default: 64, 256."),
]
Paces = Annotated[
    Pace, typer.Option("--pace", help="Whether each stream has its own time, or all of an engine are written at once.")
]
Parts = Annotated[
    list[Part] | None,
    typer.Option("--part", help="What is sent; more than once. Default: all."),
]
_LIVE = (
    "nebula bench --base-url http://127.0.0.1:8081 --smoke",
    "nebula bench --base-url http://127.0.0.1:8081 --request-rate 10 --num-prompts 500 --ignore-eos --save-result",
    "nebula bench --backend openai-chat --dataset-name multi_turn --max-concurrency 32 --goodput ttft:200 tpot:50",
    "nebula bench --dataset-name mooncake --dataset-path conversation.jsonl --speed 2 --percentile-metrics ttft,e2el",
    "nebula bench report before.json after.json --plot change.png",
)
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A name, or how it starts; more than once. Default: all."),
]


@app.callback(invoke_without_command=True, epilog=examples(*_LIVE))
@takes_options
def live(context: typer.Context, *, options: Options, shape: Mapping[str, str]) -> None:
    """Ask a server what a workload asks and measure it; or, by a command below, measure the gateway beside its peers.

    Without a command: an open-loop benchmark of a live server, with the options of `vllm bench serve` where that has
    the same. The clock of a request starts when it was due, so that a server that stalls is charged for all that should
    have been asked meanwhile. Every reply is checked to its end; exit status 1 if one failed, 2 if nothing could be
    measured. A key is read from the variable OPENAI_API_KEY.
    """
    with _reported(Console(stderr=True)):
        if context.invoked_subcommand is not None:
            refuse_with_command(context.invoked_subcommand, options, shape)
            return
        sys.exit(ask(options, shape, Console(stderr=options.as_json)))


@app.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="What --save-result wrote; the first is the base.")
    ],
    *,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the picture goes. Default: report.png, none with --json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling behind the intervals.")] = 0,
) -> None:
    """Compare results of the live benchmark with the first of them: differences, how sure they are, and a picture.

    Needs: `pip install 'nebula-router[plot]'`

    Examples:
    - `nebula bench report before.json after.json --plot change.png`

    - `nebula bench report bm_results/*.json --json | jq .rows`
    """
    with _reported(Console(stderr=True)):
        try:
            reporting = import_module("nebula_router.bench.live.report")
        except ImportError as error:
            raise BenchError(f"{error.name} is missing; `pip install 'nebula-router[plot]'` brings it") from None
        reporting.report(files, plot, seed, as_json=as_json)


@app.command()
def gateway(  # noqa: PLR0913 - each is a flag
    *,
    part: Parts = None,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Time for each number of connections.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often all is repeated; medians are shown.")] = 3,
    connections: Connections = None,
    streams: Streams = None,
    pace: Paces = Pace.SPREAD,
    only: Only = None,
    json: Json = None,
    logs: Logs = None,
) -> None:
    """Speed, latency, CPU and memory of the gateway, other routers, no router, and the floors, under three loads.

    - requests: 4 KB chat prompts, 64 bodies over 8 system prompts, sent by wrk; 4 nginx with a fixed reply answer.
    - tokens: the same with prompts of about 1,000 token ids, of 16 conversations that grow.
    - streams: replies of 100 chunks, one each 20 ms; how long each chunk was on its way, and its CPU in the router.

    Peers are installed from PyPI the first time, each into an environment of its own under the user's cache directory.

    Needs: `apt-get install nginx-light wrk`

    Examples:
    - `nebula bench gateway`

    - `nebula bench gateway --only nebula --only vllm-router --seconds 10 -c 64 --part requests`

    - `nebula bench gateway --part streams --pace steps --streams 1000 --rounds 1`

    - `nebula bench gateway --json - | jq .rows`
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
        parts = tuple(one for one in Part if not part or one in part)
        levels = tuple(connections or (1, 8, 64)), tuple(streams or (64, 256))
        plan = Plan(seconds, rounds, *levels, parts=parts, pace=pace, logs=logs)
        with _progress(console) as progress:
            task = progress.add_task("start", total=plan.steps(entrants))
            visits = sweep(entrants, plan, lambda what: progress.update(task, advance=1, description=what))
        notes = (meter.note(), *table.lateness(visits), *table.setting(plan), *place.lines())
        remarks = [note for note in notes if note]
        table.show(console, visits, plan, remarks)
        rows, stream_rows = result.rows(visits), result.stream_rows(visits)
        results = {
            "plan": asdict(plan),
            "entrants": {entrant.name: entrant.about for entrant in entrants},
            "others_cores": meter.others(),
            "rows": [asdict(row) for row in rows],
            "stream_rows": [asdict(row) for row in stream_rows],
            "footprints": [asdict(mark) for mark in result.footprints(visits)],
            "visits": [asdict(visit) for visit in visits],
        }
        saved = record.write("gateway", place, results, json)
        console.print(f"results: {saved}", highlight=False)
    failed = sum(row.failed for row in rows) + sum(row.failed for row in stream_rows)
    if failed or any(visit.failure for visit in visits):
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
    - `nebula bench soak`

    - `nebula bench soak --streams 200 --seconds 10 --speed 1 --logs /tmp/soak`
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


@app.command()
def calibrate(  # noqa: PLR0913 - each is a flag
    *,
    base_url: Annotated[str, typer.Option(metavar="URL", help="Where the engine serves HTTP.")],
    model: Annotated[str | None, typer.Option(help="A model that it serves. Default: its first.")] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Tokens of one step, as the engine was started with.")
    ] = 2048,
    max_num_seqs: Annotated[int, typer.Option(min=1, max=65536, help="Requests at once, the same.")] = 256,
    block_size: Annotated[int | None, typer.Option(min=1, help="For an engine whose metrics do not tell.")] = None,
    kv_blocks: Annotated[int | None, typer.Option(min=2, help="The same.")] = None,
    streams: Annotated[int, typer.Option(min=1, max=1024, help="Largest batch that is measured.")] = 32,
    longest: Annotated[int, typer.Option(min=1, help="Tokens of the longest prompt that is measured.")] = 16_384,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often all is repeated; medians count.")] = 9,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="Time that it may take, about.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the result goes, - is standard output. Default: into .benchmarks/"),
    ] = None,
) -> None:
    """Fit the simulator's timing model to a live engine: `nebula sim --calibration FILE` then takes as long as it.

    The engine must be idle. It gets prompts of random token ids, alone and side by side, and only what a client sees is
    measured: nothing is installed beside it. It does not tell the two limits of a step, so they are options; their
    defaults are those of `vllm serve` on a GPU of less than 70 GiB. A key is read from the variable OPENAI_API_KEY.

    Needs: `pip install 'nebula-router[bench]'`

    Examples:
    - `nebula bench calibrate --base-url http://127.0.0.1:8000 --out engine.json`

    - `nebula bench calibrate --base-url http://gpu-7:8000 --max-num-batched-tokens 8192 --max-num-seqs 1024`
    """
    console = _console(out)
    with _reported(console):
        place, limits = machine.describe(), Limits(max_num_batched_tokens, max_num_seqs, streams, longest)
        key = os.environ.get("OPENAI_API_KEY")
        plan = calibrating.Plan(base_url, model, key, limits, seconds, rounds, block_size, kv_blocks)
        with _progress(console) as progress:
            task = progress.add_task("look", total=100)
            found = calibrating.calibrate(
                plan, lambda share, what: progress.update(task, completed=int(100 * min(1, share)), description=what)
            )
        calibrate_table.show(console, found, place.lines())
        console.print(f"results: {record.write('calibrate', place, found.document(), out)}", highlight=False)


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
    except (BenchError, ConfigError) as error:
        console.print(f"nebula bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(UNABLE)
    finally:
        signal.signal(signal.SIGTERM, before)
