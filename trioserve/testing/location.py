"""Where a server under test is found."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import trio

from ..bind import TCPBind
from ..net.listeners import RawAddress

RECEIVE_BUFFER = 4096
"""Bytes that the kernel keeps for a client that does not read; it doubles them."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address for clients


@dataclass(frozen=True)
class Location:
    """An address that clients can connect to; ``port`` is 0 where there is none, and ``host`` then only a name."""

    host: str
    port: int
    unix_path: str | None
    uses_tls: bool

    @classmethod
    def of(cls, address: RawAddress, *, uses_tls: bool) -> Location:
        """``address``: the server's first one; None for memory streams."""
        if isinstance(address, tuple):
            host, port = address
            return cls(_LOOPBACK.get(host, host), port, None, uses_tls)
        return cls("localhost", 0, address, uses_tls)

    @property
    def authority(self) -> str:
        """What goes into Host and into URLs."""
        return str(TCPBind(self.host, self.port)) if self.port else self.host

    @property
    def url(self) -> str:
        return f"{'https' if self.uses_tls else 'http'}://{self.authority}"

    @property
    def ws_url(self) -> str:
        return f"{'wss' if self.uses_tls else 'ws'}://{self.authority}"


async def connect_to(location: Location, *, reads_little: bool) -> trio.SocketStream:
    """Open a connection. ``reads_little``: the kernel keeps little for a client that does not read."""
    if location.unix_path is not None:
        return await trio.open_unix_socket(location.unix_path)
    family = socket.AF_INET6 if ":" in location.host else socket.AF_INET
    made = trio.socket.socket(family)
    try:
        if reads_little:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)  # before connect: the window's scale
        await made.connect((location.host, location.port))
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)
