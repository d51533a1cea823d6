"""A client of a WebSocket that sends anything, to a whole server that has another client, and any application."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass
from enum import Enum

import trio
import trio.testing
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode

from trioserve.config import Config
from trioserve.errors import ClientDisconnected
from trioserve.types import ASGIApp, Message, Receive, Scope, Send

from ..codec_reading import cut
from ..support import Recorder, RunningServer, memory_server, plain_lifespan
from ..websocket_client import ACCEPT, handshake_bytes, read_fields
from .neighbour import Neighbour, trio_run
from .websocket_reference import CLOSE_CODES, Limits, Meaning, Reference, mask

MAX_SIZE = 200
CONFIG = Config.from_plain({"ws_max_size": MAX_SIZE, "ws_max_queue": 4})
OFFERS = [
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; client_max_window_bits=9; server_max_window_bits=9",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=8, permessage-deflate",
]
NO_PONG = 1011
LONG_ENOUGH = 50.0
"""Seconds of virtual time that a deaf application sleeps: enough for a ping, and for the pong that does not come."""


class Ending(Enum):
    """What a client does once it has sent all."""

    HALF_CLOSES = "half-closes"
    WAITS = "waits"  # for the server to close
    VANISHES = "vanishes"


class End(Enum):
    """How an application ends."""

    RETURNS = "returns"
    RAISES = "raises"
    CLOSES = "closes"
    SLEEPS = "sleeps"  # and then returns


@dataclass(frozen=True)
class Manner:
    """An application: what it says first, how many messages it echoes (None: all), and how it ends after that."""

    greetings: tuple[str | bytes, ...] = ()
    echoes: int | None = None
    end: End = End.RETURNS
    code: int = 1000


@dataclass(frozen=True)
class Scenario:
    """One connection: what the client offers and sends, in which pieces, and the application."""

    pieces: tuple[bytes, ...]
    offer: str | None = None
    ending: Ending = Ending.HALF_CLOSES
    manner: Manner = Manner()


class Meant(Exception):
    """What the application raises on purpose."""


class Application:
    """Of one Manner; ``received`` are the messages, ``told`` is the code it was told at the end."""

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self.received: list[str | bytes] = []
        self.told: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
        elif not await Neighbour.is_answered(scope, send):
            await self._converse(receive, send)

    async def _converse(self, receive: Receive, send: Send) -> None:
        manner = self._manner
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        for greeting in manner.greetings:
            await _send(send, greeting)
        while manner.echoes is None or len(self.received) < manner.echoes:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.told = message["code"]
                break
            self.received.append(_data_of(message))
            await _send(send, self.received[-1])
        if manner.end is End.RAISES:
            raise Meant
        if manner.end is End.SLEEPS:
            await trio.sleep(LONG_ENOUGH)
        elif manner.end is End.CLOSES:
            with contextlib.suppress(ClientDisconnected):
                await send({"type": "websocket.close", "code": manner.code, "reason": "as it likes"})


def _data_of(message: Message) -> str | bytes:
    data: str | bytes = message["text"] if message.get("text") is not None else message["bytes"]
    return data


async def _send(send: Send, data: str | bytes) -> None:
    with contextlib.suppress(ClientDisconnected):  # there may be messages all the same
        await send({"type": "websocket.send", ("text" if isinstance(data, str) else "bytes"): data})


# The client


@dataclass
class Heard:
    """What the server has said, as wsproto reads it."""

    messages: list[str | bytes]
    pongs: list[bytes]
    close: int | None = None


def listen(data: bytes, extensions: str | None) -> Heard:
    """Read all of a server's frames; raises wsproto's ParseFailed."""
    agreed = []
    if extensions is not None:
        deflate = PerMessageDeflate()
        deflate.finalize(extensions)
        agreed.append(deflate)
    protocol = FrameProtocol(client=True, extensions=agreed)
    heard = Heard([], [])
    pieces: list[str | bytes] = []
    for place in range(0, len(data), 1000):
        protocol.receive_bytes(data[place : place + 1000])
        for frame in protocol.received_frames():
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                pieces.append(frame.payload if isinstance(frame.payload, str) else bytes(frame.payload))
                if frame.message_finished:
                    heard.messages.append(pieces[0][:0].join(pieces))
                    pieces.clear()
            elif frame.opcode is Opcode.PONG:
                heard.pongs.append(bytes(frame.payload))
            elif frame.opcode is Opcode.CLOSE:
                heard.close = int(frame.payload[0])
    left = bytes(protocol._frame_decoder.buffer.buffer)
    assert not left, f"half a frame, or more after the close: {left!r}"
    assert not pieces, "half a message"
    return heard


async def talk(server: RunningServer, given: Scenario, neighbour: Neighbour) -> tuple[Heard, str | None]:
    """Returns also the extensions that were agreed on."""
    client = await server.connect()
    offer = () if given.offer is None else ((b"sec-websocket-extensions", given.offer.encode()),)
    received = b""
    try:
        await client.raw(handshake_bytes("/", *offer))
        await trio.testing.wait_all_tasks_blocked()
        try:
            for piece in given.pieces:
                await neighbour.check_in_between()
                await client.raw(piece)
                await trio.testing.wait_all_tasks_blocked()
            if given.ending is Ending.HALF_CLOSES:
                await client.stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the server has closed before the end
        if given.ending is Ending.VANISHES:
            return Heard([], []), None
        received = await client.receive_rest()
    finally:
        await client.aclose()
    head, _, frames = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    fields = read_fields(head)
    assert fields[b"sec-websocket-accept"] == ACCEPT
    extensions = fields.get(b"sec-websocket-extensions")
    agreed = None if extensions is None else extensions.decode()
    return listen(frames, agreed), agreed


def limits_of(agreed: str | None) -> Limits:
    if agreed is None:
        return Limits(MAX_SIZE)
    parameters = dict(part.strip().partition("=")[::2] for part in agreed.split(";"))
    return Limits(
        MAX_SIZE, int(parameters.get("client_max_window_bits", 15)), "client_no_context_takeover" in parameters
    )


def check(given: Scenario, app: ASGIApp | None = None) -> None:
    """The application hears what the reference reads, and the client what the application says, then the right close;
    the server's other client gets its own. ``app`` is another application than ours, which must do the same.
    """
    trio_run(_check, given, app)


async def _check(given: Scenario, app: ASGIApp | None) -> None:
    application = Application(given.manner)
    recorder = Recorder()
    async with memory_server(app or application, recorder=recorder, config=CONFIG) as server:
        neighbour = Neighbour(server)
        await neighbour.check()
        heard, agreed = await talk(server, given, neighbour)
        await neighbour.check()
        await neighbour.aclose()
    unmeant = [error for error in recorder.errors if not isinstance(error, Meant)]
    assert not unmeant, unmeant
    if given.ending is not Ending.VANISHES:
        meaning = Reference(limits_of(agreed)).read(b"".join(given.pieces))
        Oracle(given, meaning, heard).check(application)


@dataclass
class Oracle:
    """Knows what must have been said on both sides."""

    given: Scenario
    meaning: Meaning
    heard: Heard

    def check(self, application: Application) -> None:
        manner, meaning, heard = self.given.manner, self.meaning, self.heard
        expected = meaning.messages[: manner.echoes]
        assert application.received == expected, (application.received, meaning)
        said = [*manner.greetings, *expected]
        assert heard.messages == said[: len(heard.messages)], (heard, said)
        assert heard.pongs == meaning.pings[: len(heard.pongs)], (heard, meaning)
        if meaning.close is None and application.told not in (None, NO_PONG):
            assert heard.pongs == meaning.pings, (heard, meaning)
        assert heard.close in self._close_codes(application), (heard, meaning, application.told)
        if meaning.close is None and heard.close is not None and heard.close != NO_PONG:
            assert heard.messages == said, (heard, said)  # what came before a failure is answered first

    def _close_codes(self, application: Application) -> set[int | None]:
        """Those that may be, if the application had its say before the client's end; and those that may be if not."""
        meaning, manner, waits = self.meaning, self.given.manner, self.given.ending is Ending.WAITS
        if meaning.failures:
            codes: set[int | None] = {*meaning.failures}
        elif meaning.close is not None:
            codes = {meaning.close}
        else:
            codes = {NO_PONG if waits else None, *meaning.possible}
        if application.told is None:  # it came to its end by itself
            own = {End.RETURNS: 1000, End.RAISES: 1011, End.CLOSES: manner.code, End.SLEEPS: 1000}
            codes |= {own[manner.end], NO_PONG if waits else None}
        else:
            assert application.told in {code or 1006 for code in codes}, (application.told, codes)
        return codes


# What may come


def head_of(first: int, size: int, form: int | None) -> bytes:
    """The first bytes of a frame; ``form`` is 0, 2 or 8 bytes for the length, None for the right one of these."""
    if form is None:
        form = 0 if size < 126 else 2 if size < 65536 else 8
    if form == 0:
        return bytes([first, 0x80 | size & 0x7F])
    return bytes([first, 0x80 | (126 if form == 2 else 127)]) + (size % (1 << 8 * form)).to_bytes(form, "big")


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, key: bytes = b"\0\0\0\0") -> bytes:
    return head_of((0x80 if fin else 0) | rsv << 4 | opcode, len(payload), None) + key + mask(payload, key)


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-9)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


keys = st.sampled_from([b"\0\0\0\0", b"abcd", b"\xff\x00\x80\x7f"])
texts = st.one_of(st.text(max_size=20), st.sampled_from(["x" * 125, "x" * 126, "é" * 100, "x" * 200, "😀" * 51]))
binaries = st.one_of(st.binary(max_size=20), st.sampled_from([bytes(125), bytes(126), bytes(200)]))
wrong_payloads = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", bytes(201), bytes(70000)]),
)
rarely = st.integers(0, 11).map(lambda number: number == 5)
close_codes = st.one_of(st.sampled_from(sorted(CLOSE_CODES)), st.integers(0, 65535), st.integers(995, 1020))


@st.composite
def closes(draw: st.DrawFn) -> bytes:
    code, reason = draw(close_codes), draw(st.one_of(texts.map(str.encode), wrong_payloads))
    payload = draw(st.sampled_from([b"", b"\x03", code.to_bytes(2, "big"), code.to_bytes(2, "big") + reason[:123]]))
    return frame(0x8, payload, key=draw(keys))


@st.composite
def controls(draw: st.DrawFn) -> bytes:
    payload = b"p" * 126 if draw(rarely) else draw(st.one_of(st.binary(max_size=8), st.just(b"p" * 125)))
    return frame(draw(st.sampled_from([0x9, 0x9, 0xA])), payload, key=draw(keys))


@st.composite
def messages(draw: st.DrawFn, *, deflates: bool) -> bytes:
    """A message in one or more frames, with control frames between; perhaps deflated, and then perhaps corrupted."""
    opcode, payload = draw(st.one_of(st.tuples(st.just(0x1), texts.map(str.encode)), st.tuples(st.just(0x2), binaries)))
    if draw(rarely):
        payload = draw(wrong_payloads)
    is_deflated = deflates and draw(st.booleans())
    if is_deflated:
        payload = deflated(payload)
        if draw(rarely):
            place = draw(st.integers(0, len(payload) - 1))
            payload = payload[:place] + bytes([payload[place] ^ draw(st.integers(1, 255))]) + payload[place + 1 :]
    parts = cut(payload, draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    data = b""
    for number, part in enumerate(parts):
        rsv = 4 if is_deflated and not number else 0
        data += frame(0 if number else opcode, part, fin=number == len(parts) - 1, rsv=rsv, key=draw(keys))
        if number < len(parts) - 1 and draw(st.booleans()):
            data += draw(closes() if draw(rarely) else controls())
    return data


@st.composite
def strange_frames(draw: st.DrawFn) -> bytes:
    """Of which nothing needs to be right, not even the length."""
    payload = draw(st.one_of(binaries, wrong_payloads))
    size = draw(st.one_of(st.just(len(payload)), st.sampled_from([0, 125, 126, 65535, 65536, 1 << 63, (1 << 64) - 1])))
    data = head_of(draw(st.integers(0, 255)), size, draw(st.sampled_from([None, 0, 2, 8])))
    return bytes([data[0], data[1] & draw(st.sampled_from([0xFF, 0xFF, 0x7F]))]) + data[2:] + draw(keys) + payload


def manners() -> st.SearchStrategy[Manner]:
    greetings = st.lists(st.one_of(texts, st.binary(max_size=300)), max_size=2).map(tuple)
    any_end = st.builds(
        Manner,
        greetings=greetings,
        echoes=st.integers(0, 3),
        end=st.sampled_from(End),
        code=st.sampled_from([1000, 1001, 1013, 3000, 4999]),
    )
    return st.one_of(st.just(Manner()), st.builds(Manner, greetings=greetings), any_end)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    offer = draw(st.one_of(st.none(), st.sampled_from(OFFERS)))
    usual = messages(deflates=offer is not None)
    data = b"".join(draw(st.lists(st.one_of(usual, usual, controls()), max_size=6)))
    data += draw(st.one_of(st.just(b""), closes(), strange_frames(), st.binary(max_size=10)))
    data += draw(st.one_of(st.just(b""), usual))
    if draw(rarely):
        data = data[: draw(st.integers(0, len(data)))]
    places = draw(st.one_of(st.lists(st.integers(0, len(data)), max_size=6), st.just(range(min(len(data), 60)))))
    return Scenario(tuple(cut(data, places)), offer, draw(st.sampled_from(Ending)), draw(manners()))
