"""A real etcd of a test's own, which can be stopped, killed, frozen and started again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.process import free_port

from nebula_router.fleet.settings import StoreSettings

WITHIN_S = 20.0
READY = b"ready to serve client requests"


class Etcd:
    """One member; `extra` are more of etcd's own flags."""

    def __init__(self, folder: Path, *extra: str, scheme: str = "http") -> None:
        if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
            lacks = "etcd and etcdctl are not installed: apt-get install etcd-server etcd-client"
            # Continuous integration installs them, so a skip there would hide a mistake.
            (pytest.fail if "CI" in os.environ else pytest.skip)(lacks)
        self.url = f"{scheme}://127.0.0.1:{free_port()}"
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.extra = extra
        self._folder = folder
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Etcd":
        """Starts it on its data; returns when it serves."""
        self.launch()
        self.await_ready()
        return self

    def launch(self) -> None:
        """Starts it on its data."""
        self._starts += 1
        command = [
            *("etcd", "--data-dir", str(self._folder / "data")),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer),
            *("--initial-cluster", f"default={self.peer}", *self.extra),
        ]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)

    def await_ready(self) -> None:
        """Returns when it serves."""
        deadline = time.monotonic() + WITHIN_S
        while READY not in self._log.read_bytes():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"etcd did not start: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It stays connected and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def ctl(self, *words: str, user: str | None = None, given: str = "") -> str:
        """What etcdctl prints; it reads what is given."""
        login = () if user is None else ("--user", user)
        done = subprocess.run(
            ["etcdctl", "--endpoints", self.url, *login, *words],
            input=given,
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def settings(self, **more: Any) -> StoreSettings:
        """Those of a store in it."""
        return StoreSettings.model_validate({"etcd_endpoints": [self.url], **more})

    @property
    def _log(self) -> Path:
        return self._folder / f"etcd-{self._starts}.log"

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            # One that is frozen ends when it goes on.
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(WITHIN_S)
            self._process = None
