"""What all replicas of a node share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nebula_router.fleet.engine.replica import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from nebula_router.fleet.engine.command import Machine
    from nebula_router.fleet.engine.ports import PortTable
    from nebula_router.fleet.store import Store


@dataclass(frozen=True)
class House:
    """Store, machine, ports and folder."""

    store: Store
    machine: Machine
    ports: PortTable
    state: Path
    """Folder."""
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where nobody waits for requests any more, nor for engines to end by themselves."""

    @property
    def limits(self) -> Limits:
        """The settings as the state machine has them."""
        own = self.machine.settings
        return Limits(
            ready_timeout_s=own.ready_timeout_s,
            health_failures=own.health_failures,
            backoff_s=own.restart_backoff_s,
            backoff_max_s=max(own.restart_backoff_max_s, own.restart_backoff_s),
            cap=own.restart_cap,
        )
