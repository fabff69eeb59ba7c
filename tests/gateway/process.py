"""The gateway as an operator starts it, and the requests that every test makes of it."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from tests.e2e.process import free_port
from tests.gateway.upstream import Upstream
from tests.gateway.wait import WITHIN_S, until

TAIL = 60
GAUGES = (
    "nebula_running_requests",
    "nebula_prefill_tokens",
    "nebula_resident_tokens",
    "nebula_inflight_requests",
)


class Gateway:
    """``nebula gateway`` on a free port, its output in a file."""

    def __init__(self, folder: Path, *flags: str, command: str = "gateway", **environment: str) -> None:
        self.command = command
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"gateway-{self.port}.log"
        self.flags = flags
        self.environment = environment
        self.http = client(self.url)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self, *, path: str = "/health") -> None:
        """Returns once ``path`` answers 200."""
        command = [
            *("env", "--default-signal=INT"),
            sys.executable,
            "-m",
            "nebula_router",
            self.command,
            "--listen",
            f"127.0.0.1:{self.port}",
            *self.flags,
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEBULA_")}
        with self.log_file() as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=inherited | self.environment,
            )

        async def answers() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, f"the gateway ended while it started\n{self.tail()}"
            try:
                return (await self.http.get(path)).status_code == 200
            except httpx.TransportError:
                return False

        await until(f"GET {path}", answers)

    @contextmanager
    def log_file(self) -> Iterator[int]:
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            yield file
        finally:
            os.close(file)

    def terminate(self) -> None:
        """Asks it to stop, as an operator does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self, within_s: float = WITHIN_S) -> int:
        """Its exit code, once it is gone."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), within_s)

    async def stop(self) -> int:
        """Ends it, if it has not ended."""
        await self.http.aclose()
        assert self._process is not None
        if self._process.returncode is None:
            self.terminate()
            try:
                return await self.ended()
            except asyncio.TimeoutError:
                self._process.kill()
                await self.ended()
                raise
        return self._process.returncode

    def lines(self) -> list[str]:
        """What it wrote so far."""
        return self.log.read_text(errors="replace").splitlines()

    def tail(self) -> str:
        return "\n".join([f"--- last lines of {self.log}", *self.lines()[-TAIL:]])

    async def engines(self) -> dict[str, dict[str, Any]]:
        listed = (await self.http.get("/admin/engines")).raise_for_status().json()["engines"]
        return {engine["name"]: engine for engine in listed}

    @asynccontextmanager
    async def serving(self, *upstreams: Upstream, model: str | None = None) -> AsyncIterator[None]:
        """Puts engines, started here, into the fleet for a while."""
        for upstream in upstreams:
            upstream.model = model or upstream.model
            await upstream.start()
        try:
            for upstream in upstreams:
                (await self.http.post("/admin/engines", json={"url": upstream.url})).raise_for_status()
            await self.await_engines(*upstreams)
            yield
        finally:
            for upstream in upstreams:
                # A test may have ended the gateway.
                with suppress(httpx.TransportError):
                    await self.http.delete(f"/admin/engines/{upstream.name}")
                await upstream.stop()

    async def await_engines(self, *upstreams: Upstream) -> None:
        """Returns once all of them are ready and have told their models."""

        async def known() -> bool:
            engines = await self.engines()
            return all(
                engines[u.name]["status"] == "ready" and engines[u.name]["models"] == [u.model] for u in upstreams
            )

        await until("engines to be ready", known)

    async def metric(self, name: str, **labels: str) -> float | None:
        """A metric summed over its series with these labels; none if there is no such series."""
        text = (await self.http.get("/metrics")).raise_for_status().text
        values = [
            float(value)
            for series, value in re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
            if all(f'{key}="{wanted}"' in series for key, wanted in labels.items())
        ]
        return sum(values) if values else None

    async def at_rest(self) -> bool:
        """Whether nothing is booked and nothing is held."""
        return [await self.metric(name) for name in GAUGES] == [0.0] * len(GAUGES)

    async def await_rest(self) -> None:
        await until("gauges at zero", self.at_rest)


def client(url: str) -> httpx.AsyncClient:
    """A client that shows everything as it is."""
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=WITHIN_S)
