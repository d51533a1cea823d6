"""Frames that are read and written without wsproto, with wsproto as the measure of what is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.speedups import apply_mask
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from trioserve.asgi import quick_frames
from trioserve.asgi.frames import Control, Frames, Kind
from trioserve.asgi.quick_frames import QuickReader, frame_message, read_lone, unmask_plainly

from .websocket_client import frame

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
LARGE = 70_000

SIZES = [0, 1, 3, 125, 126, 127, 512, 513, 65535, 65536, LARGE]

Unmask = Callable[[bytes | memoryview, bytes], bytes]
WAYS: dict[str, Unmask] = {"with websockets": apply_mask, "without": unmask_plainly}
BOTH_WAYS = pytest.mark.parametrize("way", WAYS)


@contextmanager
def unmasking(way: str) -> Iterator[None]:
    """What is read meanwhile is unmasked in this way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_frames, "unmask", WAYS[way])
        yield


def read_as_the_session_does(frames: Frames, packets: list[bytes]) -> list[str | bytes | Control]:
    """All that comes of these packets, but for the pieces of messages that are not complete."""
    came: list[str | bytes | Control] = []
    for packet in packets:
        message = frames.take_lone(packet)
        if message is not None:
            came.append(message)
            continue
        frames.feed(packet)
        while (event := frames.next_event()) is not None:
            if not (isinstance(event, Control) and event.kind is Kind.PIECE):
                came.append(event)
    return came


def read_with_wsproto(packets: list[bytes]) -> list[str | bytes | Control]:
    """The same, of wsproto alone."""
    protocol = FrameProtocol(client=False, extensions=[])
    came: list[str | bytes | Control] = []
    pieces: list[str | bytes] = []
    try:
        for packet in packets:
            protocol.receive_bytes(packet)
            for each in protocol.received_frames():
                payload = each.payload
                if each.opcode is Opcode.CLOSE:
                    assert isinstance(payload, tuple)
                    return [*came, Control(Kind.CLOSE, code=int(payload[0]), reason=payload[1])]
                if each.opcode in (Opcode.PING, Opcode.PONG):
                    assert isinstance(payload, bytes)
                    came.append(Control(Kind.PING if each.opcode is Opcode.PING else Kind.PONG, payload))
                    continue
                assert isinstance(payload, str | bytes)
                pieces.append(payload)
                if each.message_finished:
                    came.append(pieces[0][:0].join(pieces))  # type: ignore[arg-type]  # all are of one kind
                    pieces = []
    except ParseFailed as error:
        came.append(Control(Kind.FAILURE, code=int(error.code), reason=str(error)))
    return came


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at these places, wherever they fall."""
    starts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(starts)]


# The mask


@BOTH_WAYS
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_undo_the_mask(way: str, size: int) -> None:
    """What is unmasked is each byte with that of the key at its place in turn (RFC 6455 §5.3)."""
    data, key = bytes(number * 7 % 256 for number in range(size)), b"\x00\x01\xfe\xff"
    expected = bytes(byte ^ key[place % 4] for place, byte in enumerate(data))
    for given_as in (data, memoryview(data)):
        unmasked = WAYS[way](given_as, key)
        assert unmasked == expected
        assert type(unmasked) is bytes


def test_the_quicker_way_is_taken_where_it_is_installed() -> None:
    """The extra "fast" is found."""
    assert quick_frames.unmask is apply_mask


# One frame that is all that came


@BOTH_WAYS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_lone_message_is_read(way: str, size: int, opcode: int) -> None:
    """Text is a str, all else bytes, at every form of its length."""
    data = bytes(65 + number % 26 for number in range(size))
    with unmasking(way):
        assert read_lone(frame(opcode, data)) == (data if opcode == BINARY else data.decode())


WHOLE = {size: frame(BINARY, b"x" * size) for size in (5, 200, LARGE)}
NOT_LONE = {
    "nothing": b"",
    "half a head": WHOLE[5][:5],
    **{f"{size} less one byte": data[:-1] for size, data in WHOLE.items()},
    **{f"{size} and one byte": data + b"x" for size, data in WHOLE.items()},
    **{f"{size} twice": data * 2 for size, data in WHOLE.items()},
    "a ping": frame(PING, b"x"),
    "a close": frame(CLOSE, b"\x03\xe8"),
    "a fragment": frame(TEXT, b"x", fin=False),
    "the end of a message": frame(CONTINUATION, b"x"),
    "RSV1": frame(TEXT, b"x", rsv=4),
    "RSV3": frame(BINARY, b"x" * 200, rsv=1),
    "no mask": frame(BINARY, b"x" * 20, mask=None),
    "no UTF-8": frame(TEXT, b"\xff"),
    "half a character": frame(TEXT, "ä".encode()[:1]),
    "a short length in two bytes": b"\x82\xfe\x00\x7dabcd" + bytes(125),
    "a short length in eight bytes": b"\x82\xff" + (65535).to_bytes(8, "big") + b"abcd" + bytes(65535),
    "a length in eight bytes for two": b"\x82\xff" + (200).to_bytes(8, "big") + b"abcd" + bytes(200),
}


@pytest.mark.parametrize("name", NOT_LONE)
def test_anything_else_is_none(name: str) -> None:
    """What is not exactly one message in its only form is left to others."""
    assert read_lone(NOT_LONE[name]) is None


def test_a_lone_message_is_taken_only_when_it_is_next() -> None:
    """Not behind half a frame, in a message in fragments, after a close or a failure, when nobody wants it, or when it
    is too large.
    """
    lone = frame(TEXT, b"Hello")
    assert Frames([], b"", 5).take_lone(lone) == "Hello"
    assert Frames([], b"", 4).take_lone(lone) is None
    assert Frames([], lone[:1], 5).take_lone(lone) is None
    begun = Frames([], frame(TEXT, b"xy")[:-1], 5)
    assert begun.next_event() == Control(Kind.PIECE)
    assert begun.take_lone(lone) is None
    for before in (frame(TEXT, b"", fin=False), frame(CLOSE, b""), frame(TEXT, b"\xff")):
        frames = Frames([], before, 5)
        frames.next_event()
        assert frames.take_lone(lone) is None
    unwanted = Frames([], b"", 5)
    unwanted.discard_messages()
    assert unwanted.take_lone(lone) is None


def test_a_lone_message_counts() -> None:
    """Its size is in bytes, and adds to what was produced."""
    frames = Frames([], b"", 10)
    assert frames.take_lone(frame(TEXT, "äöü".encode())) == "äöü"
    assert (frames.size, frames.produced) == (6, 6)
    assert frames.take_lone(frame(BINARY, b"x")) == b"x"
    assert (frames.size, frames.produced) == (1, 7)


# The same as wsproto


@st.composite
def some_frame(draw: st.DrawFn) -> bytes:
    """A frame, most often a message of its own."""
    opcode = draw(st.sampled_from([TEXT, BINARY, TEXT, BINARY, TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE, 3]))
    payload = draw(st.binary(max_size=150) | st.text(max_size=150).map(str.encode))
    fin, rsv = draw(st.sampled_from([True, True, True, False])), draw(st.sampled_from([0] * 8 + [1, 4]))
    return frame(opcode, payload, fin=fin, rsv=rsv, mask=draw(st.sampled_from([b"abcd"] * 8 + [None])))


PLACES = st.lists(st.integers(min_value=0), max_size=8)


@BOTH_WAYS
@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(some_frame() | st.binary(max_size=10), st.booleans()), max_size=8), PLACES)
def test_frames_are_read_as_wsproto_reads_them(way: str, pieces: list[tuple[bytes, bool]], places: list[int]) -> None:
    """Whatever comes, in whatever packets: the same messages, control frames and failures, in the same words."""
    data = b"".join(piece for piece, _ in pieces)
    ends = itertools.accumulate(len(piece) for piece, _ in pieces)
    aligned = [end for end, (_, is_cut) in zip(ends, pieces, strict=True) if is_cut]
    packets = cut(data, [*places, *aligned])
    with unmasking(way):
        assert read_as_the_session_does(Frames([], b"", LARGE), packets) == read_with_wsproto(packets)


EVERY_FORM = {
    "short": frame(BINARY, b"x" * 20),
    "text": frame(TEXT, "ä🎉".encode() * 4),
    "empty": frame(TEXT, b""),
    "medium": frame(TEXT, "ö".encode() * 70),
    "long": frame(BINARY, b"x" * 65536)[:40],
    "a ping": frame(PING, b"x" * 5),
    "fragments": frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"y"),
    "no UTF-8": frame(TEXT, b"xy\xffz"),
    "no mask": frame(TEXT, b"xyz", mask=None),
    "a length of 64 bits": b"\x82\xff" + (1 << 63).to_bytes(8, "big") + b"abcd",
    "a short length in two bytes": b"\x82\xfe\x00\x05abcdx",
    "a short length in eight bytes": b"\x82\xff" + (65535).to_bytes(8, "big") + b"abcd",
    "a close": frame(CLOSE, b"\x03\xe8bye"),
}


@BOTH_WAYS
@pytest.mark.parametrize("name", EVERY_FORM)
def test_frames_cut_at_every_byte_are_read_as_wsproto_reads_them(way: str, name: str) -> None:
    """In two packets cut at every byte, and in packets of one byte, with a message before and behind."""
    other = frame(TEXT, b"other")
    data = EVERY_FORM[name]
    ways_to_cut = [[data[:place], data[place:] + other] for place in range(len(data) + 1)]
    ways_to_cut.append([data[place : place + 1] for place in range(len(data))])
    with unmasking(way):
        for packets in ways_to_cut:
            expected = read_with_wsproto([other, *packets, other])
            assert read_as_the_session_does(Frames([], b"", LARGE), [other, *packets, other]) == expected


@BOTH_WAYS
@settings(deadline=None, max_examples=20)
@given(st.integers(60_000, LARGE), st.booleans(), PLACES)
def test_a_large_message_in_packets(way: str, size: int, is_text: bool, places: list[int]) -> None:
    """Each packet is unmasked from its own place in the key, and text is cut inside its characters."""
    data = ("äx🎉".encode() * size)[: size // 7 * 7] if is_text else bytes(number % 251 for number in range(size))
    packets = cut(frame(TEXT if is_text else BINARY, data), places)
    with unmasking(way):
        assert read_as_the_session_does(Frames([], b"", LARGE), packets) == [data.decode() if is_text else data]


# What is left to wsproto


def test_the_reader_is_stuck_before_what_is_not_its_own() -> None:
    """It gives up all from the first byte of a frame that is no whole message, and can begin anew behind it."""
    reader = QuickReader()
    ping = frame(PING, b"x")
    reader.feed(frame(BINARY, b"one") + ping[:1])
    frames = [reader.next_frame(), reader.next_frame()]
    assert frames[0] is not None
    assert (frames[0].payload, frames[1], reader.is_stuck) == (b"one", None, False)
    reader.feed(ping[1:])
    assert (reader.next_frame(), reader.is_stuck, reader.is_idle) == (None, True, False)
    assert reader.give_up() == ping
    assert (reader.next_frame(), reader.is_stuck, reader.is_idle) == (None, False, True)


def test_an_idle_reader_keeps_nothing() -> None:
    """What was read whole is let go of: an idle WebSocket must not hold its last 64 KiB."""
    reader = QuickReader()
    reader.feed(frame(BINARY, b"x" * 1000))
    assert reader.next_frame() is not None
    assert reader.is_idle


# Writing


@pytest.mark.parametrize("size", SIZES)
def test_messages_are_framed_as_wsproto_frames_them(size: int) -> None:
    """Text and bytes, at every form of their length."""
    for data in ("ä" * (size // 2) + "x" * (size % 2), b"x" * size):
        assert frame_message(data) == FrameProtocol(client=False, extensions=[]).send_data(data)
