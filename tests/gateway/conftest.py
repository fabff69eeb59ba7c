"""The gateway as a process, in front of engines that live in the test's own process."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import httpx
import pytest
from tests.gateway.process import Gateway
from tests.gateway.upstream import Upstream
from tests.gateway.wait import until

from nebula_router.core import Sim
from nebula_router.sim_settings import SimSettings

MODEL = "tiny"
# Slow enough that a stream has a middle, fast enough that nobody waits for it.
PACE = {"prefill_us_per_token": 1.0, "decode_us_per_seq": 10.0, "step_base_us": 1000.0}
# Everything that a test waits for, sooner.
QUICK = (
    *("--probe-interval-ms", "100", "--probe-timeout-ms", "300", "--facts-interval-s", "0.5"),
    *("--breaker-open-ms", "200", "--idle-timeout-s", "1.5", "--first-byte-timeout-s", "10"),
)

SIM_COUNT = 2


class OpenGateway(Protocol):
    """Starts a gateway of a test's own."""

    def __call__(
        self, *flags: str, path: str = "/health", **environment: str
    ) -> AbstractAsyncContextManager[Gateway]: ...


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for all of them: the gateway that they share is a child of it."""
    return "asyncio"


def simulate(listen: str = "127.0.0.1:0", model: str = MODEL, **settings: Any) -> Sim:
    return Sim(SimSettings.model_validate({"listen": listen, "model": model, **PACE, **settings}).core_json())


@pytest.fixture(scope="session")
def sims() -> Iterator[list[Sim]]:
    engines = [simulate(seed=seed) for seed in range(SIM_COUNT)]
    yield engines
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="session")
def open_gateway(tmp_path_factory: pytest.TempPathFactory) -> OpenGateway:
    @asynccontextmanager
    async def opened(*flags: str, path: str = "/health", **environment: str) -> AsyncIterator[Gateway]:
        gateway = Gateway(tmp_path_factory.mktemp("gateway"), *QUICK, *flags, **environment)
        try:
            await gateway.start(path=path)
            yield gateway
        finally:
            code = await gateway.stop()
            print(gateway.tail())  # noqa: T201 - pytest shows it when the test failed
        assert code == 0

    return opened


@pytest.fixture(scope="session")
async def shared(anyio_backend: str, sims: list[Sim], open_gateway: OpenGateway) -> AsyncIterator[Gateway]:
    """A gateway with the default policy in front of the simulated engines and whatever a test adds."""
    assert anyio_backend == "asyncio"
    engines = [word for sim in sims for word in ("--engine", sim.url)]
    async with open_gateway(*engines, "--model-alias", f"short={MODEL}") as gateway:
        await await_sims(gateway)
        yield gateway


async def await_sims(gateway: Gateway, count: int = SIM_COUNT) -> None:
    async def known() -> bool:
        return sum(MODEL in engine["models"] for engine in (await gateway.engines()).values()) == count

    await until("the simulated engines to be known", known)


@pytest.fixture
async def gateway(shared: Gateway) -> AsyncIterator[Gateway]:
    """The shared gateway; no test may leave load behind."""
    start = len(shared.lines())
    yield shared
    print("\n".join(shared.lines()[start:]))  # noqa: T201 - pytest shows it when the test failed
    await shared.await_rest()


@pytest.fixture
async def upstream(gateway: Gateway) -> AsyncIterator[Upstream]:
    """An engine of the test's own, behind the shared gateway."""
    engine = Upstream()
    async with gateway.serving(engine):
        yield engine


async def fault(engine: str, kind: str, **parameters: float) -> None:
    """Makes a simulated engine fail."""
    async with httpx.AsyncClient(trust_env=False) as http:
        (await http.post(f"{engine}/sim/fault", json={"kind": kind, **parameters})).raise_for_status()
