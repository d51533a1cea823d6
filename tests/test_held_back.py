"""A SocketTransport holds back the pieces of a stream that follow each other at once, and no longer than a turn."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.errors import ClientDisconnected, WriteTimeout
from trioserve.net.reactor import SUPPORTED
from trioserve.net.socket_writer import HOLD_BACK, STREAM_GAP
from trioserve.transport import FilePiece

from .transports import DEADLINE, STALL, SocketSide, pattern, read_exactly, socket_side, unix_sockets

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="only Linux has epoll")


def has_come(side: SocketSide) -> bytes:
    """What has reached the peer's kernel by now."""
    try:
        return side.raw_peer.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


async def send_two(side: SocketSide) -> None:
    """A piece that goes out, and one that is held back."""
    for piece in (b"one ", b"two "):
        await side.transport.send_parts([piece], STALL, True)
    assert has_come(side) == b"one "


async def test_the_first_piece_goes_out_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """A client sees the beginning even if the handler then computes for long; the rest goes when the handler waits."""
    async with socket_side(unix_sockets) as side:
        with trio.testing.assert_no_checkpoints():
            await send_two(side)
            await side.transport.send_parts([b"three"], STALL, True)
            assert has_come(side) == b"one "
        await trio.testing.wait_all_tasks_blocked()
        assert has_come(side) == b"one two three"


async def test_pieces_with_time_between_go_out_at_once(mock_clock: trio.testing.MockClock) -> None:
    """What a handler sends now and then, such as server-sent events, does not wait."""
    async with socket_side(unix_sockets) as side:
        for number in range(3):
            with trio.testing.assert_no_checkpoints():
                await side.transport.send_parts([b"x"], STALL, True)
                assert has_come(side) == b"x" * (number + 1)
            mock_clock.jump(STREAM_GAP)


async def test_the_last_piece_takes_what_was_held_back_along(autojump_clock: trio.testing.MockClock) -> None:
    """What is sent without more behind it, in parts or whole, goes out at once with all before it."""
    async with socket_side(unix_sockets) as side:
        with trio.testing.assert_no_checkpoints():
            await send_two(side)
            await side.transport.send_parts([b"and ", b"three"], STALL, False)
            assert has_come(side) == b"one two and three"
        assert await read_exactly(side.peer, 17) == b"one two and three"
        with trio.testing.assert_no_checkpoints():
            await side.transport.send_parts([b"four "], STALL, True)
            await side.transport.send(b"five", STALL)
            assert has_come(side) == b"four five"


async def test_much_goes_out_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """As soon as enough is together it goes out, in one write."""
    data = pattern(HOLD_BACK)
    async with socket_side(unix_sockets) as side:
        await side.transport.send_parts([data[:1]], STALL, True)
        with trio.testing.assert_no_checkpoints():
            await side.transport.send_parts([data[1 : HOLD_BACK // 2]], STALL, True)
            assert has_come(side) == data[:1]
        await side.transport.send_parts([data[HOLD_BACK // 2 :], b"!"], STALL, True)
        assert await read_exactly(side.peer, HOLD_BACK + 1) == data + b"!"


async def test_a_reader_does_not_wait_over_what_is_held_back(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever asks and then waits for the answer has asked."""
    async with socket_side(unix_sockets) as side, trio.open_nursery() as nursery:
        await send_two(side)

        async def answer() -> None:
            assert await read_exactly(side.peer, 8) == b"one two "
            await side.peer.send_all(b"answer")

        nursery.start_soon(answer)
        assert await side.transport.receive(trio.current_time() + DEADLINE) == b"answer"


@pytest.mark.parametrize("flush", [lambda side: side.transport.flush(), lambda side: side.transport.send_eof()])
async def test_a_flush_is_for_what_is_held_back_too(
    autojump_clock: trio.testing.MockClock, flush: Callable[[SocketSide], Awaitable[None]]
) -> None:
    """Before the end of a connection everything goes out."""
    async with socket_side(unix_sockets) as side:
        await send_two(side)
        await flush(side)
        assert has_come(side) == b"one two "


async def test_a_file_follows_what_is_held_back(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    """A file keeps its place behind the pieces before it."""
    (tmp_path / "file").write_bytes(b"file")
    async with socket_side(unix_sockets) as side:
        with (tmp_path / "file").open("rb") as file:
            await send_two(side)
            await side.transport.send_file(FilePiece(b"<", file.fileno(), 0, 4, b">"), STALL)
        assert has_come(side) == b"one two <file>"


async def test_closing_forgets_what_is_held_back(autojump_clock: trio.testing.MockClock) -> None:
    """A transport that is closed without a flush writes nothing later, to whomever the descriptor then belongs."""
    async with socket_side(unix_sockets) as side:
        await send_two(side)
        await side.transport.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert has_come(side) == b"one "


async def test_a_broken_connection_is_told_to_who_sends_more(autojump_clock: trio.testing.MockClock) -> None:
    """What was held back for a peer that has left is lost, and the next piece says so."""
    async with socket_side(unix_sockets) as side:
        await send_two(side)
        side.raw_peer.close()
        with pytest.raises(ClientDisconnected):
            await side.transport.send_parts([b"x"], STALL, False)


async def test_a_peer_that_takes_nothing_of_it(autojump_clock: trio.testing.MockClock) -> None:
    """What was held back has a write deadline as anything has, from when the kernel did not take it."""
    async with socket_side(unix_sockets, buffer=4096) as side:
        await side.transport.send_parts([b"x"], STALL, True)
        await side.transport.send_parts([pattern(HOLD_BACK - 2)], STALL, True)
        begun = trio.current_time()
        with pytest.raises(WriteTimeout):
            await side.transport.flush()
        assert STALL <= trio.current_time() - begun <= 1.25 * STALL
