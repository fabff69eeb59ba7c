"""Two real engines and a gateway for the whole session, further gateways on demand."""

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import openai
import pytest
from tests.e2e.client import openai_client
from tests.e2e.engine import Engine, Environment, InstallError, prepare
from tests.e2e.gateway import Gateway
from tests.e2e.process import Server

SERVERS = pytest.StashKey[list[Server]]()
FIGURES = pytest.StashKey[list[str]]()

OpenGateway = Callable[..., AbstractContextManager[Gateway]]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVERS] = []
    config.stash[FIGURES] = []
    # A time limit ends a run with SIGTERM: the engines must not outlive it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.extend((f"log of {server.name}", server.tail()) for server in item.config.stash[SERVERS])
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for figure in config.stash[FIGURES]:
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Lines to show at the end of the run."""
    return pytestconfig.stash[FIGURES]


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> list[Server]:
    """Servers whose logs are shown where a test fails."""
    return pytestconfig.stash[SERVERS]


@pytest.fixture(scope="session")
def environment(pytestconfig: pytest.Config) -> Environment:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        try:
            return prepare(lambda line: print(line, flush=True))  # noqa: T201  a person waits for minutes
        except InstallError as error:
            pytest.exit(f"no real engine to test with: {error}", returncode=3)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def engines(environment: Environment, folder: Path, pytestconfig: pytest.Config) -> Iterator[tuple[Engine, Engine]]:
    pair = (Engine(environment, "engine-1", folder), Engine(environment, "engine-2", folder))
    pytestconfig.stash[SERVERS].extend(pair)
    try:
        for engine in pair:
            engine.start()
        for engine in pair:
            engine.await_ready()
        yield pair
    finally:
        for engine in pair:
            engine.close()


@pytest.fixture(scope="session")
def open_gateway(folder: Path, pytestconfig: pytest.Config) -> OpenGateway:
    """``with open_gateway(urls, policy="kv") as gateway``: a gateway that stands until the block ends."""
    servers = pytestconfig.stash[SERVERS]

    @contextmanager
    def opened(
        engines: Sequence[str], policy: str = "kv", ready_path: str = "/ready", more: Sequence[str] = ()
    ) -> Iterator[Gateway]:
        gateway = Gateway(f"gateway-{len(list(folder.iterdir()))}-{policy}", folder, engines, policy, *more)
        servers.append(gateway)
        try:
            gateway.start(ready_path)
            yield gateway
        finally:
            code = gateway.close()
        servers.remove(gateway)
        assert code == 0, f"a gateway that is asked to end exits with {code}\n{gateway.tail()}"

    return opened


@pytest.fixture(scope="session")
def gateway(open_gateway: OpenGateway, engines: tuple[Engine, Engine]) -> Iterator[Gateway]:
    with open_gateway([engine.url for engine in engines]) as gateway:
        gateway.await_engines(len(engines))
        yield gateway


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai_client(gateway.url) as client:
        yield client


@pytest.fixture(scope="session")
def direct(engines: tuple[Engine, Engine]) -> Iterator[openai.OpenAI]:
    """The same library, past the gateway: what it gets is what the gateway must give."""
    with openai_client(engines[0].url) as client:
        yield client
