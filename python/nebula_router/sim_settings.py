"""The settings of one simulated engine. They are part of the one tree in `nebula_router.config`."""

import json
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from nebula_router.kinds import Address, Flag, Group, checked_kv_events, items
from nebula_router.kv_events import KvEvents, parsed
from nebula_router.presets import PRESETS, Name, Timing

# What the core's simulator takes as it is.
_FACE: Final = {
    *("listen", "model", "served_model_names", "name", "request_us", "speed", "seed"),
    *("data_parallel_size", "max_num_queued_reqs", "max_num_queued_tokens", "faults"),
}


class SimSettings(Group):
    """One engine that `nebula sim` or `nebula up` simulates; times and cache that are not given are its preset's."""

    listen: Address = Field("127.0.0.1:8000", description="Address to serve on; port 0 takes a free one.")
    model: str = Field("tiny", min_length=1, description="Model that it claims to serve.")
    served_model_names: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], NoDecode, BeforeValidator(items), Flag("--served-model-name")
    ] = Field((), description="Names by which it serves the model; without one, the model's own.")
    name: str = Field(
        "sim", min_length=1, max_length=128, pattern=r"^[!-~]+$", description="Name in its header `x-sim-engine`."
    )
    preset: Name = Field("llama-8b-h100", description="Model and GPUs whose times and cache it has.")
    block_size: int = Field(16, ge=1, le=1024, description="Tokens per block of its KV cache.")
    kv_blocks: int | None = Field(None, ge=1, le=100_000_000, description="Blocks in its KV cache.")
    max_num_seqs: int = Field(256, ge=1, le=65536, description="Requests that run at once.")
    max_num_batched_tokens: int = Field(8192, ge=1, le=10_000_000, description="Tokens computed in one step.")
    max_model_len: int = Field(32768, ge=1, le=100_000_000, description="Longest prompt and reply together, in tokens.")
    step_base_us: float | None = Field(None, ge=0, le=1e8, description="Time of an empty step.")
    prefill_us_per_token: float | None = Field(None, ge=0, le=1e7, description="Time to compute one prompt token.")
    prefill_ns_per_pair: float | None = Field(
        None, ge=0, le=1e7, description="Time that one prompt token adds per token before it."
    )
    decode_us_per_seq: float | None = Field(
        None, ge=0, le=1e7, description="Time that each running request adds to a step."
    )
    decode_ns_per_resident_token: float | None = Field(
        None, ge=0, le=1e7, description="Time that one token in a running request's context adds to a step."
    )
    request_us: float = Field(
        0.0, ge=0, le=1e8, description="Time of a request before it is queued, with HTTP and the front end."
    )
    speed: float = Field(
        1.0, ge=0, le=1e6, description="How much faster than real time it runs; 0 is as fast as it can."
    )
    seed: int = Field(0, ge=0, le=2**64 - 1, description="Seed of its request ids.")
    data_parallel_size: int = Field(1, ge=1, le=256, description="Data-parallel ranks behind its address.")
    max_num_queued_reqs: int | None = Field(
        None, ge=0, le=2**32 - 1, description="Requests in it at which it answers one more with 503."
    )
    max_num_queued_tokens: int | None = Field(
        None, ge=0, le=2**63 - 1, description="Prompt tokens in its queue at which it answers with 503."
    )
    kv_events_config: Annotated[str, AfterValidator(checked_kv_events)] | None = Field(
        None, description="How it publishes KV events, in vLLM's JSON. Port 0 takes free ports; GET /kv_event_sources."
    )
    kv_events_encoding: Literal["map", "array"] = Field(
        "map", description="How an event is written: as vLLM does from 0.24 on, or as it did before."
    )
    kv_events_hashes: Literal["int", "bytes"] = Field("int", description="How an event names a block.")
    kv_role: Literal["none", "kv_producer", "kv_consumer", "kv_both"] = Field(
        "none", description="Its part where one engine computes prompts and another one answers."
    )
    kv_load_failure_policy: Literal["fail", "recompute"] = Field(
        "fail", description="What becomes of a request whose KV does not come from the other engine."
    )
    kv_lease_s: float = Field(
        30.0, ge=0.001, le=86400, description="Time that blocks are kept for an engine that has not claimed them."
    )
    transfer_us_per_token: float = Field(
        5.0, ge=0, le=1e7, description="Time that one token's KV is on its way to another engine."
    )
    faults: Annotated[tuple[str, ...], NoDecode, BeforeValidator(items), Flag("--fault")] = Field(
        (), description="Faults in force from its start, as the header `x-sim-fault` writes them."
    )

    @property
    def timing(self) -> Timing:
        """How long its steps take: what is given, and the preset's for the rest."""
        own = self.model_dump(include={field.name for field in fields(Timing)}, exclude_none=True)
        return replace(PRESETS[self.preset].timing, **own)

    def engine(self) -> dict[str, Any]:
        """What the core's simulated engine computes with."""
        own = self.model_dump(include={"block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"})
        blocks = self.kv_blocks or PRESETS[self.preset].kv_blocks(self.block_size)
        return own | {"kv_blocks": blocks, "timing": asdict(self.timing)}

    def core_json(self) -> bytes:
        """The document that the core's simulator reads."""
        events = KvEvents() if self.kv_events_config is None else parsed(self.kv_events_config)
        written = {"encoding": self.kv_events_encoding, "hashes": self.kv_events_hashes}
        transfer = {
            "role": None if self.kv_role == "none" else self.kv_role,
            "load_failure_policy": self.kv_load_failure_policy,
            "lease_s": self.kv_lease_s,
            "us_per_token": self.transfer_us_per_token,
        }
        parts = {"engine": self.engine(), "kv_events": events.document() | written, "kv_transfer": transfer}
        return json.dumps(self.model_dump(include=_FACE) | parts).encode()
