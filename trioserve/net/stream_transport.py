"""A Transport over any ``trio.abc.Stream``: memory streams, channels of other protocols, sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import inf

import trio

from ..clock import Clock
from ..errors import ClientDisconnected, WriteTimeout
from ..transport import READ_AHEAD, FilePiece, Wake
from .parked_reader import ParkedReader
from .progress import SendProgress

# The largest piece that is written under one deadline: "took nothing for 30 s" can only be seen between pieces. Also
# what sendfile sends at a time, as it blocks the whole loop on cold files.
PIECE = 256 * 1024

CLOSE_PATIENCE = 1.0
"""Seconds that a goodbye at closing may take."""

_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


def _nothing() -> None: ...


class StreamTransport:
    """A Transport. ``watch`` must run in a task of its own: it reads ahead, so that a client that leaves is noticed
    while nobody reads.
    """

    def __init__(self, stream: trio.abc.Stream, clock: Clock) -> None:
        self._stream = stream
        self._reader = ParkedReader(clock)
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._watcher_lot = trio.lowlevel.ParkingLot()
        self._left_lot = trio.lowlevel.ParkingLot()
        self._is_sending = False
        self._writers: trio.Nursery | None = None
        self._writer_scope = trio.CancelScope()
        self._queue: deque[bytes | FilePiece] = deque()
        self._unsent = 0
        self._queue_lot = trio.lowlevel.ParkingLot()
        self.has_waited = False
        self.has_left = False
        self.is_broken = False
        self.has_stalled = False
        self._on_left: Callable[[], None] = _nothing
        self._on_unread: Callable[[], None] = _nothing
        self._write_timer = clock.timer(self._pass_write_deadline)
        self._write_scope = trio.CancelScope()
        self._progress = SendProgress.of(stream)
        self._watch_scope = trio.CancelScope()
        self._watch_ended: trio.Event | None = None

    @property
    def can_send_files(self) -> bool:
        return isinstance(self._stream, trio.SocketStream) and hasattr(os, "sendfile")

    # Reading

    async def watch(self) -> None:
        """Read ahead until the peer has left, the transport is closed, or this is cancelled."""
        self._watch_ended = trio.Event()
        try:
            with self._watch_scope:
                await self._read_ahead()
        except _LOST:
            self.is_broken = True
        finally:
            self._watch_ended.set()
        if not self._watch_scope.cancelled_caught:
            self._leave()

    async def _read_ahead(self) -> None:
        receive = self._stream.receive_some
        while data := await receive(READ_AHEAD - self._buffered):
            self._chunks.append(bytes(data))
            self._buffered += len(data)
            if self._reader.task is None:
                self._on_unread()
            self._reader.wake(None)
            while self._buffered >= READ_AHEAD:
                await self._watcher_lot.park()

    def tell(self, *, left: Callable[[], None], unread: Callable[[], None]) -> None:
        self._on_left, self._on_unread = left, unread

    @property
    def has_unread(self) -> bool:
        return bool(self._chunks)

    def _leave(self) -> None:
        if not self.has_left:
            self.has_left = True
            self._reader.wake(None)
            self._left_lot.unpark_all()
            self._queue_lot.unpark_all()
            self._on_left()

    async def receive(self, deadline: float) -> bytes | Wake:
        while True:
            data = self.receive_nowait()
            if data is not None:
                return data
            self.has_waited = True
            reason = await self._reader.wait(deadline)
            if reason is not None:
                return reason

    def receive_nowait(self) -> bytes | None:
        if self._chunks:
            chunk = self._chunks.popleft()
            self._buffered -= len(chunk)
            self._watcher_lot.unpark_all()
            return chunk
        return b"" if self.has_left else None

    async def wait_left(self) -> None:
        if not self.has_left:
            await self._left_lot.park()

    def wake(self, reason: Wake) -> None:
        self._reader.wake(reason)
        self._left_lot.unpark_all()

    # Writing

    async def send(self, data: bytes, stall: float) -> None:
        if self._is_sending or self._writers is not None:
            self.send_nowait(data, stall)
            await self.wait_room()
        else:
            await self._write_all(stall, data)

    def send_nowait(self, data: bytes, stall: float) -> None:
        self._raise_if_broken()
        self._queue.append(data)
        self._unsent += len(data)
        if not self._is_sending:
            assert self._writers is not None  # who else should write it?
            self._is_sending = True
            self._writers.start_soon(self._write_for_others, stall)

    async def send_parts(self, parts: Sequence[bytes], stall: float, more: bool) -> None:
        await self.send(b"".join(parts), stall)

    async def wait_room(self) -> None:
        while self._unsent > READ_AHEAD:
            self._raise_if_broken()
            await self._queue_lot.park()

    @property
    def is_congested(self) -> bool:
        return self._unsent > READ_AHEAD

    def write_in(self, nursery: trio.Nursery | None) -> None:
        self._writers = nursery
        if nursery is None:
            self._writer_scope.shield = False

    async def _write_for_others(self, stall: float) -> None:
        # Shielded until write_in(None): nobody could say goodbye, when all is cancelled, over half a frame.
        self._writer_scope = trio.CancelScope(shield=self._writers is not None)
        with self._writer_scope, contextlib.suppress(ClientDisconnected):  # of which whoever sends next is told
            await self._write_all(stall)

    async def send_file(self, piece: FilePiece, stall: float) -> None:
        if self._is_sending:
            self._queue.append(piece)
            try:
                # To the end, however little waits: the caller closes its file next.
                while not self._is_written(piece):
                    await self._queue_lot.park()
                    self._raise_if_broken()
            except BaseException:
                self._forget(piece)
                raise
        else:
            await self._write_all(stall, piece)

    def _is_written(self, piece: FilePiece) -> bool:
        return piece not in self._queue and not self._is_sending

    def _forget(self, piece: FilePiece) -> None:
        """Its sender has been cancelled and closes the file: the number may be another file's at once."""
        if piece in self._queue:
            self._queue.remove(piece)
        else:
            self.is_broken = True

    def _raise_if_broken(self) -> None:
        if self.has_stalled:
            raise WriteTimeout("the client took nothing for too long")
        if self.is_broken:
            raise ClientDisconnected("the client has left")

    async def _write_all(self, stall: float, first: bytes | FilePiece = b"") -> None:
        """Write this and then whatever is in the queue."""
        self._is_sending = True
        try:
            self._raise_if_broken()
            await self._write(first, stall)
            while self._queue:
                piece = self._queue.popleft()
                await self._write(piece, stall)
                if isinstance(piece, bytes):
                    self._unsent -= len(piece)
                self._queue_lot.unpark_all()
        except _LOST:
            self.is_broken = True
            self._leave()
            raise ClientDisconnected("the client has left") from None
        except WriteTimeout:
            self.is_broken = self.has_stalled = True
            self._leave()
            raise
        except BaseException:
            # Cancelled, or a file that shrank: nobody knows how much went out, so nothing may follow it.
            self.is_broken = True
            raise
        finally:
            self._is_sending = False
            self._queue_lot.unpark_all()

    async def _write(self, piece: bytes | FilePiece, stall: float) -> None:
        if isinstance(piece, FilePiece):
            await self._write_bytes(piece.before, stall)
            await self._write_file(piece, stall)
            await self._write_bytes(piece.after, stall)
        else:
            await self._write_bytes(piece, stall)

    async def _write_bytes(self, data: bytes, stall: float) -> None:
        if len(data) <= PIECE:
            if data:
                await self._write_piece(data, stall)
            return
        with memoryview(data) as view:
            for start in range(0, len(data), PIECE):
                await self._write_piece(view[start : start + PIECE], stall)

    async def _write_piece(self, data: bytes | memoryview, stall: float) -> None:
        with self._stall_limit(stall):
            await self._stream.send_all(data)

    @contextlib.contextmanager
    def _stall_limit(self, stall: float) -> Iterator[None]:
        """Raise WriteTimeout once the peer has taken nothing for so many seconds."""
        with trio.CancelScope() as self._write_scope:
            self._write_timer.set(self._progress.begin(trio.current_time(), stall))
            yield
        self._write_timer.set(inf)
        if self._write_scope.cancelled_caught:
            raise WriteTimeout(f"the client took nothing for {stall:g} s")

    def _pass_write_deadline(self) -> None:
        next_look = self._progress.next_look(trio.current_time())
        if next_look is None:
            self._write_scope.cancel()
        else:
            self._write_timer.set(next_look)

    async def _write_file(self, piece: FilePiece, stall: float) -> None:
        write = self._sendfile if self.can_send_files else self._copy_file
        offset, end = piece.offset, piece.offset + piece.count
        while offset < end:
            self._raise_if_broken()
            count = await write(piece.file, offset, min(PIECE, end - offset), stall)
            if count == 0:
                raise EOFError(f"the file ended {end - offset} bytes early")
            offset += count

    async def _sendfile(self, file: int, offset: int, count: int, stall: float) -> int:
        assert isinstance(self._stream, trio.SocketStream)
        sock = self._stream.socket
        while True:
            await trio.lowlevel.checkpoint()
            self._raise_if_broken()
            try:
                return os.sendfile(sock.fileno(), file, offset, count)
            except BlockingIOError:
                with self._stall_limit(stall):
                    await trio.lowlevel.wait_writable(sock)
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def _copy_file(self, file: int, offset: int, count: int, stall: float) -> int:
        data = await trio.to_thread.run_sync(read_at, file, offset, count)
        self._raise_if_broken()
        await self._write_bytes(data, stall)
        return len(data)

    # Closing

    async def flush(self) -> None:
        while self._is_sending:
            await self._queue_lot.park()
        self._raise_if_broken()

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream) and not self.is_broken:
            with contextlib.suppress(*_LOST, trio.BusyResourceError):
                await self._stream.send_eof()

    async def lose(self) -> None:
        self.is_broken = True
        self._leave()
        await close_by_reset(self._stream)

    async def aclose(self, *, reset: bool = False) -> None:
        self._write_timer.close()
        self.is_broken = True
        if reset:
            _make_close_reset(self._stream)
        self._watch_scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_PATIENCE):
            if self._watch_ended is not None:
                # TLS says goodbye only if nobody is reading.
                await self._watch_ended.wait()
            with contextlib.suppress(*_LOST):  # TLS cannot say goodbye on a connection that was lost
                await self._stream.aclose()
        self.has_left = True
        self._reader.close()
        self._left_lot.unpark_all()
        self._queue_lot.unpark_all()


def read_at(file: int, offset: int, count: int) -> bytes:
    """For a thread: what a file holds there, less at its end. Not by pread, which Windows lacks."""
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, count)


async def close_by_reset(stream: trio.abc.Stream) -> None:
    """Close at once, without a goodbye, in a way the peer cannot mistake for an end."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    _make_close_reset(stream)
    await trio.aclose_forcefully(stream)


def _make_close_reset(stream: trio.abc.Stream) -> None:
    """Let closing send RST. On a stream that is no socket the end of the bytes must speak for itself."""
    if isinstance(stream, trio.SocketStream) and stream.socket.family != getattr(socket, "AF_UNIX", None):
        with contextlib.suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
