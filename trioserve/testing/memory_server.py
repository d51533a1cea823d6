"""A server under test on memory streams, for tests in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import trio
import trio.testing

from ..errors import ConfigError
from ..exchange import Address
from ..types import AnyValue, ASGIApp, PlainValues
from .location import Location
from .preparation import Preparation, prepare
from .trio_server import TrioServer
from .verdict import raise_errors, tell_errors
from .witness import Witness

_NO_ADDRESS: PlainValues = {"bind": (), "insecure_bind": (), "uds": None, "fd": None}


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener whose clients are made with connect."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](inf)

    def connect(self, *, reads_little: bool = False) -> trio.abc.Stream:
        """Open a connection. ``reads_little``: what the server sends must be read before it can send on.

        Raises OSError when the listener is closed.
        """
        if reads_little:
            to_server, from_client = trio.testing.memory_stream_one_way_pair()
            to_client, from_server = trio.testing.lockstep_stream_one_way_pair()
            client = trio.StapledStream(to_server, from_server)
            server = trio.StapledStream(to_client, from_client)
        else:
            client, server = trio.testing.memory_stream_pair()  # type: ignore[assignment]  # its kinds of stream
        try:
            self._send.send_nowait(server)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ConnectionRefusedError("the server has been stopped") from None
        return client

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._send.close()
        with trio.CancelScope(shield=True):  # or the clients of all but the first would wait for ever
            while True:
                try:
                    waiting = self._receive.receive_nowait()
                except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                    break
                await trio.aclose_forcefully(waiting)
        self._receive.close()
        await trio.lowlevel.checkpoint()


class MemoryServer(TrioServer):
    """As TrioServer, but reached only by its own clients: ``connect``, ``websocket``, ``client_gone`` and so on."""

    def __init__(self, preparation: Preparation, witness: Witness) -> None:
        super().__init__(preparation, witness)
        self.listener = MemoryListener()

    @property
    def location(self) -> Location:
        return Location.of(None, uses_tls=False)

    async def _open(self, *, reads_little: bool = False) -> tuple[trio.abc.Stream, Address | None]:
        await trio.lowlevel.checkpoint()
        return self.listener.connect(reads_little=reads_little), None


@asynccontextmanager
async def memory_server(
    app: ASGIApp | str, *, allow_errors: bool = False, **options: AnyValue
) -> AsyncIterator[MemoryServer]:
    """As open_server, over memory streams: with ``autojump_clock`` any time-out passes at once.

    Nothing is bound, whatever the options say, so there is no TLS, and ``url`` is only what clients put into Host.
    """
    __tracebackhide__ = True
    if "tls" in options or any(name.startswith("ssl_") for name in options):
        raise ConfigError("memory streams have no TLS: tls and ssl_* are for sockets")
    preparation = prepare(app, tls=False, options={**options, **_NO_ADDRESS})
    with preparation.resources:
        server = MemoryServer(preparation, Witness())
        with tell_errors(server.witness):
            async with server.run(listeners=[server.listener]):
                yield server
        if not allow_errors:
            raise_errors(server.witness.take_errors())
