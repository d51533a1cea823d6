"""What all kinds of Transport do alike: three implementations behind one set of tests."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.errors import ClientDisconnected
from trioserve.transport import FilePiece, Wake

from .support import LINUX
from .transports import (
    DEADLINE,
    STALL,
    MakeSide,
    pattern,
    read_exactly,
    receive_exactly,
    socket_over_tcp,
    socket_over_unix,
    stream_over_memory,
    stream_over_tcp,
    stream_over_tls,
    tls_over_memory,
    tls_over_socket,
    until,
)

EPOLL = pytest.mark.skipif(not LINUX, reason="only Linux has epoll")
STREAMS = [stream_over_memory, stream_over_tcp, stream_over_tls]
SOCKETS = [pytest.param(socket_over_tcp, marks=EPOLL), pytest.param(socket_over_unix, marks=EPOLL)]
SECURED = [tls_over_memory, pytest.param(tls_over_socket, marks=EPOLL)]
ALL = pytest.mark.parametrize("make", [*STREAMS, *SOCKETS, *SECURED])
HALF_CLOSEABLE = pytest.mark.parametrize("make", [stream_over_memory, stream_over_tcp, *SOCKETS])
TCP = pytest.mark.parametrize("make", [stream_over_tcp, pytest.param(socket_over_tcp, marks=EPOLL)])


# Receiving


@ALL
async def test_bytes_go_both_ways(make: MakeSide) -> None:
    """What one side sends the other receives, whole and in order."""
    data = pattern(1_000_000)
    with trio.fail_after(DEADLINE):
        async with make() as side:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.peer.send_all, data)
                assert await receive_exactly(side.transport, len(data)) == data
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send, data, STALL)
                assert await read_exactly(side.peer, len(data)) == data


@ALL
async def test_a_wait_ends_at_its_deadline(make: MakeSide) -> None:
    """When nothing came the reader is woken at its deadline, not before, and may wait again."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            for _ in range(2):
                deadline = trio.current_time() + 0.02
                side.transport.has_waited = False
                assert await side.transport.receive(deadline) is Wake.DEADLINE
                assert side.transport.has_waited
                assert trio.current_time() >= deadline
            await side.peer.send_all(b"data")
            assert await side.transport.receive(inf) == b"data"


@ALL
@pytest.mark.parametrize("reason", [Wake.DRAIN, Wake.ENDED])
async def test_a_reader_can_be_woken(make: MakeSide, reason: Wake) -> None:
    """wake() ends the reader's wait with its reason, once, and each wait_left; without a reader it does nothing."""
    reasons: list[object] = []

    async with make() as side:
        side.transport.wake(Wake.DRAIN)

        async def read() -> None:
            reasons.append(await side.transport.receive(inf))

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(side.transport.wait_left)
                nursery.start_soon(side.transport.wait_left)
                await trio.testing.wait_all_tasks_blocked()
                side.transport.wake(reason)
                side.transport.wake(Wake.DRAIN)
            assert reasons == [reason]
            assert not side.transport.has_left


@ALL
async def test_a_cancelled_reader_leaves_its_place(make: MakeSide) -> None:
    """A reader that was cancelled loses no bytes: the next one gets them."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            with trio.move_on_after(0.01) as scope:
                await side.transport.receive(inf)
            assert scope.cancelled_caught
            await side.peer.send_all(b"data")
            assert await side.transport.receive(inf) == b"data"


@ALL
async def test_bytes_that_nobody_waits_for_are_told(make: MakeSide) -> None:
    """``unread`` is called when bytes come while nobody waits for them, not when a reader gets them."""
    told: list[bool] = []
    with trio.fail_after(DEADLINE):
        async with make() as side:
            side.transport.tell(left=lambda: None, unread=lambda: told.append(True))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_when_blocked, side.peer)
                assert await side.transport.receive(inf) == b"data"
            assert await side.transport.receive(trio.current_time() + 0.01) is Wake.DEADLINE
            assert told == []
            assert not side.transport.has_unread
            await side.peer.send_all(b"unread")
            await until(lambda: bool(told))
            assert side.transport.has_unread
            assert await side.transport.receive(inf) == b"unread"


@ALL
async def test_a_look_does_not_wait(make: MakeSide) -> None:
    """receive_nowait returns what is there, once, and None where a receive would wait; it never suspends its task."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            side.transport.has_waited = False
            assert side.transport.receive_nowait() is None
            assert side.transport.receive_nowait() is None
            await side.peer.send_all(b"data")
            await until(lambda: side.transport.has_unread)
            assert side.transport.receive_nowait() == b"data"
            assert side.transport.receive_nowait() is None
            assert not side.transport.has_unread
            assert not side.transport.has_waited


@ALL
async def test_a_look_leaves_the_rest_to_the_next(make: MakeSide) -> None:
    """Looking and waiting may alternate: no byte is lost, or given twice, however many there are."""
    data = pattern(1_000_000)
    received = bytearray()
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            nursery.start_soon(side.peer.send_all, data)
            while len(received) < len(data):
                piece = side.transport.receive_nowait()
                if piece is None:
                    waited = await side.transport.receive(inf)
                    assert isinstance(waited, bytes)
                    piece = waited
                assert piece
                received += piece
            assert received == data
            assert side.transport.receive_nowait() is None


@ALL
async def test_a_look_sees_the_end(make: MakeSide) -> None:
    """After the last bytes a look sees the end, again and again, and so it does once the transport is closed."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await side.peer.send_all(b"last words")
            await trio.aclose_forcefully(side.peer)
            await side.transport.wait_left()
            assert side.transport.receive_nowait() == b"last words"
            assert side.transport.receive_nowait() == b""
            assert side.transport.receive_nowait() == b""
            await side.transport.aclose()
            assert side.transport.receive_nowait() == b""


@TCP
async def test_a_look_at_a_peer_that_has_reset(make: MakeSide) -> None:
    """A peer that is gone is an end, too, and no error."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            _reset(side.peer)
            await side.transport.wait_left()
            assert side.transport.receive_nowait() == b""
            assert side.transport.is_broken


async def _send_when_blocked(peer: trio.abc.Stream) -> None:
    await trio.testing.wait_all_tasks_blocked()
    await peer.send_all(b"data")


# Leaving


@ALL
async def test_leaving_is_noticed_at_once(make: MakeSide) -> None:
    """A client that closes is known to have left although nobody reads, and all who wait for that are told."""
    told: list[bool] = []
    with trio.fail_after(DEADLINE):
        async with make() as side:
            side.transport.tell(left=lambda: told.append(True), unread=lambda: None)
            assert not side.transport.has_left
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.wait_left)
                nursery.start_soon(side.transport.wait_left)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.start_soon(trio.aclose_forcefully, side.peer)
            assert side.transport.has_left
            with trio.testing.assert_no_checkpoints():
                await side.transport.wait_left()
                assert await side.transport.receive(inf) == b""
                assert await side.transport.receive(inf) == b""
            assert told == [True]


@ALL
async def test_leaving_is_noticed_while_bytes_are_unread(make: MakeSide) -> None:
    """What came before the end stays to be received after the end is known, and then the end."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await side.peer.send_all(b"last words")
            await trio.aclose_forcefully(side.peer)
            await side.transport.wait_left()
            assert await side.transport.receive(inf) == b"last words"
            assert await side.transport.receive(inf) == b""


@ALL
async def test_a_waiting_reader_learns_of_the_end(make: MakeSide) -> None:
    """The reader that waits when the client leaves gets the end."""
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            nursery.start_soon(_close_when_blocked, side.peer)
            assert await side.transport.receive(inf) == b""


async def _close_when_blocked(peer: trio.abc.Stream) -> None:
    await trio.testing.wait_all_tasks_blocked()
    await trio.aclose_forcefully(peer)


@HALF_CLOSEABLE
async def test_a_half_closed_client_is_still_served(make: MakeSide) -> None:
    """A client that has only closed its own half has left, and can still be sent to."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            assert isinstance(side.peer, trio.abc.HalfCloseableStream)
            await side.peer.send_all(b"question")
            await side.peer.send_eof()
            await side.transport.wait_left()
            assert not side.transport.is_broken
            assert await side.transport.receive(inf) == b"question"
            await side.transport.send(b"answer", STALL)
            assert await read_exactly(side.peer, 6) == b"answer"


@ALL
async def test_sending_to_nobody_raises(make: MakeSide) -> None:
    """Once the peer has closed, sending raises ClientDisconnected, sooner or later, and then always."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await trio.aclose_forcefully(side.peer)
            with pytest.raises(ClientDisconnected):
                while True:
                    await side.transport.send(b"x" * 1000, STALL)
            assert side.transport.is_broken
            assert side.transport.has_left
            with pytest.raises(ClientDisconnected):
                await side.transport.send(b"x", STALL)
            with pytest.raises(ClientDisconnected):
                await side.transport.send_file(FilePiece(b"", 0, 0, 1, b""), STALL)
            with pytest.raises(ClientDisconnected):
                await side.transport.flush()
            await side.transport.send_eof()


@TCP
async def test_a_reset_is_noticed(make: MakeSide) -> None:
    """A peer that resets is gone, and nothing can be sent to it any more."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            _reset(side.peer)
            await side.transport.wait_left()
            assert side.transport.is_broken
            assert await side.transport.receive(inf) == b""
            with pytest.raises(ClientDisconnected):
                await side.transport.send(b"x", STALL)
            await side.transport.send_eof()


def _reset(peer: trio.abc.Stream) -> None:
    assert isinstance(peer, trio.SocketStream)
    peer.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.socket.close()


@ALL
async def test_parts_go_out_as_one(make: MakeSide) -> None:
    """The parts of a message arrive in their order and between what is sent before and after, however large."""
    parts = [b"head", b"", pattern(600_000), b"tail"]
    expected = b"before" + b"".join(parts) + b"after"
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:

            async def send() -> None:
                await side.transport.send(b"before", STALL)
                await side.transport.send_parts(parts, STALL, False)
                await side.transport.send(b"after", STALL)

            nursery.start_soon(send)
            assert await read_exactly(side.peer, len(expected)) == expected


@ALL
async def test_parts_to_nobody_raise(make: MakeSide) -> None:
    """Once the peer has closed, sending parts raises ClientDisconnected, sooner or later, and then always."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await trio.aclose_forcefully(side.peer)
            with pytest.raises(ClientDisconnected):
                while True:
                    await side.transport.send_parts([b"x" * 1000, b"y" * 1000], STALL, False)
            assert side.transport.is_broken
            with pytest.raises(ClientDisconnected):
                await side.transport.send_parts([b"x"], STALL, False)


# Files


@ALL
async def test_a_file_is_sent(make: MakeSide, tmp_path: Path) -> None:
    """A part of a file goes out between what frames it, by sendfile or by reading it."""
    data = pattern(700_000)
    (tmp_path / "file").write_bytes(data)
    with trio.fail_after(DEADLINE):
        async with make() as side:
            assert side.transport.can_send_files == isinstance(side.peer, trio.SocketStream)
            with (tmp_path / "file").open("rb") as file:
                piece = FilePiece(b"<", file.fileno(), 10, 600_000, b">")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(side.transport.send_file, piece, STALL)
                    assert await read_exactly(side.peer, 600_002) == b"<" + data[10:600_010] + b">"


@ALL
async def test_a_file_that_is_too_short_breaks_the_transport(make: MakeSide, tmp_path: Path) -> None:
    """A file that ends early is an EOFError, and nothing may follow what went out; that does not make the client
    leave.
    """
    (tmp_path / "file").write_bytes(b"12345")
    with trio.fail_after(DEADLINE):
        async with make() as side:
            with (tmp_path / "file").open("rb") as file, pytest.raises(EOFError, match="ended 5 bytes early"):
                await side.transport.send_file(FilePiece(b"", file.fileno(), 0, 10, b""), STALL)
            assert side.transport.is_broken
            assert not side.transport.has_left
            with pytest.raises(ClientDisconnected):
                await side.transport.send(b"more", STALL)
            await side.peer.send_all(b"here")
            assert await side.transport.receive(inf) == b"here"


@ALL
async def test_several_senders_and_files_keep_their_order(make: MakeSide, tmp_path: Path) -> None:
    """Pieces and files of several tasks go out one after the other as they were given."""
    data = [pattern(size) for size in (300_000, 30_000, 2_000_000, 5, 2_000_000, 30_000)]
    for number in (2, 4):
        (tmp_path / str(number)).write_bytes(data[number])
    files = {number: os.open(tmp_path / str(number), os.O_RDONLY) for number in (2, 4)}
    try:
        with trio.fail_after(DEADLINE):
            async with make() as side, trio.open_nursery() as nursery:
                for number, each in enumerate(data):
                    if number in files:
                        piece = FilePiece(b"", files[number], 0, len(each), b"")
                        nursery.start_soon(side.transport.send_file, piece, STALL)
                    else:
                        nursery.start_soon(side.transport.send, each, STALL)
                    await trio.testing.wait_all_tasks_blocked()
                total = b"".join(data)
                assert await read_exactly(side.peer, len(total)) == total
    finally:
        for descriptor in files.values():
            os.close(descriptor)


# Ending


@HALF_CLOSEABLE
async def test_saying_that_no_more_is_sent(make: MakeSide) -> None:
    """Where the stream can close its half the peer sees the end, and can still send, and then end too."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await side.transport.send_eof()
            assert await side.peer.receive_some(1) == b""
            await side.peer.send_all(b"still here")
            assert await side.transport.receive(inf) == b"still here"
            await side.peer.send_all(b"bye")
            await trio.aclose_forcefully(side.peer)
            await side.transport.wait_left()
            assert await side.transport.receive(inf) == b"bye"
            assert await side.transport.receive(inf) == b""


async def test_saying_that_no_more_is_sent_where_that_is_impossible() -> None:
    """TLS as Trio does it has no half to close: nothing happens."""
    with trio.fail_after(DEADLINE):
        async with stream_over_tls() as side:
            await side.transport.send_eof()
            await side.transport.send(b"more", STALL)
            assert await read_exactly(side.peer, 4) == b"more"


@ALL
async def test_closing_ends_all_waits(make: MakeSide) -> None:
    """Whoever waits for a transport that is closed is told: the reader gets the end, waits for leaving return."""
    received: list[object] = []

    async with make() as side:
        with trio.fail_after(DEADLINE):

            async def read() -> None:
                received.append(await side.transport.receive(inf))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(side.transport.wait_left)
                await trio.testing.wait_all_tasks_blocked()
                await side.transport.aclose()
            assert received == [b""]
            with pytest.raises(ClientDisconnected):
                await side.transport.send(b"x", STALL)
            await side.transport.aclose()


@TCP
async def test_closing_with_a_reset_is_no_end(make: MakeSide) -> None:
    """With ``reset`` the peer of a socket sees a reset, which it cannot take for the end."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await side.transport.aclose(reset=True)
            with pytest.raises(trio.BrokenResourceError):
                await side.peer.receive_some(1)


@ALL
async def test_closing_is_an_end(make: MakeSide) -> None:
    """Without ``reset`` the peer sees the end after all that was sent."""
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            await side.transport.send(b"bye", STALL)
            nursery.start_soon(side.transport.aclose)
            assert await read_exactly(side.peer, 3) == b"bye"
            assert await side.peer.receive_some(1) == b""
            await until(lambda: side.transport.is_broken)
