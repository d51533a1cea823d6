"""A WebSocket as messages and control frames: bytes in and out, no input or output of its own, and no time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason

NORMAL = 1000
NO_STATUS = 1005
ABNORMAL = 1006
TOO_BIG = 1009
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012


class Kind(Enum):
    """What a client's frame was."""

    PIECE = auto()  # of a message that is not complete
    PING = auto()
    PONG = auto()
    CLOSE = auto()
    FAILURE = auto()  # not a frame, or none that is allowed here: nothing more can be read


@dataclass(frozen=True, slots=True)
class Control:
    """A frame that is no message. ``code`` and ``reason`` are of a close or failure, ``payload`` of a ping or pong."""

    kind: Kind
    payload: bytes = b""
    code: int = 0
    reason: str = ""


_PIECE = Control(Kind.PIECE)


class Frames:
    """One WebSocket, the server's side. ``max_size`` is of a message, in bytes, once inflated."""

    def __init__(self, extensions: Sequence[Extension], left_over: bytes, max_size: int) -> None:
        self._connection = Connection(ConnectionType.SERVER, list(extensions), left_over)
        self._events: Iterator[Event] = self._connection.events()
        self._max_size = max_size
        # A message in fragments. Not a list: a client may send a byte at a time.
        self._text: io.StringIO | None = None
        self._bytes: bytearray | None = None
        self._gathered = 0
        self._has_failed = False
        self.in_frame = False
        """A frame has begun and is not complete: no other can come before its end."""
        self.size = 0
        """Bytes of the message that next_event returned last."""

    def feed(self, data: bytes) -> None:
        """Take what the client sent; after its close frame or a failure that is nothing to us."""
        if not self._has_failed and self._connection.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            self._connection.receive_data(data)

    def next_event(self) -> str | bytes | Control | None:
        """Return the next message, or what else has come; None if more bytes are needed."""
        event = next(self._events, None)
        if event is None:
            self._events = self._connection.events()
            return None
        if isinstance(event, TextMessage | BytesMessage):
            return self._take(event)
        if isinstance(event, Ping):
            return Control(Kind.PING, bytes(event.payload))
        if isinstance(event, Pong):
            return Control(Kind.PONG, bytes(event.payload))
        assert isinstance(event, CloseConnection)
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            return self._fail(event.code, event.reason or "")
        return Control(Kind.CLOSE, code=int(event.code), reason=event.reason or "")

    def _fail(self, code: int, reason: str) -> Control:
        self._has_failed = True
        self._events = iter(())
        return Control(Kind.FAILURE, code=int(code), reason=reason)

    def _take(self, event: TextMessage | BytesMessage) -> str | bytes | Control:
        data = event.data
        self.in_frame = not event.frame_finished
        self._gathered += size_of(data)
        if self._gathered > self._max_size:
            return self._fail(TOO_BIG, f"the message is larger than {self._max_size} bytes")
        if isinstance(data, str):
            whole: str | bytes | None = self._take_text(data, event.message_finished)
        else:
            whole = self._take_bytes(data, event.message_finished)
        if whole is None:
            return _PIECE
        self.size, self._gathered = self._gathered, 0
        return whole

    def _take_text(self, piece: str, is_last: bool) -> str | None:
        if self._text is None:
            if is_last:
                return piece
            self._text = io.StringIO()
        self._text.write(piece)
        if not is_last:
            return None
        whole, self._text = self._text.getvalue(), None
        return whole

    def _take_bytes(self, piece: bytes | bytearray, is_last: bool) -> bytes | None:
        if self._bytes is None:
            if is_last:
                return bytes(piece)
            self._bytes = bytearray()
        self._bytes += piece
        if not is_last:
            return None
        whole, self._bytes = bytes(self._bytes), None
        return whole

    def message(self, data: str | bytes) -> bytes:
        """Frame a message of text or bytes."""
        if isinstance(data, str):
            return self._connection.send(TextMessage(data=data))
        return self._connection.send(BytesMessage(data=data))

    def ping(self, payload: bytes) -> bytes:
        return self._connection.send(Ping(payload=payload))

    def pong(self, payload: bytes) -> bytes:
        return self._connection.send(Pong(payload=payload))

    def close(self, code: int, reason: str) -> bytes:
        """Frame a close, or the answer to one; a long reason is cut at 123 bytes (RFC 6455 §5.5)."""
        # wsproto knows the code that is never sent by its identity.
        known = CloseReason.NO_STATUS_RCVD if code == NO_STATUS else code
        return self._connection.send(CloseConnection(code=known, reason=reason or None))


def size_of(data: str | bytes | bytearray) -> int:
    """Bytes of a message or a piece of one."""
    return len(data) if not isinstance(data, str) or data.isascii() else len(data.encode())
