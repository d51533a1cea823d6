"""Where the log goes in a process of the command line's, or of ``run()``: serve() touches no logging."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TextIO

from ..config import Config
from ..formatters import AccessLineFormatter, JSONFormatter, TextFormatter
from ..logs import access_log, server_log
from ..request_ids import tag_records
from .log_config import apply_log_config


class _ConsoleHandler(logging.StreamHandler[TextIO]):
    """A handler of ours, told by its class from those that others have put on the logger."""

    def __init__(self, stream: TextIO, config: Config, *, takes_access: bool, use_colors: bool) -> None:
        super().__init__(stream)
        self._takes_access = takes_access
        self._has_failed = False
        self.addFilter(lambda record: (record.name == access_log.name) is takes_access)
        if config.log_format == "json":
            self.setFormatter(JSONFormatter())
        else:
            formatter = TextFormatter if config.access_log_format is None else AccessLineFormatter
            self.setFormatter(formatter(use_colors=use_colors))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Fall silent once the stream is gone (``trioserve ... | head``); logging's own prints a trace per line."""
        error = sys.exception()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            # A full disk, say, which may be mended, and for which a trace per line does nothing.
            if not self._has_failed:
                self._has_failed = True
                _tell_of_failure(self.stream, error)
            return
        if not (isinstance(error, BrokenPipeError) or self.stream.closed):
            super().handleError(record)
            return
        # Not removed: logging is just walking along the list of handlers.
        self.setLevel(logging.CRITICAL + 1)
        _send_nowhere(self.stream)
        if self._takes_access:
            server_log.warning("stdout is closed: there are no more access lines")


def _tell_of_failure(stream: TextIO, error: OSError) -> None:
    # It may be the very stream that cannot be written to.
    with contextlib.suppress(OSError, ValueError):
        name = "stdout" if stream is sys.stdout else "stderr"
        text = f"cannot write to {name}: {error.strerror}; log lines are lost as long as that lasts"
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - logging has just failed


def _send_nowhere(stream: TextIO) -> None:
    """Let the stream's descriptor lead nowhere.

    What the broken pipe has left in the stream's buffer would otherwise fail once more when Python flushes it at the
    end, and make the exit code 120; and each print() of the application would fail.

    Source: Python's signal module, "Note on SIGPIPE".
    """
    # A stream that is closed, or no file at all, has no descriptor.
    with contextlib.suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def wants_colors(asked: bool | None, stream: TextIO | None) -> bool:
    """Whether to colour what goes to a stream; ``asked`` is the option."""
    if asked is not None:
        return asked
    # https://no-color.org: present and not empty, whatever its value.
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and _is_terminal(stream)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def configure_logging(config: Config, *, colors_errors: bool | None = None) -> None:
    """Show what trioserve logs: access lines on stdout, everything else on stderr, or as ``log_config`` says.

    ``colors_errors``: whether stderr takes colours; None: as ``use_colors`` says, or if it is a terminal.
    For the command line and ``run()`` only. Without ``log_config`` touches trioserve's own loggers and no other; a
    second call replaces what the first one did. Raises ConfigError for a ``log_config`` that cannot be read or used.
    """
    for handler in list(server_log.handlers):
        if isinstance(handler, _ConsoleHandler):
            server_log.removeHandler(handler)
    server_log.setLevel(config.log_level.upper())
    access_log.setLevel(logging.NOTSET if config.access_log else logging.CRITICAL + 1)
    if config.request_id:
        tag_records()
    if config.log_config is not None:
        server_log.propagate = True
        apply_log_config(config.log_config)
        return
    # Either is None in a process without a console (pythonw, a service), and run() may be called after a close().
    for stream, takes_access in ((sys.stderr, False), (sys.stdout, True)):
        if stream is not None and not stream.closed:
            colors = wants_colors(config.use_colors, stream) if takes_access or colors_errors is None else colors_errors
            handler = _ConsoleHandler(stream, config, takes_access=takes_access, use_colors=colors)
            server_log.addHandler(handler)
    # An application that calls logging.basicConfig() would otherwise repeat every line on the console.
    server_log.propagate = False
