"""What `nebula simulate` can be told beside settings, and the flags for it."""

import inspect
from collections.abc import Iterable, Mapping
from copy import copy
from difflib import get_close_matches
from typing import Annotated, Any, Final, TypeVar

from annotated_types import Len
from pydantic import BeforeValidator, Field, ValidationError

from nebula_router.config import Settings
from nebula_router.core import SIM_POLICIES
from nebula_router.flags import Command, option
from nebula_router.kinds import Flag
from nebula_router.reference import Setting
from nebula_router.simulate.workload import FORMATS, GENERATORS, KINDS, Part
from nebula_router.sources import ConfigError, expected

ALL: Final = "all"
_PANELS: Final = {
    "trace": "What is asked",
    "trace_format": "What is asked",
    "limit": "What is asked",
    "workload": "What is asked",
    "jobs": "What comes out",
    "out": "What comes out",
}
_METAVARS: Final = {
    "trace": "FILE",
    "trace_format": "|".join(FORMATS),
    "workload": "|".join(GENERATORS),
    "engines": "N",
    "policies": "NAME",
    "load": "SHARE",
    "calibration": "FILE",
    "out": "DIR",
}
_PARAMETERS: Final = "Parameters of --workload, and of traces without times"
_P = TypeVar("_P", bound=Part)


def _split(values: object) -> object:
    """The items of a list whose elements may hold several, with commas between; each once, the first place counts."""
    if not isinstance(values, list):
        return values
    items = [item.strip() if isinstance(item, str) else item for value in values for item in _parts(value)]
    return tuple(dict.fromkeys(items))


def _parts(value: object) -> Iterable[object]:
    return value.split(",") if isinstance(value, str) else [value]


Many = BeforeValidator(_split)


class Options(Part):
    """The fleets and loads to try, and what becomes of the figures."""

    trace: str | None = Field(None, min_length=1, description="Recorded requests to replay.")
    trace_format: Annotated[str | None, Flag("--format")] = Field(
        None, description="Format of the trace. Without it, the trace's beginning tells."
    )
    limit: int | None = Field(None, ge=1, description="Replay the trace's first so many requests.")
    workload: str | None = Field(None, description="Make requests up; the parameters stand below.")
    engines: Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], Many, Len(1)] = Field(
        (8,), description="Engines of the fleet; several sizes, as 4,8,16 or a flag each, to compare them."
    )
    policies: Annotated[tuple[str, ...], Many, Len(1), Flag("--policy")] = Field(
        ("kv", "round_robin", "least_loaded"),
        description=f"Rule that chooses the engine; a flag each, or `{ALL}`: {', '.join(SIM_POLICIES)}.",
    )
    speed: float = Field(1.0, ge=1e-6, le=1e6, description="How many times faster than written users live.")
    load: Annotated[tuple[Annotated[float, Field(ge=0.01, le=10)], ...], Many] = Field(
        (), description="In place of --speed: share of the speed at which the fleet saturates, which is searched."
    )
    seed: int = Field(1, ge=0, le=2**64 - 1, description="Seed of all that is left to chance.")
    max_model_len: int | None = Field(
        None, ge=1, le=2**32 - 1, description="Longest prompt and reply together; without it, what the KV cache holds."
    )
    calibration: str | None = Field(
        None, min_length=1, description="Times of an engine as `nebula bench calibrate` wrote them; they beat --preset."
    )
    events: bool = Field(True, description="Whether engines tell what their caches hold, as `kv` and others want.")
    event_delay_ms: float = Field(5.0, ge=0, le=1e9, description="Time until such an event arrives.")
    event_loss: float = Field(0.0, ge=0, le=1, description="Share of the events that never arrive.")
    slo_ttft_ms: float = Field(2000.0, gt=0, le=1e9, description="Longest good time to first token.")
    slo_itl_ms: float = Field(100.0, gt=0, le=1e9, description="Longest good mean time between tokens.")
    jobs: int | None = Field(None, ge=1, le=1024, description="Runs side by side; without it, one per core.")
    out: str = Field(
        "simulation", min_length=1, description="Folder for the files; those of an earlier run are replaced."
    )


def takes_options(run: Command) -> Command:
    """Gives a command the flags of `Options` and of every workload; calls it with `options=` and `parameters=`."""
    rows = {name: _row(name) for name in Options.model_fields}
    kinds = _parameters()

    def command(*, settings: Settings, **given: Any) -> None:  # noqa: ANN401 - a flag has any type
        told = {name: given.pop(name) for name in list(rows)}
        parameters = {name: given.pop(f"workload_{name}") for name in kinds}
        run(
            settings=settings,
            options=read(Options, {name: value for name, value in told.items() if value not in (None, [])}),
            parameters={name: value for name, value in parameters.items() if value is not None},
            **given,
        )

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(run, eval_str=True).parameters.values()
    flags = [
        inspect.Parameter(
            name,
            keyword,
            default=None,
            annotation=option(row, _PANELS.get(name, "The fleet, and when it is asked"), _METAVARS.get(name)),
        )
        for name, row in rows.items()
    ]
    flags += [
        inspect.Parameter(f"workload_{name}", keyword, default=None, annotation=option(row, _PARAMETERS))
        for name, row in kinds.items()
    ]
    parameters = [p.replace(kind=keyword) for p in own if p.name not in {"options", "parameters"}]
    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    command.__signature__ = inspect.Signature([*flags, *parameters])  # type: ignore[attr-defined]
    return command


def read(model: type[_P], given: Mapping[str, Any]) -> _P:
    """The model with the values of flags.

    Raises:
        ConfigError: A value that its flag does not take.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        lines = []
        for mistake in error.errors(include_url=False):
            name = str(mistake["loc"][0])
            row = Setting("simulate", name, model.model_fields[name])
            lines.append(f"{row.flags[0]} {mistake['input']}: {expected(mistake, row)}")
        raise ConfigError("\n".join(lines)) from None


def one_of(flag: str, word: str, known: Iterable[str]) -> str:
    """`word`, where it is known.

    Raises:
        ConfigError: It is not; the nearest is named.
    """
    words = list(known)
    if word in words:
        return word
    close = get_close_matches(word, words, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(words)}"
    raise ConfigError(f"{flag} {word}: unknown; {hint}")


def _row(name: str) -> Setting:
    """An option; the default of one that holds several values is shown as people type it."""
    field = Options.model_fields[name]
    if isinstance(field.default, tuple) and field.default:
        shown, field = ",".join(map(str, field.default)), copy(field)
        field.description = f"{field.description} [default: {shown}]"
        field.default = None
    return Setting("simulate", name, field)


def _parameters() -> dict[str, Setting]:
    """One row per parameter of any workload; its help says whose it is and with which default."""
    rows: dict[str, Setting] = {}
    defaults: dict[str, list[str]] = {}
    for kind in KINDS.values():
        for name, field in kind.model_fields.items():
            rows.setdefault(name, Setting("workload", name, field))
            defaults.setdefault(name, []).append(f"{kind.name} {field.default}")
    for name, row in rows.items():
        field = copy(row.field)
        field.description = f"{row.help} [{', '.join(defaults[name])}]"
        field.default = None
        rows[name] = Setting(row.group, name, field)
    return rows
