"""The supervisor: an ordinary Trio program that keeps workers running, and ends when the last of them has ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ..errors import AppLoadError, StartupError
from ..figures import Figures
from ..logs import server_log
from ..net.tls import load_tls
from ..observer import Phase
from ..types import PlainValues
from ..wire.codecs import codec_name
from .admin import Admin, Page, health_pages
from .banner import announce
from .child import Worker
from .exits import EXIT_CANNOT_START, EXIT_CRASHED, EXIT_DRAINED, report_failure
from .inspection import Inspection
from .inspector_folder import sweep_folders
from .inspector_page import inspector_pages
from .job import Order
from .loader import add_app_dir
from .pid_file import PidFile
from .settings import Settings
from .signals import Heard, hear_signals
from .sockets import Sockets
from .systemd import Notifier
from .totals import Totals

ANSWER_PATIENCE = 2.0
"""Seconds that every worker must be silent until we are not ready. Eight beats, of which a busy machine may delay some;
and less than what most load balancers let pass between two questions.
"""


class Keeper(Protocol):
    """What decides when workers start and retire: the pool of slots, or the reloader."""

    async def run(self) -> None:
        """Keep workers running until cancelled."""

    def heard(self, signal: Heard) -> None:
        """A signal has come that is not about stopping, nor a DUMP."""


class Supervisor:
    """Owns the sockets and the processes; a keeper decides when workers start and retire."""

    def __init__(
        self, app: str, settings: Settings, make_keeper: Callable[[Supervisor], Keeper], pid_file: PidFile
    ) -> None:
        self._app = app
        self._settings = settings
        self._pid_file = pid_file
        self._folder = _current_folder()
        self.config = settings.config
        self.sockets = Sockets(self.config)
        self.workers: list[Worker] = []
        """All that run, also those that are starting or leaving."""
        self.totals = Totals()
        self.notifier = Notifier.from_environment()
        self._keeper = make_keeper(self)
        self._processes: trio.Nursery | None = None
        self._keeping = trio.CancelScope()
        self._exit_code = EXIT_DRAINED
        self._stops = 0
        self._stop_is_due = trio.Event()  # after the drain_delay
        self._delay = trio.CancelScope()
        self._has_announced = False
        self.inspection = Inspection("supervisor", app, workers=self._describe_workers)

    async def run(self) -> int:
        """Serve until told to stop, and return the exit code."""
        self.inspection.loop.attach()
        async with trio.open_nursery() as services:
            await services.start(self._hear_signals)
            services.start_soon(self._feed_watchdog)
            services.start_soon(self._stop_later)
            try:
                if self._folder == os.curdir:
                    raise AppLoadError("the current folder does not exist any more")
                codec_name(self.config)
                self._try_tls()
                await self.sockets.bind()
                if self.config.metrics_bind is not None:
                    await services.start(Admin(self.config, self._pages(), self._take_figures).run)
                async with trio.open_nursery() as self._processes:
                    with self._keeping:
                        await self._keeper.run()
                    await self._end()
            except StartupError as error:
                return report_failure(error, EXIT_CANNOT_START)
            finally:
                await self.sockets.aclose()
                services.cancel_scope.cancel()
        if not self._exit_code:
            server_log.info("stopped" if self._has_announced else "stopped before the start")
        return self._exit_code

    def _try_tls(self) -> None:
        """Fail before anything starts if there can be no TLS context; each worker makes its own."""
        if self.config.ssl_context_factory is not None:
            if self.config.reload:
                return  # it may be in what is being written
            add_app_dir(self.config.app_dir)
        load_tls(self.config)

    def _pages(self) -> dict[str, Page | str]:
        """What is served beside the application, on an address of its own."""
        return {**health_pages(self._why_not_ready), **inspector_pages(self.inspection, self.config)}

    async def _take_figures(self) -> Figures:
        return await self.totals.take(self.workers)

    def _why_not_ready(self) -> str | None:
        if self._stops or self._keeping.cancel_called:
            return "draining"
        serving = [one for one in self.workers if one.serves]
        if not serving:
            return "no worker serves" if self._has_announced else "starting"
        return None if any(one.is_heard(ANSWER_PATIENCE) for one in serving) else "no worker answers"

    # For the keeper

    async def start_worker(self, slot: int, on_news: Callable[[], None]) -> Worker:
        """Start a process, and return without waiting for it to be ready; it ends by itself or by an order.

        ``on_news`` is called when anything about it changes. Raises OSError, or BindError, if it cannot be started.
        """
        assert self._processes is not None
        listeners = self.sockets.of_slot(slot)
        worker = Worker(self._app, self.config, listeners, on_news, folder=self._folder)
        await self._processes.start(self._attend, worker)
        return worker

    def serving(self) -> None:
        """A worker is ready."""
        if self._stops:
            return  # what is replaced during the drain_delay is no news
        if not self._has_announced:
            self._pid_file.publish()
        count = sum(one.serves for one in self.workers)
        self.notifier.ready("1 worker serves" if count == 1 else f"{count} workers serve")
        if not self._has_announced:
            self._has_announced = True
            self.inspection.phase = Phase.SERVING
            announce(self._app, self.sockets.urls, self._settings)

    def stop(self, exit_code: int = EXIT_DRAINED) -> None:
        """Begin to stop; the first exit code that is no success stays."""
        self._exit_code = self._exit_code or exit_code
        self.inspection.phase = Phase.DRAINING
        self._keeping.cancel()
        self._delay.cancel()

    # Processes

    async def _attend(self, worker: Worker, task_status: trio.TaskStatus[None]) -> None:
        self.workers.append(worker)
        try:
            await worker.run(task_status)
        finally:
            self.workers.remove(worker)
            self.totals.keep(worker)
            if self.config.has_inspector:
                sweep_folders()  # one that was killed has left its socket
        if worker.exit_code == EXIT_CANNOT_START and worker.ready_at is None:
            return  # it has said why
        if not worker.exit_code and worker.is_leaving:
            server_log.info("%s has ended", worker.name)
            return
        server_log.error("%s", worker.describe_end())
        if self._keeping.cancel_called and worker.ready_at is not None:
            self._exit_code = self._exit_code or EXIT_CRASHED

    async def _end(self) -> None:
        self.notifier.stopping("waiting for the workers")
        for worker in self.workers:
            worker.order(Order.STOP)
        # New connections are refused from here on, whatever the workers still have to do.
        await self.sockets.aclose()

    def _describe_workers(self) -> tuple[Sequence[str], list[PlainValues]]:
        """Where they listen, and what is known of each; in any thread."""
        return self.sockets.urls, [one.to_plain(self.inspection.loop.now()) for one in list(self.workers)]

    # Signals

    async def _hear_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with hear_signals() as signals:
            task_status.started()
            async for signal in signals:
                if signal is Heard.STOP:
                    self._stop_asked()
                elif signal is Heard.DUMP:
                    for worker in self.workers:
                        worker.order(Order.DUMP)
                elif not self._stops:
                    self._keeper.heard(signal)

    def _stop_asked(self) -> None:
        self._stops += 1
        delay = self.config.drain_delay
        if self._stops == 1 and delay and self._has_announced and not self._keeping.cancel_called:
            self.notifier.stopping(f"serving on for {delay:g} s")
            server_log.info("not ready any more; serving on for %g s, then stopping; Ctrl-C again cuts both", delay)
            self._stop_is_due.set()
        elif self._stops == 1:
            self._stop()
        else:
            server_log.warning("cancelling what the workers still do")
            for worker in self.workers:
                worker.order(Order.CANCEL)
            self.stop()

    async def _stop_later(self) -> None:
        with self._delay:
            await self._stop_is_due.wait()
            await trio.sleep(self.config.drain_delay)
            self._stop()

    def _stop(self) -> None:
        if count := len(self.workers):
            server_log.info("stopping %d worker%s; Ctrl-C again cuts what they still do", count, "s" * (count != 1))
        else:
            server_log.info("stopping")
        self.stop()

    async def _feed_watchdog(self) -> None:
        """Tell systemd's watchdog that all is well, as long as some worker's event loop runs."""
        interval = self.notifier.watchdog_interval
        if interval is None:
            return
        # A worker whose beats do not come in this time is killed; under --reload there may be no worker.
        patience = max(2 * interval, self.config.timeout_worker_healthcheck)
        while True:
            beats = any(one.is_heard(patience) for one in self.workers)
            if beats or self.config.reload or not self._has_announced:
                self.notifier.watchdog()
            await trio.sleep(interval)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return os.curdir
