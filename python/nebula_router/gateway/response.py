"""Answers in JSON."""

from __future__ import annotations

import orjson
from starlette.responses import Response


def json_response(content: object, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def raw_json_response(content: bytes) -> Response:
    """Answer with what is JSON already."""
    return Response(content, media_type="application/json")
