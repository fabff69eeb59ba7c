"""`nebula status`, `models`, `nodes`, `placements`, `load`, `scale`, `drain` and `unload`."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, TypeVar

import typer

from nebula_router.config import Settings
from nebula_router.flags import Command, examples, takes_settings
from nebula_router.sources import ConfigError

if TYPE_CHECKING:
    from nebula_router.fleet.asking.ask import Fleet
    from nebula_router.fleet.asking.documents import Document

FAILED: Final = 1
"""Exit status where the fleet could not be asked, or has no such thing."""
REFUSED: Final = 3
"""Exit status where a replica has no room."""

T = TypeVar("T")

_Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="A gateway that follows the fleet; without it the store where one is named, else the gateway of "
        "gateway.listen.",
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of the table.")]
_Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="Name (uid) of the model.", show_default=False)]
_ModelUid = Annotated[str | None, typer.Option("--model-uid", metavar="MODEL", help="MODEL.", show_default=False)]
_RoleWord = Literal["unified", "prefill", "decode"]
_EPILOG: Final = (
    "The store is asked where `--etcd-endpoint`, the environment or a file names one, else a running gateway.",
    "Exit status: 0 done, 1 the fleet cannot do it, 2 called wrongly, 3 no room for a replica.",
)


@dataclass(frozen=True)
class Asked:
    """Who answers a command, and how that is shown."""

    settings: Settings
    url: str | None
    as_json: bool

    def say(self, question: "Callable[[Fleet], Document]") -> None:
        """Prints the answer.

        Raises:
            ConfigError: The question makes no sense.
            Exit: There is no answer, or it is that there is no room.
        """
        from rich.console import Console

        from nebula_router.fleet.asking.documents import Done
        from nebula_router.fleet.asking.tables import show
        from nebula_router.fleet.operations import OperationError, WrongError
        from nebula_router.fleet.store import StoreError
        from nebula_router.remote import RemoteError

        try:
            answer = question(self._fleet())
        except WrongError as error:
            raise ConfigError(str(error)) from None
        except StoreError as error:
            _fail(
                f"{error}; is the store of store.etcd_endpoints up? Another one: --etcd-endpoint, or a gateway: --url"
            )
        except (OperationError, RemoteError) as error:
            _fail(str(error))
        if self.as_json:
            sys.stdout.write(answer.model_dump_json(indent=2) + "\n")
        else:
            show(Console(), answer)
        if isinstance(answer, Done) and answer.refused:
            raise typer.Exit(REFUSED)

    def _fleet(self) -> "Fleet":
        if self.url is None and self.settings.store.etcd_endpoints:
            from nebula_router.fleet.asking.ask_store import StoredFleet

            return StoredFleet(self.settings)
        from nebula_router.fleet.asking.ask import TIMEOUT_S, RemoteFleet
        from nebula_router.remote import Remote

        return RemoteFleet(Remote.of(self.settings.gateway, self.url, TIMEOUT_S))


def register(app: typer.Typer) -> None:
    """Gives `app` the commands."""
    for command, *lines in (
        (status, "nebula status", "nebula status --etcd-endpoint http://10.0.0.2:2379", "nebula status --json"),
        (models, "nebula models", "nebula models --json"),
        (nodes, "nebula nodes", "nebula nodes --url http://10.0.0.9:8081"),
        (placements, "nebula placements", "nebula placements qwen2_5_7b --json"),
        (load, "nebula load qwen2_5_7b --engine-config-path qwen.yaml", "nebula load llama --model-name org/llama-8B"),
        (scale, "nebula scale qwen2_5_7b 4", "nebula scale llama 2 --role decode", "nebula scale llama --between 1 8"),
        (
            drain,
            "nebula drain qwen2_5_7b 0",
            "nebula drain --node-id node_gpu1",
            "nebula drain --node-id node_gpu1 --off",
        ),
        (unload, "nebula unload qwen2_5_7b"),
    ):
        epilog = "\n\n".join([*_EPILOG, examples(*lines)])
        app.command(epilog=epilog)(takes_settings("store")(_asks(command)))


def status(*, asked: Asked) -> None:
    """Show a fleet in brief: models, nodes, and what somebody should look at."""
    asked.say(lambda fleet: fleet.status())


def models(*, asked: Asked) -> None:
    """Show the models of a fleet: how many replicas are wanted and ready, and why some are not."""
    asked.say(lambda fleet: fleet.models())


def nodes(*, asked: Asked) -> None:
    """Show the machines of a fleet with their GPUs, and who has them."""
    asked.say(lambda fleet: fleet.nodes())


def placements(*, asked: Asked, model: _Model = None) -> None:
    """Show every replica, of one model or of all: where it runs, its state and load, and why there or why not."""
    asked.say(lambda fleet: fleet.placements(model))


def load(
    *,
    asked: Asked,
    model: _Model = None,
    engine_config_path: Annotated[
        Path | None,
        typer.Option(
            "--engine-config-path",
            metavar="FILE",
            help="YAML file for `vllm serve --config`; it is read here and stored with the model.",
            show_default=False,
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            help="The model itself, where the file does not name it.",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[int, typer.Option("--replicas", metavar="N", min=1, help="How many it is to have.")] = 1,
    role: Annotated[_RoleWord, typer.Option("--role", help="What the replicas do of a request.")] = "unified",
) -> None:
    """Ask for a model: a running scheduler places it, or refuses it where there is no room.

    Without a scheduler, `nebula scheduler --model-uid` places one, and can say more of how.
    """
    from nebula_router.fleet.asking import ask
    from nebula_router.fleet.commands.scheduler_command import Options
    from nebula_router.fleet.commands.scheduling import asked as read
    from nebula_router.fleet.engine.engine_args import EngineConfigError
    from nebula_router.fleet.records import ModelSpec

    shape = "nebula load MODEL --engine-config-path FILE"
    options = Options(
        model_uid=_needed(model, "MODEL", shape),
        engine_config_path=engine_config_path,
        model_name=model_name,
        replicas=replicas,
        role=role,
    )
    try:
        wanted = read(options)
    except EngineConfigError as error:
        raise ConfigError(str(error)) from None
    name = _needed(wanted.model_name, "the model's own name", f"{shape} with `model: …` in it, or --model-name NAME")
    spec = ModelSpec(model_uid=wanted.model_uid, model_name=name, pools={wanted.role: wanted.pool(None)})
    asked.say(lambda fleet: ask.load(fleet, spec))


def scale(
    *,
    asked: Asked,
    model: _Model = None,
    replicas: Annotated[
        int | None, typer.Argument(metavar="REPLICAS", min=0, help="How many it is to have.", show_default=False)
    ] = None,
    role: Annotated[
        _RoleWord | None, typer.Option("--role", help="Which pool, where there are several.", show_default=False)
    ] = None,
    between: Annotated[
        tuple[int, int] | None,
        typer.Option("--between", metavar="FEWEST MOST", help="Let load decide between these.", show_default=False),
    ] = None,
) -> None:
    """Change how many replicas a model has, or between which bounds load decides that."""
    from pydantic import ValidationError

    from nebula_router.fleet.asking.documents import ScaleOrder

    shape = "nebula scale MODEL REPLICAS, or nebula scale MODEL --between FEWEST MOST"
    name = _needed(model, "MODEL", shape)
    if replicas is None and between is None:
        _needed(replicas, "REPLICAS", shape)
    low, high = between or (None, None)
    try:
        order = ScaleOrder.model_validate(
            {"replicas": replicas, "role": role, "min_replicas": low, "max_replicas": high}
        )
    except ValidationError as error:
        raise ConfigError(f"--between: {error.errors()[0]['msg']}; {shape}") from None
    asked.say(lambda fleet: fleet.scale(name, order))


def drain(
    *,
    asked: Asked,
    model: _Model = None,
    replica: Annotated[
        int | None, typer.Argument(metavar="REPLICA", min=0, help="Number of the replica.", show_default=False)
    ] = None,
    replica_id: Annotated[
        int | None, typer.Option("--replica-id", metavar="REPLICA", min=0, help="REPLICA.", show_default=False)
    ] = None,
    node_id: Annotated[
        str | None,
        typer.Option("--node-id", metavar="NODE", help="A node, in place of a replica.", show_default=False),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Take it back: new requests are welcome again.")] = False,
) -> None:
    """Give a replica, or all replicas of a node, no new requests: they end those that they have, and go.

    Another one takes a replica's place where there is room. A node that is drained gets no new replicas until --off.
    """
    from nebula_router.fleet.asking.documents import DrainOrder, NodeDrainOrder

    shape = "nebula drain MODEL REPLICA, or nebula drain --node-id NODE"
    number = _either(replica, replica_id, "REPLICA", "--replica-id")
    if node_id is not None:
        if model is not None or number is not None:
            raise ConfigError(f"--node-id drains a node and takes no replica: {shape}")
        asked.say(lambda fleet: fleet.drain_node(node_id, NodeDrainOrder(on=not off)))
    else:
        name, known = _needed(model, "MODEL", shape), _needed(number, "REPLICA", shape)
        asked.say(lambda fleet: fleet.drain(name, DrainOrder(replica_id=known, on=not off)))


def unload(*, asked: Asked, model: _Model = None) -> None:
    """End a model: nobody wants it any more, and the nodes end its engines."""
    name = _needed(model, "MODEL", "nebula unload MODEL")
    asked.say(lambda fleet: fleet.unload(name))


def _asks(run: Command) -> Command:
    """Gives a command `--url` and `--json`, and `--model-uid` where it takes a model; calls it with who answers."""
    own = [p for p in inspect.signature(run, eval_str=True).parameters.values() if p.name != "asked"]
    takes_model = any(p.name == "model" for p in own)

    def command(*, settings: Settings, url: str | None, as_json: bool, **given: Any) -> None:  # noqa: ANN401
        if takes_model:
            given["model"] = _either(given["model"], given.pop("model_uid"), "MODEL", "--model-uid")
        run(asked=Asked(settings, url, as_json), **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    more: list[tuple[str, object, object]] = [("model_uid", None, _ModelUid)] if takes_model else []
    more += [("url", None, _Url), ("as_json", False, _Json)]
    added = [inspect.Parameter(name, keyword, default=value, annotation=kind) for name, value, kind in more]
    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return command


def _either(first: T | None, second: T | None, *names: str) -> T | None:
    """The one that is given."""
    if first is not None and second is not None:
        raise ConfigError(f"{' and '.join(names)} say the same thing: give one of them")
    return first if second is None else second


def _needed(value: T | None, name: str, shape: str) -> T:
    if value is None:
        raise ConfigError(f"{name} is missing: {shape}")
    return value


def _fail(text: str) -> NoReturn:
    for line in text.splitlines():
        typer.echo(f"nebula: {line}", err=True)
    raise typer.Exit(FAILED)
