"""When a WebSocket's frames are written: at once, or together with others."""

from __future__ import annotations

import pytest

from trioserve.asgi.outbound import GATHERED_AT_MOST, SOON, Outbound
from trioserve.errors import ClientDisconnected
from trioserve.transport import READ_AHEAD

STALL = 7.0


class Wire:
    """A channel that writes down what it is given; nothing else of one is used."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_broken = False

    def send_nowait(self, data: bytes, stall: float) -> None:
        assert stall == STALL
        if self.is_broken:
            raise ClientDisconnected("the client has left")
        self.written.append(data)


class Bench:
    """An Outbound, its wire, and how often it rang."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.rings = 0
        self.outbound = Outbound(self.wire, STALL, self._ring)  # type: ignore[arg-type]  # a part of a Channel is enough

    def _ring(self) -> None:
        self.rings += 1

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.outbound.send(frame)


async def test_the_first_message_is_written_at_once(mock_clock):
    """A message that answers, or that comes alone, waits for nobody."""
    bench = Bench()
    bench.send(b"one")
    assert (bench.wire.written, bench.rings) == ([b"one"], 0)
    bench.outbound.note_received()
    bench.send(b"two")
    assert (bench.wire.written, bench.rings) == ([b"one", b"two"], 0)


async def test_what_follows_is_gathered_and_written_together(mock_clock):
    """Later messages wait for the task that is rung for, which writes them all, and are in order."""
    bench = Bench()
    bench.send(b"one", b"two", b"three")
    assert (bench.wire.written, bench.rings) == ([b"one"], 1)
    bench.outbound.write()
    assert bench.wire.written == [b"one", b"twothree"]
    bench.outbound.write()
    assert len(bench.wire.written) == 2
    bench.send(b"four")
    assert bench.rings == 2


async def test_a_message_after_a_while_is_written_at_once(mock_clock):
    """One that comes long enough after the last is alone again, although the application was given nothing since."""
    bench = Bench()
    bench.send(b"one", b"two")
    bench.outbound.write()
    mock_clock.jump(SOON)
    bench.send(b"three")
    assert bench.wire.written == [b"one", b"two", b"three"]
    bench.send(b"four")
    assert (len(bench.wire.written), bench.rings) == (3, 2)
    mock_clock.jump(SOON)
    bench.send(b"five")
    bench.outbound.write()
    assert bench.wire.written[3:] == [b"fourfive"]


async def test_an_answer_goes_out_with_what_was_gathered_before(mock_clock):
    """Messages keep their order when one of them needs not wait."""
    bench = Bench()
    bench.send(b"one", b"two")
    bench.outbound.note_received()
    bench.send(b"three")
    assert bench.wire.written == [b"one", b"twothree"]


async def test_a_control_frame_goes_out_behind_what_was_gathered(mock_clock):
    """What is to be sent now takes along what waits, in the same write."""
    bench = Bench()
    bench.send(b"one", b"two")
    bench.outbound.send_now(b"pong")
    assert bench.wire.written == [b"one", b"twopong"]
    bench.outbound.send_now(b"close")
    assert bench.wire.written[2:] == [b"close"]


async def test_large_messages_are_not_copied_together(mock_clock):
    """One that is worth a write has its own, and messages are not gathered beyond that size."""
    bench, large = Bench(), b"x" * READ_AHEAD
    bench.send(b"one", b"two", large)
    assert bench.wire.written == [b"one", b"two", large]
    half = b"x" * (READ_AHEAD // 2)
    bench.send(half)
    assert len(bench.wire.written) == 3
    bench.send(half)
    assert bench.wire.written[3:] == [half + half]


async def test_enough_is_gathered_in_the_end(mock_clock):
    """is_full says when the sender has to let the writer have its turn."""
    bench = Bench()
    bench.send(b"first")
    for number in range(GATHERED_AT_MOST):
        assert not bench.outbound.is_full, number
        bench.send(b"x")
    assert bench.outbound.is_full
    bench.outbound.write()
    assert not bench.outbound.is_full


async def test_nothing_is_gathered_for_a_client_that_has_left(mock_clock):
    """Once the channel is broken each send says so; what was gathered for it is let go."""
    bench = Bench()
    bench.send(b"one", b"two")
    bench.wire.is_broken = True
    for _ in range(2):
        with pytest.raises(ClientDisconnected):
            bench.send(b"three")
    bench.outbound.write()
    assert bench.wire.written == [b"one"]
