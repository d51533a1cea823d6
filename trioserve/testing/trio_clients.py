"""Clients for a server in the caller's own Trio loop: well-behaved and not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from ..exchange import Address
from ..types import AnyValue, Headers
from .clients import SlowClient, Upload, build_request, read_at_least
from .flat_nursery import open_flat_nursery
from .handle import Handle
from .http_client import Answer, receive_answer
from .witness import Witness

HANDSHAKE_PATIENCE = 10.0
"""Seconds that a client of ours waits for a handshake, or for its request to begin."""

CLOSE_PATIENCE = 5.0
"""Seconds that a WebSocket of ours waits for the other close frame."""


class TrioClients(Handle):
    """Makes clients of a server; ``witness`` is told of its requests."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness
        self._streams: list[trio.abc.Stream] = []

    @abstractmethod
    async def _open(self, *, reads_little: bool = False) -> tuple[trio.abc.Stream, Address | None]:
        """Connect; returns the stream and what the server calls this client."""

    async def connect(self) -> trio.abc.Stream:
        """Open a connection, with its TLS handshake done if it has TLS; closed with the server if not before."""
        stream, _ = await self._open()
        self._streams.append(stream)
        return stream

    async def request(
        self, path: str = "/", *, method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> Answer:
        """Send a request on a connection of its own, and return the whole answer.

        Raises trio.BrokenResourceError if the server cuts it. For more than that use an HTTP library on ``url``.
        """
        stream, _ = await self._open()
        try:
            await stream.send_all(
                build_request(self.location.authority, path, method=method, headers=headers, body=body)
            )
            return await receive_answer(stream, method)
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def websocket(
        self, path: str = "/", *, subprotocols: Iterable[str] = (), headers: Headers = (), **options: AnyValue
    ) -> AsyncIterator[WebSocketConnection]:
        """Open a WebSocket for as long as the block; ``options`` are those of
        trio_websocket.wrap_client_stream: ``max_message_size``, ``message_queue_size``, ``receive_buffer_size``.

        Raises trio_websocket.ConnectionRejected if the application refuses it.
        """
        stream, _ = await self._open()
        try:
            async with open_flat_nursery() as nursery:
                with _patience(f"the handshake of a WebSocket for {path}"):
                    connection = await wrap_client_stream(
                        nursery,
                        stream,  # type: ignore[arg-type]  # it takes any stream
                        self.location.authority,
                        path,
                        subprotocols=list(subprotocols),
                        extra_headers=list(headers),
                        **options,
                    )
                yield connection
                with trio.move_on_after(CLOSE_PATIENCE):
                    await connection.aclose()
        finally:
            await trio.aclose_forcefully(stream)

    async def client_gone(
        self, path: str, *, method: str = "GET", headers: Headers = (), body: bytes = b"", after: int = 0
    ) -> None:
        """Send a request, and leave without waiting for the response once the server has begun with it.

        ``after``: first read so many bytes of the response.
        """
        async with self._request(path, method, headers, body) as client:
            await read_at_least(client.stream, after)

    @asynccontextmanager
    async def stall(
        self, path: str, *, method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> AsyncIterator[SlowClient]:
        """A client that sends a request and reads nothing of the response, for as long as the block.

        The kernel still takes some megabytes of the response on a socket; memory streams take nothing.
        """
        async with self._request(path, method, headers, body) as client:
            yield client

    @asynccontextmanager
    async def slow(
        self,
        path: str,
        bytes_per_second: float,
        *,
        method: str = "GET",
        headers: Headers = (),
        body: bytes = b"",
    ) -> AsyncIterator[SlowClient]:
        """A client that reads its response at this pace, head included, for as long as the block.

        ``await client.wait()`` waits for the end of the response. On memory streams the server cannot see that a piece
        is being read until all of it has been: ``timeout_write`` counts for each piece that the application sends.
        """
        if not 0 < bytes_per_second < inf:
            raise ValueError(f"bytes_per_second must be above 0, and finite, not {bytes_per_second!r}; 0 is stall")
        async with self._request(path, method, headers, body) as client, open_flat_nursery() as nursery:
            nursery.start_soon(client.read, bytes_per_second)
            yield client

    @asynccontextmanager
    async def _request(self, path: str, method: str, headers: Headers, body: bytes) -> AsyncIterator[SlowClient]:
        """Send a request, and wait until its handler is about to run; the connection is lost at the end."""
        request = build_request(self.location.authority, path, method=method, headers=headers, body=body)
        stream, name = await self._open(reads_little=True)
        upload = Upload(stream, request)
        try:
            async with open_flat_nursery() as nursery:
                with self.witness.expect(path.encode(), name) as began, _patience(f"the beginning of {method} {path}"):
                    nursery.start_soon(upload.run)  # not awaited, as the handler may never read the body
                    await began.wait()
                yield SlowClient(stream)
        finally:
            await upload.leave()

    async def _close_clients(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


@contextmanager
def _patience(what: str) -> Iterator[None]:
    """Raise TimeoutError if this takes too long."""
    with trio.move_on_after(HANDSHAKE_PATIENCE) as scope:
        yield
    if scope.cancelled_caught:
        raise TimeoutError(f"{what} took longer than {HANDSHAKE_PATIENCE:g} s")
