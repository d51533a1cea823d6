"""Where the inspectors' sockets are: one file per process, in a folder that nobody but its user can open.

Whoever could put a file there could let us talk to somebody else, and some of these folders are made in a place where
everybody may write. So nothing is believed of a folder but what its open descriptor says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUPPORTED = hasattr(socket, "AF_UNIX")
"""Python has no unix sockets on Windows."""

_NAME = re.compile(r"(server|supervisor|worker)-([1-9]\d*)\.sock")

_SWEPT = 1000


@dataclass(frozen=True)
class Found:
    """The socket of a process that is, or was, there."""

    kind: str
    pid: int
    path: Path


def folders() -> list[Path]:
    """Where the sockets may be, the best first: they are made in the first that can be used, and sought in all."""
    found: list[Path] = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        found.append(Path(runtime, "trioserve"))
    with contextlib.suppress(OSError):  # there is no folder that can be written to
        found.append(Path(tempfile.gettempdir(), f"trioserve-{os.geteuid()}"))
    return found


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Give a descriptor of the folder. Raises OSError unless it is one, our own, and nobody else's to open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        state = os.fstat(descriptor)
        if state.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
        if stat.S_IMODE(state.st_mode) & 0o077:
            raise PermissionError(errno.EPERM, "other users can open it", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def find_sockets() -> list[Found]:
    """The sockets of this user's processes, of which some may have died."""
    found: dict[tuple[str, int], Found] = {}
    for path in folders():
        with contextlib.suppress(OSError), open_folder(path) as folder:
            for name in sorted(os.listdir(folder)):
                if match := _NAME.fullmatch(name):
                    one = Found(match[1], int(match[2]), path / name)
                    found.setdefault((one.kind, one.pid), one)
    return list(found.values())


class SocketFile:
    """This process's socket, bound and listening. Raises OSError if no folder can be used."""

    def __init__(self, kind: str) -> None:
        reason: OSError = FileNotFoundError(errno.ENOENT, "there is no folder for it")
        for folder in folders():
            try:
                self.socket, self.path = _bind(folder, f"{kind}-{os.getpid()}.sock")
            except OSError as error:
                reason = error
            else:
                self._pid = os.getpid()
                state = os.lstat(self.path)
                self._identity = state.st_dev, state.st_ino
                return
        raise reason

    def remove(self) -> None:
        """Remove the file, if it is still ours, and we are who made it: a forked child is not."""
        with contextlib.suppress(OSError):
            state = os.lstat(self.path)
            if self._pid == os.getpid() and (state.st_dev, state.st_ino) == self._identity:
                os.unlink(self.path)


def _bind(path: Path, name: str) -> tuple[socket.socket, Path]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    with open_folder(path) as folder, contextlib.ExitStack() as opened:
        _sweep(path, folder)
        if has_died(path / name):  # whoever had our number before us
            os.unlink(name, dir_fd=folder)
        made = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made.bind(str(path / name))
        # Not where something else may stand under that name by now.
        if not stat.S_ISSOCK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise FileExistsError(errno.EEXIST, "something else is there", str(path / name))
        os.chmod(name, 0o600, dir_fd=folder)
        made.listen(8)
        opened.pop_all()
    return made, path / name


def sweep_folders() -> None:
    """Remove what dead processes have left: those that were killed."""
    for path in folders():
        with contextlib.suppress(OSError), open_folder(path) as folder:
            _sweep(path, folder)


def _sweep(path: Path, folder: int) -> None:
    for name in os.listdir(folder)[:_SWEPT]:
        match = _NAME.fullmatch(name)
        # One that is just being made refuses connections, too.
        if match and not is_alive(int(match[2])) and has_died(path / name):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, whoever's."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def has_died(path: Path) -> bool:
    """Whether there is a socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)  # its queue may be full
        return client.connect_ex(str(path)) == errno.ECONNREFUSED


def peer_is_ours(connected: socket.socket) -> bool:
    """Whether the process at the other end is the same user's; where the system does not tell, the folder must do."""
    option: int | None = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _, user, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return bool(user == os.geteuid())
