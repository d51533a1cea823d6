"""One epoll for many sockets."""

from __future__ import annotations

import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from trioserve.clock import Clock
from trioserve.net.reactor import BATCH, LEFT, SUPPORTED, Reactor
from trioserve.net.socket_transport import SocketTransport

from .transports import DEADLINE, unix_sockets, until

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="only Linux has epoll")


class Ear:
    """Hears of one socket's events. ``then`` is called with each, in the reactor's task."""

    def __init__(self, sock: socket.socket, then: Callable[[int], object] = lambda _: None) -> None:
        self.fileno = sock.fileno()
        self.events: list[int] = []
        self._then = then

    def handle(self, events: int) -> None:
        self.events.append(events)
        self._then(events)


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair, ours and the peer's."""
    ours, peer = unix_sockets()
    with ours, peer:
        yield ours, peer


@contextmanager
def made_reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    try:
        yield reactor
    finally:
        reactor.close()


@contextmanager
def many_descriptors(wanted: int) -> Iterator[int]:
    """Raise the limit as far as allowed; how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_event_is_told_once() -> None:
    """Edge-triggered: bytes that nobody reads are told of when they come, and not again."""
    with made_reactor() as reactor, sockets() as (ours, peer):
        ear = Ear(ours)
        reactor.register(ear)
        peer.send(b"one")
        reactor.poll()
        reactor.poll()
        assert ear.events == [select.EPOLLIN]
        peer.send(b"two")
        reactor.poll()
        assert ear.events == [select.EPOLLIN] * 2


def test_what_was_there_before_is_told_too() -> None:
    """Bytes that came before the socket was registered make an event."""
    with made_reactor() as reactor, sockets() as (ours, peer):
        peer.send(b"early")
        ear = Ear(ours)
        reactor.register(ear)
        reactor.poll()
        assert ear.events == [select.EPOLLIN]


def test_leaving_is_told() -> None:
    """A peer that closes its half makes an event of its own."""
    with made_reactor() as reactor, sockets() as (ours, peer):
        ear = Ear(ours)
        reactor.register(ear)
        peer.shutdown(socket.SHUT_WR)
        reactor.poll()
        assert len(ear.events) == 1
        assert ear.events[0] & LEFT


def test_room_is_told_only_to_who_wants_it() -> None:
    """EPOLLOUT comes while it is wanted, at once if there is room already, and no longer."""
    with made_reactor() as reactor, sockets() as (ours, _):
        ear = Ear(ours)
        reactor.register(ear)
        reactor.poll()
        assert ear.events == []
        reactor.want_out(ear.fileno, True)
        reactor.poll()
        assert ear.events == [select.EPOLLOUT]
        reactor.want_out(ear.fileno, False)
        reactor.poll()
        assert ear.events == [select.EPOLLOUT]


def test_nothing_is_told_after_unregister() -> None:
    """Events that were pending are dropped with their socket, and come again for its next owner."""
    with made_reactor() as reactor, sockets() as (ours, peer):
        ear, successor = Ear(ours), Ear(ours)
        reactor.register(ear)
        peer.send(b"data")
        reactor.unregister(ear)
        reactor.poll()
        assert ear.events == []
        reactor.register(successor)
        reactor.poll()
        assert ear.events == []
        assert successor.events == [select.EPOLLIN]


def test_one_socket_cannot_be_registered_twice() -> None:
    """A number that is watched already is an error of ours."""
    with made_reactor() as reactor, sockets() as (ours, _):
        reactor.register(Ear(ours))
        with pytest.raises(FileExistsError):
            reactor.register(Ear(ours))


def test_a_closed_reactor_lets_go() -> None:
    """After close sockets can still be unregistered; none can be added."""
    with sockets() as (ours, _):
        reactor = Reactor()
        ear = Ear(ours)
        reactor.register(ear)
        reactor.close()
        reactor.want_out(ear.fileno, True)
        reactor.unregister(ear)
        with pytest.raises(ValueError, match="closed"):
            reactor.register(ear)
        reactor.close()


async def test_the_task_tells_what_happens() -> None:
    """run waits for events and tells them, without being asked."""
    with made_reactor() as reactor, sockets() as (ours, peer):
        ear = Ear(ours)
        reactor.register(ear)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reactor.run)
                await trio.testing.wait_all_tasks_blocked()
                for count in (1, 2):
                    peer.send(b"data")
                    await until(lambda count=count: len(ear.events) == count)
                nursery.cancel_scope.cancel()


async def test_a_cancelled_task_loses_nothing() -> None:
    """Cancelled while it waits, run leaves what happens next to the next look."""
    with made_reactor() as reactor, sockets() as (ours, peer):
        ear = Ear(ours)
        reactor.register(ear)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reactor.run)
                await trio.testing.wait_all_tasks_blocked()
                peer.send(b"data")
                nursery.cancel_scope.cancel()
            seen = len(ear.events)
            reactor.poll()
            assert seen <= len(ear.events) == 1


@pytest.mark.parametrize("runs", [True, False])
async def test_a_keyboard_interrupt_does_not_come_between(runs: bool) -> None:
    """From the poll to the last handle KeyboardInterrupt is held back, in the reactor's task and in the clock's."""
    protected: list[bool] = []
    with made_reactor() as reactor, sockets() as (ours, peer):
        reactor.register(Ear(ours, lambda _: protected.append(trio.lowlevel.currently_ki_protected())))
        assert not trio.lowlevel.currently_ki_protected()
        peer.send(b"data")
        with trio.fail_after(DEADLINE):
            if runs:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reactor.run)
                    await until(lambda: bool(protected))
                    nursery.cancel_scope.cancel()
            else:
                reactor.poll()
    assert protected == [True]


@pytest.mark.parametrize("more", [0, 1, BATCH])
def test_one_look_sees_more_than_a_batch(more: int) -> None:
    """Whatever happened before a look is told by it: the clock must not fire at a client whose bytes are there."""
    count = BATCH + more
    with many_descriptors(2 * count + 200) as limit, made_reactor() as reactor:
        count = min(count, (limit - 200) // 2)
        pairs = [unix_sockets() for _ in range(count)]
        ears = [Ear(ours) for ours, _ in pairs]
        for ear, (_, peer) in zip(ears, pairs, strict=True):
            reactor.register(ear)
            peer.send(b"x")
        reactor.poll()
        assert [ear.events for ear in ears] == [[select.EPOLLIN]] * count
        for pair in pairs:
            for sock in pair:
                sock.close()


async def test_every_reader_of_a_full_batch_is_woken() -> None:
    """More transports than a batch holds have news at once: each reader gets its bytes, and each one the end."""
    with many_descriptors(2 * BATCH + 400) as limit, made_reactor() as reactor:
        count = min(BATCH + 77, (limit - 200) // 2)
        clock = Clock()
        pairs = [unix_sockets() for _ in range(count)]
        received: dict[int, list[object]] = {number: [] for number in range(count)}

        async def serve(number: int) -> None:
            ours = pairs[number][0]
            ours.setblocking(False)
            transport = SocketTransport(ours, reactor, clock)
            while data := await transport.receive(trio.current_time() + 20):
                received[number].append(data)
            await transport.aclose()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reactor.run)
                async with trio.open_nursery() as readers:
                    for number in range(count):
                        readers.start_soon(serve, number)
                    await trio.testing.wait_all_tasks_blocked()
                    for number, (_, peer) in enumerate(pairs):
                        peer.send(b"%d" % number)
                    await until(lambda: all(received.values()))
                    for _, peer in pairs:
                        peer.close()
                nursery.cancel_scope.cancel()
        assert received == {number: [b"%d" % number] for number in range(count)}
