"""The kinds of value that settings have: what they are written as, and what is refused."""

import json
import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from nebula_router.kv_events import parsed

_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:/@\s]+):(?P<port>[0-9]{1,5})")
_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[(?P<ip6>[0-9A-Fa-f:.]+)\])(?::[0-9]+)?")
_MAX_PORT: Final = 65535


class Flag:
    """Names the command-line flags of a setting where `--name-of-the-setting` is not what people type.

    No name at all keeps a secret off the command line, which every user of a machine can read.
    """

    def __init__(self, *names: str) -> None:
        self.names = names


class Group(BaseModel):
    """A group of settings: frozen, no name that is not known, no value in an error message."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )


def address(listen: str) -> tuple[str, int]:
    """Host and port of `host:port`; the brackets of an IPv6 host are taken off.

    Raises:
        ValueError: `listen` is something else.
    """
    found = _ADDRESS.fullmatch(listen)
    if found is None or int(found["port"]) > _MAX_PORT:
        raise ValueError("expected host:port, for example 127.0.0.1:8081 or [::1]:8081")
    return found["host"].strip("[]"), int(found["port"])


def checked_address(listen: str) -> str:
    """The text, if it is an address."""
    address(listen)
    return listen


def checked_kv_events(text: str) -> str:
    """The text, if it is what vLLM's flag takes."""
    parsed(text)
    return text


def checked_events(text: str) -> str:
    """The text, if it says where an engine's KV events are."""
    if text not in {"auto", "guess", "dial_in", "off"} and not re.match(r"(tcp|ipc)://\S", text):
        raise ValueError("expected auto, guess, dial_in, off, or an address like tcp://host:5557")
    return text


def engine_url(url: str) -> str:
    """The URL as scheme://host[:port]: a slash at its end is dropped, anything more is refused."""
    expected = "expected http://host:port, for example http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        port = parts.port
        host = _AUTHORITY.fullmatch(parts.netloc.rpartition("@")[2])
        if host is not None and host["ip6"]:
            IPv6Address(host["ip6"])
    except ValueError as error:
        raise ValueError(f"{expected} ({error})") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{expected}, without a user name or password")
    if parts.scheme not in {"http", "https"} or host is None or port == 0 or re.search(r"\s", url):
        raise ValueError(expected)
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{expected}, without a path: the gateway adds the path of each request")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def host_and_port(engine: Mapping[str, Any]) -> str:
    """Host and port of an engine's URL."""
    parts = urlsplit(engine["url"])
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{parts.hostname}]:{port}" if ":" in (parts.hostname or "") else f"{parts.hostname}:{port}"


def items(value: object) -> object:
    """The items of a list written as text: a JSON array, or words with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not a JSON array: {error}") from None
    return [item.strip() for item in value.split(",")]


def words(value: object) -> object:
    """The words of a list that may have several in one item, with commas between them."""
    listed = items(value)
    if not isinstance(listed, list):
        return listed
    return [word.strip() for item in listed for word in (item.split(",") if isinstance(item, str) else [item])]


def pairs(value: object) -> object:
    """The pairs of a table written as text: a JSON object, or `key=value` with commas between them."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"not a JSON object: {error}") from None
    listed = items(value)
    if not isinstance(listed, list):
        return listed
    split = [str(item).partition("=") for item in listed]
    if not all(separator for _, separator, _ in split):
        raise ValueError("expected key=value")
    return {key.strip(): target.strip() for key, _, target in split}


def store_url(url: str) -> str:
    """The URL of an etcd as scheme://host:port; a port that is not named is 2379.

    Raises:
        ValueError: It is something else.
    """
    try:
        base = engine_url(url if "://" in url else f"http://{url}")
    except ValueError:
        raise ValueError("expected http://host:port, for example http://127.0.0.1:2379") from None
    return base if urlsplit(base).port else f"{base}:2379"


Address = Annotated[str, AfterValidator(checked_address)]
StoreUrl = Annotated[str, AfterValidator(store_url)]
Secret = Annotated[SecretStr, Field(min_length=1)]
