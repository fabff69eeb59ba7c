"""The gateway as a user starts it: a process of its own, by its command line."""

import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from tests.e2e.engine.engine import MODEL
from tests.e2e.metrics import total
from tests.e2e.process import Server
from tests.e2e.wait import until

START_WITHIN_S = 30
STOP_WITHIN_S = 40  # a little more than the default grace

ENGINE_HEADER = "x-nebula-engine"


class Gateway(Server):
    """``nebula gateway`` in front of some engines."""

    def __init__(self, name: str, folder: Path, engines: Sequence[str], policy: str, *more: str) -> None:
        super().__init__(name, folder)
        self.engines = engines
        self.policy = policy
        self.more = more

    def start(self, ready_path: str = "/ready") -> None:
        """Starts it with no setting but those given here, and returns once ``ready_path`` answers."""
        self.launch(
            [
                *(sys.executable, "-m", "nebula_router", "gateway", "--listen", f"127.0.0.1:{self.port}"),
                *(word for url in self.engines for word in ("--engine", url)),
                *("--policy", self.policy, *self.more),
            ],
            {name: value for name, value in os.environ.items() if not name.startswith("NEBULA_")},
        )
        self.await_ok(ready_path, START_WITHIN_S)

    def await_engines(self, count: int) -> None:
        """Returns once ``count`` engines have answered through it: probes have found them all."""
        seen: set[str] = set()

        def all_seen() -> bool:
            body = {"model": MODEL, "prompt": uuid.uuid4().hex, "max_tokens": 1}
            answer = httpx.post(f"{self.url}/v1/completions", json=body, trust_env=False, timeout=30)
            if answer.is_success:
                seen.add(answer.headers[ENGINE_HEADER])
            return len(seen) >= count

        until(f"replies from {count} engines through {self.name}", all_seen, START_WITHIN_S)

    def close(self) -> int:
        """Ends it as an operator does and gives back its exit code."""
        return self.stop(STOP_WITHIN_S)

    def total(self, name: str) -> float:
        """A metric of the gateway summed over its engines, by its exact name."""
        return total(self.url, name)

    def ledger(self) -> float:
        """All load that the gateway believes to be out there: nothing may be left of it when no request is."""
        return self.total("nebula_running_requests") + self.total("nebula_prefill_tokens")

    def ask(self, path: str, **query: object) -> Any:
        """What an admin endpoint answers, read from JSON."""
        answer = httpx.get(self.url + path, params=query, trust_env=False, timeout=30)  # type: ignore[arg-type]
        return answer.raise_for_status().json()

    def post(self, path: str, content: bytes) -> httpx.Response:
        """The answer to a body that no client library would send."""
        headers = {"content-type": "application/json"}
        return httpx.post(self.url + path, content=content, headers=headers, trust_env=False, timeout=30)
