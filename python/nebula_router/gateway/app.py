"""The Starlette app. Paths that reach an engine go straight to the proxy; everything else is routed as usual."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from nebula_router import __version__
from nebula_router.core import PATHS
from nebula_router.gateway.admin import Admin
from nebula_router.gateway.auth import NEEDS_KEY, Keys
from nebula_router.gateway.engines import Engines
from nebula_router.gateway.errors import FAULT, error_body
from nebula_router.gateway.fleet_admin import FleetAdmin
from nebula_router.gateway.openai import Proxy
from nebula_router.gateway.response import json_response
from nebula_router.gateway.store_metrics import store_metrics

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from nebula_router.config import Settings
    from nebula_router.core import Core
    from nebula_router.fleet.discovery import Discovery
    from nebula_router.fleet.store import Store

_LOG: Final = logging.getLogger(__name__)
_METRICS_END: Final = "# EOF\n"
_METRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class GatewayApp(Starlette):
    """The gateway's ASGI app."""

    def __init__(self, core: Core, settings: Settings, store: Store | None = None) -> None:
        """Serve what `core` routes; `store` holds the fleet that it follows, if it follows one."""
        self._core = core
        self.engines = Engines(core, settings.gateway)
        """The fleet, for whoever changes it."""
        self.discovery: Discovery | None = None
        """Where engines come from, beside the settings and the admin endpoints."""
        self._settings = settings
        self._keys = Keys(settings.gateway.api_keys)
        self._started = time.time()
        self.proxy = Proxy(core, settings)
        self._proxied = dict.fromkeys(PATHS, self.proxy)
        self.draining = False
        """Whether the gateway is stopping: it is alive, and no longer ready."""
        own = [
            Route("/v1/models", self._models),
            Route("/v1/models/{model:path}", self._model),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/version", self._version),
        ]
        admin = Admin(core, self.engines, settings)
        fleet = FleetAdmin(store, settings).routes(admin.guarded)
        proxied = [Route(path, self.proxy, methods=["POST"]) for path in PATHS]
        super().__init__(
            routes=[*proxied, *own, *admin.routes(), *fleet],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; Starlette's middleware and routing cost as much as the rest of a proxied request."""
        if scope["type"] == "http":
            proxy = self._proxied.get(scope["path"])
            if proxy is not None:
                return await proxy(scope, receive, send)
        return await super().__call__(scope, receive, send)

    async def _models(self, request: Request) -> Response:
        self._admit(request)
        return json_response({"object": "list", "data": self._known_models()})

    async def _model(self, request: Request) -> Response:
        self._admit(request)
        wanted = request.path_params["model"]
        for model in self._known_models():
            if model["id"] == wanted:
                return json_response(model)
        raise HTTPException(404, f"the model `{wanted}` is served by no engine")

    def _admit(self, request: Request) -> None:
        if self._keys and not self._keys.admit(request.scope["headers"]):
            raise HTTPException(401, NEEDS_KEY, {"www-authenticate": "Bearer"})

    def _known_models(self) -> list[dict[str, Any]]:
        models = self._core.models()
        by_id = {model["id"]: model for model in models}
        aliases = [
            {**by_id[target], "id": alias}
            for alias, target in self.engines.aliases.items()
            if target in by_id and alias not in by_id
        ]
        return models + aliases

    async def _health(self, _: Request) -> Response:
        engines = {engine["name"]: engine["status"] for engine in self._core.engines()}
        return json_response(
            {
                "status": "healthy",
                "version": __version__,
                "uptime_s": round(time.time() - self._started, 1),
                "policy": self._settings.route.policy,
                "inflight": self._core.inflight(),
                "engines": engines,
                **({} if self.discovery is None else {"store": self.discovery.state()}),
            }
        )

    async def _ready(self, _: Request) -> Response:
        if self.draining:
            return json_response({"ready": False, "why": "the gateway is stopping"}, 503)
        if not any(engine["status"] == "ready" for engine in self._core.engines()):
            return json_response({"ready": False, "why": "no engine is ready"}, 503)
        return json_response({"ready": True})

    async def _metrics(self, _: Request) -> Response:
        page = self._core.metrics()
        if self.discovery is not None:
            page = page.removesuffix(_METRICS_END) + store_metrics(self.discovery) + _METRICS_END
        return Response(page, media_type=_METRICS_TYPE)

    async def _version(self, _: Request) -> Response:
        return json_response({"version": __version__})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls it for nothing else
    message = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND and message == "Not Found":
        message = f"there is no {request.url.path} here"
    headers = dict(error.headers or {})
    return Response(error_body(error.status_code, message), error.status_code, headers, "application/json")


async def _unexpected_error(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s", FAULT, request.url.path, exc_info=error)
    return Response(error_body(500, FAULT), 500, media_type="application/json")
