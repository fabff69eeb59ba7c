"""Simulated engines in the test's own process, and a control plane in front of them."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import pytest
from tests.gateway.wait import until

from nebula_router.control_plane import ControlPlaneManager, ExecutionInstance, RequestMetadata, RequestStatus
from nebula_router.core import Sim
from nebula_router.sim_settings import SimSettings

MODEL = "tiny"
LONG = 20_000
"""Tokens of a reply that nobody waits for: at a millisecond each it outlasts every test."""
# Slow enough that a reply has a middle.
PACE = {"prefill_us_per_token": 1.0, "decode_us_per_seq": 10.0, "step_base_us": 1000.0}
SOON = {"health_check_interval": 0.05, "health_check_timeout": 1.0, "stop_timeout": 0.0}
"""Failures are seen soon, and a test that ends leaves nothing to wait for."""

Engine = Callable[..., Sim]


class Serve(Protocol):
    """Opens a control plane in front of simulated engines; they are instances `e0`, `e1` and so on."""

    def __call__(self, sims: Sequence[Sim], **arguments: Any) -> AbstractAsyncContextManager[ControlPlaneManager]: ...


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Starts simulated engines that end with the test."""
    started: list[Sim] = []

    def start(**settings: Any) -> Sim:
        document = {"listen": "127.0.0.1:0", "model": MODEL, **PACE, **settings}
        started.append(Sim(SimSettings.model_validate(document).core_json()))
        return started[-1]

    yield start
    for sim in started:
        sim.stop()


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def opened(sims: Sequence[Sim], **arguments: Any) -> AsyncIterator[ControlPlaneManager]:
        cp = ControlPlaneManager(**SOON | arguments)
        for at, sim in enumerate(sims):
            cp.register_instance(instance_of(sim, f"e{at}"))
        await cp.start()
        try:
            yield cp
        finally:
            await cp.stop()
        assert not cp._engines._core
        assert all(instance.active_requests == 0 for instance in cp.get_instances())

    return opened


def instance_of(sim: Sim, name: str, **fields: Any) -> ExecutionInstance:
    parts = urlsplit(sim.url)
    assert parts.hostname
    assert parts.port
    return ExecutionInstance(name, parts.hostname, parts.port, **{"model_name": MODEL, **fields})


def asks(request_id: str, prompt: str = "hello there", **fields: Any) -> RequestMetadata:
    return RequestMetadata(request_id, prompt=prompt, **{"max_tokens": 3, **fields})


async def all_well(cp: ControlPlaneManager) -> None:
    """Returns once every instance takes requests."""
    await until("instances to be well", lambda: not any(m.health.is_new for m in cp._fleet.members))
    assert all(instance.can_accept_request for instance in cp.get_instances())


async def status_of(cp: ControlPlaneManager, request_id: str, wanted: RequestStatus) -> None:
    """Returns once a request has the status."""

    async def reached() -> bool:
        return await cp.get_request_status(request_id) is wanted

    await until(f"{request_id} to be {wanted.value}", reached)


async def begun(cp: ControlPlaneManager, *request_ids: str) -> None:
    """Returns once the engines have sent something of all these."""
    await until("replies to begin", lambda: all(cp._tickets.known(name)._texts for name in request_ids))


async def post(sim: Sim, path: str, **body: Any) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        (await http.post(sim.url + path, json=body)).raise_for_status()


async def figure(sim: Sim, name: str) -> float:
    """One of an engine's metrics, summed over its series."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(sim.url + "/metrics")).raise_for_status().text
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def idle(sim: Sim) -> None:
    """Returns once an engine runs nothing."""

    async def is_idle() -> bool:
        return await figure(sim, "vllm:num_requests_running") == 0

    await until("the engine to be idle", is_idle)
