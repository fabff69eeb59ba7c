"""Which fleets are tried under which loads by which policies, and the document that the core gets for each run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import orjson

from nebula_router.calibration import calibrated
from nebula_router.config import Settings
from nebula_router.core import SIM_POLICIES
from nebula_router.simulate.options import ALL, Options, one_of, read
from nebula_router.simulate.trace import Trace, open_trace
from nebula_router.simulate.workload import FORMATS, GENERATORS, KINDS, Kind
from nebula_router.sources import ConfigError

_MOST_TOKENS: Final = 2**32 - 1
"""The core counts a request's tokens in 32 bits."""


@dataclass(frozen=True)
class Scenario:
    """One fleet under one load."""

    engines: int
    speed: float
    """How many times faster than written users live."""
    load: float | None = None
    """Share of the speed at which the fleet saturates; None where the speed was given."""

    @property
    def title(self) -> str:
        """What tells it from others, for people."""
        engines = f"{self.engines:,} engine{'s' if self.engines > 1 else ''}"
        if self.load is None:
            return f"{engines}, speed {self.speed:g}"
        return f"{engines}, load {self.load:.0%} of saturation, speed {self.speed:g}"


@dataclass(frozen=True)
class Plan:
    """All that is to be found out, and with what."""

    options: Options
    policies: tuple[str, ...]
    engine: Mapping[str, Any]
    """What each engine computes with."""
    preset: str
    calibration: str | None
    """Name of the file that the engine's times come from."""
    route: Mapping[str, Any]
    """The router's settings, in the core's units."""
    workload: Kind
    trace: Trace | None

    @property
    def source(self) -> dict[str, Any]:
        """What the core makes the workload from."""
        return self.workload.source(self.options.seed)

    @property
    def events(self) -> dict[str, float] | None:
        """How what the caches hold becomes known; None if it does not."""
        if not self.options.events:
            return None
        return {"delay_ms": self.options.event_delay_ms, "loss": self.options.event_loss}

    @property
    def slo(self) -> dict[str, float]:
        """What a good request is."""
        return {"ttft_ms": self.options.slo_ttft_ms, "itl_ms": self.options.slo_itl_ms}

    def document(self, engines: int, speed: float, policy: str) -> bytes:
        """What the core's `Simulation` is made from."""
        return json.dumps(
            {
                "engine": self.engine,
                "engines": engines,
                "policy": policy,
                "route": self.route,
                "seed": self.options.seed,
                "speed": speed,
                "events": self.events,
                "slo": self.slo,
                "workload": self.source,
            }
        ).encode()


def plan(settings: Settings, options: Options, parameters: Mapping[str, str]) -> Plan:
    """What the flags ask for, with the trace read.

    Raises:
        ConfigError: Flags that exclude each other, names that nobody knows, a file that cannot be read.
    """
    _refuse_contradictions(options)
    trace = None
    if options.trace is not None:
        kind = None if options.trace_format is None else one_of("--format", options.trace_format, FORMATS)
        trace = open_trace(options.trace, kind)
        trace = trace.first(options.limit) if options.limit is not None else trace
    kind = trace.kind if trace else _generator(options.workload)
    return Plan(
        options=options,
        policies=_policies(options.policies),
        engine=_engine(settings, options),
        preset=settings.sim.preset,
        calibration=options.calibration and Path(options.calibration).name,
        route=orjson.loads(settings.core_json())["route"],
        workload=_workload(KINDS[kind], parameters),
        trace=trace,
    )


def _refuse_contradictions(options: Options) -> None:
    given = options.model_fields_set
    if options.trace is None and options.workload is None:
        raise ConfigError(f"what is asked? --trace FILE replays it, --workload makes it up: {', '.join(GENERATORS)}")
    for one, other, why in (
        ("trace", "workload", "one replays requests, the other makes them up"),
        ("workload", "trace_format", "what is made up has no format"),
        ("workload", "limit", "a parameter of the workload says how many requests there are"),
        ("speed", "load", "--load finds the speed"),
    ):
        if {one, other} <= given:
            flag = "--format" if other == "trace_format" else f"--{other}"
            raise ConfigError(f"--{one} and {flag} exclude each other: {why}")
    for name in ("event_delay_ms", "event_loss"):
        if not options.events and name in given:
            raise ConfigError(f"--{name.replace('_', '-')} and --no-events exclude each other: there are no events")


def _generator(word: str | None) -> str:
    if word in FORMATS:
        raise ConfigError(f"--workload {word}: is read from a file: --trace FILE --format {word}")
    return one_of("--workload", str(word), GENERATORS)


def _policies(words: tuple[str, ...]) -> tuple[str, ...]:
    if ALL in words:
        return SIM_POLICIES
    return tuple(one_of("--policy", word, [*SIM_POLICIES, ALL]) for word in words)


def _workload(kind: type[Kind], parameters: Mapping[str, str]) -> Kind:
    for name in parameters:
        if name not in kind.model_fields:
            flag = name.replace("_", "-")
            close = get_close_matches(name, kind.model_fields, n=1)
            known = ", ".join(f"--{field.replace('_', '-')}" for field in kind.model_fields)
            hint = f"did you mean --{close[0].replace('_', '-')}?" if close else f"it has {known or 'none'}"
            raise ConfigError(f"--{flag} is no parameter of {kind.name}; {hint}")
    return read(kind, parameters)


def _engine(settings: Settings, options: Options) -> dict[str, Any]:
    """What each engine computes with: what is given, then what was measured, then the preset.

    Where no `max_model_len` is given, a request may be as long as the KV cache: a simulation needs no other limit.
    """
    sim = calibrated(settings.sim, Path(options.calibration)) if options.calibration else settings.sim
    engine = sim.engine()
    if options.max_model_len is not None:
        engine["max_model_len"] = options.max_model_len
    elif "max_model_len" not in sim.model_fields_set:
        engine["max_model_len"] = max(1, min(_MOST_TOKENS, (engine["kv_blocks"] - 1) * engine["block_size"]))
    return engine
