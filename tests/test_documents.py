"""What the pages and units tell people to type exists: commands, flags, settings."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from nebula_router.bench.cli import app as bench
from nebula_router.cli import app
from nebula_router.simulate.cli import app as simulate
from nebula_router.sources import load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
# Commands that another room reads the arguments of.
ROOMS = {"bench": bench, "simulate": simulate}
SHELLS = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.DOTALL)
TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)
PROGRAM = re.compile(r"(?:\S*/)?nebula(?:-(gateway|router|node|scheduler))?")


def commands(text: str) -> Iterator[list[str]]:
    """The calls of this package in a piece of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # a line of a quoted text that goes on
            continue
        for at, word in enumerate(words):
            program = PROGRAM.fullmatch(word)
            if program and all("=" in before or before in {"exec", "sudo", "env"} for before in words[:at]):
                until = (i for i, w in enumerate(words) if i > at and w in {"&", "|", "&&", ";", ">", "2>&1"})
                own = [program[1]] if program[1] else []
                yield own + words[at + 1 : next(until, len(words))]
                break


def check(words: list[str]) -> None:
    """Raises where a command or a flag is none."""
    name, *rest = words
    command: Any = get_command(ROOMS.get(name, app))
    path = rest if name in ROOMS else words
    while (commands_ := getattr(command, "commands", None)) and path and not path[0].startswith("-"):
        assert path[0] in commands_, f"there is no command {path[0]}: nebula {shlex.join(words)}"
        command, path = commands_[path[0]], path[1:]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h", "--version"}
    for word in path:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"there is no {word}: nebula {shlex.join(words)}"


CALLS = [(page, words) for page in PAGES for block in SHELLS.findall(page.read_text()) for words in commands(block)]


@pytest.mark.parametrize(("page", "words"), CALLS, ids=[f"{page.name}: {shlex.join(words)}" for page, words in CALLS])
def test_a_command_on_a_page_exists(page: Path, words: list[str]) -> None:
    assert words, page
    check(words)


BLOCKS = [(page, block) for page in PAGES for block in TOML.findall(page.read_text())]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page.name} {n}" for n, (page, _) in enumerate(BLOCKS)])
def test_settings_on_a_page_are_settings(page: Path, block: str, tmp_path: Path) -> None:
    if "[project" in block:
        tomllib.loads(block)
        return
    file = tmp_path / page.with_suffix(".toml").name
    file.write_text(block)
    load(file=file, environment=False)


@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_a_unit_starts_what_exists(unit: Path) -> None:
    text = unit.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("ExecStart="):
            words = shlex.split(line.removeprefix("ExecStart="))
            if words[0].endswith("/nebula"):
                check(words[1:])
    for name in re.findall(r"NEBULA_[A-Z0-9_]+", text):
        group, _, setting = name.removeprefix("NEBULA_").lower().partition("__")
        assert setting in type(getattr(load(environment=False), group)).model_fields, name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here to ask")
@pytest.mark.parametrize("unit", UNITS, ids=[unit.name for unit in UNITS])
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name.replace("@", "@0")
    here.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    ran = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False)
    said = [line for line in ran.stderr.splitlines() if unit.name.partition(".")[0].partition("@")[0] in line]
    assert (ran.returncode, said) == (0, [])


def test_every_page_that_is_linked_is_there() -> None:
    for page in [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
