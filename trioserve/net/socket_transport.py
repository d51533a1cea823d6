"""A Transport over a socket of ours on Linux, without a task, a cancel scope or a registration per wait."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

import trio

from ..clock import Clock
from ..transport import READ_AT_ONCE, Wake
from .parked_reader import ParkedReader
from .reactor import ERROR, LEFT, READABLE, RESET, WRITABLE, Reactor
from .socket_writer import LEAST_PIECE, YIELD_AFTER, SocketWriter, unpark


def _nothing() -> None: ...


class SocketTransport(SocketWriter):
    """A Transport. Owns the socket, which must be a connected, non-blocking stream socket."""

    __slots__ = (
        "_is_closed",
        "_left_lot",
        "_on_left",
        "_on_unread",
        "_readable",
        "_reader",
        "has_left",
        "has_waited",
        "hears_last_words",
    )

    def __init__(self, sock: socket.socket, reactor: Reactor, clock: Clock) -> None:
        super().__init__(sock, reactor, clock)
        self._reader = ParkedReader(clock)
        self._left_lot: trio.lowlevel.ParkingLot | None = None
        self._readable = True  # until recv says otherwise
        self.has_waited = False
        self.has_left = False
        self.hears_last_words = False  # what came before a reset counts
        self._is_closed = False
        self._on_left: Callable[[], None] = _nothing
        self._on_unread: Callable[[], None] = _nothing
        reactor.register(self)

    def handle(self, events: int) -> None:
        """Take note of what the reactor has seen."""
        if events & READABLE:
            # After an error nothing of what came before it counts. After a mere EPOLLHUP all does: a unix socket says
            # so when its peer has closed, any socket when both sides have said that they will send no more.
            self._readable = not events & ERROR or self.hears_last_words
            if self._reader.task is not None:
                self._reader.wake(None)
            elif not events & LEFT:
                self._on_unread()
        if events & LEFT:
            if events & RESET:
                self.is_broken = True
            self._leave()
        if events & WRITABLE and self._wants_out:
            self._flush()

    def tell(self, *, left: Callable[[], None], unread: Callable[[], None]) -> None:
        self._on_left, self._on_unread = left, unread

    @property
    def has_unread(self) -> bool:
        return self._readable

    def _leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self._reader.wake(None)
            unpark(self._left_lot)
            self._on_left()
        if self.is_broken:
            self._drop_unsent()

    def _break(self) -> None:
        super()._break()
        self._leave()

    # Reading

    async def receive(self, deadline: float) -> bytes | Wake:
        while True:
            if self._busy >= YIELD_AFTER and self._readable:
                self._busy = 0
                reason = await self._reader.let_others_run()
                if reason is not None:
                    return reason
            data = self.receive_nowait()
            if data is not None:
                return data
            self._busy = 0
            self.has_waited = True
            reader = self._reader
            reader.begin(deadline)
            await trio.lowlevel.wait_task_rescheduled(reader.abort)
            if reader.reason is not None:
                return reader.reason

    def receive_nowait(self) -> bytes | None:
        if self._readable:
            self._readable = False
            try:
                data = self._socket.recv(READ_AT_ONCE)
            except BlockingIOError:
                pass
            except OSError:
                self._break()
            else:
                if data:
                    size = len(data)
                    self._busy += max(LEAST_PIECE, size)
                    # A short read has emptied the socket, and new bytes would be announced. Not so an end that came
                    # together with them: its event is behind us.
                    self._readable = size == READ_AT_ONCE or self.has_left
                    return data
                self._leave()
        return b"" if self.has_left else None

    async def wait_left(self) -> None:
        if not self.has_left:
            if self._left_lot is None:
                self._left_lot = trio.lowlevel.ParkingLot()
            await self._left_lot.park()

    def wake(self, reason: Wake) -> None:
        self._reader.wake(reason)
        unpark(self._left_lot)

    # Closing

    async def lose(self) -> None:
        self._break()
        await self.aclose(reset=True)

    async def aclose(self, *, reset: bool = False) -> None:
        if self._is_closed:
            return
        self._is_closed = self.is_broken = self.has_left = True
        self._readable = self._is_held = False
        if self._write_timer is not None:
            self._write_timer.close()
        # Before closing, and without a checkpoint in between: the number may be another connection's at once.
        self._reactor.unregister(self)
        with contextlib.suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                # A child process that was forked meanwhile may hold the socket, too; closing would then say nothing.
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.close()
        # Who was told of it also holds it: let go, so that both are freed now and not by the garbage collector.
        self._on_left = self._on_unread = _nothing
        unpark(self._left_lot)
        unpark(self._out_lot)
