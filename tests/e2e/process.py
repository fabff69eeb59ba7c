"""A server under test: its own process group, its output in a file, every wait with a deadline."""

import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import httpx
from tests.e2e.wait import until

TAIL_LINES = 40
KILL_WITHIN_S = 10


class ServerError(RuntimeError):
    """A server did not start, or did not stop; the text ends in the last lines of its output."""


class Server:
    """A command that serves HTTP on a port of its own.

    The address stays the same over restarts, the log grows over them.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.code = 0  # of the last process that ended

    def launch(self, command: list[str], environment: dict[str, str]) -> None:
        """Starts the command in a process group of its own and returns at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.log.parent,
                start_new_session=True,
            )

    def await_ok(self, path: str, within_s: float) -> None:
        """Returns once GET ``path`` answers 200.

        Raises:
            ServerError: it exits before, or the time is up.
        """

        def answered() -> bool:
            if not self.running:
                raise ServerError(f"{self.name} exited while it started\n{self.tail()}")
            try:
                return httpx.get(self.url + path, trust_env=False, timeout=2).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        try:
            until(f"GET {self.url}{path}", answered, within_s)
        except TimeoutError as error:
            raise ServerError(f"{self.name}: {error}\n{self.tail()}") from error

    @property
    def running(self) -> bool:
        """Whether the process that was started is alive."""
        return self.process is not None and self.process.poll() is None

    def stop(self, within_s: float) -> int:
        """Asks it to end with SIGTERM and gives back its exit code; asked again, the same code.

        Raises:
            ServerError: it is still there when the time is up; by then the whole group has been killed.
        """
        if self.process is None:
            return self.code
        self.signal_group(signal.SIGTERM)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"{self.name} outlived SIGTERM by {within_s} s\n{self.tail()}") from error
        finally:
            self.kill()
        return self.code

    def kill(self) -> None:
        """Ends the whole group with SIGKILL, children that outlived their parent included; returns when it is dead."""
        if self.process is None:
            return
        self.signal_group(signal.SIGKILL)
        self.code = self.process.wait(KILL_WITHIN_S)
        self.process = None

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to every process of the group that is left."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def tail(self) -> str:
        """The last lines that it wrote."""
        if not self.log.exists():
            return f"({self.name} wrote nothing)"
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"--- last lines of {self.log}", *lines])


def free_port() -> int:
    """A port that nobody listens on, below the range from which the system takes ports for outgoing connections.

    An engine needs half a minute until it listens, and comes back to the same port after a kill: a port from that
    range could be some connection's by then.
    """
    while True:
        port = random.randint(15_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
