"""The frame that nearly every message is: whole, of text or bytes, without an extension. Source: RFC 6455 §5.2.

wsproto takes 16 µs to read such a frame of 16 bytes and 4 to write one; here it is half a microsecond each. A frame of
64 KiB takes it 170 and 5 µs; here it is 3 and 2. What is anything else (a control frame, a fragment, no frame at all)
goes to wsproto from its first byte.
"""

from __future__ import annotations

import codecs
from contextlib import suppress
from struct import Struct

from wsproto.frame_protocol import CloseReason, Frame, Opcode, ParseFailed, XorMaskerSimple

_TEXT, _BINARY = 0x81, 0x82  # a whole message: FIN, no RSV bit, the opcode
_OPCODES = {_TEXT: Opcode.TEXT, _BINARY: Opcode.BINARY}

_MASKED = 0x80
_KEY = 4

# Lengths up to these stand in the second byte, in two more, or in eight; a longer form than is needed is wrong.
_SHORT, _MEDIUM, _MOST = 125, 0xFFFF, (1 << 63) - 1
_IN_TWO, _IN_EIGHT = 126, 127

SHORT_HEAD, MEDIUM_HEAD, LONG_HEAD = 2 + _KEY, 4 + _KEY, 10 + _KEY
"""Bytes before the payload of a client's frame."""

_HEADS = {_MASKED | _IN_TWO: MEDIUM_HEAD, _MASKED | _IN_EIGHT: LONG_HEAD}
_LEAST = {MEDIUM_HEAD: _SHORT + 1, LONG_HEAD: _MEDIUM + 1}

_SHORT_HEADER, _MEDIUM_HEADER, _LONG_HEADER = Struct("!BB"), Struct("!BBH"), Struct("!BBQ")

# What integers of any size are quicker at than wsproto: 0.6 µs instead of 3.7 for 16 bytes.
_SMALL = 512


def unmask_plainly(data: bytes | memoryview, key: bytes) -> bytes:
    """Undo the mask, with nothing that is not installed anyway. ``data`` begins where the key does."""
    size = len(data)
    if size > _SMALL:
        return bytes(XorMaskerSimple(key).process(bytearray(data)))
    repeated = (key * (size // _KEY + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


unmask = unmask_plainly
"""The quickest way there is: 0.1 µs for 16 bytes with the C of ``websockets``, 1.2 µs for 64 KiB instead of 60."""
with suppress(ImportError):
    from websockets.speedups import apply_mask as unmask  # type: ignore[assignment]  # its names differ


def read_lone(data: bytes) -> str | bytes | None:
    """Return the message if this is the frame of one and nothing more; None for anything else.

    Also for text that is no UTF-8: wsproto says what is wrong with it.
    """
    start = SHORT_HEAD
    size = len(data) - start
    if size <= _SHORT:
        if size < 0 or data[1] != _MASKED | size:
            return None
    else:
        size, start, length = size - 2, MEDIUM_HEAD, _MASKED | _IN_TWO
        if size > _MEDIUM:
            size, start, length = size - 6, LONG_HEAD, _MASKED | _IN_EIGHT
        if data[1] != length or int.from_bytes(data[2 : start - _KEY], "big") != size or size < _LEAST[start]:
            return None
    if data[0] == _BINARY:
        return unmask(data[start:], data[start - _KEY : start])
    if data[0] != _TEXT:
        return None
    try:
        return unmask(data[start:], data[start - _KEY : start]).decode()
    except UnicodeDecodeError:
        return None


def frame_message(data: str | bytes) -> bytes:
    """Frame a message as a server does, without a mask."""
    first = _BINARY
    if isinstance(data, str):
        first, data = _TEXT, data.encode()
    size = len(data)
    if size <= _SHORT:
        return _SHORT_HEADER.pack(first, size) + data
    if size <= _MEDIUM:
        return _MEDIUM_HEADER.pack(first, _IN_TWO, size) + data
    return _LONG_HEADER.pack(first, _IN_EIGHT, size) + data


class QuickReader:
    """Reads frames of whole messages, as their bytes come, up to the first that is anything else."""

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # what is before was read
        # Of the frame that has begun:
        self._left = 0
        self._key = b""
        self._opcode = Opcode.BINARY
        self._decoder: codecs.IncrementalDecoder | None = None
        self.is_stuck = False
        """What comes next is wsproto's."""

    @property
    def is_idle(self) -> bool:
        """All that came was read, and no frame has begun."""
        return not self._data and not self._left

    def feed(self, data: bytes) -> None:
        self._data, self._at = self._data[self._at :] + data, 0

    def give_up(self) -> bytes:
        """Return what was not read, and forget it."""
        rest, self._data, self._at, self.is_stuck = self._data[self._at :], b"", 0, False
        return rest

    def next_frame(self) -> Frame | None:
        """Return the next frame, or as much as there is of it; None if more bytes are needed, or if it is wsproto's.

        Raises ParseFailed for text that is no UTF-8.
        """
        if not self._left and not self._read_head():
            return None
        end = min(self._at + self._left, len(self._data))
        count = end - self._at
        if self._left and not count:
            return None
        with memoryview(self._data) as data, data[self._at : end] as part:
            payload = unmask(part, self._key)
        # An idle WebSocket keeps nothing of what it has read.
        self._data, self._at = (b"", 0) if end == len(self._data) else (self._data, end)
        self._left -= count
        if self._left:
            turn = count % _KEY
            self._key = self._key[turn:] + self._key[:turn]
        return Frame(self._opcode, self._decode(payload), not self._left, not self._left)

    def _read_head(self) -> bool:
        """Read what is before a payload; False if not all of it is there, or if it is wsproto's."""
        data, at = self._data, self._at
        if len(data) < at + 2:
            return False
        opcode, size = _OPCODES.get(data[at]), data[at + 1] - _MASKED
        head = _HEADS.get(data[at + 1], SHORT_HEAD)
        start = at + head
        if head > SHORT_HEAD and len(data) >= start - _KEY:
            size = int.from_bytes(data[at + 2 : start - _KEY], "big")
            if not _LEAST[head] <= size <= _MOST:
                opcode = None
        if opcode is None or size < 0:
            self.is_stuck = True
            return False
        if len(data) < start:
            return False
        self._opcode, self._left, self._key, self._at = opcode, size, data[start - _KEY : start], start
        self._decoder = codecs.getincrementaldecoder("utf-8")() if opcode is Opcode.TEXT else None
        return True

    def _decode(self, payload: bytes) -> str | bytes:
        if self._decoder is None:
            return payload
        try:
            return self._decoder.decode(payload, not self._left)
        except UnicodeDecodeError as error:
            raise ParseFailed(str(error), CloseReason.INVALID_FRAME_PAYLOAD_DATA) from None
