"""The engines behind the instances, reached through the router's core: probes, prices, and the requests themselves."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from nebula_router.config import Settings
from nebula_router.control_plane.completion import Pieces, encoded, error_message
from nebula_router.control_plane.fleet import engine_spec
from nebula_router.control_plane.routing import Price
from nebula_router.core import ClientLeft, Core, NebulaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nebula_router.control_plane.completion import Piece
    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.limits import Limits
    from nebula_router.control_plane.request import RequestMetadata
    from nebula_router.core import Reply

_PRICE_WITHIN_S: Final = 2.0
"""Longest wait for a price: requests behind this one wait too."""
_PROBE_S: Final = 1.0
"""Time between two probes, unless the instances are looked at more often."""
_MAX_INFLIGHT: Final = 1_000_000
"""No bound of its own: the instances' are the bound."""
_LOST: Final = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
"""What the core says of an engine that it did not reach or that broke off."""
_FULL: Final = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
"""What an engine says that takes no more now."""
_HEADER_VALUE: Final = re.compile(r"[!-~]{1,128}")


class AttemptError(Exception):
    """There is no whole reply, and no other instance would give one."""


class InstanceError(AttemptError):
    """The instance was not reached, broke off, or takes nothing more now; another one may answer."""


class State(NamedTuple):
    """What the core's probes found of an engine."""

    status: str
    """`ready`, `down`, or `unknown` before the first answer."""
    models: frozenset[str]
    """Names that it serves; none before it was asked."""


class Engines:
    """One core for all engines. Made before the event loop runs, started on it."""

    def __init__(self, limits: Limits, *, follows_events: bool) -> None:
        """Follow the engines' KV events where their caches matter."""
        self._settings = _settings(limits, follows_events=follows_events)
        self._core: Core | None = None

    def start(self, instances: Iterable[ExecutionInstance]) -> None:
        """Start the core with these engines, on the running loop."""
        self._core = Core(self._settings.core_json())
        self.follow(instances)

    def stop(self) -> None:
        """Stop the core; what is still in flight breaks off."""
        if self._core is not None:
            self._core.stop()
            self._core = None

    def follow(self, instances: Iterable[ExecutionInstance]) -> None:
        """Have these engines from now on; requests to others go on to their end."""
        if self._core is not None:
            self._core.set_engines([engine_spec(instance) for instance in instances])

    def states(self) -> dict[str, State]:
        """Return what the probes found of each engine, by the instance's id."""
        return {each["name"]: State(each["status"], frozenset(each["models"])) for each in self._started.engines()}

    async def prices(self, request: RequestMetadata, model: str) -> dict[str, Price]:
        """Return what the request costs on each engine that has the model; nothing where the core cannot tell in time.

        An engine of several ranks has the price of its cheapest one, which is where it would go.
        """
        path, body = encoded(request, model)
        reply = self._started.explain(path, [], body)
        timer = asyncio.get_running_loop().call_later(_PRICE_WITHIN_S, reply.cancel)
        try:
            document = orjson.loads(await _whole(reply))
        except (NebulaError, ClientLeft):
            return {}
        finally:
            timer.cancel()
            reply.cancel()
        prices: dict[str, Price] = {}
        for rank in document["ranks"]:  # the cheapest first
            overlap = sum(rank["overlap"].values())
            prices.setdefault(rank["engine"], Price(rank["terms"]["total"], overlap, document["prompt_tokens"]))
        return prices

    async def ask(self, request: RequestMetadata, instance: ExecutionInstance, take: Callable[[Piece], None]) -> None:
        """Send the request to this instance and to no other, and hand on the reply's pieces until it is whole.

        # Cancel safety
        Cancelled, it stops the engine's work.

        Raises:
            AttemptError: there is no whole reply; the class says whose fault it is.

        """
        path, body = encoded(request, instance.model_name)
        headers = [(b"content-type", b"application/json")]
        if _HEADER_VALUE.fullmatch(request.request_id):
            headers.append((b"x-request-id", request.request_id.encode()))
        reply = self._started.dispatch(path, b"", headers, body, engine=instance.instance_id)
        try:
            await _relay(reply, take)
        except NebulaError as error:
            raise _of_core(error.status, str(error)) from None
        finally:
            reply.cancel()

    @property
    def _started(self) -> Core:
        assert self._core is not None, "the engines are not started"  # noqa: S101 - a mistake in this package
        return self._core


async def _relay(reply: Reply, take: Callable[[Piece], None]) -> None:
    part = await reply.part()
    if part.status != HTTPStatus.OK:
        status = part.status or 0
        message = error_message(part.body if part.end else part.body + await _whole(reply), status)
        raise InstanceError(message) if status in _FULL else AttemptError(message)
    pieces, is_finished = Pieces(), False
    while True:
        for piece in pieces.feed(part.body):
            if piece.error is not None:
                code = piece.error.get("code")
                raise _of_core(code if isinstance(code, int) else 0, str(piece.error.get("message")))
            is_finished |= piece.finish_reason is not None
            take(piece)
        if part.end:
            break
        part = await reply.part()
    if not is_finished:
        raise InstanceError("the reply ended without a reason to finish")


async def _whole(reply: Reply) -> bytes:
    """What is left of a reply."""
    body = b""
    while True:
        part = await reply.part()
        body += part.body
        if part.end:
            return body


def _of_core(status: int, message: str) -> AttemptError:
    return InstanceError(message) if status in _LOST else AttemptError(message)


def _settings(limits: Limits, *, follows_events: bool) -> Settings:
    probe_timeout_ms = max(10, round(limits.health_check_timeout * 1000))
    upstream: dict[str, Any] = {
        "retries": 0,
        "connect_timeout_ms": min(1000, probe_timeout_ms),
        "first_byte_timeout_s": limits.request_timeout,
        "idle_timeout_s": limits.request_timeout,
        "probe_interval_ms": max(10, round(min(_PROBE_S, limits.health_check_interval) * 1000)),
        "probe_timeout_ms": probe_timeout_ms,
    }
    return Settings.model_validate(
        {
            "gateway": {"log_requests": False, "decisions_kept": 0, "max_inflight": _MAX_INFLIGHT},
            "route": {"policy": "kv"},
            "upstream": upstream,
            "events": {"kv_events": follows_events},
        }
    )
