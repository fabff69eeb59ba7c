"""The daemons of a fleet as an operator starts them, and what they left behind ended with them."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.gateway.wait import until
from typing_extensions import Self

TAIL = 40
STOP_S = 20.0


class Daemon:
    """One command of the package; its output is in a file. It has a process group of its own, as under systemd."""

    def __init__(self, folder: Path, *command: str, **environment: str) -> None:
        self.name = f"{command[0]}-{len(list(folder.glob('*.log')))}"
        self.log = folder / f"{self.name}.log"
        self.log.touch()
        self._command = [sys.executable, "-m", "nebula_router", *command]
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> "Daemon":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NEBULA_", "CUDA_"))}
        with self.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=inherited | self._environment,
                start_new_session=True,
            )
        return self

    async def finished(self) -> tuple[int, str]:
        """Exit status and output of a command that ends by itself."""
        await self.start()
        assert self._process is not None
        status = await asyncio.wait_for(self._process.wait(), STOP_S)
        return status, self.log.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """The processes that it started itself, by start."""
        return sorted(psutil.Process(self.pid).children(), key=psutil.Process.create_time)

    async def kill(self) -> None:
        """Ends it alone, at once: what it started goes on."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await asyncio.wait_for(self._process.wait(), STOP_S)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end; its exit status."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(number)
            try:
                return await asyncio.wait_for(self._process.wait(), STOP_S)
            except asyncio.TimeoutError:
                await self.kill()
                raise TimeoutError(f"{self.name} did not end\n{self.tail()}") from None
        return self._process.returncode

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        return "\n".join([f"--- last lines of {self.name}", *lines])


class Traffic:
    """Requests of one model, one after the other, all the time; every answer that is no 200 is kept."""

    def __init__(self, url: str, model: str, body: str | None = None) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._url = url
        hi = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        self._body = body or json.dumps(hi)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def more(self, count: int = 20) -> None:
        """Returns once so many further requests were answered."""
        wanted = self.answers + count
        await until(f"{count} more answers", lambda: self.answers >= wanted)

    async def _run(self) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=STOP_S) as http:
            while True:
                try:
                    reply = await http.post(self._url + "/v1/chat/completions", content=self._body)
                    if reply.status_code != httpx.codes.OK:
                        self.failures.append(f"{reply.status_code} {reply.text}")
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                self.answers += 1
                await asyncio.sleep(0.02)


async def asked(url: str, path: str) -> dict[str, Any]:
    """The JSON of a GET, or nothing where nobody answers."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        try:
            answer: dict[str, Any] = (await http.get(url + path)).json()
        except (httpx.TransportError, ValueError):
            return {}
    return answer
