"""What every handle of a server under test can tell of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..server import Server
from ..types import State
from .location import Location

if TYPE_CHECKING:
    from .authority import Authority


class Handle(ABC):
    """Where a server is, and what its application has left in its state."""

    @property
    @abstractmethod
    def server(self) -> Server:
        """The server's own handle, with ``statistics()`` and more; its methods are for the server's thread."""

    @property
    @abstractmethod
    def location(self) -> Location: ...

    @property
    @abstractmethod
    def ca(self) -> Authority | None:
        """The authority behind the certificate; None without ``tls=True``."""

    @property
    def url(self) -> str:
        """Such as "http://127.0.0.1:41234", without a slash at the end."""
        return self.location.url

    @property
    def ws_url(self) -> str:
        return self.location.ws_url

    @property
    def host(self) -> str:
        return self.location.host

    @property
    def port(self) -> int:
        """0 for a unix socket and for memory streams."""
        return self.location.port

    @property
    def unix_path(self) -> str | None:
        return self.location.unix_path

    @property
    def state(self) -> State:
        """What the application's lifespan put into its state."""
        return self.server.state
