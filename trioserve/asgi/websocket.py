"""One call of a WebSocket application: its ``receive`` and its ``send``, and the opening handshake."""

from __future__ import annotations

import contextlib
from enum import Enum, auto
from math import inf

import trio

from ..bell import Bell
from ..context import ServerContext
from ..errors import ClientDisconnected, MessageError, Refusal
from ..exchange import Exchange, Response
from ..logs import Outcome, WebSocketRecord
from ..types import AnyValue, Message
from .deflate import BoundedDeflate, negotiate
from .frames import ABNORMAL, INTERNAL_ERROR, NORMAL, Frames
from .handshake import Offer
from .http import HTTPCall
from .messages import as_bytes, read, read_headers
from .plain import SERVER_ERROR, SHUTTING_DOWN, send_plain
from .session import WebSocketSession

# What the handshake itself says; an application has "subprotocol" for one of them, and no say in the others.
_SERVERS_OWN = {
    b"connection",
    b"content-length",
    b"sec-websocket-accept",
    b"sec-websocket-extensions",
    b"sec-websocket-protocol",
    b"transfer-encoding",
    b"upgrade",
}

_DENIAL = {"websocket.http.response.start": "http.response.start", "websocket.http.response.body": "http.response.body"}


# RFC 6455 §7.4. Not 1014, which is registered since: wsproto takes it for an error, also as the client's answer.
_CLOSE_CODES = (range(1000, 1004), range(1007, 1014), range(3000, 5000))


class Handshake(Enum):
    """How the opening handshake goes. Every way out of CONNECTING sends exactly one response."""

    CONNECTING = auto()
    ACCEPTED = auto()  # 101
    DENIED = auto()  # by the application: 403, or a response of its own
    FAILED = auto()  # 500, 503 or 504 from us, or nobody is there to be answered


class WebSocketCall:
    """The receive and send of one call. Several tasks of the application may call both at once.

    ``nursery`` is that of the handshake and of all that follows; ``attend`` must run in it.
    """

    def __init__(self, exchange: Exchange, server: ServerContext, offer: Offer, nursery: trio.Nursery) -> None:
        self._exchange = exchange
        self._nursery = nursery
        self._server = server
        self._offer = offer
        self.state = Handshake.CONNECTING
        self._is_attended = True
        self._has_refused: trio.Event | None = None  # set once the server's own answer is out
        self.scope = trio.CancelScope()
        """What is cancelled to stop the application."""
        self.session: WebSocketSession | None = None
        self._denial: HTTPCall | None = None
        self._connect_given = False
        self._has_closed = False
        self._bell = Bell()
        self._deadline = trio.current_time() + server.config.timeout_ws_handshake
        self._timer = server.clock.timer(self._bell.ring)
        self._timer.set(self._deadline)
        self._grace = server.clock.timer(self.scope.cancel)

    # The application's side

    async def receive(self) -> Message:
        """Return what comes next: connect, then messages, then disconnect again and again."""
        if not self._connect_given:
            self._connect_given = True
            return {"type": "websocket.connect"}
        if self.session is None:
            await self._exchange.wait_disconnect()
            if self.session is None:
                return {"type": "websocket.disconnect", "code": ABNORMAL, "reason": ""}
        data = await self.session.receive()
        if isinstance(data, str):
            return {"type": "websocket.receive", "text": data}
        if data is not None:
            return {"type": "websocket.receive", "bytes": data}
        code, reason = self.session.closed_with or (ABNORMAL, "")
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        """Take one message of the application.

        Raises MessageError for a message that is wrong, ClientDisconnected when nothing can reach the client.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        kind = message.get("type")
        if self.session is not None:
            if self._has_closed:
                raise MessageError(f"expected nothing more, the application has closed the WebSocket, not {kind!r}")
            if not self.session.is_open:
                # Before the message is looked at: Litestar closes with the very code it was told, which may be 1006.
                raise ClientDisconnected("the WebSocket is closed")
            if kind == "websocket.send":
                await self.session.send(_read_data(message))
            elif kind == "websocket.close":
                code, reason = _read_close(message)
                self._has_closed = True
                self.session.close(code, reason)
            else:
                raise MessageError(f"expected websocket.send or websocket.close, not {read(message, 'type', str)!r}")
        else:
            await self._send_answer(read(message, "type", str), message)

    async def _send_answer(self, kind: str, message: Message) -> None:
        if self._denial is not None and kind in _DENIAL:
            await self._denial.send({**message, "type": _DENIAL[kind]})
        elif self.state is Handshake.FAILED:
            raise ClientDisconnected("the handshake has failed")
        elif self.state is Handshake.DENIED:
            expected = "nothing more, the WebSocket is refused"
            if self._denial is not None and not self._denial.is_complete:
                expected = "websocket.http.response.body"
            raise MessageError(f"expected {expected}, not {kind!r}")
        elif kind == "websocket.accept":
            await self._accept(message)
        elif kind == "websocket.close":
            self._decide(Handshake.DENIED)
            self._exchange.send_response(Response(403, [(b"content-length", b"0")]))
            await self._exchange.send_body(b"", more=False)
        elif kind == "websocket.http.response.start":
            denial = HTTPCall(self._exchange)
            await denial.send({**message, "type": _DENIAL[kind], "trailers": False})
            self._denial = denial
            self._decide(Handshake.DENIED, self._deadline)
        else:
            expected = "websocket.accept, websocket.close or websocket.http.response.start"
            raise MessageError(f"expected {expected}, not {kind!r}")

    def _decide(self, state: Handshake, deadline: float = inf) -> None:
        self.state = state
        self._deadline = deadline
        self._timer.set(deadline)

    async def _accept(self, message: Message) -> None:
        headers = self._read_accept(message)
        if self._server.drain.kind is not None:
            await self._refuse(503, SHUTTING_DOWN)
        if self._exchange.has_left:
            raise ClientDisconnected("the client has left before its WebSocket was accepted")
        config = self._server.config
        agreement = negotiate(self._offer.extensions) if config.ws_per_message_deflate else None
        if agreement is not None:
            headers.append((b"sec-websocket-extensions", agreement.field))
        deadline = self._deadline
        self._decide(Handshake.FAILED)  # until it has succeeded; nobody else may answer meanwhile
        try:
            channel, left_over = await self._exchange.switch_protocols(headers)
        except MessageError:
            # The application may still do better.
            self._decide(Handshake.CONNECTING, deadline)
            raise
        if not self._is_attended:
            raise ClientDisconnected("all was cancelled while the WebSocket was being accepted")
        self._decide(Handshake.ACCEPTED)
        channel.write_in(self._nursery)
        request = self._exchange.request
        extensions = [] if agreement is None else [BoundedDeflate(agreement, config.ws_max_size)]
        self.session = WebSocketSession(
            channel,
            Frames(extensions, left_over, config.ws_max_size),
            self._server,
            record=WebSocketRecord(request.endpoint.client_name, request.target.decode("ascii"), request_id=request.id),
            bell=self._bell,
            client_left=self._start_grace,
        )
        self._bell.ring()

    def _read_accept(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = read_headers(message)
        for name, _ in headers:
            if name.lower() in _SERVERS_OWN:
                raise MessageError(f"websocket.accept: the server sets {name.decode('latin-1')!r} itself")
        subprotocol: AnyValue = message.get("subprotocol")
        if subprotocol is not None:
            if subprotocol not in self._offer.subprotocols:
                offered = ", ".join(self._offer.subprotocols) or "nothing"
                raise MessageError(f"websocket.accept: the client offers {offered}, not subprotocol {subprotocol!r}")
            headers.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        return headers

    def _start_grace(self) -> None:
        """The client has left an open WebSocket."""
        grace = self._server.config.timeout_disconnect_grace
        if grace is not None and self._grace.deadline == inf:
            self._grace.set(trio.current_time() + grace)

    # The server's side

    async def attend(self) -> None:
        """Keep the clock of the handshake, and then look after the session until it is closed."""
        drain, tell_drain = self._server.drain, self._bell.ring
        drain.register(tell_drain)
        try:
            await self._await_session()
            assert self.session is not None
            await self.session.attend()
            await trio.sleep_forever()  # the application may still run, and be cancelled when its grace is over
        finally:
            self._is_attended = False
            drain.unregister(tell_drain)
            self._timer.close()
            self._grace.close()

    async def _await_session(self) -> None:
        try:
            while self.session is None:
                await self._look_after_handshake()
                await self._bell.wait()
        except trio.Cancelled:
            if self.state is Handshake.CONNECTING and not self._exchange.has_left:
                await self._refuse(503, SHUTTING_DOWN)
            if self.session is None:
                raise
            # Accepted in this very moment, by an application behind a shield: the session says goodbye at once.

    async def _look_after_handshake(self) -> None:
        is_open = self.state is Handshake.CONNECTING
        if is_open and self._server.drain.kind is not None:
            await self._refuse(503, SHUTTING_DOWN)
        # A denial of which nothing has been sent has its time, too.
        elif (is_open or self._exchange.status is None) and self._deadline <= trio.current_time():
            await self._refuse(504, "The application took too long.", closes=False, why=Refusal.WEBSOCKET_TIME)
            self.scope.cancel()

    async def _refuse(self, status: int, reason: str, *, closes: bool = True, why: Refusal | None = None) -> None:
        """Answer in the place of an application that may still be running."""
        self._decide(Handshake.FAILED)
        self._has_refused = trio.Event()
        try:
            await self._exchange.refuse(status, reason, closes=closes, why=why)
        finally:
            self._has_refused.set()

    @property
    def is_undecided(self) -> bool:
        """The application has neither accepted nor refused, and the client is still there to hear it."""
        has_begun_denial = self._denial is not None and not self._exchange.ended
        return (has_begun_denial or self.state is Handshake.CONNECTING) and not self._exchange.has_left

    @property
    def has_left(self) -> bool:
        """The WebSocket has ended, or will never begin, and the application can know it."""
        if self.session is not None:
            return not self.session.is_open
        return self._exchange.has_left or self.state is Handshake.FAILED

    async def finish(self, *, fine: bool) -> None:
        """The application has ended: say what is still to be said, and wait until the client has heard it.

        ``fine``: it did what ASGI asks of it.
        """
        if self.session is None:
            await self._finish_handshake(fine)
            return
        if self.session.is_open:
            if not fine:
                self.session.outcome = Outcome.ERROR
            with contextlib.suppress(ClientDisconnected):
                self.session.close(NORMAL if fine else INTERNAL_ERROR, "")
        await self.session.wait_closed()

    async def _finish_handshake(self, fine: bool) -> None:
        if self._has_refused is not None:
            await self._has_refused.wait()
        exchange = self._exchange
        # A client that has only closed its half still gets its 500, unless the application gave up on it.
        if exchange.status is None and not (fine and exchange.has_left):
            self._decide(Handshake.FAILED)
            with contextlib.suppress(ClientDisconnected):
                await send_plain(exchange, 500, SERVER_ERROR)
        exchange.abort()  # nothing to do if it has ended


def _read_data(message: Message) -> str | bytes:
    """Source: ASGI HTTP & WebSocket §"Send - send event"."""
    text, data = message.get("text"), message.get("bytes")
    if text is None and type(data) is bytes:
        return data
    if isinstance(text, str) and data is None:
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise MessageError(f"websocket.send: 'text' cannot be sent as UTF-8: {error}") from None
        return text
    if text is None and data is not None:
        return as_bytes(message, "bytes", data)
    raise MessageError("websocket.send: expected either 'text', a str, or 'bytes'")


def _read_close(message: Message) -> tuple[int, str]:
    """Source: ASGI HTTP & WebSocket §"Close - send event"."""
    code: AnyValue = message.get("code", NORMAL)
    reason: AnyValue = message.get("reason")
    if not isinstance(code, int) or not any(code in codes for codes in _CLOSE_CODES):
        raise MessageError(f"websocket.close: 'code' must be 1000-1003, 1007-1013 or 3000-4999, not {code!r}")
    if reason is not None and not isinstance(reason, str):
        raise MessageError(f"websocket.close: 'reason' must be a str, not {reason!r}")
    return int(code), reason or ""
