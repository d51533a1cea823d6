"""What is sent to a socket of ours: at once as far as the kernel takes it, the rest when the reactor says so."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import trio

from ..clock import Clock, Timer
from ..errors import ClientDisconnected, WriteTimeout
from ..transport import READ_AHEAD, FilePiece
from .progress import SendProgress
from .reactor import Reactor

# A handler that streams, or a client that uploads, without ever waiting must not keep all others waiting: the task lets
# them run after so many bytes, of which a piece counts at least the sixteenth part.
YIELD_AFTER = 64 * 1024
LEAST_PIECE = YIELD_AFTER // 16

# Pieces of a stream that follow each other within this time, in seconds, are held back until so many bytes are
# together, or until the task waits: one write of 64 KiB costs the kernel little more than one of 16.
STREAM_GAP = 0.001
HOLD_BACK = READ_AHEAD

PARTS_AT_ONCE = 64  # of what is unsent, in one system call

FILE_PIECE = 256 * 1024  # what sendfile sends at a time: on a cold file it blocks the loop while the disk works

# What sendfile says of the file, and not of the socket.
_FILE_ERRORS = {errno.EBADF, errno.EINVAL, errno.EIO, errno.EOVERFLOW, errno.ESPIPE}


@dataclass(eq=False, slots=True)
class _Turn:
    """A file's place in the queue, and what was sent behind it, which it keeps back."""

    held: list[bytes] = field(default_factory=list)


class SocketWriter:
    """The sending half of a SocketTransport."""

    __slots__ = (
        "_busy",
        "_clock",
        "_is_held",
        "_last_piece",
        "_out",
        "_out_lot",
        "_progress",
        "_reactor",
        "_socket",
        "_stall",
        "_turns",
        "_unsent",
        "_wants_out",
        "_write_timer",
        "fileno",
        "has_stalled",
        "is_broken",
    )

    can_send_files = True

    def __init__(self, sock: socket.socket, reactor: Reactor, clock: Clock) -> None:
        self._socket = sock
        self.fileno = sock.fileno()
        self._reactor = reactor
        self._clock = clock
        self.is_broken = False
        self.has_stalled = False
        # What the kernel did not take, in order; the files, of which the first is going; the bytes in both; who waits
        # for them to get less.
        self._out: list[bytes | memoryview] = []
        self._turns: list[_Turn] = []
        self._unsent = 0
        self._out_lot: trio.lowlevel.ParkingLot | None = None
        self._wants_out = False
        self._is_held = False  # what is unsent has not been offered to the kernel
        self._last_piece = -inf  # when one came that has more behind it
        self._stall = inf
        self._write_timer: Timer | None = None
        self._progress: SendProgress | None = None
        self._busy = 0  # what was sent and received since the task last let others run, in bytes

    def _break(self) -> None:
        self.is_broken = True
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        self._out.clear()
        for turn in self._turns:
            turn.held.clear()
        self._unsent = 0
        self._is_held = False
        self._disarm()
        unpark(self._out_lot)

    async def send(self, data: bytes, stall: float) -> None:
        self.send_nowait(data, stall)
        if self._unsent > READ_AHEAD or self._busy >= YIELD_AFTER:
            await self.wait_room()  # cancelling this loses nothing: the bytes are in the queue

    def send_nowait(self, data: bytes, stall: float) -> None:
        if self.is_broken:
            self._raise_if_broken()
        self._stall = stall
        size = len(data)
        if self._turns:
            self._turns[-1].held.append(data)
            self._unsent += size
        elif self._out:
            self._out.append(data)
            self._unsent += size
            self.write_out()
        else:
            sent = self._give(data)
            if sent < size:
                self._out.append(memoryview(data)[sent:])
                self._unsent = size - sent
                self._expect_progress()
                self._want_out(True)
        self._busy += max(LEAST_PIECE, size)

    async def send_parts(self, parts: Sequence[bytes], stall: float, more: bool) -> None:
        if self.is_broken:
            self._raise_if_broken()
        self._stall = stall
        length = sum(map(len, parts))
        self._unsent += length
        self._busy += max(length, LEAST_PIECE)
        if self._turns:
            self._turns[-1].held.extend(filter(None, parts))
        else:
            self._out.extend(filter(None, parts))
            if not (self._wants_out or (more and self._is_in_row() and self._unsent < HOLD_BACK)):
                self._flush(progress=True)
                self._raise_if_broken()
            elif not (self._wants_out or self._is_held):
                self._is_held = True
                self._reactor.soon(self)
        if self._unsent > READ_AHEAD or self._busy >= YIELD_AFTER:
            await self.wait_room()

    async def wait_room(self) -> None:
        while self._unsent > READ_AHEAD:
            await self._park_for_out()
        if self._busy >= YIELD_AFTER:
            self._busy = 0
            await trio.lowlevel.checkpoint()

    @property
    def is_congested(self) -> bool:
        return self._unsent > READ_AHEAD

    def write_in(self, nursery: trio.Nursery | None) -> None:
        """Nothing to do: what the kernel does not take at once is ours, not the sender's."""

    def _is_in_row(self) -> bool:
        """Whether a piece follows the one before at once. The first of all goes out: a client may wait for it."""
        now, last = self._clock.now(), self._last_piece
        self._last_piece = now
        return now - last < STREAM_GAP

    def write_out(self) -> None:
        """Give the kernel what was held back."""
        if self._is_held:
            self._flush(progress=True)

    def _give(self, data: bytes) -> int:
        """How many bytes of it the kernel takes. Raises ClientDisconnected."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._break()
            raise ClientDisconnected("the client has left") from None

    def _want_out(self, wants: bool) -> None:
        # Not for good: a unix socket would wake us for every read of its peer.
        if wants is not self._wants_out:
            self._wants_out = wants
            self._reactor.want_out(self.fileno, wants)

    def _flush(self, progress: bool = False) -> None:
        """The kernel may have room: give it what was kept. ``progress``: the peer has taken something."""
        out = self._out
        self._is_held = False
        try:
            while out:
                sent = self._socket.sendmsg(out[:PARTS_AT_ONCE])
                progress = True
                self._unsent -= sent
                if self._unsent:
                    _drop_front(out, sent)
                else:
                    out.clear()
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        if not out:
            self._disarm()
        elif progress:
            self._expect_progress()
        self._want_out(bool(out))
        unpark(self._out_lot)

    def _expect_progress(self) -> None:
        # Made late: nearly every response goes into the kernel's buffer at once.
        progress = self._progress = self._progress or SendProgress(self._socket)
        timer = self._write_timer = self._write_timer or self._clock.timer(self._pass_write_deadline)
        timer.set(progress.begin(trio.current_time(), self._stall))

    def _pass_write_deadline(self) -> None:
        assert self._progress is not None
        assert self._write_timer is not None
        next_look = self._progress.next_look(trio.current_time())
        if next_look is None:
            self.has_stalled = True
            self._break()
        else:
            self._write_timer.set(next_look)

    def _disarm(self) -> None:
        if self._write_timer is not None:
            self._write_timer.set(inf)

    def _raise_if_broken(self) -> None:
        if self.has_stalled:
            raise WriteTimeout(f"the client took nothing for {self._stall:g} s")
        if self.is_broken:
            raise ClientDisconnected("the client has left")

    async def _park_for_out(self) -> None:
        """Wait until some of what is unsent has gone out, or a file. Raises when nothing can any more."""
        if self._out_lot is None:
            self._out_lot = trio.lowlevel.ParkingLot()
        self._busy = 0
        await self._out_lot.park()
        self._raise_if_broken()

    async def flush(self) -> None:
        self._raise_if_broken()
        self.write_out()
        while self._out or self._turns:
            await self._park_for_out()

    # Files

    async def send_file(self, piece: FilePiece, stall: float) -> None:
        self._raise_if_broken()
        self._stall = stall
        turn = _Turn()
        self._turns.append(turn)
        try:
            while self._turns[0] is not turn:
                await self._park_for_out()
            await self._send_framed(piece)
        finally:
            self._end_turn(turn, piece.after)

    async def _send_framed(self, piece: FilePiece) -> None:
        try:
            self._out.append(piece.before)
            self._unsent += len(piece.before)
            if not self._wants_out:
                self._flush(progress=True)
            while self._out:
                await self._park_for_out()
            await self._send_file(piece)
        except BaseException:
            # Nobody knows how much of the file went out, so nothing may follow it. That is not the client's doing: it
            # has not left.
            self.is_broken = True
            self._drop_unsent()
            raise

    async def _send_file(self, piece: FilePiece) -> None:
        offset, end = piece.offset, piece.offset + piece.count
        while offset < end:
            self._raise_if_broken()
            try:
                sent = os.sendfile(self.fileno, piece.file, offset, min(FILE_PIECE, end - offset))
            except BlockingIOError:
                self._expect_progress()
                self._want_out(True)
                await self._park_for_out()
                continue
            except OSError as error:
                if error.errno in _FILE_ERRORS:
                    raise
                self._break()
                continue
            if sent == 0:
                raise EOFError(f"the file ended {end - offset} bytes early")
            offset += sent
            await trio.lowlevel.checkpoint()

    def _end_turn(self, turn: _Turn, after: bytes) -> None:
        """A file has gone out, or will not: what was to follow it may go."""
        index = self._turns.index(turn)
        del self._turns[index]
        if self.is_broken:
            return
        if index:
            # Cancelled before its turn came. Nothing of it went out, so what waits behind it waits for the one before.
            self._turns[index - 1].held += turn.held
            return
        self._unsent += len(after)
        self._out.append(after)
        self._out += turn.held
        self._flush(progress=True)

    async def send_eof(self) -> None:
        with contextlib.suppress(OSError):
            await self.flush()
            self._socket.shutdown(socket.SHUT_WR)


def _drop_front(out: list[bytes | memoryview], count: int) -> None:
    """Drop so many bytes from the front of the parts."""
    gone = 0
    for part in out:
        if count < len(part):
            break
        count -= len(part)
        gone += 1
    del out[:gone]
    if count:
        out[0] = memoryview(out[0])[count:]


def unpark(lot: trio.lowlevel.ParkingLot | None) -> None:
    if lot is not None:
        lot.unpark_all()
