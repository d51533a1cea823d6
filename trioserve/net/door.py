"""How many connections a server lets in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from sys import maxsize

import trio

_logger = logging.getLogger("trioserve.error")


WARNING_PAUSE = 60.0
"""Seconds between two warnings that the server is full: under load it is so again and again."""


class Door:
    """Shared by all listeners of a server.

    limit: connections that may be open at once; None for no limit. More wait in the kernel's queue. It may be one more
        for each listener that is no socket of ours: nobody knows how many wait there.
    count: how many are open.
    refused: called with how many were refused, because the process is out of descriptors.
    """

    def __init__(
        self,
        limit: int | None = None,
        count: Callable[[], int] = lambda: 0,
        refused: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._limit = limit
        self._count = count
        self.refused = refused
        self._waiting = trio.lowlevel.ParkingLot()
        self._warned_at = -inf

    def room(self) -> int:
        """How many may come in now."""
        return maxsize if self._limit is None else max(0, self._limit - self._count())

    async def wait_room(self) -> None:
        """Wait until one may come in; without a checkpoint if so."""
        if self.room():
            return
        now = trio.current_time()
        if now - self._warned_at >= WARNING_PAUSE:
            self._warned_at = now
            _logger.warning("limit_connections is reached: %s are open, others wait", self._limit)
        while not self.room():
            await self._waiting.park()

    def left(self) -> None:
        """A connection has ended."""
        if self._waiting and self.room():
            self._waiting.unpark_all()
