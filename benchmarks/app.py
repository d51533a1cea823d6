"""The application under test: the least an ASGI application can do, so that what is measured is the server."""

from collections.abc import Awaitable, Callable
from typing import Any

BODY = b"Hello, world!"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))],
}
END = {"type": "http.response.body", "body": BODY}
STREAM_START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
PIECE = b"x" * (16 << 10)  # of which streams are made

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer with `BODY`; stream from /stream/BYTES, count the bytes sent to /upload, and echo WebSocket messages."""
    if scope["type"] == "http":
        path = scope["path"]
        if path == "/":
            await send(START)
            await send(END)
        elif path == "/upload":
            await take_upload(scope, receive, send)
        else:
            await stream(int(path.removeprefix("/stream/")), send)
    elif scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})


async def stream(size: int, send: Send) -> None:
    """Send so many bytes, a multiple of a piece, without saying before how many they will be."""
    await send(STREAM_START)
    for _ in range(size // len(PIECE)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body"})


async def take_upload(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer an upload as everything else is, but with 400 if it is not as long as it was announced."""
    count, more = 0, True
    while more:
        event = await receive()
        count += len(event.get("body", b""))
        more = event.get("more_body", False)
    announced = int(dict(scope["headers"])[b"content-length"])
    await send(START if count == announced else {**START, "status": 400})
    await send(END)
