"""`nebula node`: the manager of one machine, as a process."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING, Final

import typer

from nebula_router.config import Settings
from nebula_router.flags import examples, takes_settings
from nebula_router.sources import ConfigError

if TYPE_CHECKING:
    from nebula_router.fleet.node import Node

FAILED: Final = 1  # exit status
_EXAMPLES: Final = (
    "nebula node --etcd-endpoint http://10.0.0.2:2379",
    "CUDA_VISIBLE_DEVICES=0 nebula node --node-id node_gpu0 --vllm-port 10814",
    "nebula node --node-id laptop --engine-type sim --gpus fake:2x24GiB",
    "nebula node --engine-type podman --docker-image docker.io/vllm/vllm-openai:v0.33.0",
    "nebula node --engine-command 'my-vllm {model} --port {port} --served-model-name {served} {args}'",
)


def register(app: typer.Typer) -> None:
    """Give the program its command `node`."""
    app.command("node", epilog=examples(*_EXAMPLES))(_command)


@takes_settings("store", "node")
def _command(*, settings: Settings) -> None:
    """Manage one machine: tell the fleet of its GPUs, and run the engines that placements give it.

    Engines outlive the node. SIGTERM, as from `systemctl restart`, leaves them running: the next start takes them over,
    and gateways notice nothing if that is within --lease-s. (A systemd unit needs KillMode=process for that.)
    With --on-stop stop it drains and stops them instead, and so does Ctrl-C in any case; a second signal does not
    wait for their requests. To empty a machine that goes away, use --on-stop stop.
    """
    from nebula_router.fleet.claim import NodeTakenError
    from nebula_router.fleet.store import StoreError

    _log_to_stderr(settings.node.log_level)
    try:
        asyncio.run(_run(settings))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except (NodeTakenError, StoreError, OSError) as error:
        typer.echo(f"nebula node: {error}", err=True)
        sys.exit(FAILED)


async def _run(settings: Settings) -> None:
    from nebula_router.fleet.node import Node, own_host
    from nebula_router.fleet.open import open_store

    store = open_store(settings.store)
    node = Node(store, settings.node, host=own_host(settings.store.endpoints))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, node, stop, number)
    try:
        await node.run(stop)
    finally:
        # Closing the store would forget the engines that run on; left open, their lease covers the time of a restart.
        if not node.keeps_engines:
            await store.close()


def _signalled(node: Node, stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        node.hurry()
        return
    if number is signal.SIGINT:
        node.keeps_engines = False
    how = "engines run on" if node.keeps_engines else "engines are drained and stopped; once more does not wait"
    logging.getLogger(__name__).info("%s: %s", number.name, how)
    stop.set()


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level={"warn": "WARNING"}.get(level, level.upper()),
        format="%(asctime)s %(levelname)-7s %(message)s",
    )
