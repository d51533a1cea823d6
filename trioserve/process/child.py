"""A worker as its supervisor sees it: a subprocess that is given a job, told things, listened to and waited for.

The only home of subprocess.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from ..config import Config
from ..figures import Figures, lateness, sum_up
from ..logs import server_log
from ..net.listeners import Listener
from ..types import AnyValue, PlainValues
from .job import Job, Order, PassedSocket, Report, order_line, read_figures, read_report
from .log_setup import wants_colors
from .output import ErrorOutput
from .pipes import READER_GONE, inheritance, make_pipe, number_for_worker, open_reader, share_socket
from .signals import ABORT, signal_name
from .watchdog import BEAT, BEATS

_PATIENCE = 5.0
"""Seconds more than a worker's own deadlines give it, before it is killed."""

_LAST_WORDS = 1.0
"""Seconds for what a dead worker has left in its pipes; what it started may hold them open for longer."""

_WATCHDOG_PATIENCE = 2.0
"""Seconds more that a worker whose event loop is blocked has to say so itself, with the stacks."""

_ABORT_PATIENCE = 1.0
"""Seconds for the interpreter to print the stacks of a worker that cannot do it itself."""


class Worker:
    """One worker process, which starts in ``folder``.

    ``on_news`` is called, in the event loop, at each change of the public attributes.
    """

    def __init__(
        self,
        app: str,
        config: Config,
        listeners: Sequence[Listener],
        on_news: Callable[[], None],
        *,
        folder: str = os.curdir,
    ) -> None:
        self._app = app
        self._folder = folder
        self._config = config
        self._listeners = listeners
        self._on_news = on_news
        self._process: trio.Process | None = None
        self._orders = -1
        self._asked: Order | None = None
        self._checks_health = not config.reload  # a developer may sit in a debugger
        self._deadline = trio.CancelScope()  # of the wait for its end
        self._is_ready = trio.Event()
        self._last_beat = 0.0
        self._figures_told = trio.Event()  # after the last question; made anew with the next
        self._figures_told.set()
        self.output = ErrorOutput()
        self.pid = 0
        self.ready_at: float | None = None
        """When it reported that it serves, by Trio's clock; None before."""
        self.is_worn = False
        """It asks for a successor."""
        self.is_leaving = False
        """It finishes what it has, and takes nothing new."""
        self.is_blocked = False
        """Its event loop did not run for timeout_worker_healthcheck, so it is killed."""
        self.figures: Figures = {}
        """What it has told of itself."""
        self.exit_code: int | None = None
        """None while it runs; the negative number of a signal if that ended it."""

    @property
    def name(self) -> str:
        return f"worker {self.pid}"

    @property
    def has_ended(self) -> bool:
        return self.exit_code is not None

    @property
    def serves(self) -> bool:
        """It is ready, and nothing is known that keeps it from taking requests."""
        return self.ready_at is not None and not (self.has_ended or self.is_leaving or self.is_blocked)

    @property
    def seconds_served(self) -> float:
        """Since it was ready."""
        return 0 if self.ready_at is None else trio.current_time() - self.ready_at

    @property
    def seconds_silent(self) -> float:
        """Since it was heard of last."""
        return trio.current_time() - self._last_beat

    @property
    def seconds_late(self) -> float:
        """How late its event loop is at least by now, which it cannot tell itself while it is."""
        return max(0.0, self.seconds_silent - BEAT) if self.serves else 0.0

    def is_heard(self, within: float) -> bool:
        """Whether it is ready, and was heard of in so many seconds, or is one that may be silent."""
        return self.ready_at is not None and (not self._checks_health or self.seconds_silent < within)

    def to_plain(self, now: float) -> PlainValues:
        """What is known of it; ``now`` is Trio's. For any thread."""
        state = "starting" if self.ready_at is None else "serving"
        if self.is_blocked or self.is_leaving:
            state = "blocked" if self.is_blocked else "leaving"
        seconds = None if self.ready_at is None else round(now - self.ready_at, 3)
        return {"kind": "worker", "pid": self.pid, "state": state, "served_for": seconds}

    def describe_end(self) -> str:
        """How it ended, with its last error line, word for word."""
        assert self.exit_code is not None
        if self.exit_code < 0:
            text = f"{self.name} was ended by {signal_name(-self.exit_code)}"
        else:
            text = f"{self.name} ended with exit code {self.exit_code}"
        if self.ready_at is None:
            text += " before it was ready"
        # The last line of one that was blocked is the end of what its watchdog said.
        last = None if self.is_blocked else self.output.last_line
        return text if last is None else f"{text}; its last error line: {last}"

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the process, and see it to its end; killed if this is cancelled. Raises OSError if it cannot start."""
        process, reports, numbers = await self._start()
        try:
            self._tell(self._make_job(*numbers).to_line())
            if self._asked is not None:
                self._tell(order_line(self._asked))
            task_status.started()
            assert process.stderr is not None
            async with trio.open_nursery() as nursery:
                for attend, stream in ((self._show_errors, process.stderr), (self._hear, reports)):
                    nursery.start_soon(attend, stream)
                await self._wait_for_end(process)
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()  # a killed process ends
            os.close(self._orders)
            self.exit_code = process.returncode
            self._figures_told.set()
            self._on_news()

    async def _start(self) -> tuple[trio.Process, trio.abc.ReceiveStream, tuple[int, int]]:
        """Start the process; returns it, what it reports, and its numbers for reports and errors."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            orders, writing = _open_pipe(theirs, ours)
            reading, reporting = _open_pipe(ours, theirs)
            errors = _own_errors()
            theirs.callback(os.close, errors)
            numbers = (number_for_worker(reporting), number_for_worker(errors))
            process = await self._open_process((orders, reporting, errors))
            ours.pop_all()
        self._process, self.pid, self._orders = process, process.pid, writing
        return process, open_reader(reading), numbers

    async def _open_process(self, descriptors: Sequence[int]) -> trio.Process:
        options: AnyValue = inheritance(descriptors, [one.raw_socket.fileno() for one in self._listeners])
        program = sys.executable
        if sys.platform == "win32":  # pragma: no cover - the tests run on POSIX; `nox -s windows` runs this
            options = {
                "startupinfo": subprocess.STARTUPINFO(lpAttributeList=options),
                "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP,  # which a Ctrl-C does not reach
            }
            base: str = sys._base_executable  # type: ignore[attr-defined]  # multiprocessing's way
            if base != program:
                # The python.exe of a virtual environment only starts another process and waits for it, and the sockets
                # would be shared with the wrong one.
                options["env"] = {**os.environ, "__PYVENV_LAUNCHER__": program}
                program = base
        command = [program, *_interpreter_flags(self._config, self._folder), "-m", "trioserve.process.worker"]
        return await trio.lowlevel.open_process(
            [*command, str(number_for_worker(descriptors[0]))],
            stderr=subprocess.PIPE,
            cwd=_find_again(self._folder),
            **options,
        )

    def _make_job(self, reports: int, errors: int) -> Job:
        return Job(
            app=self._app,
            config=self._config,
            sockets=[_pass_socket(one, self.pid) for one in self._listeners],
            path=sys.path,
            reports=reports,
            errors=errors,
            colors=wants_colors(self._config.use_colors, sys.stderr),
            checks_health=self._checks_health,
        )

    async def _wait_for_end(self, process: trio.Process) -> None:
        with self._deadline:
            async with trio.open_nursery() as nursery:
                if self._checks_health:
                    nursery.start_soon(self._watch_health, process)
                await process.wait()
                nursery.cancel_scope.cancel()
        if process.returncode is None:
            server_log.error("%s has not ended in time and is killed", self.name)
            process.kill()
            await process.wait()

    # Listening

    async def _show_errors(self, stream: trio.abc.ReceiveStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in stream:
                    self.output.take(bytes(data))

    async def _hear(self, stream: trio.abc.ReceiveStream) -> None:
        rest = b""
        async with stream:
            async for data in stream:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if (figures := read_figures(line)) is not None:
                        if not self.is_blocked:  # we have told the rest for it, and no sum may come down
                            self.figures.update(figures)
                    elif (report := read_report(line)) is not None:
                        self._take_report(report)

    def _take_report(self, report: Report) -> None:
        late = self.seconds_late
        self._last_beat = trio.current_time()
        if report is Report.BEAT:
            return
        if report is Report.FIGURES:
            self._figures_told.set()
            return
        if report is Report.READY:
            self.ready_at = self._last_beat
            self._is_ready.set()
        elif report is Report.WORN:
            self.is_worn = True
        elif report is Report.RETIRING:
            self.is_leaving = True
        elif not self.is_leaving:
            self._tell_blockage(late)
            assert self._process is not None
            self._process.kill()
        self._on_news()

    async def _watch_health(self, process: trio.Process) -> None:
        """End the worker if it falls silent: then something holds the interpreter, and its own watchdog too."""
        await self._is_ready.wait()
        # Its watchdog looks only so often.
        patience = self._config.timeout_worker_healthcheck * (1 + 1 / BEATS) + _WATCHDOG_PATIENCE
        while not self.is_leaving:
            due = self._last_beat + patience
            await trio.sleep_until(due)
            if trio.current_time() > due + _WATCHDOG_PATIENCE:
                self._last_beat = trio.current_time()  # we were stopped ourselves, and the beats wait to be read
            elif self._last_beat + patience <= due and not self.is_leaving:
                self._tell_blockage(self.seconds_late)
                if ABORT is not None:  # pragma: no branch - the tests run on POSIX
                    process.send_signal(ABORT)
                    await trio.sleep(_ABORT_PATIENCE)
                process.kill()
                return

    def _tell_blockage(self, late: float) -> None:
        self.is_blocked = True
        self.figures = sum_up([self.figures, lateness(late), {("event_loop_late_seconds",): late}])
        seconds = self._config.timeout_worker_healthcheck
        server_log.error("%s: the event loop has been blocked for more than %g s, so it is killed", self.name, seconds)

    # Telling

    def ask_figures(self) -> trio.Event:
        """Ask for the figures of this moment, if it can have some; the event says when no more are to be waited for."""
        # Not again while it has not answered: one that is stopped reads nothing, and its pipe must not fill.
        if self.ready_at is not None and not self.has_ended and self._figures_told.is_set():
            self._figures_told = trio.Event()
            self._tell(order_line(Order.FIGURES))
        return self._figures_told

    def order(self, order: Order) -> None:
        """Tell the worker; every order but DUMP also sets a time at which it is killed."""
        if order is not Order.DUMP:
            config = self._config
            grace = 0 if order is Order.CANCEL or self.ready_at is None else config.timeout_graceful_shutdown
            # The worker has a hard deadline of its own in each of the phases that are left.
            allowed = grace + config.timeout_shutdown + 3 * config.timeout_hard_shutdown + _PATIENCE
            self._deadline.deadline = min(self._deadline.deadline, trio.current_time() + allowed)
            self.is_leaving = True
            self._asked = order
        if self._process is not None and not self.has_ended:
            self._tell(order_line(order))

    def _tell(self, line: bytes) -> None:
        # It may be dead already, which is heard in another way.
        with contextlib.suppress(READER_GONE):
            while line:
                line = line[os.write(self._orders, line) :]


def _open_pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe, (reading end, writing end), and who closes which."""
    reading, writing = make_pipe()
    reader.callback(os.close, reading)
    writer.callback(os.close, writing)
    return reading, writing


def _find_again(folder: str) -> str | None:
    """The folder by its name: it may have been removed, and made again, since we started. None if it is not there."""
    return folder if Path(folder).is_dir() else None


def _pass_socket(listener: Listener, pid: int) -> PassedSocket:
    shared = share_socket(listener.raw_socket, pid)
    number = listener.raw_socket.fileno() if shared is None else None
    return PassedSocket(listener.address, listener.tls, number, shared)


def _own_errors() -> int:
    """A copy of our error output, for a worker that outlives us."""
    try:
        return os.dup(2)
    except OSError:  # a process without a console
        return os.open(os.devnull, os.O_WRONLY)


def _interpreter_flags(config: Config, folder: str) -> list[str]:
    """Our own -X, -W, -O and so on, for a worker that starts in this folder."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # multiprocessing's way
    # Without -P a module in the current folder would hide one of the same name in the standard library; but trioserve
    # itself may be found only there.
    if "-P" not in flags and str(Path(__file__).parents[2]) != folder:
        flags.append("-P")
    if config.reload:
        # A file that changes twice in a second, and keeps its size, would be taken from the cache.
        flags.append("-B")
    return flags
