"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# PR_SET_PDEATHSIG (prctl(2)) stands over the exec. Who started it may be gone by the time that it is set.
_CODE: Final = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def tied(argv: Sequence[str]) -> tuple[str, ...]:
    """The command, so that it gets SIGTERM when this process ends. It must be started by this process's main thread."""
    return (sys.executable, "-I", "-S", "-c", _CODE, str(os.getpid()), *argv)
