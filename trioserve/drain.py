"""Whether a server still takes requests, and who must be told when that changes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto


class DrainKind(Enum):
    """STOP: nothing new is served, idle connections close at once. RETIRE: another worker accepts; idle connections
    stay until their next request, because closing one races with the request its client has just sent.
    """

    STOP = auto()
    RETIRE = auto()


class Drain:
    """One server's drain. Those who wait on clients register a callback that is called when a drain begins."""

    def __init__(self) -> None:
        self.kind: DrainKind | None = None
        self._waiting: dict[Callable[[], None], None] = {}

    def begin(self, kind: DrainKind) -> None:
        """Begin, or turn a RETIRE into a STOP."""
        if self.kind in (kind, DrainKind.STOP):
            return
        self.kind = kind
        for tell in list(self._waiting):
            tell()

    def register(self, tell: Callable[[], None]) -> None:
        self._waiting[tell] = None

    def unregister(self, tell: Callable[[], None]) -> None:
        self._waiting.pop(tell, None)
