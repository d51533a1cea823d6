"""Transports with a peer, for the tests of all kinds."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing
import trustme

from trioserve.clock import Clock
from trioserve.drain import Drain
from trioserve.net.reactor import Reactor
from trioserve.net.socket_transport import SocketTransport
from trioserve.net.stream_transport import StreamTransport
from trioserve.net.tls_handshake import handshake
from trioserve.net.tls_transport import TLSTransport
from trioserve.transport import Transport

DEADLINE = 10.0
STALL = 30.0


@dataclass
class Side:
    """A transport with what it needs round it; ``peer`` is the client's stream."""

    transport: Transport
    peer: trio.abc.Stream
    nursery: trio.Nursery


MakeSide = Callable[[], AbstractAsyncContextManager[Side]]


@asynccontextmanager
async def transport_over(server: trio.abc.Stream, peer: trio.abc.Stream) -> AsyncIterator[Side]:
    """A StreamTransport and its watcher."""
    clock = Clock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)
        transport = StreamTransport(server, clock)
        nursery.start_soon(transport.watch)
        await trio.testing.wait_all_tasks_blocked()
        yield Side(transport, peer, nursery)
        await transport.aclose()
        await trio.aclose_forcefully(peer)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def writing_transport(stream: trio.abc.Stream, clock: Clock | None = None) -> AsyncIterator[StreamTransport]:
    """A StreamTransport that sends without waiting, as TLS needs it below. Leaves the stream open."""
    async with trio.open_nursery() as nursery:
        transport = StreamTransport(stream, clock or Clock())
        nursery.start_soon(transport.watch)
        transport.write_in(nursery)
        yield transport
        transport.write_in(None)
        nursery.cancel_scope.cancel()


async def tcp_streams() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    peer = await trio.testing.open_stream_to_socket_listener(listener)
    server = await listener.accept()
    await listener.aclose()
    return peer, server


async def tls_streams() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client_context = ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server_context)
    authority.configure_trust(client_context)
    inner_peer, inner_server = await tcp_streams()
    peer = trio.SSLStream(inner_peer, client_context, server_hostname="localhost")
    server = trio.SSLStream(inner_server, server_context, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.do_handshake)
        nursery.start_soon(server.do_handshake)
    return peer, server


@asynccontextmanager
async def stream_over_memory() -> AsyncIterator[Side]:
    peer, server = trio.testing.memory_stream_pair()
    async with transport_over(server, peer) as side:
        yield side


@asynccontextmanager
async def stream_over_tcp() -> AsyncIterator[Side]:
    peer, server = await tcp_streams()
    async with transport_over(server, peer) as side:
        yield side


@asynccontextmanager
async def stream_over_tls() -> AsyncIterator[Side]:
    peer, server = await tls_streams()
    async with transport_over(server, peer) as side:
        yield side


# Sockets of ours


class Observed(SocketTransport):
    """Remembers the events it was told."""

    def __init__(self, sock: socket.socket, reactor: Reactor, clock: Clock) -> None:
        self.sock = sock
        self.events: list[int] = []
        super().__init__(sock, reactor, clock)

    def handle(self, events: int) -> None:
        self.events.append(events)
        super().handle(events)


@dataclass
class SocketSide:
    """A SocketTransport; ``peer`` is the other, non-blocking end. The reactor runs, unless the test drives it."""

    transport: Observed
    raw_peer: socket.socket
    reactor: Reactor
    clock: Clock
    nursery: trio.Nursery
    peer: trio.SocketStream = field(init=False)

    def __post_init__(self) -> None:
        self.peer = trio.SocketStream(trio.socket.from_stdlib_socket(self.raw_peer))

    def reset(self) -> None:
        """Let the peer's end be gone with a RST."""
        self.raw_peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.socket.close()


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        return peer, listener.accept()[0]


def unix_sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX)


MakeSockets = Callable[[], tuple[socket.socket, socket.socket]]


@asynccontextmanager
async def socket_side(
    make: MakeSockets = tcp_sockets, *, runs: bool = True, buffer: int | None = None
) -> AsyncIterator[SocketSide]:
    """``runs``: the reactor has its task; else the test calls its poll. ``buffer``: the kernel's buffers' size."""
    raw_peer, server = make()
    for sock in (raw_peer, server):
        sock.setblocking(False)
    if buffer is not None:
        raw_peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    reactor, clock = Reactor(), Clock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)
        if runs:
            clock.look = reactor.poll
            nursery.start_soon(reactor.run)
        transport = Observed(server, reactor, clock)
        side = SocketSide(transport, raw_peer, reactor, clock, nursery)
        try:
            yield side
        finally:
            await transport.aclose()
            side.peer.socket.close()
            nursery.cancel_scope.cancel()
    reactor.close()


@asynccontextmanager
async def socket_over_tcp() -> AsyncIterator[Side]:
    async with socket_side(tcp_sockets) as side:
        yield Side(side.transport, side.peer, side.nursery)


@asynccontextmanager
async def socket_over_unix() -> AsyncIterator[Side]:
    async with socket_side(unix_sockets) as side:
        yield Side(side.transport, side.peer, side.nursery)


# TLS of ours


def secured_context(tickets: int = 0) -> tuple[ssl.SSLContext, trustme.CA]:
    """By default without tickets: a client that closes with them unread would reset, and not end."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = tickets
    authority.issue_cert("localhost").configure_cert(context)
    return context, authority


@asynccontextmanager
async def secured(below: Transport, peer: trio.abc.Stream, clock: Clock, nursery: trio.Nursery) -> AsyncIterator[Side]:
    """A TLSTransport over another, and the handshake done; the peer is Trio's."""
    context, authority = secured_context()
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    client = trio.SSLStream(peer, client_context, server_hostname="localhost")
    async with trio.open_nursery() as handshakes:
        handshakes.start_soon(client.do_handshake)
        session = await handshake(below, context, deadline=trio.current_time() + DEADLINE, drain=Drain())
    transport = TLSTransport(below, session, clock, STALL)
    try:
        yield Side(transport, client, nursery)
    finally:
        await transport.aclose()
        await trio.aclose_forcefully(client)


@asynccontextmanager
async def tls_over_socket() -> AsyncIterator[Side]:
    async with socket_side(tcp_sockets) as side:
        side.transport.hears_last_words = True
        async with secured(side.transport, side.peer, side.clock, side.nursery) as tls:
            yield tls


@asynccontextmanager
async def tls_over_stream(server: trio.abc.Stream, peer: trio.abc.Stream) -> AsyncIterator[Side]:
    clock = Clock()
    async with trio.open_nursery() as nursery, writing_transport(server, clock) as below:
        nursery.start_soon(clock.run)
        async with secured(below, peer, clock, nursery) as tls:
            await trio.testing.wait_all_tasks_blocked()
            yield tls
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tls_over_memory() -> AsyncIterator[Side]:
    peer, server = trio.testing.memory_stream_pair()
    async with tls_over_stream(server, peer) as side:
        yield side


# Tools


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what tells nobody."""
    while not condition():
        await trio.sleep(0.001)


async def read_exactly(peer: trio.abc.Stream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = await peer.receive_some(min(65536, count - len(received)))
        assert piece, f"the end after {len(received)} of {count} bytes"
        received += piece
    return bytes(received)


async def receive_exactly(transport: Transport, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = await transport.receive(trio.current_time() + DEADLINE)
        assert isinstance(piece, bytes)
        assert piece, f"the end after {len(received)} of {count} bytes"
        received += piece
    assert len(received) == count
    return bytes(received)


async def receive_to_end(transport: Transport) -> bytes:
    received = bytearray()
    while piece := await transport.receive(trio.current_time() + DEADLINE):
        assert isinstance(piece, bytes)
        received += piece
    return bytes(received)


def pattern(count: int) -> bytes:
    """Bytes of which no part equals another, so that a piece out of its place shows."""
    return os.urandom(count)


class AfterFirstStep(trio.abc.Instrument):
    """Does something once the task of this name has run to its first checkpoint."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name, self.then = name, then

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == self.name:
            self.name = ""
            self.then()
