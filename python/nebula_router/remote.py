"""A gateway that runs elsewhere, asked over HTTP."""

import http.client
import json
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from nebula_router.config import GatewaySettings
from nebula_router.sources import ConfigError

MOST_BYTES: Final = 32 * 1024 * 1024
"""Of an answer that are read; no answer of a gateway comes near."""
_ERROR_BYTES: Final = 64 * 1024
_SHOWN: Final = 300
_EXPECTED: Final = "--url: expected http://host:port, for example http://127.0.0.1:8081"


class RemoteError(ConfigError):
    """No answer that can be used; the text says what to do.

    Args:
        text: For a person.
        passing: Whether the same question may be answered later.
        status: The HTTP status of the answer, if there was one.
    """

    def __init__(self, text: str, *, passing: bool = False, status: int | None = None) -> None:
        super().__init__(text)
        self.passing = passing
        self.status = status


class Answer(BaseModel):
    """A document that a gateway answers with; fields that a later one adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Load(Answer):
    """What is booked on a rank, and how full the engine says its KV cache is."""

    prefill_tokens: float = 0
    resident_tokens: float = 0
    running: int = 0
    kv_usage: float | None = None


A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class Remote:
    """Where the gateway is, and the key that it asks for."""

    url: str
    key: str | None = field(repr=False)
    timeout_s: float

    @classmethod
    def of(cls, settings: GatewaySettings, url: str | None, timeout_s: float) -> "Remote":
        """The gateway at `url`; without one, the one that these settings would start on this machine.

        Raises:
            ConfigError: The URL is none.
        """
        secret = settings.admin_token or next(iter(settings.api_keys), None)
        key = secret.get_secret_value() if secret else None
        return cls(own_url(settings) if url is None else _checked(url), key, timeout_s)

    def text(self, path: str) -> str:
        """The answer to GET.

        Raises:
            RemoteError: There is none of status 200.
        """
        return self._ask("GET", path, None).decode(errors="replace")

    def read(self, kind: type[A], path: str, body: bytes | None = None) -> A:
        """The document that answers GET, or POST where there is a body.

        Raises:
            RemoteError: There is none of status 200, or it is of another kind.
        """
        return self.parse(kind, path, self.document(path, body))

    def document(self, path: str, body: bytes | None = None, method: str | None = None) -> dict[str, Any]:
        """The same as it came, whatever it holds; of another method where one is named.

        Raises:
            RemoteError: There is none of status 200, or it is no JSON object.
        """
        answer = self._ask(method or ("GET" if body is None else "POST"), path, body)
        try:
            document = json.loads(answer)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self._other(path, "it is no JSON object")
        return document

    def parse(self, kind: type[A], path: str, document: dict[str, Any]) -> A:
        """A document that came from `path`, with its types.

        Raises:
            RemoteError: It is of another kind.
        """
        try:
            return kind.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise self._other(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        parts = urlsplit(self.url)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(parts.netloc, timeout=self.timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=self.timeout_s)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            if reply.status != HTTPStatus.OK:
                raise self._refused(path, reply.status, _message(reply.read(_ERROR_BYTES)))
            whole = reply.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RemoteError(
                f"no gateway answers on {self.url} ({reason}); start one, as `nebula gateway --engine URL`, "
                "or name another with --url",
                passing=True,
            ) from None
        finally:
            connection.close()
        if len(whole) > MOST_BYTES:
            raise self._other(path, f"it is longer than {MOST_BYTES} bytes")
        return whole

    def _refused(self, path: str, status: int, said: str) -> RemoteError:
        hint = ""
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            hint = "; the token is read from NEBULA_GATEWAY__ADMIN_TOKEN, or from the gateway's own file by --config"
        elif status == HTTPStatus.METHOD_NOT_ALLOWED or (
            status == HTTPStatus.NOT_FOUND and _is_of_the_path(said, path.partition("?")[0])
        ):
            hint = "; if that is a nebula gateway, its version is another one"
        text = f"{self.url}{path.partition('?')[0]} answers {status}: {said}{hint}"
        return RemoteError(text, passing=status >= HTTPStatus.INTERNAL_SERVER_ERROR, status=status)

    def _other(self, path: str, why: str) -> RemoteError:
        place = f"{self.url}{path.partition('?')[0]}"
        return RemoteError(f"{place} does not answer as a gateway of this version does: {why}; --url names another")


def own_url(settings: GatewaySettings) -> str:
    """Where a client on the same machine reaches the gateway that these settings start."""
    host, port = settings.address
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _checked(url: str) -> str:
    """The URL without a slash or a /v1 at its end."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in url:
        raise ConfigError(_EXPECTED)
    if parts.query or parts.fragment or parts.path.rstrip("/") not in {"", "/v1"}:
        raise ConfigError(f"{_EXPECTED}, without a path")
    return f"{parts.scheme}://{parts.netloc}"


def _is_of_the_path(said: str, path: str) -> bool:
    """Whether a 404 means that there is no such path, and not that there is nothing of some name."""
    return path in said or said in {"nothing", "Not Found"} or said.startswith("<")


def _message(body: bytes) -> str:
    """What an error's body says to people."""
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = None
    text = said if isinstance(said, str) else body.decode(errors="replace")
    return " ".join(text.split())[:_SHOWN] or "nothing"
