"""Who may send requests, and who may change the fleet."""

from __future__ import annotations

from hmac import compare_digest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import SecretStr
    from starlette.types import Scope

NEEDS_KEY: Final = "a valid key is needed: Authorization: Bearer KEY"

Headers = list[tuple[bytes, bytes]]

_SENT_ON: Final = frozenset({b"origin", b"x-forwarded-for", b"forwarded"})


class Keys:
    """Bearer keys, compared in constant time. Without any, everybody is let in."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        """Keep `keys` as bytes."""
        self._keys = [key.get_secret_value().encode() for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._keys)

    def admit(self, headers: Headers) -> bool:
        """Whether the request carries one of the keys."""
        token = bearer(headers)
        # Every key is compared, so that the time tells nothing of which one was close.
        return token is not None and sum(compare_digest(token, key) for key in self._keys) > 0


def bearer(headers: Headers) -> bytes | None:
    """Return the token of `Authorization: Bearer …`."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


def without_authorization(headers: Headers) -> Headers:
    """Drop the client's key: it is meant for the gateway, no engine needs to see it."""
    return [pair for pair in headers if pair[0] != b"authorization"]


def is_sent_on(headers: Headers) -> bool:
    """Whether a web page or a proxy sent the request: its address is then not that of whoever asked for it."""
    return any(
        name in _SENT_ON or (name == b"sec-fetch-site" and value.strip().lower() != b"none") for name, value in headers
    )


def from_this_machine(scope: Scope) -> bool:
    """Whether the client's address is a loopback address."""
    client = scope.get("client")
    try:
        return client is not None and ip_address(client[0]).is_loopback
    except ValueError:
        return False
