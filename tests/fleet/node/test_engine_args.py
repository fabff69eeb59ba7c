import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nebula_router.fleet.engine.engine_args import EngineArgs, EngineConfigError

YAML = """
model: org/m
tensor-parallel-size: 2
gpu_memory_utilization: 0.9
enforce-eager: true
enable-prefix-caching: false
disable-log-stats: false
served-model-name: [a, b]
lora-modules: []
quantization: null
compilation-config:
  pass_config: {fuse: true}
"""


def test_a_yaml_becomes_the_flags_that_vllm_makes_of_it() -> None:
    args = EngineArgs.of(yaml.safe_load(YAML))
    assert args.words() == (
        *("--model", "org/m", "--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.9"),
        *("--enforce-eager", "--no-enable-prefix-caching", "--served-model-name", "a", "b"),
        *("--compilation-config", '{"pass_config": {"fuse": true}}'),
    )
    assert args.value("tensor-parallel-size") == "2"
    assert args.value("enforce-eager") == ""
    assert args.value("enable-prefix-caching") is None
    assert args.has("enable-prefix-caching")
    assert not args.has("seed")
    assert args.values("served-model-name") == ("a", "b")


def test_a_command_line_comes_after_the_yaml_and_wins() -> None:
    words = ("--max_model_len=8k", "-tp", "4", "--seed", "-1", "-O3", "--trust-remote-code")
    args = EngineArgs.of({"tensor-parallel-size": 2}, words)
    assert args.number("tensor-parallel-size", 1) == 4
    assert args.value("max-model-len") == "8k"
    assert args.value("seed") == "-1"
    assert args.words()[-4:] == ("--seed", "-1", "-O3", "--trust-remote-code")


def test_json_may_come_whole_or_key_by_key() -> None:
    whole = EngineArgs.of({"kv-transfer-config": {"kv_role": "kv_both"}})
    assert whole.document("kv-transfer-config") == {"kv_role": "kv_both"}
    keys = EngineArgs.of({}, ("--kv-events-config.enable_kv_cache_events", "true", "--kv-events-config.topic=t"))
    assert keys.document("kv-events-config") == {"enable_kv_cache_events": True, "topic": "t"}
    assert keys.has("kv-events-config")
    assert EngineArgs.of({"kv-events-config": "nonsense"}).document("kv-events-config") is None
    assert keys.document("kv-transfer-config") is None


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(EngineConfigError, match=r"'model': expected a flag"):
        EngineArgs.of({}, ("model", "x"))
    with pytest.raises(EngineConfigError, match="--data-parallel-size two: expected an integer"):
        EngineArgs.of({"data-parallel-size": "two"}).number("data-parallel-size", 1)
    with pytest.raises(EngineConfigError, match="name of an engine's flag"):
        EngineArgs.of({"--": 1})


_NAMES = st.from_regex(r"[a-z]{1,8}(-[a-z]{1,5}){0,2}", fullmatch=True).filter(
    lambda name: not name.startswith(("no-", "disable-")) and name not in {"headless", "grpc"}
)
_VALUES = st.booleans() | st.integers(-9, 9) | st.from_regex(r"[a-z/]{1,9}", fullmatch=True)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(_NAMES, _VALUES, max_size=6))
def test_flags_read_back_are_the_same(told: dict[str, object]) -> None:
    args = EngineArgs.of(told)
    assert EngineArgs.of({}, args.words()) == args
    for name, value in told.items():
        if not isinstance(value, bool):
            assert args.value(name) == str(value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=6))
def test_no_command_line_breaks_it(words: list[str]) -> None:
    try:
        args = EngineArgs.of({}, words)
    except EngineConfigError:
        return
    json.dumps(args.words())
