"""Clients for a server in a thread of its own: well-behaved and not."""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from ..net.tls import build_client_context
from ..types import AnyValue, Headers
from .blocking import BlockingClient, WebSocketOpening
from .handle import Handle
from .portal import PATIENCE, Portal
from .trio_server import TrioServer


class ThreadClients(Handle):
    """Makes clients of a server that runs in the event loop of another thread."""

    def __init__(self, inner: TrioServer) -> None:
        self._inner = inner
        self._sockets: list[socket.socket] = []

    @property
    @abstractmethod
    def _loop(self) -> Portal:
        """Raises RuntimeError if there is none yet."""

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        """Open a connection, with its TLS handshake done if it has TLS; closed with the server if not before.

        ``timeout`` in seconds is that of the socket.
        """
        self._loop.refuse_inside()
        with ExitStack() as opened:
            location, ca = self.location, self.ca
            if location.unix_path is not None:
                made = opened.enter_context(socket.socket(socket.AF_UNIX))
                made.settimeout(timeout)
                made.connect(location.unix_path)
            else:
                made = opened.enter_context(socket.create_connection((location.host, location.port), timeout))
            if location.uses_tls:
                context = build_client_context(None if ca is None else ca.bundle)
                made = context.wrap_socket(made, server_hostname=location.host)
            self._sockets = [one for one in self._sockets if one.fileno() != -1] + [made]
            opened.pop_all()
        return made

    def websocket(
        self, path: str = "/", *, subprotocols: Iterable[str] = (), headers: Headers = (), **options: AnyValue
    ) -> WebSocketOpening:
        """Open a WebSocket: ``with`` for one whose methods block, ``async with`` for a trio-websocket connection in
        your own Trio loop. ``options`` are those of trio_websocket.open_websocket.

        Raises trio_websocket.ConnectionRejected if the application refuses it.
        """
        opening = partial(self._inner.websocket, path, subprotocols=subprotocols, headers=headers, **options)
        return WebSocketOpening(self._loop, opening)

    def client_gone(
        self, path: str, *, method: str = "GET", headers: Headers = (), body: bytes = b"", after: int = 0
    ) -> None:
        """Send a request, and leave without waiting for the response once the server has begun with it.

        ``after``: first read so many bytes of the response.
        """
        self._loop.call(
            partial(self._inner.client_gone, path, method=method, headers=headers, body=body, after=after),
            patience=2 * PATIENCE,
        )

    @contextmanager
    def stall(
        self, path: str, *, method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> Iterator[BlockingClient]:
        """A client that sends a request and reads nothing of the response, for as long as the block.

        The kernel still takes some megabytes of the response.
        """
        stalled = self._inner.stall(path, method=method, headers=headers, body=body)
        with self._loop.hold(stalled, patience=2 * PATIENCE) as client:
            yield BlockingClient(self._loop, client)

    @contextmanager
    def slow(
        self,
        path: str,
        bytes_per_second: float,
        *,
        method: str = "GET",
        headers: Headers = (),
        body: bytes = b"",
    ) -> Iterator[BlockingClient]:
        """A client that reads its response at this pace, head included, for as long as the block."""
        slow = self._inner.slow(path, bytes_per_second, method=method, headers=headers, body=body)
        with self._loop.hold(slow, patience=2 * PATIENCE) as client:
            yield BlockingClient(self._loop, client)

    def _close_clients(self) -> None:
        for one in self._sockets:
            one.close()
