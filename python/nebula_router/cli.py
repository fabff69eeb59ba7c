"""The command `nebula`. Settings become flags in nebula_router.flags; a command only says what it starts."""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.main import get_command

import nebula_router
from nebula_router.config import Settings
from nebula_router.flags import examples, takes_settings
from nebula_router.fleet.commands import node_command, operations_command, scheduler_command, up_command
from nebula_router.reference import as_toml, page
from nebula_router.serving import serve
from nebula_router.sim_settings import SimSettings
from nebula_router.sources import ConfigError, load

USAGE: Final = 2  # exit status of a command that was called wrongly
_ROUTES: Final = ("route", "upstream", "tokens", "events", "store")
_SERVES: Final = ("gateway", *_ROUTES)
_KEPT_BY_THE_GATEWAY: Final = frozenset({"gateway.listen", "gateway.routers", "gateway.api_keys"})
_STOPS: Final = frozenset({signal.SIGINT, signal.SIGTERM})
_ANY: Final = {"allow_extra_args": True, "ignore_unknown_options": True}
_Url = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="The gateway; without it, the one of gateway.listen.", show_default=False
    ),
]

app = typer.Typer(
    name="nebula",
    help="An OpenAI-compatible gateway that sends each request to the vLLM engine that will answer it soonest.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


config_app = typer.Typer(
    help="Look at settings: what is in force, whether a file is right, what there is.",
    epilog=examples("nebula config show", "nebula config check gateway.toml", "nebula config docs"),
)
app.add_typer(config_app, name="config")
node_command.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,  # noqa: FBT002
) -> None:
    """Answers for the program as a whole."""
    if show_version:
        typer.echo(f"nebula-router {nebula_router.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    epilog=examples(
        "nebula gateway --engine http://127.0.0.1:8000 --engine http://127.0.0.1:8001",
        "nebula gateway --etcd-endpoint http://127.0.0.1:2379",
        "nebula gateway --listen 0.0.0.0:8081 --router http://127.0.0.1:18081",
        "nebula gateway --config gateway.toml --listen 0.0.0.0:8081",
    )
)
@takes_settings(*_SERVES)
def gateway(*, settings: Settings) -> None:
    """Serve the OpenAI API in front of vLLM engines.

    Engines are those of --engine, those that etcd tells of, or both. With --router it is routers that choose.
    """
    from nebula_router.gateway.front import in_front

    if settings.gateway.routers and (settings.gateway.engines or settings.store.etcd_endpoints):
        raise ConfigError("--router goes without --engine and --etcd-endpoint: the routers know the engines")
    serve(in_front(settings) if settings.gateway.routers else settings)


@app.command(
    epilog=examples(
        "nebula router --etcd-endpoint http://127.0.0.1:2379",
        "nebula router --listen 0.0.0.0:18081 --engine http://127.0.0.1:8000",
    )
)
@takes_settings("gateway", *_ROUTES, "router", without=_KEPT_BY_THE_GATEWAY)
def router(*, settings: Settings) -> None:
    """Serve the routing data plane alone: no keys. `nebula gateway --router URL` puts keys and limits in front."""
    from nebula_router.gateway.front import data_plane

    serve(data_plane(settings))


up_command.register(app)


@app.command(
    epilog=examples(
        "nebula sim --port 8000",
        "nebula sim --port 8001 --model tiny --speed 10",
        "nebula sim --calibration engine.json",
        """nebula sim --kv-events-config '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557"}'""",
        "nebula sim --fault 'die_mid_stream;after_chunks=3;count=2'",
    )
)
@takes_settings("sim")
def sim(
    *,
    settings: Settings,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="The port of --listen; 0 takes a free one.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Times and sizes of an engine, as `nebula bench calibrate` wrote them; settings that are given win.",
        ),
    ] = None,
) -> None:
    """Start one simulated vLLM engine."""
    from nebula_router.calibration import calibrated
    from nebula_router.core import Sim

    own = calibrated(settings.sim, calibration) if calibration else settings.sim

    # Blocked before the engine's thread starts, so that it inherits the mask and only `sigwait` takes the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        engine = Sim(_on_port(own, port).core_json())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    typer.echo(f"simulated engine {own.name} serves {own.model} on {engine.url}")
    signal.sigwait(_STOPS)
    engine.stop()


@app.command(add_help_option=False, context_settings=_ANY)
def bench(context: typer.Context) -> None:
    """Measure a live server, or the gateway beside its peers."""
    from nebula_router.bench.cli import app as bench_app

    _hand_over(context, bench_app)


@app.command(add_help_option=False, context_settings=_ANY)
def simulate(context: typer.Context) -> None:
    """Replay a trace against a simulated fleet, to size it and to choose a policy."""
    from nebula_router.simulate.cli import app as simulate_app

    _hand_over(context, simulate_app)


@app.command(
    epilog=examples(
        "nebula explain request.json",
        "curl -s https://example.org/request.json | nebula explain - --url http://10.0.0.9:8081",
        "nebula explain - --path /v1/completions --json < request.json",
    )
)
@takes_settings()
def explain(
    *,
    settings: Settings,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="Body of a request, as JSON; - is standard input.")],
    url: _Url = None,
    path: Annotated[
        str | None,
        typer.Option(
            "--path",
            metavar="PATH",
            help="Endpoint it is meant for; without it, told by its fields.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the gateway's answer in place of the table.")] = False,
) -> None:
    """Show where a running gateway would send a request and why. The request is not sent to any engine.

    The token is read from NEBULA_GATEWAY__ADMIN_TOKEN, or from the gateway's own file by --config.
    """
    from nebula_router import explain as explaining
    from nebula_router.remote import Remote

    remote = Remote.of(settings.gateway, url, explaining.TIMEOUT_S)
    explaining.explain(remote, file, path, as_json=as_json)


@app.command(
    epilog=examples(
        "nebula top",
        "nebula top --url http://10.0.0.9:8081 --interval 5",
        "nebula top --once",
        "nebula top --json | jq '.ranks[] | select(.credit < 0.5)'",
    )
)
@takes_settings()
def top(
    *,
    settings: Settings,
    url: _Url = None,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, metavar="SECONDS", help="Time between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table, of one interval, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, of one interval, and end.")] = False,
) -> None:
    """Watch a running gateway: load, KV cache, hits, events and predictions of each rank. Ctrl-C ends it.

    The token is read from NEBULA_GATEWAY__ADMIN_TOKEN, or from the gateway's own file by --config.
    """
    from nebula_router import top as watching
    from nebula_router.remote import Remote

    watching.top(Remote.of(settings.gateway, url, watching.TIMEOUT_S), interval, once=once, as_json=as_json)


scheduler_command.register(app)
operations_command.register(app)


@config_app.command(epilog=examples("nebula config show", "nebula config show --config gateway.toml --json"))
@takes_settings()
def show(
    *,
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of TOML.")] = False,
) -> None:
    """Print the settings in force, from the environment, a file and the defaults. Secrets are not shown."""
    if as_json:
        typer.echo(settings.model_dump_json(indent=2))
    else:
        typer.echo(as_toml(settings), nl=False)


@config_app.command(epilog=examples("nebula config check gateway.toml"))
def check(file: Annotated[Path, typer.Argument(help="TOML file with settings.")]) -> None:
    """Say whether a file is right, without the environment; every mistake is named."""
    load(file=file, environment=False)
    typer.echo(f"{file}: good")


@config_app.command(epilog=examples("nebula config docs > docs/settings.md"))
def docs() -> None:
    """Print the page with every setting."""
    typer.echo(page(), nl=False)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs one command and exits: 0 done, 2 called wrongly (one line on stderr says how), 130 interrupted."""
    try:
        status: Any = get_command(app).main(args=arguments, prog_name="nebula", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _fail(context.command_path if context else "nebula", error.format_message())
    except ConfigError as error:
        _fail("nebula", str(error))
    sys.exit(status if isinstance(status, int) else 0)


def _main_of(command: str) -> NoReturn:
    main([command, *sys.argv[1:]])


main_gateway = partial(_main_of, "gateway")
main_router = partial(_main_of, "router")
main_node = partial(_main_of, "node")
main_scheduler = partial(_main_of, "scheduler")


def _hand_over(context: typer.Context, commands: typer.Typer) -> None:
    """Lets another room's command run in this one's place, with its exit status."""
    status: Any = get_command(commands).main(args=context.args, prog_name=context.command_path, standalone_mode=False)
    if isinstance(status, int) and status:
        sys.exit(status)


def _on_port(sim: SimSettings, port: int | None) -> SimSettings:
    if port is None:
        return sim
    host = sim.listen.rpartition(":")[0]
    return sim.model_copy(update={"listen": f"{host}:{port}"})


def _fail(where: str, lines: str) -> NoReturn:
    for line in lines.splitlines():
        typer.echo(f"{where}: {line}", err=True)
    sys.exit(USAGE)
