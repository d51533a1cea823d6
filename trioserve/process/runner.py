"""What the command line and ``run()`` do: one server in this process, or a supervisor of several."""

from __future__ import annotations

import sys
from functools import partial

import trio

from ..config import Config
from ..errors import AppLoadError, ConfigError, StartupError
from ..logs import server_log
from ..types import AnyValue, ASGIApp
from ..wire.codecs import codec_name
from .admin import load_renderer
from .deadline import show_crashes
from .exits import EXIT_CANNOT_START, EXIT_DRAINED, EXIT_WRONG_USAGE, report_failure
from .inspector_socket import offer
from .loader import imports_application, load_app, split_target
from .log_config import warn_if_silent
from .log_setup import configure_logging
from .pid_file import PidFile
from .pool import Pool
from .reloader import Reloader
from .settings import COMMAND_LINE, Settings, read_settings
from .signals import HeldInterrupts, StopSignals, ignore_stops
from .single import Single
from .supervisor import Supervisor
from .watcher import Watcher


def run(app: ASGIApp | str, config: Config | None = None, **options: AnyValue) -> None:
    """Serve until stopped by SIGINT or SIGTERM, as the command line does.

    ``app`` is an application or ``module:attribute``; ``options`` are the fields of Config. Without ``config`` the
    environment and a configuration file are read as well, and ``options`` win over them. Configures the loggers of
    trioserve. Returns once every request has ended; raises SystemExit with 1 if the server crashed or the hard deadline
    passed, 2 for wrong usage, 3 if it cannot start.
    """
    if imports_application():
        # Each import would start another server, and with workers another import.
        raise RuntimeError(
            "trioserve.run() was called while the application was imported; "
            "put the call under if __name__ == '__main__':"
        )
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
    show_crashes()
    try:
        configure_logging(config)
    except ConfigError as error:
        source = settings.sources["log_config"]
        print(f"error: {error}" + ("" if source == COMMAND_LINE else f" ({source})"), file=sys.stderr)  # noqa: T201
        return EXIT_WRONG_USAGE
    if config.log_config is not None:
        warn_if_silent(config.log_config)
    for warning in settings.warnings:
        server_log.warning(warning)
    try:
        # What is asked for and not installed is said before anything starts.
        codec_name(config)
        if config.metrics_bind is not None:
            load_renderer()
        with PidFile(config.pid_file) as pid_file:
            if not config.needs_supervisor:
                return _serve_alone(app, settings, pid_file, ends_process=ends_process)
            assert isinstance(app, str)
            try:
                return _supervise(app, settings, pid_file)
            finally:
                if ends_process:
                    ignore_stops()
    except ConfigError as error:
        return report_failure(error, EXIT_WRONG_USAGE)
    except StartupError as error:
        return report_failure(error, EXIT_CANNOT_START)


def _serve_alone(app: ASGIApp | str, settings: Settings, pid_file: PidFile, *, ends_process: bool) -> int:
    config = settings.config
    with StopSignals(config, ends_process=ends_process) as signals:
        try:
            with signals.interrupting():
                application = load_app(app, app_dir=config.app_dir, factory=config.factory)
            signals.take_back()
        except AppLoadError as error:
            return report_failure(error, EXIT_CANNOT_START)
        except KeyboardInterrupt:
            server_log.info("stopped before the start")
            return EXIT_DRAINED
        name = app if isinstance(app, str) else _name_of(app)
        return Single(application, name, settings, signals, pid_file).run()


def _supervise(app: str, settings: Settings, pid_file: PidFile) -> int:
    try:
        make_keeper = partial(Reloader, watcher=Watcher(settings.config)) if settings.config.reload else Pool
        supervisor = Supervisor(app, settings, make_keeper, pid_file)
        with offer(supervisor.inspection, wanted=settings.config.has_inspector) as instruments:
            return trio.run(supervisor.run, instruments=[HeldInterrupts(), *instruments])
    except KeyboardInterrupt:  # before the loop listens for it
        server_log.info("stopped before the start")
        return EXIT_DRAINED


def _name_of(app: ASGIApp) -> str:
    named = app if hasattr(app, "__qualname__") else type(app)
    return f"{named.__module__}:{named.__qualname__}"
