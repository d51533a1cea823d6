"""Where connections come from: sockets that are bound, listened on and closed, and listeners of another make."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from ..bind import TCPBind
from ..errors import BindError
from .bound_sockets import SocketFile, bind_errors, bind_one, reason_of
from .door import Door
from .reserve import BUSY_ANSWER, Reserve

Socket = socket.socket | trio.socket.SocketType
RawAddress = tuple[str, int] | str | None
"""Host and port, the path of a unix socket (``@name`` if abstract), or None for a listener that is no socket."""

Accepted = socket.socket | trio.abc.Stream
"""A connection as it comes: a non-blocking socket, if its listener is one, or the stream that another made."""

_logger = logging.getLogger("trioserve.error")

# The process or the system is out of something that closing connections gives back.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE = 0.1

# What went wrong with one connection before it was accepted, not with the listener: accept(2) says to go on. Not every
# system knows each of them.
_ABORTED = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNRESET", "ETIMEDOUT", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENONET", "ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"),
    )
    if hasattr(errno, name)
)

ACCEPT_BATCH = 64
"""Connections that are accepted at a time, before those that are open have their turn."""


@dataclass(eq=False)
class Listener:
    """One place where connections are accepted, from binding to closing.

    ``address`` is for logs ("127.0.0.1:8000", "[::1]:8000", "unix:/run/x.sock", "fd:3"); ``url`` is None if there is
    none; ``tls`` says that its connections begin with a handshake. Owns what it accepts from.
    """

    address: str
    url: str | None
    raw_address: RawAddress
    tls: bool
    _socket: trio.socket.SocketType | None = None
    # The same socket once it listens, under a number of its own: Trio's has no way to accept without waiting, and who
    # gave it to us may still look at it, or close it.
    _acceptor: socket.socket | None = None
    _foreign: trio.abc.Listener[trio.abc.Stream] | None = None
    _file: SocketFile | None = None

    @classmethod
    def from_socket(
        cls, bound: Socket, *, tls: bool, address: str | None = None, file: SocketFile | None = None
    ) -> Listener:
        """Take over a bound stream socket, listening or not; raises BindError if it is none, and leaves that open."""
        name = bound.getsockname()
        if isinstance(name, tuple):
            raw: RawAddress = (name[0], name[1])
            words = str(TCPBind(*name[:2]))
            url = f"{'https' if tls else 'http'}://{words}"
        else:
            raw = os.fsdecode(name).replace("\0", "@", 1)
            url = words = f"unix:{raw}"
        words = address or words
        # A TCP socket without a port would get any port on all interfaces from listen(), which nobody asked for.
        if name in ("", b"") or (isinstance(raw, tuple) and raw[1] == 0):
            raise BindError(errno.EINVAL, "the socket is not bound", words)
        if bound.type != socket.SOCK_STREAM:
            raise BindError(errno.EINVAL, "it is not a stream socket", words)
        if isinstance(bound, socket.socket):
            bound = trio.socket.from_stdlib_socket(bound)
        return cls(words, url, raw, tls, _socket=bound, _file=file)

    @classmethod
    def from_listener(cls, listener: trio.abc.Listener[trio.abc.Stream], *, tls: bool) -> Listener:
        """Take over a listener of another make, which accepts from the start."""
        if isinstance(listener, trio.SocketListener):
            return cls.from_socket(listener.socket, tls=tls)
        return cls(type(listener).__name__, None, None, tls, _foreign=listener)

    @property
    def raw_socket(self) -> trio.socket.SocketType:
        """The bound socket; the listener still owns it."""
        assert self._socket is not None
        return self._socket

    def twin(self) -> Listener | None:
        """Another listener on the same TCP port, which gets its share of the connections (SO_REUSEPORT).

        None if there can be none: it is no TCP socket, or an inherited one without that option. Raises BindError.
        """
        bound = self._socket
        if bound is None or bound.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if not bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            return None
        with ExitStack() as opened:
            made = opened.enter_context(bind_one(bound.family, bound.getsockname(), shares_port=True))
            listener = Listener.from_socket(made, tls=self.tls, address=self.address)
            opened.pop_all()
        return listener

    def listen(self, backlog: int) -> None:
        """Let clients connect; raises BindError, as the address may turn out to be taken only now."""
        if self._socket is None:
            return
        with bind_errors(self.address):
            self._socket.listen(backlog)
            self._acceptor = _dup_listening(self._socket)
        # While a socket is bound but does not listen yet, another server takes its file for a stale one and replaces
        # it. This makes one of the two give up, instead of serving where nobody can connect.
        if self._file is not None and not self._file.is_ours:
            raise BindError(errno.EADDRINUSE, "the path has been removed, or taken by another server", self.address)

    async def accept(self, room: Callable[[], int] = lambda: ACCEPT_BATCH) -> Sequence[Accepted]:
        """Wait for connections, and return those that wait, up to ACCEPT_BATCH: it may be none, if others were quicker.

        ``room`` tells how many there may be, when it has come to that.

        Whoever calls this owns them. Raises trio.ClosedResourceError once closed, and OSError when the process runs out
        of descriptors or memory.
        """
        if self._foreign is not None:
            return [await self._foreign.accept()]
        if self._socket is None or self._acceptor is None:
            raise trio.ClosedResourceError("this listener is closed, or does not listen yet")
        await trio.lowlevel.wait_readable(self._socket)
        if self._socket.fileno() == -1:
            raise trio.ClosedResourceError("this listener has been closed")
        return _accept_waiting(self._acceptor, min(ACCEPT_BATCH, room()))

    def refuse_waiting(self, reserve: Reserve) -> int:
        """Answer connections that cannot be accepted with 503, or if they begin with TLS not at all; how many."""
        return 0 if self._acceptor is None else reserve.refuse_waiting(self._acceptor, b"" if self.tls else BUSY_ANSWER)

    async def aclose(self) -> None:
        """Stop accepting, and remove the file of a unix socket of ours. May be repeated; closes also if cancelled."""
        foreign, self._foreign = self._foreign, None
        self.close()
        if foreign is not None:
            await foreign.aclose()

    def close(self) -> None:
        """As aclose, for a listener that is a socket; also where there is no event loop."""
        # First the file: while the socket is open its inode cannot be given to a file of another server.
        if self._file is not None:
            self._file.remove()
            self._file = None
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        if self._socket is None:
            return
        if trio.lowlevel.in_trio_run():
            self._socket.close()
        elif self._socket.fileno() != -1:
            # Trio's own close tells the event loop.
            socket.close(self._socket.detach())


def _dup_listening(listening: trio.socket.SocketType) -> socket.socket:
    acceptor = socket.fromfd(listening.fileno(), listening.family, listening.type)
    acceptor.setblocking(False)
    if acceptor.family in (socket.AF_INET, socket.AF_INET6):
        # Accepted sockets inherit it, on Linux at least; where they become trio.SocketStreams those set it, too.
        acceptor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return acceptor


def _accept_waiting(acceptor: socket.socket, at_most: int) -> list[Accepted]:
    accepted: list[Accepted] = []
    for _ in range(at_most):
        try:
            sock, _ = acceptor.accept()
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno in _ABORTED:
                continue
            if accepted:
                break  # they must not be lost; the next attempt fails again
            raise
        sock.setblocking(False)
        accepted.append(sock)
    return accepted


async def aclose_all(listeners: Sequence[Listener]) -> None:
    """Close every listener, whatever happens to the others; safe in a cancelled scope."""
    # Each task runs to its first checkpoint even when cancelled, and Trio's listeners close before they make one.
    async with trio.open_nursery() as nursery:
        for one in listeners:
            nursery.start_soon(one.aclose)


async def accept_forever(listener: Listener, handler: Callable[[Accepted], object], door: Door | None = None) -> None:
    """Hand every accepted connection to ``handler``, which owns it from then on, until the listener is closed.

    ``door`` says how many there may be. When the process is out of descriptors or memory it waits for connections to
    end, and refuses those that come meanwhile; an attacker could otherwise stop a server by opening many.
    """
    door = door or Door()
    exhausted = False
    with Reserve() as reserve:
        while True:
            await door.wait_room()
            try:
                accepted = await listener.accept(door.room)
            except trio.ClosedResourceError:
                # It may have been closed by who gave it to us; then nobody shall connect any more either.
                listener.close()
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                if exhausted:
                    if refused := listener.refuse_waiting(reserve):
                        door.refused(refused)
                else:
                    words = "cannot accept connections on %s: %s; trying on"
                    _logger.warning(words, listener.address, reason_of(error))
                exhausted = True
                await trio.sleep(_EXHAUSTED_PAUSE)
            else:
                exhausted = False
                for one in accepted:
                    handler(one)
