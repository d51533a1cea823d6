"""The listening sockets of a supervisor: one set for all workers, or one for each slot."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from ..config import Config
from ..net.binding import bind_all
from ..net.listeners import Listener, aclose_all


class Sockets:
    """Owns the sockets. The supervisor itself never accepts, and lets none listen before a worker is ready."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._shared: list[Listener] = []
        self._own: dict[int, list[Listener]] = {}

    async def bind(self) -> None:
        """Bind all addresses; raises BindError."""
        self._shared = await bind_all(self._config)

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self._shared if one.url is not None]

    def of_slot(self, number: int) -> Sequence[Listener]:
        """What the workers of a slot listen on, numbered from 0.

        With reuse_port that is a socket of the slot's own for each TCP port, which is kept as long as the slot, because
        closing it resets the connections in its queue.

        Raises BindError.
        """
        if not self._config.reuse_port or number == 0:
            return self._shared
        if number not in self._own:
            with ExitStack() as opened:
                twins = []
                for one in self._shared:
                    twin = one.twin()
                    if twin is not None:
                        opened.callback(twin.close)
                    twins.append(twin or one)
                opened.pop_all()
            self._own[number] = twins
        return self._own[number]

    async def close_slot(self, number: int) -> None:
        await aclose_all([one for one in self._own.pop(number, ()) if one not in self._shared])

    async def aclose(self) -> None:
        """Close all, and remove the files of unix sockets."""
        for number in list(self._own):
            await self.close_slot(number)
        await aclose_all(self._shared)
