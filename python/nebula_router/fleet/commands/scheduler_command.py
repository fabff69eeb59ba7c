"""`nebula scheduler`: the service that places models, and with `--model-uid` one placement by hand."""

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import typer

from nebula_router.config import Settings
from nebula_router.flags import takes_settings

UNREACHABLE: Final = 1
"""Exit status where the store cannot be asked."""
REFUSED: Final = 3
"""Exit status where a replica has no place."""

_PANEL: Final = "One placement"
_EPILOG: Final = """
Exit status: 0 placed, 1 the store cannot be asked, 2 called wrongly, 3 no place for a replica.

Examples:

`nebula scheduler`

`nebula scheduler --model-uid qwen2_5_7b --node-id node_gpu0 --port 10814 --engine-config-path qwen.yaml`

`nebula scheduler --model-uid llama --engine-config-path llama.yaml --replicas 2 --dry-run`

`nebula scheduler --model-uid llama --role decode --min-replicas 1 --max-replicas 4 --target-ttft-ms 500`
"""


def _option(flag: str, text: str, metavar: str | None = None, **bounds: Any) -> Any:  # noqa: ANN401 - typer's own
    return typer.Option(flag, help=text, metavar=metavar, show_default=False, rich_help_panel=_PANEL, **bounds)


@dataclass(frozen=True)
class Options:
    """What the command line says of one placement; none where it says nothing."""

    model_uid: Annotated[str | None, _option("--model-uid", "Name of the model in this fleet.", "UID")] = None
    engine_config_path: Annotated[
        Path | None,
        _option(
            "--engine-config-path",
            "YAML file for `vllm serve --config`. It is read here and stored with the model. Without it the model's "
            "stored settings stay.",
            "FILE",
        ),
    ] = None
    model_name: Annotated[
        str | None,
        _option("--model-name", "The model itself, a folder or a name at Hugging Face; else the file's.", "NAME"),
    ] = None
    node_id: Annotated[str | None, _option("--node-id", "The one node that may have it.", "NODE")] = None
    port: Annotated[int | None, _option("--port", "Port of its engine; else a free one.", min=1, max=65535)] = None
    replicas: Annotated[int | None, _option("--replicas", "Number of replicas; else 1.", min=0)] = None
    min_replicas: Annotated[
        int | None, _option("--min-replicas", "With --max-replicas: the service chooses by load.", min=0)
    ] = None
    max_replicas: Annotated[int | None, _option("--max-replicas", "See --min-replicas.", min=1)] = None
    target_ttft_ms: Annotated[
        float | None, _option("--target-ttft-ms", "Mean time to first token above which a replica is added.", min=1)
    ] = None
    tensor_parallel_size: Annotated[
        int | None, _option("--tensor-parallel-size", "GPUs that share one engine's weights; else the file's.", min=1)
    ] = None
    gpus: Annotated[
        int | None, _option("--gpus", "GPUs per replica; else those of the engine's parallelism. 0: none.", min=0)
    ] = None
    role: Annotated[
        Literal["unified", "prefill", "decode"], _option("--role", "What the replicas do of a request.")
    ] = "unified"
    required_vram: Annotated[
        str | None, _option("--required-vram", "Memory of each GPU, as 20GiB, in place of the computed.", "SIZE")
    ] = None
    engine_type: Annotated[
        Literal["vllm", "sim", "podman", "docker"] | None,
        _option("--engine-type", "What the node starts; else its own."),
    ] = None
    docker_image: Annotated[str | None, _option("--docker-image", "Image for podman and docker.", "IMAGE")] = None
    extra_arg: Annotated[
        list[str] | None, _option("--extra-arg", "Argument for the engine, after its file. Again for more.", "ARG")
    ] = None
    force: Annotated[
        bool, _option("--force", "Place it even where its memory does not suffice; a GPU is never shared.")
    ] = False
    dry_run: Annotated[bool, _option("--dry-run", "Show the place and what would fit; write nothing.")] = False
    as_json: Annotated[bool, _option("--json", "Print one JSON document in place of the table.")] = False


def register(app: typer.Typer) -> None:
    """Gives the program its command `scheduler`."""
    app.command("scheduler", epilog=_EPILOG)(takes_settings("store", "scheduler")(_scheduler()))


def _scheduler() -> Any:  # noqa: ANN401 - a command
    """The command, with one parameter per field of `Options`."""

    def command(*, settings: Settings, **given: Any) -> None:  # noqa: ANN401 - a flag has any type
        """Place models on nodes, and keep them placed. With --model-uid: place one model, and end.

        Weights, KV cache and overhead are held against the memory that the nodes' GPUs have free; a model that does not
        fit is refused with the arithmetic.
        """
        from nebula_router.fleet.commands.scheduling import keep_placing, place_one

        options = Options(**given)
        status = keep_placing(settings, options) if options.model_uid is None else place_one(settings, options)
        if status:
            raise typer.Exit(status)

    hints = get_type_hints(Options, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name]) for f in fields(Options)]
    settings = inspect.Parameter("settings", keyword, annotation=Settings)
    command.__name__ = "scheduler"
    command.__signature__ = inspect.Signature([settings, *own])  # type: ignore[attr-defined]
    return command
