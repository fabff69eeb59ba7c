"""The binary and what Python says of it agree: names, paths, policies, and what each kind of error becomes."""

import ast
import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nebula_router
from nebula_router import _core  # noqa: TID251 - this test is about the binary itself
from nebula_router.config import EngineSettings, Settings
from nebula_router.core import PATHS, POLICIES, Core, NebulaError, Sim
from nebula_router.gateway.app import GatewayApp

STUB = Path(nebula_router.__file__).with_name("_core.pyi")
WITHIN_S = 20.0
CHAT = "/v1/chat/completions"
MESSAGES = '"messages":[{"role":"user","content":"x"}]'


def settings(*engines: str, **groups: dict[str, Any]) -> Settings:
    gateway = {"engines": list(engines), **groups.get("gateway", {})}
    return Settings.model_validate({"gateway": gateway, "upstream": groups.get("upstream", {})})


def sim() -> Sim:
    return Sim(Settings.model_validate({"sim": {"listen": "127.0.0.1:0", "step_base_us": 1}}).sim.core_json())


@contextmanager
def engine() -> Iterator[Sim]:
    started = sim()
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def silence() -> Iterator[str]:
    """An address where connections are taken and nothing is said."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield "http://{}:{}".format(*held.getsockname())


async def refusal(core: Core, body: str, *, path: str = CHAT, **headers: str) -> NebulaError:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    reply = core.dispatch(path, b"", pairs, body.encode())
    with pytest.raises(NebulaError) as raised:
        await asyncio.wait_for(reply.part(), WITHIN_S)
    return raised.value


async def ready(core: Core) -> None:
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while not all(engine["models"] for engine in core.engines()):
        assert asyncio.get_running_loop().time() < deadline, core.engines()
        await asyncio.sleep(0.01)


def run(document: Settings, ask: Callable[[Core], Awaitable[NebulaError]]) -> NebulaError:
    async def started() -> NebulaError:
        core = Core(document.core_json())
        try:
            return await ask(core)
        finally:
            core.stop()

    return asyncio.run(started())


def bad_request() -> NebulaError:
    return run(settings(), lambda core: refusal(core, "{"))


def unknown_model() -> NebulaError:
    async def ask(core: Core) -> NebulaError:
        await ready(core)
        return await refusal(core, f'{{"model":"nobody",{MESSAGES}}}')

    with engine() as up:
        return run(settings(up.url), ask)


def saturated() -> NebulaError:
    async def ask(core: Core) -> NebulaError:
        first = core.dispatch(CHAT, b"", [], f'{{"model":"x",{MESSAGES}}}'.encode())
        second = await refusal(core, f'{{"model":"x",{MESSAGES}}}')
        first.cancel()
        return second

    with silence() as url:
        return run(settings(url, gateway={"max_inflight": 1}), ask)


def bad_gateway() -> NebulaError:
    async def ask(core: Core) -> NebulaError:
        await ready(core)
        return await refusal(core, f'{{"model":"tiny",{MESSAGES}}}', x_sim_fault="reset")

    with engine() as up:
        return run(settings(up.url), ask)


def no_engine() -> NebulaError:
    return run(settings(), lambda core: refusal(core, f'{{"model":"x",{MESSAGES}}}'))


def timeout() -> NebulaError:
    with silence() as url:
        document = settings(url, upstream={"first_byte_timeout_s": 0.1})
        return run(document, lambda core: refusal(core, f'{{"model":"x",{MESSAGES}}}'))


def stopping() -> NebulaError:
    async def ask(core: Core) -> NebulaError:
        core.refuse()
        return await refusal(core, "{}")

    return run(settings(), ask)


def internal() -> NebulaError:
    """No request can make it happen; a file of authorities that is none does, at start."""
    with pytest.raises(NebulaError) as raised:
        run(settings(upstream={"ca_file": "/nowhere.pem"}), lambda core: refusal(core, "{}"))
    return raised.value


STATUSES = {
    bad_request: (400, "BadRequestError", None),
    unknown_model: (404, "NotFoundError", None),
    saturated: (429, "RateLimitError", 1),
    internal: (500, "InternalServerError", None),
    bad_gateway: (502, "BadGatewayError", None),
    no_engine: (503, "ServiceUnavailableError", 1),
    stopping: (503, "ServiceUnavailableError", 1),
    timeout: (504, "GatewayTimeoutError", None),
}


def test_every_kind_of_error_is_made_to_happen() -> None:
    assert sorted(make.__name__ for make in STATUSES) == sorted(_core.ERROR_KINDS)


@pytest.mark.parametrize("make", STATUSES, ids=[make.__name__ for make in STATUSES])
def test_an_error_becomes_a_status_and_openais_body(make: Callable[[], NebulaError]) -> None:
    status, kind, retry_after_s = STATUSES[make]
    error = make()
    assert (error.code, error.status, error.retry_after_s) == (make.__name__, status, retry_after_s)
    body = json.loads(error.body)["error"]
    assert (body["type"], body["code"], body["message"]) == (kind, status, str(error))
    assert set(body) == {"message", "type", "param", "code"}


def test_the_apps_routes_are_the_cores_paths() -> None:
    async def routes() -> list[tuple[str, set[str]]]:
        core = Core(settings().core_json())
        try:
            app = GatewayApp(core, settings())
            return [(route.path, route.methods) for route in app.routes if route.endpoint is app.proxy]  # type: ignore[attr-defined]
        finally:
            core.stop()

    found = asyncio.run(routes())
    assert [path for path, _ in found] == list(PATHS) == list(_core.PATHS)
    assert all(methods == {"POST"} for _, methods in found)
    assert len(set(PATHS)) == len(PATHS)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/score",
        "/v1/score",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
        "/v1/audio/transcriptions",
    ],
)
def test_a_path_that_users_rely_on_is_there(path: str) -> None:
    assert path in PATHS


def test_the_policies_are_told_apart() -> None:
    assert POLICIES[0] == "kv"
    assert len(set(POLICIES)) == len(POLICIES)


def stub() -> dict[str, set[str]]:
    """The stub's names; for a class, its own."""
    names: dict[str, set[str]] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = set()
        elif isinstance(node, ast.FunctionDef):
            names[node.name] = set()
        elif isinstance(node, ast.ClassDef):
            names[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


def test_the_stub_names_what_is_there_and_nothing_else() -> None:
    assert set(stub()) == {name for name in vars(_core) if not name.startswith("__") or name == "__version__"}


@pytest.mark.parametrize("name", [name for name, members in stub().items() if members])
def test_a_classes_stub_names_what_it_has(name: str) -> None:
    members = {member for member in vars(getattr(_core, name)) if not member.startswith("__")}
    assert stub()[name] - {"__new__"} == members


def test_a_header_that_is_none_is_refused_by_name() -> None:
    async def ask() -> None:
        core = Core(settings().core_json())
        try:
            with pytest.raises(ValueError, match="x bad"):
                core.dispatch(CHAT, b"", [(b"x bad", b"1")], b"{}")
            with pytest.raises(ValueError, match="/nowhere"):
                core.dispatch("/nowhere", b"", [], b"{}")
        finally:
            core.stop()

    asyncio.run(ask())


BAD_FLEETS = {
    "two of one name": ({}, "occurs twice"),
    "no rank": ({"ranks": 0}, "rank"),
    "no URL": ({"url": "h:1"}, "http://host:8000"),
}


@pytest.mark.parametrize(("change", "why"), BAD_FLEETS.values(), ids=BAD_FLEETS)
def test_a_fleet_that_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    spec = EngineSettings(url="http://127.0.0.1:1", name="a").model_dump()

    async def ask() -> None:
        core = Core(settings("http://127.0.0.1:1").core_json())
        try:
            with pytest.raises(ValueError, match=why):
                core.set_engines([spec, {**spec, **change}] if not change else [{**spec, **change}])
            assert [engine["name"] for engine in core.engines()] == ["127.0.0.1:1"]
        finally:
            core.stop()

    asyncio.run(ask())


def test_an_engine_that_is_not_there_cannot_be_drained() -> None:
    async def ask() -> None:
        core = Core(settings().core_json())
        try:
            with pytest.raises(ValueError, match="nobody"):
                core.drain_engine("nobody", on=True)
        finally:
            core.stop()

    asyncio.run(ask())
