"""`nebula up`: a gateway and a whole fleet behind it, in one process."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Final

import typer

from nebula_router.config import Settings
from nebula_router.flags import examples, takes_settings
from nebula_router.serving import serve
from nebula_router.sources import ConfigError

if TYPE_CHECKING:
    from nebula_router.fleet.commands.local import LocalFleet

FAILED: Final = 1
"""Exit status where this machine's node cannot run."""
REFUSED: Final = 3
"""Exit status where a model has no place."""
SIMS: Final = 4
_TAKES: Final = ("gateway", "route", "upstream", "tokens", "events", "sim", "node", "scheduler")
_WITHOUT: Final = frozenset(
    {
        *("sim.listen", "sim.name", "sim.seed", "sim.served_model_names"),  # each engine has its own
        *("gateway.routers", "node.log_level", "node.on_stop"),
    }
)
_EXAMPLES: Final = (
    "nebula up --sim 4",
    "nebula up --sim 2 --speed 10 --policy round_robin",
    "nebula up --engine-config-path qwen.yaml --engine-config-path llama.yaml",
)


def register(app: typer.Typer) -> None:
    """Gives the program its command `up`."""
    app.command("up", epilog=examples(*_EXAMPLES))(takes_settings(*_TAKES, without=_WITHOUT)(_up))


def _up(
    *,
    settings: Settings,
    sim: Annotated[
        int | None,
        typer.Option("--sim", min=1, max=64, help=f"Simulated engines to start. [default: {SIMS}]", show_default=False),
    ] = None,
    engine_config_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--engine-config-path",
            metavar="FILE",
            help="In their place a real engine on this machine's GPUs, by its YAML file for `vllm serve --config`. "
            "Again for more models; each is called like its file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a gateway and a whole fleet behind it: simulated engines, or real ones on this machine's GPUs.

    Gateway, node and scheduler are one process; the engines are its children and end with it. `nebula status`, `scale`,
    `drain` and `unload` in another terminal ask and change it.
    """
    from nebula_router.fleet.claim import NodeTakenError
    from nebula_router.fleet.commands.local import NoRoomError, configured, simulated
    from nebula_router.fleet.commands.placed import show
    from nebula_router.fleet.engine.engine_args import EngineConfigError

    if engine_config_path and sim is not None:
        raise ConfigError("--sim and --engine-config-path: engines are simulated or real; give one of them")
    try:
        if engine_config_path:
            fleet = configured(settings, engine_config_path)
            welcome = _welcome(settings, fleet, "Engines that start on this machine's GPUs")
            serve(settings, replace(fleet, when_placed=partial(_say, welcome)))
        else:
            fleet = simulated(settings, sim or SIMS)
            serve(settings, fleet, _welcome(settings, fleet, f"{sim or SIMS} simulated engines"))
    except EngineConfigError as error:
        raise ConfigError(str(error)) from None
    except NodeTakenError as error:
        typer.echo(f"nebula up: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except NoRoomError as error:
        show(error.placed, dry_run=False)
        raise typer.Exit(REFUSED) from None


def _say(text: str) -> None:
    typer.echo(text)
    sys.stdout.flush()


def _welcome(settings: Settings, fleet: "LocalFleet", engines: str) -> str:
    """What to type and where to look, once the gateway listens."""
    from nebula_router.remote import own_url

    url = own_url(settings.gateway)
    body = {
        "model": fleet.asks[0].model_name or fleet.asks[0].model_uid,
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 32,
        "stream": True,
    }
    key = ' -H "Authorization: Bearer $KEY"' if settings.gateway.api_keys else ""
    curl = f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {quote(json.dumps(body))}"
    return "\n".join(
        [
            f"{engines} and a gateway on {url}. Try:",
            f"  {curl}",
            f"Each request's routing decision is one line below. Engines: {url}/health. Metrics: {url}/metrics.",
        ]
    )
