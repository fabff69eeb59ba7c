"""What an engine is told, as vLLM writes it: flags on a command line, or the settings of its `--config`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SHORT: Final = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-dpl": "data-parallel-size-local",
    "-dpr": "data-parallel-rank",
    "-q": "quantization",
}
_NUMBER: Final = re.compile(r"-\d+(\.\d+)?")
_OFF_BY_DEFAULT: Final = frozenset({"headless", "grpc"})
"""Switches without a `--no-` form; those that begin with `disable-` are the others."""


class EngineConfigError(ValueError):
    """What an engine should be told cannot be made sense of; the message names the file and line, or the setting."""


@dataclass(frozen=True, slots=True)
class EngineFlag:
    """One flag with its values; the name has no leading dashes, but for a short flag that is not known here."""

    name: str
    values: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The flag as a command line has it."""
        return (self.name if self.name.startswith("-") else f"--{self.name}", *self.values)


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """Flags in order: where one comes twice, the last one counts, as in vLLM."""

    flags: tuple[EngineFlag, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any], words: Sequence[str] = ()) -> EngineArgs:
        """The flags of a YAML's settings, then those of a command line.

        Raises:
            EngineConfigError: A setting or a word is none of vLLM's form.
        """
        return cls((*_flags_of(settings), *_flags_in(words)))

    def value(self, name: str) -> str | None:
        """The flag's value; empty text for a switch that is on, none where the flag is not there."""
        for flag in reversed(self.flags):
            if flag.name == name:
                return " ".join(flag.values)
            if flag.name == f"no-{name}":
                return None
        return None

    def values(self, *names: str) -> tuple[str, ...]:
        """All values of the last of these flags."""
        return next((flag.values for flag in reversed(self.flags) if flag.name in names), ())

    def has(self, name: str) -> bool:
        """Whether anything is said of it: the flag, its `--no-` form or one of its keys (`--name.key`)."""
        return any(flag.name in {name, f"no-{name}"} or flag.name.startswith(f"{name}.") for flag in self.flags)

    def number(self, name: str, otherwise: int) -> int:
        """The flag's value as a positive integer.

        Raises:
            EngineConfigError: It is something else.
        """
        text = self.value(name)
        if text is None:
            return otherwise
        if not text.isdecimal() or int(text) < 1:
            raise EngineConfigError(f"--{name} {text}: expected an integer from 1")
        return int(text)

    def document(self, name: str) -> dict[str, Any] | None:
        """The flag's JSON object; none where the flag is not there, or is no JSON object.

        Keys that are given one by one (`--name.key value`) are in it, values without a dot below them only.
        """
        text = self.value(name)
        keys = {
            flag.name.partition(".")[2]: _plain(" ".join(flag.values))
            for flag in self.flags
            if flag.name.startswith(f"{name}.")
        }
        if text is None:
            return keys or None
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return found | keys if isinstance(found, dict) else None

    def without(self, *names: str) -> EngineArgs:
        """The other flags."""
        return EngineArgs(tuple(flag for flag in self.flags if flag.name not in names))

    def words(self) -> tuple[str, ...]:
        """All flags as a command line has them."""
        return tuple(word for flag in self.flags for word in flag.words)


def _flags_of(settings: Mapping[str, Any]) -> Iterable[EngineFlag]:
    for key, value in settings.items():
        name = _name(str(key).lstrip("-"))
        if not name:
            raise EngineConfigError(f"{key!r}: expected the name of an engine's flag")
        if value is True:
            yield EngineFlag(name)
        elif value is False:
            if name not in _OFF_BY_DEFAULT and not name.startswith(("disable-", "no-")):
                yield EngineFlag(f"no-{name}")
        elif isinstance(value, list):
            if value:
                yield EngineFlag(name, tuple(_text(one) for one in value))
        elif value is not None:
            yield EngineFlag(name, (_text(value),))


def _flags_in(words: Sequence[str]) -> Iterable[EngineFlag]:
    name: str | None = None
    values: list[str] = []
    for word in words:
        if not word.startswith("-") or _NUMBER.fullmatch(word):
            if name is None:
                raise EngineConfigError(f"{word!r}: expected a flag, like --max-model-len")
            values.append(word)
            continue
        if name is not None:
            yield EngineFlag(name, tuple(values))
        flag, separator, value = word.partition("=")
        name = _name(flag[2:]) if flag.startswith("--") else _SHORT.get(flag, flag)
        values = [value] if separator else []
    if name is not None:
        yield EngineFlag(name, tuple(values))


def _name(flag: str) -> str:
    """The name with dashes; keys below it keep their underscores."""
    head, dot, tail = flag.partition(".")
    return head.replace("_", "-") + dot + tail


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)


def _plain(text: str) -> Any:  # noqa: ANN401 - JSON has any type
    try:
        return json.loads(text)
    except ValueError:
        return text
