"""Every order in which things can happen to an edge-triggered socket, played on real sockets beside a simple model."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf

import pytest
import trio
import trio.testing

from trioserve.clock import Clock
from trioserve.net.reactor import BATCH, SUPPORTED, Reactor
from trioserve.net.socket_transport import SocketTransport
from trioserve.transport import READ_AHEAD, Wake

from .test_reactor import many_descriptors
from .transports import DEADLINE, STALL, MakeSockets, pattern, receive_to_end, tcp_sockets, unix_sockets

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="only Linux has epoll")

LINGER_NOT = struct.pack("ii", 1, 0)
PATTERN = pattern(3 * READ_AHEAD)


def part(start: int, count: int) -> bytes:
    """Bytes to send after so many others: unlike what was sent shortly before."""
    start %= 2 * READ_AHEAD
    return PATTERN[start : start + count]


def unread_bytes(sock: socket.socket) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))
    assert isinstance(count, int)
    return count


def wait_for_state(sock: socket.socket, events: int) -> None:
    """Wait for the kernel to deliver what a peer on the loopback has done."""
    poll = select.poll()
    poll.register(sock, events)
    assert poll.poll(DEADLINE * 1000)


class Play:
    """One connection after the other under one number, played step by step; what must hold is asserted at each."""

    def __init__(self, make: MakeSockets, reactor: Reactor, clock: Clock, nursery: trio.Nursery) -> None:
        self.make, self.reactor, self.clock, self.nursery = make, reactor, clock, nursery
        self.closed: list[tuple[SocketTransport, socket.socket]] = []
        self.open()

    def open(self, number: int | None = None) -> None:
        self.peer, self.server = self.make()
        if number is not None:
            # The number that has just been closed, whichever is the lowest that is free.
            if self.peer.fileno() == number:
                self.peer = socket.socket(fileno=fcntl.fcntl(self.peer.detach(), fcntl.F_DUPFD_CLOEXEC, number + 1))
            if self.server.fileno() != number:
                with self.server as old:
                    os.dup2(old.fileno(), number, inheritable=False)
                self.server = socket.socket(fileno=number)
        for sock in (self.peer, self.server):
            sock.setblocking(False)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * READ_AHEAD)
        self.transport = SocketTransport(self.server, self.reactor, self.clock)
        self.lefts = self.unreads = 0
        self.transport.tell(left=self.note_left, unread=self.note_unread)
        self.sent = self.received = b""
        self.has_ended = self.is_reset = self.sees_end = self.news = False
        self.reader: trio.CancelScope | None = None
        self.reason: Wake | None = None

    def note_left(self) -> None:
        self.lefts += 1

    def note_unread(self) -> None:
        self.unreads += 1

    # What the peer does

    def send(self, count: int) -> None:
        if self.has_ended:
            return
        data = part(len(self.sent), count)
        before = unread_bytes(self.server)
        assert self.peer.send(data) == count
        self.sent += data
        while unread_bytes(self.server) < before + count:
            wait_for_state(self.server, select.POLLIN)

    async def s(self) -> None:
        """A few bytes."""
        self.send(10)

    async def x(self) -> None:
        """Exactly what one read takes."""
        self.send(READ_AHEAD)

    async def f(self) -> None:
        """The end."""
        if not self.has_ended:
            self.has_ended = True
            self.peer.shutdown(socket.SHUT_WR)
            wait_for_state(self.server, select.POLLRDHUP)

    async def e(self) -> None:
        """Bytes and the end, in one edge."""
        await self.s()
        await self.f()

    async def t(self) -> None:
        """A reset, whatever is unread."""
        if not self.is_reset:
            self.has_ended = self.is_reset = True
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            self.peer.close()
            wait_for_state(self.server, select.POLLHUP)

    # What our side does

    async def p(self) -> None:
        """The reactor looks: whoever waits gets what there is, and nobody is woken for nothing."""
        has_news = self.has_ended or len(self.received) < len(self.sent)
        waits, unreads = self.reader is not None, self.unreads
        is_unread = self.news and len(self.received) < len(self.sent) and not self.has_ended
        self.news = False
        self.reactor.poll()
        await settle()
        if waits:
            assert (self.reader is None) == has_news
        assert self.unreads - unreads == (is_unread and not waits)
        assert self.transport.has_left == self.has_ended
        assert self.transport.is_broken == self.is_reset
        assert self.lefts == self.has_ended

    async def r(self) -> None:
        """A look at what there is."""
        if self.reader is None:
            self.take(self.transport.receive_nowait())

    async def w(self) -> None:
        """A reader waits, unless one does."""
        if self.reader is None:
            self.reader = trio.CancelScope()
            self.nursery.start_soon(self.read, self.transport, self.reader)
            await settle()

    async def k(self) -> None:
        """The reader is woken with a reason; nobody hears it if none waits."""
        if self.reader is not None:
            self.transport.wake(Wake.DRAIN)
            await settle()
            assert self.reader is None
            assert self.reason is Wake.DRAIN

    async def c(self) -> None:
        """The reader is cancelled."""
        if self.reader is not None:
            self.reader.cancel()
            await settle()
            assert self.reader is None

    async def n(self) -> None:
        """It is closed, and the number is the next connection's at once."""
        number, waited = self.transport.fileno, self.reader is not None
        await self.transport.aclose()
        self.closed.append((self.transport, self.peer))
        old, self.sees_end = self.transport, False
        if not waited:
            self.open(number)
            assert old.receive_nowait() == b""
        else:
            await settle()
            assert self.sees_end
            self.open(number)
        assert self.transport.fileno == number

    async def read(self, transport: SocketTransport, scope: trio.CancelScope) -> None:
        with scope:
            came = await transport.receive(inf)
            if isinstance(came, bytes):
                self.take(came)
            else:
                self.reason = came
        self.reader = None

    def take(self, data: bytes | None) -> None:
        assert not (self.sees_end and data)
        self.sees_end |= data == b""
        self.received += data or b""

    # The whole

    async def run(self, steps: Iterable[str]) -> None:
        for step in steps:
            self.news |= step in "sxe" and not self.has_ended
            await getattr(self, step)()
        await self.p()
        await self.c()
        last: bytes | None = b"?"
        while last:
            last = self.transport.receive_nowait()
            self.take(last)
        # What a reset has overtaken is lost; all else comes in order and once, and the end after it.
        assert self.sent.startswith(self.received) if self.is_reset else self.received == self.sent
        assert last == (b"" if self.has_ended else None)
        await self.transport.aclose()
        for transport, peer in [*self.closed, (self.transport, self.peer)]:
            # A peer whose connection was closed long ago goes on: that reaches nobody.
            with suppress(OSError):
                peer.send(b"late")
            self.reactor.poll()
            assert transport.receive_nowait() == b""
            peer.close()


async def settle() -> None:
    """Let tasks run that were woken, and this one go on after them, in whatever order Trio takes them."""
    for _ in range(3):  # a reader that has read much lets others run first
        await trio.lowlevel.checkpoint()


async def play_all(make: MakeSockets, orders: Iterable[Iterable[str]]) -> None:
    clock = Clock()
    for steps in orders:
        reactor = Reactor()
        try:
            async with trio.open_nursery() as nursery:
                await Play(make, reactor, clock, nursery).run(steps)
        except BaseException as error:
            error.add_note(f"the steps were {''.join(steps)}")
            raise
        finally:
            reactor.close()


@pytest.mark.parametrize("first", "sxfeprwkcn")
async def test_every_order_of_three_more_events(first: str) -> None:
    """Whatever three things follow the first: no byte is lost or comes twice, no reader sleeps on, the end comes."""
    with trio.fail_after(30):
        await play_all(unix_sockets, ((first, *rest) for rest in itertools.product("sxfeprwkcn", repeat=3)))


@pytest.mark.parametrize("first", "sfetprwkcn")
async def test_every_order_of_events_with_a_reset(first: str) -> None:
    """The same over TCP, where a peer may also reset, before what it sent is read and after."""
    with trio.fail_after(30):
        await play_all(tcp_sockets, ((first, *rest) for rest in itertools.product("sfetprwkcn", repeat=2)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("make", "alphabet"), [(tcp_sockets, "ssspprrwwkcfetn"), (unix_sockets, "sssxpprrwwkcfen")])
async def test_long_histories(make: MakeSockets, alphabet: str, seed: int) -> None:
    """What happened long before, on this connection and on others that had its number, makes no difference."""
    chance = random.Random(seed)
    with trio.fail_after(30):
        await play_all(make, [chance.choices(alphabet, k=40) for _ in range(25)])


# Many at once


class Closer:
    """Hears of one socket's events, and then does what the test says."""

    def __init__(self, sock: socket.socket) -> None:
        self.fileno = sock.fileno()
        self.then: Callable[[], object] = lambda: None
        self.heard = 0

    def handle(self, events: int) -> None:
        self.heard += 1
        self.then()


def test_an_event_of_a_socket_closed_in_the_same_batch_reaches_nobody() -> None:
    """Of two sockets with news, whoever hears first closes the other, and gives its number to a third: that hears only
    of its own.
    """
    reactor = Reactor()
    pairs = [unix_sockets() for _ in range(3)]
    ours = [one for one, _ in pairs]
    ears = [Closer(one) for one in ours[:2]]
    third: list[Closer] = []

    def replace(other: int) -> None:
        for ear in ears:
            ear.then = lambda: None
        reactor.unregister(ears[other])
        os.dup2(ours[2].fileno(), ours[other].fileno(), inheritable=False)
        third.append(Closer(ours[other]))
        reactor.register(third[0])

    for number, ear in enumerate(ears):
        reactor.register(ear)
        ear.then = lambda other=1 - number: replace(other)  # type: ignore[misc]  # mypy cannot type a default of a lambda
        pairs[number][1].shutdown(socket.SHUT_WR)
    reactor.poll()
    assert sum(ear.heard for ear in ears) == 1
    assert third[0].heard == 0
    pairs[2][1].send(b"its own")
    reactor.poll()
    assert third[0].heard == 1
    reactor.close()
    for sock in itertools.chain(*pairs):
        sock.close()


def test_one_look_has_an_end() -> None:
    """Peers that send faster than their events are told keep nobody waiting: what is new is left to the next look."""
    with many_descriptors(2 * BATCH + 200):
        reactor = Reactor()
        pairs = [unix_sockets() for _ in range(BATCH)]
        ears = [Closer(ours) for ours, _ in pairs]
        for ear, (_, peer) in zip(ears, pairs, strict=True):
            reactor.register(ear)
            ear.then = lambda peer=peer: peer.send(b"x")  # type: ignore[misc]  # as above
            peer.send(b"x")
        reactor.poll()
        assert all(1 <= ear.heard <= 2 for ear in ears)
        reactor.close()
        for sock in itertools.chain(*pairs):
            sock.close()


async def test_a_thousand_that_end_together_are_all_told() -> None:
    """Bytes and the end in one edge, on more sockets than a batch holds: one look wakes every reader, and each gets
    both.
    """
    count = BATCH + 100
    with many_descriptors(2 * count + 200), trio.fail_after(30):
        reactor, clock = Reactor(), Clock()
        pairs = [unix_sockets() for _ in range(count)]
        received: dict[int, bytes] = {}

        async def serve(number: int) -> None:
            pairs[number][0].setblocking(False)
            transport = SocketTransport(pairs[number][0], reactor, clock)
            received[number] = await receive_to_end(transport)
            await transport.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(serve, number)
            await trio.testing.wait_all_tasks_blocked()
            for number, (_, peer) in enumerate(pairs):
                peer.send(b"%d" % number)
                peer.close()
            reactor.poll()
        assert received == {number: b"%d" % number for number in range(count)}
        reactor.close()


# Sending


class Writes:
    """What is sent, and what the peer gets of it."""

    def __init__(self, reactor: Reactor, clock: Clock) -> None:
        self.peer, server = unix_sockets()
        for sock in (self.peer, server):
            sock.setblocking(False)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        self.reactor = reactor
        self.transport = SocketTransport(server, reactor, clock)
        self.sent = self.got = b""

    def send(self, count: int) -> None:
        data = part(len(self.sent), count)
        self.transport.send_nowait(data, STALL)
        self.sent += data

    async def g(self) -> None:
        """Parts of one message, of which the kernel takes as many as it likes, by a task that is cancelled."""
        data = part(len(self.sent), 30_000)
        self.sent += data
        with trio.CancelScope() as scope:
            scope.cancel()
            await self.transport.send_parts([data[:100], b"", data[100:29_000], data[29_000:]], STALL, False)

    async def q(self) -> None:
        """A few bytes."""
        self.send(10)

    async def m(self) -> None:
        """More than the kernel takes."""
        self.send(READ_AHEAD)

    async def d(self) -> None:
        """The peer takes a little."""
        self.take(5000)

    async def a(self) -> None:
        """The peer takes all that the kernel has."""
        while self.take(READ_AHEAD):
            pass

    async def p(self) -> None:
        """The reactor looks, and the kernel gets more."""
        self.reactor.poll()

    def take(self, count: int) -> bool:
        try:
            data = self.peer.recv(count)
        except BlockingIOError:
            return False
        self.got += data
        return True


async def test_every_order_of_sending_and_taking() -> None:
    """Whenever the peer takes what it was sent, and the reactor looks: all bytes reach it, in order and once."""
    clock = Clock()
    for steps in itertools.product("qgmdap", repeat=4):
        reactor = Reactor()
        writes = Writes(reactor, clock)
        for step in steps:
            await getattr(writes, step)()
        for _ in range(40):
            await writes.a()
            await writes.p()
        assert writes.got == writes.sent, "".join(steps)
        with trio.testing.assert_no_checkpoints():
            await writes.transport.flush()
        await writes.transport.aclose()
        writes.peer.close()
        reactor.close()
