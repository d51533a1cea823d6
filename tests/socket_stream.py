"""A SocketTransport as Trio's streams are, so that Trio's own checks of streams can be let loose on it.

Not part of the server: nothing there wants a stream where it can have a transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio

from trioserve.errors import ClientDisconnected
from trioserve.net.socket_transport import SocketTransport
from trioserve.types import AnyValue

from .transports import STALL


class OneAtATime:
    """Raises BusyResourceError in the second task that enters."""

    def __init__(self) -> None:
        self._is_busy = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._is_busy:
            raise trio.BusyResourceError("another task does that")
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False


class TransportStream(trio.abc.HalfCloseableStream):
    """Owns the transport."""

    def __init__(self, transport: SocketTransport) -> None:
        self.transport = transport
        self._unread = b""
        self._is_closed = self._has_said_eof = False
        self._sending, self._receiving = OneAtATime(), OneAtATime()

    @contextmanager
    def _errors_of_streams(self) -> Iterator[None]:
        self._raise_if_closed()
        try:
            yield
        except ClientDisconnected as error:
            self._raise_if_closed()
            raise trio.BrokenResourceError from error
        self._raise_if_closed()

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError

    async def send_all(self, data: AnyValue) -> None:
        with self._sending(), self._errors_of_streams():
            if self._has_said_eof:
                raise trio.ClosedResourceError
            await trio.lowlevel.checkpoint()
            await self.transport.send(bytes(data), STALL)

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending(), self._errors_of_streams():
            await trio.lowlevel.checkpoint()
            await self.transport.wait_room()

    async def send_eof(self) -> None:
        with self._sending(), self._errors_of_streams():
            self._has_said_eof = True
            await trio.lowlevel.checkpoint()
            await self.transport.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and range(max_bytes).stop < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving(), self._errors_of_streams():
            await trio.lowlevel.checkpoint()
            if not self._unread:
                came = await self.transport.receive(inf)
                assert isinstance(came, bytes)
                self._unread = came
            end = len(self._unread) if max_bytes is None else max_bytes
            data, self._unread = self._unread[:end], self._unread[end:]
            return data

    async def aclose(self) -> None:
        try:
            await trio.lowlevel.checkpoint()
            if not (self._is_closed or self.transport.is_broken):
                await self.transport.flush()
        except ClientDisconnected:
            pass
        finally:
            self._is_closed = True
            await self.transport.aclose()
