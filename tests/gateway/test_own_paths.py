"""What the gateway answers itself: models, health, readiness, metrics, version."""

import re

import httpx
import pytest
from tests.e2e.process import free_port
from tests.gateway.conftest import MODEL, OpenGateway
from tests.gateway.process import GAUGES, Gateway
from tests.gateway.upstream import Upstream
from tests.gateway.wait import until

import nebula_router
from nebula_router.core import Sim

pytestmark = pytest.mark.anyio


async def test_models_are_the_union_over_the_engines_and_the_aliases(gateway: Gateway, upstream: Upstream) -> None:
    listed = (await gateway.http.get("/v1/models")).json()
    cards = {card["id"]: card for card in listed["data"]}
    assert listed["object"] == "list"
    assert {MODEL, "short", upstream.model} <= set(cards)
    assert cards["short"] == {**cards[MODEL], "id": "short"}
    assert cards[upstream.model] == {"id": upstream.model, "object": "model"}


async def test_a_models_card_is_the_one_that_its_engine_gave(gateway: Gateway, sims: list[Sim]) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        own = [(await http.get(f"{sim.url}/v1/models")).json()["data"][0] for sim in sims]
    assert (await gateway.http.get(f"/v1/models/{MODEL}")).json() in own


async def test_a_model_may_have_a_slash_in_its_name(gateway: Gateway) -> None:
    async with gateway.serving(Upstream(), model="vendor/model-7b"):
        reply = await gateway.http.get("/v1/models/vendor/model-7b")
        assert reply.json() == {"id": "vendor/model-7b", "object": "model"}


async def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    reply = await gateway.http.get("/v1/models/nobody")
    assert reply.status_code == 404
    assert reply.json()["error"]["type"] == "NotFoundError"


async def test_an_engine_that_is_down_at_start_stops_nobody(open_gateway: OpenGateway, sims: list[Sim]) -> None:
    down = f"127.0.0.1:{free_port()}"
    async with open_gateway("--engine", f"http://{down}", "--engine", sims[0].url, path="/ready") as gateway:
        assert (await gateway.http.get("/health")).json()["engines"][down] in {"unknown", "down"}
        await until("its models", lambda: answers(gateway, f"/v1/models/{MODEL}"))
        assert await listed(gateway) == [MODEL]
        for _ in range(4):
            reply = await gateway.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 1})
            assert reply.status_code == 200
        await until("one engine to be seen down", lambda: is_up(gateway, down, 0))


async def listed(gateway: Gateway) -> list[str]:
    return [card["id"] for card in (await gateway.http.get("/v1/models")).raise_for_status().json()["data"]]


async def answers(gateway: Gateway, path: str) -> bool:
    return (await gateway.http.get(path)).status_code == 200


async def is_up(gateway: Gateway, engine: str, wanted: float) -> bool:
    return await gateway.metric("nebula_engine_up", engine=engine) == wanted


async def test_before_an_engine_is_ready_the_gateway_lives_but_is_not_ready(open_gateway: OpenGateway) -> None:
    down = f"127.0.0.1:{free_port()}"
    async with open_gateway("--engine", f"http://{down}") as gateway:
        health = await gateway.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "healthy")
        ready = await gateway.http.get("/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert (await gateway.http.get("/v1/models")).json() == {"object": "list", "data": []}
        for name in ("nebula_retries_total", "nebula_prompt_tokens_total", "nebula_cached_tokens_total", *GAUGES[:3]):
            assert await gateway.metric(name, engine=down) == 0, name
        assert await gateway.metric("nebula_ttft_seconds_count", engine=down) == 0
        assert await gateway.metric("nebula_engine_up", engine=down) == 0
        refused = await gateway.http.post("/v1/completions", json={"model": "any", "prompt": "x"})
        assert refused.status_code in {502, 503}
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}


async def test_ready_and_health_of_a_gateway_with_engines(gateway: Gateway, sims: list[Sim]) -> None:
    assert (await gateway.http.get("/ready")).json() == {"ready": True}
    health = (await gateway.http.get("/health")).json()
    assert health["status"] == "healthy"
    assert health["policy"] == "kv"
    assert health["inflight"] == 0
    assert {sim.url.removeprefix("http://") for sim in sims} <= set(health["engines"])
    assert (await gateway.http.head("/health")).status_code == 200


async def test_metrics_count_what_happened_and_can_be_parsed(gateway: Gateway, upstream: Upstream) -> None:
    labels = {"engine": upstream.name, "path": "/v1/completions", "status": "200"}
    for _ in range(3):
        await gateway.http.post("/v1/completions", json={"model": upstream.model, "prompt": "x" * 400})
    await until("three requests counted", lambda: counted(gateway, labels, 3))
    assert await gateway.metric("nebula_ttft_seconds_count", engine=upstream.name) == 3
    assert await gateway.metric("nebula_prompt_tokens_total", engine=upstream.name) == 9
    assert (await gateway.metric("nebula_overlap_tokens_total", engine=upstream.name) or 0) > 0
    reply = await gateway.http.get("/metrics")
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")
    sample = re.compile(r'(# .*|[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [0-9.e+-]+|[a-z_]+\{.*le="\+Inf".*\} \d+)')
    assert [line for line in reply.text.splitlines() if not sample.fullmatch(line)] == []


async def counted(gateway: Gateway, labels: dict[str, str], wanted: float) -> bool:
    return await gateway.metric("nebula_requests_total", **labels) == wanted


async def test_the_version_is_the_packages(gateway: Gateway) -> None:
    assert (await gateway.http.get("/version")).json() == {"version": nebula_router.__version__}
