"""One epoll for all sockets of a server on Linux, edge-triggered.

Trio's sockets register with epoll for every single wait and cancel through a scope; that is more than half of what a
small request costs. Here a socket is registered once, for its life; one task waits for our epoll, through Trio's, and
tells the sockets' owners what has happened. The same events say that a client has left while its handler runs.
"""

from __future__ import annotations

import select
from typing import Protocol

import trio

# Other systems have no epoll; there nothing of this is used.
_IN: int = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)
_IN_AND_OUT: int = _IN | getattr(select, "EPOLLOUT", 0)
ERROR: int = getattr(select, "EPOLLERR", 0)
RESET: int = getattr(select, "EPOLLHUP", 0) | ERROR
LEFT: int = RESET | getattr(select, "EPOLLRDHUP", 0)
READABLE: int = LEFT | getattr(select, "EPOLLIN", 0)
WRITABLE: int = RESET | getattr(select, "EPOLLOUT", 0)

SUPPORTED = hasattr(select, "epoll")

BATCH = 1023
"""Events that are taken from the kernel at a time."""


class Watched(Protocol):
    """Who hears of a socket's events, once each; ``handle`` must not wait."""

    fileno: int

    def handle(self, events: int) -> None: ...


class Writer(Protocol):
    """Who keeps something back to write it later; ``write_out`` must not wait."""

    def write_out(self) -> None: ...


class Reactor:
    """The epoll of one server's sockets. ``run`` is its task; ``close`` it when every transport is closed."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._transports: dict[int, Watched] = {}
        self._gone: set[int] = set()  # unregistered since the last look
        self._due: list[Writer] = []
        self._waiting: trio.lowlevel.Task | None = None  # for something due

    def register(self, transport: Watched) -> None:
        self._epoll.register(transport.fileno, _IN)
        self._transports[transport.fileno] = transport

    def unregister(self, transport: Watched) -> None:
        del self._transports[transport.fileno]
        self._gone.add(transport.fileno)
        if not self._epoll.closed:
            self._epoll.unregister(transport.fileno)

    def want_out(self, fileno: int, wants: bool) -> None:
        """Also tell, or no longer, when the kernel has room for more."""
        if not self._epoll.closed:
            self._epoll.modify(fileno, _IN_AND_OUT if wants else _IN)

    def soon(self, writer: Writer) -> None:
        """Call ``write_out`` once every task that can run now has done so until it waits."""
        self._due.append(writer)
        if self._waiting is not None:
            task, self._waiting = self._waiting, None
            trio.lowlevel.reschedule(task)

    @trio.lowlevel.enable_ki_protection
    async def _write_soon(self) -> None:
        while True:
            if not self._due:
                self._waiting = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            due, self._due = self._due, []
            for writer in due:
                writer.write_out()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def run(self) -> None:
        """Tell transports what has happened to their sockets, and write what they keep back, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_soon, name="trioserve writer")
            await self._watch()

    @trio.lowlevel.enable_ki_protection
    async def _watch(self) -> None:
        fileno = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(fileno)
            # Under load there is more at every turn of Trio's loop. To look is cheaper than to ask to be told.
            while self.poll():
                await trio.lowlevel.checkpoint()

    # A KeyboardInterrupt between the poll and the last reschedule would lose events, which come only once.
    @trio.lowlevel.enable_ki_protection
    def poll(self) -> bool:
        """Look at all that has happened, without waiting; returns whether anything has."""
        found = False
        # So many looks see all that has happened before. What happens meanwhile is left to the next: clients that send
        # without end must not keep every task waiting.
        for _ in range(len(self._transports) // BATCH + 1):
            self._gone.clear()
            events = self._epoll.poll(0, BATCH)
            found = found or bool(events)
            for fileno, what in events:
                # Who hears of one event may close the socket of another, and the number may be somebody else's at once.
                if fileno not in self._gone:
                    self._transports[fileno].handle(what)
            if len(events) < BATCH:
                break
        return found

    def close(self) -> None:
        """Watch nothing any more. Transports that are still open can be closed."""
        self._epoll.close()
