"""SIGINT and SIGTERM, and what else a process is told by signals. The only home of signal.

Everything in a stop is a request to the event loop but the hard deadline behind it, which also works while that is
blocked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

import trio

from ..config import Config
from ..observer import Phase
from .deadline import HardDeadline

# Ctrl-C, a polite kill, and Ctrl-Break, which is the only one a console program on Windows can be sent.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


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
        self._hard = HardDeadline(config)
        self._count = 0
        self._told = 0
        self._interrupts = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._tell: Callable[[int], None] | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._hard.open()
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
            self._hard.disarm()
        self._hard.close()

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

    @property
    def deadline(self) -> float | None:
        return self._hard.at

    def phase_changed(self, phase: Phase) -> None:
        """Bring the hard deadline in line with what the server does now."""
        self._hard.phase_changed(phase)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self._hard.stop_asked(cuts=self._count > 1)
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
            os.write(self._hard.output, text.encode())
