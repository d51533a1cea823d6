"""Responses that the server gives itself."""

from __future__ import annotations

from ..exchange import Exchange, Response

SERVER_ERROR = b"Internal Server Error"
SHUTTING_DOWN = "The server is shutting down."


async def send_plain(exchange: Exchange, status: int, text: bytes) -> None:
    """Send a complete response of plain text."""
    length = (b"content-length", b"%d" % len(text))
    exchange.send_response(Response(status, [(b"content-type", b"text/plain; charset=utf-8"), length]))
    await exchange.send_body(text, more=False)
