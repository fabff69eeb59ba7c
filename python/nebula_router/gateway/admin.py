"""Engines added, drained and removed while traffic flows; decisions and engines looked at."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from nebula_router.config import MB, EngineSettings
from nebula_router.core import PATHS, ClientLeft, NebulaError
from nebula_router.gateway.auth import Keys, from_this_machine, is_sent_on
from nebula_router.gateway.engines import Taken
from nebula_router.gateway.errors import error_body
from nebula_router.gateway.openai import BodyTooLargeError, read_body, refuse_unread
from nebula_router.gateway.response import json_response, raw_json_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from nebula_router.config import Settings
    from nebula_router.core import Core
    from nebula_router.gateway.engines import Engines

    Handler = Callable[[Request], Awaitable[Response]]


_DECISIONS: Final = 100
"""Decisions that are shown where nobody says how many."""


class Unread(Response):
    """A refusal of a request whose body may still be on its way."""

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Answer, and let the rest come."""
        extra = [pair for pair in self.raw_headers if pair[0] in {b"www-authenticate", b"connection"}]
        await refuse_unread(receive, send, self.status_code, bytes(self.body), *extra)


class Admin:
    """The admin endpoints. Without `gateway.admin_token` they answer clients on this machine alone.

    A web page or a proxy on this machine asks on behalf of somebody who may be elsewhere: it is refused too.
    """

    def __init__(self, core: Core, engines: Engines, settings: Settings) -> None:
        """Change the `engines` of `core`."""
        token = settings.gateway.admin_token
        self._core = core
        self._engines = engines
        self._max_body = settings.gateway.max_body_mb * MB
        self._keys = Keys([token] if token is not None else [])

    def routes(self) -> list[Route]:
        """Return the routes, each behind the same check."""
        return [
            Route("/admin/engines", self.guarded(self._list), methods=["GET"]),
            Route("/admin/engines", self.guarded(self._add), methods=["POST"]),
            Route("/admin/engines/{name:path}", self.guarded(self._remove), methods=["DELETE"]),
            Route("/admin/engines/{name:path}/drain", self.guarded(self._drain), methods=["POST"]),
            Route("/admin/engines/{name:path}/resume", self.guarded(self._resume), methods=["POST"]),
            Route("/route/explain", self.guarded(self._explain), methods=["POST"]),
            Route("/route/decisions", self.guarded(self._decisions), methods=["GET"]),
            Route("/workers", self.guarded(self._workers), methods=["GET"]),
        ]

    def guarded(self, handler: Handler) -> Handler:
        """Put the check before a handler."""

        async def guarded(request: Request) -> Response:
            if self._keys:
                if not self._keys.admit(request.scope["headers"]):
                    text = "the admin token is needed: Authorization: Bearer TOKEN"
                    return _unread(401, text, **{"www-authenticate": "Bearer"})
            elif not from_this_machine(request.scope):
                return _unread(403, "set gateway.admin_token to use the admin endpoints from another machine")
            elif is_sent_on(request.scope["headers"]):
                text = "set gateway.admin_token to use the admin endpoints from a web page or through a proxy"
                return _unread(403, text)
            return await handler(request)

        return guarded

    async def _list(self, _: Request) -> Response:
        return json_response({"engines": self._core.engines()})

    async def _add(self, request: Request) -> Response:
        engine = _engine(await request.body())
        with _conflict():
            self._engines.add(engine)
        return json_response(engine, 201)

    async def _remove(self, request: Request) -> Response:
        name = self._known(request)
        with _conflict():
            self._engines.remove(name)
        return json_response({"name": name, "removed": True})

    async def _drain(self, request: Request) -> Response:
        name = self._known(request)
        self._core.drain_engine(name, on=True)
        return json_response({"name": name, "draining": True})

    async def _resume(self, request: Request) -> Response:
        name = self._known(request)
        self._core.drain_engine(name, on=False)
        return json_response({"name": name, "draining": False})

    async def _workers(self, _: Request) -> Response:
        return raw_json_response(self._core.workers())

    async def _decisions(self, request: Request) -> Response:
        asked = request.query_params.get("limit", str(_DECISIONS))
        if not asked.isdigit():
            raise HTTPException(400, f"limit: must be a whole number from 0, not {asked!r}")
        return raw_json_response(b'{"decisions":' + self._core.decisions(int(asked)) + b"}")

    async def _explain(self, request: Request) -> Response:
        limit_mb = self._max_body // MB
        try:
            body = await read_body(request.scope["headers"], request.receive, self._max_body)
        except BodyTooLargeError:
            text = f"the body is larger than {limit_mb} MB (setting gateway.max_body_mb)"
            return _unread(413, text, connection="close")
        except ClientLeft:
            return Response(status_code=400)
        path = request.query_params.get("path") or _path_of(body)
        if path not in PATHS:
            raise HTTPException(400, f"path: {path!r} reaches no engine; known: {', '.join(PATHS)}")
        reply = self._core.explain(path, request.scope["headers"], body)
        try:
            parts = [await reply.part()]
            while not parts[-1].end:
                parts.append(await reply.part())
        except NebulaError as error:
            return Response(error.body, error.status, media_type="application/json")
        finally:
            reply.cancel()
        return raw_json_response(b"".join(part.body for part in parts))

    def _known(self, request: Request) -> str:
        name: str = request.path_params["name"]
        names = [engine["name"] for engine in self._core.engines()]
        if name not in names:
            raise HTTPException(404, f"there is no engine `{name}`; engines: {', '.join(names)}")
        return name


@contextmanager
def _conflict() -> Iterator[None]:
    try:
        yield
    except Taken as error:
        raise HTTPException(409, str(error)) from None


def _unread(status: int, text: str, **headers: str) -> Response:
    return Unread(error_body(status, text), status, headers)


def _path_of(body: bytes) -> str:
    """The path that a request without one is meant for: its body says."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    return "/v1/completions" if isinstance(fields, dict) and "prompt" in fields else "/v1/chat/completions"


def _engine(body: bytes) -> dict[str, Any]:
    try:
        return EngineSettings.model_validate(orjson.loads(body)).model_dump()
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f'the body must be JSON like {{"url": "http://host:8000"}}: {error}') from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
        raise HTTPException(400, wrong) from None
