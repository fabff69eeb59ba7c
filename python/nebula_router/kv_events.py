"""What vLLM's `--kv-events-config` says: the JSON of an engine that publishes what happens to its KV cache."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_EXAMPLE = '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}'


class KvEvents(BaseModel):
    """The keys and defaults of vLLM's `KVEventsConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    enable_kv_cache_events: bool = False
    publisher: Literal["null", "zmq"] | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = Field(10_000, ge=0, le=2**31 - 1)
    hwm: int = Field(100_000, ge=0, le=2**31 - 1)
    max_queue_size: int = Field(100_000, ge=0, le=2**31 - 1)
    topic: str = ""

    def document(self) -> dict[str, Any]:
        """Every key, with the publisher that vLLM takes where none is named: ZMQ, if events are wanted."""
        chosen = self.publisher or ("zmq" if self.enable_kv_cache_events else "null")
        return self.model_dump() | {"publisher": chosen}


def parsed(text: str) -> KvEvents:
    """The configuration in `text`.

    Raises:
        ValueError: `text` is something else, or says what vLLM would not take.
    """
    try:
        return KvEvents.model_validate_json(text)
    except ValidationError as error:
        said = "; ".join(_line(one["loc"], one["msg"]) for one in error.errors(include_url=False, include_input=False))
        raise ValueError(f"expected vLLM's JSON, for example '{_EXAMPLE}': {said}") from None


def _line(loc: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in loc)
    what = f"unknown key, known are {', '.join(KvEvents.model_fields)}" if "Extra inputs" in message else message
    return f"{where}: {what}" if where else what
