"""The application under test where connections count: it tells, at /accepts, how its process came to them."""

import json
import os
import socket
from typing import Any

from .app import Receive, Send
from .app import app as hello

counts = {"pid": os.getpid(), "accepted": 0, "empty": 0}
_accept = socket.socket._accept  # type: ignore[attr-defined]  # what accept() is made of; Trio keeps accept() itself


def _counting_accept(self: socket.socket) -> tuple[int, Any]:
    """Accept a connection, or count that a look for one found none: another worker was quicker."""
    try:
        accepted: tuple[int, Any] = _accept(self)
    except BlockingIOError:
        counts["empty"] += 1
        raise
    counts["accepted"] += 1
    return accepted


socket.socket._accept = _counting_accept  # type: ignore[attr-defined]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer as ``benchmarks.app`` does, and /accepts with the counts so far."""
    if scope["type"] != "http" or scope["path"] != "/accepts":
        await hello(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": json.dumps(counts).encode()})
