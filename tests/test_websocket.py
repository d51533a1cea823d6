"""An open WebSocket: what the client sends becomes messages, within bounds."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from wsproto.events import Ping, Pong

from trioserve.logs import Outcome

from .websocket_client import WebSocketClient, deflated, frame, handshake_bytes, open_handshake, websocket
from .websocket_servers import ON_EACH_KIND, Side, Stage, accepting, echo, server_on

pytestmark = pytest.mark.timeout(20)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

DEFLATE = (b"sec-websocket-extensions", b"permessage-deflate")
COMPRESSED = 4  # rsv1

MIB = 1024 * 1024


@contextmanager
def peak_below(count: int) -> Iterator[None]:
    """What Python allocates meanwhile is never more than so many bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count


# What is received


@ON_EACH_KIND
async def test_text_and_binary(kind):
    """A message is one event with its text or its bytes, and what the application sends arrives as it is."""
    messages = ["Grüße, 世界", b"\x00\xff", "", b"", "x" * 200_000, bytes(range(256)) * 1000, "a" * 125, "b" * 126]
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for message in messages:
            await (client.send_text if isinstance(message, str) else client.send_bytes)(message)
            assert await side.hear() == message
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.say, message)
                assert await client.receive() == message


@pytest.mark.parametrize("data", [bytearray(b"ab"), memoryview(b"ab")])
async def test_any_bytes_can_be_sent(data):
    """The application may send whatever is like bytes."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        await (await stage.next()).send({"type": "websocket.send", "bytes": data, "text": None})
        assert await client.receive() == b"ab"


async def test_fragments_make_one_message():
    """A message in fragments is one event, wherever a character or the message is cut."""
    text = "Grüße".encode()
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        for cut in range(len(text) + 1):
            await client.raw(frame(TEXT, text[:cut], fin=False) + frame(CONTINUATION, text[cut:]))
            assert await side.hear() == "Grüße"
        await client.raw(frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"", fin=False))
        await client.raw(frame(CONTINUATION, b"bc", fin=False) + frame(CONTINUATION, b""))
        assert await side.hear() == b"abc"


@ON_EACH_KIND
async def test_control_frames_between_fragments(kind):
    """A ping between two fragments is answered before the message is complete; a pong there is nothing."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(frame(TEXT, b"a", fin=False) + frame(PING, b"here?") + frame(PONG, b"unasked"))
        assert await client.next_event() == Pong(payload=bytearray(b"here?"))
        await client.raw(frame(CONTINUATION, b"b"))
        assert await side.hear() == "ab"


async def test_a_close_between_fragments():
    """A client may close in the middle of a message, which is then none."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(frame(TEXT, b"a", fin=False) + frame(CLOSE, b"\x03\xe8bye"))
        assert await side.hear_all() == [(1000, "bye")]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_many_tiny_fragments(opcode):
    """A message in 20,000 fragments of a byte comes whole, and costs time in proportion."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        with trio.fail_after(4):
            pieces = frame(CONTINUATION, b"x", fin=False) * 20_000
            await client.raw(frame(opcode, b"", fin=False) + pieces + frame(CONTINUATION, b"y"))
            heard = await side.hear()
        assert heard == ("x" * 20_000 + "y" if opcode == TEXT else b"x" * 20_000 + b"y")


@ON_EACH_KIND
async def test_one_byte_at_a_time(kind):
    """Frames may come in any number of pieces."""
    frames = (
        frame(TEXT, b"a", fin=False) + frame(PING, b"ping") + frame(CONTINUATION, "ü".encode()) + frame(BINARY, b"")
    )
    frames += frame(BINARY, b"z" * 126) + frame(CLOSE, b"\x0f\xa0bye")
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for byte in frames:
            await client.raw(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert await side.hear_all() == ["aü", b"", b"z" * 126, (4000, "bye")]


@ON_EACH_KIND
async def test_a_message_with_the_handshake(kind):
    """What a client sends in one piece with its handshake is not lost."""
    stage = Stage()
    async with server_on(kind, stage) as server:
        client = await server.connect()
        opened = await open_handshake(client.stream, handshake_bytes() + frame(TEXT, b"early") + frame(PING, b"!"))
        assert isinstance(opened, WebSocketClient)
        side = await stage.next()
        assert await side.hear() == "early"
        assert await opened.next_event() == Pong(payload=bytearray(b"!"))
        await opened.aclose()


@ON_EACH_KIND
async def test_nonsense_with_the_handshake_ends_that_connection_alone(kind):
    """A client that sends no frames gets 1002, and all others go on."""
    async with server_on(kind, accepting(echo)) as server, websocket(server) as other:
        client = await server.connect()
        opened = await open_handshake(client.stream, handshake_bytes() + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
        assert isinstance(opened, WebSocketClient)
        assert (await opened.receive_close())[0] == 1002
        await opened.aclose()
        await other.send_text("still here")
        assert await other.receive() == "still here"
        assert not server.errors


# Pings


@ON_EACH_KIND
async def test_pings_are_answered_while_the_application_is_busy(kind):
    """A ping gets its pong, with its payload, though nobody receives; messages wait meanwhile."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.send_text("waits")
        for payload in (b"", b"1", b"x" * 125):
            await client.send(Ping(payload=payload))
            assert await client.next_event() == Pong(payload=bytearray(payload))
        assert await side.hear() == "waits"


async def test_pings_are_answered_while_the_application_receives():
    """The application that waits for a message is not told of pings, and they are answered."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client, trio.open_nursery() as nursery:
        side = await stage.next()
        nursery.start_soon(side.hear)
        await trio.testing.wait_all_tasks_blocked()
        await client.send(Ping(payload=b"1"))
        assert await client.next_event() == Pong(payload=bytearray(b"1"))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_a_flood_of_pings(kind):
    """10,000 pings from a client that does not read: little memory, others are served, and every pong comes in order
    when it reads at last.
    """
    pings = b"".join(frame(PING, number.to_bytes(125, "big")) for number in range(10_000))
    async with (
        server_on(kind, Stage(), narrow=True) as server,
        websocket(server) as client,
        websocket(server) as other,
        trio.open_nursery() as nursery,
    ):

        async def flood() -> None:
            for start in range(0, len(pings), 10_000):
                await client.raw(pings[start : start + 10_000])

        with peak_below(MIB):
            nursery.start_soon(flood)
            for _ in range(10):
                await other.send(Ping(payload=b"still served"))
                assert await other.next_event() == Pong(payload=bytearray(b"still served"))
            await trio.testing.wait_all_tasks_blocked(0.01)
        for number in range(10_000):
            assert await client.next_event() == Pong(payload=bytearray(number.to_bytes(125, "big")))


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_a_flood_of_pings_while_the_application_receives(kind):
    """The same while the application receives all the time: its task takes no more pings than can be answered."""
    pings = frame(PING, b"x" * 125) * 100
    async with (
        server_on(kind, accepting(echo), narrow=True) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):

        async def flood() -> None:
            for _ in range(200):
                await client.raw(pings)

        with peak_below(MIB):
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()


# Back-pressure


async def _messages_taken_in(kind: str, size: int, *, at_least: int, **options: int) -> int:
    """How many messages a client gets rid of before the application takes any; then they all arrive, in order.

    Waits for ``at_least``: between them the kernel may let both ends of a narrow socket rest for longer than a moment.
    """
    sent = 0
    enough = trio.Event()
    stage = Stage()
    async with (
        server_on(kind, stage, narrow=True, **options) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        side = await stage.next()

        async def send_all() -> None:
            nonlocal sent
            for number in range(50):
                await client.send_bytes(bytes([number]) * size)
                sent += 1
                if sent == at_least:
                    enough.set()

        nursery.start_soon(send_all)
        with trio.fail_after(5):
            await enough.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        taken_in = sent
        for number in range(50):
            assert await side.hear() == bytes([number]) * size
    return taken_in


# What else holds messages of 50,000 bytes: what the transport reads ahead, what is being taken apart, the kernel.
BESIDE_THE_QUEUE = 6


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_reading_stops_when_enough_messages_wait(kind):
    """While ws_max_queue messages wait the server does not read: a client that sends more has to wait."""
    taken_in = await _messages_taken_in(kind, 50_000, at_least=10, ws_max_queue=10, ws_max_size=10**8)
    assert taken_in <= 10 + BESIDE_THE_QUEUE


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_reading_stops_when_enough_bytes_wait(kind):
    """While messages of ws_max_size bytes wait the server does not read, however few they are."""
    taken_in = await _messages_taken_in(kind, 50_000, at_least=5, ws_max_queue=1000, ws_max_size=250_000)
    assert taken_in <= 5 + BESIDE_THE_QUEUE


@ON_EACH_KIND
async def test_reading_goes_on_when_there_is_room(kind):
    """A ping that waited behind a full queue is answered once the messages are taken, though nobody receives more."""
    stage = Stage()
    async with server_on(kind, stage, ws_max_queue=1) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(frame(TEXT, b"1") + frame(TEXT, b"2"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(Ping(payload=b"3"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [await side.hear(), await side.hear()] == ["1", "2"]
        with trio.fail_after(2):
            assert await client.next_event() == Pong(payload=bytearray(b"3"))


@ON_EACH_KIND
async def test_a_close_that_came_while_a_packet_was_taken_apart(kind):
    """A close that came in a packet of its own, while many frames of the one before were still to be looked at, is
    answered though the application is busy.
    """
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        await stage.next()
        await client.raw(frame(PONG, b"") * 10_000)
        await client.raw(frame(CLOSE, b"\x0f\xa0"))
        with trio.fail_after(2):
            assert await client.receive_close(answers=False) == (4000, "")


async def test_messages_that_came_together_wait_together():
    """Of small messages in one packet no more than ws_max_queue are taken apart before the application takes some."""
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=2) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(b"".join(frame(TEXT, b"%d" % number) for number in range(10)) + frame(PING, b"last"))
        for number in range(10):
            assert await side.hear() == str(number)
        assert await client.next_event() == Pong(payload=bytearray(b"last"))


async def test_an_application_that_finds_messages_all_the_time_lets_others_run():
    """Receiving what is there is no wait, but others get their turn all the same."""
    turns = 0
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client, trio.open_nursery() as nursery:
        side = await stage.next()

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        await client.raw(frame(BINARY, b"") * 1000)
        nursery.start_soon(count_turns)
        for _ in range(1000):
            await side.hear()
        nursery.cancel_scope.cancel()
    assert turns >= 1000 // 16


# Limits and failures


async def _fails(frames: bytes, *more: tuple[bytes, bytes], **options: int) -> tuple[int, str]:
    """Code and reason of the close that these frames get; the application hears the same, and the log calls it an
    error.
    """
    stage = Stage()
    async with server_on("memory", stage, **options) as server, websocket(server, "/", *more) as client:
        side = await stage.next()
        await client.raw(frames)
        close = await client.receive_close()
        assert await side.hear_all() == [close]
        side.end()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        (record,) = server.recorder.websockets
        assert (record.code, record.reason, record.outcome) == (*close, Outcome.ERROR)
        assert not server.errors
    return close


LARGER = (1009, "the message is larger than 100 bytes")


@pytest.mark.parametrize(
    "frames",
    [
        frame(BINARY, b"x" * 101),
        frame(TEXT, "ü".encode() * 51),
        frame(BINARY, b"x" * 50, fin=False) + frame(CONTINUATION, b"y" * 51),
        frame(TEXT, b"x" * 100, fin=False) + frame(CONTINUATION, b"", fin=False) + frame(CONTINUATION, b"y"),
        frame(BINARY, b"x" * 1000)[:200],
    ],
    ids=["binary", "text", "fragments", "later", "incomplete"],
)
async def test_too_large_a_message(autojump_clock, frames):
    """A message of more than ws_max_size bytes, which are not characters, closes with 1009 once it has them."""
    assert await _fails(frames, ws_max_size=100) == LARGER


async def test_a_message_of_the_largest_size():
    """ws_max_size bytes are not too many, and fragments count anew for each message."""
    stage = Stage()
    async with server_on("memory", stage, ws_max_size=100) as server, websocket(server) as client:
        side = await stage.next()
        for _ in range(3):
            await client.raw(frame(TEXT, "ü".encode() * 25, fin=False) + frame(CONTINUATION, "ü".encode() * 25))
            assert await side.hear() == "ü" * 50


@pytest.mark.parametrize(
    "frames",
    [
        frame(TEXT, b"\xff"),
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xc3"),
        frame(TEXT, b"\xed\xa0\x80"),
        frame(CLOSE, b"\x03\xe8\xff"),
    ],
    ids=["byte", "cut", "surrogate", "reason"],
)
async def test_text_that_is_no_utf_8(autojump_clock, frames):
    """Text, or a reason, that is not UTF-8 closes with 1007."""
    assert (await _fails(frames))[0] == 1007


@pytest.mark.parametrize(
    "frames",
    [
        frame(TEXT, b"x", mask=None),
        frame(TEXT, b"x", rsv=1),
        frame(TEXT, b"x", rsv=4),
        frame(3, b"x"),
        frame(11, b"x"),
        frame(PING, b"x", fin=False),
        frame(PING, b"x" * 126),
        frame(CONTINUATION, b"x"),
        frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
        b"\x81\xfe\x00\x01abcdx",
        frame(CLOSE, b"\x03"),
        frame(CLOSE, (999).to_bytes(2, "big")),
        frame(CLOSE, (1005).to_bytes(2, "big")),
    ],
    ids=[
        "unmasked",
        "rsv3",
        "rsv1",
        "opcode",
        "control",
        "fragmented-ping",
        "long-ping",
        "continuation",
        "interrupted",
        "length",
        "close-payload",
        "close-code",
        "close-code-never-sent",
    ],
)
async def test_protocol_errors(autojump_clock, frames):
    """What RFC 6455 forbids closes with 1002."""
    assert (await _fails(frames))[0] == 1002


async def test_what_came_before_a_failure_is_delivered(autojump_clock):
    """Messages before the frame that is wrong are received, and then the disconnect; nothing after it counts."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(frame(TEXT, b"1") + frame(TEXT, b"2") + frame(CONTINUATION, b"") + frame(TEXT, b"3"))
        *messages, (code, _) = await side.hear_all()
        assert (messages, code) == (["1", "2"], 1002)


@pytest.mark.parametrize("kind", ["socket", "tls"])
async def test_a_client_that_goes_on_sending_reads_why_it_failed(kind):
    """A client that is in the middle of a megabyte when its message is too large still gets the 1009, not a reset."""
    stage = Stage()
    async with (
        server_on(kind, stage, ws_max_size=1000) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        await stage.next()
        nursery.start_soon(client.raw, frame(BINARY, b"x" * MIB))
        assert (await client.receive_close(answers=False))[0] == 1009


@pytest.mark.parametrize("kind", ["socket", "tls"])
async def test_a_client_that_sends_on_after_it_failed_is_not_reset(kind):
    """After a failure, also where nothing behind it has come yet, the client may go on sending and still reads why."""
    async with server_on(kind, Stage()) as server, websocket(server) as client:
        await client.raw(frame(3, b""))
        for _ in range(10):
            # Time for a reset to come.
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.raw(bytes(1000))
        assert (await client.receive_close(answers=False))[0] == 1002


# permessage-deflate


async def test_deflated_messages():
    """With permessage-deflate messages go both ways, those of the client compressed or not."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server, "/", DEFLATE) as client:
        side = await stage.next()
        for message in ("Hi " * 100, b"\x00" * 100_000, "", b"", "Hi " * 100):
            await (client.send_text if isinstance(message, str) else client.send_bytes)(message)
            assert await side.hear() == message
            await side.say(message)
            assert await client.receive() == message
        await client.raw(frame(TEXT, b"plain"))
        assert await side.hear() == "plain"


async def test_deflated_fragments():
    """A compressed message in fragments, with a ping between them, comes whole."""
    payload = deflated(b"Hi " * 100)
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server, "/", DEFLATE) as client:
        side = await stage.next()
        first = frame(TEXT, payload[:5], fin=False, rsv=COMPRESSED)
        await client.raw(first + frame(PING, b"1") + frame(CONTINUATION, payload[5:]))
        assert await side.hear() == "Hi " * 100
        assert await client.next_event() == Pong(payload=bytearray(b"1"))


async def test_what_goes_out_is_deflated():
    """A message for a client that has negotiated it takes fewer bytes than it has."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server, "/", DEFLATE) as client:
        await (await stage.next()).say("Hi " * 1000)
        head, length = await client.stream.receive_some(2)
        assert head == 0x80 | COMPRESSED << 4 | TEXT
        assert length < 100


@pytest.mark.parametrize("offers", [True, False])
async def test_deflate_is_negotiated(offers):
    """Without ws_per_message_deflate, or without an offer of it, nothing is compressed."""
    more = [DEFLATE] if offers else []
    async with (
        server_on("memory", accepting(echo), ws_per_message_deflate=not offers) as server,
        websocket(server, "/", *more) as client,
    ):
        await client.raw(frame(TEXT, b"x" * 100))
        assert await client.stream.receive_some(2) == bytes([0x80 | TEXT, 100])


async def test_the_inflated_message_counts(autojump_clock):
    """ws_max_size is of the message once inflated; more closes with 1009."""
    assert (await _fails(frame(TEXT, deflated(b"x" * 101), rsv=COMPRESSED), DEFLATE, ws_max_size=100))[0] == 1009


async def test_a_deflated_message_of_the_largest_size():
    """ws_max_size bytes once inflated are not too many."""
    stage = Stage()
    async with server_on("memory", stage, ws_max_size=100) as server, websocket(server, "/", DEFLATE) as client:
        await client.raw(frame(TEXT, deflated(b"x" * 100), rsv=COMPRESSED))
        assert await (await stage.next()).hear() == "x" * 100


async def test_inflation_is_bounded(autojump_clock):
    """A frame of 100 KiB that would inflate to 100 MiB closes with 1009, and costs no more than a few ws_max_size."""
    compressor = zlib.compressobj(wbits=-15)
    zeros = bytes(MIB)
    payload = b"".join(compressor.compress(zeros) for _ in range(100)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert 100_000 < len(payload) < 110_000
    frames = frame(BINARY, payload, rsv=COMPRESSED)
    with peak_below(4 * MIB):
        assert (await _fails(frames, DEFLATE, ws_max_size=MIB))[0] == 1009


async def test_what_cannot_be_inflated(autojump_clock):
    """A compressed message that is no deflate closes with 1007."""
    assert (await _fails(frame(TEXT, b"\xff\xff\xff\xff", rsv=COMPRESSED), DEFLATE))[0] == 1007


@pytest.mark.parametrize(
    "frames",
    [
        frame(PING, b"x", rsv=COMPRESSED),
        frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"y", rsv=COMPRESSED),
    ],
    ids=["ping", "continuation"],
)
async def test_only_messages_can_be_compressed(autojump_clock, frames):
    """A control frame or a later fragment with the bit of a compressed message closes with 1002."""
    assert (await _fails(frames, DEFLATE))[0] == 1002


# Who receives


async def test_several_tasks_receive():
    """Each message goes to one of the tasks that wait, and each of them hears of the end."""
    heard: list[list[str | bytes | tuple[int, str]]] = []
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()

        async def listen() -> None:
            heard.append(await side.hear_all())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            for number in range(20):
                await client.send_text(str(number))
            await client.close(4000, "enough")
    assert [one[-1] for one in heard] == [(4000, "enough")] * 5
    assert sorted(int(message) for one in heard for message in one[:-1]) == list(range(20))


async def test_messages_in_one_packet_for_two_tasks():
    """Of two messages in one packet each of two tasks that wait gets one, though the first does not ask again."""
    heard: list[str | bytes | tuple[int, str]] = []
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()

        async def listen() -> None:
            heard.append(await side.hear())

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                nursery.start_soon(listen)
                await trio.testing.wait_all_tasks_blocked()
                await client.raw(frame(TEXT, b"1") + frame(TEXT, b"2"))
        assert sorted(heard) == ["1", "2"]


@pytest.mark.parametrize("end", ["close", "vanish"])
async def test_a_task_that_takes_over_the_waiting(end):
    """When the task that waits for messages is cancelled another one that waits gets what comes."""
    heard: list[list[str | bytes | tuple[int, str]]] = []
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()

        async def listen(scope: trio.CancelScope) -> None:
            with scope:
                heard.append(await side.hear_all())

        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()
            nursery.start_soon(listen, first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(listen, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await client.send_text("for the other")
            if end == "close":
                await client.close()
            else:
                await client.aclose()
        assert heard == [["for the other", (1000, "") if end == "close" else (1006, "")]]


@ON_EACH_KIND
async def test_receive_in_a_cancelled_scope(kind):
    """What is there is received even in a cancelled scope; without anything there it is cancelled, and loses nothing.

    Starlette asks so whether something has come.
    """
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        with trio.CancelScope() as nothing:
            nothing.cancel()
            await side.hear()
        assert nothing.cancelled_caught
        for number in range(10):
            await client.send_text(str(number))
        await client.send(Ping())
        assert await client.next_event() == Pong(payload=bytearray())
        with trio.CancelScope() as scope:
            scope.cancel()
            for number in range(10):
                assert await side.hear() == str(number)
        await client.close(4000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.CancelScope() as scope:
            scope.cancel()
            assert await side.hear() == (4000, "")


@ON_EACH_KIND
async def test_a_cancelled_receive_loses_nothing(kind):
    """Whenever receive() is cancelled, each message is received once, and in order."""
    heard: list[str | bytes | tuple[int, str]] = []
    stage = Stage()

    async def listen(side: Side, scope: trio.CancelScope) -> None:
        with scope:
            heard.append(await side.hear())

    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(50):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(listen, side, scope)
                for _ in range(number % 3):
                    await trio.lowlevel.checkpoint()
                await client.send_text(str(number))
                for _ in range(number % 7):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        await client.close()
        heard += await side.hear_all()
    assert heard == [*map(str, range(50)), (1000, "")]


@pytest.mark.parametrize("steps", range(8))
async def test_what_comes_as_a_receive_is_cancelled_is_answered(autojump_clock, steps):
    """A ping that comes in the moment in which receive() is cancelled has its pong, though nobody receives again."""
    stage = Stage()

    async def listen(side: Side, scope: trio.CancelScope) -> None:
        with scope:
            await side.hear()

    async with server_on("memory", stage, ws_ping_interval=None) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(20):  # because Trio runs tasks in any order
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(listen, side, scope)
                await trio.testing.wait_all_tasks_blocked()
                await client.send(Ping(payload=b"%d" % number))
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            with trio.fail_after(1):
                assert await client.next_event() == Pong(payload=bytearray(b"%d" % number))
