"""What goes to a WebSocket's client: in order, and in few writes."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

from ..transport import READ_AHEAD, Channel

# A message is written at once if something has come from the client since the last, or if that was so many seconds ago.
# Others wait until the next turn of the event loop for those that may follow before the application waits: a write
# costs 10 µs or more, a message that is gathered 1, and waking the task that writes them 5.
SOON = 0.001

# As many may be gathered before others get their turn.
GATHERED_AT_MOST = 64


class Outbound:
    """The frames that are to be sent. ``ring`` wakes the task that calls ``write``, which it must do once it is awake.

    ``stall`` is how many seconds the client may take nothing.
    """

    def __init__(self, channel: Channel, stall: float, ring: Callable[[], None]) -> None:
        self._channel = channel
        self._stall = stall
        self._ring = ring
        self._gathered: list[bytes] = []
        self._size = 0  # of these, in bytes
        self.is_full = False
        """Enough is gathered: others shall have their turn before the next message, and this be written in it."""
        # When the last message was sent: -inf if something has come since, inf if nobody looked at the clock.
        self._sent_at = -inf

    def note_received(self) -> None:
        """Something has come from the client: what the application sends next may be the answer."""
        self._sent_at = -inf

    def send(self, frame: bytes) -> None:
        """Send a message, now or in the next turn of the event loop. Raises ClientDisconnected."""
        if self._sent_at == -inf:
            self._sent_at = inf
            self.send_now(frame)
            return
        now = trio.current_time()
        is_soon, self._sent_at = now - self._sent_at < SOON, now
        if self._gathered or is_soon:
            self._gather(frame)
        else:
            self.send_now(frame)

    def _gather(self, frame: bytes) -> None:
        if self._channel.is_broken or len(frame) >= READ_AHEAD:
            self.send_now(frame)
            return
        if not self._gathered:
            self._ring()
        self._gathered.append(frame)
        self._size += len(frame)
        self.is_full = len(self._gathered) >= GATHERED_AT_MOST
        if self._size >= READ_AHEAD:
            self.write()

    def send_now(self, frame: bytes) -> None:
        """Send a frame behind all before it. Raises ClientDisconnected."""
        if self._gathered and len(frame) < READ_AHEAD:
            self._gathered.append(frame)
            self.write()
        else:
            self.write()
            self._channel.send_nowait(frame, self._stall)

    def write(self) -> None:
        """Send what was gathered. Raises ClientDisconnected."""
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._size, self.is_full = 0, False
            self._channel.send_nowait(b"".join(gathered), self._stall)
