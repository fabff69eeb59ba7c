"""One process: the core, the app and granian, from start to graceful stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from nebula_router.core import Core, start_log
from nebula_router.fleet.discovery import Discovery
from nebula_router.fleet.open import opened_store
from nebula_router.gateway.app import GatewayApp
from nebula_router.gateway.log import start_python_log
from nebula_router.kinds import address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from nebula_router.config import Settings
    from nebula_router.fleet.store import Store

    Fleet = Callable[[], AbstractAsyncContextManager[Store]]

_LOG: Final = logging.getLogger(__name__)
_SERVER_STOP_S: Final = 0.5
"""Least time that the server gets to hand over the last bytes."""
_CUT_S: Final = 1.0
"""Time that requests beyond the grace get to tell their clients that they are cut."""
_BACKLOG: Final = 4096
_LEAST_CONNECTIONS: Final = 1024
"""A small `max_inflight` limits requests; probes, metrics and idle clients still get a connection."""


def run(settings: Settings, fleet: Fleet | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let streams finish for `gateway.grace_s`; a second signal stops at once.

    Engines come from the settings and from a store: that of `fleet`, which is there for as long as the gateway is, else
    the etcd that the settings name, if they do.

    Raises:
        ValueError: a setting that the core refuses, by name.
        OSError: the address cannot be served on.

    """
    log = start_log(settings.gateway.log_format, settings.gateway.log_level)
    start_python_log(settings.gateway)
    uvloop.run(_serve(settings, fleet))
    log.close()
    # granian's own threads still hold idle connections; they end with the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _serve(settings: Settings, fleet: Fleet | None) -> None:
    # What was imported stays: looking through it again and again for garbage costs a percent of every request.
    gc.collect()
    gc.freeze()
    async with _stored(settings, fleet) as store:
        core = Core(settings.core_json())
        app = GatewayApp(core, settings, store)
        async with _discovered(app, store):
            await _serve_app(app, core, settings)


@asynccontextmanager
async def _stored(settings: Settings, fleet: Fleet | None) -> AsyncIterator[Store | None]:
    """Open the store that the gateway follows, if it follows one."""
    if fleet is not None:
        async with fleet() as store:
            yield store
    elif settings.follows_store:
        async with opened_store(settings.store) as store:
            yield store
    else:
        yield None


@asynccontextmanager
async def _discovered(app: GatewayApp, store: Store | None) -> AsyncIterator[None]:
    """Let the engines of `app` follow the store, if there is one."""
    if store is None:
        yield
        return
    app.discovery = Discovery(store, app.engines.discover)
    following = asyncio.ensure_future(app.discovery.run())
    following.add_done_callback(_report)
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _report(following: asyncio.Future[None]) -> None:
    """Name what ended the discovery, if it did not end with the gateway: the last fleet stays."""
    if not following.cancelled() and (error := following.exception()) is not None:
        _LOG.error("the store is not followed any more: %s", error, exc_info=error)


async def _serve_app(app: GatewayApp, core: Core, settings: Settings) -> None:
    server = _server(app, settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = loop.create_task(server.serve())
    serving.add_done_callback(lambda _: stop.set())
    await stop.wait()
    if not serving.done():
        stop.clear()
        deadline = loop.time() + settings.gateway.grace_s
        await _drain(app, core, stop, settings.gateway.grace_s)
        server.stop()  # type: ignore[no-untyped-call]
        # What a slow client has not taken yet is in the server's hands; it closes idle connections by itself.
        again = loop.create_task(stop.wait())
        left_s = max(_SERVER_STOP_S, deadline - loop.time())
        await asyncio.wait({serving, again}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
    core.stop()
    if serving.done():
        serving.result()


def _server(app: GatewayApp, settings: Settings) -> Server:
    host, port = address(settings.gateway.listen)
    return Server(
        app,
        host,
        port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(),
        websockets=False,
        backlog=_BACKLOG,
        # Connections, not requests: idle ones count, and requests above `max_inflight` get a 429 from the core.
        backpressure=max(_LEAST_CONNECTIONS, 2 * settings.gateway.max_inflight),
        log_enabled=False,
    )


async def _drain(app: GatewayApp, core: Core, again: asyncio.Event, grace_s: float) -> None:
    """Refuse new requests and wait for those in flight: until done, until `grace_s`, or until a second signal."""
    app.draining = True
    core.refuse()
    await _first_of(grace_s, app.proxy.idle(), again.wait())
    if app.proxy.active:
        core.cut()
        await _first_of(_CUT_S, app.proxy.idle())


async def _first_of(timeout_s: float, *waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of `waits` is over, or after `timeout_s`; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
