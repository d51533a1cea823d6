"""A descriptor that is kept for the moment in which there is no other: to answer those who would wait for nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from types import TracebackType
from typing import Self

_TEXT = b"The server is busy.\n"
BUSY_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"Retry-After: 1\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"%s"
) % (len(_TEXT), _TEXT)
"""The whole response, whatever the request is."""

REFUSED_AT_ONCE = 64
"""Connections that are refused before others have their turn."""


class Reserve:
    """One open descriptor; a context manager."""

    def __init__(self) -> None:
        self._file: int | None = None

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give()

    def refuse_waiting(self, acceptor: socket.socket, answer: bytes) -> int:
        """Accept connections that wait, answer each and close it; returns how many."""
        refused = 0
        while refused < REFUSED_AT_ONCE:
            self._give()
            try:
                sock, _ = acceptor.accept()
            except OSError:  # none waits, or somebody else was quicker to take what we gave
                break
            else:
                _answer(sock, answer)
                refused += 1
            finally:
                self._take()
        return refused

    def _take(self) -> None:
        # Where that fails there is none; the next time may be better.
        with contextlib.suppress(OSError):
            self._file = os.open(os.devnull, os.O_RDONLY)

    def _give(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _answer(sock: socket.socket, answer: bytes) -> None:
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(answer)
        sock.shutdown(socket.SHUT_WR)
        # A close over unread bytes resets the connection, which not every client survives long enough to read.
        sock.recv(65536)
