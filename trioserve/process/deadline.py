"""The hard deadline: what ends a process whose event loop, clean-up or exit does not come to an end.

It is a thread of the interpreter's own, which also works while the loop is blocked. The only home of faulthandler.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time

from ..config import Config
from ..observer import Phase

# Seconds: 31 years, or less where a lock cannot wait as long. faulthandler refuses more, and an endless deadline too;
# an error from there, in a signal handler, would break the stop.
_LONGEST = min(1e9, threading.TIMEOUT_MAX)


class HardDeadline:
    """Ends the process, with every thread's stack and exit code 1, some time after a stop was asked for.

    Does nothing until ``open``. May be told from any thread, and in a signal handler.
    ``drain_delay``: seconds for which the server serves on before a stop begins. ``at`` is when the process ends
    whatever it does, by time.monotonic(); None while nothing calls for that.
    """

    def __init__(self, config: Config, *, drain_delay: float = 0) -> None:
        self._config = config
        self._drain_delay = drain_delay
        self._phase = Phase.STARTING
        self._is_final = False
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread in here
        self.output = -1
        """The descriptor that the stacks are written to, while open."""
        self.at: float | None = None

    @property
    def is_open(self) -> bool:
        return self.output >= 0

    def open(self) -> None:
        self.output = _open_stderr()

    def close(self) -> None:
        """Forget the output, unless a deadline is set that still needs it."""
        if self.is_open and self.at is None:
            os.close(self.output)
            self.output = -1

    def disarm(self) -> None:
        """The program goes on without a server, and what still runs in it is its own affair."""
        if self.at is not None:  # else the timer is not ours: a program may use faulthandler's itself
            faulthandler.cancel_dump_traceback_later()
            self.at = None

    def phase_changed(self, phase: Phase) -> None:
        """Bring the deadline in line with what the server does now."""
        self._phase = phase
        if phase is Phase.CANCELLING:
            self._arm(self._config.timeout_hard_shutdown, is_final=True)
        elif phase is Phase.STOPPING:
            self._arm(self._config.timeout_shutdown + self._config.timeout_hard_shutdown)
        elif phase is Phase.STOPPED:
            # A thread that the application leaves behind, or its atexit, can still keep the process from ending.
            self._arm(self._config.timeout_hard_shutdown, is_final=True)

    def stop_asked(self, *, cuts: bool = False) -> None:
        """A stop begins; ``cuts``: without grace."""
        # A stop during start-up cancels at once; there are no requests to wait for.
        cuts = cuts or self._phase is Phase.STARTING
        grace = 0 if cuts else self._config.timeout_graceful_shutdown
        if self._phase is Phase.SERVING and not cuts:
            grace += self._drain_delay
        if cuts or self._phase in (Phase.SERVING, Phase.DRAINING):
            self._arm(grace + self._config.timeout_hard_shutdown, is_final=cuts)

    def _arm(self, seconds: float, *, is_final: bool = False) -> None:
        """Set the deadline. Once one is final, it is only ever brought forward."""
        if not self.is_open:
            return
        with self._lock:
            seconds = min(seconds, _LONGEST)
            deadline = time.monotonic() + seconds
            if self._is_final and self.at is not None and deadline >= self.at:
                return
            self._is_final = self._is_final or is_final
            self.at = deadline
            faulthandler.dump_traceback_later(seconds, exit=True, file=self.output)


def show_crashes() -> None:
    """Let the interpreter print every thread's stack when a signal such as SIGSEGV or SIGABRT ends the process.

    What the program itself has arranged, by ``python -X faulthandler`` say, stays.
    """
    if not faulthandler.is_enabled():
        # Under a test runner or a service manager sys.stderr may have no descriptor, be closed or be None.
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.enable(all_threads=True)


def _open_stderr() -> int:
    """A descriptor of our own for the stacks: sys.stderr's, the process's first, or nowhere.

    Under a test runner or a service manager sys.stderr may have no descriptor, be closed or be None. A copy, because
    faulthandler writes to the number whatever it has become by then.
    """
    for stream in (sys.stderr, sys.__stderr__):
        try:
            return os.dup(stream.fileno())  # type: ignore[union-attr]  # None raises AttributeError
        except (AttributeError, OSError, ValueError):
            continue
    return os.open(os.devnull, os.O_WRONLY)
