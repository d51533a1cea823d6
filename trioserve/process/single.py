"""One server in this process: serves until a signal stops it."""

from __future__ import annotations

import trio

from ..errors import LifespanError, StartupError, TrioserveError
from ..figures import Figures
from ..logs import server_log
from ..observer import Observer, Phase
from ..server import Server, serve_observed
from ..types import ASGIApp
from .admin import Admin, Page, health_pages
from .banner import announce
from .certificates import CertificateKeeper, sign_files
from .dump import Dump
from .exits import EXIT_CANNOT_START, EXIT_CRASHED, EXIT_DRAINED, report_failure
from .inspection import Inspection
from .inspector_page import inspector_pages
from .inspector_socket import offer
from .pid_file import PidFile
from .settings import Settings
from .signals import Heard, StopSignals, hear_dumps, hear_signals, terminate_self
from .systemd import Notifier
from .watchdog import Limit, Watchdog, beat_forever


class Single(Observer):
    """One run of the event loop; also the task status that hears of the start."""

    def __init__(self, app: ASGIApp, name: str, settings: Settings, signals: StopSignals, pid_file: PidFile) -> None:
        self._app = app
        self._name = name
        self._settings = settings
        self._signals = signals
        self._pid_file = pid_file
        self._notifier = Notifier.from_environment()
        self._dump = Dump()
        self._inspection = Inspection("server", name)
        self._certificates: CertificateKeeper | None = None
        self._server: Server | None = None
        self._serves = trio.Event()
        self._scope = trio.CancelScope()
        self._is_stopping = self._is_cutting = False
        self._stop_is_due = trio.Event()  # after the drain_delay

    def run(self) -> int:
        with offer(self._inspection, wanted=self._settings.config.has_inspector) as instruments:
            error = trio.run(self._serve, instruments=instruments)
        if error is not None:
            return report_failure(error, EXIT_CANNOT_START if self._server is None else EXIT_CRASHED)
        if self._server is None:
            server_log.info("stopped before the start")
        else:
            served = self._server.statistics().requests_total
            server_log.info("stopped: %s served", "1 request" if served == 1 else f"{served} requests")
        return EXIT_DRAINED

    async def _serve(self) -> TrioserveError | None:
        self._signals.attach(trio.lowlevel.current_trio_token(), self._signalled)
        failure: TrioserveError | None = None
        self._dump.attach()
        self._inspection.loop.attach()
        async with trio.open_nursery() as attendants:
            await attendants.start(self._hear_signals)
            attendants.start_soon(self._feed_watchdog)
            await attendants.start(self._watch_loop)
            attendants.start_soon(self._keep_certificates)
            attendants.start_soon(self._stop_later)
            try:
                if self._settings.config.metrics_bind is not None:
                    await attendants.start(Admin(self._settings.config, self._pages(), self._take_figures).run)
                with self._scope:
                    await serve_observed(self._app, self._settings.config, observer=self, task_status=self)
            except (StartupError, LifespanError) as error:
                failure = error
            attendants.cancel_scope.cancel()
        return failure

    # What goes on beside the server

    async def _hear_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with hear_dumps(self._dump.ask), hear_signals(Heard.ROLL) as signals:
            task_status.started()
            async for heard in signals:
                if heard is Heard.STOP:
                    terminate_self()
                elif self._certificates is not None and not self._is_stopping:
                    self._notifier.reloading()
                    self._certificates.renew()
                    self._notifier.ready("serving")

    async def _keep_certificates(self) -> None:
        loaded_from = sign_files(self._settings.config)  # before the server reads them
        await self._serves.wait()
        assert self._server is not None
        self._certificates = CertificateKeeper(self._server, self._settings.config, loaded_from=loaded_from)
        await self._certificates.run()

    async def _watch_loop(self, task_status: trio.TaskStatus[None]) -> None:
        config = self._settings.config
        if config.watchdog is not None:
            limit = Limit(config.watchdog)
            await Watchdog(limit, activities=self._dump.activities, on_beat=self._note_beat).run(task_status)
        else:
            task_status.started()
            if config.metrics_bind is not None:
                await beat_forever(self._note_beat)

    def _note_beat(self, late: float) -> None:
        if self._server is not None:
            self._server.note_loop_lag(late)

    async def _feed_watchdog(self) -> None:
        """Tell systemd's watchdog that the event loop runs."""
        while self._notifier.watchdog_interval is not None:
            self._notifier.watchdog()
            await trio.sleep(self._notifier.watchdog_interval)

    def _pages(self) -> dict[str, Page | str]:
        """What is served beside the application, on an address of its own."""
        return {**health_pages(self._why_not_ready), **inspector_pages(self._inspection, self._settings.config)}

    async def _take_figures(self) -> Figures:
        figures = {} if self._server is None else self._server.figures()
        own = "starting" if self._server is None else "leaving" if self._is_stopping else "serving"
        # A supervisor's words, so that the same alerts fit.
        return figures | {("workers", state): float(state == own) for state in ("starting", "serving", "leaving")}

    def _why_not_ready(self) -> str | None:
        if self._is_stopping:
            return "draining"
        return "starting" if self._server is None else None

    # What the server tells

    def started(self, value: Server | None = None) -> None:
        """Announce the server; this is trio.TaskStatus's method, which may do without a value where none is due."""
        assert value is not None
        self._server = self._dump.server = self._inspection.server = value
        self._serves.set()
        self._pid_file.publish()
        self._notifier.ready("serving")
        announce(self._name, value.urls, self._settings)

    def phase_changed(self, phase: Phase) -> None:
        self._signals.phase_changed(phase)
        self._inspection.phase = phase
        if phase in (Phase.DRAINING, Phase.CANCELLING):
            self._is_stopping = True
            self._notifier.stopping("stopping")
        if phase is Phase.CANCELLING and not self._is_cutting:
            self._announce_cut()

    def _announce_cut(self) -> None:
        seconds = self._settings.config.timeout_hard_shutdown
        if self._is_cutting:
            text = "still cleaning up; the process ends %g s after the cancel, with every thread's stack"
        else:
            text = "cancelled; the process ends in %g s if clean-up takes longer, with every thread's stack"
        server_log.warning(text, seconds)
        self._is_cutting = True

    # What signals ask

    def _signalled(self, count: int) -> None:
        if self._server is None or count > 1:
            # Said here already: a handler that does not end may keep the server from saying that it cancels.
            self._announce_cut()
            self._scope.cancel()
            return
        delay = self._settings.config.drain_delay
        if delay and not self._is_stopping:
            self._is_stopping = True  # for /readyz
            self._notifier.stopping(f"serving on for {delay:g} s")
            server_log.info("not ready any more; serving on for %g s, then stopping; Ctrl-C again cuts both", delay)
            self._stop_is_due.set()
        else:
            self._stop()

    async def _stop_later(self) -> None:
        await self._stop_is_due.wait()
        await trio.sleep(self._settings.config.drain_delay)
        self._stop()

    def _stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        if self._server.statistics().connections:
            server_log.info("stopping: waiting for %s; Ctrl-C again cuts them", self._server.describe_waiting())
        else:
            server_log.info("stopping")
