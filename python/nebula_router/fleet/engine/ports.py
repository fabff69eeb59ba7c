"""Ports for engines: each one is had by one replica of this node, and nobody listened on it when it was given out."""

from __future__ import annotations

import errno
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.engine.port_lock import PortLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OTHERS_PER_ENGINE: Final = 4
"""Ports after those of the engines, for each of them: events, replays and hand-offs, one each per rank."""
_LAST: Final = 65535


class PortError(RuntimeError):
    """No port is left."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What one replica has. Where it has several ranks, events, replay and side channel are the first of as many."""

    engine: int
    events: int | None = None
    replay: int | None = None
    side: int | None = None
    ranks: int = 1

    @property
    def all(self) -> frozenset[int]:
        """Every one of them."""
        firsts = (first for first in (self.events, self.replay, self.side) if first is not None)
        return frozenset({self.engine, *(first + rank for first in firsts for rank in range(self.ranks))})

    def document(self) -> dict[str, int | None]:
        """What `Ports(**document)` is made of."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PortNeeds:
    """What a replica asks for."""

    preferred: int | None = None
    """The engine's, wherever that is; the first free one where it is taken."""
    events: bool = False
    side: bool = False
    ranks: int = 1


class PortTable:
    """Who has which port: engines from `first` on, `count` ports; what goes beside them in the ports after these.

    A port that is given out is not held open: its engine must bind it. Other nodes on the machine leave it alone;
    whoever else binds it first makes that engine end, and its next start gets another port.
    """

    def __init__(self, first: int, count: int, host: str = "") -> None:
        last = min(first + count - 1, _LAST)
        self.engines: Final = range(first, last + 1)
        self.others: Final = range(last + 1, min(last + OTHERS_PER_ENGINE * count, _LAST) + 1)
        self._host = host
        self._had: dict[str, Ports] = {}
        self._lock = PortLock()

    def take(self, owner: str, needs: PortNeeds) -> Ports:
        """Give the owner what it needs, in place of what it had. Cost: one bind per port that is looked at.

        Raises:
            PortError: None is left; the owner then has none.
        """
        self.release(owner)
        try:
            self._had[owner] = self._found(needs)
        finally:
            self._lock.keep_only(self.taken)
        return self._had[owner]

    def claim(self, owner: str, ports: Ports) -> None:
        """Write down what an engine has that runs already."""
        self._had[owner] = ports
        for port in ports.all:
            self._lock.take(port)

    def release(self, owner: str) -> None:
        """Let others have the owner's ports."""
        self._had.pop(owner, None)
        self._lock.keep_only(self.taken)

    def close(self) -> None:
        """Let other nodes have what no engine listens on. Idempotent."""
        self._lock.close()

    @property
    def taken(self) -> frozenset[int]:
        """All ports that somebody has."""
        return frozenset().union(*(ports.all for ports in self._had.values()))

    def _found(self, needs: PortNeeds) -> Ports:
        beside = 3 if needs.events and needs.side else 2 if needs.events else 1 if needs.side else 0
        engine = self._engine(needs.preferred)
        firsts = self._runs(beside, needs.ranks, engine)
        events, replay = (firsts.pop(0), firsts.pop(0)) if needs.events else (None, None)
        side = firsts.pop(0) if needs.side else None
        return Ports(engine, events, replay, side, needs.ranks)

    def _engine(self, preferred: int | None) -> int:
        taken = self.taken
        wanted: Sequence[int] = [*([] if preferred is None else [preferred]), *self.engines]
        for port in wanted:
            if port not in taken and self._is_free(port):
                return port
        raise PortError(
            f"no port is free from {self.engines.start} to {self.engines.stop - 1}; node.port_count allows more"
        )

    def _is_free(self, port: int) -> bool:
        return self._lock.take(port) and is_free(port, self._host)

    def _runs(self, count: int, length: int, engine: int) -> list[int]:
        """The first ports of `count` runs of free ones."""
        taken = self.taken | {engine}
        firsts: list[int] = []
        free = (port not in taken and self._is_free(port) for port in self.others)
        run = 0
        for port, is_good in zip(self.others, free if count else (), strict=False):
            run = run + 1 if is_good else 0
            if run == length:
                firsts.append(port - length + 1)
                run = 0
                if len(firsts) == count:
                    break
        if len(firsts) < count:
            raise PortError(
                f"no {count} runs of {length} ports are free from {self.others.start} to {self.others.stop - 1}, which "
                "KV events and hand-offs have; node.port_count allows more"
            )
        return firsts


def is_free(port: int, host: str = "") -> bool:
    """Whether a server could listen on the port now, on that address of the machine.

    Connections of a server that is gone do not count.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(_can_listen(family, address) for family, address in _unique((f, a) for f, _, _, _, a in found))


def _can_listen(family: int, address: tuple[object, ...]) -> bool:
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return True  # a machine without IPv6
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL  # IPv6 is switched off: nobody listens there
    return True


def _unique(found: Iterable[tuple[int, tuple[object, ...]]]) -> Iterable[tuple[int, tuple[object, ...]]]:
    return dict.fromkeys(found)
