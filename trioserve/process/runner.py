"""One server as a process: what the command line and ``run()`` do around ``serve()``."""

from __future__ import annotations

import importlib.metadata
import logging
import sys

import trio

from ..config import Config
from ..errors import AppLoadError, ConfigError, LifespanError, StartupError, TrioserveError
from ..logs import configure_logging, server_log
from ..observer import Observer, Phase
from ..server import Server, serve_observed
from ..types import AnyValue, ASGIApp
from .loader import load_app, split_target, user_traceback
from .settings import COMMAND_LINE, Settings, read_settings
from .signals import StopSignals

EXIT_DRAINED = 0
EXIT_CRASHED = 1
EXIT_WRONG_USAGE = 2
EXIT_CANNOT_START = 3


def run(app: ASGIApp | str, config: Config | None = None, **options: AnyValue) -> None:
    """Serve until stopped by SIGINT or SIGTERM, as the command line does.

    ``app`` is an application or ``module:attribute``; ``options`` are the fields of Config. Without ``config`` the
    environment and a configuration file are read as well, and ``options`` win over them. Configures the loggers of
    trioserve. Returns once every request has ended; raises SystemExit with 1 if the server crashed or the hard deadline
    passed, 2 for wrong usage, 3 if it cannot start.
    """
    try:
        if isinstance(app, str):
            split_target(app)
        if config is None:
            settings = read_settings(options)
        else:
            changed = config.replace(**options)
            settings = Settings(changed, None, dict.fromkeys(changed.to_plain(), COMMAND_LINE))
    except (ConfigError, AppLoadError) as error:
        # Logging is not configured yet: how is one of the settings that cannot be read.
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the reason is the comment above
        raise SystemExit(EXIT_WRONG_USAGE) from None
    if code := run_settings(app, settings, ends_process=False):
        raise SystemExit(code)


def run_settings(app: ASGIApp | str, settings: Settings, *, ends_process: bool) -> int:
    """Serve ``app`` until stopped, and return the exit code.

    ``ends_process``: the caller ends the process with that code, which the hard deadline then sees to, whatever the
    application has left behind. Without it the program goes on, and no deadline is left.
    """
    config = settings.config
    configure_logging(config)
    for warning in settings.warnings:
        server_log.warning(warning)
    with StopSignals(config, ends_process=ends_process) as signals:
        try:
            with signals.interrupting():
                application = load_app(app, app_dir=config.app_dir, factory=config.factory)
        except AppLoadError as error:
            return _report(error, EXIT_CANNOT_START)
        except KeyboardInterrupt:
            server_log.info("stopped before the start")
            return EXIT_DRAINED
        return _Run(application, app if isinstance(app, str) else _name_of(app), settings, signals).run()


def _name_of(app: ASGIApp) -> str:
    named = app if hasattr(app, "__qualname__") else type(app)
    return f"{named.__module__}:{named.__qualname__}"


class _Run(Observer):
    """One run of the event loop; also the task status that hears of the start."""

    def __init__(self, app: ASGIApp, name: str, settings: Settings, signals: StopSignals) -> None:
        self._app = app
        self._name = name
        self._settings = settings
        self._signals = signals
        self._server: Server | None = None
        self._scope = trio.CancelScope()
        self._is_cutting = False

    def run(self) -> int:
        error = trio.run(self._serve)
        if error is not None:
            return _report(error, EXIT_CANNOT_START if self._server is None else EXIT_CRASHED)
        if self._server is None:
            server_log.info("stopped before the start")
        else:
            served = self._server.statistics().requests_total
            server_log.info("stopped: %s served", "1 request" if served == 1 else f"{served} requests")
        return EXIT_DRAINED

    async def _serve(self) -> TrioserveError | None:
        self._signals.attach(trio.lowlevel.current_trio_token(), self._signalled)
        try:
            with self._scope:
                await serve_observed(self._app, self._settings.config, observer=self, task_status=self)
        except (StartupError, LifespanError) as error:
            return error
        return None

    def started(self, value: Server | None = None) -> None:
        """Announce the server; this is trio.TaskStatus's method, which may do without a value where none is due."""
        assert value is not None
        self._server = value
        config = self._settings.config
        server_log.info("trioserve %s serves %s", read_version(), self._name)
        for url in value.urls:
            server_log.info("listening on %s", url)
        codec = "h11" if config.http == "auto" else config.http
        file = f"settings from {self._settings.file}; " if self._settings.file else ""
        server_log.info("HTTP/1.1 by %s; %sCtrl-C stops", codec, file)

    def phase_changed(self, phase: Phase) -> None:
        self._signals.phase_changed(phase)
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

    def _signalled(self, count: int) -> None:
        if self._server is None or count > 1:
            # Said here already: a handler that does not end may keep the server from saying that it cancels.
            self._announce_cut()
            self._scope.cancel()
            return
        self._server.shutdown()
        if self._server.statistics().connections:
            server_log.info("stopping: waiting for %s; Ctrl-C again cuts them", self._server.describe_waiting())
        else:
            server_log.info("stopping")


def _report(error: TrioserveError, code: int) -> int:
    """Log why the process ends, with a trace only where the application raised; return the code it ends with."""
    cause = error.__cause__ if isinstance(error, AppLoadError | LifespanError) else None
    trace = None if cause is None else user_traceback(cause.__traceback__)
    # A module with a syntax error has no frame of its own, and is the user's all the same.
    is_users = cause is not None and (trace is not None or isinstance(error, AppLoadError))
    exc_info = (type(cause), cause, trace) if cause is not None and is_users else None
    server_log.log(logging.CRITICAL, "%s", error, exc_info=exc_info)
    return code


def read_version() -> str:
    """The installed version; a bundle without metadata serves all the same."""
    try:
        return importlib.metadata.version("trioserve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
