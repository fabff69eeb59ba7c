"""A recorded workload: its bytes, and what they are."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from nebula_router.simulate.workload import FORMATS
from nebula_router.sources import ConfigError

_REPLIES: Final = frozenset({"gpt", "assistant", "chatgpt", "bard", "bing"})
_REQUEST: Final = "nebula.request"
_LOOKED_AT: Final = 100
"""Lines of a log that may stand before its first request."""


@dataclass(frozen=True)
class Trace:
    """Requests that someone recorded."""

    name: str
    """Of the file, without its folders."""
    text: bytes
    kind: str
    """One of `FORMATS`."""
    guessed: bool
    """Whether its beginning told the format."""
    sha256: str
    """Of the whole file."""

    def first(self, requests: int) -> "Trace":
        """The same with its first requests alone; of chats, those that hold them."""
        if self.kind == "sharegpt":
            return replace(self, text=orjson.dumps(list(_first_chats(self.text, requests))))
        return replace(self, text=b"\n".join(_first_lines(self.text, requests, log=self.kind == "decisions")))


def open_trace(file: str, kind: str | None) -> Trace:
    """The trace in `file`; without `kind`, its format is guessed from how it begins.

    Raises:
        ConfigError: The file cannot be read, or looks like none of the formats.
    """
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--trace {file}: cannot be read: {error.strerror}") from None
    found = kind or guess(text)
    if found is None:
        formats = ", ".join(FORMATS)
        raise ConfigError(f"--trace {file}: its beginning is of no known format; --format says which: {formats}")
    return Trace(Path(file).name, text, found, kind is None, hashlib.sha256(text).hexdigest())


def guess(text: bytes) -> str | None:
    """The format of a trace that begins like this; None where it is none that is known."""
    if text.lstrip()[:1] == b"[":
        return "sharegpt"
    lines = (line for line in text[: 1 << 24].split(b"\n") if line.strip())
    for _, line in zip(range(_LOOKED_AT), lines, strict=False):
        row = _object(line)
        if "hash_ids" in row:
            return "mooncake"
        if "conversations" in row or "messages" in row:
            return "sharegpt"
        if str(row.get("target", "")).startswith("nebula"):
            return "decisions"
    return None


def _object(line: bytes) -> Mapping[str, Any]:
    """The JSON object in a line; empty where there is none."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}


def _first_lines(text: bytes, requests: int, *, log: bool) -> Iterator[bytes]:
    """Lines until so many of them were requests; all others pass, so that lines keep their numbers."""
    seen = 0
    for line in text.split(b"\n"):
        yield line
        seen += _object(line).get("target") == _REQUEST if log else bool(line.strip())
        if seen == requests:
            return


def _first_chats(text: bytes, requests: int) -> Iterator[Any]:
    """Chats until so many replies have been seen; what is no chat passes, so that the core can say what is wrong."""
    try:
        chats = orjson.loads(text)
    except orjson.JSONDecodeError:
        chats = [_object(line) for line in text.split(b"\n") if line.strip()]
    seen = 0
    for chat in chats if isinstance(chats, list) else [chats]:
        if seen >= requests:
            return
        said = (chat.get("conversations") or chat.get("messages") or []) if isinstance(chat, dict) else []
        seen += sum(isinstance(it, dict) and it.get("from", it.get("role")) in _REPLIES for it in said)
        yield chat
