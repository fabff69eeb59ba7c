"""A client that says exactly what a test wants and reads exactly what comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.gateway.wait import WITHIN_S

from nebula_router.bench.reply import Reply

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), WITHIN_S)

    async def post(self, path: str, body: bytes, *headers: str) -> None:
        """A request with a body of known length."""
        await self.send(head(path, f"content-length: {len(body)}", *headers) + body)

    async def reply(self, reply: Reply | None = None) -> Reply:
        """The next reply, or the rest of one, as far as it came: ``done`` says whether it is whole."""
        reply, data = reply or Reply(), b""
        with suppress(ConnectionError):
            while not reply.done and (more := await self.read()):
                data = (data + more).removeprefix(CONTINUE)
                if not CONTINUE.startswith(data):
                    reply.feed(data)
                    data = b""
        if not reply.done:
            reply.close()
        return reply

    async def begun(self, *, after: bytes) -> Reply:
        """A reply whose body so far ends in ``after``."""
        reply = Reply()
        while not reply.body.endswith(after):
            data = await self.read()
            assert data, f"the connection ended after {bytes(reply.body)!r}"
            reply.feed(data)
        return reply

    async def read(self, most: int = 65_536) -> bytes:
        return await asyncio.wait_for(self.reader.read(most), WITHIN_S)

    def leave(self) -> None:
        """Ends the connection at once."""
        self.writer.transport.abort()


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: gateway", *headers]).encode() + b"\r\n\r\n"


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
