"""The server's side of a TLS handshake, over any Transport."""

from __future__ import annotations

import contextlib
import re
import ssl
from dataclasses import dataclass

import trio

from ..drain import Drain, DrainKind
from ..errors import ClientDisconnected
from ..transport import Transport, Wake
from .tls import words_of

PATIENCE_AT_STOP = 1.0
"""Seconds that a handshake in progress still has when a stop begins."""

_PLAIN_HTTP_TEXT = b"This port speaks HTTPS; the request was plain HTTP.\n"
PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"%s"
) % (len(_PLAIN_HTTP_TEXT), _PLAIN_HTTP_TEXT)
"""The whole response, for the raw transport, to a client that spoke plain HTTP to a TLS port."""


class HandshakeError(Exception):
    """A client did not complete the handshake.

    ``reason`` is OpenSSL's, in few enough forms to label a counter. ``plain_http``: the client spoke HTTP without TLS,
    and nothing has been written to it, so it can still be told.
    """

    def __init__(self, reason: str, *, plain_http: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.plain_http = plain_http


@dataclass(frozen=True, slots=True)
class TLSSession:
    """What a handshake has made: OpenSSL's half of a connection, and what goes into it and comes out in records.

    ``incoming`` may hold records already: a client may send its request together with the end of its handshake.
    """

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


async def handshake(
    transport: Transport, context: ssl.SSLContext, *, deadline: float, drain: Drain, begun: bytes = b""
) -> TLSSession:
    """Do the server's side of the handshake on a fresh connection, whose transport sends without waiting.

    ``begun`` has been received already. A stop leaves it a moment only. On failure it raises HandshakeError, after the
    client was told why if it can be, and leaves ``transport`` open.
    """
    one = _Handshake(transport, context, deadline, drain, begun)
    drain.register(one.hurry)
    try:
        await one.run()
    finally:
        drain.unregister(one.hurry)
    return one.session


class _Handshake:
    def __init__(
        self, transport: Transport, context: ssl.SSLContext, deadline: float, drain: Drain, begun: bytes
    ) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = TLSSession(context.wrap_bio(incoming, outgoing, server_side=True), incoming, outgoing)
        self._transport = transport
        self._begun = begun
        self._deadline = deadline
        self._drain = drain
        self.hurry()

    def hurry(self) -> None:
        if self._drain.kind is DrainKind.STOP:
            self._deadline = min(self._deadline, trio.current_time() + PATIENCE_AT_STOP)
            self._transport.wake(Wake.DRAIN)

    async def run(self) -> None:
        try:
            is_done = False
            while not is_done:
                # First of all: OpenSSL would only ask for the client's words, with an exception.
                self.session.incoming.write(await self._receive())
                is_done = self._advance()
                self._flush()
        except ssl.SSLError as error:
            failure = _explain_failure(error, self.session.incoming)
            if not failure.plain_http:
                # OpenSSL's alert. Without it the client sees a bare end of the connection, and cannot know that its
                # certificate is missing or its version too old.
                with contextlib.suppress(ClientDisconnected):
                    self._flush()
            raise failure from error
        except ClientDisconnected as error:
            raise HandshakeError("connection lost") from error

    async def _receive(self) -> bytes:
        if self._begun:
            begun, self._begun = self._begun, b""
            return begun
        came: bytes | Wake = Wake.DRAIN
        while not isinstance(came, bytes):
            if came is Wake.DEADLINE:
                raise HandshakeError("timed out")
            came = await self._transport.receive(self._deadline)
        if not came:
            raise HandshakeError("connection lost")
        return came

    def _advance(self) -> bool:
        """Go on with what has come; returns whether the handshake is done."""
        try:
            self.session.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def _flush(self) -> None:
        if self.session.outgoing.pending:
            patience = max(self._deadline - trio.current_time(), 0)
            self._transport.send_nowait(self.session.outgoing.read(), patience)


def _explain_failure(error: ssl.SSLError, incoming: ssl.MemoryBIO) -> HandshakeError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeError(error.verify_message)
    if isinstance(error, ssl.SSLZeroReturnError):  # a close_notify
        return HandshakeError("connection lost")
    reason = words_of(error)
    is_plain_http = reason in ("http request", "https proxy request") or (
        reason == "wrong version number" and _is_request_line_left(incoming)
    )
    return HandshakeError("http request" if is_plain_http else reason, plain_http=is_plain_http)


def _is_request_line_left(incoming: ssl.MemoryBIO) -> bool:
    # OpenSSL knows GET, HEAD, POST and PUT only. It has taken the first bytes of "DELETE / HTTP/1.1" for the head of a
    # record, and the rest still lies in front of it.
    return re.match(rb"[^\r\n]* HTTP/1\.[01]\r?\n", incoming.read()) is not None
