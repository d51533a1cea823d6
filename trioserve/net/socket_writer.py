"""What is sent to a socket of ours: at once as far as the kernel takes it, the rest when the reactor says so."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

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

FILE_PIECE = 256 * 1024  # what sendfile sends at a time: on a cold file it blocks the loop while the disk works

# What sendfile says of the file, and not of the socket.
_FILE_ERRORS = {errno.EBADF, errno.EINVAL, errno.EIO, errno.EOVERFLOW, errno.ESPIPE}


_Data = TypeVar("_Data")


@dataclass(eq=False, slots=True)
class _Turn:
    """A file's place in the queue, and what was sent behind it, which it keeps back."""

    held: list[bytes] = field(default_factory=list)


class SocketWriter:
    """The sending half of a SocketTransport."""

    __slots__ = (
        "_busy",
        "_clock",
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
        if self._turns or self._out:
            (self._turns[-1].held if self._turns else self._out).append(data)
            self._unsent += size
        else:
            sent = self._give(self._socket.send, data)
            if sent < size:
                self._keep_rest((data,), size, sent)
        self._busy += size if size > LEAST_PIECE else LEAST_PIECE

    async def send_parts(self, parts: Sequence[bytes], stall: float) -> None:
        if self.is_broken:
            self._raise_if_broken()
        self._stall = stall
        length = sum(map(len, parts))
        if self._turns or self._out:
            (self._turns[-1].held if self._turns else self._out).extend(filter(None, parts))
            self._unsent += length
        else:
            sent = self._give(self._socket.sendmsg, parts)
            if sent < length:
                self._keep_rest(parts, length, sent)
        self._busy += max(length, LEAST_PIECE)
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

    def _give(self, send: Callable[[_Data], int], data: _Data) -> int:
        """How many bytes of it the kernel takes. Raises ClientDisconnected."""
        try:
            return send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._break()
            raise ClientDisconnected("the client has left") from None

    def _keep_rest(self, parts: Sequence[bytes], length: int, sent: int) -> None:
        """Keep what the kernel did not take of parts of this length together."""
        self._unsent += length - sent
        for part in parts:
            if sent < len(part):
                self._out.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))
        self._expect_progress()
        self._want_out(True)

    def _want_out(self, wants: bool) -> None:
        # Not for good: a unix socket would wake us for every read of its peer.
        if wants is not self._wants_out:
            self._wants_out = wants
            self._reactor.want_out(self.fileno, wants)

    def _flush(self, progress: bool = False) -> None:
        """The kernel may have room: give it what was kept. ``progress``: the peer has taken something."""
        out, gone = self._out, 0
        try:
            while gone < len(out):
                sent = self._socket.send(out[gone])
                progress = True
                self._unsent -= sent
                if sent == len(out[gone]):
                    gone += 1
                else:
                    out[gone] = memoryview(out[gone])[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        del out[:gone]
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
            if piece.before:
                self._out.append(piece.before)
                self._unsent += len(piece.before)
                self._flush()
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


def unpark(lot: trio.lowlevel.ParkingLot | None) -> None:
    if lot is not None:
        lot.unpark_all()
