from pathlib import Path

import pytest

from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.engine.engine_config import EngineConfig, memory_mb, read_engine_config


def test_names_have_dashes_or_underscores_and_arguments_win() -> None:
    found = EngineConfig(
        {"tensor-parallel-size": 2, "max_model_len": "32k", "enforce-eager": True},
        ("--max-model-len=8K", "-pp", "2", "--gpu-memory-utilization", "0.8", "--no-enforce-eager"),
    )
    assert found.size("tensor-parallel-size") == 2
    assert found.size("pipeline-parallel-size") == 2
    assert found.whole("max-model-len") == 8192
    assert found.share("gpu-memory-utilization") == 0.8
    assert found.text("enforce-eager") is None
    assert found.text("model") is None


@pytest.mark.parametrize(
    ("written", "number"),
    [("32768", 32768), ("32k", 32_000), ("32K", 32_768), ("25.6k", 25_600), ("auto", -1), (-1, -1), (None, None)],
)
def test_numbers_as_vllm_takes_them(written: object, number: int | None) -> None:
    assert EngineConfig({"max-model-len": written}).whole("max-model-len") == number


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor-parallel-size": "two"}, "tensor-parallel-size = two: expected a whole number"),
        ({"tensor_parallel_size": 0}, "tensor-parallel-size = 0: expected at least 1"),
    ],
)
def test_a_number_that_is_none_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        EngineConfig(settings).size("tensor-parallel-size")


@pytest.mark.parametrize("share", ["1.5", "0", "much"])
def test_a_share_is_above_0_and_at_most_1(share: str) -> None:
    with pytest.raises(EngineConfigError, match="gpu-memory-utilization"):
        EngineConfig({"gpu-memory-utilization": share}).share("gpu-memory-utilization")


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "qwen.yaml"
    file.write_text("model: Qwen/Qwen2.5-7B-Instruct\nmax-model-len: 8192\ncompilation-config:\n  mode: 3\n")
    assert read_engine_config(file) == {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "max-model-len": 8192,
        "compilation-config": {"mode": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\n  port: 3\n", r"engine.yaml:2: is not YAML"),
        ("model: [a\n", r"engine.yaml:2: is not YAML"),
        ("- model\n", r"engine.yaml: expected `name: value` lines"),
        ("just text\n", r"engine.yaml: expected `name: value` lines"),
        ("", r"engine.yaml: is empty"),
        ("max-model-len: 1\nmax_model_len: 2\n", r"max-model-len is given twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text)
    with pytest.raises(EngineConfigError, match=message):
        read_engine_config(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineConfigError, match="cannot be read: No such file"):
        read_engine_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [("20GiB", 20480), ("20G", 20480), ("20 g", 20480), ("20480MiB", 20480), ("1GB", 954), ("1.5GiB", 1536)],
)
def test_sizes_of_memory(text: str, mebibytes: int) -> None:
    assert memory_mb(text) == mebibytes


@pytest.mark.parametrize("text", ["", "much", "-3GiB", "0", "3XiB", "5i"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size of memory"):
        memory_mb(text)
