"""Closing so that the client can read the last thing it was told."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioserve import linger as linger_module
from trioserve.clock import Clock
from trioserve.linger import PATIENCE, linger
from trioserve.net.stream_transport import StreamTransport
from trioserve.transport import Wake

from .test_transports import ALL, HALF_CLOSEABLE
from .transports import DEADLINE, STALL, MakeSide, read_exactly, stream_over_memory, until

MockClock = trio.testing.MockClock


async def _flood(peer: trio.abc.Stream) -> None:
    """Send without end, until nobody takes it any more."""
    try:
        while True:
            await peer.send_all(b"more" * 1000)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@HALF_CLOSEABLE
async def test_the_client_reads_all_and_then_the_end(make: MakeSide) -> None:
    """A client that is still sending can read what it was told, and that nothing more will come."""
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            await side.transport.send(b"the last word", STALL)
            nursery.start_soon(linger, side.transport)
            await side.peer.send_all(b"more" * 100_000)
            assert await read_exactly(side.peer, 13) == b"the last word"
            assert await side.peer.receive_some(1) == b""
            await trio.aclose_forcefully(side.peer)


@ALL
async def test_it_ends_when_the_client_closes(make: MakeSide) -> None:
    """What the client sends is thrown away until it closes too: nothing is left unread, which would be a reset."""
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            nursery.start_soon(linger, side.transport)
            await side.peer.send_all(b"more" * 100_000)
            await trio.aclose_forcefully(side.peer)
            await side.transport.wait_left()
            await trio.testing.wait_all_tasks_blocked()
            assert side.transport.receive_nowait() == b""


async def test_a_client_that_does_not_close_is_left(autojump_clock: MockClock) -> None:
    """After two seconds of silence it is enough."""
    async with stream_over_memory() as side:
        start = trio.current_time()
        await linger(side.transport)
        assert trio.current_time() - start == PATIENCE


async def test_being_woken_is_no_end(autojump_clock: MockClock) -> None:
    """A wake with another reason does not end it."""
    async with stream_over_memory() as side, trio.open_nursery() as nursery:
        start = trio.current_time()
        nursery.start_soon(linger, side.transport)
        await trio.testing.wait_all_tasks_blocked()
        for reason in (Wake.DRAIN, Wake.ENDED):
            side.transport.wake(reason)
            await trio.testing.wait_all_tasks_blocked()
        await side.peer.send_all(b"more")
        await trio.sleep(PATIENCE / 2)
        await side.peer.send_all(b"more")
        while nursery.child_tasks:
            await trio.sleep(0.01)
        assert trio.current_time() - start == pytest.approx(PATIENCE, abs=0.02)


@ALL
async def test_a_client_that_sends_a_lot_is_left(make: MakeSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much the client goes on to send, it is over."""
    monkeypatch.setattr(linger_module, "PATIENCE", 0.05)
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            nursery.start_soon(_flood, side.peer)
            await until(lambda: side.transport.has_unread)
            await linger(side.transport)
            await side.transport.aclose()


class Endless(StreamTransport):
    """Of this client there is always more, so that no wait for it ever reaches its deadline."""

    async def receive(self, deadline: float) -> bytes:
        await trio.sleep(0.01)
        return b"more"


async def test_bytes_without_end_do_not_make_it_longer(autojump_clock: MockClock) -> None:
    """Two seconds are enough also if no moment of them was without bytes."""
    stream, peer = trio.testing.memory_stream_pair()
    start = trio.current_time()
    with trio.fail_after(3600):
        await linger(Endless(stream, Clock()))
    assert trio.current_time() - start == pytest.approx(PATIENCE, abs=0.02)
    await trio.aclose_forcefully(stream)
    await trio.aclose_forcefully(peer)


@ALL
async def test_a_client_that_is_gone_is_not_waited_for(make: MakeSide) -> None:
    """Nothing is said to, and nothing awaited of, a client that cannot be reached."""
    with trio.fail_after(DEADLINE):
        async with make() as side:
            await side.transport.aclose()
            await linger(side.transport)


@HALF_CLOSEABLE
async def test_what_was_sent_goes_first(make: MakeSide) -> None:
    """The end is said after all that was sent, however long the client takes to read it."""
    size = 2_000_000
    with trio.fail_after(DEADLINE):
        async with make() as side, trio.open_nursery() as nursery:
            nursery.start_soon(side.transport.send, b"x" * size, STALL)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(linger, side.transport)
            await trio.testing.wait_all_tasks_blocked()
            assert await read_exactly(side.peer, size) == b"x" * size
            assert await side.peer.receive_some(1) == b""
            await trio.aclose_forcefully(side.peer)
