"""The Rust core as the rest of the package sees it: the one module that imports `_core`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from nebula_router import _core
from nebula_router._core import NebulaError, chain_from_text, chain_from_tokens, content_format, render_chat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

__all__ = [
    "PATHS",
    "POLICIES",
    "SIM_POLICIES",
    "ClientLeft",
    "Core",
    "Load",
    "NebulaError",
    "Reply",
    "Sim",
    "Simulation",
    "chain_from_text",
    "chain_from_tokens",
    "content_format",
    "render_chat",
    "start_log",
]

PATHS: Final[tuple[str, ...]] = tuple(_core.PATHS)
"""The paths that reach an engine."""

POLICIES: Final[tuple[str, ...]] = tuple(_core.POLICIES)
"""The routing policies by name."""

SIM_POLICIES: Final[tuple[str, ...]] = tuple(_core.SIM_POLICIES)
"""The rules that a simulated fleet can be routed by: the router's own, then those of others."""

Load = _core.Load
start_log = _core.start_log
Sim = _core.Sim
Simulation = _core.Simulation


class ClientLeft(Exception):  # noqa: N818 - an event, not an error
    """Nobody waits for the reply any more."""


class Part(NamedTuple):
    """All of a reply that was ready at one moment."""

    status: int | None
    """HTTP status, in the first part alone."""
    headers: list[tuple[bytes, bytes]] | None
    """Reply headers, in the first part alone."""
    body: bytes
    """May be empty in the last part."""
    end: bool
    """Nothing follows."""


class Core:
    """Router and connections of one gateway, bound to the running event loop.

    Must be made, used and closed on that loop's thread.
    """

    def __init__(self, settings: bytes) -> None:
        """Start the core from the document of `Settings.core_json`.

        Raises:
            ValueError: a setting that the core refuses, by name.

        """
        self._core = _core.Core(settings)
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._core.wakeup_fd(), self._wake)

    def dispatch(
        self,
        path: str,
        query: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        engine: str | None = None,
    ) -> Reply:
        """Send a request on its way, with `engine` to the one of that name alone; the reply tells how it went.

        Raises:
            ValueError: a header that is none, or a path that reaches no engine.

        """
        return Reply(self, self._core.dispatch(path, query, headers, body, engine))

    def explain(self, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Reply:
        """Say what would be chosen for a request; the reply is JSON with every term. Nothing is sent or booked.

        Raises:
            ValueError: a header that is none, or a path that reaches no engine.

        """
        return Reply(self, self._core.explain(path, headers, body))

    def workers(self) -> bytes:
        """Every engine with all that is known of it, as JSON."""
        return self._core.workers()

    def decisions(self, limit: int) -> bytes:
        """Return the latest decisions with their outcomes, the newest first, as a JSON list."""
        return self._core.decisions(limit)

    def engines(self) -> list[dict[str, Any]]:
        """Every engine with its state, load and facts."""
        engines: list[dict[str, Any]] = orjson.loads(self._core.engines())
        return engines

    def set_engines(self, specs: Sequence[Mapping[str, Any]], aliases: Mapping[str, str] | None = None) -> None:
        """Replace the fleet, and the names that clients may use for models; engines that stay keep their state.

        Raises:
            ValueError: two engines of one name, or a URL that is none. Then all stays as it is.

        """
        self._core.set_fleet(orjson.dumps({"engines": specs, "aliases": aliases or {}}))

    def drain_engine(self, name: str, *, on: bool) -> None:
        """Give the engine no new requests, or give it some again.

        Raises:
            ValueError: there is no engine of that name.

        """
        self._core.drain_engine(name, on)

    def models(self) -> list[dict[str, Any]]:
        """Every engine's models, each with the card that its engine gave."""
        models: list[dict[str, Any]] = orjson.loads(self._core.models())
        return models

    def metrics(self) -> str:
        """All metrics in Prometheus' text format."""
        return self._core.metrics()

    def inflight(self) -> int:
        """Count the requests that have not ended."""
        return self._core.inflight()

    def refuse(self) -> None:
        """Answer every new request with 503 from now on."""
        self._core.close()

    def cut(self) -> None:
        """End every request in flight with an error, after what was there of its reply."""
        self._core.cut()

    def stop(self) -> None:
        """Stop every task of the core; requests in flight break off."""
        self._core.stop()
        # The core has ended every reply by now; nobody is left to say so but this.
        self._wake()
        self._loop.remove_reader(self._core.wakeup_fd())

    def wait(self, exchange: int) -> asyncio.Future[None]:
        """Return what is done when the exchange's next part can be taken."""
        waiter = self._waiters[exchange] = self._loop.create_future()
        return waiter

    def leave(self, exchange: int) -> None:
        """Let whoever waits for the exchange fail with `ClientLeft`."""
        waiter = self._waiters.pop(exchange, None)
        if waiter is not None and not waiter.done():
            waiter.set_exception(ClientLeft())

    def _wake(self) -> None:
        for exchange in self._core.drain():
            waiter = self._waiters.pop(exchange, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


class Reply:
    """One request in flight. `cancel` it, or drop it, and the engine stops its work."""

    __slots__ = ("_core", "_exchange")

    def __init__(self, core: Core, exchange: _core.Exchange) -> None:
        """Wrap an exchange of `core`."""
        self._core = core
        self._exchange = exchange

    @property
    def request_id(self) -> bytes:
        """The client's `X-Request-Id`, or the one that was made for it."""
        return self._exchange.request_id

    async def part(self) -> Part:
        """Return all that is ready of the reply, waiting until there is something.

        Raises:
            NebulaError: there is no reply, or it ends early.
            ClientLeft: `cancel` was called meanwhile.

        """
        exchange = self._exchange
        part = exchange.take()
        while part is None:
            await self._core.wait(exchange.id)
            part = exchange.take()
        return Part(*part)

    def cancel(self) -> None:
        """Stop the request in the engine; does nothing to a request that has ended."""
        self._exchange.cancel()
        self._core.leave(self._exchange.id)
