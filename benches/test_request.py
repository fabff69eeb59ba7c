"""One request through the ASGI app, called as a server calls it but without a client's socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop

from nebula_router.bench import prompts, upstream
from nebula_router.config import Settings
from nebula_router.core import Core, Sim
from nebula_router.gateway.app import GatewayApp
from nebula_router.sim_settings import SimSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_benchmark.fixture import BenchmarkFixture
    from starlette.types import Message

REQUESTS = 1_000
"""Per round, spread over the requests in flight."""
READY_S = 10.0
MODEL = SimSettings().model


class Client:
    """Receives and sends for one request after the other, as the server would."""

    def __init__(self, body: bytes) -> None:
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": upstream.CHAT,
            "raw_path": upstream.CHAT.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1:8081"),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8081),
        }
        self.body = body
        self.sent = False
        self.status = 0

    async def ask(self, app: GatewayApp, times: int, status: int) -> None:
        """Send the same request again and again."""
        for _ in range(times):
            self.sent = False
            await app(self.scope, self.receive, self.send)
            assert self.status == status

    async def receive(self) -> Message:
        """Give the whole body; whoever asks again waits for a client that never leaves."""
        if self.sent:
            await asyncio.Event().wait()
        self.sent = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Keep the status."""
        if message["type"] == "http.response.start":
            self.status = message["status"]


async def start(engines: Sequence[str]) -> tuple[Core, GatewayApp]:
    """The app with its core, once all engines are ready."""
    configured = [{"url": url} for url in engines]
    settings = Settings.model_validate({"gateway": {"log_requests": False, "engines": configured}})
    core = Core(settings.core_json())
    await asyncio.wait_for(ready(core), READY_S)
    return core, GatewayApp(core, settings)


async def ready(core: Core) -> None:
    """Return once all engines are ready."""
    while any(engine["status"] != "ready" for engine in core.engines()):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


def measure(benchmark: BenchmarkFixture, in_flight: int, engines: Sequence[str], status: int) -> None:
    """Time `REQUESTS` requests with `in_flight` at once, each of which is answered with `status`."""
    loop = uvloop.new_event_loop()
    core, app = loop.run_until_complete(start(engines))
    bodies = prompts.chat_bodies(MODEL, extra={"max_tokens": 4})
    clients = [Client(bodies[i % len(bodies)]) for i in range(in_flight)]

    async def batch() -> None:
        await asyncio.gather(*[client.ask(app, REQUESTS // in_flight, status) for client in clients])

    benchmark.extra_info["requests"] = REQUESTS
    benchmark.pedantic(lambda: loop.run_until_complete(batch()), rounds=5, warmup_rounds=1)
    core.stop()
    loop.close()


@pytest.mark.parametrize("in_flight", [1, 8, 64])
def test_one_request_without_a_socket(benchmark: BenchmarkFixture, in_flight: int) -> None:
    """Time what is refused for want of an engine: the app, the crossing, the prompt, the refusal."""
    measure(benchmark, in_flight, [], 503)


@pytest.mark.parametrize("in_flight", [1, 8, 64])
def test_one_request_to_an_engine(benchmark: BenchmarkFixture, in_flight: int) -> None:
    """Time what a simulated engine in the same process answers at once: all of the gateway but the client's socket."""
    engine = Sim(SimSettings(listen="127.0.0.1:0", speed=0).core_json())
    measure(benchmark, in_flight, [engine.url], 200)
    engine.stop()
