"""Small questions to a server on this machine."""

import http.client
import socket
from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    body: bytes


def free_port() -> int:
    """A port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, body: bytes | None = None, timeout_s: float = 5.0) -> Answer:
    """One request on a connection of its own: GET, or POST of JSON where there is a body.

    Raises:
        OSError: when no whole response came.
        http.client.HTTPException: the same.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request("POST" if body else "GET", path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()


def complaint(port: int, path: str, body: bytes | None = None) -> str | None:
    """None once the server answers 200, else one line that says what it did instead."""
    try:
        answer = ask(port, path, body)
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {error}"
    if answer.status == http.HTTPStatus.OK:
        return None
    return f"{path} answers {answer.status}: {answer.body[:200].decode(errors='replace')}"
