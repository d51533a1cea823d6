"""The boundary round the application: nothing it does gets past here."""

from __future__ import annotations

import contextlib

import trio

from ..context import ServerContext
from ..errors import ClientDisconnected, MessageError
from ..exchange import Exchange, Response
from ..logs import log_application_error
from .http import HTTPCall
from .scope import build_http_scope

_PASSING = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)
_SERVER_ERROR = b"Internal Server Error"


async def handle_http(exchange: Exchange, server: ServerContext) -> bool:
    """Call the application for one exchange; returns whether it did what ASGI asks of it.

    Whatever it raises, ``SystemExit`` too, is logged, and answered with 500 if nothing was sent; only cancellation and
    KeyboardInterrupt pass. An exchange that is not complete when this returns was aborted.
    """
    observer = server.observer
    call = HTTPCall(exchange, observer.debug_received if observer.wants_debug else None)
    scope = build_http_scope(exchange, server.state, root_path=server.config.root_path, debug=observer.wants_debug)
    error: BaseException | None = None
    try:
        try:
            await server.app(scope, call.receive, call.send)
        except BaseException as raised:
            error, passing = _sort(raised)
            if passing is not None:
                if error is not None:
                    _report(server, exchange, "exception in the application while it was cancelled", error)
                raise passing from None
        if error is None and (exchange.ended or call.is_complete):
            return True
        return await _make_up_for(exchange, server, error)
    finally:
        # An error's trace holds this frame, so a local that holds the error would keep all frames of the application
        # alive until the garbage collector comes, and with them generators whose ``finally`` is to run now.
        error = passing = None


async def _make_up_for(exchange: Exchange, server: ServerContext, error: BaseException | None) -> bool:
    """Log what went wrong and end the exchange; returns whether nothing did but that the client left."""
    gave_up = exchange.has_left if error is None else _is_disconnect(error, exchange)
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
            await send_plain(exchange, 500, _SERVER_ERROR)
    exchange.abort()  # nothing to do if the answer has ended it


async def send_plain(exchange: Exchange, status: int, text: bytes, *more_headers: tuple[bytes, bytes]) -> None:
    """Send a complete response of plain text."""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
        *more_headers,
    ]
    await exchange.send_response(Response(status, headers))
    await exchange.send_body(text, more=False)


def _sort(raised: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Split what came out of the application into (error, what must pass)."""
    if isinstance(raised, _PASSING):
        return None, raised
    if isinstance(raised, BaseExceptionGroup):
        passing, error = raised.split(_PASSING)
        # split() copies even a group of which nothing passes; the log and the observer get the application's own.
        return (raised, None) if passing is None else (error, passing)
    return raised, None


def _is_disconnect(error: BaseException, exchange: Exchange) -> bool:
    """Whether the application merely let our own "nobody is there" through, alone or in groups."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_disconnect(one, exchange) for one in error.exceptions)
    # Starlette raises its own ClientDisconnect, for the OSError of a send and for the http.disconnect of a broken
    # upload, with nothing to tell it by but its name. All else that is raised on the way out is an error.
    return isinstance(error, ClientDisconnected) or (exchange.has_left and type(error).__name__ == "ClientDisconnect")


def _report(server: ServerContext, exchange: Exchange, message: str, error: BaseException) -> None:
    request = exchange.request
    server.counters.application_errors += 1
    server.observer.application_failed(error)
    line = f"{request.method} {request.target.decode('ascii')} HTTP/{request.http_version}"
    log_application_error(message, error, line)
