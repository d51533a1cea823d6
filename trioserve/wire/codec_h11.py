"""HTTP/1.1 by h11, in both directions."""

from __future__ import annotations

from http import HTTPStatus

import h11

from ..config import Config
from ..errors import MessageError, ProtocolError
from ..types import Headers
from .codec import Head
from .rules import ChunkScanner, check_beginning, check_coding, check_fields, check_raw_head, check_target, too_long

_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


_END = h11.EndOfMessage()
_Head = h11.InformationalResponse | h11.Response


EMPTY_LINES = 8
"""Empty lines that are ignored before a request; RFC 9112 §2.2 asks for at least one."""


class HeadCache:
    """Response heads that h11 has checked, for all connections of a server.

    Most applications send the same few again and again, and checking one takes 14 of the 45 µs that h11 needs for a
    whole small exchange. Small, because Date makes all of them useless after a second.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], _Head] = {}

    def get(self, kind: type[_Head], status: int, headers: Headers) -> _Head:
        """Return the event for this head. Raises h11.LocalProtocolError for one that HTTP forbids."""
        key = (status, *headers)
        head = self._heads.get(key)
        if head is None:
            head = kind(status_code=status, headers=list(headers), reason=_REASONS.get(status, b""))
            if len(self._heads) >= self.LIMIT:
                self._heads.clear()
            self._heads[key] = head
        return head


class _FileData:
    """Stands for a file's bytes in h11's framing: h11 asks its length only, and hands it back."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class H11Codec:
    """A Codec. h11 sees one request at a time: what belongs to the next one stays in this buffer."""

    def __init__(self, config: Config, heads: HeadCache) -> None:
        self._heads = heads
        self._max_head = config.limit_request_head
        self._max_fields = config.limit_request_fields
        self._buffer = bytearray()
        self._searched = 0
        self._empty_lines = 0
        # Heads are measured here and chunk lines by the scanner: h11's own limit must only never be in the way.
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * self._max_head + 65536)
        self._start_message()

    def _start_message(self) -> None:
        self._method = ""
        self._http_version = "1.0"  # until the client has said more: nothing is chunked to who may not understand it
        self._scanner: ChunkScanner | None = None
        self._remaining = 0
        self._response_headers: Headers = ()
        self.body_read = False
        self.drops_body = False

    @property
    def has_begun(self) -> bool:
        return bool(self._buffer)

    @property
    def wants_continue(self) -> bool:
        return self._h11.they_are_waiting_for_100_continue

    @property
    def can_reuse(self) -> bool:
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    @property
    def keeps_alive(self) -> bool:
        return self._h11.our_state is h11.DONE

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_head(self) -> Head | None:
        buffer = self._buffer
        # RFC 9112 §2.2: empty lines before the request line are ignored.
        while buffer.startswith(b"\r\n"):
            self._empty_lines += 1
            if self._empty_lines > EMPTY_LINES:
                raise ProtocolError(400, "There are too many empty lines before the request.")
            del buffer[:2]
            self._searched = 0
        if not buffer or buffer == b"\r":
            return None
        check_beginning(buffer)
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        if (end if end >= 0 else len(buffer)) > self._max_head:
            raise too_long(buffer, self._max_head)
        if end < 0:
            self._searched = len(buffer)
            self._check_lines(buffer)
            return None
        head = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._searched = self._empty_lines = 0
        return self._parse_head(head)

    def _check_lines(self, buffer: bytearray) -> None:
        # A head of bare LFs never gets its empty line: refuse it now rather than at its deadline.
        newline = buffer.find(b"\n")
        if newline == 0 or (newline > 0 and buffer[newline - 1] != 0x0D):
            raise ProtocolError(400, "A line of the request head ends in a bare LF.")

    def _parse_head(self, raw: bytes) -> Head:
        check_raw_head(raw, max_fields=self._max_fields)
        event = self._parse(raw)
        assert isinstance(event, h11.Request)
        # raw_items() is one list; iterating the Headers is a Python call for each of them.
        headers = [(name.lower(), value) for name, value in event.headers.raw_items()]
        version = event.http_version.decode("ascii")
        length = check_fields(headers, version)
        method = event.method.decode("ascii")
        target = check_target(method, event.target, headers)
        self._method, self._http_version = method, version
        if length is None:
            self._scanner = ChunkScanner(max_trailer=self._max_head, max_fields=self._max_fields)
        self._remaining = length or 0
        if length == 0:
            self._h11.next_event()  # EndOfMessage, without which h11 would not let the connection be reused
            self.body_read = True
        return Head(method, target, headers, version, length)

    def _parse(self, data: bytes) -> object:
        try:
            self._h11.receive_data(data)
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 501:
                check_coding(data)
            raise ProtocolError(400, "The request head is not valid HTTP/1.1.") from None

    def next_body(self) -> tuple[bytes, bool] | None:
        if self.body_read:
            return b"", False
        data = self._take_body()
        pieces: list[bytes] = []
        try:
            if data:
                self._h11.receive_data(data)
            while True:
                event = self._h11.next_event()
                if isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                else:
                    break
        except h11.RemoteProtocolError:
            raise ProtocolError(400, "The request body is not valid HTTP/1.1.") from None
        self.body_read = isinstance(event, h11.EndOfMessage)
        if not pieces and not self.body_read:
            return None
        return b"".join(pieces), not self.body_read

    def _take_body(self) -> bytes:
        """Take from the buffer what belongs to this request's body."""
        buffer = self._buffer
        if self._scanner is not None:
            count = self._scanner.scan(buffer)
        else:
            count = min(self._remaining, len(buffer))
            self._remaining -= count
        data = bytes(buffer[:count])
        del buffer[:count]
        return data

    def informational(self, status: int, headers: Headers) -> bytes:
        return self._write_head(h11.InformationalResponse, status, headers)

    def response_head(self, status: int, headers: Headers) -> bytes:
        head = self._write_head(h11.Response, status, headers)
        self.drops_body = status in (204, 304) or self._method == "HEAD"
        self._response_headers = headers
        return head

    @property
    def _has_length(self) -> bool:
        return any(name.lower() == b"content-length" for name, _ in self._response_headers)

    @property
    def is_chunked(self) -> bool:
        return not (self.drops_body or self._http_version == "1.0" or self._has_length)

    @property
    def ends_by_close(self) -> bool:
        return not (self.drops_body or self.is_chunked or self._has_length)

    def _write_head(self, kind: type[_Head], status: int, headers: Headers) -> bytes:
        try:
            return self._send(self._heads.get(kind, status, headers))
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response head is wrong: {error}") from None

    def body(self, data: bytes) -> bytes:
        if self.drops_body:
            return b""
        try:
            return self._send(h11.Data(data=data))
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response body is wrong: {error}") from None

    def file_frame(self, count: int) -> tuple[bytes, bytes]:
        try:
            framed = self._h11.send_with_data_passthrough(h11.Data(data=_FileData(count)))  # type: ignore[arg-type]  # h11 documents this
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response body is wrong: {error}") from None
        assert framed is not None
        return (framed[0], framed[2]) if len(framed) == 3 else (b"", b"")

    def end(self, trailers: Headers) -> bytes:
        try:
            if trailers and self.is_chunked:
                return self._send(h11.EndOfMessage(headers=list(trailers)))
            return self._send(_END)
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response cannot end here: {error}") from None

    def _send(self, event: h11.Event) -> bytes:
        sent = self._h11.send_with_data_passthrough(event)
        assert sent is not None  # None is for ConnectionClosed only
        return b"".join(sent)

    def switch(self, headers: Headers) -> tuple[bytes, bytes]:
        # Not from the cache: no two are alike.
        try:
            head = self._send(h11.InformationalResponse(status_code=101, headers=list(headers), reason=_REASONS[101]))
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response head is wrong: {error}") from None
        left_over = bytes(self._buffer)
        self._buffer.clear()
        return head, left_over

    def start_next(self) -> None:
        self._h11.start_next_cycle()
        self._start_message()
