"""Whether a peer takes what is sent to it.

That a socket becomes writable says so too late: the kernel waits until a good part of its buffer is free, which can be
megabytes, and minutes for a client on a slow line that takes all that its line can carry.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from math import inf
from typing import Protocol

import trio

_ask_kernel: Callable[[int], bytes] | None = None
with contextlib.suppress(ImportError):  # Windows has neither module, and no way to ask
    from fcntl import ioctl
    from termios import TIOCOUTQ

    def _count_unsent(descriptor: int) -> bytes:
        return ioctl(descriptor, TIOCOUTQ, bytes(4))

    _ask_kernel = _count_unsent


# tcpi_bytes_acked in Linux's struct tcp_info; elsewhere there is none there.
_TCP_INFO: int = getattr(socket, "TCP_INFO", 0)
_ACKNOWLEDGED = struct.Struct("=120xQ")

_UNKNOWN = (None, None)

LOOKS = 4
"""How often a stalled peer is looked at before it is given up, so that this is late by a quarter at most."""


class HasDescriptor(Protocol):
    """A socket of Python's or of Trio's."""

    def fileno(self) -> int: ...

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class SendProgress:
    """Looks at what the kernel still holds for a peer. Without a socket it never sees any progress."""

    def __init__(self, sock: HasDescriptor | None) -> None:
        self._socket = sock
        self._seen: tuple[int | None, int | None] | None = None
        self._stall = inf
        self._moved_at = 0.0

    @classmethod
    def of(cls, stream: trio.abc.Stream) -> SendProgress:
        """For the socket under a stream, if there is one."""
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        return cls(stream.socket if isinstance(stream, trio.SocketStream) else None)

    def begin(self, now: float, stall: float) -> float:
        """Begin to look: the peer may take nothing for ``stall`` seconds. Returns when to look for the first time."""
        self._stall = stall
        self._moved_at = now
        self._seen = None  # nearly every write is over before the first look, and should cost nothing
        return now + stall / LOOKS

    def next_look(self, now: float) -> float | None:
        """Look; returns when to look again, or None if the peer has taken nothing for too long."""
        before, self._seen = self._seen, self._look()
        if self._seen != before and self._seen != _UNKNOWN:
            self._moved_at = now
        end = self._moved_at + self._stall
        return min(now + self._stall / LOOKS, end) if now < end else None

    def _look(self) -> tuple[int | None, int | None]:
        # How much is queued may be the same twice, when as much was sent as was taken; what was acknowledged grows.
        return self._count_queued(), self._count_acknowledged()

    def _count_acknowledged(self) -> int | None:
        if self._socket is None:
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKNOWLEDGED.size)
            return int(_ACKNOWLEDGED.unpack(info)[0])
        except (OSError, struct.error):  # closed, no TCP, or a system that does not say
            return None

    def _count_queued(self) -> int | None:
        if self._socket is None or _ask_kernel is None:
            return None
        try:
            answer = _ask_kernel(self._socket.fileno())
        except (OSError, ValueError):  # closed, or a kind of socket that cannot say
            return None
        (queued,) = struct.unpack("i", answer)
        return int(queued)
