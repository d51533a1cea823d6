"""HTTP/1.1's Exchange: one request and its response on a connection that carries one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from math import inf

import trio

from ..context import ServerContext
from ..errors import ClientDisconnected, ProtocolError, Refusal, WriteTimeout
from ..exchange import Request, Response
from ..logs import ExchangeRecord, Outcome
from ..request_ids import FIELD, names_id
from ..transport import PARTS_FROM, Channel, FilePiece, Transport, Wake
from ..types import Headers, PlainValues
from .codec import CONTINUE, Codec

RATE_PATIENCE = 30.0
"""Seconds that a client may keep the application waiting for its body, however little comes, or longer if
timeout_request_body is.
"""

UNCANCELLED = 256 * 1024
"""Bytes of a body that are received without a moment in which the handler can be cancelled. What is there is to be had
even in a cancelled scope; but a client that always has more must not keep its handler for ever.
"""

REFUSAL_PATIENCE = 1.0
"""Seconds that an answer in the application's place may take to leave."""


class HTTP11Exchange:
    """An Exchange. ``on_end`` is called once, when the response is complete, was aborted, or was given by the
    server.
    """

    # Defaults of the class are those that hardly ever change: an exchange then costs less to make.
    has_aborted = False
    must_close = False
    is_refused = False
    upgrade: Headers = ()
    """What makes a 101 of a response to this request."""
    outcome: Outcome | None = None
    """Set by who knows better than "ok" or "error"."""
    first_byte: float | None = None
    received = 0
    sent_head = b""
    """The response head as it was sent, where heads are marked."""
    _waited = 0.0  # for the body, in seconds, and what came in that time, in bytes
    _waited_for = 0
    _uncancelled = 0
    _continue_sent = False
    _last_pieces: list[bytes] | None = None  # of a client that has left
    _is_reported = False
    _receiving = False
    _waiting = 0

    def __init__(
        self, request: Request, transport: Transport, codec: Codec, server: ServerContext, on_end: Callable[[], None]
    ) -> None:
        self.request = request
        self._transport = transport
        self._codec = codec
        self._server = server
        self._on_end = on_end
        self.status: int | None = None
        self.ended = False
        self.sent = 0
        self._head = b""  # serialised, and waiting for the first piece of the body
        self.started = server.clock.now()

    @property
    def has_left(self) -> bool:
        return self._transport.has_left or self.is_refused

    @property
    def can_send_files(self) -> bool:
        return self._transport.can_send_files

    def describe(self, now: float) -> str:
        """What it is, and for how many seconds it has been, in words; ``now`` is Trio's."""
        request = self.request
        kind = request.method if request.protocol is None else "WebSocket"
        answered = " (answered)" if self.ended and request.protocol is None else ""
        return f"{kind} {request.target.decode('ascii')}{answered}, {now - self.started:.1f} s"

    def to_plain(self, now: float) -> PlainValues:
        request = self.request
        return {
            "client": request.endpoint.client_name,
            "method": request.method,
            "target": request.target.decode("ascii"),
            "http_version": request.http_version,
            "websocket": request.protocol is not None,
            "age": round(now - self.started, 3),
            "status": self.status,
            "answered": self.ended,
            "received": self.received,
            "sent": self.sent,
            "request_id": request.id,
        }

    # Receiving

    async def receive_body(self) -> tuple[bytes, bool]:
        try:
            piece, more = await self._next_piece()
        except ProtocolError as error:
            await self.refuse(error.status, error.reason, why=error.why)
            raise ClientDisconnected(error.reason) from None
        self.received += len(piece)
        limit = self._server.config.limit_request_body
        if limit is not None and self.received > limit:
            await self.refuse(413, f"The request body is larger than {limit} bytes.")
            raise ClientDisconnected("the request body is larger than limit_request_body")
        return piece, more

    async def _next_piece(self) -> tuple[bytes, bool]:
        while True:
            if self._transport.has_left:
                return await self._take_what_came()
            # A client that sends tiny chunks without end could otherwise keep its handler from being cancelled at all.
            if self._codec.was_much:
                await trio.lowlevel.checkpoint_if_cancelled()
            piece = self._codec.next_body()
            if piece is not None:
                if self._codec.was_much:
                    await trio.lowlevel.cancel_shielded_checkpoint()  # a piece that was read must not be lost
                return piece
            await self._wait_for_body()

    async def _wait_for_body(self) -> None:
        if self._codec.wants_continue and not self._continue_sent and self.status is None:
            self._continue_sent = True
            await self._transport.send(self._codec.informational(CONTINUE, ()), self._server.config.timeout_write)
        if self._uncancelled >= UNCANCELLED:
            self._uncancelled = 0
            await trio.lowlevel.checkpoint_if_cancelled()
        began = trio.current_time()
        patience, patience_left = self._server.config.timeout_request_body, self._patience_left()
        deadline = began + min(patience, patience_left)
        while True:
            # Also after a wait that bytes ended: they may have come together with the end of the exchange, after which
            # the transport has another reader.
            if self.ended:
                raise ClientDisconnected("the response is complete")
            self._receiving = True
            try:
                came = await self._transport.receive(deadline)
            finally:
                self._receiving = False
            if isinstance(came, bytes):
                self._waited += trio.current_time() - began
                self._waited_for += len(came)
                self._uncancelled += len(came)
                self._codec.feed(came)
                return
            if came is Wake.DEADLINE:
                why = Refusal.BODY_RATE if patience_left < patience else Refusal.BODY_TIME
                raise ProtocolError(408, "The request body did not come in time.", why=why)

    def _patience_left(self) -> float:
        """Seconds until a body of which nothing more comes is too slow. Only those count in which we wait for it."""
        config = self._server.config
        rate = config.limit_request_body_rate
        if rate is None:
            return inf
        return max(RATE_PATIENCE, config.timeout_request_body, self._waited_for / rate) - self._waited

    async def _take_what_came(self) -> tuple[bytes, bool]:
        """After the client has left: give what it sent only if the body is complete, or say at once that it is gone."""
        if self._transport.is_broken:
            raise ClientDisconnected("the client has left")
        # Everything has come, so this waits for others at most, who may wake us: a drain is no matter here.
        while came := await self._transport.receive(inf):
            if self.ended:
                raise ClientDisconnected("the response is complete")
            if isinstance(came, bytes):
                self._codec.feed(came)
        self._last_pieces = self._last_pieces or []
        while piece := self._codec.next_body():
            self._last_pieces.append(piece[0])
            if not piece[1]:
                whole, self._last_pieces = b"".join(self._last_pieces), None
                return whole, False
            if self._codec.was_much:
                await trio.lowlevel.checkpoint()
        self.outcome = Outcome.CLIENT_LEFT
        raise ClientDisconnected("the client has left in the middle of the request body")

    async def wait_disconnect(self) -> None:
        self._waiting += 1
        try:
            while not (self.ended or self.has_left):
                await self._transport.wait_left()
        finally:
            self._waiting -= 1

    # Sending

    async def send_informational(self, status: int, headers: Headers) -> None:
        self._raise_if_gone()
        if self.request.http_version == "1.0":
            return  # RFC 9110 §15.2: MUST NOT send a 1xx response to an HTTP/1.0 client
        await self._transport.send(self._codec.informational(status, headers), self._server.config.timeout_write)

    def send_response(self, response: Response) -> None:
        if self.ended or self._transport.is_broken:
            raise _gone()
        codec, server = self._codec, self._server
        # The rest of an unread body would have to be swallowed first; a client that still waits for 100 may never
        # send it.
        says_close = self.must_close or server.drain.kind is not None or codec.wants_continue
        self._head = codec.response_head(response, server.default_headers.current(), says_close)
        if server.marks_heads:
            self._head = self._mark(self._head, response.headers)
        self.status = response.status

    def _mark(self, head: bytes, fields: Headers) -> bytes:
        """Add the request's id to a head with these fields, unless it is there, and keep it for the access line."""
        request_id = self.request.id
        if request_id is not None and not names_id(fields):
            # Here, and not among the defaults: heads that are the same but for this are made only once.
            head = b"%b%b: %b\r\n\r\n" % (head[:-2], FIELD, request_id.encode("ascii"))
        self.sent_head = head
        return head

    async def switch_protocols(self, headers: Headers) -> tuple[Channel, bytes]:
        self._raise_if_gone()
        names = {name.lower() for name, _ in headers}
        defaults = [field for field in self._server.default_headers.current() if field[0] not in names]
        head, left_over = self._codec.switch([*self.upgrade, *headers, *defaults])
        if self._server.marks_heads:
            head = self._mark(head, headers)
        self.status = 101
        self.must_close = True  # whatever becomes of it, there is no way back to HTTP
        if self._server.wants_records:
            self.first_byte = trio.current_time()
        await self._transport.send(head, self._server.config.timeout_write)
        self._end()
        return self._transport, left_over

    async def send_body(self, data: bytes, more: bool, trailers: Headers = ()) -> None:
        if self.ended or self._transport.is_broken:
            raise _gone()
        codec, transport = self._codec, self._transport
        stall = self._server.config.timeout_write
        try:
            if len(data) >= PARTS_FROM and not codec.drops_body:
                before, after = codec.frame(len(data))
                if not more:
                    after += codec.end(trailers)
                await transport.send_parts([self._take_head() + before, data, after], stall, more)
            else:
                framed = codec.body(data)
                if not more:
                    framed += codec.end(trailers)
                if self._head:
                    framed = self._take_head() + framed
                if framed:
                    if more:
                        await transport.send_parts([framed], stall, True)
                    else:
                        await transport.send(framed, stall)
        except WriteTimeout:
            self.outcome = Outcome.DEADLINE
            raise
        if not codec.drops_body:
            self.sent += len(data)
        if not more:
            self._end()

    async def send_file(self, file: int, offset: int, count: int, more: bool) -> None:
        self._raise_if_gone()
        if count == 0 or self._codec.drops_body:
            await self.send_body(b"", more)
            return
        before, after = self._codec.frame(count)
        if not more:
            after += self._codec.end(())
        piece = FilePiece(self._take_head() + before, file, offset, count, after)
        try:
            await self._transport.send_file(piece, self._server.config.timeout_write)
        except BaseException as error:
            # All of it is counted, and perhaps none has gone out: what follows would be taken for its rest.
            if isinstance(error, WriteTimeout):
                self.outcome = Outcome.DEADLINE
            self.abort()
            raise
        self.sent += count
        if not more:
            self._end()

    async def send_trailers(self, headers: Headers) -> None:
        await self.send_body(b"", more=False, trailers=headers)

    def _take_head(self) -> bytes:
        head = self._head
        if head:
            self._head = b""
            if self._server.wants_records:
                self.first_byte = trio.current_time()
        return head

    def _raise_if_gone(self) -> None:
        if self.ended or self._transport.is_broken:
            raise _gone()

    # Ending

    def abort(self) -> None:
        if not self.ended:
            self.has_aborted = self.must_close = True
            self._end()

    async def refuse(
        self,
        status: int,
        reason: str,
        *fields: tuple[bytes, bytes],
        closes: bool = True,
        why: Refusal | None = None,
    ) -> None:
        if self.ended:
            return
        self.is_refused = True
        self.must_close |= closes
        self._server.counters.count_rejected(status, why)
        self.outcome = Outcome.DEADLINE if status in (408, 504) else Outcome.ERROR
        if self.status is not None:
            self.abort()
            return
        text = reason.encode() + b"\n"
        length = (b"content-length", b"%d" % len(text))
        response = Response(status, [(b"content-type", b"text/plain; charset=utf-8"), length, *fields])
        # An application may ask for its body in a cancelled scope; the answer must not be cut by that.
        patience = trio.CancelScope(shield=True, deadline=trio.current_time() + REFUSAL_PATIENCE)
        with patience, contextlib.suppress(ClientDisconnected):
            self.send_response(response)
            await self.send_body(text, more=False)
        self.abort()

    def cut_short(self) -> None:
        """Take note that the application has left the exchange unfinished."""
        self.outcome = self.outcome or (Outcome.CLIENT_LEFT if self.has_left else Outcome.SHUTDOWN)
        self.abort()

    def _end(self) -> None:
        self.ended = True
        if self._receiving or self._waiting:
            self._transport.wake(Wake.ENDED)
        if self._server.slow is not None:
            self._server.slow.ended(self)
        # Whether a 5xx is what the application meant, or what something in it made of an error, shows when it returns.
        if self._server.wants_records and (self.status is None or self.status < 500 or self.is_refused):
            self.report()
        self._on_end()

    def report(self) -> None:
        """Say what became of it, once."""
        if not self._is_reported:
            self._is_reported = True
            self._server.exchange_ended(self._record(), self.request, self.sent_head)

    def _record(self) -> ExchangeRecord:
        request = self.request
        if self.outcome is not None:
            outcome = self.outcome
        elif self.has_aborted:
            outcome = Outcome.CLIENT_LEFT if self.has_left else Outcome.ERROR
        else:
            outcome = Outcome.OK
        return ExchangeRecord(
            client=request.endpoint.client_name,
            method=request.method,
            target=request.target.decode("ascii"),
            http_version=request.http_version,
            status=self.status,
            received=self.received,
            sent=self.sent,
            duration=trio.current_time() - self.started,
            first_byte=None if self.first_byte is None else self.first_byte - self.started,
            outcome=outcome,
            request_id=request.id,
        )


def _gone() -> ClientDisconnected:
    return ClientDisconnected("the response can no longer reach the client")
