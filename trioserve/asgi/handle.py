"""The boundary round the application: nothing it does gets past here."""

from __future__ import annotations

import contextlib

import trio

from ..context import ServerContext
from ..errors import ClientDisconnected, MessageError
from ..exchange import Exchange
from ..logs import log_application_error
from .handshake import read_offer
from .http import HTTPCall
from .plain import SERVER_ERROR, SHUTTING_DOWN, send_plain
from .scope import build_http_scope, build_websocket_scope
from .websocket import WebSocketCall

_PASSING = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)


async def handle_http(exchange: Exchange, server: ServerContext) -> bool:
    """Call the application for one exchange; returns whether it did what ASGI asks of it.

    Whatever it raises, ``SystemExit`` too, is logged, and answered with 500 if nothing was sent; only cancellation and
    KeyboardInterrupt pass. An exchange that is not complete when this returns was aborted.
    """
    observer = server.observer
    call = HTTPCall(exchange, observer.debug_received if observer.wants_debug else None)
    scope = build_http_scope(exchange, server.state, server.config.root_path, observer.wants_debug)
    error: BaseException | None = None
    try:
        try:
            await server.app(scope, call.receive, call.send)
        except BaseException as raised:
            error = _let_pass(raised, exchange, server, call)
        if error is None and (exchange.ended or call.is_complete):
            return True
        return await _make_up_for(exchange, server, error)
    finally:
        # An error's trace holds this frame, so a local that holds the error would keep all frames of the application
        # alive until the garbage collector comes, and with them generators whose ``finally`` is to run now.
        error = None


async def handle_websocket(exchange: Exchange, server: ServerContext) -> bool:
    """As handle_http, for an exchange that asks for a WebSocket; returns once that is closed, or was refused.

    Raises ProtocolError before the application is called if the request is not a proper handshake.
    """
    offer = read_offer(exchange.request.headers)
    if server.drain.kind is not None:
        await exchange.refuse(503, SHUTTING_DOWN)
        return True
    root_path = server.config.root_path
    scope = build_websocket_scope(exchange, server.state, root_path=root_path, subprotocols=offer.subprotocols)
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            call = WebSocketCall(exchange, server, offer, nursery)
            nursery.start_soon(call.attend, name="trioserve WebSocket")
            with call.scope:
                try:
                    await server.app(scope, call.receive, call.send)
                except BaseException as raised:
                    error = _let_pass(raised, exchange, server, call)
            if error is None and call.is_undecided:
                error = MessageError("the application returned without accepting or refusing the WebSocket")
            fine = error is None or _is_disconnect(error, has_left=call.has_left)
            if error is not None and not fine:
                _report(server, exchange, "exception in the application", error)
            await call.finish(fine=fine)
            nursery.cancel_scope.cancel()
        return fine
    finally:
        error = None


def _let_pass(
    raised: BaseException, exchange: Exchange, server: ServerContext, call: HTTPCall | WebSocketCall
) -> BaseException | None:
    """Return what the application raised, but for what must pass: that is raised again."""
    error: BaseException | None = None
    passing: BaseException | None = None
    try:
        error, passing = _sort(raised)
        if passing is not None:
            # Of a WebSocket the exchange does not know whether its client is there, its call does.
            has_left = exchange.has_left or (isinstance(call, WebSocketCall) and call.has_left)
            if error is not None and not _is_disconnect(error, has_left=has_left):
                _report(server, exchange, "exception in the application while it was cancelled", error)
            raise passing from None
        return error
    finally:
        del raised
        error = passing = None


async def _make_up_for(exchange: Exchange, server: ServerContext, error: BaseException | None) -> bool:
    """Log what went wrong and end the exchange; returns whether nothing did but that the client left."""
    gave_up = exchange.has_left if error is None else _is_disconnect(error, has_left=exchange.has_left)
    if not gave_up and error is not None:
        _report(server, exchange, "exception in the application", error)
    elif not gave_up and not exchange.ended:
        what = "without a response" if exchange.status is None else "before its response was complete"
        error = MessageError(f"the application returned {what}")
        _report(server, exchange, str(error), error)
    if not exchange.ended:
        # A client that has only closed its half still gets its 500, unless the application gave up on it.
        await _end(exchange, answer=exchange.status is None and not (gave_up and exchange.has_left))
    return gave_up or error is None


async def _end(exchange: Exchange, *, answer: bool) -> None:
    if answer:
        with contextlib.suppress(ClientDisconnected):
            await send_plain(exchange, 500, SERVER_ERROR)
    exchange.abort()  # nothing to do if the answer has ended it


def _sort(raised: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Split what came out of the application into (error, what must pass)."""
    if isinstance(raised, _PASSING):
        return None, raised
    if isinstance(raised, BaseExceptionGroup):
        passing, error = raised.split(_PASSING)
        # split() copies even a group of which nothing passes; the log and the observer get the application's own.
        return (raised, None) if passing is None else (error, passing)
    return raised, None


def _is_disconnect(error: BaseException, *, has_left: bool) -> bool:
    """Whether the application merely let "nobody is there" through, alone or in groups.

    Not if its own client is there: then it sent to another's, as broadcasts do, and let that end this call.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(one, has_left=has_left) for one in error.exceptions)
    # Starlette and Litestar raise their own: ClientDisconnect for the OSError of a send and for the http.disconnect of
    # a broken upload, WebSocketDisconnect for what says so on a WebSocket. There is nothing to tell them by but their
    # names. All else that is raised on the way out is an error.
    foreign = ("ClientDisconnect", "WebSocketDisconnect")
    return has_left and (isinstance(error, ClientDisconnected) or type(error).__name__ in foreign)


def _report(server: ServerContext, exchange: Exchange, message: str, error: BaseException) -> None:
    server.counters.application_errors += 1
    server.observer.application_failed(error, exchange.request)
    log_application_error(message, error, exchange.request.line)
