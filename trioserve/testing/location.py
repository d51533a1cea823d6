"""Where a server under test is found."""

from __future__ import annotations

from dataclasses import dataclass

from ..bind import TCPBind
from ..net.listeners import RawAddress

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
