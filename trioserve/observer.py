"""What a server tells the one who runs it: the process around it, or a test."""

from __future__ import annotations

from enum import Enum, auto

from .exchange import Request
from .logs import ExchangeRecord, WebSocketRecord
from .types import PlainValues


class Phase(Enum):
    """The life of a server, in order; DRAINING, and then CANCELLING, are left out when nothing calls for them."""

    STARTING = auto()
    SERVING = auto()
    DRAINING = auto()
    CANCELLING = auto()
    STOPPING = auto()  # every handler has ended; lifespan.shutdown begins
    STOPPED = auto()


class Observer:
    """Hears what happens in a server, in the task in which it happens; does nothing by itself.

    ``wants_debug``: offer ``http.response.debug`` to the application.
    """

    wants_debug = False

    def hears(self, *names: str) -> bool:
        """Whether one of these methods does anything."""
        return any(getattr(type(self), name) is not getattr(Observer, name) for name in names)

    def phase_changed(self, phase: Phase) -> None: ...

    def exchange_began(self, request: Request) -> None:
        """A request has come. exchange_left follows, with the same one, once the application has returned, or the
        server has answered in its place.
        """

    def exchange_left(self, request: Request) -> None: ...

    def exchange_ended(self, record: ExchangeRecord) -> None: ...

    def websocket_closed(self, record: WebSocketRecord) -> None: ...

    def application_failed(self, error: BaseException, request: Request | None) -> None:
        """The application has raised; ``request`` is None if it broke the task tree, which ends a whole connection."""

    def limit_reached(self) -> bool:
        """limit_max_requests is reached. True: whoever hears this sees to the end of the server; else it stops."""
        return False

    def debug_received(self, info: PlainValues) -> None: ...
