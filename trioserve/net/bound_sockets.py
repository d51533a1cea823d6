"""Bound sockets, and what the system says when there can be none."""

from __future__ import annotations

import errno
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..bind import TCPBind
from ..errors import BindError

# Windows lets anybody take over a port bound with SO_REUSEADDR; elsewhere the option only ends the wait for TIME_WAIT.
_REUSE_OPTION: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)

# The kernel picks a free port for the first address of a name only; the second has it too in all but rare cases.
_PORT_ATTEMPTS = 10

Name = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
"""What ``bind`` takes: host and port and, for IPv6, two numbers more. The last is for a Python without IPv6."""


@dataclass(frozen=True)
class SocketFile:
    """The file of a unix socket that we made, known by its inode: the path alone may have become another server's."""

    path: Path
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> SocketFile:
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


def bind_tcp(addresses: Sequence[tuple[int, Name]], *, shares_port: bool) -> list[socket.socket]:
    """Bind each of these (family, name) on one and the same port; raises BindError.

    ``shares_port``: with SO_REUSEPORT. An address of a kind that the system lacks is left out, if there is another.
    """
    asks_for_any = all(name[1] == 0 for _, name in addresses)
    attempts = _PORT_ATTEMPTS if asks_for_any else 1
    while True:
        attempts -= 1
        try:
            return _bind_each(addresses, shares_port=shares_port)
        except BindError as error:
            if not attempts or error.errno != errno.EADDRINUSE:
                raise


def _bind_each(addresses: Sequence[tuple[int, Name]], *, shares_port: bool) -> list[socket.socket]:
    lacking: BindError | None = None
    sockets: list[socket.socket] = []
    port = 0
    with ExitStack() as opened:
        for family, (host, asked, *rest) in addresses:
            try:
                name = (host, port or asked, *rest)
                bound = opened.enter_context(bind_one(family, name, shares_port=shares_port))
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


def bind_one(family: int, name: tuple[object, ...], *, shares_port: bool) -> socket.socket:
    with bind_errors(str(TCPBind(str(name[0]), int(str(name[1]))))), ExitStack() as opened:
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


def bind_unix(path: str, address: str, permissions: int | None) -> tuple[socket.socket, SocketFile | None]:
    """Bind a unix socket, in place of one that a dead server has left; raises BindError.

    ``address`` names it in errors. Returns its file, too, unless the path is abstract (``@name``).
    """
    if not hasattr(socket, "AF_UNIX"):
        raise BindError(errno.EAFNOSUPPORT, "this system has no unix sockets", address)
    is_abstract = path.startswith("@")
    if is_abstract and sys.platform != "linux":
        raise BindError(errno.EAFNOSUPPORT, "abstract unix sockets (@) exist only on Linux", address)
    with bind_errors(address), ExitStack() as opened:
        made = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        file = None
        if is_abstract:
            made.bind("\0" + path[1:])
        else:
            _remove_stale_file(Path(path), address)
            made.bind(path)
            file = SocketFile.of(Path(path))
            opened.callback(file.remove)
            if permissions is not None:
                # Until listen() nobody can connect, so the mode that the umask gave has let nobody in.
                Path(path).chmod(permissions)
        opened.pop_all()
    return made, file


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


@contextmanager
def bind_errors(address: str) -> Iterator[None]:
    """Turn what the system says about an address into a BindError that names it."""
    try:
        yield
    except BindError:
        raise
    except socket.gaierror as error:
        # Its number is the resolver's, not errno's.
        raise BindError(None, f"the name cannot be resolved ({reason_of(error)})", address) from None
    except PermissionError as error:
        hint = " (ports below 1024 need a privilege)" if _has_low_port(address) else ""
        raise BindError(error.errno, reason_of(error) + hint, address) from None
    except (OSError, ValueError) as error:
        # ValueError: NUL in a path, a label of a host name that is too long for DNS.
        raise BindError(error.errno if isinstance(error, OSError) else None, reason_of(error), address) from None


def _has_low_port(address: str) -> bool:
    port = address.rpartition(":")[2]
    return not address.startswith(("unix:", "fd:")) and port.isdigit() and int(port) < 1024


def reason_of(error: OSError | ValueError) -> str:
    # Python's own errors, such as "AF_UNIX path too long", have no strerror.
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return text[:1].lower() + text[1:]
