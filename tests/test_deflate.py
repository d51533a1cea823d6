"""permessage-deflate: RFC 7692's own examples, wsproto's client as the peer, and what must not be let in."""

from __future__ import annotations

import os
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, Event, TextMessage
from wsproto.extensions import PerMessageDeflate

from trioserve.asgi.deflate import MAX_STREAMS, NAME, WINDOW_BITS, Agreement, BoundedDeflate, negotiate
from trioserve.asgi.frames import Control, Frames, Kind

from .websocket_client import deflated, frame

LIMIT = 1000
CONTINUATION, TEXT, BINARY, PING = 0, 1, 2, 9
RSV1 = 4

HELLO = bytes.fromhex("f248cdc9c90700")  # RFC 7692 §7.2.3.1
TAIL = b"\x00\x00\xff\xff"  # §7.2.1: left out at the end of a message
HELLO_AGAIN = bytes.fromhex("f200110000")  # §7.2.3.2: in the window of the first


# Negotiation

NO_ANSWER = [
    "",
    "x-webkit-deflate-frame",
    "permessage-bzip2",
    "permessage-deflate; unknown",
    "permessage-deflate; unknown=1",
    "permessage-deflate; ",
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
    "permessage-deflate; client_max_window_bits; client_max_window_bits",
    "permessage-deflate; client_max_window_bits=10; client_max_window_bits",
    "permessage-deflate; server_no_context_takeover=1",
    "permessage-deflate; client_no_context_takeover=true",
    "permessage-deflate; server_no_context_takeover=",
    "permessage-deflate; server_max_window_bits",
    *(
        f"permessage-deflate; {side}_max_window_bits={value}"
        for side in ("server", "client")
        for value in ("0", "7", "16", "08", "010", "+9", "-9", "9.0", "abc", "", "1 0", "\uff11\uff10", '"abc"', '""')
    ),
    "permessage-deflate; server_max_window_bits=8",  # zlib cannot write it
]


@pytest.mark.parametrize("offers", NO_ANSWER)
def test_an_offer_that_must_be_declined_is(offers: str) -> None:
    """Unknown, repeated and impossible parameters decline the offer (RFC 7692 §7.1), and other extensions are not
    known.
    """
    assert negotiate(offers) is None


ANSWERS = {
    "permessage-deflate": "server_max_window_bits=12",
    " permessage-deflate ": "server_max_window_bits=12",
    "permessage-deflate; server_no_context_takeover": "server_no_context_takeover; server_max_window_bits=12",
    "permessage-deflate; client_no_context_takeover": "client_no_context_takeover; server_max_window_bits=12",
    "permessage-deflate;server_max_window_bits=9": "server_max_window_bits=9",
    "permessage-deflate; server_max_window_bits=12": "server_max_window_bits=12",
    "permessage-deflate; server_max_window_bits=15": "server_max_window_bits=12",
    'permessage-deflate; server_max_window_bits="10"': "server_max_window_bits=10",
    "permessage-deflate; server_max_window_bits = 10": "server_max_window_bits=10",
    "permessage-deflate; client_max_window_bits": "server_max_window_bits=12; client_max_window_bits=12",
    "permessage-deflate; client_max_window_bits=15": "server_max_window_bits=12; client_max_window_bits=12",
    "permessage-deflate; client_max_window_bits=10": "server_max_window_bits=12; client_max_window_bits=10",
    "permessage-deflate; client_max_window_bits=8": "server_max_window_bits=12; client_max_window_bits=8",
    'permessage-deflate; client_max_window_bits="9"': "server_max_window_bits=12; client_max_window_bits=9",
    "permessage-deflate; client_max_window_bits; server_max_window_bits=10; client_no_context_takeover; "
    "server_no_context_takeover": "server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10; "
    "client_max_window_bits=12",
    # The first that can be taken
    "permessage-deflate; client_max_window_bits, permessage-deflate": "server_max_window_bits=12; "
    "client_max_window_bits=12",
    "permessage-deflate; server_max_window_bits=8, permessage-deflate": "server_max_window_bits=12",
    "permessage-deflate; unknown, permessage-deflate; server_max_window_bits=11": "server_max_window_bits=11",
    "x-unknown; a=b,permessage-deflate": "server_max_window_bits=12",
}


@pytest.mark.parametrize("offers", ANSWERS)
def test_the_first_offer_that_can_be_taken_is(offers: str) -> None:
    """Every parameter that was asked for is answered with no more than that, and our own window is said."""
    agreement = negotiate(offers)
    assert agreement is not None
    assert agreement.field == f"permessage-deflate; {ANSWERS[offers]}".encode()


def test_a_client_that_cannot_use_less_is_not_told_to() -> None:
    """Without client_max_window_bits in the offer the client's window is the largest, and not in the answer
    (RFC 7692 §7.1.2.2).
    """
    agreement = negotiate("permessage-deflate")
    assert agreement is not None
    assert agreement.client_window_bits == 15
    assert b"client_max_window_bits" not in agreement.field


def test_a_window_without_a_number_is_the_largest() -> None:
    """client_max_window_bits without a value leaves the choice to us."""
    agreement = negotiate("permessage-deflate; client_max_window_bits")
    assert agreement is not None
    assert agreement.client_window_bits == WINDOW_BITS


# Reading


def make_frames(agreement: Agreement | None = None, limit: int = LIMIT) -> Frames:
    return Frames([BoundedDeflate(agreement or Agreement(), limit)], b"", limit)


def read(frames: Frames, *data: bytes) -> list[str | bytes | Control]:
    """All that comes of these bytes, but for the pieces of messages that are not complete."""
    came = []
    for each in data:
        frames.feed(each)
        while (event := frames.next_event()) is not None:
            if not (isinstance(event, Control) and event.kind is Kind.PIECE):
                came.append(event)
    return came


def assert_fails(frames: Frames, data: bytes, code: int) -> None:
    (failure,) = read(frames, data)
    assert isinstance(failure, Control)
    assert (failure.kind, failure.code) == (Kind.FAILURE, code)


RFC_EXAMPLES = {
    "§7.2.3.1: one block": [frame(TEXT, HELLO, rsv=RSV1)],
    "§7.2.3.1: two fragments": [frame(TEXT, HELLO[:3], rsv=RSV1, fin=False), frame(CONTINUATION, HELLO[3:])],
    "§7.2.3.3: not compressed": [frame(TEXT, bytes.fromhex("000500faff48656c6c6f00"), rsv=RSV1)],
    "§7.2.3.4: BFINAL": [frame(TEXT, bytes.fromhex("f348cdc9c9070000"), rsv=RSV1)],
    "§7.2.3.5: two blocks": [frame(TEXT, bytes.fromhex("f248050000 00ffffcac9c90700"), rsv=RSV1)],
}


@pytest.mark.parametrize("name", RFC_EXAMPLES)
@pytest.mark.parametrize("times", [1, 2])
def test_the_examples_of_the_rfc_are_read(name: str, times: int) -> None:
    """RFC 7692's examples are "Hello", also after one another."""
    assert read(make_frames(), *RFC_EXAMPLES[name] * times) == ["Hello"] * times


def test_a_later_message_may_refer_to_an_earlier_one() -> None:
    """§7.2.3.2: the window is kept from message to message, with fragments and control frames between."""
    frames = make_frames()
    assert read(frames, frame(TEXT, HELLO, rsv=RSV1), frame(TEXT, HELLO_AGAIN, rsv=RSV1)) == ["Hello", "Hello"]
    pieces = [
        frame(TEXT, HELLO_AGAIN[:2], rsv=RSV1, fin=False),
        frame(PING, b"x"),
        frame(CONTINUATION, HELLO_AGAIN[2:]),
    ]
    assert read(frames, *pieces) == [Control(Kind.PING, b"x"), "Hello"]


def test_an_empty_message_is_read() -> None:
    """§7.2.3.6: a single byte of zero is an empty message, or an empty fragment."""
    frames = make_frames()
    assert read(frames, frame(BINARY, b"\x00", rsv=RSV1)) == [b""]
    pieces = [frame(TEXT, HELLO + TAIL, rsv=RSV1, fin=False), frame(CONTINUATION, b"\x00")]
    assert read(frames, *pieces) == ["Hello"]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_stream_may_end_within_a_message(size: int) -> None:
    """§7.2.3.4: after a block with BFINAL another stream begins, in the same message or the next, cut anywhere."""
    final = bytes.fromhex("f348cdc9c90700")
    data = frame(TEXT, final + final + b"\x00", rsv=RSV1) + frame(TEXT, HELLO, rsv=RSV1)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert read(make_frames(), *pieces) == ["HelloHello", "Hello"]


@pytest.mark.parametrize("count", [MAX_STREAMS, MAX_STREAMS + 1])
def test_a_message_has_no_more_than_so_many_streams(count: int) -> None:
    """Each end of a stream costs as much as a frame, and fits into two bytes: more than MAX_STREAMS are a failure."""
    empty = b"\x03\x00"  # a stream of one empty block with BFINAL
    frames = make_frames()
    data = frame(TEXT, empty * count + HELLO, rsv=RSV1)
    if count > MAX_STREAMS:
        assert_fails(frames, data, 1007)
    else:
        assert read(frames, data, data) == ["Hello", "Hello"]


def test_a_message_that_is_not_compressed_is_read() -> None:
    """Each message says for itself whether it is compressed; one that is not leaves the window as it was."""
    frames = make_frames()
    came = read(
        frames,
        frame(TEXT, HELLO, rsv=RSV1),
        frame(TEXT, b"plain", fin=False) + frame(CONTINUATION, b" text"),
        frame(BINARY, HELLO),
        frame(TEXT, HELLO_AGAIN, rsv=RSV1),
    )
    assert came == ["Hello", "plain text", HELLO, "Hello"]


def test_a_client_that_forgets_its_window() -> None:
    """With client_no_context_takeover each message begins anew, and one that refers to an earlier one is corrupt."""
    frames = make_frames(Agreement(client_no_context_takeover=True))
    assert read(frames, frame(TEXT, HELLO, rsv=RSV1), frame(TEXT, HELLO, rsv=RSV1)) == ["Hello", "Hello"]
    assert_fails(frames, frame(TEXT, HELLO_AGAIN, rsv=RSV1), 1007)


@pytest.mark.parametrize("bits", [8, 9, 12, 15])
@pytest.mark.parametrize("forgets", [False, True])
def test_the_window_of_the_client_is_read(bits: int, forgets: bool) -> None:
    """What refers to as far back as was agreed on can be read, also with the least window."""
    agreement = Agreement(client_window_bits=bits, client_no_context_takeover=forgets, names_client_window=True)
    limit = 100_000
    frames = make_frames(agreement, limit)
    # zlib itself cannot write with a window of 256 bytes, and looks 262 bytes less far than its window.
    block = os.urandom(200 if bits == 8 else (1 << bits) - 262)
    for _ in range(2):
        compressor = zlib.compressobj(wbits=-max(bits, 9))
        payload = (compressor.compress(block * 2) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]
        assert len(payload) < len(block) * 3 // 2
        assert read(frames, frame(BINARY, payload, rsv=RSV1)) == [block * 2]


@pytest.mark.parametrize("fin", [False, True])
def test_rsv1_is_for_the_first_frame_of_a_message(fin: bool) -> None:
    """RFC 7692 §6: RSV1 on a continuation is a failure with 1002."""
    frames = make_frames()
    assert read(frames, frame(TEXT, HELLO[:3], rsv=RSV1, fin=False)) == []
    assert_fails(frames, frame(CONTINUATION, HELLO[3:], rsv=RSV1, fin=fin), 1002)


@pytest.mark.parametrize("opcode", [8, 9, 10])
def test_rsv1_is_not_for_control_frames(opcode: int) -> None:
    """RSV1 on a control frame is a failure with 1002."""
    assert_fails(make_frames(), frame(opcode, b"", rsv=RSV1), 1002)


NO_BLOCK = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "before",
    [frame(TEXT, HELLO, rsv=RSV1), frame(TEXT, HELLO[:3], rsv=RSV1, fin=False) + frame(CONTINUATION, HELLO[3:])],
    ids=["in one frame", "in two"],
)
@pytest.mark.parametrize("head", [6, 5, 2])
def test_a_continuation_of_nothing_is_not_inflated(before: bytes, head: int) -> None:
    """After a message a fragment is a failure with 1002, whatever is in it; also if the mask comes later."""
    frames = make_frames()
    assert read(frames, before) == ["Hello"]
    wrong = frame(CONTINUATION, NO_BLOCK)
    assert read(frames, wrong[:head]) == []
    assert_fails(frames, wrong[head:], 1002)


@pytest.mark.parametrize("rsv", [0, RSV1])
def test_a_message_within_a_message_is_not_inflated(rsv: int) -> None:
    """A frame that begins a message before the last one's end is a failure with 1002, whatever is in it."""
    frames = make_frames()
    assert read(frames, frame(TEXT, HELLO[:3], rsv=RSV1, fin=False), frame(PING, b"")) != []
    assert_fails(frames, frame(BINARY, NO_BLOCK, rsv=rsv), 1002)


@pytest.mark.parametrize("rsv", [1, 2, 5, 6])
def test_the_other_bits_are_still_reserved(rsv: int) -> None:
    """RSV2 and RSV3 are a failure with 1002, compressed or not."""
    assert_fails(make_frames(), frame(TEXT, HELLO, rsv=rsv), 1002)


@pytest.mark.parametrize(
    "data",
    [
        frame(BINARY, b"\xff\xff\xff\xff", rsv=RSV1),
        frame(BINARY, b"\x00\x05\x00\x00\x00Hello", rsv=RSV1),
        frame(BINARY, HELLO_AGAIN, rsv=RSV1),
    ],
    ids=["no block", "a wrong length", "before the window"],
)
def test_corrupted_data_is_a_failure(data: bytes) -> None:
    """What cannot be inflated is a failure with 1007."""
    assert_fails(make_frames(), data, 1007)


def test_inflated_text_is_checked() -> None:
    """Text that is no UTF-8 once inflated is a failure with 1007."""
    assert_fails(make_frames(), frame(TEXT, deflated(b"\xff"), rsv=RSV1), 1007)


# The bound


@pytest.mark.parametrize("fragments", [1, 2, 5])
def test_the_largest_message_is_inflated(fragments: int) -> None:
    """A message may inflate to exactly the limit, in one frame or several, and so may the next."""
    data = os.urandom(10) * (LIMIT // 10)
    payload = deflated(data)
    frames = make_frames(Agreement(client_no_context_takeover=True))
    size = -(-len(payload) // fragments)
    for _ in range(2):
        pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
        sent = [
            frame(CONTINUATION if number else BINARY, piece, rsv=0 if number else RSV1, fin=number == len(pieces) - 1)
            for number, piece in enumerate(pieces)
        ]
        assert read(frames, *sent) == [data]


@pytest.mark.parametrize("data", [b"x" * (LIMIT + 1), b"x" * 100 * LIMIT], ids=["one byte", "all else"])
def test_more_than_the_limit_fails(data: bytes) -> None:
    """A message that inflates to more than the limit is a failure with 1009."""
    assert_fails(make_frames(), frame(BINARY, deflated(data), rsv=RSV1), 1009)


def test_fragments_are_counted_together() -> None:
    """The limit is of the message: fragments that are each below it are too much together."""
    compressor = zlib.compressobj(wbits=-15)
    pieces = [compressor.compress(b"x" * 600) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(2)]
    frames = make_frames()
    assert read(frames, frame(BINARY, pieces[0], rsv=RSV1, fin=False)) == []
    assert_fails(frames, frame(CONTINUATION, pieces[1], fin=False), 1009)


def test_streams_within_a_message_are_counted_together() -> None:
    """A new stream within a message does not begin the count anew."""
    compressor = zlib.compressobj(wbits=-15)
    stream = compressor.compress(b"x" * 600) + compressor.flush()
    assert_fails(make_frames(), frame(BINARY, stream * 2, rsv=RSV1), 1009)


def test_the_count_begins_anew_with_each_message() -> None:
    """What an earlier message, or a control frame between fragments, had is not counted."""
    frames = make_frames(Agreement(client_no_context_takeover=True))
    payload = deflated(b"x" * LIMIT)
    pieces = [frame(BINARY, payload[:5], rsv=RSV1, fin=False), frame(PING, b"p"), frame(CONTINUATION, payload[5:])]
    assert read(frames, *pieces * 2) == [Control(Kind.PING, b"p"), b"x" * LIMIT] * 2


def test_a_bomb_is_not_inflated() -> None:
    """No more memory is taken than the limit allows: 10 KiB that stand for 10 MiB take none of it."""
    bomb = frame(BINARY, deflated(bytes(10 * 1024 * 1024)), rsv=RSV1)
    frames = make_frames()
    tracemalloc.start()
    try:
        assert_fails(frames, bomb, 1009)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


# Writing


def payload_of(sent: bytes) -> bytes:
    """The payload of a small frame, which must be a compressed message."""
    assert sent[0] in (0xC1, 0xC2)
    assert sent[1] == len(sent) - 2 < 126
    return bytes(sent[2:])


def inflate(payload: bytes, decompressor: zlib._Decompress | None = None) -> bytes:
    return (decompressor or zlib.decompressobj(wbits=-15)).decompress(payload + TAIL)


def test_a_message_is_sent_compressed() -> None:
    """A message goes out with RSV1, and inflates to what it was; the bytes of the flush are left out."""
    sent = payload_of(make_frames().message("Hello"))
    assert not sent.endswith(TAIL)
    assert inflate(sent) == b"Hello"


def test_the_window_is_kept() -> None:
    """A message that is sent again takes less than the first time, and needs it to be read."""
    frames = make_frames()
    text = "once more, with feeling"
    first, second = payload_of(frames.message(text)), payload_of(frames.message(text))
    assert len(second) < len(first) // 2
    decompressor = zlib.decompressobj(wbits=-15)
    assert [inflate(first, decompressor), inflate(second, decompressor)] == [text.encode()] * 2


def test_the_window_is_forgotten_if_so_agreed() -> None:
    """With server_no_context_takeover each message can be read alone."""
    frames = make_frames(Agreement(server_no_context_takeover=True))
    text = "once more, with feeling"
    first, second = payload_of(frames.message(text)), payload_of(frames.message(text))
    assert first == second
    assert inflate(second) == text.encode()


@pytest.mark.parametrize("bits", range(9, 13))
def test_our_window_is_no_larger_than_agreed(bits: int) -> None:
    """What is sent can be read with the window that was agreed on."""
    decompressor = zlib.decompressobj(wbits=-bits)
    block = os.urandom(1 << bits)
    extension = BoundedDeflate(Agreement(server_window_bits=bits), LIMIT)
    frames = Frames([extension], b"", LIMIT)
    for _ in range(3):
        sent = frames.message(block)
        header = 4 if len(sent) < 65536 else 10
        assert inflate(bytes(sent[header:]), decompressor) == block


def test_empty_messages_are_sent() -> None:
    """An empty message is a single byte of zero (RFC 7692 §7.2.3.6), also after another."""
    frames = make_frames()
    assert inflate(payload_of(frames.message(b""))) == b""
    assert payload_of(frames.message("")) == b"\x00"
    assert payload_of(frames.message(b"")) == b"\x00"


def test_control_frames_are_not_compressed() -> None:
    """Pings, pongs and closes go out as they are."""
    frames = make_frames()
    assert frames.ping(b"ping") == b"\x89\x04ping"
    assert frames.pong(b"pong") == b"\x8a\x04pong"
    assert frames.close(1000, "bye") == b"\x88\x05\x03\xe8bye"


def test_it_is_the_servers_side() -> None:
    """It is on as soon as it is there, and has nothing to offer."""
    extension = BoundedDeflate(Agreement(), LIMIT)
    assert extension.enabled()
    assert extension.name == NAME
    with pytest.raises(NotImplementedError):
        extension.offer()


# wsproto's client

OFFERS = st.builds(
    lambda client_bits, server_bits, client_forgets, server_forgets: PerMessageDeflate(
        client_no_context_takeover=client_forgets,
        client_max_window_bits=client_bits,
        server_no_context_takeover=server_forgets,
        server_max_window_bits=server_bits,
    ),
    st.integers(9, 15),
    st.integers(9, 15),
    st.booleans(),
    st.booleans(),
)
WORDS = st.lists(st.sampled_from(["Hello", "world", "ä", "🎉" * 20, "x" * 50]), max_size=8).map("".join)
MESSAGES = st.lists(st.tuples(st.booleans(), WORDS | st.text(max_size=200) | st.binary(max_size=LIMIT)), max_size=8)


def event_of(message: str | bytes) -> Event:
    return TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)


@settings(deadline=None)  # a busy machine is no failure
@given(OFFERS, MESSAGES)
def test_messages_go_both_ways(extension: PerMessageDeflate, messages: list[tuple[bool, str | bytes]]) -> None:
    """What wsproto's client and we agree on lets every message through, both ways and in any order."""
    agreement = negotiate(f"permessage-deflate; {extension.offer()}")
    assert agreement is not None
    extension.finalize(agreement.field.decode())
    client = Connection(ConnectionType.CLIENT, [extension])
    frames = make_frames(agreement)
    for from_client, message in messages:
        if from_client:
            assert read(frames, client.send(event_of(message))) == [message]
        else:
            client.receive_data(frames.message(message))
            (event,) = client.events()
            assert isinstance(event, TextMessage | BytesMessage)
            assert event.data == message


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_any_payload_is_a_message_or_a_failure(payloads: list[bytes], forgets: bool) -> None:
    """Whatever is said to be compressed: nothing is raised, and nothing is larger than the limit."""
    frames = make_frames(Agreement(client_no_context_takeover=forgets))
    came = read(frames, *(frame(BINARY, payload, rsv=RSV1) for payload in payloads))
    assert all(len(each) <= LIMIT for each in came if isinstance(each, bytes))
    failures = [each for each in came if isinstance(each, Control)]
    assert all(failure.code in (1007, 1009) for failure in failures)
    assert failures in ([], came[-1:])
