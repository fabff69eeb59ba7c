"""The shape of a model, read from its `config.json`: what its weights and its KV cache take. No I/O.

Names are those of Hugging Face's transformers. The layer counts follow vLLM's KV cache groups
(vllm/v1/kv_cache_interface.py): full attention, sliding window or chunked, and layers with a state of fixed size.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Config = Mapping[str, Any]

_TEXT: Final = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where a model of more than text keeps the part that writes."""
_FULL: Final = "full"
_WINDOW: Final = "window"
_STATE: Final = "state"
_KINDS: Final = {
    "full_attention": _FULL,
    "attention": _FULL,
    "*": _FULL,
    "sliding_attention": _WINDOW,
    "chunked_attention": _WINDOW,
    "linear_attention": _STATE,
    "mamba": _STATE,
    "mamba2": _STATE,
    "conv": _STATE,
    "M": _STATE,
}
_DTYPES: Final = {"float32": 4.0, "float": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0, "float8_e4m3fn": 1.0}
_BITS: Final = {"awq": 4, "gptq": 4, "bitsandbytes": 4, "mxfp4": 4, "fp8": 8, "fbgemm_fp8": 8}
_SCALES: Final = 0.0625
"""Bytes per parameter for the scales of a weight of less than a byte: 16 bits for a group of 32, which is the most."""
_BYTE: Final = 8


class ShapeError(ValueError):
    """A `config.json` that does not say what memory depends on."""


@dataclass(frozen=True)
class Shape:
    """A transformer as far as memory depends on it."""

    heads: int
    kv_heads: int
    head_dim: int
    full_layers: int
    """Layers whose KV cache grows with every token."""
    window_layers: int
    """Layers that keep the last `window` tokens."""
    state_layers: int
    """Layers with a state of fixed size per request, which is not counted."""
    window: int
    context: int | None
    """The longest that the model was made for."""
    latent: int | None
    """Values per token and layer of multi-head latent attention, in place of keys and values."""
    stored_bytes: float
    """Of a parameter in its files."""
    parameters: int
    """By its dimensions."""
    weight_bytes: int
    """Of all weights, by its dimensions."""
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        """Layers that have any cache or state."""
        return self.full_layers + self.window_layers + self.state_layers

    def kv_bytes_per_token(self, tensor: int, value_bytes: float) -> float:
        """Bytes that one token takes in one layer of one GPU.

        Under tensor parallelism each GPU has its share of the KV heads and at least one; the latent of MLA is on all
        of them (vllm/config/model.py, `get_num_kv_heads`).
        """
        if self.latent is not None:
            return self.latent * value_bytes
        return 2 * max(1, -(-self.kv_heads // tensor)) * self.head_dim * value_bytes


def shape(config: Config) -> Shape:
    """The shape in a `config.json`.

    Raises:
        ShapeError: It lacks the number of layers, heads or the hidden size, or one is no positive number.
    """
    text = _text(config)
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(text, "num_attention_heads", "n_head")
    hidden = _number(text, "hidden_size", "n_embd", "d_model")
    full, window_layers, state, notes = _layers(text, layers)
    latent = text.get("kv_lora_rank")
    parameters, outside = _parameters(text, layers, heads, hidden)
    stored, value, quantised = _stored_bytes(config, text)
    if quantised:
        notes += (f"weights are {quantised}; embeddings count in 16 bits",)
    return Shape(
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_dim=text.get("head_dim") or hidden // heads,
        full_layers=full,
        window_layers=window_layers,
        state_layers=state,
        window=text.get("sliding_window") or text.get("attention_chunk_size") or 0,
        context=_context(text),
        latent=latent + (text.get("qk_rope_head_dim") or 0) if latent else None,
        stored_bytes=stored,
        parameters=parameters,
        weight_bytes=int((parameters - outside) * value + outside * max(value, 2.0)),
        notes=notes,
    )


def _text(config: Config) -> Config:
    for name in _TEXT:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            return _text(inner)
    return config


def _number(text: Config, *names: str) -> int:
    for name in names:
        value = text.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ShapeError(f"{names[0]} is missing, or no positive number")


def _kv_heads(text: Config, heads: int) -> int:
    if text.get("multi_query"):
        return 1
    return text.get("num_key_value_heads") or text.get("num_kv_heads") or heads


def _context(text: Config) -> int | None:
    """The longest context, stretched as vLLM stretches it where `rope_scaling` says so without saying from where."""
    longest = text.get("max_position_embeddings") or text.get("n_positions") or text.get("max_sequence_length")
    rope = text.get("rope_scaling") or {}
    if not isinstance(longest, int) or not isinstance(rope, Mapping):
        return None
    kind = rope.get("rope_type") or rope.get("type")
    factor = rope.get("factor")
    if isinstance(factor, (int, float)) and kind not in {None, "default", "su", "longrope", "llama3", "mrope"}:
        return int(rope.get("original_max_position_embeddings", longest) * factor)
    return longest


def _layers(text: Config, layers: int) -> tuple[int, int, int, tuple[str, ...]]:
    """Layers of full attention, of a window, and with a state; what is approximated."""
    pattern = text.get("hybrid_override_pattern")
    kinds = text.get("layer_types") or text.get("layers_block_type") or (list(pattern) if pattern else None)
    window = text.get("sliding_window") or text.get("attention_chunk_size")
    if kinds:
        found = [_KINDS.get(kind) for kind in kinds]
        full, sliding, state = found.count(_FULL), found.count(_WINDOW), found.count(_STATE)
        unknown = {kind for kind in kinds if kind not in _KINDS} - {"-", "mlp", "moe", "E"}
        full += sum(kind in unknown for kind in kinds)
    elif every := text.get("full_attention_interval") or text.get("attn_layer_period"):
        full, sliding = layers // every, 0
        state = layers - full
    elif window and (every := text.get("sliding_window_pattern")):
        full, state = layers // every, 0
        sliding = layers - full
    elif window and text.get("use_sliding_window", True):
        full, sliding, state = 0, layers, 0
    else:
        full, sliding, state = layers, 0, 0
    if not window:
        full, sliding = full + sliding, 0
    notes: tuple[str, ...] = ()
    if sliding:
        notes += (f"{sliding} of {layers} layers keep a window of {window:,} tokens: approximated",)
    if state:
        notes += (f"{state} of {layers} layers have a state of fixed size, which is not counted",)
    return full, sliding, state, notes


def _parameters(text: Config, layers: int, heads: int, hidden: int) -> tuple[int, int]:
    """Parameters in all, and those of them outside the layers: embeddings, which are not quantised."""
    vocabulary = text.get("vocab_size") or 0
    outside = vocabulary * hidden * (1 if text.get("tie_word_embeddings") else 2)
    dim = text.get("head_dim") or hidden // heads
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    dense = 3 * hidden * inner
    experts = text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts") or 0
    if experts:
        each = text.get("moe_intermediate_size") or inner
        shared = (text.get("n_shared_experts") or 0) * each + (text.get("shared_expert_intermediate_size") or 0)
        sparse = 3 * hidden * (experts * each + shared) + hidden * experts
        first = text.get("first_k_dense_replace") or 0
        mlp = first * dense + (layers - first) * sparse
    else:
        mlp = layers * dense
    attention = _latent_attention(text, heads, hidden) or hidden * dim * (2 * heads + 2 * _kv_heads(text, heads))
    return outside + mlp + layers * attention, outside


def _latent_attention(text: Config, heads: int, hidden: int) -> int | None:
    """Parameters of one layer of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""
    latent = text.get("kv_lora_rank")
    if not latent:
        return None
    rope, nope = text.get("qk_rope_head_dim") or 0, text.get("qk_nope_head_dim") or 0
    value, query = text.get("v_head_dim") or nope, text.get("q_lora_rank")
    wide = heads * (rope + nope)
    queries = query * (hidden + wide) if query else hidden * wide
    return int(queries + hidden * (latent + rope) + latent * heads * (nope + value) + heads * value * hidden)


def _stored_bytes(config: Config, text: Config) -> tuple[float, float, str]:
    """Bytes of a parameter in its files and in an engine, and how it is quantised.

    vLLM loads float32 as 16 bits where no dtype is given (vllm/config/model.py, `_resolve_auto_dtype`).
    """
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "bfloat16")
    stored = _DTYPES.get(dtype.removeprefix("torch."), 2.0)
    quantised = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(quantised, Mapping):
        return stored, min(stored, 2.0), ""
    method = str(quantised.get("quant_method") or "quantised")
    bits = quantised.get("bits") or _group_bits(quantised) or _BITS.get(method.replace("-", "_")) or 8
    if quantised.get("load_in_8bit"):
        bits = 8
    value = bits / 8 + (_SCALES if bits < _BYTE else 0)
    return value, value, f"{method}, {bits} bits"


def _group_bits(quantised: Config) -> int | None:
    """Bits by compressed-tensors, or by ModelOpt's `quant_algo`."""
    groups = quantised.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            bits = ((group or {}).get("weights") or {}).get("num_bits")
            if isinstance(bits, int):
                return bits
    found = re.search(r"FP(\d+)|INT(\d+)|W(\d+)A", str(quantised.get("quant_algo") or ""))
    return int(next(filter(None, found.groups()))) if found else None
