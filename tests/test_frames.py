"""A WebSocket's frames, with wsproto's client and bytes of our own as its peer."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from trioserve.asgi.deflate import Agreement, BoundedDeflate
from trioserve.asgi.frames import (
    ABNORMAL,
    NO_STATUS,
    NORMAL,
    PIECES_JOINED,
    TOO_BIG,
    Control,
    Frames,
    Kind,
    size_of,
)

from .websocket_client import deflated, frame

MAX = 100
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

Came = list[str | bytes | Control]


def make_frames(left_over: bytes = b"", *, deflates: bool = False) -> Frames:
    extensions = [BoundedDeflate(Agreement(), MAX)] if deflates else []
    return Frames(extensions, left_over, MAX)


def make_client() -> Connection:
    return Connection(ConnectionType.CLIENT)


def read(frames: Frames, *data: bytes) -> Came:
    """All that comes of these bytes, but for the pieces of messages that are not complete."""
    came: Came = []
    for each in data:
        frames.feed(each)
        while (event := frames.next_event()) is not None:
            if not (isinstance(event, Control) and event.kind is Kind.PIECE):
                came.append(event)
    return came


def read_back(data: bytes) -> list[Event]:
    """What wsproto's client makes of bytes that were sent to it."""
    client = make_client()
    client.receive_data(data)
    return list(client.events())


def closing(code: int | None, reason: str | bytes = b"") -> bytes:
    """A close frame as a client sends it."""
    payload = reason.encode() if isinstance(reason, str) else reason
    return frame(CLOSE, (b"" if code is None else code.to_bytes(2, "big")) + payload)


def assert_fails(frames: Frames, data: bytes, code: int) -> None:
    """These bytes are a failure, and nothing is read after it."""
    came = read(frames, data, frame(TEXT, b"more"))
    assert [(each.kind, each.code) for each in came if isinstance(each, Control)] == [(Kind.FAILURE, code)]
    assert len(came) == 1


# Messages


@pytest.mark.parametrize("data", ["", "Hello", "Grüße, 世界 🎉", b"", b"\x00\xff", bytearray(b"mutable")])
def test_a_message_is_read(data: str | bytes) -> None:
    """What wsproto's client sends is read as it is: text as str, all else as bytes."""
    event = TextMessage(data=data) if isinstance(data, str) else BytesMessage(data=data)
    (message,) = read(make_frames(), make_client().send(event))
    assert message == data
    assert type(message) is (str if isinstance(data, str) else bytes)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 1_000_000])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_message_is_sent(size: int, kind: type[str | bytes]) -> None:
    """What goes out is what wsproto's client reads, in one frame, at every form of its length."""
    data = "x" * size if kind is str else b"x" * size
    (event,) = read_back(make_frames().message(data))
    assert isinstance(event, TextMessage if kind is str else BytesMessage)
    assert event.data == data
    assert event.frame_finished
    assert event.message_finished


def test_bytes_that_came_with_the_handshake_are_read_first() -> None:
    """What was left over of the handshake is the beginning."""
    frames = make_frames(frame(TEXT, b"first") + frame(TEXT, b"second")[:4])
    assert read(frames, b"", frame(TEXT, b"second")[4:]) == ["first", "second"]


def test_more_bytes_are_asked_for() -> None:
    """None is returned as long as nothing is complete, again and again."""
    frames = make_frames()
    assert frames.next_event() is None
    assert frames.next_event() is None
    data = frame(PING, b"late")
    for byte in data[:-1]:
        frames.feed(bytes([byte]))
        assert frames.next_event() is None
    frames.feed(data[-1:])
    assert frames.next_event() == Control(Kind.PING, b"late")
    assert frames.next_event() is None


@pytest.mark.parametrize("deflates", [False, True])
def test_a_message_in_fragments_is_put_together(deflates: bool) -> None:
    """Fragments become one message, of text or of bytes, wherever its characters are cut."""
    text = "äöü".encode()
    pieces = [
        frame(TEXT, text[:1], fin=False),
        frame(CONTINUATION, text[1:4], fin=False),
        frame(CONTINUATION, b"", fin=False),
        frame(CONTINUATION, text[4:]),
        frame(BINARY, b"one ", fin=False),
        frame(CONTINUATION, b"two"),
    ]
    assert read(make_frames(deflates=deflates), *pieces) == ["äöü", b"one two"]


def test_a_message_that_begins_with_nothing_is_put_together() -> None:
    """A message may have empty fragments only, or end in one."""
    frames = make_frames()
    assert read(frames, frame(TEXT, b"", fin=False), frame(CONTINUATION, b"")) == [""]
    assert read(frames, frame(BINARY, b"", fin=False), frame(CONTINUATION, b"")) == [b""]
    assert read(frames, frame(BINARY, b"x", fin=False), frame(CONTINUATION, b"")) == [b"x"]


def test_control_frames_come_between_fragments() -> None:
    """A ping, a pong or a close in the middle of a message is given when it comes."""
    frames = make_frames()
    came = read(
        frames,
        frame(TEXT, b"one ", fin=False) + frame(PING, b"ping") + frame(CONTINUATION, b"two ", fin=False),
        frame(PONG, b"pong") + frame(CONTINUATION, b"three"),
        frame(TEXT, b"never whole", fin=False) + closing(1001, "gone"),
    )
    assert came == [
        Control(Kind.PING, b"ping"),
        Control(Kind.PONG, b"pong"),
        "one two three",
        Control(Kind.CLOSE, code=1001, reason="gone"),
    ]


def test_a_piece_is_told_from_nothing() -> None:
    """Part of a message is something that came, although there is no message yet."""
    frames = make_frames()
    frames.feed(frame(TEXT, b"part", fin=False))
    assert frames.next_event() == Control(Kind.PIECE)
    assert frames.next_event() is None


def test_the_middle_of_a_frame_is_known() -> None:
    """in_frame is true from the first bytes of a frame's payload to its last, not between fragments."""
    frames = make_frames()
    data = frame(TEXT, b"Hello", fin=False)
    frames.feed(data[:-2])
    assert frames.next_event() == Control(Kind.PIECE)
    assert frames.in_frame
    frames.feed(data[-2:])
    assert frames.next_event() == Control(Kind.PIECE)
    assert not frames.in_frame


# Sizes


@pytest.mark.parametrize(
    ("message", "size"), [("", 0), ("abc", 3), ("äöü", 6), ("🎉", 4), (b"abc", 3), (bytearray(b"\xff"), 1)]
)
def test_a_size_is_in_bytes(message: str | bytes | bytearray, size: int) -> None:
    """Text counts as its UTF-8."""
    assert size_of(message) == size
    frames = make_frames()
    read(
        frames,
        frame(
            TEXT if isinstance(message, str) else BINARY,
            bytes(message, "utf-8") if isinstance(message, str) else message,
        ),
    )
    assert frames.size == size


def test_the_size_of_fragments_is_their_sum() -> None:
    """The size is that of the message that came last, whole."""
    frames = make_frames()
    read(frames, frame(TEXT, "ä".encode(), fin=False), frame(CONTINUATION, "öü".encode()))
    assert frames.size == 6
    read(frames, frame(BINARY, b"x"))
    assert frames.size == 1


LARGEST = {"bytes": (BINARY, b"x" * MAX), "ASCII": (TEXT, b"x" * MAX), "text": (TEXT, "ä".encode() * (MAX // 2))}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_message_is_read(name: str) -> None:
    """A message of exactly the largest size is read, and so is the next."""
    opcode, payload = LARGEST[name]
    frames = make_frames()
    for _ in range(2):
        (message,) = read(frames, frame(opcode, payload))
        assert isinstance(message, str | bytes)
        assert size_of(message) == MAX


@pytest.mark.parametrize("name", LARGEST)
def test_one_byte_more_fails(name: str) -> None:
    """One byte more than the largest size is a failure with 1009 that says how large it may be."""
    opcode, payload = LARGEST[name]
    frames = make_frames()
    (failure,) = read(frames, frame(opcode, payload + b"x"))
    assert failure == Control(Kind.FAILURE, code=TOO_BIG, reason="the message is larger than 100 bytes")
    assert_fails(make_frames(), frame(opcode, payload + b"x"), TOO_BIG)


@pytest.mark.parametrize("name", LARGEST)
def test_fragments_that_are_too_large_together_fail(name: str) -> None:
    """Fragments are counted together, and what comes after the byte that is too much is not waited for."""
    opcode, payload = LARGEST[name]
    frames = make_frames()
    assert read(frames, frame(opcode, payload[:50], fin=False), frame(CONTINUATION, payload[50:], fin=False)) == []
    assert_fails(frames, frame(CONTINUATION, b"x", fin=False), TOO_BIG)


def test_a_frame_that_is_too_large_is_not_waited_for() -> None:
    """A frame that is still coming fails at the byte that is too much."""
    frames = make_frames()
    data = frame(BINARY, b"x" * 1_000_000)
    header = len(data) - 1_000_000
    assert read(frames, data[: header + MAX]) == []
    assert_fails(frames, data[header + MAX : header + MAX + 1], TOO_BIG)


def test_control_frames_do_not_count() -> None:
    """The size is of messages: pings between fragments are not counted."""
    fragments = [frame(BINARY, b"x" * 50, fin=False), frame(PING, b"x" * 100), frame(CONTINUATION, b"x" * 50)]
    assert read(make_frames(), *fragments)[-1] == b"x" * 100


# What is not allowed

LONG = 126
WRONG = {
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "a continuation after a whole message": frame(TEXT, b"x") + frame(CONTINUATION, b"x"),
    "a message in a message": frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
    "bytes in a text": frame(TEXT, b"x", fin=False) + frame(BINARY, b"y"),
    "a frame without a mask": frame(TEXT, b"x", mask=None),
    "RSV1 without an extension": frame(TEXT, b"x", rsv=4),
    "RSV2": frame(TEXT, b"x", rsv=2),
    "RSV3": frame(PING, b"x", rsv=1),
    "opcode 3": frame(3, b"x"),
    "opcode 11": frame(11, b"x"),
    "a ping in fragments": frame(PING, b"x", fin=False),
    "a ping of 126 bytes": frame(PING, b"x" * 126),
    "a close of 126 bytes": closing(1000, "x" * 124),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a short length in two bytes": b"\x82\xfe\x00\x05abcdx",
    "a short length in eight bytes": b"\x82\xff" + (65535).to_bytes(8, "big") + b"abcdx",
    "a length of 64 bits": b"\x82\xff" + (1 << 63).to_bytes(8, "big") + b"abcdx",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_frame_is_a_failure(name: str) -> None:
    """What RFC 6455 forbids is a failure with 1002, and ends all reading."""
    data = WRONG[name]
    frames = make_frames()
    came = read(frames, data, frame(TEXT, b"more"))
    failure = came[-1]
    assert isinstance(failure, Control)
    assert (failure.kind, failure.code) == (Kind.FAILURE, 1002)
    assert read(frames, frame(PING, b"more")) == []


WRONG_UTF8 = {
    "a wrong byte": frame(TEXT, b"\xff"),
    "a surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "an overlong form": frame(TEXT, b"\xc0\xaf"),
    "beyond Unicode": frame(TEXT, b"\xf4\x90\x80\x80"),
    "half a character at the end": frame(TEXT, "ä".encode()[:1]),
    "half a character at the end of fragments": frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xf0\x9f"),
    "a character cut by another": frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"a", fin=False),
    "the reason of a close": closing(1000, b"\xff"),
}


@pytest.mark.parametrize("name", WRONG_UTF8)
def test_text_that_is_no_utf_8_is_a_failure(name: str) -> None:
    """Text that is not UTF-8 is a failure with 1007, as soon as that is known."""
    assert_fails(make_frames(), WRONG_UTF8[name], 1007)


def test_a_failure_ends_reading() -> None:
    """After a failure nothing is given, whether it came with the failure or after it."""
    frames = make_frames()
    frames.feed(frame(BINARY, b"x" * (MAX + 1)) + frame(PING, b"behind") + frame(TEXT, b"behind"))
    event = frames.next_event()
    assert isinstance(event, Control)
    assert event.kind is Kind.FAILURE
    frames.feed(frame(PING, b"after") + frame(TEXT, b"after"))
    assert [frames.next_event() for _ in range(5)] == [None] * 5


# Pings and pongs


@pytest.mark.parametrize("payload", [b"", b"payload", b"\xff" * 125])
def test_pings_and_pongs_go_both_ways(payload: bytes) -> None:
    """A ping or a pong has the payload that its sender gave it."""
    client, frames = make_client(), make_frames()
    came = read(frames, client.send(Ping(payload=payload)), client.send(Pong(payload=payload)))
    assert came == [Control(Kind.PING, payload), Control(Kind.PONG, payload)]
    sent = read_back(frames.ping(payload) + frames.pong(payload))
    assert sent == [Ping(payload=payload), Pong(payload=payload)]


# Closing


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1014), 3000, 3999, 4000, 4999])
def test_the_code_and_reason_of_a_close_are_read(code: int) -> None:
    """A code that may be sent is given as it came, with its reason."""
    (event,) = read(make_frames(), closing(code, "Grüße"))
    assert event == Control(Kind.CLOSE, code=code, reason="Grüße")
    assert type(event.code) is int  # type: ignore[union-attr]


def test_a_close_without_code_is_1005() -> None:
    """A close frame without a code counts as 1005 (RFC 6455 §7.1.5)."""
    assert read(make_frames(), closing(None)) == [Control(Kind.CLOSE, code=NO_STATUS)]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535])
def test_a_code_that_may_not_be_sent_is_a_failure(code: int) -> None:
    """Codes that are reserved, or none at all, fail with 1002 (RFC 6455 §7.4)."""
    assert_fails(make_frames(), closing(code), 1002)


def test_nothing_is_read_after_a_close() -> None:
    """What comes behind the client's close frame, or after it, is thrown away (RFC 6455 §5.5.1)."""
    frames = make_frames()
    came = read(frames, closing(1000) + frame(TEXT, b"behind"), frame(TEXT, b"after"), b"no frame at all")
    assert came == [Control(Kind.CLOSE, code=1000)]
    frames.close(1000, "")
    assert read(frames, frame(TEXT, b"after")) == []


@pytest.mark.parametrize(("code", "reason"), [(NORMAL, ""), (1011, "an error"), (4999, "Grüße")])
def test_a_close_is_sent(code: int, reason: str) -> None:
    """wsproto's client reads the code and the reason of a close."""
    assert read_back(make_frames().close(code, reason)) == [CloseConnection(code=code, reason=reason)]


def test_1005_is_never_sent() -> None:
    """The answer to a close without a code has none either."""
    frames = make_frames()
    read(frames, closing(None))
    assert frames.close(NO_STATUS, "") == b"\x88\x00"


@pytest.mark.parametrize(("reason", "kept"), [("x" * 124, 123), ("ä" * 62, 122), ("🎉" * 40, 120)])
def test_a_long_reason_is_cut(reason: str, kept: int) -> None:
    """A reason is cut where it fits into a control frame, and not inside a character."""
    (event,) = read_back(make_frames().close(1000, reason))
    assert isinstance(event, CloseConnection)
    assert event.reason is not None
    assert len(event.reason.encode()) == kept
    assert reason.startswith(event.reason)


def test_the_client_is_read_until_it_answers_our_close() -> None:
    """After our close the client may still send, until its own close."""
    frames = make_frames()
    frames.close(1000, "")
    assert read(frames, frame(TEXT, b"late"), closing(1000)) == ["late", Control(Kind.CLOSE, code=1000)]
    assert read(frames, frame(TEXT, b"after")) == []


def test_a_failure_is_known_after_our_close() -> None:
    """What is no frame is a failure also while the client's close is awaited, and not taken for it."""
    frames = make_frames()
    frames.close(1000, "")
    assert_fails(frames, frame(3, b""), 1002)


def test_a_failure_can_be_told() -> None:
    """After a failure a close can still be sent."""
    frames = make_frames()
    assert_fails(frames, frame(TEXT, b"\xff"), 1007)
    (event,) = read_back(frames.close(1007, "no UTF-8"))
    assert isinstance(event, CloseConnection)
    assert event.code == 1007


# Anything


@st.composite
def some_frame(draw: st.DrawFn) -> bytes:
    """A frame, most often a right one."""
    opcode = draw(st.sampled_from([CONTINUATION, TEXT, BINARY, PING, PONG, TEXT, BINARY, CLOSE, 3]))
    payload = draw(st.binary(max_size=MAX + 20) | st.text(max_size=MAX).map(str.encode))
    rsv = draw(st.sampled_from([0, 0, 0, 4, 1]))
    if rsv == 4:
        payload = draw(st.sampled_from([payload, deflated(payload), deflated(payload * 10)]))
    return frame(
        opcode, payload, fin=draw(st.booleans()), rsv=rsv, mask=draw(st.sampled_from([b"abcd", b"abcd", None]))
    )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at these places, wherever they fall."""
    starts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(starts)]


PLACES = st.lists(st.integers(min_value=0), max_size=10)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(some_frame() | st.binary(max_size=10), max_size=10), PLACES, st.booleans())
def test_any_bytes_are_read(pieces: list[bytes], places: list[int], deflates: bool) -> None:
    """Whatever comes, in whatever pieces: nothing is raised, no message is too large, and the end is the end."""
    frames = make_frames(deflates=deflates)
    came = read(frames, *cut(b"".join(pieces), places))
    messages = [each for each in came if not isinstance(each, Control)]
    assert all(size_of(message) <= MAX for message in messages)
    ends = [
        index
        for index, each in enumerate(came)
        if isinstance(each, Control) and each.kind in (Kind.CLOSE, Kind.FAILURE)
    ]
    assert ends in ([], [len(came) - 1])
    for index in ends:
        end = came[index]
        assert isinstance(end, Control)
        assert end.code in (range(1000, 5000) if end.kind is Kind.CLOSE else (1002, 1007, 1009))
        assert end.code != ABNORMAL


MESSAGE = st.text(max_size=MAX // 4) | st.binary(max_size=MAX)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(MESSAGE, PLACES, st.binary(max_size=125)), max_size=5), PLACES)
def test_messages_are_read_however_they_are_cut(
    messages: list[tuple[str | bytes, list[int], bytes]], places: list[int]
) -> None:
    """Messages in any fragments, with pings between them, in any pieces are the messages that were sent."""
    data, expected, pings = b"", [], []
    for message, fragments, ping in messages:
        opcode = TEXT if isinstance(message, str) else BINARY
        payloads = cut(message.encode() if isinstance(message, str) else message, fragments)
        for number, payload in enumerate(payloads):
            data += frame(CONTINUATION if number else opcode, payload, fin=number == len(payloads) - 1)
            data += frame(PING, ping)
            pings.append(Control(Kind.PING, ping))
        expected.append(message)
    came = read(make_frames(), *cut(data, places))
    assert [each for each in came if not isinstance(each, Control)] == expected
    assert [each for each in came if isinstance(each, Control)] == pings


LARGE = 70_000


def samples() -> list[tuple[bytes, str | bytes | Control]]:
    """Frames of every form of length, and what is read of them."""
    messages: list[str | bytes] = [b"x" * size for size in (0, 1, 125, 126, 65535, 65536)]
    messages += ["", "x", "ä" * 62, "ä" * 63, "🎉" * 16384]
    whole: list[tuple[bytes, str | bytes | Control]] = [
        (frame(TEXT, each.encode()) if isinstance(each, str) else frame(BINARY, each), each) for each in messages
    ]
    whole += [(frame(PING, b"x" * size), Control(Kind.PING, b"x" * size)) for size in (0, 125)]
    whole += [(frame(PONG, b"x" * size), Control(Kind.PONG, b"x" * size)) for size in (0, 125)]
    return whole


SAMPLES = samples()
FRAGMENTED = (frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"y"), "xy")
PINGED = (frame(TEXT, b"", fin=False) + frame(PING, b"") + frame(CONTINUATION, b"x" * 200), "x" * 200)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.tuples(st.sampled_from([*SAMPLES, FRAGMENTED, PINGED]), st.booleans()), max_size=8),
    PLACES,
    st.booleans(),
)
def test_everything_is_found_wherever_packets_end(
    pieces: list[tuple[tuple[bytes, str | bytes | Control], bool]], places: list[int], is_left_over: bool
) -> None:
    """Messages of all sizes and control frames are read as soon as they are whole, be they many in a packet, one or a
    part of one, and the first of it with the handshake or not.
    """
    data = b"".join(sent for (sent, _), _ in pieces)
    ends = list(itertools.accumulate(len(sent) for (sent, _), _ in pieces))
    aligned = [end for end, (_, is_cut) in zip(ends, pieces, strict=True) if is_cut]
    first, *packets = cut(data, [*places, *aligned])
    frames = Frames([], first if is_left_over else b"", LARGE)
    came = read(frames, b"", *packets) if is_left_over else read(frames, first, *packets)
    messages = [each for (_, each), _ in pieces]
    assert [each for each in came if each != Control(Kind.PING)] == [m for m in messages if m != Control(Kind.PING)]
    pings = messages.count(Control(Kind.PING)) + sum(sent == PINGED[0] for (sent, _), _ in pieces)
    assert came.count(Control(Kind.PING)) == pings


@contextmanager
def calls_into_wsproto() -> Iterator[list[str]]:
    """The functions of wsproto that are called meanwhile."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "wsproto" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # it calls into generators of other tests, to close them
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        gc.enable()


MESSAGE_FRAME = frame(BINARY, b"x" * 16)
ALIGNED = {
    "the first": [],
    "after another": [MESSAGE_FRAME],
    "after a ping": [frame(PING, b"x" * 125)],
    "after a pong": [frame(PONG, b"")],
    "after a ping with a message behind it": [frame(PING, b"x") + MESSAGE_FRAME],
    "after a ping that was cut": [frame(PING, b"x")[:1], frame(PING, b"x")[1:5], frame(PING, b"x")[5:]],
    "behind two in its packet": [frame(TEXT, b"x") + MESSAGE_FRAME[:3], MESSAGE_FRAME[3:]],
    "behind a large one in packets": cut(frame(TEXT, "ä".encode() * 35_000), [100, 200, 65536]),
    "after one that was cut in its header": [MESSAGE_FRAME[:1], MESSAGE_FRAME[1:]],
}


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("is_left_over", [True, False])
def test_usual_messages_are_not_for_wsproto(name: str, is_left_over: bool) -> None:
    """A whole message is read without wsproto, which is slow: also once that has read what was not for others."""
    before = b"".join(ALIGNED[name])
    frames = Frames([], before if is_left_over else b"", LARGE)
    read(frames, b"", *([] if is_left_over else ALIGNED[name]))
    with calls_into_wsproto() as calls:
        assert frames.take_lone(MESSAGE_FRAME) == b"x" * 16
        frames.feed(MESSAGE_FRAME)
        assert frames.next_event() == b"x" * 16
        assert frames.next_event() is None
    assert calls == []


def test_wsproto_reads_all_that_is_unusual() -> None:
    """A ping is read by wsproto, and so is what comes after a message in fragments, of which nobody knows where their
    bytes ended.
    """
    frames = Frames([], b"", LARGE)
    with calls_into_wsproto() as calls:
        assert read(frames, frame(PING, b"x")) == [Control(Kind.PING, b"x")]
    assert calls
    assert read(frames, FRAGMENTED[0]) == [FRAGMENTED[1]]
    with calls_into_wsproto() as calls:
        assert frames.take_lone(MESSAGE_FRAME) is None
        assert read(frames, MESSAGE_FRAME) == [b"x" * 16]
    assert calls


@pytest.mark.parametrize(
    ("data", "sends_on"),
    [
        (closing(None), False),
        (closing(1000, "Grüße"), False),
        (closing(1000, "Grüße") + b"x", True),
        (closing(None) + b"x", True),
        (MESSAGE_FRAME + closing(1000), False),
        (frame(PING, b"x") + closing(1000) + b"x", True),
        (FRAGMENTED[0] + closing(1000) + b"x", False),  # nobody knows
    ],
)
def test_what_is_behind_a_close_is_known(data: bytes, sends_on: bool) -> None:
    """A client that sends on behind its close frame is told from one that waits for the answer."""
    frames = Frames([], b"", LARGE)
    assert isinstance(read(frames, data)[-1], Control)
    assert frames.sends_on is sends_on


def test_what_is_behind_a_close_is_known_with_deflate() -> None:
    """Of a WebSocket with deflated messages, too, if there is much behind it."""
    for behind in (b"", bytes(10_000)):
        frames = make_frames(deflates=True)
        read(frames, closing(1000) + behind)
        assert frames.sends_on is bool(behind)


@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_a_message_of_very_many_pieces(kind: int) -> None:
    """A message that comes a byte at a time is put together again, however many bytes those are."""
    whole = bytes(65 + number % 26 for number in range(2 * PIECES_JOINED + 10))
    frames = Frames([], b"", len(whole))
    pieces = [frame(kind if not number else 0, whole[number : number + 1], fin=False) for number in range(len(whole))]
    assert read(frames, *pieces, frame(0, b"")) == [whole.decode() if kind == TEXT else whole]


@pytest.mark.parametrize("deflates", [True, False])
def test_messages_that_nobody_wants(deflates: bool) -> None:
    """After discard_messages only control frames come, in the middle of a message, too, and of deflated ones."""
    frames = make_frames(deflates=deflates)
    payload = deflated(b"Hello") if deflates else b"Hello"
    rsv = 4 if deflates else 0
    assert read(frames, frame(TEXT, payload[:3], rsv=rsv, fin=False)) == []
    frames.discard_messages()
    rest = frame(0, payload[3:]) + frame(TEXT, payload, rsv=rsv) + frame(9, b"ping") + frame(BINARY, b"x" * (MAX + 1))
    assert read(frames, rest, closing(1000)) == [Control(Kind.PING, b"ping"), Control(Kind.CLOSE, code=1000)]


@pytest.mark.parametrize("deflates", [True, False])
def test_nothing_comes_after_the_release(deflates: bool) -> None:
    """After release nothing is kept and nothing more is read."""
    frames = make_frames(deflates=deflates)
    frames.message("x")
    frames.feed(frame(TEXT, b"Hello") + frame(TEXT, b"Hel", fin=False))
    frames.release()
    assert read(frames, frame(TEXT, b"Hello")) == []
