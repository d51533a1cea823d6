"""A Transport over a socket of ours on Linux, without a task, a cancel scope or a registration per wait."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from math import inf

import trio

from ..clock import Clock
from ..errors import ClientDisconnected, WriteTimeout
from ..transport import READ_AHEAD, FilePiece, Wake
from .reactor import LEFT, READABLE, RESET, WRITABLE, Reactor

RECEIVE_SIZE = 64 * 1024

# A handler that streams without ever waiting must not keep all others waiting.
YIELD_AFTER_BYTES = 64 * 1024
YIELD_AFTER_PIECES = 16

FILE_PIECE = 256 * 1024
"""What sendfile sends at a time: on a cold file it blocks the loop for as long as the disk takes."""


def _nothing() -> None: ...


class SocketTransport:
    """A Transport. Owns the socket, which must be a connected, non-blocking stream socket."""

    __slots__ = (
        "_bytes_sent",
        "_file_is_going",
        "_has_reset",
        "_held",
        "_is_closed",
        "_left_lot",
        "_on_left",
        "_out",
        "_out_lot",
        "_pieces_sent",
        "_reactor",
        "_read_timer",
        "_readable",
        "_reader",
        "_socket",
        "_stall",
        "_stalled",
        "_unsent",
        "_wake_reason",
        "_wants_out",
        "_write_timer",
        "fileno",
        "has_left",
        "has_waited",
        "is_broken",
    )

    can_send_files = True

    def __init__(self, sock: socket.socket, reactor: Reactor, clock: Clock) -> None:
        self._socket = sock
        self.fileno = sock.fileno()
        self._reactor = reactor
        self._read_timer = clock.timer(self._pass_read_deadline)
        self._write_timer = clock.timer(self._pass_write_deadline)
        self._reader: trio.lowlevel.Task | None = None
        self._wake_reason: Wake | None = None
        self._left_lot: trio.lowlevel.ParkingLot | None = None
        self._readable = True  # until recv says otherwise
        self.has_waited = False
        self.has_left = False
        self.is_broken = False
        self._is_closed = False
        self._on_left: Callable[[], None] = _nothing
        # What the kernel did not take, in order; bytes that a running file keeps back; who waits for it to get less.
        self._out: deque[bytes | memoryview] = deque()
        self._held: deque[bytes | memoryview] = deque()
        self._unsent = 0
        self._out_lot: trio.lowlevel.ParkingLot | None = None
        self._wants_out = False
        self._file_is_going = False
        self._stall = inf
        self._stalled = False
        self._pieces_sent = 0
        self._bytes_sent = 0
        reactor.register(self)

    def handle(self, events: int) -> None:
        """Take note of what the reactor has seen."""
        if events & READABLE:
            self._readable = True
            if self._reader is not None:
                self._wake_reader(None)
        if events & LEFT:
            if events & RESET:
                self.is_broken = True
            self._leave()
        if events & WRITABLE and self._wants_out:
            self._flush()

    def tell_when_left(self, tell: Callable[[], None]) -> None:
        self._on_left = tell

    def _leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self._wake_reader(None)
            _unpark(self._left_lot)
            self._on_left()
        if self.is_broken:
            self._drop_unsent()

    def _drop_unsent(self) -> None:
        self._out.clear()
        self._held.clear()
        self._unsent = 0
        self._write_timer.set(inf)
        _unpark(self._out_lot)

    # Reading

    async def receive(self, deadline: float) -> bytes | Wake:
        while True:
            if self._readable and not self.is_broken:
                try:
                    data = self._socket.recv(RECEIVE_SIZE)
                except BlockingIOError:
                    self._readable = False
                except OSError:
                    self.is_broken = True
                    self._leave()
                else:
                    # A short read has emptied the socket, and new bytes would be announced. Not so an end that came
                    # together with them: its event is behind us.
                    self._readable = len(data) == RECEIVE_SIZE or self.has_left or not data
                    if not data:
                        self._leave()
                    return data
            if self.is_broken:
                return b""
            if not self._readable:
                reason = await self._wait(deadline)
                if reason is not None:
                    return reason

    async def _wait(self, deadline: float) -> Wake | None:
        self._pieces_sent = self._bytes_sent = 0  # whoever waits lets others run
        self.has_waited = True
        self._reader = trio.lowlevel.current_task()
        self._read_timer.set(deadline)
        await trio.lowlevel.wait_task_rescheduled(self._abort_wait)
        return self._wake_reason

    def _abort_wait(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_reader(self, reason: Wake | None) -> None:
        if self._reader is not None:
            reader, self._reader, self._wake_reason = self._reader, None, reason
            trio.lowlevel.reschedule(reader)

    def _pass_read_deadline(self) -> None:
        self._wake_reader(Wake.DEADLINE)

    async def wait_left(self) -> None:
        if not self.has_left:
            if self._left_lot is None:
                self._left_lot = trio.lowlevel.ParkingLot()
            await self._left_lot.park()

    def wake(self, reason: Wake) -> None:
        self._wake_reader(reason)
        _unpark(self._left_lot)

    # Writing

    async def send(self, data: bytes, stall: float) -> None:
        self._raise_if_broken()
        self._stall = stall
        if self._file_is_going:
            self._held.append(data)
            self._unsent += len(data)
        elif self._unsent:
            self._out.append(data)
            self._unsent += len(data)
        else:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._break()
                raise ClientDisconnected("the client has left") from None
            if sent < len(data):
                self._keep(memoryview(data)[sent:])
        if self._unsent > READ_AHEAD:
            await self._wait_for_room(READ_AHEAD)
        else:
            self._pieces_sent += 1
            self._bytes_sent += len(data)
            if self._pieces_sent >= YIELD_AFTER_PIECES or self._bytes_sent >= YIELD_AFTER_BYTES:
                await self._yield()

    def _keep(self, rest: bytes | memoryview) -> None:
        """Keep what the kernel did not take until it says that there is room."""
        self._out.appendleft(rest)
        self._unsent += len(rest)
        self._write_timer.set(trio.current_time() + self._stall)
        self._want_out(True)

    def _want_out(self, wants: bool) -> None:
        # Not for good: a unix socket would wake us for every read of its peer.
        if wants is not self._wants_out:
            self._wants_out = wants
            self._reactor.want_out(self.fileno, wants)

    def _flush(self) -> None:
        """The kernel has room: give it what was kept."""
        progress = False
        try:
            while self._out:
                sent = self._socket.send(self._out[0])
                progress = True
                self._unsent -= sent
                if sent == len(self._out[0]):
                    self._out.popleft()
                else:
                    self._out[0] = memoryview(self._out[0])[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        if self._out:
            if progress:
                self._write_timer.set(trio.current_time() + self._stall)
        else:
            self._write_timer.set(inf)
            self._want_out(False)
        _unpark(self._out_lot)

    def _break(self) -> None:
        self.is_broken = True
        self._leave()

    def _pass_write_deadline(self) -> None:
        self._stalled = True
        self._break()

    def _raise_if_broken(self) -> None:
        if self._stalled:
            raise WriteTimeout(f"the client took nothing for {self._stall:g} s")
        if self.is_broken:
            raise ClientDisconnected("the client has left")

    async def _wait_for_room(self, limit: int) -> None:
        """Wait until at most this many bytes are unsent. Cancelling it loses none of them."""
        while self._unsent > limit:
            await self._park_for_out()
            self._raise_if_broken()

    async def _park_for_out(self) -> None:
        if self._out_lot is None:
            self._out_lot = trio.lowlevel.ParkingLot()
        self._pieces_sent = self._bytes_sent = 0
        await self._out_lot.park()

    async def _yield(self) -> None:
        self._pieces_sent = self._bytes_sent = 0
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        await self._wait_for_room(0)

    # Files

    async def send_file(self, piece: FilePiece, stall: float) -> None:
        while self._file_is_going:
            await self._park_for_out()
        await self.send(piece.before, stall)
        self._file_is_going = True
        try:
            await self._wait_for_room(0)
            await self._send_file(piece)
        except BaseException:
            # Nobody knows how much of the file went out, so nothing may follow it.
            self._break()
            raise
        finally:
            self._file_is_going = False
            self._release_held(piece.after)

    async def _send_file(self, piece: FilePiece) -> None:
        offset, end = piece.offset, piece.offset + piece.count
        while offset < end:
            self._raise_if_broken()
            try:
                sent = os.sendfile(self.fileno, piece.file, offset, min(FILE_PIECE, end - offset))
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError:
                self._break()
                continue
            if sent == 0:
                raise EOFError(f"the file ended {end - offset} bytes early")
            offset += sent
            await trio.lowlevel.checkpoint()

    async def _wait_writable(self) -> None:
        self._write_timer.set(trio.current_time() + self._stall)
        self._want_out(True)
        await self._park_for_out()

    def _release_held(self, after: bytes) -> None:
        """A file has gone out, or failed: what was to follow it may go."""
        if self.is_broken:
            self._drop_unsent()
            return
        self._unsent += len(after)
        self._out.append(after)
        self._out += self._held
        self._held.clear()
        self._want_out(True)
        self._flush()

    # Closing

    async def send_eof(self) -> None:
        if not self.is_broken:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self, *, reset: bool = False) -> None:
        if self._is_closed:
            return
        self._is_closed = self.is_broken = True
        self._read_timer.close()
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
        self._wake_reader(None)
        _unpark(self._left_lot)
        _unpark(self._out_lot)


def _unpark(lot: trio.lowlevel.ParkingLot | None) -> None:
    if lot is not None:
        lot.unpark_all()
