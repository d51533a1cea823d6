"""A worker: one server in a process of its own, started afresh as ``python -m trioserve.process.worker N``.

N is the number of the pipe through which the supervisor tells it everything, and whose end tells that the supervisor
has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable

import trio

from ..errors import AppLoadError, ConfigError, LifespanError, StartupError
from ..logs import server_log
from ..net.listeners import Listener
from ..observer import Observer, Phase
from ..server import Server, serve_observed
from ..types import ASGIApp
from .deadline import HardDeadline, show_crashes
from .dump import Dump
from .exits import EXIT_CANNOT_START, EXIT_CRASHED, EXIT_DRAINED, report_failure
from .inspection import Inspection
from .inspector_socket import offer
from .job import Job, Order, PassedSocket, Report
from .link import SupervisorLink
from .loader import load_app
from .log_setup import configure_logging
from .pipes import open_shared
from .signals import WorkerSignals, ignore_stops
from .watchdog import Limit, Watchdog, beat_forever


class WorkerRun(Observer):
    """One worker's life; also the task status that hears of the start.

    Orders come in the thread that reads them, and in the signal handler; what is done about them is done in the event
    loop. The hard deadline alone is set at once, as the loop may be blocked.
    """

    def __init__(self, job: Job, link: SupervisorLink) -> None:
        self._job = job
        self._link = link
        self._hard = HardDeadline(job.config)
        self._hard.open()
        self._dump = Dump(f"worker {os.getpid()}")
        self._inspection = Inspection("worker", job.app)
        self._signals = WorkerSignals(self._terminated, self._dump.ask)
        self._token: trio.lowlevel.TrioToken | None = None
        self._asked: list[Order] = []
        self._server: Server | None = None
        self._serves = trio.Event()
        self._scope = trio.CancelScope()
        self._is_cutting = False

    def run(self) -> int:
        """Serve until told to stop, and return the exit code."""
        self._signals.take_over()
        self._link.listen(self._take, self._supervisor_lost)
        try:
            with self._signals.interrupting():
                if self._asked:
                    return EXIT_DRAINED
                config = self._job.config
                application = load_app(self._job.app, app_dir=config.app_dir, factory=config.factory)
        except AppLoadError as error:
            return report_failure(error, EXIT_CANNOT_START)
        except KeyboardInterrupt:
            return EXIT_DRAINED
        with offer(self._inspection, wanted=self._job.config.has_inspector) as instruments:
            failure = trio.run(self._serve, application, instruments=instruments)
        if failure is None:
            return EXIT_DRAINED
        return report_failure(failure, EXIT_CANNOT_START if self._server is None else EXIT_CRASHED)

    async def _serve(self, app: ASGIApp) -> StartupError | LifespanError | None:
        self._token = trio.lowlevel.current_trio_token()
        self._dump.attach()
        self._inspection.loop.attach()
        for order in list(self._asked):
            self._obey(order)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._beat)
            try:
                with self._scope:
                    listeners = [_open_listener(one) for one in self._job.sockets]
                    await serve_observed(app, self._job.config, bound=listeners, observer=self, task_status=self)
            except (StartupError, LifespanError) as error:
                return error
            finally:
                if self._job.config.metrics_bind is not None:
                    self._tell_figures()  # the last, which are kept
                nursery.cancel_scope.cancel()
        return None

    async def _beat(self, task_status: trio.TaskStatus[None]) -> None:
        config = self._job.config
        limits = [] if config.watchdog is None else [Limit(config.watchdog)]
        async with trio.open_nursery() as nursery:
            if limits:
                await nursery.start(Watchdog(*limits).run)
            task_status.started()
            await self._serves.wait()
            nursery.cancel_scope.cancel()
        if self._job.checks_health:  # only now: a long start-up is no fault
            limits.append(Limit(config.timeout_worker_healthcheck, lambda seconds: self._link.report(Report.BLOCKED)))
        if limits:
            await Watchdog(*limits, activities=self._dump.activities, on_beat=self._tell_beat).run()
        elif config.metrics_bind is not None:
            await beat_forever(self._tell_beat)

    def _tell_beat(self, late: float) -> None:
        assert self._server is not None
        self._server.note_loop_lag(late)
        if self._job.config.metrics_bind is not None:
            self._link.tell_figures(self._server.counts())
        self._link.report(Report.BEAT)

    def _tell_figures(self) -> None:
        if self._server is not None:
            self._link.tell_figures(self._server.figures())
            self._link.report(Report.FIGURES)

    # What the server tells

    def started(self, value: Server | None = None) -> None:
        """Announce the server; this is trio.TaskStatus's method, which may do without a value where none is due."""
        assert value is not None
        self._server = self._dump.server = self._inspection.server = value
        self._serves.set()
        self._link.report(Report.READY)

    def limit_reached(self) -> bool:
        # The supervisor retires us once there is a successor, so that no connection waits for one.
        self._link.report(Report.WORN)
        return True

    def phase_changed(self, phase: Phase) -> None:
        self._hard.phase_changed(phase)
        self._inspection.phase = phase
        if phase is Phase.DRAINING and self._server is not None and self._server.statistics().connections:
            self._log(logging.INFO, "stopping: waiting for %s", self._server.describe_waiting())
        elif phase is Phase.CANCELLING:
            self._announce_cut()

    def _announce_cut(self) -> None:
        if not self._is_cutting:
            self._is_cutting = True
            seconds = self._job.config.timeout_hard_shutdown
            self._log(logging.WARNING, "cancelled what still runs; the process ends in %g s if that does not", seconds)

    # What is asked of it

    def _take(self, order: Order) -> None:
        """An order from the supervisor, in the thread that reads them."""
        if order is Order.DUMP:
            self._dump.ask()
        elif order is Order.FIGURES:
            self._run_in_loop(self._tell_figures)
        else:
            self._stop_asked(order)

    def _stop_asked(self, order: Order) -> None:
        self._stop(order)
        self._signals.interrupt()

    def _supervisor_lost(self) -> None:
        # Where errors go has just changed.
        with contextlib.suppress(OSError):
            os.dup2(2, self._hard.output, inheritable=False)
        self._log(logging.WARNING, "the supervisor has ended, so this worker stops, too")
        self._stop_asked(Order.STOP)

    def _terminated(self) -> None:
        """A SIGTERM of our own, in the signal handler."""
        self._link.report(Report.RETIRING)
        self._stop(Order.RETIRE)

    def _stop(self, order: Order) -> None:
        self._hard.stop_asked(cuts=order is Order.CANCEL)
        self._asked.append(order)
        self._run_in_loop(self._obey, order)

    def _run_in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        if self._token is not None:
            # The loop may have ended, and then there is nothing left to do.
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function, *arguments)

    def _obey(self, order: Order) -> None:
        if self._server is None:
            self._scope.cancel()
        elif order is Order.CANCEL:
            self._announce_cut()
            self._scope.cancel()
        elif order is Order.RETIRE:
            self._server.retire()
        else:
            self._server.shutdown()

    def _log(self, level: int, text: str, *arguments: object) -> None:
        server_log.log(level, f"worker %d: {text}", os.getpid(), *arguments)


def _open_listener(passed: PassedSocket) -> Listener:
    if passed.number is None:
        assert passed.shared is not None
        bound = open_shared(passed.shared)
    else:
        bound = socket.socket(fileno=passed.number)
        bound.set_inheritable(False)  # what the application starts must not keep the port open
    return Listener.from_socket(bound, tls=passed.tls, address=passed.address)


def main() -> None:
    """Run the worker that the command line's one argument is about; ends the process."""
    link = SupervisorLink(int(sys.argv[1]))
    job = link.read_job()
    if job is None:
        sys.exit(EXIT_DRAINED)
    sys.path[:] = job.path
    show_crashes()
    try:
        configure_logging(job.config, colors_errors=job.colors)
    except ConfigError as error:  # the file was good when the supervisor read it
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - there is no logging
        sys.exit(EXIT_CANNOT_START)
    code = WorkerRun(job, link).run()
    ignore_stops()
    sys.exit(code)


if __name__ == "__main__":
    main()
