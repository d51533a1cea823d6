"""The application the Autobahn test suite talks to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that other servers run it where there is no trioserve
    from trioserve.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept every WebSocket, and send back each of its messages as it came."""
    if scope["type"] != "websocket":
        raise NotImplementedError(scope["type"])
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
