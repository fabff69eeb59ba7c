"""What the live benchmark can be told, and the flags for it."""

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from typing import Annotated, Any, Final, Literal

import typer
from pydantic import Field

from nebula_router.flags import option
from nebula_router.kinds import Flag
from nebula_router.reference import Setting
from nebula_router.simulate.options import read
from nebula_router.simulate.workload import KINDS, MOST, Count, Part

DATASETS: Final = {
    "random": "unique",
    "prefix_repetition": "prefix_repetition",
    "multi_turn": "multi_turn",
    "shared_prefix": "shared_prefix",
    "agents": "agents",
    "sharegpt": "sharegpt",
    "mooncake": "mooncake",
    "decisions": "decisions",
}
"""What vLLM and we call a workload, and the core's name of its kind."""
SHAPED: Final = ("multi_turn", "shared_prefix", "agents", "sharegpt")
"""Datasets whose parameters are those of `nebula simulate`."""
_NOT_TAKEN: Final = {"rate_per_s", *(kind.counts for kind in KINDS.values())}
"""Of those parameters: --request-rate and --num-prompts stand for them."""
_SERVER, _ASKED, _WHEN, _OUT = "The server", "What is asked", "When it is asked", "What comes out"
_SHAPE: Final = "Parameters of --dataset-name multi_turn, shared_prefix, agents, sharegpt"
_PANELS: Final = {
    **dict.fromkeys(("backend", "base_url", "host", "port", "endpoint", "model", "header", "extra_body"), _SERVER),
    **dict.fromkeys(("session_header", "request_timeout_sec", "ready_check_timeout_sec"), _SERVER),
    **dict.fromkeys(("num_prompts", "request_rate", "burstiness", "max_concurrency", "self_timed", "speed"), _WHEN),
    **dict.fromkeys(("num_warmups",), _WHEN),
    **dict.fromkeys(("percentile_metrics", "metric_percentiles", "goodput", "save_result", "result_dir"), _OUT),
    **dict.fromkeys(("result_filename", "label", "metadata", "smoke", "as_json"), _OUT),
}
_METAVARS: Final = {
    "base_url": "URL",
    "header": "KEY=VALUE",
    "extra_body": "JSON",
    "session_header": "NAME",
    "dataset_name": "NAME",
    "dataset_path": "FILE",
    "result_dir": "DIR",
    "result_filename": "FILE",
    "metadata": "KEY=VALUE",
    "goodput": "METRIC:MS",
    "percentile_metrics": "METRIC,…",
    "metric_percentiles": "NUMBER,…",
}


class Options(Part):
    """A run. A field that was not told holds its default and is not in `model_fields_set`."""

    backend: Literal["vllm", "openai", "openai-chat"] = Field(
        "openai", description="vllm and openai ask for completions, openai-chat for chats."
    )
    base_url: str | None = Field(
        None,
        min_length=1,
        description="Where the server is, in place of --host and --port; a /v1 at its end is dropped.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Where the server is.")
    port: int = Field(8000, ge=1, le=65535, description="The same.")
    endpoint: str | None = Field(
        None, pattern="^/", description="Path that is asked; without it, /v1/completions or /v1/chat/completions."
    )
    model: str | None = Field(None, min_length=1, description="Model that is asked; without it, the server's first.")
    header: tuple[str, ...] = Field((), description="Header of every request; several behind one flag, or a flag each.")
    extra_body: str | None = Field(None, description="Further fields of every request, as a JSON object.")
    session_header: str | None = Field(
        None, min_length=1, description="Header that carries the conversation's key, such as x-session-id."
    )
    ready_check_timeout_sec: float = Field(
        0, ge=0, le=86_400, description="How long to ask until there is a good reply, before anything counts."
    )
    request_timeout_sec: float = Field(600, ge=0.01, le=86_400, description="A request that takes longer has failed.")

    dataset_name: Literal[
        "random",
        "prefix_repetition",
        "multi_turn",
        "shared_prefix",
        "agents",
        "sharegpt",
        "mooncake",
        "decisions",
    ] = Field("random", description=f"{', '.join(DATASETS)}; the last three are read from --dataset-path.")
    dataset_path: str | None = Field(
        None, min_length=1, description="Recorded chats, a trace in Mooncake's format, or the gateway's log."
    )
    random_input_len: Count = Field(1024, description="random: tokens of a prompt.")
    random_output_len: Count = Field(128, description="random: tokens of a reply.")
    prefix_repetition_prefix_len: Count = Field(256, description="prefix_repetition: tokens of a prefix.")
    prefix_repetition_suffix_len: int = Field(
        256, ge=0, le=MOST, description="prefix_repetition: tokens behind it; 0 for none."
    )
    prefix_repetition_num_prefixes: Count = Field(10, description="prefix_repetition: different prefixes.")
    prefix_repetition_output_len: Count = Field(128, description="prefix_repetition: tokens of a reply.")
    sharegpt_output_len: Count | None = Field(
        None, description="sharegpt: tokens of a reply; without it, as many as the recorded one has."
    )
    ignore_eos: bool = Field(False, description="Let replies go on to their last token; then their length is checked.")
    streaming: bool = Field(True, description="Ask for streams; whole replies have no first token.")
    checksum: bool = Field(False, description="Check every byte of streams that a simulated engine signs.")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="Seed of prompts and arrivals.")

    num_prompts: Count = Field(
        1000, description="Requests; of multi_turn, agents and sharegpt, conversations. At most what a file holds."
    )
    request_rate: float | None = Field(
        None, gt=0, allow_inf_nan=True, description="Requests per second; without it, or inf, all are due at once."
    )
    burstiness: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=True,
        description="Of --request-rate: 1 is a Poisson process, less is burstier, inf is even.",
    )
    max_concurrency: Count | None = Field(
        None,
        description="Most requests in flight; further ones wait, and that counts. Without a --request-rate: so many "
        "users, each of whom asks again once answered.",
    )
    self_timed: bool = Field(
        False, description="Ask when the file says; so it is for mooncake and decisions without a --request-rate."
    )
    speed: float = Field(1.0, ge=1e-6, le=1e6, description="How many times faster than written users live.")
    num_warmups: int = Field(0, ge=0, le=1_000_000, description="Requests before anything counts, of other words.")

    percentile_metrics: str = Field(
        "ttft,tpot,itl,e2el",
        description="Metrics that are shown: also ttft_from_send, e2el_from_send, client_queue_time, generator_lag.",
    )
    metric_percentiles: str = Field("99", description="Percentiles of each.")
    goodput: tuple[str, ...] = Field(
        (), description="Objective of a good request, such as ttft:200 tpot:50 e2el:1000; several are all to be met."
    )
    save_result: bool = Field(False, description="Append the result to a file, one line of JSON per run.")
    result_dir: str | None = Field(None, min_length=1, description="Its folder; without it, the current one.")
    result_filename: str | None = Field(
        None, min_length=1, description="Its name; without it, {label}-{rate}qps-{model}-{time}.json."
    )
    label: str | None = Field(None, min_length=1, description="Name of the run in comparisons; else the backend.")
    metadata: tuple[str, ...] = Field((), description="What else is kept with the result.")
    smoke: bool = Field(False, description="Ask one completion only, and show it; exit status 1 on any error.")
    as_json: Annotated[bool, Flag("--json")] = Field(False, description="Print the line of JSON in place of the block.")

    @property
    def server(self) -> str:
        """The base URL."""
        if self.base_url is not None:
            return self.base_url.rstrip("/").removesuffix("/v1")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def told(self, *names: str) -> bool:
        """Whether any of these was told."""
        return not self.model_fields_set.isdisjoint(names)


def flag(name: str) -> str:
    """The flag of a field of `Options`, as people type it."""
    return Setting("bench", name, Options.model_fields[name]).flags[0]


def takes_options(run: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags of `Options` and of the datasets' shapes; calls it with `options=` and `shape=`."""
    rows = {name: Setting("bench", name, field) for name, field in Options.model_fields.items()}
    shapes = {f"shape_{name}": row for name, row in _shape_rows().items()}

    def command(context: typer.Context, **given: Any) -> None:  # noqa: ANN401 - a flag has any type
        told = {name: value for name in rows if (value := given.pop(name)) not in (None, [])}
        shape = {name.removeprefix("shape_"): value for name in shapes if (value := given.pop(name)) is not None}
        run(context, options=read(Options, told), shape=shape, **given)

    def parameter(name: str, row: Setting, panel: str, metavar: str | None) -> inspect.Parameter:
        annotation = option(row, panel, metavar)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    flags = [parameter(name, row, _PANELS.get(name, _ASKED), _METAVARS.get(name)) for name, row in rows.items()]
    flags += [parameter(name, row, _SHAPE, None) for name, row in shapes.items()]
    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    command.__signature__ = inspect.Signature([context, *flags])  # type: ignore[attr-defined]
    return command


def shape_of(dataset: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of a dataset whose shape is that of `nebula simulate`, with its defaults.

    Raises:
        ConfigError: A value that its flag does not take.
    """
    kind = KINDS[DATASETS[dataset]]
    return read(kind, given).model_dump(exclude=_NOT_TAKEN)


def shape_names(dataset: str) -> set[str]:
    """The parameters that such a dataset has."""
    return set(KINDS[DATASETS[dataset]].model_fields) - _NOT_TAKEN if dataset in SHAPED else set()


def _shape_rows() -> dict[str, Setting]:
    """One row per parameter of any of these datasets; its help says whose it is and with which default."""
    rows: dict[str, Setting] = {}
    for dataset in SHAPED:
        fields = KINDS[DATASETS[dataset]].model_fields
        for name in (name for name in fields if name not in _NOT_TAKEN):
            known = rows.get(name)
            whose = f"{dataset} {fields[name].default}"
            text = f"{known.help[:-1]}, {whose}]" if known else f"{fields[name].description} [{whose}]"
            field = copy(fields[name])
            field.description, field.default = text, None
            rows[name] = Setting("shape", name, field)
    return rows
