"""A TCP connection that can be cut: it stands between a subscriber and the engine's sockets."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.e2e.process import free_port

CHUNK = 65536


class Proxy:
    """Forwards one port to another address until it is cut; then every connection is closed and none is taken."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self.target = (parts.hostname, parts.port)
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Forwards from now on."""
        self._stop.clear()
        listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Closes all; returns when that is done."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._thread = None

    def _run(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
            sockets.enter_context(listener)
            selector.register(listener, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is listener:
                        self._take(listener, selector, sockets)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._pass_on(key.fileobj, key.data, selector)

    def _take(self, listener: socket.socket, selector: selectors.BaseSelector, sockets: contextlib.ExitStack) -> None:
        near = sockets.enter_context(listener.accept()[0])
        try:
            far = sockets.enter_context(socket.create_connection(self.target, 5))
        except OSError:
            near.close()
            return
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)

    def _pass_on(self, source: socket.socket, sink: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            data = source.recv(CHUNK)
            if data:
                sink.sendall(data)
                return
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(end)
            end.close()


@contextmanager
def proxied(*targets: str) -> Iterator[list[Proxy]]:
    """One open proxy per target; all are cut at the end."""
    proxies = [Proxy(target) for target in targets]
    try:
        for proxy in proxies:
            proxy.open()
        yield proxies
    finally:
        for proxy in proxies:
            proxy.cut()
