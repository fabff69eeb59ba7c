"""What a person may set and by which names: the rows behind the flags, the environment names and docs/settings.md."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from nebula_router.config import EngineSettings, Settings
from nebula_router.kinds import Flag

ENV_PREFIX = "NEBULA_"
ENV_DELIMITER = "__"
_HEAD = """\
# Settings

<!-- Made by `make docs` from nebula_router/config.py. -->

A flag beats the environment, which beats the TOML file (`--config FILE`), which beats the default. A list in the
environment is a JSON array, or words with commas between them. An unknown name is refused with the nearest known one;
environment names that Kubernetes makes for a service called `nebula` or `nebula-…` are passed over.
`nebula config show` prints what is in force, `nebula config check FILE` checks a file.

```toml
[gateway]
listen = "0.0.0.0:8081"

[[engine]]
url = "http://10.0.0.5:8000"

[[engine]]
url = "http://10.0.0.6:8000"
name = "blue"
ranks = 2
```
"""
_KINDS: dict[object, str] = {bool: "true or false", int: "integer", float: "number", str: "text", SecretStr: "text"}


@dataclass(frozen=True)
class Setting:
    """One setting of one group, with every name that it goes by."""

    group: str
    name: str
    field: FieldInfo

    @property
    def dotted(self) -> str:
        """`group.name`, as error messages and this documentation call it."""
        return f"{self.group}.{self.name}"

    @property
    def env(self) -> str:
        """Its name in the environment."""
        return f"{ENV_PREFIX}{self.group}{ENV_DELIMITER}{self.name}".upper()

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags, the usual one first; none for a secret."""
        named = [meta.names for meta in self.field.metadata if isinstance(meta, Flag)]
        return named[0] if named else (f"--{self.name.replace('_', '-')}",)

    @property
    def help(self) -> str:
        """One sentence that says what it does."""
        return self.field.description or ""

    @property
    def is_switch(self) -> bool:
        """True where it is on or off."""
        return self.field.annotation is bool

    @property
    def is_choice(self) -> bool:
        """True where it takes one of a few words."""
        return bool(self._words)

    @property
    def _words(self) -> tuple[str, ...]:
        annotation = self.field.annotation
        parts = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
        return next((get_args(part) for part in parts if get_origin(part) is Literal), ())

    @property
    def is_many(self) -> bool:
        """True where it holds several values."""
        return get_origin(self.field.annotation) in {tuple, dict}

    @property
    def is_secret(self) -> bool:
        """True where its value is never shown."""
        return any(part is SecretStr for part in _parts(self.field.annotation))

    @property
    def default(self) -> str:
        """Its default as TOML writes it; empty where there is none."""
        value = self.field.default
        return "" if value is None or value in ((), {}) else json.dumps(value)

    @property
    def values(self) -> str:
        """Which values it takes: the words, or the type and its bounds."""
        if self.is_choice:
            return ", ".join(self._words)
        if self.is_many:
            return "table of text" if get_origin(self.field.annotation) is dict else "list"
        kind = next(_KINDS[part] for part in _parts(self.field.annotation) if part in _KINDS)
        low = next((_number(m.ge) for m in self.field.metadata if isinstance(m, Ge)), None)
        high = next((_number(m.le) for m in self.field.metadata if isinstance(m, Le)), None)
        return kind if low is None else f"{kind}, {low} to {high}"


def settings() -> Iterator[Setting]:
    """Every setting, in the order of the tree."""
    for group, held in Settings.model_fields.items():
        for name, field in held.default.__class__.model_fields.items():
            yield Setting(group, name, field)


def as_toml(tree: Settings) -> str:
    """The settings as a TOML file that gives the same settings, but for secrets: those are comments."""
    lines: list[str] = []
    for group, rows in groupby(settings(), key=lambda setting: setting.group):
        values = getattr(tree, group).model_dump(mode="json")
        lines.append(f"[{group}]")
        for row in rows:
            value = values[row.name]
            if row.is_secret or value is None:
                lines.append(f"# {row.name} is {'set' if value else 'not set'}")
            else:
                lines.append(f"{row.name} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """docs/settings.md."""
    lines = _HEAD.splitlines()
    for group, rows in groupby(settings(), key=lambda setting: setting.group):
        about = Settings.model_fields[group].default.__class__.__doc__
        lines += ["", f"## {group}", "", about or "", "", "| name | values | default | meaning | flag | environment |"]
        lines += ["|---|---|---|---|---|---|"]
        for row in rows:
            default = f"`{row.default}`" if row.default else ""
            flags = ", ".join(f"`{flag}`" for flag in row.flags) or "none: a secret"
            cells = [f"`{row.name}`", row.values, default, row.help, flags, f"`{row.env}`"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## engine", "", EngineSettings.__doc__ or "", "", "| name | default | meaning |", "|---|---|---|"]
    for name, field in EngineSettings.model_fields.items():
        default = "required" if field.is_required() else "" if field.default_factory else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _parts(annotation: object) -> Iterator[object]:
    """The plain types that an annotation is made of."""
    if get_origin(annotation) is Annotated:
        yield from _parts(get_args(annotation)[0])
    elif get_args(annotation):
        for inner in get_args(annotation):
            yield from _parts(inner)
    elif annotation is not NoneType:
        yield annotation


def _number(bound: Any) -> str:  # noqa: ANN401 - the bound of an int or a float
    return str(int(bound)) if bound == int(bound) else str(bound)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{json.dumps(key)} = {_toml(held)}" for key, held in value.items() if held is not None)
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_toml(held) for held in value) + "]"
    return json.dumps(value, ensure_ascii=False)
