"""What systemd, or a service manager that speaks its protocols, tells a service and wants to be told.

Both protocols are environment variables and, for the second, datagrams of text: no library of systemd's is needed.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ConfigError

_FIRST = 3  # SD_LISTEN_FDS_START: after standard input, output and error


class Inherited(NamedTuple):
    """A file descriptor that was handed over; ``name`` is its FileDescriptorName=, "unknown" if names are not told."""

    number: int
    name: str


def receive_descriptors() -> tuple[Inherited, ...]:
    """Take what was handed over by socket activation, once: later calls find nothing.

    The variables that tell of it are removed, and the descriptors are made non-inheritable: programs that the
    application starts would take both for their own. Raises ConfigError if the variables are meant for this process and
    make no sense.

    Source: sd_listen_fds_with_names(3).
    """
    process, count, names = (os.environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    # Variables for another process have only been passed on by it, and are no concern of ours, however they look.
    if process != str(os.getpid()) or count is None:
        return ()
    numbers = range(_FIRST, _FIRST + _read_number(count))
    if not numbers:
        raise ConfigError(f"LISTEN_FDS must be a whole number of at least 1, not {count!r}")
    for number in numbers:
        try:
            os.set_inheritable(number, False)
        except OSError:
            raise ConfigError(
                f"LISTEN_FDS must be the number of open descriptors from {_FIRST} on, not {count!r}: "
                f"{number} is not open"
            ) from None
    found = ["unknown"] * len(numbers) if names is None else names.split(":")
    if len(found) != len(numbers):
        raise ConfigError(f"LISTEN_FDNAMES must be {len(numbers)} names with colons between them, not {names!r}")
    return tuple(map(Inherited, numbers, found))


@dataclass(frozen=True)
class Notifier:
    """Tells the service manager how the server is; does nothing where there is none.

    ``address`` is the manager's datagram socket, a path or ``@name`` if abstract. ``watchdog_interval`` are the seconds
    between two calls of ``watchdog()``, half of what the manager waits for, or None if it does not. No method blocks or
    raises: what cannot be told at once is lost, as a server must not stop for it.

    Source: sd_notify(3), sd_watchdog_enabled(3).
    """

    address: str | None = None
    watchdog_interval: float | None = None

    @classmethod
    def from_environment(cls) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and leave them there."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # Other kinds of address (vsock:) are for a whole virtual machine, not for a service in it.
        is_usable = hasattr(socket, "AF_UNIX") and address.startswith(("/", "@"))
        microseconds = _read_number(os.environ.get("WATCHDOG_USEC", ""))
        is_watched = microseconds > 0 and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address if is_usable else None, microseconds / 1e6 / 2 if is_watched else None)

    def ready(self, status: str) -> None:
        """The server serves, for the first time or again after ``reloading()``."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """The server takes over new settings, until the next ``ready()``."""
        # Type=notify-reload compares the time, in the same message, with when it asked for the reload. On Linux
        # time.monotonic is CLOCK_MONOTONIC.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The server has begun to stop."""
        self._send("STOPPING=1", _status(status))

    def watchdog(self) -> None:
        """The server is alive."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show one line about the state of the server."""
        self._send(_status(text))

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # Not MSG_DONTWAIT: where socket.setdefaulttimeout was called, Python tries again, without a pause, until
            # that time is over.
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(errors="backslashreplace"), address)


def _status(text: str) -> str:
    # A line break would begin another assignment.
    return "STATUS=" + " ".join(text.splitlines())


def _read_number(text: str) -> int:
    """Read a whole number, or 0 for anything else."""
    # Twenty digits are the most that 64 bits can have; int() refuses thousands of them.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0
