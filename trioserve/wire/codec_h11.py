"""HTTP/1.1 by h11, in both directions."""

from __future__ import annotations

from collections.abc import Iterable

import h11

from ..config import Config
from ..errors import MessageError
from ..exchange import WITHOUT_BODY, Response
from ..types import Headers
from .codec import CONTINUE, Head
from .framing import REASONS, say_close
from .request_reader import RequestReader
from .rules import check_lengths, explain_refusal

_END = h11.EndOfMessage()


def _make_informational(status: int, headers: Headers) -> h11.InformationalResponse:
    return h11.InformationalResponse(status_code=status, headers=list(headers), reason=REASONS.get(status, b""))


class HeadCache:
    """Response heads that h11 has checked, for all connections of a server.

    Most applications send the same few again and again, and checking one takes 14 of the 45 µs that h11 needs for a
    whole small exchange. Small, because Date makes all of them useless after a second.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], h11.Response] = {}
        self._defaults: Headers = ()

    def get(self, response: Response, defaults: Headers, *, says_close: bool) -> h11.Response:
        """Return the event for this head, completed with ``defaults``; ``says_close``: the server will close.

        Raises h11.LocalProtocolError for one that HTTP forbids.
        """
        if defaults is not self._defaults:  # Date has changed
            self._defaults = defaults
            self._heads.clear()
        key = (response.status, response.length, says_close, *response.headers)
        head = self._heads.get(key)
        if head is None:
            fields = response.complete_headers(defaults)
            if says_close:
                fields = say_close(fields)
            reason = REASONS.get(response.status, b"")
            head = h11.Response(status_code=response.status, headers=fields, reason=reason)
            if len(self._heads) >= self.LIMIT:
                self._heads.clear()
            self._heads[key] = head
        return head


class _Counted:
    """Stands for bytes of the body in h11's framing: h11 asks their length only, and hands this back."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class H11Codec(RequestReader):
    """A Codec. h11 sees one request at a time: what belongs to the next one stays in the buffer."""

    def __init__(self, config: Config, heads: HeadCache) -> None:
        super().__init__(config)
        self._heads = heads
        # Heads are measured by the reader, chunk lines by the scanner: h11's own limit must only never be in the way.
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * self._max_head + 65536)
        self._start_response()

    def _start_response(self) -> None:
        self._response_fields: Iterable[tuple[bytes, bytes]] = ()
        self.drops_body = False

    @property
    def can_reuse(self) -> bool:
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    @property
    def keeps_alive(self) -> bool:
        return self._h11.our_state is h11.DONE

    def _parse_fields(self, raw: bytes) -> list[tuple[bytes, bytes]]:
        check_lengths(raw)
        try:
            self._h11.receive_data(raw)
            event = self._h11.next_event()
        except h11.RemoteProtocolError:
            raise explain_refusal(raw) from None
        assert isinstance(event, h11.Request)
        # raw_items() is one list; iterating the Headers is a Python call for each of them.
        return [(name.lower(), value) for name, value in event.headers.raw_items()]

    def _read_head(self, raw: bytes) -> Head:
        head = super()._read_head(raw)
        if self.body_read:
            self._h11.next_event()  # EndOfMessage, without which h11 would not let the connection be reused
        return head

    def next_body(self) -> tuple[bytes, bool] | None:
        if self.body_read:
            return b"", False
        data = self._take_body()
        pieces: list[bytes] = []
        # The scanner has refused all that h11 would.
        if data:
            self._h11.receive_data(data)
        while isinstance(event := self._h11.next_event(), h11.Data):
            pieces.append(bytes(event.data))
        self.body_read = isinstance(event, h11.EndOfMessage)
        if not pieces and not self.body_read:
            return None
        self.wants_continue = False
        return b"".join(pieces), not self.body_read

    def _take_body(self) -> bytes:
        """Take from the buffer what belongs to this request's body."""
        if self._scanner is not None:
            return self._take(self._scanner.scan(self._buffer))
        data = self._take(self._remaining)
        self._remaining -= len(data)
        return data

    def informational(self, status: int, headers: Headers) -> bytes:
        self.wants_continue = self.wants_continue and status != CONTINUE
        try:
            return self._send(_make_informational(status, headers))
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response head is wrong: {error}") from None

    def response_head(self, response: Response, defaults: Headers, says_close: bool) -> bytes:
        try:
            event = self._heads.get(response, defaults, says_close=says_close)
            head = self._send(event)
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response head is wrong: {error}") from None
        self.wants_continue = False
        self.drops_body = response.status in WITHOUT_BODY or self._method == "HEAD"
        self._response_fields = event.headers
        return head

    @property
    def _has_length(self) -> bool:
        names = {name for name, _ in self._response_fields}
        return b"content-length" in names and b"transfer-encoding" not in names

    @property
    def is_chunked(self) -> bool:
        return not (self.drops_body or self._http_version == "1.0" or self._has_length)

    @property
    def ends_by_close(self) -> bool:
        return not (self.drops_body or self.is_chunked or self._has_length)

    def body(self, data: bytes) -> bytes:
        if self.drops_body:
            return b""
        try:
            return self._send(h11.Data(data=data))
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response body is wrong: {error}") from None

    def frame(self, count: int) -> tuple[bytes, bytes]:
        if self.drops_body:
            return b"", b""
        try:
            framed = self._h11.send_with_data_passthrough(h11.Data(data=_Counted(count)))  # type: ignore[arg-type]  # h11 documents this
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
        try:
            head = self._send(_make_informational(101, headers))
        except h11.LocalProtocolError as error:
            raise MessageError(f"the response head is wrong: {error}") from None
        return head, self._take(len(self._buffer))

    def start_next(self) -> None:
        self._h11.start_next_cycle()
        self._start_request()
        self._start_response()
