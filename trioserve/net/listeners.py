"""Where connections come from: TCP, unix and inherited sockets, bound first and listened on later; other listeners.

Binding and listening are two steps because the application's start-up lies between them: an address that is taken shows
before any work is done, and no client connects before there is someone to answer.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from ..bind import DescriptorBind, NamedDescriptorBind, TCPBind, UnixBind
from ..config import Config
from ..errors import BindError

Socket = socket.socket | trio.socket.SocketType
RawAddress = tuple[str, int] | str | None
"""Host and port, the path of a unix socket (``@name`` if abstract), or None for a listener that is no socket."""

_logger = logging.getLogger("trioserve.error")

# Windows lets anybody take over a port bound with SO_REUSEADDR; elsewhere the option only ends the wait for TIME_WAIT.
_REUSE_OPTION: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)

# The kernel picks a free port for the first address of a name only; the second has it too in all but rare cases.
_PORT_ATTEMPTS = 10

# The process or the system is out of something that closing connections gives back.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE = 0.1


@dataclass(frozen=True)
class _SocketFile:
    """The file of a unix socket that we made, known by its inode: the path alone may have become another server's."""

    path: Path
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _SocketFile:
        status = path.lstat()
        # Absolute, because a program may change its folder between start and stop.
        return cls(path.absolute(), status.st_dev, status.st_ino)

    @property
    def is_ours(self) -> bool:
        with suppress(OSError):
            status = self.path.lstat()
            return (status.st_dev, status.st_ino) == (self.device, self.inode)
        return False

    def remove(self) -> None:
        if self.is_ours:
            # The folder may have become read-only for us, and a stop must not fail for a file left over.
            with suppress(OSError):
                self.path.unlink()


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
    _file: _SocketFile | None = None

    @classmethod
    def from_socket(
        cls, bound: Socket, *, tls: bool, address: str | None = None, file: _SocketFile | None = None
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
            made = opened.enter_context(_bind_one(bound.family, bound.getsockname(), shares_port=True))
            listener = Listener.from_socket(made, tls=self.tls, address=self.address)
            opened.pop_all()
        return listener

    def listen(self, backlog: int) -> None:
        """Let clients connect; raises BindError, as the address may turn out to be taken only now."""
        if self._socket is None:
            return
        with _bind_errors(self.address):
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
        """As aclose, for a listener that is a socket."""
        # First the file: while the socket is open its inode cannot be given to a file of another server.
        if self._file is not None:
            self._file.remove()
            self._file = None
        if self._socket is not None:
            self._socket.close()


async def bind_all(config: Config, sockets: Iterable[Socket] = (), *, bind_default: bool = True) -> list[Listener]:
    """Bind what the configuration names, and take over ready sockets; the ``listen`` of each comes later.

    ``bind_default``: use host and port when no other address is named. Owns ``sockets`` from the call on: when it
    raises (BindError), they and everything it bound are closed.
    """
    given = list(sockets)
    listeners: list[Listener] = []
    with ExitStack() as opened:
        for one in given:
            opened.callback(one.close)
        descriptors: set[int] = set()
        for bind, tls in config.binds if bind_default or config.names_address else ():
            if isinstance(bind, TCPBind):
                bound = await _bind_tcp(bind, shares_port=config.reuse_port)
                made = [Listener.from_socket(one, tls=tls) for one in bound]
            elif isinstance(bind, UnixBind):
                made = [_bind_unix(bind, tls=tls, permissions=config.uds_permissions)]
            elif isinstance(bind, NamedDescriptorBind):
                # Only the command line and run() ask systemd for the numbers of its names.
                raise BindError(errno.EBADF, "there is no inherited descriptor of this name", str(bind))
            elif bind.number not in descriptors:
                descriptors.add(bind.number)
                made = [_take_descriptor(bind, tls=tls)]
            else:
                # Two owners of one descriptor would close it twice, the second time somebody else's.
                raise BindError(errno.EADDRINUSE, "the descriptor is named twice", str(bind))
            for listener in made:
                opened.callback(listener.close)
            listeners += made
        listeners += [Listener.from_socket(one, tls=config.uses_tls) for one in given]
        opened.pop_all()
    return listeners


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
                _logger.warning("cannot accept connections on %s: %s; trying on", listener.address, _reason(error))
            exhausted = True
            await trio.sleep(_EXHAUSTED_PAUSE)
        else:
            exhausted = False
            handler(stream)


async def _bind_tcp(bind: TCPBind, *, shares_port: bool) -> list[socket.socket]:
    """Bind each address of a host on one and the same port."""
    with _bind_errors(str(bind)):
        found = await trio.socket.getaddrinfo(bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # /etc/hosts may name an address twice.
    addresses = list(dict.fromkeys((family, name) for family, _, _, _, name in found))
    attempts = _PORT_ATTEMPTS if bind.port == 0 else 1
    while True:
        attempts -= 1
        try:
            return _bind_each(addresses, shares_port=shares_port)
        except BindError as error:
            if not attempts or error.errno != errno.EADDRINUSE:
                raise


_Name = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


def _bind_each(addresses: Sequence[tuple[int, _Name]], *, shares_port: bool) -> list[socket.socket]:
    lacking: BindError | None = None
    sockets: list[socket.socket] = []
    port = 0
    with ExitStack() as opened:
        for family, (host, asked, *rest) in addresses:
            try:
                name = (host, port or asked, *rest)
                bound = opened.enter_context(_bind_one(family, name, shares_port=shares_port))
            except BindError as error:
                # A host name has an IPv6 address also where the kernel has IPv6 switched off: then the others will do.
                if not (error.errno == errno.EAFNOSUPPORT or (error.errno == errno.EADDRNOTAVAIL and rest)):
                    raise
                lacking = lacking or error
                continue
            port = bound.getsockname()[1]
            sockets.append(bound)
        if lacking is not None and not sockets:
            raise lacking
        opened.pop_all()
    return sockets


def _bind_one(family: int, name: tuple[object, ...], *, shares_port: bool) -> socket.socket:
    with _bind_errors(str(TCPBind(str(name[0]), int(str(name[1]))))), ExitStack() as opened:
        made = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        made.setsockopt(socket.SOL_SOCKET, _REUSE_OPTION, 1)
        if shares_port:
            if not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover - Windows, where the tests do not run
                raise OSError(errno.ENOPROTOOPT, "this system has no SO_REUSEPORT")
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Without this [::] would also take IPv4's port, and 0.0.0.0 could not be bound beside it.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(name)
        opened.pop_all()
    return made


def _bind_unix(bind: UnixBind, *, tls: bool, permissions: int | None) -> Listener:
    address = str(bind)
    if not hasattr(socket, "AF_UNIX"):
        raise BindError(errno.EAFNOSUPPORT, "this system has no unix sockets", address)
    is_abstract = bind.path.startswith("@")
    if is_abstract and sys.platform != "linux":
        raise BindError(errno.EAFNOSUPPORT, "abstract unix sockets (@) exist only on Linux", address)
    with _bind_errors(address), ExitStack() as opened:
        made = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        if is_abstract:
            made.bind("\0" + bind.path[1:])
            file = None
        else:
            path = Path(bind.path)
            _remove_stale_file(path, address)
            made.bind(bind.path)
            file = _SocketFile.of(path)
            opened.callback(file.remove)
            if permissions is not None:
                # Until listen() nobody can connect, so the mode that the umask gave has let nobody in.
                path.chmod(permissions)
        listener = Listener.from_socket(made, tls=tls, address=address, file=file)
        opened.pop_all()
    return listener


def _remove_stale_file(path: Path, address: str) -> None:
    """Remove the socket a server left behind that did not end in peace; raises BindError for anything else there."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BindError(errno.EADDRINUSE, "the path exists and is not a socket", address)
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
            # A live server with a full queue would make a blocking connect() wait.
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:
                pass
        raise BindError(errno.EADDRINUSE, "another server is listening there", address)


def _take_descriptor(bind: DescriptorBind, *, tls: bool) -> Listener:
    address = str(bind)
    with _bind_errors(address):
        try:
            # Without a family Python asks the descriptor for its own.
            taken = socket.socket(fileno=bind.number)
        except OSError as error:
            if error.errno == errno.ENOTSOCK:
                raise BindError(errno.ENOTSOCK, "the descriptor is not a socket", address) from None
            raise
        try:
            return Listener.from_socket(taken, tls=tls, address=address)
        except BindError:
            # It is not what we were promised, so it is not ours to close.
            taken.detach()
            raise


@contextmanager
def _bind_errors(address: str) -> Iterator[None]:
    """Turn what the system says about an address into a BindError that names it."""
    try:
        yield
    except BindError:
        raise
    except socket.gaierror as error:
        # Its number is the resolver's, not errno's.
        raise BindError(None, f"the name cannot be resolved ({_reason(error)})", address) from None
    except PermissionError as error:
        hint = " (ports below 1024 need a privilege)" if _has_low_port(address) else ""
        raise BindError(error.errno, _reason(error) + hint, address) from None
    except (OSError, ValueError) as error:
        # ValueError: NUL in a path, a label of a host name that is too long for DNS.
        raise BindError(error.errno if isinstance(error, OSError) else None, _reason(error), address) from None


def _has_low_port(address: str) -> bool:
    port = address.rpartition(":")[2]
    return not address.startswith(("unix:", "fd:")) and port.isdigit() and int(port) < 1024


def _reason(error: OSError | ValueError) -> str:
    # Python's own errors, such as "AF_UNIX path too long", have no strerror.
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text[:1].lower() + text[1:]
