"""A Transport with TLS, over any other: OpenSSL between two buffers in memory, without a task or a lock of its own."""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from ..clock import Clock
from ..errors import ClientDisconnected, WriteTimeout
from ..transport import READ_AHEAD, FilePiece, Transport, Wake
from .parked_reader import ParkedReader
from .stream_transport import CLOSE_PATIENCE, read_at
from .tls_handshake import TLSSession

# What one call of OpenSSL gives at the most is a record, of 16 KiB at the most (RFC 8446 §5.1). As we always ask for as
# much, nothing of a record that was read stays behind in OpenSSL.
RECORD = 16 * 1024

# What is encrypted at a time, which keeps everyone else waiting for some 30 µs.
PIECE = 64 * 1024

# What a file's thread reads at a time: going there and back costs more than encrypting 64 KiB.
FILE_PIECE = 256 * 1024

# A client that streams must not keep all others waiting: the task lets them run after so many bytes, of which a record
# counts at least the sixteenth part. So many small records are also enough to have waiting for the reader.
YIELD_AFTER = 64 * 1024
LEAST_PIECE = YIELD_AFTER // 16


def _nothing() -> None: ...


@dataclass(eq=False, slots=True)
class _Turn:
    """The place in the queue of what is sent piece by piece, and what was sent behind it, which it keeps back."""

    held: list[bytes] = field(default_factory=list)


class TLSTransport:
    """A Transport. Owns ``below``, which carries the records and must be able to send without waiting: if it needs
    tasks for that, it has been given them by ``write_in`` for as long as this lives.

    What comes is decrypted as it comes, at most READ_AHEAD of it before someone receives it: so a client that leaves is
    noticed also if it says so in TLS only.
    """

    __slots__ = (
        "_below",
        "_buffered",
        "_busy",
        "_chunks",
        "_has_ended",
        "_has_failed",
        "_held",
        "_incoming",
        "_is_closed",
        "_left_lot",
        "_on_left",
        "_on_unread",
        "_outgoing",
        "_reader",
        "_stall",
        "_tls",
        "_turn_lot",
        "_turns",
        "has_left",
        "has_waited",
    )

    can_send_files = False

    def __init__(self, below: Transport, session: TLSSession, clock: Clock, stall: float) -> None:
        """``stall`` is how long the peer may take nothing of what TLS says by itself."""
        self._below = below
        self._tls, self._incoming, self._outgoing = session.tls, session.incoming, session.outgoing
        self._reader = ParkedReader(clock)
        self._chunks: deque[bytes] = deque()  # decrypted, and not received yet
        self._buffered = 0
        self._busy = 0  # what was sent and received since the task last let others run, in bytes
        self._stall = stall
        self._turns: list[_Turn] = []
        self._held = 0
        self._turn_lot = trio.lowlevel.ParkingLot()
        self._left_lot = trio.lowlevel.ParkingLot()
        self._on_left: Callable[[], None] = _nothing
        self._on_unread: Callable[[], None] = _nothing
        self._has_ended = False  # nothing more will be decrypted
        self._has_failed = False
        self._is_closed = False
        self.has_waited = False
        self.has_left = below.has_left
        below.tell(left=self._leave, unread=self._look)

    def tell(self, *, left: Callable[[], None], unread: Callable[[], None]) -> None:
        self._on_left, self._on_unread = left, unread

    @property
    def is_broken(self) -> bool:
        return self._has_failed or self._below.is_broken

    @property
    def has_stalled(self) -> bool:
        return self._below.has_stalled

    # Reading

    @property
    def has_unread(self) -> bool:
        return bool(self._chunks) or (not self._has_ended and (self._incoming.pending > 0 or self._below.has_unread))

    def _look(self) -> None:
        """Something has come below."""
        if self._buffered < READ_AHEAD and not self._has_ended:
            self._decrypt()
        if self._reader.task is not None:
            if self._chunks or self._below.has_unread:
                self._reader.wake(None)
        elif self._chunks:
            self._on_unread()

    def _leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self._reader.wake(None)
            self._left_lot.unpark_all()
            self._on_left()
        if self.is_broken:
            self._turn_lot.unpark_all()

    def _decrypt(self) -> None:
        """Take what one read from below gives, as far as there is room for it."""
        incoming = self._incoming
        if not incoming.pending:
            data = self._below.receive_nowait()
            if data is None:
                return
            if not data:
                self._end()
                return
            incoming.write(data)
        # Asking where nothing is would cost an exception.
        while incoming.pending and self._buffered < READ_AHEAD and not self._has_ended:
            self._read_record()

    def _read_record(self) -> None:
        try:
            data = self._tls.read(RECORD)
        except ssl.SSLWantReadError:
            pass  # half a record, or one that was not for us
        except ssl.SSLError:
            # No TLS, or tampered with. OpenSSL has written an alert, which goes out while we still can.
            self._answer()
            self._has_failed = True
            self._end()
            return
        else:
            if data:
                self._chunks.append(data)
                self._buffered += max(len(data), LEAST_PIECE)
            else:
                self._end()
        if self._outgoing.pending:
            self._answer()

    def _end(self) -> None:
        """Nothing more comes, as the peer has said in TLS or below it."""
        self._has_ended = True
        self._leave()

    def _answer(self) -> None:
        """Send what OpenSSL says by itself: new keys, alerts."""
        if not self._below.is_congested:
            with contextlib.suppress(ClientDisconnected):
                self._below.send_nowait(self._outgoing.read(), self._stall)
        elif self._outgoing.pending > READ_AHEAD:
            # It goes with what is sent next; but this peer asks for it again and again, and takes nothing.
            self._has_failed = True
            self._end()

    async def receive(self, deadline: float) -> bytes | Wake:
        while True:
            if self._busy >= YIELD_AFTER and self.has_unread:
                self._busy = 0
                reason = await self._reader.let_others_run()
                if reason is not None:
                    return reason
            data = self.receive_nowait()
            if data is not None:
                return data
            if self._below.has_unread:
                # Much has come, and nothing for us; go on after the others.
                await trio.lowlevel.checkpoint_if_cancelled()
                if trio.current_time() >= deadline:
                    return Wake.DEADLINE
                self._busy = YIELD_AFTER
                continue
            self._busy = 0
            self.has_waited = True
            reader = self._reader
            reader.begin(deadline)
            await trio.lowlevel.wait_task_rescheduled(reader.abort)
            if reader.reason is not None:
                return reader.reason

    def receive_nowait(self) -> bytes | None:
        if not self._chunks and not self._has_ended:
            self._decrypt()
        if self._chunks:
            chunk = self._chunks.popleft()
            size = max(len(chunk), LEAST_PIECE)
            self._buffered -= size
            self._busy += size
            return chunk
        return b"" if self._has_ended else None

    async def wait_left(self) -> None:
        if not self.has_left:
            await self._left_lot.park()

    def wake(self, reason: Wake) -> None:
        self._reader.wake(reason)
        self._left_lot.unpark_all()

    # Writing

    async def send(self, data: bytes, stall: float) -> None:
        if len(data) > PIECE:
            await self._send_long(data, stall)
            return
        self.send_nowait(data, stall)
        if self._busy >= YIELD_AFTER or self._held > READ_AHEAD or self._below.is_congested:
            await self.wait_room()  # cancelling this loses nothing

    async def send_parts(self, parts: Sequence[bytes], stall: float, more: bool) -> None:
        await self.send(b"".join(parts), stall)

    def send_nowait(self, data: bytes, stall: float) -> None:
        if self._has_failed:
            self._raise_if_broken()  # what is broken below says so itself
        self._stall = stall
        self._busy += max(len(data), LEAST_PIECE)
        if self._turns:
            self._turns[-1].held.append(data)
            self._held += len(data)
        else:
            self._put(data)

    def _put(self, data: bytes | memoryview) -> None:
        # In pieces: 16 MiB at once cost five times as much, as OpenSSL's buffer grows by copying.
        for start in range(0, len(data), PIECE):
            self._tls.write(data if len(data) <= PIECE else memoryview(data)[start : start + PIECE])
            self._below.send_nowait(self._outgoing.read(), self._stall)

    async def wait_room(self) -> None:
        while self._held > READ_AHEAD:
            await self._park_for_turn()
        self._busy = 0
        await self._below.wait_room()  # which lets others run, too

    @property
    def is_congested(self) -> bool:
        return self._held > READ_AHEAD or self._below.is_congested

    def write_in(self, nursery: trio.Nursery | None) -> None:
        """Nothing to do: below has its tasks, where it needs any."""

    def _raise_if_broken(self) -> None:
        if self._has_failed or self._below.is_broken:
            if self._below.has_stalled:
                raise WriteTimeout("the client took nothing for too long")
            raise ClientDisconnected("the client has left")

    async def flush(self) -> None:
        while self._turns:
            await self._park_for_turn()
        self._raise_if_broken()
        await self._below.flush()

    # What is too much to be encrypted at once

    async def _send_long(self, data: bytes, stall: float) -> None:
        rest = memoryview(data)
        turn = self._queue(stall)
        try:
            await self._wait_turn(turn)
            while rest:
                piece, rest = rest[:PIECE], rest[PIECE:]
                await self._send_piece(piece)
        finally:
            # Also if this was cancelled: what was given to send goes out whole.
            self._end_turn(turn, bytes(rest))

    async def _send_piece(self, piece: memoryview) -> None:
        self._raise_if_broken()
        self._put(piece)
        await self._below.wait_room()

    async def send_file(self, piece: FilePiece, stall: float) -> None:
        after = b""
        turn = self._queue(stall)
        try:
            await self._wait_turn(turn)
            await self._send_framed(piece)
            after = piece.after
        finally:
            self._end_turn(turn, after)

    async def _send_framed(self, piece: FilePiece) -> None:
        offset, end = piece.offset, piece.offset + piece.count
        try:
            self._put(piece.before)
            while offset < end:
                count = min(FILE_PIECE, end - offset)
                data = await trio.to_thread.run_sync(read_at, piece.file, offset, count)
                if not data:
                    raise EOFError(f"the file ended {end - offset} bytes early")
                for start in range(0, len(data), PIECE):
                    await self._send_piece(memoryview(data)[start : start + PIECE])
                offset += len(data)
        except BaseException:
            # Half a file went out, so nothing may follow it. That is not the client's doing: it has not left.
            self._has_failed = True
            raise

    def _queue(self, stall: float) -> _Turn:
        self._raise_if_broken()
        self._stall = stall
        turn = _Turn()
        self._turns.append(turn)
        return turn

    async def _wait_turn(self, turn: _Turn) -> None:
        while self._turns[0] is not turn:
            await self._park_for_turn()

    async def _park_for_turn(self) -> None:
        self._raise_if_broken()
        await self._turn_lot.park()
        self._raise_if_broken()

    def _end_turn(self, turn: _Turn, rest: bytes) -> None:
        """It has sent what it had, or will not: what was sent behind it may go, after the rest."""
        index = self._turns.index(turn)
        del self._turns[index]
        self._turn_lot.unpark_all()
        if self.is_broken:
            return
        if index:
            # Cancelled before its turn came: all of it waits for the one before.
            self._turns[index - 1].held += [rest, *turn.held]
            self._held += len(rest)
            return
        with contextlib.suppress(ClientDisconnected):  # of which whoever sends next is told
            for piece in (rest, *turn.held):
                self._put(piece)
        self._held -= sum(map(len, turn.held))

    # Closing

    async def send_eof(self) -> None:
        """Nothing to do: TLS has no half to close. A peer of TLS 1.2 answers a close_notify by closing, too."""

    async def lose(self) -> None:
        self._has_failed = True
        self._leave()
        await self._below.lose()

    async def aclose(self, *, reset: bool = False) -> None:
        if self._is_closed:
            return
        # A close_notify says that all was sent.
        is_complete = not (reset or self.is_broken or self._turns)
        self._is_closed = self._has_failed = self._has_ended = self.has_left = True
        # No cycle is left, so OpenSSL's 17 KiB go at once. Collecting took 8 % of a connection with one request.
        self.tell(left=_nothing, unread=_nothing)
        self._below.tell(left=_nothing, unread=_nothing)
        self._reader.close()
        self._left_lot.unpark_all()
        self._turn_lot.unpark_all()
        try:
            if is_complete:
                await self._say_goodbye()
        finally:
            await self._below.aclose(reset=reset)

    async def _say_goodbye(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # the peer has not said it yet, and need not
            self._tls.unwrap()
        patience = trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_PATIENCE)
        with patience, contextlib.suppress(ClientDisconnected):
            self._below.send_nowait(self._outgoing.read(), CLOSE_PATIENCE)
            await self._below.flush()
