"""Settings as command-line flags: a command says which groups it takes; names and helps come from the settings."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nebula_router.reference import Setting, settings
from nebula_router.sources import load

Command = Callable[..., None]


def examples(*lines: str) -> str:
    """Examples under a command's help, one line each."""
    return "\n\n".join(["Examples:", *(f"`{line}`" for line in lines)])


def takes_settings(*groups: str, without: frozenset[str] = frozenset()) -> Callable[[Command], Command]:
    """Gives a command one flag per setting of `groups` and `--config`, and calls it with `settings=` in force.

    Args:
        groups: The groups of the settings tree that the command's flags reach.
        without: Dotted names that the command sets by itself.
    """
    rows = [row for row in settings() if row.group in groups and row.flags and row.dotted not in without]

    def decorate(run: Command) -> Command:
        def command(**given: Any) -> None:  # noqa: ANN401 - a flag has any type
            tree: dict[str, dict[str, Any]] = {}
            for row in rows:
                value = given.pop(_parameter(row))
                if value is not None and value != []:
                    tree.setdefault(row.group, {})[row.name] = value
            run(settings=load(tree, given.pop("config")), **given)

        own = [p for p in inspect.signature(run, eval_str=True).parameters.values() if p.name != "settings"]
        keyword = inspect.Parameter.KEYWORD_ONLY
        config = inspect.Parameter("config", keyword, default=None, annotation=_CONFIG)
        flags = [inspect.Parameter(_parameter(row), keyword, default=None, annotation=option(row)) for row in rows]
        parameters = [p.replace(kind=keyword) for p in own] + [config, *flags]
        command.__doc__ = run.__doc__
        command.__name__ = run.__name__
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


_CONFIG = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.", show_default=False)
]


def _parameter(row: Setting) -> str:
    return f"{row.group}_{row.name}"


def option(row: Setting, panel: str | None = None, metavar: str | None = None) -> object:
    """The annotation of a flag. Text goes to the settings as it is: they alone know types and bounds.

    Args:
        row: What the flag sets.
        panel: Heading in the help; without one, that of the settings' group.
        metavar: Word for the value; without one, that of its type.
    """
    first, *others = row.flags
    names = [f"{first}/--no-{first.removeprefix('--')}", *others] if row.is_switch else [first, *others]
    info = typer.Option(
        *names,
        help=row.help + (f" [default: {row.default}]" if row.default else ""),
        metavar=None if row.is_switch else metavar or _metavar(row),
        show_default=False,
        rich_help_panel=panel or f"Settings: {row.group}",
    )
    kind: Any = bool | None if row.is_switch else list[str] | None if row.is_many else str | None
    return Annotated[kind, info]


def _metavar(row: Setting) -> str:
    """The words to choose from, or one word for the kind of value."""
    if row.is_choice:
        return row.values.replace(", ", "|")
    return (row.name.removesuffix("s") if row.is_many else row.values.partition(",")[0]).upper()
