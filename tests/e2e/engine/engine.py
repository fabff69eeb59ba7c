"""One real vLLM engine on the CPU, with the tiny model."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.engine.install import Environment
from tests.e2e.metrics import total
from tests.e2e.process import Server, free_port

MODEL = "tiny"
BLOCK = 32  # tokens: the smallest that the CPU build accepts
CONTEXT = 4096
START_WITHIN_S = 240  # 15 to 30 s alone on two cores
STOP_WITHIN_S = 20


class Engine(Server):
    """An engine that starts, stops, dies and comes back under the same address."""

    def __init__(self, environment: Environment, name: str, folder: Path, options: Sequence[str] = ()) -> None:
        super().__init__(name, folder)
        self.environment = environment
        self.options = options  # the last of two flags counts
        self.events = f"tcp://127.0.0.1:{free_port()}"
        self.replay = f"tcp://127.0.0.1:{free_port()}"

    def start(self) -> None:
        """Launches it without waiting, so that several load at once; ``await_ready`` does the waiting."""
        python, model = str(self.environment.python), str(self.environment.model)
        # Only an address with a star is bound to; another one is dialled.
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.events.replace("127.0.0.1", "*"),
            "replay_endpoint": self.replay.replace("127.0.0.1", "*"),
        }
        self.launch(
            [
                *(python, "-m", "vllm.entrypoints.cli.main", "serve", model),
                *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port)),
                *("--max-model-len", str(CONTEXT), "--block-size", str(BLOCK), "--num-gpu-blocks-override", "2048"),
                *("--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
                *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--disable-uvicorn-access-log"),
                *("--kv-events-config", json.dumps(events)),
                *self.options,
            ],
            {
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
                # POST /reset_prefix_cache
                "VLLM_SERVER_DEV_MODE": "1",
                "VLLM_HOST_IP": "127.0.0.1",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "OMP_NUM_THREADS": "1",
                # With a process of its own for the model, two engines on two cores stall for seconds.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            },
        )

    def await_ready(self) -> None:
        """Returns once it serves."""
        self.await_ok("/health", START_WITHIN_S)

    def close(self) -> None:
        """Ends it if it runs."""
        self.stop(STOP_WITHIN_S)

    def total(self, name: str) -> float:
        """A metric of this engine, by its exact name."""
        return total(self.url, name)
