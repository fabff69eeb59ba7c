"""A model's files: in a folder of this machine, or in its Hugging Face cache. The network is not asked."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_NOT_WEIGHTS: Final = re.compile(r"training_args|optimizer|scheduler|rng_state|^consolidated")


class ModelFilesError(ValueError):
    """Files of a model that are there and cannot be read."""


@dataclass(frozen=True)
class ModelFiles:
    """What a model's files say."""

    folder: Path
    config: dict[str, Any] | None
    """Its `config.json`."""
    weights_bytes: int | None
    """Of all weights as they are stored; none where they are not there."""
    weights_from: str


def model_files(model: str, cache: str | None = None, revision: str | None = None) -> ModelFiles | None:
    """The files of a model, by its folder or its name at Hugging Face; none where this machine has none.

    Args:
        model: A folder, a GGUF file, or a name like `Qwen/Qwen2.5-7B-Instruct`.
        cache: Folder of the cache; without one, that of HF_HUB_CACHE, HF_HOME or the user.
        revision: Of the model in the cache; without one, main.

    Raises:
        ModelFilesError: A file is there and is not what it should be.
    """
    place = Path(model).expanduser()
    if place.is_file():
        return ModelFiles(place.parent, None, place.stat().st_size, f"the size of {place}")
    folder = place if place.is_dir() else _cached(model, cache, revision)
    if folder is None:
        return None
    config = _json(folder / "config.json")
    weights_bytes, weights_from = _weights(folder)
    return None if config is None and weights_bytes is None else ModelFiles(folder, config, weights_bytes, weights_from)


def _cached(model: str, cache: str | None, revision: str | None) -> Path | None:
    """The folder of a model in the cache, laid out as huggingface_hub does: models--org--name/snapshots/commit."""
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        return None
    top = _cache(cache) / f"models--{model.replace('/', '--')}"
    reference = top / "refs" / (revision or "main")
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision or ""
    snapshot = top / "snapshots" / commit
    if commit and snapshot.is_dir():
        return snapshot
    kept = sorted((top / "snapshots").glob("*/"), key=lambda folder: folder.stat().st_mtime) if not revision else []
    return kept[-1] if kept else None


def _cache(given: str | None) -> Path:
    if given:
        return Path(given).expanduser()
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path("~/.cache/huggingface")).expanduser() / "hub"


def _weights(folder: Path) -> tuple[int | None, str]:
    """Bytes of all weights: by the index, which counts shards that are not there yet too, else by the files."""
    for name in _INDEXES:
        index = _json(folder / name)
        total = ((index or {}).get("metadata") or {}).get("total_size")
        if isinstance(total, (int, float)) and total > 0:
            return int(total), f"total_size of {folder / name}"
    for pattern in _WEIGHTS:
        found = list(_of_weights(folder.glob(pattern))) or list(folder.glob(pattern))
        if found:
            return sum(file.stat().st_size for file in found), f"{len(found)} files {pattern} of {folder}"
    return None, ""


def _of_weights(files: Iterable[Path]) -> Iterable[Path]:
    return (file for file in files if file.exists() and not _NOT_WEIGHTS.search(file.name))


def _json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFilesError(f"{file}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFilesError(f"{file}: expected a JSON object")
    return value
