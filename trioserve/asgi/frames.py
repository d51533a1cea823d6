"""A WebSocket as messages and control frames: bytes in and out, no input or output of its own, and no time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import cast

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode, ParseFailed

from .deflate import BoundedDeflate
from .quick_frames import LONG_HEAD, MEDIUM_HEAD, SHORT_HEAD, QuickReader, frame_message, read_lone

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

# Nothing bigger is inflated at a time, and that to a thousand times as much: a few milliseconds of work.
DEFLATED_AT_ONCE = 4096

PIECES_JOINED = 1024
"""Pieces of a message that are made one, so that a byte does not cost a string."""

_HEADER_SIZES = (SHORT_HEAD, MEDIUM_HEAD, LONG_HEAD)  # by the size of the payload (RFC 6455 §5.2)


class Frames:
    """One WebSocket, the server's side. ``max_size`` is of a message, in bytes, once inflated.

    On wsproto's frames and not on its Connection, which keeps the states of closing once more, and whose event objects
    cost 4 µs. What is usual does not go through wsproto at all, see quick_frames.
    """

    def __init__(self, extensions: Sequence[BoundedDeflate], left_over: bytes, max_size: int) -> None:
        self._extensions = extensions
        self._protocol = FrameProtocol(client=False, extensions=list(extensions))
        self._received: Iterator[Frame] = self._protocol.received_frames()
        self._max_size = max_size
        self._pieces: _Pieces | None = None  # of a message that is not complete
        self._gathered = 0
        self._discards = False
        self._has_ended = False
        self._backlog = b""  # of deflated bytes
        # Which of the two gets what comes: the quick one, until something is not for it, and again once wsproto has
        # read all that it was given. This counts what it has not; None once nobody knows, as fragments hide it.
        self._quick = QuickReader()
        self._is_quick = not extensions
        self._unread: int | None = None
        self._is_fragmented = False
        self.sends_on = False
        """There is more behind the client's close frame. Known for most WebSockets without deflated messages."""
        self.in_frame = False
        """A frame has begun and is not complete: no other can come before its end."""
        self.size = 0
        """Bytes of the message that next_event returned last."""
        self.produced = 0
        """Bytes of messages so far, also of those that are not complete."""
        self.feed(left_over)

    def feed(self, data: bytes) -> None:
        """Take what the client sent; after its close frame or a failure that is nothing to us."""
        if self._has_ended:
            return
        if self._extensions:
            self._backlog += data
            return
        if self._is_quick:
            self._quick.feed(data)
            return
        if self._unread is not None:
            self._unread += len(data)
        self._protocol.receive_bytes(data)

    def take_lone(self, data: bytes) -> str | bytes | None:
        """Return the message if these bytes, the next that came, are exactly one; if not, None: they are to be fed.

        That spares a small message 3 µs.
        """
        if not self._is_quick or not self._quick.is_idle or self._discards or self._has_ended:
            return None
        message = read_lone(data)
        if message is None:
            return None
        size = size_of(message)
        if size > self._max_size:
            return None
        self.size = size
        self.produced += size
        return message

    def next_event(self) -> str | bytes | Control | None:
        """Return the next message, or what else has come; None if more bytes are needed."""
        if self._has_ended:
            return None
        try:
            frame = self._next_frame()
        except ParseFailed as error:
            return self._fail(error.code, str(error))
        if frame is None:
            if not self._backlog:
                return None
            self._protocol.receive_bytes(self._backlog[:DEFLATED_AT_ONCE])
            self._backlog = self._backlog[DEFLATED_AT_ONCE:]
            return _PIECE
        opcode = frame.opcode
        if opcode is Opcode.BINARY or opcode is Opcode.TEXT:
            return self._take(frame)
        if opcode is Opcode.CLOSE:
            self._has_ended = True
            code, reason = cast("tuple[int, str]", frame.payload)
            whole = SHORT_HEAD + (0 if code == NO_STATUS else 2 + size_of(reason))
            self.sends_on = self._backlog != b"" or (self._unread is not None and self._unread > whole)
            return Control(Kind.CLOSE, code=int(code), reason=reason)
        payload = bytes(cast("bytes", frame.payload))
        self._count_frame(len(payload))
        return Control(Kind.PING if opcode is Opcode.PING else Kind.PONG, payload)

    def _next_frame(self) -> Frame | None:
        if self._unread == 0:
            self._is_quick, self._unread = True, None
        if self._is_quick:
            frame = self._quick.next_frame()
            if not self._quick.is_stuck:
                return frame
            rest = self._quick.give_up()
            self._is_quick, self._unread = False, len(rest)
            self._protocol.receive_bytes(rest)
        frame = next(self._received, None)
        if frame is None:
            self._received = self._protocol.received_frames()
        return frame

    def _fail(self, code: int, reason: str = "") -> Control:
        self._has_ended = True
        if code == TOO_BIG:
            reason = f"the message is larger than {self._max_size} bytes"
        elif reason == "error in extension":
            reason = "the compressed message is not valid"
        return Control(Kind.FAILURE, code=int(code), reason=reason)

    def _take(self, frame: Frame) -> str | bytes | Control:
        payload = cast("str | bytes | bytearray", frame.payload)
        data = bytes(payload) if isinstance(payload, bytearray) else payload  # as wsproto 1.2 gives an empty one
        self.in_frame = not frame.frame_finished
        if self._discards:
            return _PIECE
        size = size_of(data)
        self.produced += size
        self._gathered += size
        if self._gathered > self._max_size:
            return self._fail(TOO_BIG)
        if self._pieces is None:
            if frame.message_finished:
                return self._complete(data)
            self._pieces = _Pieces()
        self._is_fragmented |= frame.frame_finished and not frame.message_finished
        self._pieces.add(data)
        if not frame.message_finished:
            return _PIECE
        whole, self._pieces = self._pieces.join(), None
        return self._complete(whole)

    def _complete(self, data: str | bytes) -> str | bytes:
        self._count_frame(self._gathered)
        self.size, self._gathered = self._gathered, 0
        return data

    def _count_frame(self, size: int) -> None:
        if self._unread is not None:
            header = _HEADER_SIZES[(size > 125) + (size > 65535)]
            self._unread = None if self._is_fragmented else self._unread - size - header

    def discard_messages(self) -> None:
        """Only control frames count from now on; nothing more is inflated but what has begun."""
        self._discards, self._pieces = True, None
        for extension in self._extensions:
            extension.discard_messages()

    def release(self) -> None:
        """Let go of what was read; nothing more can be."""
        self._has_ended, self._backlog, self._pieces = True, b"", None
        for extension in self._extensions:
            extension.release()

    def message(self, data: str | bytes) -> bytes:
        """Frame a message of text or bytes."""
        return bytes(self._protocol.send_data(data)) if self._extensions else frame_message(data)

    def ping(self, payload: bytes) -> bytes:
        return bytes(self._protocol.ping(payload))

    def pong(self, payload: bytes) -> bytes:
        return bytes(self._protocol.pong(payload))

    def close(self, code: int, reason: str) -> bytes:
        """Frame a close, or the answer to one; a long reason is cut at 123 bytes (RFC 6455 §5.5)."""
        # RFC 6455 §7.4.1: 1005 stands for a frame without a code, and is never in one.
        return bytes(self._protocol.close() if code == NO_STATUS else self._protocol.close(code, reason))


class _Pieces:
    """The pieces of a message. A client may send a byte at a time, which must not cost a string each."""

    __slots__ = ("_few", "_many")

    def __init__(self) -> None:
        self._few: list[str | bytes] = []
        self._many: list[str | bytes] = []

    def add(self, piece: str | bytes) -> None:
        self._few.append(piece)
        if len(self._few) == PIECES_JOINED:
            self._many.append(_join(self._few))
            self._few.clear()

    def join(self) -> str | bytes:
        return _join(self._many + self._few)


def _join(pieces: list[str | bytes]) -> str | bytes:
    """All of one kind, and at least one."""
    return pieces[0][:0].join(pieces)  # type: ignore[arg-type]  # all are of the first one's type


def size_of(data: str | bytes) -> int:
    """Bytes of a message or a piece of one."""
    return len(data) if not isinstance(data, str) or data.isascii() else len(data.encode())
