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

Socket = socket.socket | trio.socket.SocketType
RawAddress = tuple[str, int] | str | None
"""Host and port, the path of a unix socket (``@name`` if abstract), or None for a listener that is no socket."""

_logger = logging.getLogger("trioserve.error")

# The process or the system is out of something that closing connections gives back.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE = 0.1


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
    _accepting: trio.abc.Listener[trio.abc.Stream] | None = None
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
        return cls(type(listener).__name__, None, None, tls, _accepting=listener)

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
        # While a socket is bound but does not listen yet, another server takes its file for a stale one and replaces
        # it. This makes one of the two give up, instead of serving where nobody can connect.
        if self._file is not None and not self._file.is_ours:
            raise BindError(errno.EADDRINUSE, "the path has been removed, or taken by another server", self.address)
        self._accepting = trio.SocketListener(self._socket)

    async def accept(self) -> trio.abc.Stream:
        """Wait for the next connection.

        Raises trio.ClosedResourceError once closed, and OSError when the process runs out of descriptors or memory.
        """
        if self._accepting is None:
            raise trio.ClosedResourceError("this listener is closed, or does not listen yet")
        return await self._accepting.accept()

    async def aclose(self) -> None:
        """Stop accepting, and remove the file of a unix socket of ours. May be repeated; closes also if cancelled."""
        accepting, self._accepting = self._accepting, None
        self.close()
        if self._socket is None and accepting is not None:
            await accepting.aclose()

    def close(self) -> None:
        """As aclose, for a listener that is a socket; also where there is no event loop."""
        # First the file: while the socket is open its inode cannot be given to a file of another server.
        if self._file is not None:
            self._file.remove()
            self._file = None
        if self._socket is None:
            return
        if trio.lowlevel.in_trio_run():
            self._socket.close()
        elif self._socket.fileno() != -1:
            # Trio's own close tells the event loop.
            socket.close(self._socket.detach())


async def aclose_all(listeners: Sequence[Listener]) -> None:
    """Close every listener, whatever happens to the others; safe in a cancelled scope."""
    # Each task runs to its first checkpoint even when cancelled, and Trio's listeners close before they make one.
    async with trio.open_nursery() as nursery:
        for one in listeners:
            nursery.start_soon(one.aclose)


async def accept_forever(listener: Listener, handler: Callable[[trio.abc.Stream], object]) -> None:
    """Hand every accepted stream to ``handler``, which owns it from then on, until the listener is closed.

    When the process is out of descriptors or memory it waits for connections to end; an attacker could otherwise stop a
    server by opening many.
    """
    exhausted = False
    while True:
        try:
            stream = await listener.accept()
        except trio.ClosedResourceError:
            return
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if not exhausted:
                _logger.warning("cannot accept connections on %s: %s; trying on", listener.address, reason_of(error))
            exhausted = True
            await trio.sleep(_EXHAUSTED_PAUSE)
        else:
            exhausted = False
            handler(stream)
