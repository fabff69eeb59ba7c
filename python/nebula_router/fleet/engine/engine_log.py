"""An engine's log: turned over while the engine writes to it, and its last lines."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES: Final = 16 << 10
_CONTROL: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def turn_over(log: Path, max_bytes: int, keep: int) -> bool:
    """Move what is in the log to `log.1`, and that to `log.2`, where it is larger than `max_bytes`; whether it was.

    The engine holds the file open for appending and knows nothing of this, so the text is copied and the file cut:
    what it writes between the copy's end and the cut is lost. Blocks while it copies.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    if keep:
        for number in range(keep - 1, 0, -1):
            older = log.with_name(f"{log.name}.{number}")
            if older.exists():
                older.replace(log.with_name(f"{log.name}.{number + 1}"))
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)
    return True


def tail(log: Path, lines: int, skip: int = 0) -> list[str]:
    """The last lines that say something, without colours; nothing of the first `skip` bytes."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = skip if skip <= size else 0  # turned over since
            file.seek(max(begin, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return []
    said = (_CONTROL.sub("", line).rstrip() for line in text.splitlines())
    return [line for line in said if line][-lines:]
