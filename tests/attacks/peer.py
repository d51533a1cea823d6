"""What all attacks are made of: a peer that a server cannot trust, and the words in which it complains."""

from __future__ import annotations

import random
import select
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import repeat

import trio

MARGIN = 8.0
"""Seconds beyond its own clock that a server may take: machines that run attacks are busy."""

NARROW = 4096
"""Bytes that a peer's kernel holds for it, where what it does not read is to reach the server soon."""


class Unmet(AssertionError):
    """A server did not do with an attack what it must."""


@dataclass(frozen=True)
class Target:
    """Where a server under attack listens. ``tls`` is a client's context that trusts it; None: it speaks no TLS.

    Its certificate is for "localhost".
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Attack:
    """One way to misuse a server; call it. ``clock``: seconds that the server may take, by its own clocks."""

    name: str
    run: Callable[[Target, random.Random], Awaitable[None]]
    clock: float
    needs_tls: bool = False

    async def __call__(self, target: Target, chance: random.Random) -> None:
        """Do it once. Raises Unmet, and OSError where the server cannot be reached."""
        try:
            with trio.fail_after(self.clock + MARGIN):
                await self.run(target, chance)
        except trio.TooSlowError:
            raise Unmet(f"{self.name}: the server has not dealt with it in time") from None


ATTACKS: dict[str, Attack] = {}


def attack(*, clock: float = 2.0, needs_tls: bool = False) -> Callable[[Callable[..., Awaitable[None]]], Attack]:
    """Make an attack of a function, under its name."""

    def register(run: Callable[[Target, random.Random], Awaitable[None]]) -> Attack:
        ATTACKS[run.__name__] = made = Attack(run.__name__, run, clock, needs_tls)
        return made

    return register


def demand(condition: object, words: str) -> None:
    if not condition:
        raise Unmet(words)


class Peer:
    """A connection. ``received`` is all that the server has sent and that was read."""

    def __init__(self, raw: trio.SocketStream, stream: trio.abc.Stream) -> None:
        self.raw = raw
        self.stream = stream
        self.received = b""
        self.is_over = False
        """The server has ended the connection, in whatever way."""
        self.was_reset = False
        self._sending = trio.Lock()

    async def send(self, data: bytes) -> bool:
        """Send all of it; False if the server takes no more."""
        try:
            async with self._sending:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):  # the latter after a FIN of another task
            return False
        return True

    async def trickle(self, pieces: Iterator[bytes], pause: float) -> None:
        """Send piece after piece, until there are no more, or the server takes none."""
        for piece in pieces:
            if not await self.send(piece):
                return
            await trio.sleep(pause)

    async def receive(self, most: int = 65536) -> bytes:
        """What comes next; b"" once the server has ended the connection."""
        try:
            data = bytes(await self.stream.receive_some(most))
        except trio.BrokenResourceError:
            self.was_reset = True
            data = b""
        self.received += data
        self.is_over = self.is_over or not data
        return data

    async def receive_until(self, mark: bytes) -> bool:
        """Read until this has come; False if the connection ended before."""
        while mark not in self.received:
            if not await self.receive():
                return False
        return True

    async def receive_rest(self) -> bytes:
        """All that came, once the server has ended the connection."""
        while await self.receive():
            pass
        return self.received

    async def status(self) -> int | None:
        """The status of the first response; None if the connection ended without one."""
        if not await self.receive_until(b"\r\n\r\n"):
            return None
        demand(self.received.startswith(b"HTTP/1.1 "), f"an answer that is no HTTP: {self.received[:60]!r}")
        return int(self.received[9:12])

    async def refused_with(self, *statuses: int) -> None:
        """Wait for the end of the connection, before which it must have been answered so."""
        status = await self.status()
        demand(status in statuses, f"expected {statuses}, was answered {status}")
        await self.let_end()

    async def let_end(self) -> None:
        """Do as a client does that has been told that this is the end, and wait for it."""
        self.send_fin()
        await self.receive_rest()

    async def wait_cut(self) -> None:
        """Wait until the server has reset the connection, without reading what it has sent."""
        poll = select.poll()
        poll.register(self.raw.socket.fileno(), 0)
        while not poll.poll(0):
            await trio.sleep(0.05)

    def send_fin(self) -> None:
        """Say that no more will come, past TLS, and whatever another task is sending."""
        with suppress(OSError):  # as it is over already
            self.raw.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish with an RST."""
        self.raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.raw.socket.close()


@asynccontextmanager
async def raw_peer(target: Target, *, is_narrow: bool = False) -> AsyncIterator[Peer]:
    """A connection as far as TCP goes. ``is_narrow``: the kernels hold little of what this side does not read."""
    family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
    sock = trio.socket.socket(family)
    try:
        if is_narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        await sock.connect((target.host, target.port))
        raw = trio.SocketStream(sock)
        yield Peer(raw, raw)
    finally:
        sock.close()


@asynccontextmanager
async def peer(target: Target, *, is_narrow: bool = False) -> AsyncIterator[Peer]:
    """A connection that is ready for HTTP, over TLS if the server speaks it."""
    async with raw_peer(target, is_narrow=is_narrow) as made:
        if target.tls is not None:
            secured = trio.SSLStream(made.raw, target.tls, server_hostname="localhost", https_compatible=True)
            try:
                await secured.do_handshake()
            except trio.BrokenResourceError as error:
                raise ConnectionAbortedError("the server does not complete the TLS handshake") from error
            made.stream = secured
        yield made


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", *fields)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


async def be_served(target: Target) -> None:
    """Be an honest client, once: the server must still serve."""
    async with peer(target) as client:
        await client.send(request("/echo", "Content-Length: 5", "Connection: close", method="POST") + b"hello")
        status, received = await client.status(), await client.receive_rest()
        demand(
            status == 200 and received.endswith(b"\r\n\r\nhello"), f"an honest client was answered {received[:99]!r}"
        )


def bytes_of(data: bytes) -> Iterator[bytes]:
    return (data[place : place + 1] for place in range(len(data)))


def endlessly(piece: bytes) -> Iterator[bytes]:
    return repeat(piece)
