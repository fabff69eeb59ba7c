"""The Rust core. Only `nebula_router.core` imports it."""

from collections.abc import Iterable, Sequence
from typing import Final, final

__all__ = [
    "ERROR_KINDS",
    "PATHS",
    "POLICIES",
    "Core",
    "Exchange",
    "Log",
    "NebulaError",
    "Sim",
    "__version__",
    "chain_from_text",
    "chain_from_tokens",
    "start_log",
]

__version__: Final[str]
PATHS: Final[list[str]]
POLICIES: Final[list[str]]
ERROR_KINDS: Final[list[str]]

class NebulaError(Exception):
    """A request that got no reply."""

    status: int
    code: str
    body: bytes
    retry_after_s: int | None

@final
class Core:
    """Router and wire of one gateway."""

    def __new__(cls, settings: bytes) -> Core: ...
    def wakeup_fd(self) -> int: ...
    def dispatch(self, path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Exchange: ...
    def drain(self) -> list[int]: ...
    def set_engines(self, engines: bytes) -> None: ...
    def drain_engine(self, name: str, on: bool) -> None: ...
    def engines(self) -> bytes: ...
    def models(self) -> bytes: ...
    def metrics(self) -> str: ...
    def inflight(self) -> int: ...
    def close(self) -> None: ...
    def cut(self) -> None: ...
    def stop(self) -> None: ...

@final
class Exchange:
    """One request in flight."""

    @property
    def id(self) -> int: ...
    @property
    def request_id(self) -> bytes: ...
    def take(
        self,
    ) -> tuple[int | None, list[tuple[bytes, bytes]] | None, bytes, bool] | None: ...
    def cancel(self) -> None: ...

@final
class Sim:
    """A simulated engine."""

    def __new__(cls, settings: bytes) -> Sim: ...
    @property
    def url(self) -> str: ...
    def stop(self) -> None: ...

@final
class Log:
    """The log of this process."""

    def close(self) -> None: ...

def start_log(format: str, level: str) -> Log: ...
def chain_from_text(model: str, salt: str | None, block: int, text: bytes) -> list[int]: ...
def chain_from_tokens(model: str, salt: str | None, block: int, tokens: Sequence[int]) -> list[int]: ...
