"""A request as an engine takes it, and the pieces of its reply: OpenAI's completions and chat, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from nebula_router.control_plane.phases import DEFAULT_MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nebula_router.control_plane.request import RequestMetadata

_DONE: Final = b"[DONE]"


def encoded(request: RequestMetadata, model: str) -> tuple[str, bytes]:
    """Return the path and the body that ask `model` for the request's reply, streamed and with its usage."""
    is_chat = request.messages is not None
    asked = {"messages": request.messages} if is_chat else {"prompt": request.prompt}
    body = {
        "model": model,
        **asked,
        "max_tokens": request.max_tokens or DEFAULT_MAX_TOKENS,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.user_id is not None:
        body["user"] = request.user_id
    return "/v1/chat/completions" if is_chat else "/v1/completions", orjson.dumps(body)


class Piece(NamedTuple):
    """What one event of a reply adds."""

    text: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    error: dict[str, Any] | None


class Pieces:
    """Cuts the bytes of an event stream into pieces; an event may come in several parts."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, body: bytes) -> Iterator[Piece]:
        """Return the pieces that are complete by now."""
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != _DONE:
                yield _piece(orjson.loads(data))


def error_message(body: bytes, status: int) -> str:
    """Return what an error's body says, or its status where it says nothing."""
    try:
        error = orjson.loads(body)
        return str(error.get("error", error)["message"])
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        return f"the engine answered {status}"


def _piece(event: dict[str, Any]) -> Piece:
    choice: dict[str, Any] = next(iter(event.get("choices") or ()), {})
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return Piece(text, choice.get("finish_reason"), event.get("usage"), event.get("error"))
