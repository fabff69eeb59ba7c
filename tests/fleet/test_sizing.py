import json
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.test_shape import DATA

from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.model.model_files import ModelFilesError, model_files
from nebula_router.fleet.model.sizing import parameters_in_name, sized, weights_by_name
from nebula_router.fleet.records import Pool

OVERHEAD = 1536
LLAMA_8B = 16_060_522_496


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def saved(folder: Path, config: str | None = None, total_size: int | None = None, **files: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.json").write_text((DATA / f"{config}.json").read_text())
    if total_size:
        index = {"metadata": {"total_size": total_size}, "weight_map": {}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, size in files.items():
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.truncate(size)
    return folder


def pool(**engine_args: Any) -> Pool:
    return Pool(engine_args=engine_args)


def test_a_folder_gives_shape_and_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "llama", "llama-3.1-8b", LLAMA_8B)
    found = sized(pool(model=str(folder), max_model_len=8192), "", OVERHEAD)
    assert found.need is not None
    assert found.need.weights_bytes == LLAMA_8B
    assert found.need.kv_bytes == 2**30
    assert found.pool.required_vram_mb == found.need.total_mb
    assert found.pool.gpus_per_replica == 1
    assert str(folder) in " ".join(found.notes)


def test_the_cache_of_hugging_face_is_looked_into(cache: Path) -> None:
    top = cache / "models--meta-llama--Llama-3.1-8B"
    saved(top / "snapshots" / "abc", "llama-3.1-8b", LLAMA_8B)
    saved(top / "snapshots" / "def", "llama-3.3-70b", LLAMA_8B * 9)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text("abc")
    found = model_files("meta-llama/Llama-3.1-8B")
    assert found is not None
    assert found.weights_bytes == LLAMA_8B
    other = model_files("meta-llama/Llama-3.1-8B", revision="def")
    assert other is not None
    assert other.folder.name == "def"
    assert model_files("meta-llama/Llama-3.1-8B", revision="ghi") is None
    assert model_files("meta-llama/Other") is None
    elsewhere = model_files("meta-llama/Llama-3.1-8B", str(cache))
    assert elsewhere is not None
    assert elsewhere.weights_bytes == LLAMA_8B


def test_files_are_summed_where_no_index_is_and_copies_are_left_out(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "qwen2.5-0.5b", None, model_1=600, model_2=400, consolidated=1000)
    found = model_files(str(folder))
    assert found is not None
    assert found.weights_bytes == 1000


def test_a_config_alone_gives_weights_by_its_dimensions(tmp_path: Path) -> None:
    found = sized(pool(model=str(saved(tmp_path / "m", "qwen2.5-7b"))), "", OVERHEAD)
    assert found.need is not None
    assert found.need.weights_bytes == pytest.approx(15_231_233_024, rel=0.001)
    assert "7.6e9 parameters by" in found.need.weights_from


def test_weights_that_change_as_they_are_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "qwen2.5-7b", 15_231_233_024)
    halved = sized(pool(model=str(folder), quantization="fp8"), "", OVERHEAD).need
    doubled = sized(pool(model=str(folder), dtype="float32"), "", OVERHEAD).need
    assert halved is not None
    assert doubled is not None
    assert (halved.weights_bytes, doubled.weights_bytes) == (15_231_233_024 // 2, 15_231_233_024 * 2)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "qwen2.5-7b")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFilesError, match=r"config.json: is not JSON"):
        sized(pool(model=str(folder)), "", OVERHEAD)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", 70e9),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("qwen2_5_7b", 7e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("mistralai/Mixtral-8x7B-v0.1", 56e9),
        ("facebook/opt-125m", 125e6),
        ("/models/llama-70b/", 70e9),
        ("openai/gpt-oss-120b", 120e9),
        ("microsoft/phi-4", None),
        ("mistralai/Mistral-Large-Instruct-2411", None),
        ("tiny", None),
    ],
)
def test_parameters_that_a_name_tells(name: str, parameters: float | None) -> None:
    assert parameters_in_name(name) == parameters


@pytest.mark.parametrize(
    ("name", "quantization", "per_parameter"),
    [
        ("Llama-3.3-70B-Instruct", None, 2),
        ("Llama-3.3-70B-Instruct-AWQ", None, 0.5625),
        ("Llama-3.3-70B-Instruct-GPTQ-Int4", None, 0.5625),
        ("Llama-3.3-70B-Instruct-FP8-dynamic", None, 1),
        ("Llama-3.3-70B-Instruct", "fp8", 1),
        ("Llama-3.3-70B-Instruct", "bitsandbytes", 0.5625),
        ("Llama-3.3-70B-Instruct-w8a8", None, 1),
        ("Llama-3.3-70B-bnb-4bit", None, 0.5625),
    ],
)
def test_bytes_by_name(name: str, quantization: str | None, per_parameter: float) -> None:
    assert weights_by_name(name, 70 * 10**9, quantization)[0] == 70e9 * per_parameter


def test_a_name_says_so_and_does_not_count_what_it_cannot_know() -> None:
    found = sized(pool(model="meta-llama/Llama-3.3-70B-Instruct"), "", OVERHEAD)
    assert found.need is not None
    assert "estimated from its name" in found.need.weights_from
    assert found.need.shortage(24 * 1024, 24 * 1024) is not None
    assert "KV cache is not counted" in " ".join(found.notes)


def test_a_model_that_nobody_knows_is_not_checked_and_says_how_to_be() -> None:
    found = sized(pool(model="microsoft/phi-4"), "", OVERHEAD)
    assert found.unchecked
    assert found.pool.required_vram_mb is None
    assert "VRAM was not checked" in found.notes[0]
    assert "--required-vram" in found.notes[0]


def test_what_is_given_stays() -> None:
    given = Pool(engine_args={"model": "llama-70b"}, required_vram_mb=1000, gpus_per_replica=3)
    found = sized(given, "", OVERHEAD)
    assert (found.pool.required_vram_mb, found.pool.gpus_per_replica) == (1000, 3)


@pytest.mark.parametrize(
    ("asked", "gpus"),
    [
        (Pool(engine_args={"tensor-parallel-size": 2, "pipeline-parallel-size": 2}), 4),
        (Pool(engine_args={"data_parallel_size": 4, "tensor_parallel_size": 2}), 8),
        (Pool(engine_args={"data_parallel_size": 4, "data_parallel_size_local": 1}), 1),
        (Pool(engine_args={"data_parallel_size": 4, "data_parallel_rank": 1}), 1),
        (Pool(tensor_parallel_size=2), 2),
        (Pool(engine_args={"tensor-parallel-size": 1}, extra_args=("--tensor-parallel-size", "4")), 4),
        (Pool(engine_type="sim", tensor_parallel_size=2), 0),
        (Pool(engine_args={"device": "cpu"}), 0),
    ],
)
def test_gpus_by_the_engines_parallelism(asked: Pool, gpus: int) -> None:
    assert sized(asked, "x", OVERHEAD).pool.gpus_per_replica == gpus


def test_heads_that_cannot_be_shared_out_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", "qwen2.5-7b")
    with pytest.raises(EngineConfigError, match="28 attention heads"):
        sized(pool(model=str(folder), tensor_parallel_size=3), "", OVERHEAD)
