"""Descriptors that a worker inherits, on POSIX and on Windows, and how the supervisor reads its pipes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

import trio

from ..types import PlainValues

if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX; `nox -s windows` runs this
    import _winapi
    import base64
    import msvcrt
    from functools import partial

    READER_GONE = OSError
    """What a write to a pipe raises that nobody reads any more: here EINVAL, which means many things."""

    def make_pipe() -> tuple[int, int]:
        """The descriptors of a pipe, (reading end, writing end), which holds 64 KiB as on Linux.

        One of os.pipe() holds 4 KiB. A longer job would block our event loop until the worker's interpreter reads, and
        the reports to a supervisor that is stopped would soon block the worker's.
        """
        reading, writing = _winapi.CreatePipe(None, 64 * 1024)
        return msvcrt.open_osfhandle(reading, os.O_RDONLY), msvcrt.open_osfhandle(writing, os.O_WRONLY)

    def number_for_worker(descriptor: int) -> int:
        """The number by which a worker opens a descriptor of ours that it inherits."""
        return msvcrt.get_osfhandle(descriptor)

    def open_inherited(number: int, *, writes: bool) -> int:
        """In the worker: the descriptor of the number it was given."""
        # What the application starts must not keep the pipe open.
        os.set_handle_inheritable(number, False)
        return msvcrt.open_osfhandle(number, os.O_WRONLY if writes else os.O_RDONLY)

    def inheritance(descriptors: Sequence[int], sockets: Sequence[int]) -> PlainValues:
        """What lets a worker inherit these: the handles, as in STARTUPINFO."""
        handles = [msvcrt.get_osfhandle(one) for one in descriptors]
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        return {"handle_list": handles}

    class _Reader(trio.abc.ReceiveStream):
        """Reads in a thread, since pipes of os.pipe() cannot be waited for here.

        The thread ends with the worker, whose end of the pipe closes then.
        """

        def __init__(self, descriptor: int) -> None:
            self._descriptor = descriptor
            self._limiter = trio.CapacityLimiter(1)

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            read = partial(os.read, self._descriptor, max_bytes or 65536)
            return await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._limiter)

        async def aclose(self) -> None:
            if not self._limiter.borrowed_tokens:  # else a thread still reads, and the number must not be used again
                os.close(self._descriptor)
            await trio.lowlevel.checkpoint()

    def open_reader(descriptor: int) -> trio.abc.ReceiveStream:
        """A stream of what comes through a pipe; owns the descriptor."""
        return _Reader(descriptor)

    def share_socket(bound: trio.socket.SocketType, pid: int) -> str | None:
        """A duplicate for the process of this id, as text: a socket that two processes had inherited would belong to
        two event loops. Raises OSError if there is no such process.
        """
        return base64.b64encode(bound.share(pid)).decode("ascii")

    def open_shared(shared: str) -> socket.socket:
        return socket.fromshare(base64.b64decode(shared))

else:
    READER_GONE = BrokenPipeError
    """What a write to a pipe raises that nobody reads any more."""

    make_pipe = os.pipe

    def number_for_worker(descriptor: int) -> int:
        """The number by which a worker opens a descriptor of ours that it inherits."""
        return descriptor

    def open_inherited(number: int, *, writes: bool) -> int:
        """In the worker: the descriptor of the number it was given."""
        # What the application starts must not keep the pipe open.
        os.set_inheritable(number, False)
        if writes:
            os.set_blocking(number, False)  # a supervisor that is stopped must not stop its workers
        return number

    def inheritance(descriptors: Sequence[int], sockets: Sequence[int]) -> PlainValues:
        """What lets a worker inherit these: the descriptors, as an argument of Popen."""
        return {"pass_fds": (*descriptors, *sockets)}

    def open_reader(descriptor: int) -> trio.abc.ReceiveStream:
        """A stream of what comes through a pipe; owns the descriptor."""
        return trio.lowlevel.FdStream(descriptor)

    def share_socket(bound: trio.socket.SocketType, pid: int) -> str | None:
        """None: here a worker inherits its sockets."""
        return None

    def open_shared(shared: str) -> socket.socket:
        raise AssertionError("sockets are inherited here")
