"""Every setting, once: its name, type, bounds, default, unit and help.

Units stand last in names (`_s`, `_ms`, `_mb`, `_tokens`); 1 MB is 1,048,576 bytes. Flags, environment names, TOML
names, the reference page and the JSON for the Rust core are derived from this module, which does no I/O itself.
"""

import json
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from nebula_router.fleet.settings import NodeSettings, RouterSettings, SchedulerSettings, StoreSettings
from nebula_router.kinds import (
    Address,
    Flag,
    Group,
    Secret,
    address,
    checked_events,
    engine_url,
    host_and_port,
    items,
    pairs,
)
from nebula_router.sim_settings import SimSettings

MB: Final = 1024 * 1024


class EngineSettings(Group):
    """One engine: in TOML an `[[engine]]` table, elsewhere its URL alone."""

    url: Annotated[str, AfterValidator(engine_url)] = Field(description="Where the engine serves HTTP.")
    name: str = Field(
        default_factory=host_and_port,
        min_length=1,
        max_length=128,
        pattern=r"^[!-~]+$",
        description="Name in logs, metrics and headers; without one, host:port of the URL.",
    )
    ranks: int = Field(1, ge=1, le=256, description="Data-parallel ranks behind this URL.")
    events: Annotated[str, AfterValidator(checked_events)] = Field(
        "auto",
        description="Where its KV events are: auto (it says so), guess (its host, port 5557 + rank), "
        "dial_in (it connects to events.events_bind), off, or tcp://host:port of rank 0.",
    )
    events_replay: str | None = Field(None, pattern="^tcp://|^ipc://", description="Its replay address of rank 0.")
    events_topic: str = Field("", description="Topic of its events; needed where it dials in.")


def _engine(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class GatewaySettings(Group):
    """The face to clients."""

    listen: Annotated[Address, Flag("--listen", "--listen-addr")] = Field(
        "127.0.0.1:8081", description="Address to serve on, host:port."
    )
    engines: Annotated[
        tuple[Annotated[EngineSettings, BeforeValidator(_engine)], ...],
        NoDecode,
        BeforeValidator(items),
        Flag("--engine"),
    ] = Field((), description="Engines at start. In TOML, one [[engine]] table each, with url, name and ranks.")
    routers: Annotated[
        tuple[Annotated[str, AfterValidator(engine_url)], ...], NoDecode, BeforeValidator(items), Flag("--router")
    ] = Field((), description="Routers (`nebula router`) to send requests to; without one the gateway routes itself.")
    model_aliases: Annotated[dict[str, str], NoDecode, BeforeValidator(pairs), Flag("--model-alias")] = Field(
        {}, description="Names that clients may use for a model, as alias=model."
    )
    max_body_mb: int = Field(64, ge=1, le=1024, description="Largest request body; a larger one is answered 413.")
    max_inflight: int = Field(
        8192, ge=1, le=1_000_000, description="Requests in flight at once; one more is answered 429."
    )
    grace_s: float = Field(30.0, ge=0, le=3600, description="Time that streams get to finish when the gateway stops.")
    trust_kv_transfer_params: bool = Field(
        False, description="Pass a client's own kv_transfer_params on. They can kill an engine; without trust they go."
    )
    api_keys: Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(items), Flag()] = Field(
        (), description="Keys that clients may send as `Authorization: Bearer`. Without any, every client is let in."
    )
    admin_token: Annotated[Secret | None, Flag()] = Field(None, description="Token that the admin endpoints ask for.")
    log_format: Literal["text", "json"] = Field("text", description="How a log line is written.")
    log_level: Literal["debug", "info", "warn", "error"] = Field("info", description="Least severe line to write.")
    log_requests: bool = Field(True, description="Write one line per request, with the routing decision.")
    log_prompt_hashes: bool = Field(
        False, description="Add hashes of the prompt to that line, so that `nebula simulate` can replay the log."
    )
    decisions_kept: int = Field(
        1000, ge=0, le=1_000_000, description="Latest decisions to keep for GET /route/decisions."
    )

    @field_validator("engines")
    @classmethod
    def _told_apart(cls, engines: tuple[EngineSettings, ...]) -> tuple[EngineSettings, ...]:
        for kind, values in (("name", [e.name for e in engines]), ("URL", [e.url for e in engines])):
            twice = [value for value, times in Counter(values).items() if times > 1]
            if twice:
                raise ValueError(f"two engines have the {kind} {twice[0]}: each needs its own")
        return engines

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to serve on."""
        return address(self.listen)


class RouteSettings(Group):
    """How an engine is chosen. Costs are in tokens of prefill work."""

    policy: Literal["kv", "round_robin", "random", "least_loaded", "power_of_two", "session"] = Field(
        "kv", description="Rule that picks the engine."
    )
    text_block_bytes: int = Field(
        64, ge=8, le=4096, description="Block of the text key, for prompts whose tokens are not known."
    )
    token_block_tokens: int = Field(16, ge=1, le=1024, description="Block of the token key.")
    bytes_per_token: float = Field(4.0, ge=0.25, le=64, description="Bytes of text taken for one token.")
    tree_max_mb: int = Field(256, ge=1, le=65536, description="Memory bound of the block tree.")
    route_ttl_s: float = Field(900.0, ge=1, le=86400, description="Time that a routed prompt is believed to be cached.")
    event_route_ttl_s: float = Field(
        5.0, ge=0.1, le=86400, description="The same where the engine's KV events come in: they soon tell."
    )
    rank_kv_tokens: int | None = Field(
        None, ge=1, le=10**12, description="Tokens in the KV cache of a rank whose engine does not say."
    )
    cpu_credit: float = Field(
        0.75, ge=0, le=1, description="Worth of a cached token in the machine's memory, in tokens of the GPU's."
    )
    storage_credit: float = Field(0.25, ge=0, le=1, description="Worth of a cached token in storage, likewise.")
    shadow_policy: Literal["kv", "round_robin", "random", "least_loaded", "power_of_two", "session"] | None = Field(
        None, description="Second policy to ask and not to follow; metrics and decisions say what it would do."
    )
    uncached_weight: float = Field(
        2.5, ge=0, le=100, description="Cost of one token that the request must compute, in tokens booked already."
    )
    decode_request_tokens: float = Field(24.0, ge=0, le=100_000, description="Cost of one running request.")
    decode_resident_weight: float = Field(
        0.03, ge=0, le=10, description="Cost of one prompt token of a running request."
    )
    pressure_tokens: float = Field(4000.0, ge=0, le=10_000_000, description="Cost of a full KV cache.")
    pressure_start: float = Field(
        0.9, ge=0, le=0.99, description="Share of the KV cache in use where that cost begins to grow."
    )
    breaker_failures: int = Field(
        5, ge=1, le=1000, description="Timeouts and 5xx in a row after which an engine rests."
    )
    breaker_open_ms: int = Field(
        5000, ge=10, le=600_000, description="Time that it rests; then a healthy probe brings it back."
    )
    seed: int | None = Field(
        None, ge=0, le=2**64 - 1, description="Seed of random choices; without one, each start draws its own."
    )


class UpstreamSettings(Group):
    """The connections to engines."""

    connect_timeout_ms: int = Field(
        1000, ge=1, le=600_000, description="Longest wait for a connection; keep it below probe_timeout_ms."
    )
    first_byte_timeout_s: float = Field(
        1800.0, ge=0.01, le=86400, description="Longest wait for a reply's first byte, or for all of one not streamed."
    )
    idle_timeout_s: float = Field(300.0, ge=0.01, le=86400, description="Longest wait between two chunks of a reply.")
    pool_idle_ms: int = Field(
        4000, ge=0, le=4900, description="Time a spare connection is kept; vLLM closes its end after 5 s."
    )
    pool_per_engine: int = Field(1024, ge=1, le=65536, description="Spare connections kept per engine.")
    retries: int = Field(2, ge=0, le=16, description="Further engines tried before the first byte reached the client.")
    ask_usage: bool = Field(
        True,
        description="Ask for the usage of streams whose clients did not ask, and take it out of the reply again: "
        "predictions are checked by it.",
    )
    prefill_tokens_per_second: float = Field(
        8000.0,
        ge=1,
        le=1e9,
        description="Prefill rate that a rank is taken for while a reply that is not streamed is on its way.",
    )
    probe_interval_ms: int = Field(1000, ge=10, le=600_000, description="Time between two health probes of an engine.")
    probe_timeout_ms: int = Field(1500, ge=10, le=600_000, description="Longest wait for a probe's answer.")
    facts_interval_s: float = Field(
        30.0, ge=0.01, le=86400, description="Time between two looks at an engine's models and limits."
    )
    ca_file: str | None = Field(
        None,
        min_length=1,
        description="PEM file of the authorities to check https engines by; without one, the system's.",
    )


class TokensSettings(Group):
    """How prompts become the tokens that the engine sees."""

    model_assets: Annotated[dict[str, str], NoDecode, BeforeValidator(pairs), Flag("--model-assets")] = Field(
        {}, description="Folders with a model's tokenizer and chat template, as model=folder."
    )
    read_engine_root: bool = Field(
        True, description="Read the folder that an engine reports for its model, where it is on this machine too."
    )
    segment_cache_mb: int = Field(
        64, ge=0, le=65536, description="Memory per model for the tokens of pieces of prompts that came before."
    )
    tokenize_cache_mb: int = Field(32, ge=0, le=65536, description="Memory for tokens that engines told.")
    tokenize_timeout_ms: int = Field(2000, ge=1, le=600_000, description="Longest wait for an engine's /tokenize.")
    forward_tokens: bool = Field(
        True, description="Send a prompt's tokens along to engines that take them, so that they tokenise nothing twice."
    )


class EventsSettings(Group):
    """How the engines' KV events come in."""

    kv_events: bool = Field(True, description="Follow the KV events of engines that publish them.")
    events_bind: str | None = Field(
        None, pattern="^tcp://", description="Address for engines that dial in with their events, like tcp://*:5557."
    )
    replay_timeout_ms: int = Field(5000, ge=10, le=600_000, description="Longest silence within a replay.")
    replay_tries: int = Field(
        5, ge=1, le=1000, description="Replays without an answer after which what is missing counts as lost."
    )
    replay_backoff_ms: int = Field(
        500, ge=1, le=600_000, description="Wait after the first of those; it doubles with each."
    )
    silence_s: float = Field(
        10.0, ge=0.1, le=86400, description="Silence after which a replay tells a quiet engine from a lost connection."
    )
    held_batches: int = Field(10_000, ge=1, le=10_000_000, description="Batches of a rank that wait for a replay.")
    held_mb: int = Field(64, ge=1, le=65536, description="Memory for those, per rank.")
    receive_batches: int = Field(
        10_000, ge=1, le=10_000_000, description="Batches of a rank that wait to be read; the engine keeps the rest."
    )
    reconnect_ms: int = Field(100, ge=1, le=600_000, description="Wait before a lost subscription is tried again.")
    reconnect_max_ms: int = Field(5000, ge=1, le=600_000, description="Longest such wait; it doubles with each try.")

    def document(self) -> dict[str, Any] | None:
        """What the core receives them by; nothing if it does not."""
        if not self.kv_events:
            return None
        own = self.model_dump(exclude={"kv_events", "events_bind"})
        return _core_units(own | {"bind": self.events_bind})


class Settings(Group):
    """The whole tree. Build it by `nebula_router.sources.load`, or in a test by hand."""

    gateway: GatewaySettings = GatewaySettings()
    route: RouteSettings = RouteSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    tokens: TokensSettings = TokensSettings()
    events: EventsSettings = EventsSettings()
    sim: SimSettings = SimSettings()
    store: StoreSettings = StoreSettings()
    router: RouterSettings = RouterSettings()
    node: NodeSettings = NodeSettings()
    scheduler: SchedulerSettings = SchedulerSettings()

    @property
    def follows_store(self) -> bool:
        """Whether a gateway learns its engines from etcd: it is told to, or it has nobody else to send requests to."""
        return bool(self.store.etcd_endpoints) or not (self.gateway.engines or self.gateway.routers)

    def core_json(self) -> bytes:
        """The document that the core reads: `route`, `wire`, `fleet`; every field present, in ms and bytes."""
        shared = {
            *("max_inflight", "trust_kv_transfer_params"),
            *("log_requests", "log_prompt_hashes", "decisions_kept"),
        }
        seed = secrets.randbits(64) if self.route.seed is None else self.route.seed
        wire = self.upstream.model_dump() | self.gateway.model_dump(include=shared)
        wire["fronts_routers"] = bool(self.gateway.routers)
        return json.dumps(
            {
                "route": _core_units(self.route.model_dump(exclude={"seed"})),
                "wire": _core_units(wire)
                | {"seed": seed, "tokens": _core_units(self.tokens.model_dump()), "events": self.events.document()},
                "fleet": {
                    "engines": [engine.model_dump() for engine in self.gateway.engines],
                    "aliases": self.gateway.model_aliases,
                },
            }
        ).encode()


def _core_units(group: Mapping[str, Any]) -> dict[str, Any]:
    """The same values in the units of the core: `_s` as whole `_ms`, `_mb` as `_bytes`."""
    return dict(_core_unit(name, value) for name, value in group.items())


def _core_unit(name: str, value: Any) -> tuple[str, Any]:  # noqa: ANN401 - a setting has any type
    if name.endswith("_s"):
        return f"{name[:-2]}_ms", round(value * 1000)
    if name.endswith("_mb"):
        return f"{name[:-3]}_bytes", value * MB
    return name, value
