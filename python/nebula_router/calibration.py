"""Reads what `nebula bench calibrate` wrote, as settings of a simulated engine."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from nebula_router.presets import Timing
from nebula_router.sim_settings import SimSettings
from nebula_router.sources import ConfigError

SIZES: Final = ("block_size", "kv_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
TIMES: Final = tuple(field.name for field in fields(Timing))


def calibrated(sim: SimSettings, file: Path) -> SimSettings:
    """The settings with the times and the size of the engine that was measured; what `sim` was given stays.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    given = sim.model_dump(exclude_unset=True)
    try:
        return SimSettings.model_validate(measured(file) | given)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(f"{file}: {where} = {wrong['input']!r}: {wrong['msg']}") from None


def measured(file: Path) -> dict[str, Any]:
    """Settings of a simulated engine by name: the five times, the time of a request, and the sizes of the engine.

    Raises:
        ConfigError: The file cannot be read, or is not what `nebula bench calibrate` writes.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: is not JSON: {error}") from None
    known = document if isinstance(document, dict) else {}
    timing, overhead_ms = known.get("timing"), known.get("overhead_ms", 0)
    if not isinstance(timing, dict) or set(timing) != set(TIMES) or not isinstance(overhead_ms, (int, float)):
        raise ConfigError(
            f'{file}: expected {{"timing": {{…}}, "overhead_ms": …}} with {", ".join(TIMES)}, as '
            "`nebula bench calibrate --out FILE` writes it"
        )
    sizes = {name: known[name] for name in SIZES if name in known}
    return {**timing, **sizes, "request_us": overhead_ms * 1e3}
