"""What a WebSocket's client has sent, on its way to the application."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..config import Config
from .frames import Control, Frames, Kind

# What is taken apart at a time, in frames and in bytes of messages: a packet of 64 KiB can hold ten thousand pings or
# inflate to 64 MiB, and all others wait meanwhile.
FRAMES_AT_ONCE = 64
BYTES_AT_ONCE = 1024 * 1024


class Inbound:
    """Messages that wait for the application, and what was read but not taken apart, because too many do.

    ``messages`` and ``bytes`` count all messages so far; ``pongs`` are the payloads of pings that are to be answered.
    """

    def __init__(self, frames: Frames, config: Config) -> None:
        self._frames = frames
        self._max_messages, self._max_bytes = config.ws_max_queue, config.ws_max_size
        self._waiting: deque[tuple[str | bytes, int]] = deque()
        self._waiting_bytes = 0
        self._held: Control | None = None  # the failure behind the messages that wait
        self._is_discarding = False
        self.has_more = True
        """What was read has not all been taken apart."""
        self.awaits_application = False
        """Nothing more can be taken apart until a message is taken."""
        self.pongs: list[bytes] = []
        self.messages = self.bytes = 0

    def __bool__(self) -> bool:
        """Whether a message waits."""
        return bool(self._waiting)

    def feed(self, data: bytes) -> None:
        self._frames.feed(data)
        self.has_more = True

    def take(self) -> str | bytes:
        data, size = self._waiting.popleft()
        self._waiting_bytes -= size
        if self.awaits_application:
            self.awaits_application = not self._is_discarding and self._has_enough()
        return data

    def _has_enough(self) -> bool:
        return (
            len(self._waiting) >= self._max_messages
            or self._waiting_bytes >= self._max_bytes
            or (self._held is not None and len(self._waiting) > 0)
        )

    @property
    def is_full(self) -> bool:
        """Nothing more can be taken apart until a message is taken, or pongs are sent."""
        return self.awaits_application or (len(self.pongs) >= FRAMES_AT_ONCE and not self._is_discarding)

    def take_apart(self, take_control: Callable[[Control], None]) -> None:
        """Take what was read apart, until it is full or all others shall have their turn."""
        enough = self._frames.produced + BYTES_AT_ONCE
        for _ in range(FRAMES_AT_ONCE):
            if self.is_full or self._frames.produced >= enough:
                return
            event, self._held = self._held or self._frames.next_event(), None
            if event is None:
                self.has_more = False
                return
            if not isinstance(event, Control):
                self._put(event, self._frames.size)
            elif event.kind is Kind.FAILURE and self._waiting and not self._is_discarding:
                # What came before it is answered before we say that nothing more is understood.
                self._held = event
                self.awaits_application = True
            else:
                take_control(event)

    def _put(self, data: str | bytes, size: int) -> None:
        self._waiting.append((data, size))
        self._waiting_bytes += size
        self.count(size)
        self.awaits_application = len(self._waiting) >= self._max_messages or self._waiting_bytes >= self._max_bytes

    def count(self, size: int) -> None:
        """A message of so many bytes was read, also if it did not have to wait here."""
        self.messages += 1
        self.bytes += size

    def discard(self) -> None:
        """Take no more messages, only what ends the WebSocket; those that wait may still be taken."""
        self._is_discarding = True
        self.awaits_application = False
        self._frames.discard_messages()
