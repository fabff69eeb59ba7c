"""Keeps results as JSON, with everything that is needed to repeat them."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nebula_router.bench.machine import Machine

FOLDER = Path(".benchmarks")
STDOUT = Path("-")


def write(benchmark: str, machine: Machine, results: dict[str, Any], file: Path | None) -> Path:
    """Writes `results` and gives back where they are.

    That is `file`, or standard output for `-`, or a new file in `.benchmarks` of the current directory.
    """
    document = {"benchmark": benchmark, "machine": asdict(machine), **results}
    text = json.dumps(document, indent=1, default=str) + "\n"
    if file == STDOUT:
        sys.stdout.write(text)
        return STDOUT
    if file is None:
        stamp = machine.when.replace(":", "").replace("-", "")[:15]
        file = FOLDER / f"{benchmark}-{stamp}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file
