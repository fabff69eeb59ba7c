"""What Python says of itself in the gateway's log: lines of the core's own form, on the same stream."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from nebula_router.config import GatewaySettings

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_NAMES: Final = {level: name.upper() for name, level in _LEVELS.items()} | {logging.CRITICAL: "ERROR"}


def start_python_log(settings: GatewaySettings) -> None:
    """Write all lines from `gateway.log_level` on to stderr, as `gateway.log_format` says. Libraries warn, no more."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, _LEVELS[settings.log_level]), force=True)
    logging.getLogger("nebula_router").setLevel(_LEVELS[settings.log_level])


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {_level(record):>5} {record.name}: {_message(self, record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"timestamp": _time(record), "level": _level(record)}
        return orjson.dumps(line | {"message": _message(self, record), "target": record.name}).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname)


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The text, with the trace of an error under it."""
    text = record.getMessage()
    if record.exc_info:
        return f"{text}\n{formatter.formatException(record.exc_info)}"
    return text
