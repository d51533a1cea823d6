"""A WebSocket client made of wsproto, for the tests: on any stream, and able to misbehave."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h11
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage
from wsproto.extensions import PerMessageDeflate

from trioserve.types import AnyValue, ASGIApp, Receive, Scope, Send

from .support import Answer, Client, RunningServer, http_app, send_text

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

UPGRADE = (
    (b"host", b"test"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-key", KEY),
    (b"sec-websocket-version", b"13"),
)


def handshake_bytes(
    target: str = "/",
    *more: tuple[bytes, bytes],
    without: tuple[bytes, ...] = (),
    method: str = "GET",
    version: str = "1.1",
) -> bytes:
    """The request to open a WebSocket; ``more`` fields replace those of the same name, ``without`` leaves some out."""
    replaced = {name for name, _ in more}
    fields = [field for field in UPGRADE if field[0] not in without and field[0] not in replaced]
    lines = [b"%s: %s\r\n" % field for field in (*fields, *more)]
    return f"{method} {target} HTTP/{version}\r\n".encode() + b"".join(lines) + b"\r\n"


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"abcd") -> bytes:
    """One frame as a client sends it, right or wrong; ``mask`` None leaves it unmasked."""
    length = len(payload)
    if length < 126:
        head, extended = length, b""
    elif length < 65536:
        head, extended = 126, length.to_bytes(2, "big")
    else:
        head, extended = 127, length.to_bytes(8, "big")
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if mask is None:
        return bytes([first, head]) + extended + payload
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([first, head | 0x80]) + extended + mask + masked


def deflated(data: bytes) -> bytes:
    """A message's payload as permessage-deflate sends it (RFC 7692 §7.2.1)."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


class WebSocketClient:
    """An open WebSocket. ``received`` are the bytes that came with the handshake's response."""

    def __init__(self, stream: trio.abc.Stream, left_over: bytes = b"", *, deflates: str | None = None) -> None:
        extensions = []
        if deflates is not None:
            extension = PerMessageDeflate()
            extension.finalize(deflates)
            extensions.append(extension)
        self.stream = stream
        self.wsproto = Connection(ConnectionType.CLIENT, extensions, left_over)
        self._events = self.wsproto.events()

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(bytes(self.wsproto.send(event)) for event in events))

    async def send_text(self, text: str) -> None:
        await self.send(TextMessage(data=text))

    async def send_bytes(self, data: bytes) -> None:
        await self.send(BytesMessage(data=data))

    async def raw(self, data: bytes) -> None:
        """Send bytes past wsproto."""
        await self.stream.send_all(data)

    async def next_event(self) -> Event:
        """The next frame, or a piece of a message; CloseConnection with 1006 at the end of the stream."""
        while True:
            event = next(self._events, None)
            if event is not None:
                return event
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            self.wsproto.receive_data(data or None)
            self._events = self.wsproto.events()

    async def receive(self) -> str | bytes:
        """The next message; pings are answered on the way. A close is an AssertionError."""
        pieces = []
        while True:
            event = await self.next_event()
            if isinstance(event, Ping):
                await self.send(event.response())
                continue
            if isinstance(event, Pong):
                continue
            assert isinstance(event, Message), event
            pieces.append(event.data)
            if event.message_finished:
                return "".join(pieces) if isinstance(event, TextMessage) else b"".join(map(bytes, pieces))

    async def receive_close(self, *, answers: bool = True) -> tuple[int, str]:
        """Skip messages up to the server's close: (code, reason). ``answers``: complete the closing handshake."""
        while not isinstance(event := await self.next_event(), CloseConnection):
            pass
        if answers and event.code != 1006:
            await self.send(event.response())
        return int(event.code), event.reason or ""

    async def close(self, code: int = 1000, reason: str = "") -> tuple[int, str]:
        """Begin the closing handshake; returns the server's answer."""
        await self.send(CloseConnection(code=code, reason=reason))
        return await self.receive_close(answers=False)

    async def wait_eof(self) -> None:
        """Wait until the server has closed the connection, by an end or a reset."""
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


async def open_handshake(stream: trio.abc.Stream, request: bytes | None = None) -> WebSocketClient | Answer:
    """Send the request; returns the open WebSocket, or the response that refuses it."""
    await stream.send_all(handshake_bytes() if request is None else request)
    return await read_handshake(stream)


async def read_handshake(stream: trio.abc.Stream) -> WebSocketClient | Answer:
    """Read the response to a handshake that has been sent."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some(65536)
        assert data, received
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        return await _read_answer(stream, received)
    fields = read_fields(head)
    assert fields[b"sec-websocket-accept"] == ACCEPT
    assert fields[b"upgrade"].lower() == b"websocket"
    extensions = fields.get(b"sec-websocket-extensions")
    return WebSocketClient(stream, rest, deflates=None if extensions is None else extensions.decode())


def read_fields(head: bytes) -> dict[bytes, bytes]:
    lines = [line.partition(b": ") for line in bytes(head).split(b"\r\n")[1:]]
    return {name.lower(): value for name, _, value in lines}


async def _read_answer(stream: trio.abc.Stream, received: bytes) -> Answer:
    client = Client(stream)
    client.h11.send(h11.Request(method="GET", target="/", headers=[("Host", "test")]))
    client.h11.send(h11.EndOfMessage())
    client.h11.receive_data(received)
    return await client.answer()


@asynccontextmanager
async def websocket(
    server: RunningServer, target: str = "/", *more: tuple[bytes, bytes]
) -> AsyncIterator[WebSocketClient]:
    """An open WebSocket to a server of the tests; its connection is cut at the end of the block."""
    client = await server.connect()
    opened = await open_handshake(client.stream, handshake_bytes(target, *more))
    assert isinstance(opened, WebSocketClient), opened
    try:
        yield opened
    finally:
        await opened.aclose()


def websocket_app(handler: Callable[[Scope, Receive, Send], AnyValue]) -> ASGIApp:
    """An application made of one WebSocket handler; it answers HTTP requests with "plain"."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await handler(scope, receive, send)
        else:
            await send_text(send, "plain")

    return http_app(app)
