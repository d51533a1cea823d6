"""The messages of a WebSocket that wait for the application."""

from __future__ import annotations

from collections import deque


class Inbox:
    """Full with ``max_messages`` or ``max_bytes``, whichever comes first; ``messages`` and ``bytes`` count all ever."""

    __slots__ = ("_max_bytes", "_max_messages", "_waiting", "bytes", "messages", "waiting_bytes")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[str | bytes, int]] = deque()
        self.waiting_bytes = 0
        self.messages = self.bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._max_messages or self.waiting_bytes >= self._max_bytes

    def put(self, data: str | bytes, size: int) -> None:
        """``size`` is in bytes, also of text."""
        self._waiting.append((data, size))
        self.waiting_bytes += size
        self.messages += 1
        self.bytes += size

    def take(self) -> str | bytes:
        data, size = self._waiting.popleft()
        self.waiting_bytes -= size
        return data
