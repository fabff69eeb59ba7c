"""How long the steps of well-known engines take, from published figures of the model and of the GPU.

A step reads all weights once, computes each token, and its attention reads the KV cache of all tokens before (the
roofline model of Williams, Waterman and Patterson, 2009). Real engines reach a part of a GPU's peak; the two shares
below are assumptions. `nebula bench calibrate` measures one engine instead.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

COMPUTE_SHARE: Final = 0.5
"""Part of the peak FLOP/s that a prefill reaches."""
BANDWIDTH_SHARE: Final = 0.7
"""Part of the peak memory bandwidth that a decode step reaches."""
HOST_US: Final = 1500.0
"""Time of a step outside the GPU: scheduling, sampling, hand-over."""
SEQ_US: Final = 4.0
"""Time per request of a step outside the GPU: its sampling and its output."""
USABLE_SHARE: Final = 0.9
"""Part of the GPU's memory that vLLM takes by default (`gpu_memory_utilization`)."""
ACTIVATION_BYTES: Final = 4e9
"""Memory for activations and CUDA graphs, per GPU."""


@dataclass(frozen=True)
class Model:
    """A dense transformer; figures from its `config.json`."""

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    value_bytes: int = 2
    """Of a weight and of a KV entry: 2 for bfloat16."""

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights."""
        return self.parameters * self.value_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of one token's keys and values in all layers."""
        return 2.0 * self.layers * self.kv_heads * self.head_size * self.value_bytes

    @property
    def pair_flops(self) -> float:
        """Operations of one (query, key) pair in all layers: a product of queries and keys, and one with values."""
        return 4.0 * self.layers * self.heads * self.head_size


@dataclass(frozen=True)
class Gpu:
    """A GPU; figures from its data sheet, without sparsity."""

    flops: float
    """Dense FLOP/s in bfloat16."""
    bandwidth: float
    """Bytes/s of its memory."""
    memory: float
    """Bytes."""


@dataclass(frozen=True)
class Timing:
    """The coefficients of a step's time; see docs/simulate.md."""

    step_base_us: float
    prefill_us_per_token: float
    prefill_ns_per_pair: float
    decode_us_per_seq: float
    decode_ns_per_resident_token: float


@dataclass(frozen=True)
class Preset:
    """A model on GPUs under tensor parallelism."""

    model: Model
    gpu: Gpu
    gpus: int
    source: str

    @cached_property
    def timing(self) -> Timing:
        """The roofline of this engine."""
        flops = self.gpu.flops * self.gpus * COMPUTE_SHARE
        bandwidth = self.gpu.bandwidth * self.gpus * BANDWIDTH_SHARE
        return Timing(
            step_base_us=round(HOST_US + self.model.weight_bytes / bandwidth * 1e6, 1),
            prefill_us_per_token=round(2 * self.model.parameters / flops * 1e6, 3),
            prefill_ns_per_pair=round(self.model.pair_flops / flops * 1e9, 4),
            decode_us_per_seq=round(SEQ_US + 2 * self.model.parameters / flops * 1e6, 3),
            decode_ns_per_resident_token=round(self.model.kv_bytes_per_token / bandwidth * 1e9, 3),
        )

    def kv_blocks(self, block_size: int) -> int:
        """KV-cache blocks that fit beside the weights."""
        free = self.gpus * (self.gpu.memory * USABLE_SHARE - ACTIVATION_BYTES) - self.model.weight_bytes
        return int(free / self.model.kv_bytes_per_token / block_size)


_LLAMA_8B: Final = Model(parameters=8.03e9, layers=32, heads=32, kv_heads=8, head_size=128)
_LLAMA_70B: Final = Model(parameters=70.6e9, layers=80, heads=64, kv_heads=8, head_size=128)
_QWEN3_32B: Final = Model(parameters=32.8e9, layers=64, heads=64, kv_heads=8, head_size=128)
_H100: Final = Gpu(flops=989e12, bandwidth=3.35e12, memory=80e9)
_A100: Final = Gpu(flops=312e12, bandwidth=2.039e12, memory=80e9)
_L40S: Final = Gpu(flops=362e12, bandwidth=0.864e12, memory=48e9)

Name = Literal[
    "llama-8b-h100", "llama-8b-a100", "llama-8b-l40s", "qwen-32b-2xh100", "llama-70b-4xh100", "llama-70b-8xa100"
]

PRESETS: Final[dict[Name, Preset]] = {
    "llama-8b-h100": Preset(
        _LLAMA_8B, _H100, 1, "Llama 3.1 8B's config.json; NVIDIA H100 SXM data sheet: 989 TFLOP/s, 3.35 TB/s, 80 GB"
    ),
    "llama-8b-a100": Preset(
        _LLAMA_8B, _A100, 1, "Llama 3.1 8B's config.json; NVIDIA A100 SXM 80GB data sheet: 312 TFLOP/s, 2.04 TB/s"
    ),
    "llama-8b-l40s": Preset(
        _LLAMA_8B, _L40S, 1, "Llama 3.1 8B's config.json; NVIDIA L40S data sheet: 362 TFLOP/s, 864 GB/s, 48 GB"
    ),
    "qwen-32b-2xh100": Preset(
        _QWEN3_32B, _H100, 2, "Qwen3 32B's config.json; NVIDIA H100 SXM data sheet, tensor parallel over 2"
    ),
    "llama-70b-4xh100": Preset(
        _LLAMA_70B, _H100, 4, "Llama 3.3 70B's config.json; NVIDIA H100 SXM data sheet, tensor parallel over 4"
    ),
    "llama-70b-8xa100": Preset(
        _LLAMA_70B, _A100, 8, "Llama 3.3 70B's config.json; NVIDIA A100 SXM 80GB data sheet, tensor parallel over 8"
    ),
}
"""By name: the model and the GPUs."""
