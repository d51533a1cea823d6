"""Seeing that a slow client still takes something, long before its socket is writable."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioserve.errors import WriteTimeout
from trioserve.net.progress import SendProgress

from .transports import DEADLINE, STALL, MakeSide, socket_over_tcp, stream_over_tcp, stream_over_tls, tcp_streams, until

MUCH = b"x" * 32_000_000
"""More than the kernel buffers of both sides hold."""


async def fill(stream: trio.SocketStream) -> None:
    """Send until the kernel takes no more."""
    with trio.move_on_after(0.2):
        await stream.send_all(MUCH)


async def take(stream: trio.abc.Stream, count: int) -> None:
    while count > 0:
        count -= len(await stream.receive_some(min(count, 65536)))


async def test_progress_is_what_the_peer_takes() -> None:
    """A peer that takes nothing is given up after the stall, at the latest a quarter of it later; each look that finds
    that it has taken something begins anew."""
    with trio.fail_after(DEADLINE):
        peer, server = await tcp_streams()
        async with peer, server:
            await fill(server)
            progress = SendProgress.of(server)
            assert progress.begin(100, 4) == 101
            assert progress.next_look(101) == 102  # what was before the first look is not known
            assert progress.next_look(104) == 105
            await take(peer, 100_000)
            await until(lambda: progress.next_look(104.5) == 105.5)
            assert progress.next_look(108) == 108.5
            assert progress.next_look(108.5) is None


async def test_without_a_socket_there_is_no_progress() -> None:
    """Of a stream that is no socket, and of a closed socket, nothing can be known: the stall counts from the start."""
    stream, _ = trio.testing.memory_stream_pair()
    peer, server = await tcp_streams()
    for progress in (SendProgress.of(stream), SendProgress.of(server)):
        await server.aclose()
        assert progress.begin(100, 4) == 101
        assert progress.next_look(103.5) == 104
        assert progress.next_look(104) is None
    await peer.aclose()


@pytest.mark.parametrize("make", [socket_over_tcp, stream_over_tcp, stream_over_tls])
async def test_a_slow_client_is_not_given_up(make: MakeSide, mock_clock: trio.testing.MockClock) -> None:
    """A client that takes a little in each period, too little to make the socket writable, keeps its connection.

    One that takes nothing for a whole period loses it.
    """
    failed: list[float] = []

    async with make() as side:

        async def send() -> None:
            try:
                await side.transport.send(MUCH, STALL)
            except WriteTimeout:
                failed.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await settle()
            for _ in range(5):
                await take(side.peer, 600_000)
                await settle()
                mock_clock.jump(STALL - 1)
                await settle()
                assert failed == []
            mock_clock.jump(2 * STALL)
            await settle()
            mock_clock.jump(2 * STALL)
            await settle()
            assert len(failed) == 1


@pytest.mark.parametrize("make", [socket_over_tcp, stream_over_tcp, stream_over_tls])
async def test_a_client_that_takes_single_bytes_is_given_up(make: MakeSide, mock_clock: trio.testing.MockClock) -> None:
    """A byte now and then makes no room that the kernel would tell us of: the stall goes on."""
    failed: list[float] = []

    async with make() as side:

        async def send() -> None:
            try:
                await side.transport.send(MUCH, STALL)
            except WriteTimeout:
                failed.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await settle()
            for _ in range(8):
                await take(side.peer, 1)
                await settle()
                mock_clock.jump(STALL / 2)
                await settle()
            (when,) = failed
            assert when <= 3 * STALL  # over TLS the first byte brings a whole record


async def settle() -> None:
    """Let the sockets' events come and everyone act on them; the mock clock stands still, so nothing else happens."""
    for _ in range(200):
        await trio.lowlevel.checkpoint()
