"""What an engine needs of each of its GPUs: weights, KV cache for its longest context, and the rest. No I/O.

vLLM takes `gpu_memory_utilization` of a GPU's whole memory, refuses to start where less than that is free, and refuses
where the KV cache of one request of `max_model_len` does not fit in what weights and activations leave of it
(vllm/v1/worker/utils.py, `request_memory`; vllm/v1/core/kv_cache_utils.py, `check_enough_kv_cache_memory`). With
`kv_cache_memory_bytes` the cache has that size, beside the share.
"""

import math
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from nebula_router.fleet.model.shape import Shape

GIB: Final = 2**30
MIB: Final = 2**20
UTILIZATION: Final = 0.92
"""vLLM's own (vllm/config/cache.py); 0.9 before 0.21."""
BATCHED_TOKENS: Final = 8192
"""vLLM's `max_num_batched_tokens` as it is on large GPUs; only layers with a window depend on it."""


class Asked(BaseModel):
    """What an engine is told that its memory depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: int = 1
    pipeline: int = 1
    context: int | None = None
    """`max_model_len`; none takes the model's, -1 whatever fits."""
    kv_value_bytes: float = 2.0
    kv_bytes: int | None = None
    """`kv_cache_memory_bytes`, per GPU."""
    utilization: float = UTILIZATION
    batched_tokens: int = BATCHED_TOKENS


class Need(BaseModel):
    """What one GPU must have for an engine, term by term, in bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weights_bytes: int
    """Of the whole model."""
    weights_from: str
    tensor: int = 1
    pipeline: int = 1
    token_bytes: float = 0.0
    """KV cache of one token on one GPU, in layers of full attention."""
    window_bytes: float = 0.0
    """Likewise in layers with a window, for the first `window_tokens`."""
    window_tokens: int = 0
    context: int | None = None
    """Tokens that the KV cache must hold; none where they are not known, and then nothing is counted for them."""
    kv_fixed_bytes: int | None = None
    overhead_bytes: int = 0
    utilization: float = UTILIZATION
    notes: tuple[str, ...] = ()

    @property
    def weights_per_gpu(self) -> float:
        """Tensor and pipeline parallelism share the weights out."""
        return self.weights_bytes / (self.tensor * self.pipeline)

    def kv_bytes_for(self, tokens: int) -> float:
        """KV cache of one GPU for one request of so many tokens."""
        return tokens * self.token_bytes + min(tokens, self.window_tokens) * self.window_bytes

    @property
    def kv_bytes(self) -> float:
        """KV cache that is needed on each GPU."""
        if self.kv_fixed_bytes is not None:
            return self.kv_fixed_bytes
        return self.kv_bytes_for(self.context or 0)

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return math.ceil(self.weights_per_gpu + self.kv_bytes + self.overhead_bytes)

    @property
    def total_mb(self) -> int:
        """The same in MiB, rounded up."""
        return -(-self.total_bytes // MIB)

    def booked_mb(self, total_mb: int) -> int:
        """What the engine has of a GPU once it runs."""
        share = 0 if self.kv_fixed_bytes is not None else self.utilization
        return max(self.total_mb, math.ceil(total_mb * share))

    def shortage(self, total_mb: int, free_mb: int) -> str | None:
        """Why the engine does not fit on a GPU, or none where it does."""
        total, free = total_mb * MIB, free_mb * MIB
        share = total * self.utilization
        if self.total_bytes > free:
            return f"{gib(free)} of {gib(total)} GiB are free, it needs {gib(self.total_bytes)}"
        if self.kv_fixed_bytes is None and self.total_bytes > share:
            return (
                f"gpu-memory-utilization {self.utilization:g} gives it {gib(share)} of {gib(total)} GiB, it needs "
                f"{gib(self.total_bytes)}"
            )
        if share > free:
            enough = math.floor(100 * free / total) / 100
            return (
                f"{gib(free)} of {gib(total)} GiB are free, and vLLM wants gpu-memory-utilization {self.utilization:g} "
                f"= {gib(share)} to start ({enough:g} would do)"
            )
        if self.kv_fixed_bytes is not None and self.kv_bytes_for(self.context or 0) > self.kv_fixed_bytes:
            return (
                f"kv-cache-memory-bytes gives {gib(self.kv_fixed_bytes)} GiB, one request of {self.context:,} tokens "
                f"needs {gib(self.kv_bytes_for(self.context or 0))}"
            )
        return None

    def room_bytes(self, total_mb: int, free_mb: int) -> float:
        """What a GPU has left for the KV cache beside weights and overhead; below zero where those do not fit."""
        if self.kv_fixed_bytes is not None:
            return self.kv_fixed_bytes
        most = min(free_mb, total_mb * self.utilization)
        return most * MIB - self.weights_per_gpu - self.overhead_bytes

    def tokens_that_fit(self, total_mb: int, free_mb: int) -> int | None:
        """Tokens of one request whose KV cache fits on such GPUs; none where nothing is known of the cache."""
        if not self.token_bytes and not self.window_bytes:
            return None
        room = max(0.0, self.room_bytes(total_mb, free_mb))
        window = self.window_tokens * self.window_bytes
        if self.window_bytes and room < self.kv_bytes_for(self.window_tokens):
            return int(room / (self.token_bytes + self.window_bytes))
        return int((room - window) / self.token_bytes) if self.token_bytes else self.context

    def arithmetic(self) -> str:
        """The sum in one line."""
        parts = [f"weights {gib(self.weights_bytes)} GiB / TP {self.tensor}"]
        if self.pipeline > 1:
            parts[0] += f" / PP {self.pipeline}"
        if self.kv_fixed_bytes is not None:
            parts.append(f"KV {gib(self.kv_bytes)} GiB (as given)")
        elif self.context and self.kv_bytes:
            parts.append(f"KV {gib(self.kv_bytes)} GiB ({self._per_token()})")
        parts.append(f"overhead {gib(self.overhead_bytes)} GiB")
        return f"{' + '.join(parts)} = {gib(self.total_bytes)} GiB per GPU"

    def lines(self) -> list[str]:
        """The sum, where the weights' size comes from, and what is approximated."""
        return [self.arithmetic(), f"weights: {self.weights_from}", *self.notes]

    def _per_token(self) -> str:
        per_token = f"{self.context:,} tokens x {self.token_bytes / 1024:g} KiB"
        if not self.window_bytes:
            return per_token
        held = min(self.context or 0, self.window_tokens)
        return f"{per_token} + {held:,} x {self.window_bytes / 1024:g} KiB"


def need(model: Shape, asked: Asked, weights_bytes: int, weights_from: str, overhead_bytes: int) -> Need:
    """What a model of a known shape needs of each GPU.

    A layer with a window holds at most the window, one batch and one block more (vllm/v1/kv_cache_interface.py,
    `SlidingWindowSpec`). A pipeline stage has its share of the layers, rounded up.
    """
    context = model.context if asked.context is None else max(asked.context, 1)
    per_layer = model.kv_bytes_per_token(asked.tensor, asked.kv_value_bytes)
    full, window = (-(-layers // asked.pipeline) for layers in (model.full_layers, model.window_layers))
    notes = model.notes
    if asked.context is None and context:
        notes += (f"max-model-len is not given: the model's own {context:,} tokens count",)
    if asked.pipeline > 1:
        notes += ("pipeline stages count as equal; the first and the last also have the embeddings",)
    return Need(
        weights_bytes=weights_bytes,
        weights_from=weights_from,
        tensor=asked.tensor,
        pipeline=asked.pipeline,
        token_bytes=per_layer * full,
        window_bytes=per_layer * window,
        window_tokens=model.window + asked.batched_tokens + 16 if window else 0,
        context=context,
        kv_fixed_bytes=asked.kv_bytes,
        overhead_bytes=overhead_bytes,
        utilization=asked.utilization,
        notes=notes,
    )


def stored_need(vram: dict[str, Any] | None) -> Need | None:
    """The need that a pool was stored with; none where there is none, or it is somebody else's."""
    if vram is None:
        return None
    try:
        return Need.model_validate(vram)
    except ValidationError:
        return None


def gib(count: float) -> str:
    """Bytes in GiB, with one digit after the point."""
    return f"{count / GIB:.1f}"
