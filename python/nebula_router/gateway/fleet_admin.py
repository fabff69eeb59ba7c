"""A fleet looked at and changed through a gateway that follows its store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from nebula_router.fleet import operations
from nebula_router.fleet.asking.documents import Document, DrainOrder, NodeDrainOrder, ScaleOrder
from nebula_router.fleet.operations import OperationError, UnknownError, WrongError
from nebula_router.fleet.records import ModelSpec
from nebula_router.fleet.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from nebula_router.config import Settings
    from nebula_router.fleet.store import Store

    Handler = Callable[[Request], Awaitable[Response]]
    Answerer = Callable[[Request, Store], Awaitable[Document]]

M = TypeVar("M", bound=BaseModel)

NO_STORE: Final = (
    "this gateway follows no store, so it knows no fleet; start it with --etcd-endpoint URL, or ask the store itself: "
    "nebula status --etcd-endpoint URL"
)
_STATUS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (UnknownError, 404),
    (WrongError, 400),
    (StoreError, 503),
)


class FleetAdmin:
    """The fleet's endpoints: the documents and orders of `nebula_router.fleet.operations` over HTTP."""

    def __init__(self, store: Store | None, settings: Settings) -> None:
        """Ask this store; without one, every question is refused."""
        self._store = store
        self._scheduler = settings.scheduler

    def routes(self, guarded: Callable[[Handler], Handler]) -> list[Route]:
        """Return the routes, each behind the admin endpoints' own check."""
        table: tuple[tuple[str, str, Answerer], ...] = (
            ("GET", "/status", self._status),
            ("GET", "/models", self._models),
            ("GET", "/nodes", self._nodes),
            ("GET", "/placements", self._placements),
            ("POST", "/models", self._load),
            ("DELETE", "/models/{uid}", self._unload),
            ("PUT", "/models/{uid}/scale", self._scale),
            ("POST", "/models/{uid}/drain", self._drain),
            ("POST", "/nodes/{id}/drain", self._drain_node),
        )
        return [
            Route(f"/admin/fleet{path}", guarded(self._answering(answer)), methods=[method])
            for method, path, answer in table
        ]

    def _answering(self, answer: Answerer) -> Handler:
        async def answering(request: Request) -> Response:
            if self._store is None:
                raise HTTPException(404, NO_STORE)
            try:
                document = await answer(request, self._store)
            except (OperationError, StoreError) as error:
                status = next(code for kind, code in _STATUS if isinstance(error, kind))
                raise HTTPException(status, str(error)) from None
            return Response(document.model_dump_json(), media_type="application/json")

        return answering

    async def _status(self, _: Request, store: Store) -> Document:
        return await operations.status(store)

    async def _models(self, _: Request, store: Store) -> Document:
        return await operations.models(store)

    async def _nodes(self, _: Request, store: Store) -> Document:
        return await operations.nodes(store)

    async def _placements(self, request: Request, store: Store) -> Document:
        return await operations.placements(store, request.query_params.get("model"))

    async def _load(self, request: Request, store: Store) -> Document:
        return await operations.load(store, _parsed(ModelSpec, await request.body()))

    async def _unload(self, request: Request, store: Store) -> Document:
        return await operations.unload(store, request.path_params["uid"])

    async def _scale(self, request: Request, store: Store) -> Document:
        order = _parsed(ScaleOrder, await request.body())
        return await operations.scale(store, request.path_params["uid"], order, self._scheduler)

    async def _drain(self, request: Request, store: Store) -> Document:
        order = _parsed(DrainOrder, await request.body())
        return await operations.drain(store, request.path_params["uid"], order, self._scheduler)

    async def _drain_node(self, request: Request, store: Store) -> Document:
        # `curl -X POST` alone is enough to drain one.
        order = _parsed(NodeDrainOrder, await request.body() or b"{}")
        return await operations.drain_node(store, request.path_params["id"], order, self._scheduler)


def _parsed(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body must be JSON: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())
        raise HTTPException(400, wrong) from None
