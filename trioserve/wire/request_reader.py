"""What both codecs of HTTP/1.1 do alike: find out which bytes are a request's head, and which its body."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..config import Config
from ..errors import ProtocolError
from .codec import Head
from .rules import ChunkScanner, check_beginning, check_fields, check_raw_head, check_target, too_long

EMPTY_LINES = 8
"""Empty lines that are ignored before a request; RFC 9112 §2.2 asks for at least one."""


class RequestReader(ABC):
    """The reading half of a Codec. A parser gets one head at a time, whole; what follows it stays in the buffer."""

    def __init__(self, config: Config) -> None:
        self._max_head = config.limit_request_head
        self._max_fields = config.limit_request_fields
        # What came last, as it came, while nothing lies before it: most requests come alone and in one piece.
        self._buffer: bytes | bytearray = b""
        self._searched = 0
        self._empty_lines = 0
        self._start_request()

    def _start_request(self) -> None:
        self._method = ""
        self._http_version = "1.0"  # until the client has said more: nothing is chunked to who may not understand it
        self._closes = False
        self._scanner: ChunkScanner | None = None
        self._remaining = 0
        self.wants_continue = False
        self.body_read = False

    @abstractmethod
    def _parse_fields(self, raw: bytes) -> list[tuple[bytes, bytes]]:
        """Return the fields of a head, with lower-case names; raises ProtocolError."""

    @property
    def has_begun(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        if not self._buffer:
            self._buffer = data
            return
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(self._buffer)  # which grows, and shrinks, in place
        self._buffer += data

    def _take(self, count: int) -> bytes:
        """Take so many bytes from the front of the buffer, or all that it has."""
        buffer = self._buffer
        if count >= len(buffer):
            self._buffer = b""
            return bytes(buffer)
        if not isinstance(buffer, bytearray):
            buffer = self._buffer = bytearray(buffer)
        data = bytes(buffer[:count])
        del buffer[:count]
        return data

    def next_head(self) -> Head | None:
        # RFC 9112 §2.2: empty lines before the request line are ignored.
        while self._buffer.startswith(b"\r\n"):
            self._empty_lines += 1
            if self._empty_lines > EMPTY_LINES:
                raise ProtocolError(400, "There are too many empty lines before the request.")
            self._take(2)
            self._searched = 0
        buffer = self._buffer
        if not buffer or buffer == b"\r":
            return None
        end = buffer.find(b"\r\n\r\n", self._searched)
        if (end if end >= 0 else len(buffer)) > self._max_head:
            raise too_long(buffer, self._max_head)
        if end < 0:
            self._searched = max(0, len(buffer) - 3)
            check_beginning(buffer)
            self._check_lines(buffer)
            return None
        self._searched = self._empty_lines = 0
        return self._read_head(self._take(end + 4))

    def _check_lines(self, buffer: bytes | bytearray) -> None:
        # A head of bare LFs never gets its empty line: refuse it now rather than at its deadline.
        newline = buffer.find(b"\n")
        if newline == 0 or (newline > 0 and buffer[newline - 1] != 0x0D):
            raise ProtocolError(400, "A line of the request head ends in a bare LF.")

    def _read_head(self, raw: bytes) -> Head:
        head = self._parse_head(raw)
        self._method, self._http_version, self._closes = head.method, head.http_version, head.closes
        length = head.length
        if length is None:
            self._scanner = ChunkScanner(max_trailer=self._max_head, max_fields=self._max_fields)
        elif length == 0:
            self.body_read = True
            return head
        else:
            self._remaining = length
        self.wants_continue = head.expects_continue
        return head

    def _parse_head(self, raw: bytes) -> Head:
        method, target, version = check_raw_head(raw, max_fields=self._max_fields)
        headers = self._parse_fields(raw)
        length, closes, expects, has_upgrade = check_fields(headers, version)
        if target[0] != 0x2F or 0x23 in target:  # all but the plainest
            target = check_target(method, target, headers)
        return Head(method, target, headers, version, length, has_upgrade, closes, expects)
