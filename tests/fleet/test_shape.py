"""Published sizes of well-known models; the configs are in data/, each with its origin."""

import json
from pathlib import Path
from typing import Any

import pytest

from nebula_router.fleet.model.shape import ShapeError, shape

DATA = Path(__file__).parent / "data"


def config(name: str) -> dict[str, Any]:
    found = json.loads((DATA / f"{name}.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.3-70b", 70_553_706_496),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-0.5b", 494_032_768),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("deepseek-v3", 671_026_419_200),
        ("gpt-oss-120b", 116_829_156_672),
        ("gemma-3-27b", 27_009_346_304),
    ],
)
def test_parameters_are_those_published(name: str, parameters: int) -> None:
    assert shape(config(name)).parameters == pytest.approx(parameters, rel=0.002)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.3-70b", 327_680),
        ("qwen2.5-7b", 57_344),
        ("mixtral-8x7b", 131_072),
        ("deepseek-v3", 70_272),  # arXiv:2505.09343, table 1: 70.272 KB
    ],
)
def test_kv_cache_per_token_is_that_published(name: str, bytes_per_token: int) -> None:
    found = shape(config(name))
    assert found.kv_bytes_per_token(1, 2) * found.full_layers == bytes_per_token


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llama-3.1-8b", (32, 0, 0)),
        ("qwen2.5-7b", (28, 0, 0)),
        ("gemma-3-27b", (10, 52, 0)),
        ("gpt-oss-120b", (18, 18, 0)),
        ("qwen3-next-80b-a3b", (12, 0, 36)),
    ],
)
def test_layers_by_what_they_keep(name: str, layers: tuple[int, int, int]) -> None:
    found = shape(config(name))
    assert (found.full_layers, found.window_layers, found.state_layers) == layers
    assert bool(found.notes) == (name in {"gemma-3-27b", "gpt-oss-120b", "qwen3-next-80b-a3b"})


@pytest.mark.parametrize(
    ("name", "context"),
    [("llama-3.1-8b", 131_072), ("qwen2.5-7b", 32_768), ("deepseek-v3", 163_840), ("gpt-oss-120b", 131_072)],
)
def test_context(name: str, context: int) -> None:
    assert shape(config(name)).context == context


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [("llama-3.1-8b-awq", 5.74), ("deepseek-v3", 672.0), ("gpt-oss-120b", 65.3), ("llama-3.1-8b", 16.06)],
)
def test_quantised_weights_take_about_what_their_files_do(name: str, gigabytes: float) -> None:
    assert shape(config(name)).weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.06)


def test_kv_heads_are_shared_out_and_each_gpu_has_one_at_least() -> None:
    found = shape(config("llama-3.1-8b"))
    one = found.kv_bytes_per_token(1, 2)
    assert [found.kv_bytes_per_token(tensor, 2) for tensor in (2, 8, 16)] == [one / 2, one / 8, one / 8]
    latent = shape(config("deepseek-v3"))
    assert latent.kv_bytes_per_token(8, 2) == latent.kv_bytes_per_token(1, 2)


def test_layer_patterns_of_hybrid_models() -> None:
    base = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 10}
    nemotron = shape({**base, "num_hidden_layers": 6, "hybrid_override_pattern": "M-M*-M"})
    assert (nemotron.full_layers, nemotron.state_layers) == (1, 3)
    jamba = shape({**base, "num_hidden_layers": 8, "attn_layer_period": 8})
    assert (jamba.full_layers, jamba.state_layers) == (1, 7)
    mistral = shape({**base, "num_hidden_layers": 8, "sliding_window": 4096})
    assert (mistral.full_layers, mistral.window_layers, mistral.window) == (0, 8, 4096)


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_a_config_that_says_nothing_is_refused_by_the_name_of_what_lacks(missing: str) -> None:
    broken = config("llama-3.1-8b")
    del broken[missing]
    with pytest.raises(ShapeError, match=missing):
        shape(broken)
