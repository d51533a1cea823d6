"""SIGINT and SIGTERM, and the hard deadline behind them.

Everything else in a stop is a request to the event loop. The hard deadline is not: it is a thread of the interpreter's
own, started in the signal handler, that also ends a process whose loop is blocked.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import trio

from ..config import Config
from ..observer import Phase

# Ctrl-C, a polite kill, and Ctrl-Break, which is the only one a console program on Windows can be sent.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]

# Seconds: 31 years, or less where a lock cannot wait as long. faulthandler refuses more, and an endless deadline too;
# an error from there, in a signal handler, would break the stop.
_LONGEST = min(1e9, threading.TIMEOUT_MAX)


class StopSignals:
    """Takes over the stop signals while entered; outside the main thread it does nothing.

    ``attach`` says who is told, in the event loop, of each signal; signals that came before are told then.
    ``ends_process``: nothing but the end of the process comes after the block, so a deadline once set holds until then.
    Without it the program goes on, and leaving the block disarms the deadline.
    ``deadline`` is when the process ends whatever it does, by time.monotonic(); None while nothing calls for that.
    """

    def __init__(self, config: Config, *, ends_process: bool = False) -> None:
        self._config = config
        self._ends_process = ends_process
        self._previous: dict[int, object] = {}
        self._phase = Phase.STARTING
        self._count = 0
        self._told = 0
        self.deadline: float | None = None
        self._is_final = False
        self._interrupts = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._tell: Callable[[int], None] | None = None
        self._output = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._output = _open_stderr()
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            # None stands for a handler that was not installed from Python, and cannot be put back from here.
            signal.signal(number, previous if callable(previous) or isinstance(previous, int) else signal.SIG_DFL)
        # Only now: a signal up to here may have set the deadline anew.
        if not self._ends_process:
            self._disarm()
        if self._previous and self.deadline is None:
            os.close(self._output)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """A signal raises KeyboardInterrupt in this block: imports, before there is an event loop to tell."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def attach(self, token: trio.lowlevel.TrioToken, tell: Callable[[int], None]) -> None:
        """Call ``tell(n)`` in the event loop for the n-th signal from now on, and for those that already came."""
        self._tell = tell
        self._token = token
        for count in range(1, self._count + 1):
            self._tell_in_loop(count)

    def phase_changed(self, phase: Phase) -> None:
        """Bring the hard deadline in line with what the server does now."""
        self._phase = phase
        if phase is Phase.CANCELLING:
            self._arm(self._config.timeout_hard_shutdown, is_final=True)
        elif phase is Phase.STOPPING:
            self._arm(self._config.timeout_shutdown + self._config.timeout_hard_shutdown)
        elif phase is Phase.STOPPED:
            # A thread that the application leaves behind, or its atexit, can still keep the process from ending.
            self._arm(self._config.timeout_hard_shutdown, is_final=True)

    def _disarm(self) -> None:
        """The program goes on without a server, and what still runs in it is its own affair."""
        if self.deadline is not None:  # else the timer is not ours: a program may use faulthandler's itself
            faulthandler.cancel_dump_traceback_later()
            self.deadline = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        # A stop during start-up cancels at once; there are no requests to wait for.
        cuts = self._count > 1 or self._phase is Phase.STARTING
        grace = 0 if cuts else self._config.timeout_graceful_shutdown
        if cuts or self._phase in (Phase.SERVING, Phase.DRAINING):
            self._arm(grace + self._config.timeout_hard_shutdown, is_final=cuts)
        if self._interrupts:
            raise KeyboardInterrupt
        if self._token is not None:
            # The loop may have ended while this handler was still in place; then there is nobody left to tell.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell_in_loop, self._count)
                self._announce_unheard()

    def _tell_in_loop(self, count: int) -> None:
        assert self._tell is not None
        self._told = count
        self._tell(count)

    def _announce_unheard(self) -> None:
        """Say what follows if the event loop, which announces everything else, is blocked."""
        if self._count < self._told + 2:
            return
        text = (
            "warning: the event loop has not heard the last signal yet; if it never does, the process ends in "
            f"{self._config.timeout_hard_shutdown:g} s, with every thread's stack\n"
        )
        # Not logged: this is the signal handler, and what it interrupted may be in the middle of logging.
        with contextlib.suppress(OSError):
            os.write(self._output, text.encode())

    def _arm(self, seconds: float, *, is_final: bool = False) -> None:
        """Set the hard deadline. Once one is final, it is only ever brought forward."""
        if not self._previous:
            return  # another thread runs us, as part of a program that is not ours to end
        seconds = min(seconds, _LONGEST)
        deadline = time.monotonic() + seconds
        if self._is_final and self.deadline is not None and deadline >= self.deadline:
            return
        self._is_final = self._is_final or is_final
        self.deadline = deadline
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._output)


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
