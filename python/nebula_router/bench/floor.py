"""The least that a Python server can do with a request: read the body, parse it, answer. For scale, not for use.

`python -m nebula_router.bench.floor starlette 9000` runs one as the gateway runs: under granian, in one
process, on uvloop.
"""

import asyncio
import signal
import sys

import orjson
import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nebula_router.bench import net
from nebula_router.bench.upstream import CHAT, chat_reply

REPLY = chat_reply()


async def _parse(request: Request) -> Response:
    orjson.loads(await request.body())
    return Response(REPLY, media_type="application/json")


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """The same without Starlette."""
    if scope["type"] != "http":
        return
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    orjson.loads(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(REPLY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": REPLY, "more_body": False})


APPS: dict[str, ASGIApp] = {"starlette": Starlette(routes=[Route(CHAT, _parse, methods=["POST"])]), "asgi": raw}


async def serve(app: ASGIApp, port: int) -> None:
    """Serves `app` on loopback until SIGTERM."""
    server = Server(
        app,
        address=net.HOST,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


if __name__ == "__main__":
    uvloop.run(serve(APPS[sys.argv[1]], int(sys.argv[2])))
