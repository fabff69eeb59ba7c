import pytest
from tests.fleet.test_shape import config

from nebula_router.fleet.model.shape import shape
from nebula_router.fleet.model.vram import GIB, MIB, Asked, Need, need, stored_need

LLAMA_70B = 141_107_412_992  # total_size of its safetensors index
LLAMA_8B = 16_060_522_496
OVERHEAD = 1536 * MIB
GPU_24 = 24 * 1024


def of(name: str, weights: int, **asked: object) -> Need:
    return need(shape(config(name)), Asked.model_validate(asked), weights, "its index", OVERHEAD)


def test_the_arithmetic_of_a_70b() -> None:
    found = of("llama-3.3-70b", LLAMA_70B, context=32_768)
    assert found.arithmetic() == (
        "weights 131.4 GiB / TP 1 + KV 10.0 GiB (32,768 tokens x 320 KiB) + overhead 1.5 GiB = 142.9 GiB per GPU"
    )
    assert found.shortage(GPU_24, GPU_24 - 512) == "23.5 of 24.0 GiB are free, it needs 142.9"


def test_tensor_parallelism_shares_weights_and_kv_out() -> None:
    one, four = (of("llama-3.3-70b", LLAMA_70B, context=32_768, tensor=tensor) for tensor in (1, 4))
    assert four.total_bytes - OVERHEAD == pytest.approx((one.total_bytes - OVERHEAD) / 4, abs=2)
    assert four.shortage(80 * 1024, 80 * 1024) is None
    pipeline = of("llama-3.3-70b", LLAMA_70B, context=32_768, pipeline=4)
    assert pipeline.total_bytes == four.total_bytes
    assert "pipeline" in " ".join(pipeline.notes)


def test_an_8b_fits_on_24_gib_with_a_short_context_and_not_with_its_own() -> None:
    own, short = of("llama-3.1-8b", LLAMA_8B), of("llama-3.1-8b", LLAMA_8B, context=32_768)
    assert own.context == 131_072
    assert own.shortage(GPU_24, GPU_24) == "24.0 of 24.0 GiB are free, it needs 32.5"
    assert short.shortage(GPU_24, GPU_24 - 512) is None
    assert any("max-model-len is not given" in note for note in own.notes)
    fits = own.tokens_that_fit(GPU_24, GPU_24 - 512)
    assert fits is not None
    assert of("llama-3.1-8b", LLAMA_8B, context=fits).shortage(GPU_24, GPU_24 - 512) is None
    assert of("llama-3.1-8b", LLAMA_8B, context=fits + 100).shortage(GPU_24, GPU_24 - 512) is not None


def test_vllm_takes_its_share_of_the_whole_gpu_or_does_not_start() -> None:
    small = of("llama-3.1-8b", LLAMA_8B, context=8192)
    assert small.shortage(GPU_24, GPU_24 - 512) is None
    refused = small.shortage(GPU_24, 21 * 1024)
    assert refused is not None
    assert refused.endswith("vLLM wants gpu-memory-utilization 0.92 = 22.1 to start (0.87 would do)")
    less = of("llama-3.1-8b", LLAMA_8B, context=8192, utilization=0.87)
    assert less.shortage(GPU_24, 21 * 1024) is None
    assert less.booked_mb(GPU_24) == pytest.approx(0.87 * GPU_24, abs=1)
    narrow = of("llama-3.1-8b", LLAMA_8B, context=8192, utilization=0.5).shortage(GPU_24, GPU_24)
    assert narrow == "gpu-memory-utilization 0.5 gives it 12.0 of 24.0 GiB, it needs 17.5"


def test_a_given_kv_cache_counts_as_given_and_must_hold_one_request() -> None:
    given = of("llama-3.1-8b", LLAMA_8B, context=8192, kv_bytes=2 * GIB, utilization=0.05)
    assert given.total_bytes == LLAMA_8B + 2 * GIB + OVERHEAD
    assert given.shortage(GPU_24, GPU_24) is None
    assert "KV 2.0 GiB (as given)" in given.arithmetic()
    tight = of("llama-3.1-8b", LLAMA_8B, context=32_768, kv_bytes=2 * GIB).shortage(GPU_24, GPU_24)
    assert tight == "kv-cache-memory-bytes gives 2.0 GiB, one request of 32,768 tokens needs 4.0"


def test_layers_with_a_window_stop_growing() -> None:
    long, longer = (of("gemma-3-27b", 54 * 10**9, context=context) for context in (50_000, 100_000))
    per_token = 2 * 16 * 128 * 2
    assert longer.kv_bytes - long.kv_bytes == 50_000 * 10 * per_token
    assert long.kv_bytes == 50_000 * 10 * per_token + (1024 + 8192 + 16) * 52 * per_token
    fits = longer.tokens_that_fit(80 * 1024, 80 * 1024)
    assert fits is not None
    assert longer.kv_bytes_for(fits) <= longer.room_bytes(80 * 1024, 80 * 1024) < longer.kv_bytes_for(fits + 1)


def test_an_fp8_cache_takes_half() -> None:
    assert of("llama-3.1-8b", LLAMA_8B, context=8192, kv_value_bytes=1.0).kv_bytes == GIB / 2


def test_a_need_comes_back_from_the_store_as_it_was() -> None:
    found = of("llama-3.1-8b", LLAMA_8B, context=8192)
    assert stored_need(found.model_dump(mode="json", exclude_none=True)) == found
    assert stored_need(None) is None
    assert stored_need({"somebody": "else's"}) is None
