"""The settings of a simulated engine, and the document that the core gets of them."""

import json
from dataclasses import asdict

import pytest

from nebula_router.presets import PRESETS
from nebula_router.sim_settings import SimSettings
from nebula_router.sources import ConfigError, load


def test_the_simulator_gets_every_field() -> None:
    sim = SimSettings(
        kv_blocks=100,
        step_base_us=1,
        data_parallel_size=2,
        kv_events_config='{"enable_kv_cache_events": true, "hwm": 5}',
        kv_events_hashes="bytes",
        kv_role="kv_both",
        faults=("reset", "slow;factor=3"),
    )
    document = json.loads(sim.core_json())
    assert document.pop("engine") == {
        "block_size": 16,
        "kv_blocks": 100,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 32768,
        "timing": asdict(PRESETS[sim.preset].timing) | {"step_base_us": 1.0},
    }
    assert document == {
        "listen": "127.0.0.1:8000",
        "model": "tiny",
        "served_model_names": [],
        "name": "sim",
        "request_us": 0.0,
        "speed": 1.0,
        "seed": 0,
        "data_parallel_size": 2,
        "max_num_queued_reqs": None,
        "max_num_queued_tokens": None,
        "faults": ["reset", "slow;factor=3"],
        "kv_events": {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": "tcp://*:5557",
            "replay_endpoint": None,
            "buffer_steps": 10_000,
            "hwm": 5,
            "max_queue_size": 100_000,
            "topic": "",
            "encoding": "map",
            "hashes": "bytes",
        },
        "kv_transfer": {
            "role": "kv_both",
            "load_failure_policy": "fail",
            "lease_s": 30.0,
            "us_per_token": 5.0,
        },
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on", "Invalid JSON"),
        ("[]", "an object"),
        ('{"endpiont": "tcp://*:1"}', "endpiont: unknown key, known are enable_kv_cache_events"),
        ('{"hwm": -1}', "hwm: expected greater than or equal to 0"),
        ('{"publisher": "kafka"}', "publisher: expected 'null' or 'zmq'"),
    ],
)
def test_what_vllm_would_not_take_as_its_events_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"sim\.kv_events_config") as caught:
        load({"sim": {"kv_events_config": text}})
    assert said in str(caught.value)
    assert "for example" in str(caught.value)
