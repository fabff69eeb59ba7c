"""A gateway whose answers are fixed, over real HTTP."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Canned:
    """What it answers by path, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, str | None, bytes]] = []

    def says(self, path: str, answer: object, status: int = 200) -> None:
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.answers[path] = (status, body)

    @contextmanager
    def served(self, port: int = 0) -> Iterator[str]:
        """Its URL, as long as the block lasts."""
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                canned.asked.append((self.path, self.headers.get("Authorization"), self.rfile.read(length)))
                missing = (404, b'{"error": {"message": "no such path"}}')
                status, body = canned.answers.get(self.path.partition("?")[0], missing)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the base class calls it so

            def log_message(self, *_: Any) -> None:
                """A test's output is its own."""

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
