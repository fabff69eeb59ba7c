"""`nebula bench`: without a further command it is the live benchmark, so that the group has options of its own."""

from collections.abc import Mapping
from typing import Any, Final

from typer.core import TyperGroup

from nebula_router.bench.error import BenchError
from nebula_router.bench.live.options import Options, flag

LISTS: Final = tuple(flag(name) for name in ("goodput", "header", "metadata"))
"""Options that take several words behind one flag, as those of `vllm bench serve`."""


class Group(TyperGroup):
    """Takes `--goodput ttft:200 tpot:50` for `--goodput ttft:200 --goodput tpot:50`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own context
        """Gives each word its flag before options are read."""
        return super().parse_args(ctx, spread(args, self.commands))


def spread(words: list[str], commands: Any) -> list[str]:  # noqa: ANN401 - anything that tells its members
    """The words of a command line, each of several words behind one flag of `LISTS` with a flag of its own."""
    out: list[str] = []
    flagged: str | None = None
    for place, word in enumerate(words):
        if word in commands and flagged is None:
            return out + words[place:]
        if word.startswith("-"):
            flagged = word if word in LISTS else None
        elif flagged is not None and out[-1] != flagged:
            if word in commands:
                return out + words[place:]
            out.append(flagged)
        out.append(word)
    return out


def refuse_with_command(command: str, options: Options, shape: Mapping[str, str]) -> None:
    """Refuses options of the live benchmark before the name of another one.

    Raises:
        BenchError: There is one.
    """
    told = [flag(name) for name in sorted(options.model_fields_set)] + [f"--{name.replace('_', '-')}" for name in shape]
    if told:
        raise BenchError(f"{told[0]}: is for the live benchmark, not for {command}")
