"""A running engine: its process, and what it told of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nebula_router.fleet.engine.command import Launch, reachable
from nebula_router.fleet.engine.probe import Load, Probe

if TYPE_CHECKING:
    from nebula_router.fleet.engine.ports import Ports
    from nebula_router.fleet.engine.process import Process
    from nebula_router.fleet.records import EndpointInfo, EngineStats


@dataclass
class Running:
    """An engine's process with everything that its endpoint's record tells."""

    process: Process
    probe: Probe
    plan_version: int
    launch: Launch | None = None
    """None for one that an earlier node started for another plan."""
    log_from: int = 0
    """Where in the log it begins."""
    cleanup: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    events: str | None = None
    events_replay: str | None = None
    events_topic: str | None = None
    stats: EngineStats | None = None
    load: Load | None = None

    @classmethod
    def of(cls, process: Process, launch: Launch, near: str, plan_version: int, log_from: int = 0) -> Running:
        """An engine that was started so; `near` is where the node itself meets it."""
        return cls(
            process,
            Probe(near, launch.ports.engine, launch.api_key),
            plan_version,
            launch,
            log_from,
            launch.cleanup,
            launch.names,
            launch.events,
            launch.events_replay,
            launch.events_topic,
        )

    @property
    def ports(self) -> Ports | None:
        """Its ports."""
        return self.launch.ports if self.launch else None

    def hidden(self, text: str) -> str:
        """The text without the secrets that it was given."""
        return self.launch.hidden(text) if self.launch else text

    async def learn(self, host: str) -> str | None:
        """Ask it for its names and events. Return what is wrong with them, none if nothing is."""
        launch, port = self.launch, self.probe.port
        if launch is not None and launch.owns_port and self.process.listens(port) is False:
            return f"port {port} is another process's"
        names = await self.probe.names()
        if names is not None and launch is not None:
            if launch.checks_names and not set(names) & set(launch.names):
                return (
                    f"port {port} answers for {', '.join(names) or 'no model'}, not for {launch.names[0]}: "
                    "another server has it"
                )
            self.names = names
        source = await self.probe.events()
        if source is not None and (launch is None or launch.learns_events):
            self._follow(source, host)
        return None

    async def measure(self) -> bool:
        """Read its load; whether it told."""
        load = await self.probe.load()
        if load is None:
            return False
        self.stats = load.stats(self.load)
        self.load = load
        return True

    def described(self, info: EndpointInfo, host: str) -> EndpointInfo:
        """The record with what is known of the engine in it."""
        port = self.probe.port
        bracketed = f"[{host}]" if ":" in host else host
        own: dict[str, Any] = {
            "base_url": f"http://{bracketed}:{port}",
            "port": port,
            "served_names": self.names,
            "stats": self.stats,
            "events": self.events,
            "events_replay": self.events_replay,
            "events_topic": self.events_topic,
        }
        if self.launch is not None:
            own |= {"ranks": self.launch.ports.ranks, "side_channel": self.launch.side_channel}
        return info.model_copy(update=own)

    def _follow(self, source: dict[str, Any], host: str) -> None:
        """Take the ports that it publishes on, which it alone knows where it was told to choose them."""
        if self.events is not None and self.events_replay is not None:
            return
        if source.get("publisher") != "zmq" or not source.get("enable_kv_cache_events"):
            return
        self.events = self.events or _bound(source.get("endpoint"), host)
        self.events_replay = self.events_replay or _bound(source.get("replay_endpoint"), host)
        self.events_topic = self.events_topic or source.get("topic") or None
        if self.launch is not None:
            self.launch = replace(self.launch, events=self.events, events_replay=self.events_replay)


def _bound(endpoint: object, host: str) -> str | None:
    """An endpoint that the engine resolved by itself, as others reach it."""
    if not isinstance(endpoint, str):
        return None
    known = reachable(endpoint, host)
    if known is not None or not endpoint.startswith("tcp://"):
        return known
    port = endpoint.rpartition(":")[2]
    return reachable(f"tcp://*:{port}", host)
