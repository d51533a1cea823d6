"""Clients that misbehave, and the streams they need."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import trio

from ..net.stream_transport import close_by_reset
from ..types import Headers


def build_request(host: str, path: str, *, method: str, headers: Headers, body: bytes) -> bytes:
    """One request in HTTP/1.1, after whose response the server closes; raises ValueError for a bad path."""
    if not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
        raise ValueError(f"path must begin with / and be percent-encoded, not {path!r}")
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: " + host.encode(), b"Connection: close"]
    lines += [name + b": " + value for name, value in headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


@dataclass(eq=False)
class SlowClient:
    """A client that reads its response slowly, or not at all. ``received`` is what it has read, head and body."""

    stream: trio.abc.Stream
    received: bytearray = field(default_factory=bytearray)
    ended: trio.Event = field(default_factory=trio.Event)

    async def read(self, bytes_per_second: float) -> None:
        """Read to the end, at this pace. A connection that is lost is an end, too."""
        piece = max(1, math.ceil(bytes_per_second / 10))
        try:
            while data := await self.stream.receive_some(piece):
                self.received += data
                await trio.sleep(len(data) / bytes_per_second)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended.set()

    async def wait(self) -> bytes:
        """Wait until the response has ended, or the connection was lost; returns all that was read."""
        await self.ended.wait()
        return bytes(self.received)


class Upload:
    """Sends a request, or as much of it as the other side takes before one of them leaves."""

    def __init__(self, stream: trio.abc.Stream, data: bytes) -> None:
        self._stream = stream
        self._data = data
        self._is_sent = False

    async def run(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.send_all(self._data)
            self._is_sent = True

    async def leave(self) -> None:
        """Close the connection."""
        if self._is_sent:
            await trio.aclose_forcefully(self._stream)
        else:
            # Its end would wait in the kernel behind what the other side does not take.
            await close_by_reset(self._stream)


async def read_at_least(stream: trio.abc.ReceiveStream, count: int) -> None:
    """Read so many bytes; less if there are no more."""
    while count > 0:
        data = await stream.receive_some(min(count, 65536))
        if not data:
            return
        count -= len(data)
