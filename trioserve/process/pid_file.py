"""The file that says which process to signal, for scripts and service managers that ask for one."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from types import TracebackType

from ..errors import StartupError
from ..logs import server_log
from .inspector_folder import is_alive

if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX

    def _lock(file: int) -> None:
        """Nothing: there a number that is left in a file is believed to be an old one."""
else:
    import fcntl

    def _lock(file: int) -> None:
        """Mark the file as a living process's; raises OSError if it is another's.

        The mark ends with the process, however that ends, and so tells the file of a living server from a number that
        is a stranger's by now. Not lockf's, which would end when the application reads the file.
        """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class PidFile:
    """A file with the number of this process, from ``publish`` to the end of the block; does nothing without a path.

    The block begins with what can fail: entering it raises StartupError if the file is a living server's or no such
    file at all, or cannot be written. A file that a crash has left is replaced.
    """

    def __init__(self, path: str | None) -> None:
        # The application may change the current folder, and a link is to stay what it is.
        self._path = None if path is None else os.path.realpath(path)
        self._made: str | None = None
        self._identity: tuple[int, int] | None = None
        self._file = -1

    def __enter__(self) -> PidFile:
        if self._path is not None:
            try:
                _check_replaceable(self._path)
                self._make(self._path)
            except OSError as error:
                raise StartupError(f"cannot write pid_file {self._path!r}: {error.strerror}") from error
        return self

    def _make(self, path: str) -> None:
        # Made here and renamed once we serve, so that nobody ever reads half of it, or of a server that does not start.
        made = f"{path}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)  # of a process that had our number, and was killed in its start
        self._file = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._made = made
        try:
            os.write(self._file, b"%d\n" % os.getpid())
            _lock(self._file)
        except OSError:
            self._take_away()
            raise
        status = os.fstat(self._file)
        self._identity = status.st_dev, status.st_ino
        if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX; there what is open cannot be renamed
            self._close()

    def publish(self) -> None:
        """Put the file in its place; a failure that was not to be foreseen is logged, and the server serves on."""
        if self._path is None or self._made is None:
            return
        try:
            _check_replaceable(self._path)  # once more: two may have started at the same time
            os.replace(self._made, self._path)
        except OSError as error:
            server_log.error("cannot write pid_file %r: %s", self._path, error.strerror)
        except StartupError as error:
            server_log.error("%s", error)
        else:
            self._made = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._take_away()

    def _take_away(self) -> None:
        path = self._path if self._made is None else self._made
        if path is None:
            return
        # Its folder may have gone, and then there is nothing to do.
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if self._made is not None or (status.st_dev, status.st_ino) == self._identity:
                os.unlink(path)
        self._close()

    def _close(self) -> None:
        os.close(self._file)
        self._file = -1


def _check_replaceable(path: str) -> None:
    """Raise StartupError if there is a file that must stay, OSError if it cannot be told."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise StartupError(f"pid_file {path!r} is no ordinary file, and is left as it is")
        text = os.read(file, 100).strip()
        if text and not text.isdigit():
            raise StartupError(f"pid_file {path!r} holds something else than the number of a process; it is left as is")
        try:
            _lock(file)
        except OSError:
            # The mark of one that has died may be held by what it has forked.
            if not text or is_alive(int(text)):
                raise StartupError(f"pid_file {path!r} is that of process {text.decode()}, which runs") from None
    finally:
        os.close(file)
