"""A Transport over any stream. What it does as the other kind does is in test_transports.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.clock import Clock
from trioserve.errors import ClientDisconnected, WriteTimeout
from trioserve.net.stream_transport import PIECE, StreamTransport
from trioserve.transport import READ_AHEAD, FilePiece, Wake

from .transports import DEADLINE, STALL, Side, read_exactly, stream_over_memory, tcp_streams, transport_over

MockClock = trio.testing.MockClock


@asynccontextmanager
async def narrow_transport() -> AsyncIterator[Side]:
    """Over a stream that takes only what its peer reads, as a full socket does."""
    peer, server = trio.testing.lockstep_stream_pair()
    async with transport_over(server, peer) as side:
        yield side


# Reading


async def test_what_is_there_is_received_without_a_checkpoint(autojump_clock: MockClock) -> None:
    """Bytes that have come are returned at once, one arrival after the other."""
    async with stream_over_memory() as side:
        for data in (b"one", b"two"):
            await side.peer.send_all(data)
            await trio.testing.wait_all_tasks_blocked()
        with trio.testing.assert_no_checkpoints():
            assert await side.transport.receive(inf) == b"one"
            assert await side.transport.receive(inf) == b"two"


async def test_a_wait_ends_at_its_deadline(autojump_clock: MockClock) -> None:
    """When nothing came the reader is woken at its deadline, exactly, and may wait again."""
    async with stream_over_memory() as side:
        start = trio.current_time()
        for seconds in (5, 7):
            assert await side.transport.receive(start + seconds) is Wake.DEADLINE
            assert trio.current_time() == start + seconds


async def test_only_so_much_is_read_ahead() -> None:
    """A peer that sends without end is held back at 64 KiB; it goes on as the reader does."""
    sent = 0
    async with narrow_transport() as side:
        with trio.fail_after(DEADLINE):

            async def flood() -> None:
                nonlocal sent
                while True:
                    await side.peer.send_all(b"x" * 1024)
                    sent += 1024

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await trio.testing.wait_all_tasks_blocked()
                assert READ_AHEAD <= sent <= READ_AHEAD + 1024
                before = sent
                await side.transport.receive(inf)
                await trio.testing.wait_all_tasks_blocked()
                assert sent > before
                nursery.cancel_scope.cancel()


async def test_the_read_ahead_never_exceeds_the_bound(autojump_clock: MockClock) -> None:
    """Only as much is read from the peer as there is room for, and nothing while 64 KiB are unread."""
    async with stream_over_memory() as side:
        for size in (READ_AHEAD - 1, READ_AHEAD, 5):
            await side.peer.send_all(b"x" * size)
            await trio.testing.wait_all_tasks_blocked()
        sizes = []
        while sum(sizes) < 2 * READ_AHEAD + 4:
            came = await side.transport.receive(inf)
            assert isinstance(came, bytes)
            sizes.append(len(came))
            await trio.testing.wait_all_tasks_blocked()
        # The first left room for one byte, which was read; taking the first made room for all but that byte; and so on.
        assert sizes == [READ_AHEAD - 1, 1, READ_AHEAD - 1, 1, 4]


# Writing


async def test_several_senders_keep_their_order() -> None:
    """Pieces of several tasks go out one after the other as they were given."""
    async with narrow_transport() as side:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(side.transport.send, b"%d" % number * 1000, STALL)
                    await trio.testing.wait_all_tasks_blocked()
                received = b""
                while len(received) < 10_000:
                    received += await side.peer.receive_some()
            assert received == b"".join(b"%d" % number * 1000 for number in range(10))


async def test_a_sender_waits_while_too_much_is_unsent() -> None:
    """Behind a write that waits 64 KiB may be left; whoever brings more waits until the peer takes some."""
    done: list[int] = []

    async with narrow_transport() as side:
        with trio.fail_after(DEADLINE):

            async def send(number: int) -> None:
                await side.transport.send(b"x" * 40_000, STALL)
                done.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(send, number)
                    await trio.testing.wait_all_tasks_blocked()
                assert done == [1]
                received = 0
                while received < 160_000:
                    received += len(await side.peer.receive_some())
            assert sorted(done) == [0, 1, 2, 3]


async def test_a_file_waits_its_turn(tmp_path: Path) -> None:
    """A file behind another write goes out in its turn, and its sender waits until all of it is sent."""
    (tmp_path / "file").write_bytes(b"file")
    async with narrow_transport() as side:
        with trio.fail_after(DEADLINE):
            received = b""
            with (tmp_path / "file").open("rb") as file:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(side.transport.send, b"first", STALL)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(side.transport.send_file, FilePiece(b"<", file.fileno(), 0, 4, b">"), STALL)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(side.transport.send, b"last", STALL)
                    await trio.testing.wait_all_tasks_blocked()
                    while len(received) < 15:
                        received += await side.peer.receive_some()
            assert received == b"first<file>last"


async def test_a_cancelled_sender_breaks_the_transport() -> None:
    """Nobody knows how much of a cancelled write went out, so nothing may follow it; those who wait are told."""
    raised: list[BaseException] = []

    async with narrow_transport() as side:
        with trio.fail_after(DEADLINE):

            async def send() -> None:
                try:
                    await side.transport.send(b"x" * 100_000, STALL)
                except ClientDisconnected as error:
                    raised.append(error)

            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_when_blocked, scope, nursery, send)
                    await side.transport.send(b"first", STALL)
            assert scope.cancelled_caught
            assert side.transport.is_broken
            assert len(raised) == 1
            await send()
            assert len(raised) == 2


async def _cancel_when_blocked(
    scope: trio.CancelScope, nursery: trio.Nursery, send: Callable[[], Awaitable[None]]
) -> None:
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: MockClock) -> None:
    """After ``stall`` seconds without progress a write raises WriteTimeout, and the transport is broken."""
    async with narrow_transport() as side:
        start = trio.current_time()
        with pytest.raises(WriteTimeout, match="took nothing for 30 s"):
            await side.transport.send(b"data", STALL)
        assert trio.current_time() - start == 30
        assert side.transport.is_broken


async def test_every_piece_that_is_taken_renews_the_time(autojump_clock: MockClock) -> None:
    """Large data is written in pieces, each with its own time."""
    async with narrow_transport() as side, trio.open_nursery() as nursery:
        nursery.start_soon(side.transport.send, b"x" * (3 * PIECE), STALL)
        received = 0
        while received < 3 * PIECE:
            await trio.sleep(29)
            received += len(await side.peer.receive_some())


async def test_a_file_s_peer_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """The same for sendfile on a real socket."""
    (tmp_path / "file").write_bytes(b"x" * 20_000_000)
    peer, server = await tcp_streams()
    with trio.fail_after(DEADLINE):
        async with transport_over(server, peer) as side:
            with (tmp_path / "file").open("rb") as file, pytest.raises(WriteTimeout):
                await side.transport.send_file(FilePiece(b"", file.fileno(), 0, 20_000_000, b""), 0.2)
            assert side.transport.is_broken


async def test_a_file_to_a_peer_that_has_reset_raises(tmp_path: Path) -> None:
    """sendfile to nobody is ClientDisconnected, as any write."""
    (tmp_path / "file").write_bytes(b"x" * 20_000_000)
    peer, server = await tcp_streams()
    with trio.fail_after(DEADLINE):
        async with transport_over(server, peer) as side:
            await side.peer.aclose()
            with (tmp_path / "file").open("rb") as file, pytest.raises(ClientDisconnected):
                await side.transport.send_file(FilePiece(b"", file.fileno(), 0, 20_000_000, b""), STALL)


async def test_flush_waits_for_all_that_was_sent() -> None:
    """flush returns when the peer has taken what other tasks left to be written."""
    async with narrow_transport() as side:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send, b"first", STALL)
                await trio.testing.wait_all_tasks_blocked()
                await side.transport.send(b"second", STALL)
                with trio.move_on_after(0.05) as scope:
                    await side.transport.flush()
                assert scope.cancelled_caught
                nursery.start_soon(side.transport.flush)
                received = b""
                while len(received) < 11:
                    received += await side.peer.receive_some()
            assert received == b"firstsecond"


# Closing


class DeafStream(trio.abc.Stream):
    """A stream of a peer that neither sends nor reads nor closes."""

    def __init__(self) -> None:
        self.is_closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.is_closed = True


async def test_closing_takes_at_most_a_second(autojump_clock: MockClock) -> None:
    """A stream that says goodbye for ever, as TLS may, is closed within a second, also by a cancelled task."""
    clock = Clock()
    stream = DeafStream()
    transport = StreamTransport(stream, clock)
    start = trio.current_time()
    with trio.CancelScope() as scope:
        scope.cancel()
        await transport.aclose()
    assert stream.is_closed
    assert trio.current_time() - start == 1


async def test_a_reset_on_another_stream_is_a_close(autojump_clock: MockClock) -> None:
    """A stream that is no socket has no reset: it just closes."""
    async with stream_over_memory() as side:
        await side.transport.aclose(reset=True)
        assert await side.peer.receive_some() == b""


async def test_a_file_whose_sender_is_cancelled_before_its_turn_is_left_out(tmp_path: Path) -> None:
    """Nothing of it goes out, as its descriptor may be another file's by then; what others send still does."""
    (tmp_path / "file").write_bytes(b"file")
    with trio.fail_after(DEADLINE):
        async with narrow_transport() as side, trio.open_nursery() as nursery:
            with (tmp_path / "file").open("rb") as file, trio.CancelScope() as scope:
                nursery.start_soon(side.transport.send, b"one", STALL)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await side.transport.send_file(FilePiece(b"<", file.fileno(), 0, 4, b">"), STALL)
            assert scope.cancelled_caught
            nursery.start_soon(side.transport.send, b"two", STALL)
            assert await read_exactly(side.peer, 6) == b"onetwo"


async def test_a_file_whose_sender_is_cancelled_in_its_turn_breaks_the_transport(tmp_path: Path) -> None:
    """Another task is writing it: that one must not go on with a descriptor that its owner has closed."""
    (tmp_path / "file").write_bytes(b"file")
    raised: list[BaseException] = []
    with trio.fail_after(DEADLINE):
        async with narrow_transport() as side, trio.open_nursery() as nursery:

            async def send_first() -> None:
                try:
                    await side.transport.send(b"one", STALL)
                except ClientDisconnected as error:
                    raised.append(error)

            nursery.start_soon(send_first)
            await trio.testing.wait_all_tasks_blocked()
            with (tmp_path / "file").open("rb") as file, trio.CancelScope() as scope:
                nursery.start_soon(take_and_cancel, side, scope)
                await side.transport.send_file(FilePiece(b"<", file.fileno(), 0, 4, b">"), STALL)
            assert scope.cancelled_caught
            assert side.transport.is_broken
            assert await read_exactly(side.peer, 1) == b"<"
            await trio.testing.wait_all_tasks_blocked()
            while not raised:
                await trio.sleep(0.001)


async def take_and_cancel(side: Side, scope: trio.CancelScope) -> None:
    """Let the first piece through, and cancel the file's sender when its frame is being written."""
    await trio.testing.wait_all_tasks_blocked()
    assert await read_exactly(side.peer, 3) == b"one"
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
