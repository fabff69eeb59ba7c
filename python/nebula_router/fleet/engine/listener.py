"""Who listens on a port: a server that answers there may be another one than the engine that was started."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"  # TCP_LISTEN in /proc/net/tcp (proc_pid_net(5))


def listens(pids: Iterable[int], port: int) -> bool | None:
    """Whether one of the processes listens on the TCP port; none where that cannot be seen.

    Cost: a line per socket of the machine, and a link per open file of the processes.
    """
    pids = tuple(pids)
    sockets: set[str] = set()
    for pid in pids[:1]:  # all of them are on one network
        sockets.update(_listening(pid, port))
    if not sockets:
        return None
    try:
        return any(link in sockets for pid in pids for link in _open(pid))
    except PermissionError:
        return None


def _listening(pid: int, port: int) -> Iterator[str]:
    """The sockets that listen on the port, as links to them are written."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / str(pid) / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{fields[9]}]"


def _open(pid: int) -> Iterator[str]:
    try:
        files = list((_PROC / str(pid) / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return
    for file in files:
        with suppress(FileNotFoundError):  # it was closed meanwhile
            yield str(file.readlink())
