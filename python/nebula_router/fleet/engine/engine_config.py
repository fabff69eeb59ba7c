"""An engine's own settings: the YAML file that `vllm serve --config` takes, and arguments after it."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any, Final

import yaml

from nebula_router.fleet.engine.engine_args import EngineArgs, EngineConfigError

MAX_CONFIG_BYTES: Final = 1 << 20
_DECIMAL: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?")
_MIB: Final = 2**20


class EngineConfig:
    """An engine's settings by name, as values; arguments win over the file.

    Raises:
        EngineConfigError: A setting or an argument is none of vLLM's form.
    """

    def __init__(self, engine_args: Mapping[str, Any], extra_args: Sequence[str] = ()) -> None:
        self._args = EngineArgs.of(engine_args, extra_args)

    def text(self, name: str) -> str | None:
        """A setting as text."""
        return self._args.value(name)

    def whole(self, name: str) -> int | None:
        """A whole number, which vLLM also takes as 32k (thousands) or 32K (1024s).

        Raises:
            EngineConfigError: It is something else.
        """
        value = self.text(name)
        if value is None or value.lower() in {"none", "null"}:
            return None
        if value in {"auto", "-1"}:
            return -1
        found = _NUMBER.fullmatch(value.replace("_", ""))
        number = Decimal(found[1]) * (_DECIMAL | _BINARY).get(found[2], 1) if found else Decimal("0.5")
        if number != int(number):
            raise EngineConfigError(f"{name} = {value}: expected a whole number, as 32768 or 32K")
        return int(number)

    def size(self, name: str, default: int = 1) -> int:
        """A number of ranks, at least one.

        Raises:
            EngineConfigError: It is something else.
        """
        number = self.whole(name)
        if number is not None and number < 1:
            raise EngineConfigError(f"{name} = {self.text(name)}: expected at least 1")
        return default if number is None else number

    def share(self, name: str) -> float | None:
        """A part of a whole, above 0 and at most 1.

        Raises:
            EngineConfigError: It is something else.
        """
        value = self.text(name)
        try:
            number = None if value is None else float(value)
        except ValueError:
            number = 0.0
        if number is not None and not 0 < number <= 1:
            raise EngineConfigError(f"{name} = {value}: expected a number above 0 and at most 1, as 0.9")
        return number


def read_engine_config(path: Path) -> dict[str, Any]:
    """The settings in an engine's YAML file, as they stand there. Blocks while it reads.

    Raises:
        EngineConfigError: The file cannot be read, is not YAML, or is no list of `name: value`.
    """
    values = _read_yaml(path)
    if values is None:
        raise EngineConfigError(f"{path}: is empty; expected an engine's settings, as `model: Qwen/Qwen2.5-7B`")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise EngineConfigError(f"{path}: expected `name: value` lines, as `model: Qwen/Qwen2.5-7B`")
    names = [key.replace("_", "-") for key in values]
    twice = next((key for key in values if names.count(key.replace("_", "-")) > 1), None)
    if twice is not None:
        raise EngineConfigError(f"{path}: {twice} is given twice, with dashes and with underscores")
    return values


def _read_yaml(path: Path) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise EngineConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, no engine's settings")
        return yaml.safe_load(text.decode())
    except OSError as error:
        raise EngineConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EngineConfigError(f"{path}: is not UTF-8 text, as YAML must be") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise EngineConfigError(f"{path}{line}: is not YAML: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise EngineConfigError(f"{path}: is not YAML: {error}") from None


def memory_mb(text: str) -> int:
    """A size as people write it, in MiB, rounded up: 20GiB, 20G and 20480MiB are one; GB and MB are decimal.

    Raises:
        ValueError: It is none, or not above 0.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]) or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is no size of memory; expected one as 20GiB or 16000MB")
    decimal = not found[3] and text.strip().lower().endswith("b")
    unit = (_DECIMAL[found[2].lower()] if decimal else _BINARY[found[2].upper()]) if found[2] else 1
    return ceil(Decimal(found[1]) * unit / _MIB)
