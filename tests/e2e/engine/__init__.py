"""Real engines for tests: installed once into the user's cache, then started, killed and restarted at will."""

from tests.e2e.engine.engine import Engine
from tests.e2e.engine.install import Environment, InstallError, prepare

__all__ = ["Engine", "Environment", "InstallError", "prepare"]
