"""When a WebSocket pings its client, and when it gives up waiting for the pong. Knows the time by being told."""

from __future__ import annotations

from math import inf

from ..config import Config


class Heartbeat:
    """``deadline`` is when ``beat`` is due, on Trio's clock."""

    def __init__(self, config: Config, now: float) -> None:
        self._interval = inf if config.ws_ping_interval is None else config.ws_ping_interval
        self._timeout = config.ws_ping_timeout
        self._pings = 0
        self._awaited: bytes | None = None  # the payload of the pong that is due
        self._left: float | None = None  # of the time for it, while the clock stands still
        self._has_progress = False
        self.deadline = now + self._interval

    def beat(self, now: float, *, in_frame: bool) -> bytes | None:
        """The deadline has passed: return the payload of a ping to send, b"" for nothing to do, None to give up.

        ``in_frame``: the client is in the middle of a frame, before whose end no pong can come.
        """
        if self._left is not None:
            # No pong is waited for, but a client that has vanished behind a closed window answers with a reset.
            self.deadline = now + self._interval
            return self._awaited
        if self._awaited is None:
            self._pings += 1
            payload = self._pings.to_bytes(4, "big")
            if self._timeout is None:
                self.deadline = now + self._interval
            else:
                self._awaited = payload
                self._set_pong_deadline(now, self._timeout)
            return payload
        if in_frame and self._has_progress and self._timeout is not None:
            self._set_pong_deadline(now, self._timeout)
            return b""
        return None

    def _set_pong_deadline(self, now: float, patience: float) -> None:
        self.deadline = now + patience
        self._has_progress = False

    def take_progress(self) -> None:
        """Something has come from the client."""
        self._has_progress = True

    def take_pong(self, payload: bytes, now: float) -> None:
        if payload == self._awaited:
            self._awaited = self._left = None
            self.deadline = now + self._interval

    def stop(self, now: float) -> None:
        """Let the time for a pong stand still: none could be seen, because reading has stopped."""
        if self._left is None and self._awaited is not None:
            self._left = self.deadline - now
            self.deadline = now + self._interval

    def go_on(self, now: float) -> None:
        """Let the clock run again, if it stands still."""
        if self._left is not None:
            self.deadline = now + self._left
            self._left = None
