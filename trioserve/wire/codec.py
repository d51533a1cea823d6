"""HTTP/1.1 on the wire: bytes in, requests out; responses in, bytes out."""

from __future__ import annotations

from ..config import Config
from ..errors import MessageError
from ..exchange import Response
from ..types import Headers
from .framing import BodyFraming, Ending, FramedHeads, frame_informational
from .request_reader import ParsedHeads, RequestReader

CONTINUE = 100
"""The status that a client with Expect waits for (RFC 9110 §15.2.1)."""


class Codec(RequestReader):
    """One connection's, whoever parses its heads. No input or output of its own, and no time.

    What reads raises ProtocolError for what the client did wrong, what writes raises MessageError for what the
    application did.
    """

    def __init__(self, config: Config, parsed: ParsedHeads, framed: FramedHeads) -> None:
        super().__init__(config, parsed)
        self._framed = framed
        self._body = BodyFraming()
        self.drops_body = False
        """The response has no body whatever the application sends (RFC 9110 §6.4.1)."""

    @property
    def can_reuse(self) -> bool:
        """Both messages are complete, and neither side asked to close."""
        return self.body_read and self._body.is_complete and not self._closes

    @property
    def keeps_alive(self) -> bool:
        """The response is complete and left the connection open, as far as the client knows."""
        return self._body.is_complete and not self._closes

    @property
    def is_chunked(self) -> bool:
        """The response goes out in chunks, so that it can have trailers."""
        return self._body.ending is Ending.CHUNKED

    @property
    def ends_by_close(self) -> bool:
        """Only the close of the connection ends this response's body."""
        return self._body.ending is Ending.CLOSE

    def informational(self, status: int, headers: Headers) -> bytes:
        self.wants_continue = self.wants_continue and status != CONTINUE
        return frame_informational(status, headers)

    def response_head(self, response: Response, defaults: Headers, says_close: bool) -> bytes:
        """Serialise a head, completed with ``defaults``; ``says_close``: the server will close the connection."""
        is_head = self._method == "HEAD"
        head = self._framed.get(response, defaults, is_head, self._http_version, says_close, self._closes)
        self.wants_continue = False
        self._closes = head.closes
        self._body.begin(head)
        self.drops_body = head.ending is Ending.AT_ONCE
        return head.data

    def body(self, data: bytes) -> bytes:
        """Frame a piece of the body."""
        if not data or self.drops_body:
            return b""
        before, after = self._body.frame(len(data))
        return b"%b%b%b" % (before, data, after) if before else data

    def frame(self, count: int) -> tuple[bytes, bytes]:
        """Return what goes before and after ``count`` bytes of the body, which is not zero."""
        return self._body.frame(count)

    def end(self, trailers: Headers) -> bytes:
        """End the body; trailers are left out where the framing has no room for them."""
        return self._body.end(trailers)

    def switch(self, headers: Headers) -> tuple[bytes, bytes]:
        """Return the head of the 101 response, and the bytes that came after the request: no longer HTTP."""
        # RFC 9110 §15.2.2: to a client that did not ask for it a 101 would mean nothing.
        if not self._has_upgrade:
            raise MessageError("the response head is wrong: the client did not ask for an upgrade")
        return frame_informational(101, headers), self._take(len(self._buffer))

    def start_next(self) -> None:
        """Make ready for the next request on a connection that can be reused."""
        self._start_request()
        self._body.reset()
        self.drops_body = False
