"""The routing data plane as a process of its own, and a gateway with keys in front of it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.gateway.conftest import QUICK, OpenGateway, await_sims, simulate
from tests.gateway.process import Gateway
from tests.gateway.wait import until

from nebula_router.core import Sim

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture
def engine() -> Iterator[Sim]:
    started = simulate()
    yield started
    started.stop()


@asynccontextmanager
async def routing(folder: Path, *flags: str, **environment: str) -> AsyncIterator[Gateway]:
    router = Gateway(folder, *QUICK, *flags, command="router", **environment)
    try:
        await router.start()
        yield router
    finally:
        assert await router.stop() == 0, router.tail()


async def test_the_router_chooses_and_the_gateway_keeps_the_keys(
    engine: Sim, open_gateway: OpenGateway, tmp_path: Path
) -> None:
    environment = {"NEBULA_GATEWAY__API_KEYS": "sesame"}
    async with (
        routing(tmp_path, "--engine", engine.url, **environment) as router,
        open_gateway("--router", router.url, **environment) as gateway,
    ):
        await await_sims(router, 1)
        assert (await router.http.post(CHAT, json=BODY)).status_code == 200, "a router asks for no key"
        assert (await gateway.http.post(CHAT, json=BODY)).status_code == 401
        headers = {"authorization": "Bearer sesame", "x-nebula-debug": "1"}

        async def answered() -> bool:
            return (await gateway.http.post(CHAT, json=BODY, headers=headers)).status_code == 200

        await until("the gateway to know the router's models", answered)
        reply = await gateway.http.post(CHAT, json=BODY, headers=headers)
        assert reply.headers["x-nebula-engine"] == engine.url.removeprefix("http://"), "the router's choice is shown"
        assert float(reply.headers["x-nebula-cost"]) > 0
        assert reply.headers.get_list("x-nebula-engine") == [reply.headers["x-nebula-engine"]]
        models = (await gateway.http.get("/v1/models", headers=headers)).json()["data"]
        assert [model["id"] for model in models] == ["tiny"]
        async with gateway.http.stream("POST", CHAT, json={**BODY, "stream": True}, headers=headers) as stream:
            text = "".join([piece async for piece in stream.aiter_text()])
        assert text.endswith("data: [DONE]\n\n")
        assert '"usage"' not in text
        await gateway.await_rest()
        await router.await_rest()


async def test_a_router_without_engines_does_not_rest(open_gateway: OpenGateway, tmp_path: Path) -> None:
    engine = simulate()
    async with routing(tmp_path, "--engine", engine.url) as router, open_gateway("--router", router.url) as gateway:
        await await_sims(router, 1)

        async def status() -> int:
            return (await gateway.http.post(CHAT, json=BODY)).status_code

        async def answers() -> bool:
            return await status() == 200

        await until("an answer", answers)
        engine.stop()

        async def refuses() -> bool:
            return await status() == 503

        await until("the engine to be missed", refuses)
        for _ in range(20):
            assert await status() == 503
        assert [e["status"] for e in (await gateway.engines()).values()] == ["ready"], "it is the router that answers"


async def test_one_of_two_routers_may_die(engine: Sim, open_gateway: OpenGateway, tmp_path: Path) -> None:
    async with routing(tmp_path, "--engine", engine.url) as kept, routing(tmp_path, "--engine", engine.url) as lost:
        await await_sims(kept, 1)
        await await_sims(lost, 1)
        async with open_gateway("--router", kept.url, "--router", lost.url) as gateway:
            await await_sims(gateway, 2)
            lost.terminate()
            assert await lost.ended() == 0
            for _ in range(20):
                assert (await gateway.http.post(CHAT, json=BODY)).status_code == 200


async def test_a_router_beside_engines_is_refused(open_gateway: OpenGateway) -> None:
    with pytest.raises(AssertionError, match="the routers know the engines"):
        async with open_gateway("--router", "http://127.0.0.1:1", "--engine", "http://127.0.0.1:2"):
            pass
