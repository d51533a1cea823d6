"""Starts the application anew when a file changes, for development."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import trio

from ..bell import Bell
from ..errors import StartupError
from ..logs import server_log
from ..net.listeners import Listener
from ..observer import Observer
from ..server import Server, serve_observed
from ..types import ASGIApp
from .child import Worker
from .error_page import make_error_page
from .job import Order
from .signals import Heard
from .supervisor import Supervisor
from .totals import Restart, why_ended
from .watcher import Watcher

_PAGE_PATIENCE = 1.0
"""Seconds in which requests for the page may still be answered when a worker starts."""


class Reloader:
    """Keeps one worker. A change, a HUP or its own wish makes it stop and another start.

    An application that cannot start, or dies, leaves its trace in the log, and on a page that answers every request
    until the next change. Connections made while no worker serves wait in the listener's queue.
    """

    def __init__(self, supervisor: Supervisor, watcher: Watcher) -> None:
        self._supervisor = supervisor
        self._watcher = watcher
        self._news = Bell()
        self._reason: str | None = None  # why to start anew

    async def run(self) -> None:
        """Keep a worker running until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watcher.run, self._changed)
            server_log.info("%s", self._watcher.description)
            if self._watcher.hint is not None:
                server_log.info("%s", self._watcher.hint)
            while True:
                await self._run_worker()

    def heard(self, signal: Heard) -> None:
        if signal is Heard.ROLL:
            self._start_anew("SIGHUP")
        else:
            server_log.warning("signal %s is ignored: with --reload there is one worker", signal.value)

    def _changed(self, paths: Sequence[Path]) -> None:
        first = _shorten(paths[0])
        self._start_anew(f"{first} changed" if len(paths) == 1 else f"{first} and {len(paths) - 1} more changed")

    def _start_anew(self, reason: str) -> None:
        self._reason = reason
        self._news.ring()

    async def _run_worker(self) -> None:
        """Start a worker, and return when it has ended and another is to start."""
        self._reason = None
        try:
            worker = await self._supervisor.start_worker(0, self._news.ring)
        except OSError as error:
            text = f"cannot start a worker: {error.strerror or error}"
            server_log.error("%s", text)
            await self._wait_for_reason("The application does not start", text)
            return
        reason = await self._wait_for_news(worker)
        if reason is not None:
            self._supervisor.totals.count_restart(Restart.WORN if worker.is_worn else Restart.ROLLED)
            server_log.info("%s: starting anew", reason)
            self._supervisor.notifier.reloading()
            worker.order(Order.STOP)
            while not worker.has_ended:
                await self._news.wait()
            return
        self._supervisor.totals.count_restart(why_ended(worker))
        if not worker.is_leaving:
            title = "The application does not start" if worker.ready_at is None else "The application has ended"
            await self._wait_for_reason(title, worker.output.text or worker.describe_end())

    async def _wait_for_news(self, worker: Worker) -> str | None:
        """Wait until the worker has ended, or there is a reason that it should, which is returned."""
        is_announced = False
        while not worker.has_ended and self._reason is None:
            if worker.is_worn:
                return f"{worker.name} has served limit_max_requests"
            if worker.serves and not is_announced:
                is_announced = True
                self._supervisor.serving()
            await self._news.wait()
        return self._reason

    async def _wait_for_reason(self, title: str, text: str) -> None:
        """Show why nothing runs, until there is a reason to try again."""
        # Who is behind a proxy may be no developer.
        shown = "" if self._supervisor.config.forwarded_allow_ips else text
        async with trio.open_nursery() as nursery:
            page: Server | None = await nursery.start(self._show, make_error_page(title, shown))
            if page is None:
                server_log.warning("waiting for a change")
            else:
                self._supervisor.serving()
                server_log.warning("waiting for a change; until then every request gets 503 and the reason")
            while self._reason is None:
                await self._news.wait()
            if page is not None:
                page.shutdown(_PAGE_PATIENCE)
        server_log.info("%s: starting anew", self._reason)

    async def _show(self, page: ASGIApp, task_status: trio.TaskStatus[Server | None]) -> None:
        config = self._supervisor.config.replace(lifespan="off", factory=False, limit_max_requests=None)
        if config.ssl_context_factory is not None:
            # It is the user's code, which has no place in this process: it may be old by the next change, or end it.
            task_status.started(None)
            return
        listeners = [_copy(one) for one in self._supervisor.sockets.of_slot(0)]
        try:
            await serve_observed(page, config, bound=listeners, observer=Observer(), task_status=task_status)
        except StartupError as error:  # the certificate may be what has just been broken
            server_log.error("%s", error)
            task_status.started(None)


def _copy(listener: Listener) -> Listener:
    return Listener.from_socket(listener.raw_socket.dup(), tls=listener.tls, address=listener.address)


def _shorten(path: Path) -> Path:
    # The current folder may be what has been removed.
    with contextlib.suppress(OSError, ValueError):
        return path.relative_to(Path.cwd())
    return path
