"""Reads an HTTP/1.1 response without I/O, and says whether a simulated engine's stream is whole."""

import re
from collections.abc import Callable

from xxhash import xxh3_64_hexdigest

HEAD_LIMIT = 65_536
MARK = b": xxh3="
LAST = re.compile(rb": xxh3=([0-9a-f]{16}) bytes=(\d+)\n\ndata: \[DONE\]\n\n")
"""How a stream ends that was asked for with `x-sim-checksum: 1`; the sum is over all bytes before this comment."""
DONE = b"data: [DONE]\n\n"


class FramingError(ValueError):
    """Bytes that are no HTTP/1.1 response."""


class Reply:
    """One response, fed with bytes in any split. What follows it stays unread."""

    __slots__ = ("_left", "_rest", "_state", "body", "done", "headers", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is there."""
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.body = bytearray()
        self.done = False
        self.keep_alive = True
        self._rest = bytearray()
        self._left = 0
        self._state: Callable[[], bool] = self._head

    def feed(self, data: bytes) -> int:
        """The number of body bytes that `data` brought.

        Raises:
            FramingError: when the bytes are no response.
        """
        before = len(self.body)
        self._rest += data
        while not self.done and self._state():
            pass
        return len(self.body) - before

    def close(self) -> bool:
        """Tells it that the connection ended; whether the response is whole."""
        self.done = self.done or self._state == self._until_close
        return self.done

    # Each state consumes what it can, and says whether there is more to do with the bytes at hand.

    def _head(self) -> bool:
        line_by_line = self._up_to(b"\r\n\r\n")
        if line_by_line is None:
            return False
        first, *lines = line_by_line.decode("latin-1").split("\r\n")
        found = re.match(r"HTTP/1\.1 (\d{3})( |$)", first)
        if found is None:
            raise FramingError(f"no status line: {first[:80]!r}")
        self.status = int(found[1])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.keep_alive = self.headers.get("connection", "").lower() != "close"
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            self._state = self._size
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
            self._state = self._length
        else:
            self.keep_alive = False
            self._state = self._until_close
        return True

    def _size(self) -> bool:
        line = self._up_to(b"\r\n")
        if line is None:
            return False
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise FramingError(f"no chunk size: {bytes(line[:80])!r}") from None
        self._state = self._chunk if self._left else self._trailer
        return True

    def _chunk(self) -> bool:
        self._take()
        if self._left or len(self._rest) < len(b"\r\n"):
            return False
        if not self._rest.startswith(b"\r\n"):
            raise FramingError("a chunk is longer than its size")
        del self._rest[:2]
        self._state = self._size
        return True

    def _trailer(self) -> bool:
        line = self._up_to(b"\r\n")
        self.done = line is not None and not line
        return line is not None

    def _length(self) -> bool:
        self._take()
        self.done = self._left == 0
        return False

    def _until_close(self) -> bool:
        self.body += self._rest
        self._rest.clear()
        return False

    def _take(self) -> None:
        part = self._rest[: self._left]
        self.body += part
        self._left -= len(part)
        del self._rest[: len(part)]

    def _up_to(self, end: bytes) -> bytearray | None:
        """The bytes before `end`, which are consumed with it."""
        at = self._rest.find(end)
        if at < 0:
            if len(self._rest) > HEAD_LIMIT:
                raise FramingError(f"no end of line in {HEAD_LIMIT} bytes")
            return None
        part = self._rest[:at]
        del self._rest[: at + len(end)]
        return part


def fault(body: bytes | bytearray) -> str | None:
    """What is wrong with a simulated engine's stream, in one word; None when each byte is there.

    `error_frame`: it ended in an error. `no_done`: it just ended. `no_checksum`: nobody signed it. `length`: bytes were
    lost or added. `checksum`: bytes were altered.
    """
    at = body.rfind(MARK)
    found = LAST.fullmatch(body, at) if at >= 0 else None
    if found is None:
        if b'data: {"error"' in body[-4096:]:
            return "error_frame"
        return "no_checksum" if body.endswith(DONE) else "no_done"
    if int(found[2]) != at:
        return "length"
    return None if xxh3_64_hexdigest(bytes(body[:at])).encode() == found[1] else "checksum"
