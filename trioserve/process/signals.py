"""SIGINT and SIGTERM, and what else a process is told by signals. The only home of signal.

Everything in a stop is a request to the event loop but the hard deadline behind it, which also works while that is
blocked.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from types import FrameType, TracebackType

import trio

from ..config import Config
from ..logs import server_log
from ..observer import Phase
from .deadline import HardDeadline

ABORT: int | None = None if sys.platform == "win32" else signal.SIGABRT
"""Ends a process after the interpreter has printed the stacks; Windows can only end it, and at once."""

# Ctrl-C, a polite kill, and Ctrl-Break, which is the only one a console program on Windows can be sent.
_STOP_NAMES = ("INT", "TERM", "BREAK")
_SIGNALS = [getattr(signal, f"SIG{name}") for name in _STOP_NAMES if hasattr(signal, f"SIG{name}")]
# Not those that an error of a thread itself raises, such as SIGSEGV.
_MEANT_FOR_ALL = (*_STOP_NAMES, "HUP", "USR1", "TTIN", "TTOU")
_FOR_THE_PROCESS = [getattr(signal, f"SIG{name}") for name in _MEANT_FOR_ALL if hasattr(signal, f"SIG{name}")]
_EARLY_SIGNALS = [getattr(signal, f"SIG{name}") for name in ("HUP", "USR1") if hasattr(signal, f"SIG{name}")]


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
        self._hard = HardDeadline(config, drain_delay=config.drain_delay)
        self._terminal = _Terminal()
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
            for number in _EARLY_SIGNALS:
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._previous[number] = signal.signal(number, self._handle_early)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            _put_back(number, previous)
        if self._ends_process and self._previous:
            ignore_stops()
        # Only now: a signal up to here may have set the deadline anew.
        if not self._ends_process:
            self._hard.disarm()
        self._hard.close()

    def take_back(self) -> None:
        """Take over once more what the application has set handlers for while it was imported."""
        for number in self._previous.keys() & set(_SIGNALS):
            if signal.getsignal(number) != self._handle:
                name = signal.Signals(number).name
                server_log.warning("the application's handler of %s is not called: the signal stops the server", name)
                signal.signal(number, self._handle)

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

    def _handle_early(self, number: int, frame: FrameType | None) -> None:
        """HUP and USR1 before the server listens for them: there is nothing to renew or to dump yet."""
        if self._terminal.has_gone(number):
            self._handle(number, frame)

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


def _put_back(number: int, previous: object) -> None:
    # None stands for a handler that was not installed from Python, and cannot be put back from here.
    signal.signal(number, previous if callable(previous) or isinstance(previous, int) else signal.SIG_DFL)


def ignore_stops() -> None:
    """Ignore the stop signals for what is left of the process, which is nothing but its end.

    When the interpreter ends it gives signals with handlers of Python back to the system, whose way is to kill. Does
    nothing outside the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class HeldInterrupts(trio.abc.Instrument):
    """Lets a Ctrl-C through only while the event loop waits.

    So every thread that the program starts holds it back, and every process that such a thread starts is born with it
    held back, and cannot be hit before it is able to handle it. The process must let it through by itself:
    WorkerSignals.take_over does.
    """

    def __init__(self) -> None:
        self._before: set[int] = set()

    if sys.platform != "win32":  # pragma: no branch - there a worker is in a group that a Ctrl-C does not reach

        def before_run(self) -> None:
            self._before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

        def after_run(self) -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

        def before_io_wait(self, timeout: float) -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

        def after_io_wait(self, timeout: float) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def signal_name(number: int) -> str:
    """Such as "signal SIGKILL"; numbers without a name are shown as they are."""
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


class Heard(Enum):
    """What a signal asks of a supervisor, or of one server in its own process."""

    STOP = "STOP"
    ROLL = "HUP"
    MORE = "TTIN"
    FEWER = "TTOU"
    DUMP = "USR1"


@contextlib.contextmanager
def hear_signals(*wanted: Heard) -> Iterator[AsyncIterator[Heard]]:
    """Take over these signals, all if none is named, and give what they ask as it comes.

    Outside the main thread nothing comes. The end of the terminal that we were started in is a STOP.
    """
    meanings = {
        getattr(signal, f"SIG{name}"): heard
        for heard in wanted or Heard
        for name in (_STOP_NAMES if heard is Heard.STOP else (heard.value,))
        if hasattr(signal, f"SIG{name}")
    }
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and meanings):  # or the system has none of them
        with _silence() as silence:
            yield silence
        return
    terminal = _Terminal()
    with trio.open_signal_receiver(*meanings) as numbers:
        yield (Heard.STOP if terminal.has_gone(number) else meanings[number] async for number in numbers)


@contextlib.contextmanager
def hear_dumps(asked: Callable[[], None]) -> Iterator[None]:
    """Call ``asked`` for each SIGUSR1, in a thread of its own: the event loop may be blocked.

    Outside the main thread, and where there is no such signal, nothing is heard.
    """
    number: int | None = getattr(signal, f"SIG{Heard.DUMP.value}", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, lambda number, frame: _start_thread(asked))
    try:
        yield
    finally:
        _put_back(number, previous)


def _start_thread(function: Callable[[], None]) -> None:
    """In a signal handler: start a thread, if there is one to be had."""
    # Not threading's: the main thread may have been interrupted while it holds a lock of that.
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(function, ())


@contextlib.contextmanager
def deaf_threads() -> Iterator[None]:
    """Threads that are started in this block take no signal that is meant for the process.

    Handlers run in the main thread alone. The system wakes whichever thread takes a signal, and if that is another one
    while an application sleeps in the main thread, the handler waits until that has slept enough. What the main thread
    holds back would come to them, too.
    """
    if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PROCESS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _silence() -> Iterator[AsyncIterator[Heard]]:
    send, receive = trio.open_memory_channel[Heard](0)
    with send:
        yield receive


def terminate_self() -> None:
    """Do what a SIGTERM does."""
    signal.raise_signal(signal.SIGTERM)


class _Terminal:
    """Tells the SIGHUP of a terminal that has gone from one that somebody sent."""

    def __init__(self) -> None:
        # Under nohup the end of the terminal is nothing to us.
        self._hangup: int | None = getattr(signal, "SIGHUP", None)
        ignored = self._hangup is None or signal.getsignal(self._hangup) == signal.SIG_IGN
        self._counts = not ignored and self._is_there()

    def has_gone(self, number: int) -> bool:
        return self._counts and number == self._hangup and not self._is_there()

    def _is_there(self) -> bool:
        if sys.platform != "win32":  # pragma: no branch - the tests run on POSIX
            with contextlib.suppress(OSError):
                os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
                return True
        return False


class WorkerSignals:
    """A worker's signals: a Ctrl-C is for the supervisor, which hears it too, and a SIGTERM is told to ``terminated``.

    ``asked`` is called in a thread of its own for each SIGUSR1. Entered in the main thread, for the rest of the
    process.
    """

    def __init__(self, terminated: Callable[[], None], asked: Callable[[], None]) -> None:
        self._terminated = terminated
        self._asked = asked
        self._interrupts = False

    def take_over(self) -> None:
        # Not SIG_IGN, which what the application starts would inherit.
        signal.signal(signal.SIGINT, _ignore)
        signal.signal(signal.SIGTERM, self._handle)
        if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX
            # Ctrl-Break, and the end of the console, reach every process of it, so also the supervisor.
            signal.signal(signal.SIGBREAK, _ignore)
        else:
            # The end of a terminal is the supervisor's affair, too.
            signal.signal(signal.SIGHUP, _ignore)
            signal.signal(signal.SIGUSR1, lambda number, frame: _start_thread(self._asked))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """``interrupt`` and a SIGTERM raise KeyboardInterrupt in this block: imports, before there is an event loop."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def interrupt(self) -> None:
        """From another thread: do in the main thread what a SIGTERM does, if it is interrupting."""
        if not self._interrupts:
            return
        if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX
            _thread.interrupt_main(signal.SIGTERM)
        else:
            # Sent to that very thread, so that it also ends a wait there.
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._terminated()
        if self._interrupts:
            raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None: ...
