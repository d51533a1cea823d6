"""When a WebSocket is pinged, and when it is given up."""

from __future__ import annotations

from math import inf

import pytest

from trioserve.asgi.heartbeat import Heartbeat
from trioserve.config import Config

START = 1000.0


def make_heartbeat(interval: float | None = 20, timeout: float | None = 5) -> Heartbeat:
    return Heartbeat(Config(ws_ping_interval=interval, ws_ping_timeout=timeout), START)


def ping(heartbeat: Heartbeat) -> bytes:
    """Let the deadline pass; returns the payload of the ping that is due."""
    payload = heartbeat.beat(heartbeat.deadline, in_frame=False)
    assert payload
    return payload


def test_the_first_ping_is_due_after_the_interval() -> None:
    """Nothing is due before the interval has passed."""
    assert make_heartbeat().deadline == START + 20


def test_without_an_interval_nothing_is_ever_due() -> None:
    """No interval, no pings."""
    assert make_heartbeat(interval=None).deadline == inf


def test_after_a_ping_the_pong_is_due() -> None:
    """A ping's pong has its own time."""
    heartbeat = make_heartbeat()
    ping(heartbeat)
    assert heartbeat.deadline == START + 20 + 5


def test_no_pong_in_time_is_the_end() -> None:
    """When the pong's time has passed the client is given up."""
    heartbeat = make_heartbeat()
    ping(heartbeat)
    assert heartbeat.beat(heartbeat.deadline, in_frame=False) is None


def test_a_pong_begins_the_next_interval() -> None:
    """The next ping is due an interval after the pong came, not after the ping."""
    heartbeat = make_heartbeat()
    heartbeat.take_pong(ping(heartbeat), START + 23)
    assert heartbeat.deadline == START + 23 + 20


def test_every_ping_has_its_own_payload() -> None:
    """A late pong cannot be taken for the answer to a later ping."""
    heartbeat = make_heartbeat()
    payloads = []
    for _ in range(300):
        payloads.append(ping(heartbeat))
        heartbeat.take_pong(payloads[-1], heartbeat.deadline)
    assert len(set(payloads)) == 300
    assert all(0 < len(payload) <= 125 for payload in payloads)


@pytest.mark.parametrize("payload", [b"", b"something else"])
def test_another_pong_is_no_answer(payload: bytes) -> None:
    """A pong that nobody asked for changes nothing, before a ping or after it."""
    heartbeat = make_heartbeat()
    heartbeat.take_pong(payload, START + 1)
    assert heartbeat.deadline == START + 20
    ping(heartbeat)
    heartbeat.take_pong(payload, START + 21)
    assert heartbeat.beat(START + 25, in_frame=False) is None


def test_a_pong_that_comes_twice_counts_once() -> None:
    """The second one moves nothing."""
    heartbeat = make_heartbeat()
    payload = ping(heartbeat)
    heartbeat.take_pong(payload, START + 21)
    heartbeat.take_pong(payload, START + 22)
    assert heartbeat.deadline == START + 21 + 20


def test_without_a_timeout_pings_go_on() -> None:
    """Where pongs are not waited for each interval has its ping, whatever comes."""
    heartbeat = make_heartbeat(timeout=None)
    first, second = ping(heartbeat), ping(heartbeat)
    assert first != second
    assert heartbeat.deadline == START + 60
    heartbeat.take_pong(second, START + 41)
    assert heartbeat.deadline == START + 60


# In the middle of a frame


def test_a_large_frame_that_comes_on_is_waited_for() -> None:
    """No pong can come before the end of a frame: as long as more of it comes the client lives."""
    heartbeat = make_heartbeat()
    payload = ping(heartbeat)
    for number in range(3):
        heartbeat.take_progress()
        assert heartbeat.beat(START + 25 + 5 * number, in_frame=True) == b""
        assert heartbeat.deadline == START + 30 + 5 * number
    heartbeat.take_pong(payload, START + 37)
    assert heartbeat.deadline == START + 57


def test_a_frame_that_does_not_come_on_is_not_waited_for() -> None:
    """A client that stands still in the middle of a frame is given up; what came before the ping does not count."""
    heartbeat = make_heartbeat()
    heartbeat.take_progress()
    ping(heartbeat)
    assert heartbeat.beat(START + 25, in_frame=True) is None


def test_a_frame_that_has_stopped_is_not_waited_for() -> None:
    """Progress counts for one pong's time only."""
    heartbeat = make_heartbeat()
    ping(heartbeat)
    heartbeat.take_progress()
    assert heartbeat.beat(START + 25, in_frame=True) == b""
    assert heartbeat.beat(START + 30, in_frame=True) is None


def test_whole_frames_are_no_excuse() -> None:
    """A client that sends whole frames could have sent its pong."""
    heartbeat = make_heartbeat()
    ping(heartbeat)
    heartbeat.take_progress()
    assert heartbeat.beat(START + 25, in_frame=False) is None


# While reading has stopped


def test_the_clock_stands_still_while_reading_has_stopped() -> None:
    """The time in which a pong could not be seen is not counted, however often it is said that reading has stopped."""
    heartbeat = make_heartbeat()
    ping(heartbeat)
    heartbeat.stop(START + 22)
    heartbeat.stop(START + 30)
    # The same ping again: a client that has vanished behind a closed window answers with a reset.
    assert heartbeat.deadline == START + 42
    assert heartbeat.beat(START + 42, in_frame=False) == b"\x00\x00\x00\x01"
    assert heartbeat.deadline == START + 62
    heartbeat.go_on(START + 100)
    assert heartbeat.deadline == START + 103
    heartbeat.go_on(START + 101)
    assert heartbeat.deadline == START + 103
    assert heartbeat.beat(START + 103, in_frame=False) is None


def test_a_pong_while_the_clock_stands_still() -> None:
    """A pong that was among what is read last counts, and the clock is not set back when it goes on."""
    heartbeat = make_heartbeat()
    payload = ping(heartbeat)
    heartbeat.stop(START + 22)
    heartbeat.take_pong(payload, START + 23)
    assert heartbeat.deadline == START + 43
    heartbeat.go_on(START + 30)
    assert heartbeat.deadline == START + 43


def test_pings_go_on_while_reading_has_stopped() -> None:
    """Without a ping on its way there is no clock to stop: the next ping is sent when it is due."""
    heartbeat = make_heartbeat()
    heartbeat.stop(START + 1)
    assert heartbeat.deadline == START + 20
    heartbeat.go_on(START + 2)
    assert heartbeat.deadline == START + 20
