"""Puts a peer from PyPI into a virtual environment of its own, once, under the user's cache directory."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nebula_router.bench import process
from nebula_router.bench.error import BenchError

MARKER = ".complete"
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Package:
    """One release on PyPI."""

    name: str
    version: str

    @property
    def requirement(self) -> str:
        """As pip reads it."""
        return f"{self.name}=={self.version}"

    @property
    def folder(self) -> Path:
        """Where its environment is, or will be."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "nebula-router" / f"peer-{self.name}-{self.version}"

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether the environment is whole and its interpreter still exists."""
        return (self.folder / MARKER).exists() and self.python.exists()


def install(package: Package, say: Callable[[str], None]) -> None:
    """Makes the environment unless it is there; an unfinished one is made anew. `say` is told what takes time.

    Raises:
        BenchError: when venv or pip fail.
    """
    if package.installed:
        return
    say(f"installing {package.requirement} into {package.folder}")
    shutil.rmtree(package.folder, ignore_errors=True)
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    _step([sys.executable, "-m", "venv", str(package.folder)], "on Debian or Ubuntu: apt-get install python3-venv")
    pip = [str(package.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _step([*pip, package.requirement], "it needs PyPI; leave this peer out with --only")
    (package.folder / MARKER).write_text(package.requirement + "\n")


def _step(command: list[str], advice: str) -> None:
    try:
        finished = process.run(command, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        message = f"{' '.join(command)} took more than {TIMEOUT_S} s; {advice}"
        raise BenchError(message) from None
    if finished.returncode != 0:
        said = (finished.stderr or finished.stdout).strip()[-400:]
        message = f"{' '.join(command)} failed ({advice}): {said}"
        raise BenchError(message)
