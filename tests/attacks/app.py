"""The application that the attacks need. Names of bodies and messages are fixed, see the package."""

from __future__ import annotations

import trio

from trioserve.types import Receive, Scope, Send

PIECE = b"x" * 65536
DOWNLOAD_PIECES = 1024


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """``/`` hello, ``/echo`` the body, ``/download`` 64 MiB, ``/forever`` no answer, ``/ws`` echo of a WebSocket."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
    elif scope["type"] == "websocket":
        await _echo_messages(receive, send)
    elif scope["path"] == "/echo":
        body = await _read_body(receive)
        if body is not None:
            await _answer(send, body)
    elif scope["path"] == "/download":
        await _download(send)
    elif scope["path"] == "/forever":
        await trio.sleep_forever()
    else:
        await _answer(send, b"hello")


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _read_body(receive: Receive) -> bytes | None:
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)
    return None


async def _answer(send: Send, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def _download(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(DOWNLOAD_PIECES):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _echo_messages(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 1000})
            return
        echo = {name: message[name] for name in ("text", "bytes") if message.get(name) is not None}
        await send({"type": "websocket.send", **echo})
