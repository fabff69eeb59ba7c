from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fleet.node.machine import Machine


@pytest.fixture
async def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    """A machine whose nodes need not give gateways time to hear of a drain."""
    monkeypatch.setattr("nebula_router.fleet.engine.keeper._IDLE_EVERY_S", 0.05)
    own = Machine(tmp_path)
    yield own
    await own.clear()
