"""The seam: one request and its response, whatever HTTP version carries them.

The wire side implements Exchange; the application side is written once above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import Refusal
from .transport import Channel
from .types import Headers, PlainValues

Address = tuple[str, int | None]
"""Host and port, or the path of a unix socket and None (as ASGI's ``client`` and ``server``)."""


def _no_tls() -> PlainValues | None:
    return None


@dataclass(slots=True)
class Endpoint:
    """What is known of a connection before its first byte.

    ``tls`` gives the ASGI TLS extension's values, or None on a plain connection; computed when first asked for.
    ``is_proxy``: the client is a proxy that is believed in what it says of others.
    """

    client: Address | None = None
    server: Address | None = None
    scheme: str = "http"
    tls: Callable[[], PlainValues | None] = _no_tls
    is_proxy: bool = False

    @property
    def client_name(self) -> str:
        """The client as the log names it: host and port, or "-" if it has neither (a unix socket).

        The port is left out where a proxy tells none.
        """
        if self.client is None:
            return "-"
        host, port = self.client
        return f"{host}:{port}" if port else host


@dataclass(slots=True)
class Request:
    """A request head.

    ``target`` is origin-form or ``*``: an absolute-form target has been taken apart into ``target`` and the Host field
    (RFC 9112 §3.2.2). ``headers`` has lower-case names. ``protocol`` is what the client asks to switch to, None if it
    asks for nothing that we know. ``root_path`` is the prefix that a proxy says it has taken off, None if none does.
    """

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: str
    endpoint: Endpoint
    protocol: Literal["websocket"] | None = None
    root_path: str | None = None
    id: str | None = None
    """None without the option request_id."""

    @property
    def line(self) -> str:
        """As the log names it: method, target and version."""
        return f"{self.method} {self.target.decode('ascii')} HTTP/{self.http_version}"


@dataclass(slots=True)
class Response:
    """A final response head. ``trailers`` keeps the message open after its body.

    ``length`` is the body's in bytes where all of it is known with the head, else None.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    trailers: bool = False
    length: int | None = None

    def complete_headers(self, defaults: Headers) -> list[tuple[bytes, bytes]]:
        """The fields with what the application left to us: the length, and those defaults that it does not give.

        Names in ``defaults`` are lower-case.
        """
        headers = list(self.headers)
        if self.status in WITHOUT_BODY:
            # RFC 9112 §6.1, RFC 9110 §8.6. 304 may say how long the body would be.
            forbidden = _FRAMING if self.status == 204 else {b"transfer-encoding"}
            headers = [field for field in headers if field[0].lower() not in forbidden]
        names = {name.lower() for name, _ in headers}
        if self.length is not None and not names & _FRAMING and self.status not in WITHOUT_BODY:
            # Cheaper than chunks, and an HTTP/1.0 client can then tell a cut response from a whole one.
            headers.append((b"content-length", b"%d" % self.length))
        headers += [field for field in defaults if field[0] not in names]
        return headers


_FRAMING = {b"content-length", b"transfer-encoding"}
WITHOUT_BODY = (204, 304)
"""The statuses of responses without a body (RFC 9110 §6.4.1)."""


class Exchange(Protocol):
    """One request and its response.

    ``receive_body`` is for one task at a time; everything that sends may be called by several. What sends raises
    ClientDisconnected once nothing can reach the client, and MessageError for a message that HTTP forbids.
    """

    @property
    def request(self) -> Request: ...

    @property
    def status(self) -> int | None:
        """None until the final response head is handed over."""
        ...

    @property
    def ended(self) -> bool:
        """The response is complete or was aborted."""
        ...

    @property
    def has_left(self) -> bool:
        """The client is known to be gone; asking never waits."""
        ...

    @property
    def can_send_files(self) -> bool:
        """Whether send_file hands the file to the kernel, without a copy through this process."""
        ...

    async def receive_body(self) -> tuple[bytes, bool]:
        """Return (piece, more).

        Returns without a checkpoint when a piece is there; sends 100 when it must wait and the client waits for it
        (RFC 9110 §10.1.1). Raises ClientDisconnected when the body can no longer become complete.
        """
        ...

    async def wait_disconnect(self) -> None:
        """Return once the client is gone or the exchange has ended; without a checkpoint if so. Any number may wait."""
        ...

    async def send_informational(self, status: int, headers: Headers) -> None: ...

    def send_response(self, response: Response) -> None:
        """Hand over the head; it leaves with the first piece of the body, in one write, so that this never waits."""
        ...

    async def send_body(self, data: bytes, more: bool) -> None:
        """Send a piece; an empty one with ``more`` sends the head alone."""
        ...

    async def send_file(self, file: int, offset: int, count: int, more: bool) -> None:
        """Send ``count`` bytes of an open descriptor from ``offset``; the descriptor may be closed when this
        returns.
        """
        ...

    async def send_trailers(self, headers: Headers) -> None:
        """End a message whose Response had ``trailers``."""
        ...

    async def switch_protocols(self, headers: Headers) -> tuple[Channel, bytes]:
        """Accept what the request asks to switch to; returns what carries its bytes, and those that came already.

        The exchange adds what its version of HTTP demands, and has then ended. Whoever gets the channel closes it.
        """
        ...

    async def refuse(
        self,
        status: int,
        reason: str,
        *fields: tuple[bytes, bytes],
        closes: bool = True,
        why: Refusal | None = None,
    ) -> None:
        """Answer in the application's place, unless it began to: then cut its response.

        ``closes``: the connection, too, where it carries one exchange at a time. ``why`` is what it is counted by, None
        for what is usual with this status.
        """
        ...

    def abort(self) -> None:
        """The response cannot be completed: close without the last chunk."""
        ...
