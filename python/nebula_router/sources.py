"""Where the values of settings come from: flags, then the environment, then a TOML file, then the defaults."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from nebula_router.config import EngineSettings, Settings
from nebula_router.reference import ENV_DELIMITER, ENV_PREFIX, Setting, settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Tree = Mapping[str, Any]

# What Kubernetes puts into every pod's environment for a service called `nebula` or `nebula-…`.
_KUBERNETES: Final = re.compile(
    r"NEBULA_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
# Pydantic reports this beside the error of the field that a default is made from.
_ECHO: Final = "default_factory_not_called"


class ConfigError(ValueError):
    """Values that cannot be used: one line per mistake, saying what is wrong, where, and what would be right."""


class _Environment(BaseSettings, Settings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER)


def load(flags: Tree | None = None, file: Path | None = None, *, environment: bool = True) -> Settings:
    """The settings in force.

    Args:
        flags: Values from the command line, by group and name.
        file: TOML file to read under the environment.
        environment: Whether the process's environment counts.

    Raises:
        ConfigError: A name is unknown, a value is out of its bounds, or the file cannot be read.
    """
    from_flags = flags or {}
    from_env = _environment() if environment else {}
    from_file = read_toml(file) if file else {}
    tree = _over(_over(from_file, from_env), from_flags)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        layers = {"flag": from_flags, "env": from_env}
        lines = [_explain(e, layers, file) for e in error.errors(include_url=False) if e["type"] != _ECHO]
        raise ConfigError("\n".join(lines)) from None


def read_toml(file: Path) -> dict[str, Any]:
    """The tree in a TOML file, its `[[engine]]` tables as `gateway.engines`.

    Raises:
        ConfigError: The file cannot be read, or is not TOML.
    """
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text, as TOML must be") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from None
    engines = tree.pop("engine", None)
    return _over(tree, {"gateway": {"engines": engines}}) if engines is not None else tree


def _environment() -> Tree:
    known = {setting.env for setting in settings()}
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in known and not _KUBERNETES.fullmatch(name):
            dotted = name.removeprefix(ENV_PREFIX).lower().replace(ENV_DELIMITER, ".")
            near = nearest(dotted)
            hint = f"; did you mean {near.env}?" if near else ""
            raise ConfigError(f"environment: unknown setting {name}{hint}")
    return EnvSettingsSource(_Environment)()


def _over(lower: Tree, upper: Tree) -> dict[str, Any]:
    """Both trees in one; where both have a value, that of `upper`."""
    merged = dict(lower)
    for group, values in upper.items():
        below = merged.get(group)
        if isinstance(below, Mapping) and isinstance(values, Mapping):
            merged[group] = {**below, **values}
        else:
            merged[group] = values
    return merged


def nearest(dotted: str) -> Setting | None:
    """The setting whose name is most like `dotted`; one of the same name in another group comes first."""
    rows = {setting.dotted: setting for setting in settings()}
    leaf = dotted.rpartition(".")[2]
    same = [setting for setting in rows.values() if setting.name == leaf]
    close = get_close_matches(dotted, rows, n=1, cutoff=0.5)
    return same[0] if same else rows[close[0]] if close else None


def _explain(error: ErrorDetails, layers: Mapping[str, Tree], file: Path | None) -> str:
    loc = error["loc"]
    dotted = ".".join(str(part) for part in loc)
    row = next((s for s in settings() if (s.group, s.name) == loc[:2]), None)
    where = _where(row, layers, file)
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown setting {dotted}{_did_you_mean(loc, row)}"
    return f"{where}: {dotted}{_shown(error['input'], row)}: {expected(error, row)}"


def expected(error: ErrorDetails, row: Setting | None) -> str:
    """What would be right in place of the value that `row` refuses."""
    if row is None or row.is_many or not error["msg"].startswith("Input should be "):
        return error["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
    close = get_close_matches(str(error["input"]), row.values.split(", "), n=1) if row.is_choice else []
    words = "one of " if row.is_choice else ""
    return f"expected {words}{row.values}" + (f"; did you mean {close[0]}?" if close else "")


def _where(row: Setting | None, layers: Mapping[str, Tree], file: Path | None) -> str:
    """The place a person would go to mend the value."""
    if row is not None:
        if row.flags and row.name in layers["flag"].get(row.group, {}):
            return row.flags[0]
        if row.name in layers["env"].get(row.group, {}):
            return row.env
    return str(file) if file else "settings"


def _did_you_mean(loc: tuple[int | str, ...], row: Setting | None) -> str:
    if row is not None:
        return _one_of(str(loc[-1]), EngineSettings.model_fields)
    if len(loc) == 1:
        groups = get_close_matches(str(loc[0]), [*Settings.model_fields, "engine"], n=1)
        if groups:
            return f"; did you mean {groups[0]}?"
    near = nearest(".".join(str(part) for part in loc))
    return f"; did you mean {near.dotted}?" if near else _one_of("", Settings.model_fields)


def _one_of(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _shown(value: object, row: Setting | None) -> str:
    """The refused value, unless it is a secret or may hold one."""
    plain = isinstance(value, (str, int, float)) and "@" not in str(value)
    return f" = {value!r}" if plain and (row is None or not row.is_secret) else ""
