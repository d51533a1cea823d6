"""HTTP/1.1 with httptools: llhttp parses the heads; bodies and responses are framed here."""

from __future__ import annotations

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from ..config import Config
from ..errors import MessageError, ProtocolError
from ..exchange import Response
from ..types import Headers
from .codec import CONTINUE, Head
from .framing import BodyFraming, Ending, FramedHeads, frame_informational
from .request_reader import RequestReader
from .rules import explain_refusal

# What llhttp knows, but not in HTTP/1.1: RTSP's, and that of HTTP/2's preface.
_METHODS_OF_OTHERS = {
    *(b"DESCRIBE", b"ANNOUNCE", b"SETUP", b"PLAY", b"PAUSE", b"TEARDOWN", b"GET_PARAMETER", b"SET_PARAMETER"),
    *(b"REDIRECT", b"RECORD", b"FLUSH", b"PRI"),
}

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


class HttptoolsCodec(RequestReader):
    """A Codec. llhttp sees heads only, each whole and for itself.

    So a body that it would drop, trailers that it would take for fields, and requests that it would read ahead never
    reach it, and nothing of one head is left when the next comes: a parser costs 0.3 µs to make.
    """

    def __init__(self, config: Config, parsed: ParsedHeads, framed: FramedHeads) -> None:
        super().__init__(config)
        self._parsed = parsed
        self._framed = framed
        self._body = BodyFraming()
        self.drops_body = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._has_upgrade = False

    # Requests

    def on_header(self, name: bytes, value: bytes) -> None:
        """What httptools calls for each field."""
        self._fields.append((name.lower(), value.rstrip(b" \t")))

    def _parse_head(self, raw: bytes) -> Head:
        head = self._parsed.find(raw)
        if head is None:
            head = super()._parse_head(raw)
            if head.length is None:  # as h11 has it, so that both codecs show the application the same
                head.headers = [(n, v.lower()) if n == b"transfer-encoding" else (n, v) for n, v in head.headers]
            self._fields = []
            self._parsed.keep(raw, head)
        self._has_upgrade = head.has_upgrade
        return head

    def _parse_fields(self, raw: bytes) -> list[tuple[bytes, bytes]]:
        fields = self._fields = []
        try:
            HttpRequestParser(self).feed_data(raw)
        except HttpParserUpgrade:
            pass  # whether the connection changes its protocol is not the parser's to say
        except HttpParserError as error:
            if isinstance(error, HttpParserInvalidMethodError) or raw.partition(b" ")[0] in _METHODS_OF_OTHERS:
                raise ProtocolError(501, "The request's method is not known here.") from None
            raise explain_refusal(raw) from None
        return fields

    def next_body(self) -> tuple[bytes, bool] | None:
        if self.body_read:
            return b"", False
        if self._scanner is None:
            data = self._take(self._remaining)
            self._remaining -= len(data)
            self.body_read = self._remaining == 0
        else:
            pieces: list[bytes] = []
            self._take(self._scanner.scan(self._buffer, pieces))
            data = b"".join(pieces)
            self.body_read = self._scanner.done
        if not data and not self.body_read:
            return None
        self.wants_continue = False
        return data, not self.body_read

    # Responses

    @property
    def can_reuse(self) -> bool:
        return self.body_read and self._body.is_complete and not self._closes

    @property
    def keeps_alive(self) -> bool:
        return self._body.is_complete and not self._closes

    @property
    def is_chunked(self) -> bool:
        return self._body.ending is Ending.CHUNKED

    @property
    def ends_by_close(self) -> bool:
        return self._body.ending is Ending.CLOSE

    def informational(self, status: int, headers: Headers) -> bytes:
        self.wants_continue = self.wants_continue and status != CONTINUE
        return frame_informational(status, headers)

    def response_head(self, response: Response, defaults: Headers, says_close: bool) -> bytes:
        is_head = self._method == "HEAD"
        head = self._framed.get(response, defaults, is_head, self._http_version, says_close, self._closes)
        self.wants_continue = False
        self._closes = head.closes
        self._body.begin(head)
        self.drops_body = head.ending is Ending.AT_ONCE
        return head.data

    def body(self, data: bytes) -> bytes:
        if not data or self.drops_body:
            return b""
        before, after = self._body.frame(len(data))
        return b"%b%b%b" % (before, data, after) if before else data

    def frame(self, count: int) -> tuple[bytes, bytes]:
        return self._body.frame(count)

    def end(self, trailers: Headers) -> bytes:
        return self._body.end(trailers)

    def switch(self, headers: Headers) -> tuple[bytes, bytes]:
        # RFC 9110 §15.2.2: to a client that did not ask for it a 101 would mean nothing.
        if not self._has_upgrade:
            raise MessageError("the response head is wrong: the client did not ask for an upgrade")
        return frame_informational(101, headers), self._take(len(self._buffer))

    def start_next(self) -> None:
        self._start_request()
        self._body.reset()
        self.drops_body = False
