"""A fault of the gateway itself is its own, and is not kept quiet."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from nebula_router.config import Settings
from nebula_router.core import Core
from nebula_router.gateway.app import GatewayApp

pytestmark = pytest.mark.anyio

SECRET = "xyzzy-plugh"


@pytest.fixture
async def app() -> AsyncIterator[GatewayApp]:
    settings = Settings()
    core = Core(settings.core_json())
    yield GatewayApp(core, settings)
    core.stop()


def fails(*_: Any) -> None:
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("method", "path", "part"), [("POST", "/v1/completions", "dispatch"), ("GET", "/metrics", "metrics")]
)
async def test_a_fault_of_the_gateway_is_told_and_logged(
    method: str,
    path: str,
    part: str,
    app: GatewayApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app._core, part, fails)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with caplog.at_level(logging.ERROR):
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            reply = await http.request(method, path, content=SECRET)
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "InternalServerError"
    assert "out of order" not in reply.text
    assert path in caplog.text
    assert "out of order" in caplog.text
    assert SECRET not in caplog.text
    assert app.proxy.active == 0
