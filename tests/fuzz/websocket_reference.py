"""What a WebSocket's bytes mean, read plainly and all at once: the reference for a server that reads them in pieces.

Sources: RFC 6455 §5 (frames), §7.4 (close codes), RFC 7692 (permessage-deflate).
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PROTOCOL_ERROR, INVALID_DATA, TOO_BIG, NO_STATUS = 1002, 1007, 1009, 1005
CLOSE_CODES = {*range(1000, 1004), *range(1007, 1014), *range(3000, 5000)}
TAIL = b"\x00\x00\xff\xff"


@dataclass
class Meaning:
    """What a client said. ``close`` is its code; of ``failures`` one must be the server's, if there are any, and of
    ``possible`` one may be, if a frame has begun that is not complete.
    """

    messages: list[str | bytes] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    close: int | None = None
    failures: set[int] = field(default_factory=set)
    possible: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Limits:
    """``window`` is None without permessage-deflate, else the client's in bits; ``forgets``: after each message."""

    max_size: int
    window: int | None = None
    forgets: bool = False


@dataclass
class _Frame:
    opcode: int
    fin: bool
    rsv: int
    payload: bytes
    is_whole: bool


def mask(data: bytes, key: bytes) -> bytes:
    """Put a mask on, or take it off."""
    repeated = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(data), "big")


class Reference:
    """Reads the frames of one client."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._meaning = Meaning()
        self._window = None if limits.window is None else _Window(limits.window)
        self._opcode = 0  # of the message that has begun
        self._is_compressed = False
        self._decoder: codecs.IncrementalDecoder | None = None
        self._message = b""

    def read(self, data: bytes) -> Meaning:
        for frame in self._frames(data):
            wrong = self._take_control(frame) if frame.opcode & 0x8 else self._take_data(frame)
            if not frame.is_whole:
                self._meaning.possible = wrong
            elif wrong:
                self._meaning.failures = wrong
            if wrong or self._meaning.close is not None:
                break
        return self._meaning

    def _frames(self, data: bytes) -> Iterator[_Frame]:
        """Every frame whose head is whole and right; what else there is has been noted."""
        while data:
            self._meaning.possible = {PROTOCOL_ERROR}  # of a head that is not whole
            if len(data) < 2:
                return
            first, second = data[0], data[1]
            extended = {126: 2, 127: 8}.get(second & 0x7F, 0)
            frame = _Frame(first & 0x0F, first & 0x80 != 0, first >> 4 & 7, b"", False)
            size = int.from_bytes(data[2 : 2 + extended], "big") if extended else second & 0x7F
            if len(data) < 2 + extended:
                return
            if self._is_wrong_head(frame, size, extended) or not second & 0x80:
                self._meaning.failures, self._meaning.possible = {PROTOCOL_ERROR}, set()
                return
            start = 2 + extended + 4
            if len(data) < start:
                self._meaning.possible = set()
                return
            key, body = data[start - 4 : start], data[start : start + size]
            frame.payload = mask(body, key)
            frame.is_whole = len(body) == size
            self._meaning.possible = set()
            yield frame
            data = data[start + size :]

    def _is_wrong_head(self, frame: _Frame, size: int, extended: int) -> bool:
        least = {0: 0, 2: 126, 8: 65536}[extended]
        compresses = self._window is not None and frame.opcode in (TEXT, BINARY)
        return (
            frame.opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG)
            or (frame.opcode >= CLOSE and (not frame.fin or extended > 0))
            or not least <= size < 1 << 63
            or frame.rsv not in ((0, 4) if compresses else (0,))
        )

    def _take_control(self, frame: _Frame) -> set[int]:
        """Source: RFC 6455 §5.5."""
        payload = frame.payload
        if not frame.is_whole or frame.opcode == PONG:
            return set()
        if frame.opcode == PING:
            self._meaning.pings.append(payload)
            return set()
        if not payload:
            self._meaning.close = NO_STATUS
            return set()
        code = int.from_bytes(payload[:2], "big")
        wrong = set()
        if len(payload) < 2 or code not in CLOSE_CODES:
            wrong.add(PROTOCOL_ERROR)
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            wrong.add(INVALID_DATA)
        if not wrong:
            self._meaning.close = code
        return wrong

    def _take_data(self, frame: _Frame) -> set[int]:
        """Source: RFC 6455 §5.4 (fragmentation), §8.1 (UTF-8)."""
        if (frame.opcode == CONTINUATION) is (self._opcode == 0):
            return {PROTOCOL_ERROR}
        if frame.opcode != CONTINUATION:
            self._opcode, self._is_compressed, self._message = frame.opcode, frame.rsv == 4, b""
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        is_last = frame.fin and frame.is_whole
        wrong = set()
        piece: bytes | None = frame.payload
        if self._is_compressed:
            assert self._window is not None
            piece = self._window.inflate(frame.payload + (TAIL if is_last else b""), self._limits.max_size)
        if piece is None or len(self._message) + len(piece) > self._limits.max_size:
            wrong.add(TOO_BIG)
        if piece is None or self._is_wrong_text(piece, is_last) or (wrong and self._is_compressed):
            # Of a compressed message it depends on the cut which of both comes first: none of it, or too much.
            wrong.add(INVALID_DATA)
        if not wrong:
            assert piece is not None
            self._message += piece
            if is_last:
                self._complete()
        return wrong

    def _is_wrong_text(self, piece: bytes, is_last: bool) -> bool:
        assert self._decoder is not None
        try:
            if self._opcode == TEXT:
                self._decoder.decode(piece, is_last)
        except UnicodeDecodeError:
            return True
        return False

    def _complete(self) -> None:
        self._meaning.messages.append(self._message.decode() if self._opcode == TEXT else self._message)
        self._opcode = 0
        if self._window is not None and self._limits.forgets:
            self._window.forget()


class _Window:
    """What a client has deflated so far."""

    def __init__(self, bits: int) -> None:
        self._bits = -max(bits, 9)
        self.forget()

    def forget(self) -> None:
        self._zlib = zlib.decompressobj(self._bits)

    def inflate(self, data: bytes, limit: int) -> bytes | None:
        """None for what is not deflated, or inflates to more."""
        inflated = b""
        try:
            while True:
                inflated += self._zlib.decompress(data, limit + 1)
                data = self._zlib.unused_data
                if self._zlib.eof:
                    self.forget()
                if len(inflated) > limit:
                    return None
                if not data:
                    return inflated
        except zlib.error:
            return None
