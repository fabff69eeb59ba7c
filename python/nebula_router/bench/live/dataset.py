"""What is asked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nebula_router.bench.error import BenchError
from nebula_router.bench.live.options import DATASETS, SHAPED, Options, flag, shape_names, shape_of

RECORDED: Final = ("sharegpt", "mooncake", "decisions")
"""Datasets that are read from a file."""
_ANY_RATE: Final = 1.0
"""What the core wants to hear of arrivals that it is told again: see `pace`."""
_ONLY: Final = {
    "random_": ("random",),
    "prefix_repetition_": ("prefix_repetition",),
    "sharegpt_": ("sharegpt",),
    "dataset_path": RECORDED,
}
"""Options whose name begins so, and the datasets that they mean something to."""


@dataclass(frozen=True)
class Dataset:
    """The requests of a run."""

    source: dict[str, Any]
    """As the core reads or makes them."""
    record: bytes | None
    """The file that they are read from."""
    file: dict[str, Any] | None
    """What is kept of that file: name, size, hash."""


def dataset(options: Options, shape: Mapping[str, str]) -> Dataset:
    """What is asked.

    Raises:
        BenchError: An option that means nothing to this dataset; a file that is missing or cannot be read.
        ConfigError: A value that its flag does not take.
    """
    _check(options, shape)
    record = _read(options)
    source = {
        "workload": _workload(options, shape),
        "seed": options.seed,
        "sessions": options.num_prompts,
        "output_tokens": options.sharegpt_output_len,
        "speed": options.speed,
    }
    return Dataset(source, record, _file(options, record))


def _check(options: Options, shape: Mapping[str, str]) -> None:
    name = options.dataset_name
    for field in sorted(options.model_fields_set):
        takers = next((takers for start, takers in _ONLY.items() if field.startswith(start)), (name,))
        if name not in takers:
            raise BenchError(f"{flag(field)}: means nothing to {name}; it is for --dataset-name {' or '.join(takers)}")
    for parameter in shape:
        if parameter not in shape_names(name):
            takers = tuple(other for other in SHAPED if parameter in shape_names(other))
            told = f"--{parameter.replace('_', '-')}"
            raise BenchError(f"{told}: means nothing to {name}; it is for --dataset-name {' or '.join(takers)}")


def _workload(options: Options, shape: Mapping[str, str]) -> dict[str, Any]:
    """What the core makes or reads the requests from."""
    name = options.dataset_name
    kind = {"kind": DATASETS[name]}
    counted = {"requests": options.num_prompts, "rate_per_s": _ANY_RATE}
    if name == "random":
        lengths = {"input_tokens": options.random_input_len, "output_tokens": options.random_output_len}
        return {**kind, **counted, **lengths, "spread": 0.0}
    if name == "prefix_repetition":
        return {
            **kind,
            **counted,
            "prefix_len": options.prefix_repetition_prefix_len,
            "suffix_len": options.prefix_repetition_suffix_len,
            "num_prefixes": options.prefix_repetition_num_prefixes,
            "output_len": options.prefix_repetition_output_len,
        }
    if name == "mooncake":
        return {**kind, **shape_of(name, {})}
    if name == "decisions":
        return kind
    if name == "sharegpt":
        return {**kind, **shape_of(name, shape), "rate_per_s": _ANY_RATE, "seed": options.seed}
    counts = {"multi_turn": "sessions", "shared_prefix": "requests", "agents": "tasks"}
    return {**kind, **shape_of(name, shape), counts[name]: options.num_prompts, "rate_per_s": _ANY_RATE}


def _read(options: Options) -> bytes | None:
    if options.dataset_name not in RECORDED:
        return None
    if options.dataset_path is None:
        raise BenchError(f"--dataset-path: is missing; --dataset-name {options.dataset_name} is read from a file")
    try:
        return Path(options.dataset_path).read_bytes()
    except OSError as error:
        raise BenchError(f"--dataset-path {options.dataset_path}: cannot be read: {error.strerror}") from None


def _file(options: Options, record: bytes | None) -> dict[str, Any] | None:
    if record is None or options.dataset_path is None:
        return None
    return {
        "name": Path(options.dataset_path).name,
        "bytes": len(record),
        "sha256": hashlib.sha256(record).hexdigest(),
    }
