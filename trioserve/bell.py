"""What wakes a task that looks after something."""

from __future__ import annotations

import trio


class Bell:
    """Wakes the one task that waits for it; a ring that nobody hears is kept."""

    def __init__(self) -> None:
        self._has_rung = False
        self._lot = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        self._has_rung = True
        self._lot.unpark_all()

    async def wait(self) -> None:
        """Wait for a ring, or make a checkpoint if there was one."""
        if self._has_rung:
            await trio.lowlevel.checkpoint()
        else:
            await self._lot.park()
        self._has_rung = False
