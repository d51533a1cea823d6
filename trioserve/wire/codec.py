"""What ``http11.py`` needs from a parser and serialiser of HTTP/1.1. One object serves one connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..exchange import Response
from ..types import Headers

CONTINUE = 100
"""The status that a client with Expect waits for (RFC 9110 §15.2.1)."""


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


class Codec(Protocol):
    """Bytes in, requests out; responses in, bytes out. No input or output of its own, and no time.

    What reads raises ProtocolError for what the client did wrong, what writes raises MessageError for what the
    application did.
    """

    @property
    def has_begun(self) -> bool:
        """The first byte of the next head has come."""
        ...

    @property
    def wants_continue(self) -> bool:
        """The client waits for 100 before it sends its body (RFC 9110 §10.1.1)."""
        ...

    @property
    def body_read(self) -> bool:
        """The whole request has been taken with next_head and next_body."""
        ...

    @property
    def can_reuse(self) -> bool:
        """Both messages are complete, and neither side asked to close."""
        ...

    @property
    def keeps_alive(self) -> bool:
        """The response is complete and left the connection open, as far as the client knows."""
        ...

    @property
    def is_chunked(self) -> bool:
        """The response goes out in chunks, so that it can have trailers."""
        ...

    @property
    def ends_by_close(self) -> bool:
        """Only the close of the connection ends this response's body."""
        ...

    @property
    def drops_body(self) -> bool:
        """The response has no body whatever the application sends (RFC 9110 §6.4.1)."""
        ...

    def feed(self, data: bytes) -> None: ...

    def next_head(self) -> Head | None:
        """Return the next request head, or None if more bytes are needed."""
        ...

    def next_body(self) -> tuple[bytes, bool] | None:
        """Return the next (piece, more) of the body, or None if more bytes are needed."""
        ...

    def informational(self, status: int, headers: Headers) -> bytes: ...

    def response_head(self, response: Response, defaults: Headers, says_close: bool) -> bytes:
        """Serialise a head, completed with ``defaults``; ``says_close``: the server will close the connection."""
        ...

    def body(self, data: bytes) -> bytes:
        """Frame a piece of the body."""
        ...

    def frame(self, count: int) -> tuple[bytes, bytes]:
        """Return what goes before and after ``count`` bytes of the body, which is not zero."""
        ...

    def end(self, trailers: Headers) -> bytes:
        """End the body; trailers are left out where the framing has no room for them."""
        ...

    def switch(self, headers: Headers) -> tuple[bytes, bytes]:
        """Return the head of the 101 response, and the bytes that came after the request: no longer HTTP."""
        ...

    def start_next(self) -> None:
        """Make ready for the next request on a connection that can be reused."""
        ...
