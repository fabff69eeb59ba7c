"""One crossing: from Python into the core's thread and back, without a socket on the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import uvloop

from nebula_router.config import Settings
from nebula_router.core import Core, NebulaError

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CROSSINGS = 2_000
"""Per round, spread over the requests in flight."""


async def cross(core: Core, times: int) -> None:
    """Send what the core refuses at once: an empty body is read on its thread and answered from there."""
    for _ in range(times):
        with pytest.raises(NebulaError):
            await core.dispatch("/v1/chat/completions", b"", [], b"").part()


@pytest.mark.parametrize("in_flight", [1, 8, 64])
def test_one_crossing(benchmark: BenchmarkFixture, in_flight: int) -> None:
    """Time `CROSSINGS` crossings with `in_flight` at once."""
    loop = uvloop.new_event_loop()
    settings = Settings.model_validate({"gateway": {"log_requests": False}})

    async def start() -> Core:
        return Core(settings.core_json())

    core = loop.run_until_complete(start())

    async def batch() -> None:
        await asyncio.gather(*[cross(core, CROSSINGS // in_flight) for _ in range(in_flight)])

    benchmark.extra_info["crossings"] = CROSSINGS
    benchmark.pedantic(lambda: loop.run_until_complete(batch()), rounds=5, warmup_rounds=1)
    core.stop()
    loop.close()
