"""A WebSocket as messages and control frames: bytes in and out, no input or output of its own, and no time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import cast

from wsproto.extensions import Extension
from wsproto.frame_protocol import Frame, FrameProtocol, Opcode, ParseFailed

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

_HEADER_SIZES = (6, 8, 14)  # with the mask, by the size of the payload (RFC 6455 §5.2)


class Frames:
    """One WebSocket, the server's side. ``max_size`` is of a message, in bytes, once inflated.

    On wsproto's frames and not on its Connection, which keeps the states of closing once more, and whose event objects
    cost 4 of the 15 µs that a small message takes in both directions.
    """

    def __init__(self, extensions: Sequence[Extension], left_over: bytes, max_size: int) -> None:
        self._protocol = FrameProtocol(client=False, extensions=list(extensions))
        self._protocol.receive_bytes(left_over)
        self._received: Iterator[Frame] = self._protocol.received_frames()
        self._max_size = max_size
        # A message in fragments. Not a list: a client may send a byte at a time.
        self._pieces: io.StringIO | io.BytesIO | None = None
        self._gathered = 0
        self._has_ended = False
        # Most messages end with their packet. Asking wsproto for another costs 2 of the 11 µs of reading a small one,
        # so this counts the bytes not read; None once nobody knows, as deflated and fragmented messages hide it.
        self._unread = None if extensions else len(left_over)
        self._is_fragmented = False
        self.in_frame = False
        """A frame has begun and is not complete: no other can come before its end."""
        self.size = 0
        """Bytes of the message that next_event returned last."""

    def feed(self, data: bytes) -> None:
        """Take what the client sent; after its close frame or a failure that is nothing to us."""
        if not self._has_ended:
            if self._unread is not None:
                self._unread += len(data)
            self._protocol.receive_bytes(data)

    def next_event(self) -> str | bytes | Control | None:
        """Return the next message, or what else has come; None if more bytes are needed."""
        if self._has_ended or self._unread == 0:
            return None
        try:
            frame = next(self._received, None)
        except ParseFailed as error:
            return self._fail(error.code, str(error))
        if frame is None:
            self._received = self._protocol.received_frames()
            return None
        opcode = frame.opcode
        if opcode is Opcode.BINARY or opcode is Opcode.TEXT:
            return self._take(frame)
        if opcode is Opcode.CLOSE:
            self._has_ended = True
            code, reason = cast("tuple[int, str]", frame.payload)
            return Control(Kind.CLOSE, code=int(code), reason=reason)
        payload = bytes(cast("bytes", frame.payload))
        self._count_frame(len(payload))
        return Control(Kind.PING if opcode is Opcode.PING else Kind.PONG, payload)

    def _fail(self, code: int, reason: str) -> Control:
        self._has_ended = True
        return Control(Kind.FAILURE, code=int(code), reason=reason)

    def _take(self, frame: Frame) -> str | bytes | Control:
        payload = cast("str | bytes | bytearray", frame.payload)
        data = bytes(payload) if isinstance(payload, bytearray) else payload  # as wsproto 1.2 gives an empty one
        self.in_frame = not frame.frame_finished
        self._gathered += size_of(data)
        if self._gathered > self._max_size:
            return self._fail(TOO_BIG, f"the message is larger than {self._max_size} bytes")
        self._is_fragmented |= frame.frame_finished and not frame.message_finished
        if self._pieces is None:
            if frame.message_finished:
                return self._complete(data)
            self._pieces = io.StringIO() if isinstance(data, str) else io.BytesIO()
        self._pieces.write(data)  # type: ignore[arg-type]  # all pieces of a message are of one kind
        if not frame.message_finished:
            return _PIECE
        whole, self._pieces = self._pieces.getvalue(), None
        return self._complete(whole)

    def _complete(self, data: str | bytes) -> str | bytes:
        self._count_frame(self._gathered)
        self.size, self._gathered = self._gathered, 0
        return data

    def _count_frame(self, size: int) -> None:
        if self._unread is not None:
            header = _HEADER_SIZES[(size > 125) + (size > 65535)]
            self._unread = None if self._is_fragmented else self._unread - size - header

    def message(self, data: str | bytes) -> bytes:
        """Frame a message of text or bytes."""
        return bytes(self._protocol.send_data(data))

    def ping(self, payload: bytes) -> bytes:
        return bytes(self._protocol.ping(payload))

    def pong(self, payload: bytes) -> bytes:
        return bytes(self._protocol.pong(payload))

    def close(self, code: int, reason: str) -> bytes:
        """Frame a close, or the answer to one; a long reason is cut at 123 bytes (RFC 6455 §5.5)."""
        # RFC 6455 §7.4.1: 1005 stands for a frame without a code, and is never in one.
        return bytes(self._protocol.close() if code == NO_STATUS else self._protocol.close(code, reason))


def size_of(data: str | bytes) -> int:
    """Bytes of a message or a piece of one."""
    return len(data) if not isinstance(data, str) or data.isascii() else len(data.encode())
