"""A pool with its GPUs and its memory filled in: from the model's files where they are here, else from its name."""

import re
from dataclasses import dataclass
from typing import Final

from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.engine.engine_config import EngineConfig
from nebula_router.fleet.model.model_files import ModelFiles, model_files
from nebula_router.fleet.model.shape import ShapeError, shape
from nebula_router.fleet.model.vram import MIB, UTILIZATION, Asked, Need, need
from nebula_router.fleet.records import ModelSpec, Pool

NO_GPU_ENGINES: Final = frozenset({"sim"})
"""Engines that have no use for a GPU."""
_PARAMETERS: Final = re.compile(r"(?:^|[-_/ ])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?=$|[-_/. ])")
_BILLION: Final = 10**9
_NAMED_BYTES: Final = (
    (
        re.compile(r"awq|gptq|int4|w4a16|4bit|bnb|bitsandbytes|nf4|mxfp4|nvfp4|fp4|gpt-oss|q4_", re.IGNORECASE),
        0.5625,
        "4 bits",
    ),
    (re.compile(r"fp8|int8|w8a8|8bit|q8_", re.IGNORECASE), 1.0, "8 bits"),
)
_KV_BYTES: Final = {"fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "fp8_inc": 1.0, "float32": 4.0, "nvfp4": 0.5625}
_LOADED_BYTES: Final = {"fp8": 1.0, "bitsandbytes": 0.5625, "experts_int8": 1.0}
"""By `quantization`, where 16-bit weights are quantised while they are loaded."""


@dataclass(frozen=True)
class Sized:
    """A pool, and what people should know of how it was sized."""

    pool: Pool
    need: Need | None
    """None where nothing is known of the model, where it needs no GPU, or where its memory was given."""
    notes: tuple[str, ...] = ()
    unchecked: bool = False
    """Whether nobody knows what it needs, so that its memory is not checked."""


def sized(pool: Pool, model: str, overhead_mb: int) -> Sized:
    """The pool with `tensor_parallel_size`, `gpus_per_replica`, `required_vram_mb` and `vram`; what it has stays.

    Args:
        pool: As it was asked for.
        model: Name or folder of the model, where the engine's own settings name none.
        overhead_mb: What an engine takes of each GPU beside weights and KV cache.

    Raises:
        EngineConfigError: A setting of the engine is not what it should be.
        ModelFilesError: A file of the model cannot be read.
    """
    config = EngineConfig(pool.engine_args, pool.extra_args)
    tensor = config.size("tensor-parallel-size", pool.tensor_parallel_size)
    pipeline = config.size("pipeline-parallel-size")
    local = config.size("data-parallel-size-local", config.size("data-parallel-size"))
    data = 1 if config.text("data-parallel-rank") else local
    no_gpu = pool.engine_type in NO_GPU_ENGINES or config.text("device") == "cpu"
    gpus = pool.gpus_per_replica
    if gpus is None:
        gpus = 0 if no_gpu else tensor * pipeline * data
    pool = pool.model_copy(update={"tensor_parallel_size": tensor, "gpus_per_replica": gpus})
    if gpus == 0:
        return Sized(pool, None, ("it needs no GPU",))
    if pool.required_vram_mb is not None and pool.vram is None:
        return Sized(pool, None, (f"{pool.required_vram_mb / 1024:.1f} GiB per GPU, as given",))
    known = _need(config, _asked(config, tensor, pipeline), config.text("model") or model, overhead_mb)
    if known is None:
        note = (
            f"VRAM was not checked: {config.text('model') or model} is not on this machine and its name does not say "
            "its size; --required-vram 20GiB says it"
        )
        return Sized(pool, None, (note,), unchecked=True)
    update = {"required_vram_mb": known.total_mb, "vram": known.model_dump(mode="json", exclude_none=True)}
    return Sized(pool.model_copy(update=update), known, tuple(known.lines()))


def sized_spec(spec: ModelSpec, overhead_mb: int) -> ModelSpec:
    """The spec with each pool's GPUs and memory, as far as they are not there yet.

    Raises:
        EngineConfigError: A setting of an engine is not what it should be.
        ModelFilesError: A file of the model cannot be read.
    """
    pools = {
        role: pool
        if pool.gpus_per_replica is not None and pool.required_vram_mb is not None
        else sized(pool, spec.model_name, overhead_mb).pool
        for role, pool in spec.pools.items()
    }
    return spec.model_copy(update={"pools": pools})


def _asked(config: EngineConfig, tensor: int, pipeline: int) -> Asked:
    return Asked(
        tensor=tensor,
        pipeline=pipeline,
        context=config.whole("max-model-len"),
        kv_value_bytes=_KV_BYTES.get((config.text("kv-cache-dtype") or "auto").lower(), 2.0),
        kv_bytes=config.whole("kv-cache-memory-bytes"),
        utilization=config.share("gpu-memory-utilization") or UTILIZATION,
        batched_tokens=config.whole("max-num-batched-tokens") or Asked().batched_tokens,
    )


def _need(config: EngineConfig, asked: Asked, model: str, overhead_mb: int) -> Need | None:
    files = model_files(model, config.text("download-dir"), config.text("revision"))
    if files is not None:
        return _by_files(files, config, asked, overhead_mb)
    found = parameters_in_name(model)
    if found is None:
        return None
    weights, how = weights_by_name(model, found, config.text("quantization"))
    return _without_shape(asked, weights, f"estimated from its name: {how}", overhead_mb)


def _by_files(files: ModelFiles, config: EngineConfig, asked: Asked, overhead_mb: int) -> Need | None:
    if files.config is None:
        return _without_shape(asked, files.weights_bytes or 0, files.weights_from, overhead_mb)
    try:
        model = shape(files.config)
    except ShapeError as error:
        if files.weights_bytes is None:
            return None
        why = f"{files.weights_from} ({files.folder / 'config.json'}: {error})"
        return _without_shape(asked, files.weights_bytes, why, overhead_mb)
    if model.heads % asked.tensor:
        raise EngineConfigError(
            f"tensor-parallel-size = {asked.tensor}: the model's {model.heads} attention heads cannot be shared out so"
        )
    weights, source = files.weights_bytes, files.weights_from
    if weights is None:
        weights, source = model.weight_bytes, f"{model.parameters / 1e9:.1f}e9 parameters by {files.folder}/config.json"
    factor, how = _loaded(model.stored_bytes, config, quantised="quantization_config" in files.config)
    return need(model, asked, int(weights * factor), source + how, overhead_mb * MIB)


def _loaded(stored: float, config: EngineConfig, *, quantised: bool) -> tuple[float, str]:
    """What a stored byte takes in an engine: float32 becomes 16 bits, and vLLM may quantise as it loads."""
    online = None if quantised else _LOADED_BYTES.get(config.text("quantization") or "")
    if online is not None:
        return online / stored, f", quantised to {config.text('quantization')} as they are loaded"
    wide = (config.text("dtype") or "auto") in {"float32", "float"}
    if stored > 2 and not wide and not quantised:  # noqa: PLR2004 - 16 bits
        return 2 / stored, ", float32 loaded as 16 bits"
    if stored == 2 and wide:  # noqa: PLR2004 - 16 bits
        return 2.0, ", loaded as float32"
    return 1.0, ""


def _without_shape(asked: Asked, weights_bytes: int, source: str, overhead_mb: int) -> Need:
    return Need(
        weights_bytes=weights_bytes,
        weights_from=source,
        tensor=asked.tensor,
        pipeline=asked.pipeline,
        kv_fixed_bytes=asked.kv_bytes,
        overhead_bytes=overhead_mb * MIB,
        utilization=asked.utilization,
        notes=("the KV cache is not counted: nothing is known of the model's layers here",),
    )


def parameters_in_name(model: str) -> int | None:
    """Parameters that a model's name tells: 70B, 0.5b, 500M, or 8x7B, which counts as the product."""
    found = _PARAMETERS.search(model.rstrip("/").rpartition("/")[2])
    if found is None:
        return None
    unit = _BILLION if found[3] in "bB" else _BILLION // 1000
    return int(float(found[2]) * int(found[1] or 1) * unit)


def weights_by_name(model: str, parameters: int, quantization: str | None) -> tuple[int, str]:
    """Bytes of a model's weights by its name, and how that came about."""
    told = f"{model}-{quantization or ''}"
    for pattern, value, words in _NAMED_BYTES:
        if pattern.search(told):
            return int(parameters * value), f"{parameters / 1e9:g}e9 parameters in {words}"
    return parameters * 2, f"{parameters / 1e9:g}e9 parameters x 2 bytes"
