"""The server that is asked: its address, and the few questions that need no load generator."""

import http.client
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nebula_router.bench.error import BenchError
from nebula_router.bench.live.options import Options

ERROR_BYTES = 64 * 1024
"""Of an error's body that are read."""
SHOWN = 300
"""Characters of an error that are shown."""


@dataclass(frozen=True)
class Server:
    """Where requests go, and the headers that each has."""

    url: str
    headers: dict[str, str]
    timeout_s: float

    @classmethod
    def of(cls, options: Options) -> "Server":
        """The server that the options name. Its key is in OPENAI_API_KEY; a header of that name goes before it.

        Raises:
            BenchError: A URL or a header that is none.
        """
        headers = pairs("--header", options.header)
        key = os.environ.get("OPENAI_API_KEY")
        if key and "authorization" not in {name.lower() for name in headers}:
            headers["Authorization"] = f"Bearer {key}"
        url = options.server
        try:
            parts = urlsplit(url)
            good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or "@" in url or "?" in url or "#" in url:
            shown = "" if "@" in url else f" {url}"
            raise BenchError(f"--base-url{shown}: expected http://host:port without a password or a query")
        return cls(url, headers, options.request_timeout_sec)

    def first_model(self) -> str:
        """The first of the models that the server names.

        Raises:
            BenchError: It names none, or does not answer.
        """
        with self.ask("/v1/models") as reply:
            body = reply.read(1 << 20)
        try:
            name: str = json.loads(body)["data"][0]["id"]
        except (ValueError, LookupError, TypeError):
            raise BenchError(f"{self.url}/v1/models names no model; --model says which") from None
        return name

    @contextmanager
    def ask(self, path: str, body: dict[str, Any] | None = None) -> Iterator[http.client.HTTPResponse]:
        """The reply to GET, or to POST of JSON where there is a body.

        Raises:
            BenchError: There is no reply of status 200.
        """
        parts = urlsplit(self.url)
        place = f"{self.url}{path}"
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(parts.netloc, timeout=self.timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=self.timeout_s)
        headers = {"Content-Type": "application/json", **self.headers} if body is not None else self.headers
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request("GET" if body is None else "POST", parts.path + path, data, headers)
            reply = connection.getresponse()
            if reply.status != http.HTTPStatus.OK:
                said = _message(reply.read(ERROR_BYTES))
                raise BenchError(f"{place} answers {reply.status}: {said}")
            yield reply
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise BenchError(f"{place}: {str(error) or type(error).__name__}") from None
        finally:
            connection.close()


def pairs(flag: str, values: tuple[str, ...]) -> dict[str, str]:
    """What `KEY=VALUE` options say.

    Raises:
        BenchError: One that has no `=`; its value is not told, it may be a secret.
    """
    split = [value.partition("=") for value in values]
    if any(not (key and sign) for key, sign, _ in split):
        raise BenchError(f"{flag}: expected KEY=VALUE, such as x-priority=1")
    return {key: value for key, _, value in split}


def _message(body: bytes) -> str:
    """What an error's body says to people."""
    try:
        document = json.loads(body)
        error = document.get("error", document)
        said = error.get("message") or document.get("detail")
    except (ValueError, AttributeError):
        said = None
    text = said if isinstance(said, str) else body.decode(errors="replace")
    return " ".join(text.split())[:SHOWN] or "nothing"
