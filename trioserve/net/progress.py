"""Whether a peer takes what is sent to it.

That a socket becomes writable says so too late: the kernel waits until a good part of its buffer is free, which can be
megabytes, and minutes for a client on a slow line that takes all that its line can carry.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Protocol

import trio

_ask_kernel: Callable[[int], bytes] | None = None
with contextlib.suppress(ImportError):  # Windows has neither module, and no way to ask
    from fcntl import ioctl
    from termios import TIOCOUTQ

    def _count_unsent(descriptor: int) -> bytes:
        return ioctl(descriptor, TIOCOUTQ, bytes(4))

    _ask_kernel = _count_unsent


class HasDescriptor(Protocol):
    """A socket of Python's or of Trio's."""

    def fileno(self) -> int: ...


class SendProgress:
    """Looks at what the kernel still holds for a peer. Without a socket it never sees any progress."""

    def __init__(self, sock: HasDescriptor | None) -> None:
        self._socket = sock
        self._queued: int | None = None

    @classmethod
    def of(cls, stream: trio.abc.Stream) -> SendProgress:
        """For the socket under a stream, if there is one."""
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        return cls(stream.socket if isinstance(stream, trio.SocketStream) else None)

    def has_moved(self) -> bool:
        """Whether the peer has taken something since this was last asked."""
        before, self._queued = self._queued, self._count_queued()
        return self._queued != before

    def _count_queued(self) -> int | None:
        if self._socket is None or _ask_kernel is None:
            return None
        try:
            answer = _ask_kernel(self._socket.fileno())
        except (OSError, ValueError):  # closed, or a kind of socket that cannot say
            return None
        (queued,) = struct.unpack("i", answer)
        return int(queued)
