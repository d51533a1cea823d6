"""One server as a process: what the command line and ``run()`` do around ``serve()``."""

from __future__ import annotations

import sys

import trio

from ..config import Config
from ..errors import AppLoadError, ConfigError, LifespanError, StartupError, TrioserveError
from ..logs import configure_logging, server_log
from ..observer import Observer, Phase
from ..server import Server, serve_observed
from ..types import AnyValue, ASGIApp
from .banner import announce
from .exits import EXIT_CANNOT_START, EXIT_CRASHED, EXIT_DRAINED, EXIT_WRONG_USAGE, report_failure
from .loader import load_app, split_target
from .pool import Pool
from .settings import COMMAND_LINE, Settings, read_settings
from .signals import StopSignals
from .supervisor import Supervisor


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
        _check_target(app, settings.config)
    except (ConfigError, AppLoadError) as error:
        # Logging is not configured yet: how is one of the settings that cannot be read.
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the reason is the comment above
        raise SystemExit(EXIT_WRONG_USAGE) from None
    if code := run_settings(app, settings, ends_process=False):
        raise SystemExit(code)


def _check_target(app: ASGIApp | str, config: Config) -> None:
    if config.needs_supervisor and not isinstance(app, str):
        option = "reload" if config.reload else f"workers={config.workers}"
        raise ConfigError(
            f'{option} needs the application as text, such as "main:app", because each worker imports it for itself'
        )


def run_settings(app: ASGIApp | str, settings: Settings, *, ends_process: bool) -> int:
    """Serve ``app`` until stopped, and return the exit code.

    ``ends_process``: the caller ends the process with that code, which the hard deadline then sees to, whatever the
    application has left behind. Without it the program goes on, and no deadline is left.
    """
    config = settings.config
    configure_logging(config)
    for warning in settings.warnings:
        server_log.warning(warning)
    if config.needs_supervisor:
        assert isinstance(app, str)
        return _supervise(app, settings)
    with StopSignals(config, ends_process=ends_process) as signals:
        try:
            with signals.interrupting():
                application = load_app(app, app_dir=config.app_dir, factory=config.factory)
        except AppLoadError as error:
            return report_failure(error, EXIT_CANNOT_START)
        except KeyboardInterrupt:
            server_log.info("stopped before the start")
            return EXIT_DRAINED
        return _Run(application, app if isinstance(app, str) else _name_of(app), settings, signals).run()


def _supervise(app: str, settings: Settings) -> int:
    try:
        return trio.run(Supervisor(app, settings, Pool).run)
    except KeyboardInterrupt:  # before the loop listens for it
        server_log.info("stopped before the start")
        return EXIT_DRAINED


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
            return report_failure(error, EXIT_CANNOT_START if self._server is None else EXIT_CRASHED)
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
        announce(self._name, value.urls, self._settings)

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
