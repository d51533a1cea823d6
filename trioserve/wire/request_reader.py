"""What both codecs of HTTP/1.1 do alike: find out which bytes are a request's head, and which its body."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..config import Config
from ..errors import ProtocolError
from .rules import (
    CHUNKS_AT_ONCE,
    ChunkScanner,
    check_beginning,
    check_fields,
    check_names,
    check_raw_head,
    check_target,
    too_long,
)

EMPTY_LINES = 8
"""Empty lines that are ignored before a request; RFC 9112 §2.2 asks for at least one."""


@dataclass(slots=True)
class Head:
    """A parsed request head. It may be kept for others like it, so nobody changes it.

    ``target`` is origin-form or ``*``, names are lower-case. ``length`` is the body's in bytes, None if it is chunked.
    ``has_upgrade``: there is an Upgrade field. ``closes``: the client sends nothing after this request.
    ``expects_continue``: it waits for 100 before the body.
    """

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: str
    length: int | None
    has_upgrade: bool = False
    closes: bool = False
    expects_continue: bool = False


_PRIVATE = {b"authorization", b"cookie", b"proxy-authorization"}


class ParsedHeads:
    """Request heads that have been parsed, for all connections of a server.

    Pollers, health checks and clients of an interface send the same few again and again: 0.3 µs for one that is kept,
    2.5 for one that is not. Large ones, and those that say who somebody is, are not kept.
    """

    LIMIT = 64
    LARGEST = 1024

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        self.find = self._heads.get

    def keep(self, raw: bytes, head: Head) -> None:
        if len(raw) <= self.LARGEST and _PRIVATE.isdisjoint([name for name, _ in head.headers]):
            if len(self._heads) >= self.LIMIT:
                self._heads.clear()
            self._heads[raw] = head


class RequestReader(ABC):
    """The reading half of a Codec.

    The parser sees heads only, each whole and for itself. So a body that it would drop, trailers that it would take for
    fields, and requests that it would read ahead never reach it, and nothing of one head is left when the next comes.
    """

    def __init__(self, config: Config, parsed: ParsedHeads) -> None:
        self._parsed = parsed
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
        self._has_upgrade = False
        self._scanner: ChunkScanner | None = None
        self._remaining = 0
        self.wants_continue = False
        """The client waits for 100 before it sends its body (RFC 9110 §10.1.1)."""
        self.body_read = False
        """The whole request has been taken with next_head and next_body."""
        self.was_much = False
        """The last piece of the body took so long to read that others should have their turn."""

    @abstractmethod
    def _parse_fields(self, raw: bytes) -> list[tuple[bytes, bytes]]:
        """Return the fields of a head, with lower-case names; raises ProtocolError."""

    @property
    def has_begun(self) -> bool:
        """The first byte of the next head has come."""
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
        """Return the next request head, or None if more bytes are needed. Raises ProtocolError."""
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
        if end < 0 or end > self._max_head:
            self._check_unfinished(buffer, self._max_head + 4)
            self._searched = max(0, len(buffer) - 3)
            return None
        self._searched = self._empty_lines = 0
        return self._read_head(self._take(end + 4))

    def _check_unfinished(self, buffer: bytes | bytearray, longest: int) -> None:
        """Refuse what cannot become a head of at most so many bytes, whatever follows.

        Later bytes change nothing, so that the answer does not depend on how they were cut on their way.
        """
        check_beginning(buffer)
        # A head of bare LFs never gets its empty line: refuse it now rather than at its deadline.
        newline = buffer.find(b"\n", 0, longest)
        if newline == 0 or (newline > 0 and buffer[newline - 1] != 0x0D):
            raise ProtocolError(400, "A line of the request head ends in a bare LF.")
        if len(buffer) >= longest:
            raise too_long(buffer, self._max_head)

    def _read_head(self, raw: bytes) -> Head:
        head = self._parsed.find(raw)
        if head is None:
            head = self._parse_head(raw)
            self._parsed.keep(raw, head)
        self._method, self._http_version, self._closes = head.method, head.http_version, head.closes
        self._has_upgrade = head.has_upgrade
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
        if 0x5F in raw:
            check_names(headers)
        length, closes, expects, has_upgrade = check_fields(headers, version)
        if target[0] != 0x2F or 0x23 in target:  # all but the plainest
            target = check_target(method, target, headers)
        if length is None:  # as h11 has it: an application sees the same whoever parses
            headers = [(n, v.lower()) if n == b"transfer-encoding" else (n, v) for n, v in headers]
        return Head(method, target, headers, version, length, has_upgrade, closes, expects)

    def next_body(self) -> tuple[bytes, bool] | None:
        """Return the next (piece, more) of the body, or None if more bytes are needed. Raises ProtocolError."""
        if self.body_read:
            return b"", False
        if self._scanner is None:
            data = self._take(self._remaining)
            self._remaining -= len(data)
            self.body_read = self._remaining == 0
        else:
            pieces: list[bytes] = []
            self._take(self._scanner.scan(self._buffer, pieces))
            self.was_much = len(pieces) >= CHUNKS_AT_ONCE
            data = b"".join(pieces)
            self.body_read = self._scanner.done
        if not data and not self.body_read:
            return None
        self.wants_continue = False
        return data, not self.body_read
