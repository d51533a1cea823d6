"""A Transport over an edge-triggered socket. What it does as the other kind does is in test_transports.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.clock import Clock
from trioserve.errors import ClientDisconnected, WriteTimeout
from trioserve.net.reactor import SUPPORTED, Reactor
from trioserve.net.socket_transport import (
    LEAST_PIECE,
    YIELD_AFTER,
    SocketTransport,
)
from trioserve.transport import READ_AT_ONCE, FilePiece, Wake

from .socket_stream import TransportStream
from .transports import (
    DEADLINE,
    STALL,
    AfterFirstStep,
    MakeSockets,
    SocketSide,
    pattern,
    read_exactly,
    receive_exactly,
    receive_to_end,
    socket_side,
    tcp_sockets,
    unix_sockets,
    until,
)

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="only Linux has epoll")

BOTH = pytest.mark.parametrize("make", [tcp_sockets, unix_sockets])
NARROW = 32 * 1024
"""A kernel buffer that is soon full."""


@contextmanager
def descriptor_of(path: Path, data: bytes) -> Iterator[int]:
    path.write_bytes(data)
    with path.open("rb") as file:
        yield file.fileno()


async def receive_now(side: SocketSide) -> bytes | None:
    """What is there without waiting; None if receive would wait. That wait is cancelled."""
    with trio.CancelScope() as scope:
        scope.cancel()
        came = await side.transport.receive(inf)
        assert isinstance(came, bytes)
        return came
    return None


async def receives(side: SocketSide, came: list[bytes | Wake], deadline: float = inf) -> None:
    came.append(await side.transport.receive(deadline))


# No lost wake-up

MOMENTS = ("", "p", "r", "pr", "rp", "w", "pw", "wp")
"""What our side does between two acts of the peer: p the reactor looks, r a read that is cancelled if it would wait,
w a reader begins to wait, unless one does.
"""


@BOTH
@pytest.mark.parametrize("acts", ["s", "sf", "xf", "ssf", "xsf", "sxf", "xxf"])
async def test_no_order_loses_a_wake_up(make: MakeSockets, acts: str) -> None:
    """Whatever the order of arrival (s: short, x: exactly what a read takes, f: FIN), look, read, cancelled read and
    wait: all bytes come, in order, and then the end.
    """
    with trio.fail_after(30):
        orders = itertools.product(MOMENTS, repeat=len(acts) + 1)
        # Of the 4,096 orders of three acts every fifth will do: each two neighbours meet in all ways.
        for moments in itertools.islice(orders, 0, None, 5 if len(acts) == 3 else 1):
            await _play(make, acts, moments)


async def _play(make: MakeSockets, acts: str, moments: tuple[str, ...]) -> None:
    sent, received = b"", b""
    async with socket_side(make, runs=False) as side, trio.open_nursery() as nursery:
        waits = False

        async def wait() -> None:
            nonlocal waits, received
            piece = await side.transport.receive(inf)
            assert isinstance(piece, bytes)
            received += piece
            waits = False

        for act, moment in zip(" " + acts, moments, strict=True):
            if act == "f":
                side.raw_peer.shutdown(socket.SHUT_WR)
            elif act != " ":
                sent += (data := pattern(READ_AT_ONCE if act == "x" else 10))
                await side.peer.send_all(data)
            for step in moment:
                if step == "p":
                    side.reactor.poll()
                    if waits:
                        await trio.lowlevel.checkpoint()
                elif not waits:
                    if step == "r":
                        received += await receive_now(side) or b""
                    else:
                        waits = True
                        nursery.start_soon(wait)
                        await trio.lowlevel.checkpoint()
        side.nursery.start_soon(side.reactor.run)
        while waits:
            if len(received) == len(sent) and "f" not in acts:
                nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()
        if "f" in acts:
            received += await receive_to_end(side.transport)
            assert side.transport.has_left
        elif len(received) < len(sent):
            received += await receive_exactly(side.transport, len(sent) - len(received))
    assert received == sent, (acts, moments)


@BOTH
async def test_the_end_that_comes_with_the_data_is_seen(make: MakeSockets) -> None:
    """Data and FIN in one edge: after the short read the socket is read once more, for no other event will come."""
    with trio.fail_after(DEADLINE):
        async with socket_side(make, runs=False) as side:
            assert await receive_now(side) is None
            side.raw_peer.send(b"data")
            side.raw_peer.shutdown(socket.SHUT_WR)
            side.reactor.poll()
            assert len(side.transport.events) <= 2
            assert await receive_now(side) == b"data"
            assert await receive_now(side) == b""


@BOTH
async def test_a_read_of_all_that_fits_reads_again(make: MakeSockets) -> None:
    """A read that filled its buffer may have left something, although the one edge has been taken note of."""
    with trio.fail_after(DEADLINE):
        async with socket_side(make, runs=False) as side:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.peer.send_all, b"x" * (READ_AT_ONCE + 1))
                await trio.testing.wait_all_tasks_blocked()
                side.reactor.poll()
                received = 0
                while received <= READ_AT_ONCE:
                    received += len(await receive_now(side) or b"")
                    side.reactor.poll()
            assert await receive_now(side) is None


async def test_a_short_read_asks_the_kernel_no_more() -> None:
    """After a short read the next receive waits at once: new bytes make a new edge."""
    with trio.fail_after(DEADLINE):
        async with socket_side(runs=False) as side:
            side.raw_peer.send(b"one")
            side.reactor.poll()
            assert await receive_now(side) == b"one"
            side.raw_peer.send(b"two")
            assert await receive_now(side) is None  # the edge has not been looked at
            side.reactor.poll()
            assert await receive_now(side) == b"two"


@pytest.mark.parametrize("moment", ["nothing", "read", "look", "look and read"])
@pytest.mark.parametrize("has_data", [False, True])
async def test_a_reset_overtakes_what_is_unread(moment: str, has_data: bool) -> None:
    """After a RST nothing is received any more, read or unread, and nothing can be sent."""
    with trio.fail_after(DEADLINE):
        async with socket_side(runs=False) as side:
            if has_data:
                side.raw_peer.send(b"data")
            if "look" in moment:
                side.reactor.poll()
            if "read" in moment:
                await receive_now(side)
            side.reset()
            side.reactor.poll()
            assert side.transport.has_left
            assert side.transport.is_broken
            assert await side.transport.receive(inf) == b""
            with pytest.raises(ClientDisconnected):
                await side.transport.send(b"x", STALL)


async def test_a_read_that_meets_a_reset_breaks() -> None:
    """A reset that the read finds before the reactor is the end too."""
    with trio.fail_after(DEADLINE):
        async with socket_side(runs=False) as side:
            side.reset()
            assert await side.transport.receive(inf) == b""
            assert side.transport.has_left
            assert side.transport.is_broken
            side.reactor.poll()
            assert await side.transport.receive(inf) == b""


async def test_a_waiting_reader_learns_of_a_reset() -> None:
    """The reader that waits when the client resets gets the end."""
    came: list[bytes | Wake] = []
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receives, side, came)
                await trio.testing.wait_all_tasks_blocked()
                side.reset()
            assert came == [b""]


async def test_all_that_a_closed_unix_peer_sent_is_received() -> None:
    """A unix socket hangs up when its peer closes; what that has sent before still counts, though nothing can go
    back.
    """
    with trio.fail_after(DEADLINE):
        async with socket_side(unix_sockets) as side:
            data = pattern(150_000)
            side.raw_peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
            await side.peer.send_all(data)
            side.peer.socket.close()
            await side.transport.wait_left()
            assert side.transport.is_broken
            assert await receive_to_end(side.transport) == data


async def test_after_the_end_is_known_only_the_kernel_says_that_all_is_read() -> None:
    """A read is also short where a unix peer passed a descriptor; once no more edges come, reading goes on to the
    end.
    """
    with trio.fail_after(DEADLINE):
        async with socket_side(unix_sockets) as side:
            socket.send_fds(side.raw_peer, [b"one"], [0])
            side.raw_peer.send(b"two")
            side.peer.socket.close()
            await side.transport.wait_left()
            assert await receive_to_end(side.transport) == b"onetwo"


async def test_an_event_of_a_closed_socket_reaches_nobody() -> None:
    """What the kernel had to say of a socket that has been closed meanwhile, and of its number's next owner, is not
    mixed up.
    """
    with trio.fail_after(DEADLINE):
        async with socket_side(runs=False) as side:
            side.raw_peer.send(b"old")
            number = side.transport.fileno
            await side.transport.aclose()
            peer, server = unix_sockets()
            with peer, server:
                assert peer.fileno() == number or server.fileno() == number
                if peer.fileno() == number:  # whichever took the lowest free number
                    peer, server = server, peer
                server.setblocking(False)
                successor = SocketTransport(server, side.reactor, side.clock)
                assert successor.fileno == number
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await successor.receive(inf)
                side.reactor.poll()
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await successor.receive(inf)
                assert scope.cancelled_caught
                assert not successor.has_left
                peer.send(b"new")
                side.reactor.poll()
                assert await successor.receive(inf) == b"new"
                await successor.aclose()
            assert side.transport.events == []


async def test_a_handler_closed_in_the_same_batch() -> None:
    """Two sockets have news in one look, and the owner of one closes both before the other's reader runs."""
    came: list[bytes | Wake] = []
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            peer, server = tcp_sockets()
            server.setblocking(False)
            other = SocketTransport(server, side.reactor, side.clock)
            with peer:
                async with trio.open_nursery() as nursery:

                    async def read_and_close() -> None:
                        await receives(side, came)
                        await other.aclose()

                    async def read_other() -> None:
                        came.append(await other.receive(inf))

                    nursery.start_soon(read_other)
                    nursery.start_soon(read_and_close)
                    await trio.testing.wait_all_tasks_blocked()
                    peer.send(b"other")
                    side.raw_peer.send(b"first")
                assert b"first" in came
                assert set(came) <= {b"first", b"other", b""}


# Waits and their reasons


async def test_bytes_that_came_in_time_win_over_the_deadline() -> None:
    """After a loop that was blocked the clock lets the reactor look before it fires."""
    came: list[bytes | Wake] = []
    with trio.fail_after(DEADLINE):
        async with socket_side() as side, trio.open_nursery() as nursery:
            nursery.start_soon(receives, side, came, trio.current_time() + 0.02)
            await trio.testing.wait_all_tasks_blocked()
            side.raw_peer.send(b"in time")
            until_then = trio.current_time() + 0.05
            while trio.current_time() < until_then:
                pass
    assert came == [b"in time"]


async def test_a_deadline_that_has_passed_ends_the_wait() -> None:
    """A deadline in the past still gives what is there, else ends at once."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            assert await side.transport.receive(0) is Wake.DEADLINE
            side.raw_peer.send(b"data")
            await until(lambda: bool(side.transport.events))
            assert await side.transport.receive(0) == b"data"


async def test_what_is_there_is_received_without_a_checkpoint() -> None:
    """A receive that need not wait makes no checkpoint, and has not waited."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            side.raw_peer.send(b"data")
            with trio.testing.assert_no_checkpoints():
                assert await side.transport.receive(inf) == b"data"
            assert not side.transport.has_waited


# Writing: what the kernel does not take


async def _fill(side: SocketSide, count: int = 300_000) -> bytes:
    """Send more than the kernel takes, from a task that has given up waiting. What was sent."""
    data = pattern(count)
    with trio.CancelScope() as scope:
        scope.cancel()
        await side.transport.send(data, STALL)
    return data


@BOTH
async def test_a_cancelled_sender_loses_no_byte(make: MakeSockets) -> None:
    """What the kernel did not take goes out by the reactor though nobody waits, whole and before what comes next."""
    with trio.fail_after(DEADLINE):
        async with socket_side(make, buffer=NARROW) as side:
            data = await _fill(side)
            assert not side.transport.is_broken
            data += await _fill(side)
            assert await read_exactly(side.peer, len(data)) == data
            await side.transport.send(b"next", STALL)
            assert await read_exactly(side.peer, 4) == b"next"


@BOTH
async def test_a_kernel_that_takes_nothing_refuses_nothing(make: MakeSockets) -> None:
    """A sender that finds the kernel's buffer full leaves its bytes to the reactor."""
    with trio.fail_after(DEADLINE):
        async with socket_side(make, buffer=NARROW) as side:
            filled = 0
            with pytest.raises(BlockingIOError):
                while True:
                    filled += side.transport.sock.send(b"x" * 1000)
            with trio.testing.assert_no_checkpoints():
                await side.transport.send(b"data", STALL)
            assert await read_exactly(side.peer, filled + 4) == b"x" * filled + b"data"


@BOTH
async def test_what_fits_the_queue_is_not_waited_for(make: MakeSockets) -> None:
    """A sender returns at once while no more than 64 KiB are unsent, and waits until that is so again."""
    done: list[int] = []
    pieces = [pattern(40_000) for _ in range(10)]

    async with socket_side(make, buffer=NARROW) as side:

        async def send(number: int) -> None:
            await side.transport.send(pieces[number], STALL)
            done.append(number)

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(send, number)
                    await trio.testing.wait_all_tasks_blocked()
                assert done == list(range(len(done)))
                assert 1 <= len(done) <= 6
                total = b"".join(pieces)
                assert await read_exactly(side.peer, len(total)) == total
            assert sorted(done) == list(range(10))


async def test_flush_waits_for_all_that_was_sent() -> None:
    """flush returns when the kernel has taken all."""
    with trio.fail_after(DEADLINE):
        async with socket_side(buffer=NARROW) as side:
            data = await _fill(side)
            with trio.move_on_after(0.02) as scope:
                await side.transport.flush()
            assert scope.cancelled_caught
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.flush)
                assert await read_exactly(side.peer, len(data)) == data
            with trio.testing.assert_no_checkpoints():
                await side.transport.flush()


async def test_room_is_asked_for_only_while_there_is_none() -> None:
    """EPOLLOUT is taken off again, or every read of a unix socket's peer would wake us."""
    with trio.fail_after(DEADLINE):
        async with socket_side(unix_sockets, buffer=NARROW) as side:
            data = await _fill(side)
            assert await read_exactly(side.peer, len(data)) == data
            assert any(events & select.EPOLLOUT for events in side.transport.events)
            await trio.testing.wait_all_tasks_blocked()
            side.transport.events.clear()
            for _ in range(5):
                await side.transport.send(b"x", STALL)
                await read_exactly(side.peer, 1)
                await trio.testing.wait_all_tasks_blocked()
            assert side.transport.events == []


async def test_the_end_follows_all_that_was_sent() -> None:
    """send_eof lets what is unsent go first."""
    with trio.fail_after(DEADLINE):
        async with socket_side(buffer=NARROW) as side:
            data = await _fill(side)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send_eof)
                assert await read_exactly(side.peer, len(data)) == data
                assert await side.peer.receive_some(1) == b""


# Writing: peers that stall or leave


async def test_a_peer_that_takes_nothing_is_given_up_though_nobody_waits() -> None:
    """After ``stall`` seconds without progress what is unsent is dropped, and who sends next is told."""
    told: list[bool] = []
    with trio.fail_after(DEADLINE):
        async with socket_side(buffer=NARROW) as side:
            side.transport.tell(left=lambda: told.append(True), unread=lambda: None)
            with trio.CancelScope() as scope:
                scope.cancel()
                await side.transport.send(b"x" * 300_000, 0.05)
            await side.transport.wait_left()
            assert told == [True]
            assert side.transport.is_broken
            for send in (side.transport.send(b"x", STALL), side.transport.flush()):
                with pytest.raises(WriteTimeout, match="took nothing for 0.05 s"):
                    await send
            assert await side.transport.receive(inf) == b""


async def test_all_who_wait_learn_that_the_peer_stalls() -> None:
    """A WriteTimeout is raised in every sender that waits, and in who flushes."""
    raised: list[BaseException] = []

    async with socket_side(buffer=NARROW) as side:

        async def note(call: Callable[[], Awaitable[None]]) -> None:
            with pytest.raises(WriteTimeout) as info:
                await call()
            raised.append(info.value)

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(note, lambda: side.transport.send(b"x" * 300_000, 0.2))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(note, side.transport.flush)
        assert len(raised) == 4


async def test_progress_renews_the_time() -> None:
    """A peer that takes a little now and then is not given up, however long all of it takes."""
    with trio.fail_after(DEADLINE):
        async with socket_side(unix_sockets, buffer=NARROW) as side:
            start = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send, b"x" * 60_000, 0.5)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(side.transport.flush)
                received = 0
                while received < 60_000:
                    received += len(await side.peer.receive_some(6_000))
                    await trio.sleep(0.08)
            assert trio.current_time() - start > 0.6


async def test_an_event_without_room_renews_nothing() -> None:
    """What only looks like room is no progress of the peer."""
    with trio.fail_after(DEADLINE):
        async with socket_side(buffer=NARROW) as side:
            with trio.CancelScope() as scope:
                scope.cancel()
                await side.transport.send(b"x" * 300_000, 0.1)
            while not side.transport.is_broken:
                side.transport.handle(select.EPOLLOUT)
                await trio.sleep(0.01)
            with pytest.raises(WriteTimeout):
                await side.transport.flush()


@BOTH
async def test_a_peer_that_leaves_while_bytes_are_unsent(make: MakeSockets) -> None:
    """Who waits for room is told when the peer is gone."""
    with trio.fail_after(DEADLINE):
        async with socket_side(make, buffer=NARROW) as side:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_reset_when_blocked, side)
                with pytest.raises(ClientDisconnected):
                    await side.transport.send(b"x" * 300_000, STALL)
            assert side.transport.has_left


async def _reset_when_blocked(side: SocketSide) -> None:
    await trio.testing.wait_all_tasks_blocked()
    side.reset()


async def test_the_leftover_of_a_socket_that_fails_is_dropped() -> None:
    """The kernel may refuse what was kept: whoever sends next is told."""
    with trio.fail_after(DEADLINE):
        async with socket_side(buffer=NARROW) as side:
            await _fill(side)
            side.transport.sock.shutdown(socket.SHUT_WR)  # as the kernel does when the connection is lost
            await until(lambda: side.transport.is_broken)
            with pytest.raises(ClientDisconnected):
                await side.transport.send(b"x", STALL)


async def test_closing_wakes_those_who_wait_for_room() -> None:
    """A sender and a flush that wait when the transport is closed get ClientDisconnected."""
    async with socket_side(buffer=NARROW) as side:

        async def note(call: Callable[[], Awaitable[None]]) -> None:
            with pytest.raises(ClientDisconnected):
                await call()

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note, lambda: side.transport.send(b"x" * 300_000, STALL))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(note, side.transport.flush)
                await trio.testing.wait_all_tasks_blocked()
                await side.transport.aclose()


# Files


@BOTH
async def test_what_is_sent_during_a_file_follows_it(make: MakeSockets, tmp_path: Path) -> None:
    """Files keep their frames together: pieces that come meanwhile, and other files, go in their order after them."""
    data = pattern(400_000)
    async with socket_side(make, buffer=NARROW) as side:
        with descriptor_of(tmp_path / "file", data) as file, trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                steps = [
                    lambda: side.transport.send_file(FilePiece(b"<1", file, 0, 300_000, b"1>"), STALL),
                    lambda: side.transport.send(b"after one", STALL),
                    lambda: side.transport.send_file(FilePiece(b"<2", file, 100_000, 300_000, b"2>"), STALL),
                    lambda: side.transport.send_parts([b"af", b"ter"], STALL, False),
                    lambda: side.transport.send(b"two", STALL),
                ]
                for step in steps:
                    nursery.start_soon(step)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(side.transport.flush)
                expected = b"<1" + data[:300_000] + b"1>after one<2" + data[100_000:] + b"2>aftertwo"
                assert await read_exactly(side.peer, len(expected)) == expected


async def test_a_file_s_frame_waits_for_what_is_unsent(tmp_path: Path) -> None:
    """Pieces sent while the file waits for its own frame to go out neither come between nor keep it waiting."""
    async with socket_side(buffer=NARROW) as side:
        with descriptor_of(tmp_path / "file", b"file") as file, trio.fail_after(DEADLINE):
            first = await _fill(side)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send_file, FilePiece(b"<", file, 0, 4, b">"), STALL)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(side.transport.send, b"last", STALL)
                await trio.testing.wait_all_tasks_blocked()
                expected = first + b"<file>last"
                assert await read_exactly(side.peer, len(expected)) == expected


async def test_much_held_back_makes_its_sender_wait(tmp_path: Path) -> None:
    """What is held back behind a file counts as unsent, and its time runs only once the file has gone."""
    data = pattern(600_000)
    async with socket_side(unix_sockets, buffer=NARROW) as side:
        with descriptor_of(tmp_path / "file", data) as file, trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send_file, FilePiece(b"", file, 0, len(data), b""), STALL)
                await trio.testing.wait_all_tasks_blocked()
                with trio.move_on_after(0.01) as scope:
                    await side.transport.send(data, STALL)
                assert scope.cancelled_caught
                assert await read_exactly(side.peer, 2 * len(data)) == data + data


async def test_held_back_bytes_have_their_own_time(tmp_path: Path) -> None:
    """A peer that takes a file and then nothing more is given up."""
    with trio.fail_after(DEADLINE):
        async with socket_side(unix_sockets, buffer=NARROW) as side:
            with descriptor_of(tmp_path / "file", b"file") as file:
                with trio.CancelScope() as scope:
                    await side.transport.send_file(FilePiece(b"", file, 0, 4, b"x" * 300_000), 0.1)
                    scope.cancel()
                    await side.transport.flush()
                await side.transport.wait_left()
                with pytest.raises(WriteTimeout):
                    await side.transport.flush()


async def test_a_cancelled_file_breaks_the_transport(tmp_path: Path) -> None:
    """Nobody knows how much of a file went out whose sender was cancelled: nothing follows, all who wait are told, and
    the client has not left.
    """
    raised: list[BaseException] = []

    async with socket_side(buffer=NARROW) as side:

        async def note(call: Callable[[], Awaitable[None]]) -> None:
            with pytest.raises(ClientDisconnected) as info:
                await call()
            raised.append(info.value)

        with descriptor_of(tmp_path / "file", b"x" * 1_000_000) as file, trio.fail_after(DEADLINE):
            piece = FilePiece(b"<", file, 0, 1_000_000, b">")
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_when_blocked, scope)
                    nursery.start_soon(note, lambda: side.transport.send(b"x" * 100_000, STALL))
                    nursery.start_soon(note, lambda: side.transport.send_file(piece, STALL))
                    nursery.start_soon(note, side.transport.flush)
                    await side.transport.send_file(piece, STALL)
            assert scope.cancelled_caught
            assert len(raised) == 3
            assert side.transport.is_broken
            assert not side.transport.has_left
            await note(lambda: side.transport.send(b"x", STALL))


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_file_cancelled_before_its_turn_breaks_nothing(tmp_path: Path) -> None:
    """Nothing of it went out, so what was sent behind it takes its place."""
    data = pattern(600_000)
    async with socket_side(buffer=NARROW) as side:
        with descriptor_of(tmp_path / "file", data) as file, trio.fail_after(DEADLINE):
            piece = FilePiece(b"<", file, 0, len(data), b">")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send_file, piece, STALL)
                await trio.testing.wait_all_tasks_blocked()
                await side.transport.send(b"one", STALL)
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_when_blocked, scope)
                    nursery.start_soon(side.transport.send_file, piece, STALL)
                    await side.transport.send_file(piece, STALL)
                assert scope.cancelled_caught
                await side.transport.send(b"two", STALL)
                expected = (b"<" + data + b">one", b"<" + data + b">two")
                assert await read_exactly(side.peer, 2 * len(expected[0])) == b"".join(expected)


async def test_a_file_s_peer_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """A file whose peer takes nothing for ``stall`` seconds raises WriteTimeout."""
    with trio.fail_after(DEADLINE):
        async with socket_side(buffer=NARROW) as side:
            with descriptor_of(tmp_path / "file", b"x" * 1_000_000) as file, pytest.raises(WriteTimeout):
                await side.transport.send_file(FilePiece(b"", file, 0, 1_000_000, b""), 0.05)
            assert side.transport.has_left


async def test_a_file_to_a_peer_that_has_gone_raises(tmp_path: Path) -> None:
    """sendfile to nobody is ClientDisconnected, as any write: before the reactor knows it, between two pieces, or while
    it waits.
    """
    with descriptor_of(tmp_path / "file", b"x" * 1_000_000) as file, trio.fail_after(DEADLINE):
        piece = FilePiece(b"", file, 0, 1_000_000, b"")
        async with socket_side(runs=False) as side:
            side.reset()
            with pytest.raises(ClientDisconnected):
                await side.transport.send_file(piece, STALL)
            assert side.transport.has_left
        async with socket_side(runs=False) as side, trio.open_nursery() as nursery:
            nursery.start_soon(_reset_now, side)
            with pytest.raises(ClientDisconnected):
                await side.transport.send_file(piece, STALL)
            assert side.transport.has_left
        async with socket_side(buffer=NARROW) as side, trio.open_nursery() as nursery:
            nursery.start_soon(_reset_when_blocked, side)
            with pytest.raises(ClientDisconnected):
                await side.transport.send_file(piece, STALL)


async def _reset_now(side: SocketSide) -> None:
    side.reset()


async def test_an_error_of_the_file_is_not_the_client_s(tmp_path: Path) -> None:
    """A descriptor that cannot be read is the application's error: raised as it is, and the client has not left."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Bad file") as info:
                await side.transport.send_file(FilePiece(b"", file.fileno(), 0, 10, b""), STALL)
            assert not isinstance(info.value, ClientDisconnected)
            assert side.transport.is_broken
            assert not side.transport.has_left


# Fairness


@pytest.mark.parametrize(("size", "count"), [(1, YIELD_AFTER // LEAST_PIECE), (YIELD_AFTER // 4, 4)])
async def test_a_sender_that_never_waits_yields(size: int, count: int) -> None:
    """After 16 pieces or 64 KiB that were sent without waiting others get their turn; not before."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            for _ in range(2):
                with trio.testing.assert_no_checkpoints():
                    for _ in range(count - 1):
                        await side.transport.send(b"x" * size, STALL)
                with trio.testing.assert_checkpoints():
                    await side.transport.send(b"x" * size, STALL)
                await read_exactly(side.peer, size * count)


async def test_a_reader_that_never_waits_lets_others_run() -> None:
    """A client that sends without end keeps nobody waiting: after each 64 KiB the reader's task yields, and is not cut
    by a cancelled scope, since what is there is to be had."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side, trio.open_nursery() as nursery:
            turns = 0

            async def count_turns() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            nursery.start_soon(count_turns)
            received = 0
            while received < 20 * YIELD_AFTER:
                # Written by hand and without a checkpoint, so that there is always more to read.
                with contextlib.suppress(BlockingIOError):
                    while True:
                        side.raw_peer.send(b"x" * 65536)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    came = await side.transport.receive(inf)
                assert isinstance(came, bytes)
                received += len(came)
            assert turns >= 10
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("more", [b"", b"more"])
async def test_a_reader_is_woken_also_while_it_lets_others_run(more: bytes) -> None:
    """A reason that comes while the reader yields is not lost, or it would sleep until its deadline; the first counts,
    and what is there stays for later.
    """
    came: list[bytes | Wake] = []
    with trio.fail_after(DEADLINE):
        async with socket_side(unix_sockets, runs=False) as side:
            side.raw_peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * YIELD_AFTER)
            side.raw_peer.send(b"x" * READ_AT_ONCE + more)
            first = await side.transport.receive(inf)
            assert isinstance(first, bytes)
            assert len(first) == READ_AT_ONCE

            def wake() -> None:
                side.transport.wake(Wake.DRAIN)
                side.transport.wake(Wake.ENDED)

            instrument = AfterFirstStep("reader", wake)
            trio.lowlevel.add_instrument(instrument)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receives, side, came, name="reader")
            trio.lowlevel.remove_instrument(instrument)
            assert came == [Wake.DRAIN]
            assert await receive_now(side) == (more or None)


async def test_a_sender_of_parts_yields_as_any() -> None:
    """64 KiB in parts are 64 KiB."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            with trio.testing.assert_no_checkpoints():
                await side.transport.send_parts([b"x" * (YIELD_AFTER // 4)] * 3, STALL, False)
            with trio.testing.assert_checkpoints():
                await side.transport.send_parts([b"x" * (YIELD_AFTER // 4)], STALL, False)


async def test_who_has_waited_has_let_others_run() -> None:
    """A wait between two sends begins the count anew."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            for _ in range(YIELD_AFTER // LEAST_PIECE - 1):
                await side.transport.send(b"x", STALL)
            assert await side.transport.receive(0) is Wake.DEADLINE
            with trio.testing.assert_no_checkpoints():
                await side.transport.send(b"x", STALL)


async def test_a_file_yields_between_its_pieces(tmp_path: Path) -> None:
    """sendfile may block on a cold disk; after each piece others get their turn."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            with descriptor_of(tmp_path / "file", b"file") as file, trio.testing.assert_checkpoints():
                await side.transport.send_file(FilePiece(b"", file, 0, 4, b""), STALL)


# Closing


async def test_a_closed_transport_is_left_alone() -> None:
    """Closing twice is closing once; afterwards nothing waits, and nothing can be sent."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            await side.transport.aclose()
            successor = os.dup(0)  # takes the number, so that a second close would be seen
            try:
                assert successor == side.transport.fileno
                await side.transport.aclose(reset=True)
                os.fstat(successor)
            finally:
                os.close(successor)
            with trio.testing.assert_no_checkpoints():
                assert await side.transport.receive(inf) == b""
                await side.transport.wait_left()
                await side.transport.send_eof()
            with pytest.raises(ClientDisconnected):
                await side.transport.flush()
            assert await side.peer.receive_some(1) == b""


async def test_closing_reaches_the_peer_though_a_child_holds_the_socket() -> None:
    """A process that was forked meanwhile may hold the socket, too: the peer sees the end all the same."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            child_s = os.dup(side.transport.fileno)
            try:
                await side.transport.aclose()
                assert await side.peer.receive_some(1) == b""
            finally:
                os.close(child_s)


async def test_closing_after_the_peer_has_reset() -> None:
    """A socket that is no longer connected closes without a word."""
    with trio.fail_after(DEADLINE):
        async with socket_side() as side:
            side.reset()
            await side.transport.wait_left()
            await side.transport.aclose()


async def test_a_transport_outlives_its_reactor() -> None:
    """When the services end first, by an error, connections still close, and can say what the kernel takes."""
    with trio.fail_after(DEADLINE):
        peer, server = tcp_sockets()
        server.setblocking(False)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)
        reactor = Reactor()
        transport = SocketTransport(server, reactor, Clock())
        reactor.close()
        with peer:
            with trio.CancelScope() as scope:
                scope.cancel()
                await transport.send(b"x" * 5_000_000, STALL)
            await transport.aclose()


# As a stream


@BOTH
async def test_it_does_what_trio_asks_of_every_stream(make: MakeSockets) -> None:
    """Trio's own checks of a stream whose halves can be closed, also of one that its peer keeps waiting."""
    reactor, clock = Reactor(), Clock()

    async def make_streams() -> tuple[TransportStream, TransportStream]:
        await trio.lowlevel.checkpoint()
        streams = []
        for sock in make():
            sock.setblocking(False)
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, buffer, NARROW)
            streams.append(TransportStream(SocketTransport(sock, reactor, clock)))
        return streams[0], streams[1]

    async def make_clogged_streams() -> tuple[TransportStream, TransportStream]:
        first, second = await make_streams()
        for one in (first, second):
            # Much more than the kernel can take on both sides together, now or when the reactor looks.
            one.transport.send_nowait(bytes(16 * READ_AT_ONCE), STALL)
        return first, second

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.run)
            await trio.testing.check_half_closeable_stream(make_streams, make_clogged_streams)
            nursery.cancel_scope.cancel()
    reactor.close()
