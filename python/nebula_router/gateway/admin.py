"""Engines added, drained and removed while traffic flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from nebula_router.config import EngineSettings
from nebula_router.gateway.auth import Keys, from_this_machine, is_sent_on
from nebula_router.gateway.response import json_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from nebula_router.config import Settings
    from nebula_router.core import Core

    Handler = Callable[[Request], Awaitable[Response]]


class Admin:
    """The admin endpoints. Without `gateway.admin_token` they answer clients on this machine alone.

    A web page or a proxy on this machine asks on behalf of somebody who may be elsewhere: it is refused too.
    """

    def __init__(self, core: Core, settings: Settings) -> None:
        """Change the fleet of `core`."""
        token = settings.gateway.admin_token
        self._core = core
        self._keys = Keys([token] if token is not None else [])

    def routes(self) -> list[Route]:
        """Return the routes, each behind the same check."""
        return [
            Route("/admin/engines", self._guarded(self._list), methods=["GET"]),
            Route("/admin/engines", self._guarded(self._add), methods=["POST"]),
            Route("/admin/engines/{name:path}", self._guarded(self._remove), methods=["DELETE"]),
            Route("/admin/engines/{name:path}/drain", self._guarded(self._drain), methods=["POST"]),
            Route("/admin/engines/{name:path}/resume", self._guarded(self._resume), methods=["POST"]),
        ]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if self._keys:
                if not self._keys.admit(request.scope["headers"]):
                    challenge = {"www-authenticate": "Bearer"}
                    raise HTTPException(401, "the admin token is needed: Authorization: Bearer TOKEN", challenge)
            elif not from_this_machine(request.scope):
                raise HTTPException(403, "set gateway.admin_token to use the admin endpoints from another machine")
            elif is_sent_on(request.scope["headers"]):
                raise HTTPException(
                    403, "set gateway.admin_token to use the admin endpoints from a web page or through a proxy"
                )
            return await handler(request)

        return guarded

    async def _list(self, _: Request) -> Response:
        return json_response({"engines": self._core.engines()})

    async def _add(self, request: Request) -> Response:
        engine = _engine(await request.body())
        specs = self._specs()
        for spec in specs:
            if spec["name"] == engine["name"]:
                raise HTTPException(409, f"there is an engine `{spec['name']}` already; remove it or use another name")
            if spec["url"] == engine["url"]:
                raise HTTPException(409, f"the engine `{spec['name']}` has the URL {spec['url']} already")
        self._core.set_engines([*specs, engine])
        return json_response(engine, 201)

    async def _remove(self, request: Request) -> Response:
        name = self._known(request)
        self._core.set_engines([spec for spec in self._specs() if spec["name"] != name])
        return json_response({"name": name, "removed": True})

    async def _drain(self, request: Request) -> Response:
        name = self._known(request)
        self._core.drain_engine(name, on=True)
        return json_response({"name": name, "draining": True})

    async def _resume(self, request: Request) -> Response:
        name = self._known(request)
        self._core.drain_engine(name, on=False)
        return json_response({"name": name, "draining": False})

    def _known(self, request: Request) -> str:
        name: str = request.path_params["name"]
        names = [engine["name"] for engine in self._core.engines()]
        if name not in names:
            raise HTTPException(404, f"there is no engine `{name}`; engines: {', '.join(names)}")
        return name

    def _specs(self) -> list[dict[str, Any]]:
        return [
            {"name": engine["name"], "url": engine["url"], "ranks": len(engine["ranks"])}
            for engine in self._core.engines()
        ]


def _engine(body: bytes) -> dict[str, Any]:
    try:
        return EngineSettings.model_validate(orjson.loads(body)).model_dump(include={"name", "url", "ranks"})
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f'the body must be JSON like {{"url": "http://host:8000"}}: {error}') from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
        raise HTTPException(400, wrong) from None
