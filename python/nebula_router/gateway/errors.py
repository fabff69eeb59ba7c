"""Refusals of the gateway itself, in OpenAI's error body; the core makes its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from starlette.types import Send

FAULT: Final = "the gateway failed on this request"
"""All that a client learns of a fault of this program; the traceback is in the log."""

_TYPES: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    413: "RequestTooLargeError",
}


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """Return OpenAI's error body for `status`."""
    error = {"message": message, "type": _TYPES.get(status, "InternalServerError"), "param": param, "code": status}
    return orjson.dumps({"error": error})


async def send_error(send: Send, status: int, body: bytes, *extra: tuple[bytes, bytes]) -> None:
    """Answer with an error body and headers of its own."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
