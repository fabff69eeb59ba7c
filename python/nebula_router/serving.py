"""From a command line to a gateway that serves: the last checks before it, and its refusals as one line each."""

import socket
import sys
from typing import TYPE_CHECKING

import typer

from nebula_router.config import GatewaySettings, Settings
from nebula_router.sources import ConfigError

if TYPE_CHECKING:
    from nebula_router.gateway.serve import Fleet


def serve(settings: Settings, fleet: "Fleet | None" = None, welcome: str = "") -> None:
    """Serves until a signal ends it; `welcome` is printed as soon as the address is found to be free.

    Raises:
        ConfigError: A setting is refused, or the address is taken.
    """
    from nebula_router.core import NebulaError
    from nebula_router.gateway.serve import run

    _check_free(settings.gateway)
    if welcome:
        typer.echo(welcome)
        sys.stdout.flush()
    try:
        run(settings, fleet)
    except (NebulaError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _check_free(gateway: GatewaySettings) -> None:
    """Refuses an address that is taken: granian shares ports, so it would serve beside whoever has it."""
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(*gateway.address, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot serve on {gateway.listen}: {reason}; --listen HOST:PORT takes another") from None
