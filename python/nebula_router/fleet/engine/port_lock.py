"""Ports that nodes on one machine keep from each other until their engines listen on them."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

FILE: Final = "nebula-ports.lock"
"""In the folder for temporary files. It stays empty: byte N of it is locked by whoever means to use port N."""
_FLOCK: Final = "hhqqi"
"""`struct flock` of 64-bit Linux: type, whence, start, length, process."""

_log = logging.getLogger(__name__)


class PortLock:
    """Locks of this node; they end with its process at the latest. Where there can be no file, nothing is locked."""

    def __init__(self, folder: Path | None = None) -> None:
        file = (folder or Path(tempfile.gettempdir())) / FILE
        self._held: set[int] = set()
        self._fd: int | None = None
        try:
            self._fd = _opened(file)
        except OSError as error:
            _log.warning("nodes on this machine may try for the same ports: %s: %s", file, error.strerror or error)

    def take(self, port: int) -> bool:
        """Whether no other node means to use the port."""
        if port not in self._held and self._set(fcntl.F_WRLCK, port):
            self._held.add(port)
        return port in self._held

    def keep_only(self, ports: Collection[int]) -> None:
        """Let others have all ports but these."""
        for port in self._held.difference(ports):
            self._set(fcntl.F_UNLCK, port)
            self._held.discard(port)

    def close(self) -> None:
        """Let others have all ports. Idempotent."""
        self._held.clear()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _set(self, kind: int, port: int) -> bool:
        """Lock or unlock; these locks belong to the open file, not to the process (F_OFD_SETLK in fcntl(2))."""
        if self._fd is None:
            return True
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, port, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True


def _opened(file: Path) -> int:
    """The file, for every user of the machine. One that is there is not created: the kernel may forbid that."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileNotFoundError):
        return os.open(file, flags)
    with suppress(FileExistsError):
        made = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o666)
        os.fchmod(made, 0o666)
        return made
    return os.open(file, flags)
