"""What is logged, and how the command line shows it.

The library only emits, on the three loggers below; neither importing this module nor ``serve()`` configures anything.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from .config import Config
from .foreign_loop import tell_of_asyncio
from .types import PlainValues

server_log = logging.getLogger("trioserve")
error_log = logging.getLogger("trioserve.error")
access_log = logging.getLogger("trioserve.access")


class Outcome(StrEnum):
    """How an exchange ended."""

    OK = "ok"
    CLIENT_LEFT = "client left"
    DEADLINE = "deadline"
    ERROR = "error"
    SHUTDOWN = "shutdown"


@dataclass(slots=True)
class ExchangeRecord:
    """What is told of an exchange once it has ended.

    ``status`` is None if no response was begun; ``received`` and ``sent`` are bytes of body; ``duration`` and
    ``first_byte`` are seconds, the latter until the response head went out, None if it never did.
    """

    client: str
    method: str
    target: str
    http_version: str
    status: int | None
    received: int
    sent: int
    duration: float
    first_byte: float | None
    outcome: Outcome

    @property
    def request_line(self) -> str:
        return _printable(f"{self.method} {self.target} HTTP/{self.http_version}")

    def to_plain(self) -> PlainValues:
        return {
            "client": self.client,
            "method": self.method,
            "target": self.target,
            "http_version": self.http_version,
            "status": self.status,
            "received": self.received,
            "sent": self.sent,
            "duration": round(self.duration, 6),
            "first_byte": None if self.first_byte is None else round(self.first_byte, 6),
            "outcome": self.outcome.value,
        }


@dataclass(slots=True)
class WebSocketRecord:
    """What is told of a WebSocket once it has closed; its handshake has a record of its own, with status 101.

    ``code`` and ``reason`` are the application's if it closed, else what it was told: the client's, the server's, or
    1006 if the client vanished. ``received`` and ``sent`` are bytes of messages, inflated; ``duration`` is seconds from
    the accept.
    """

    client: str
    target: str
    code: int = 1006
    reason: str = ""
    received_messages: int = 0
    received: int = 0
    sent_messages: int = 0
    sent: int = 0
    duration: float = 0
    outcome: Outcome = Outcome.OK

    def to_plain(self) -> PlainValues:
        return {
            "client": self.client,
            "target": self.target,
            "code": self.code,
            "reason": self.reason,
            "received_messages": self.received_messages,
            "received": self.received,
            "sent_messages": self.sent_messages,
            "sent": self.sent,
            "duration": round(self.duration, 6),
            "outcome": self.outcome.value,
        }


def _printable(text: str) -> str:
    # The wire lets only printable ASCII through; a log line must not depend on that, because a raw line feed or escape
    # sequence from a client forges lines and drives terminals.
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def log_exchange(record: ExchangeRecord) -> None:
    """Write the access line of an exchange that has ended; the record travels along as ``exchange``."""
    if not access_log.isEnabledFor(logging.INFO):
        return
    access_log.info(
        '%s "%s" %s %d bytes %.1f ms first byte %s %s',
        _printable(record.client),
        # Clients do send quotes in targets; unescaped, one would end the field for whoever reads the line.
        record.request_line.replace('"', '\\"'),
        "-" if record.status is None else record.status,
        record.sent,
        record.duration * 1000,
        "-" if record.first_byte is None else f"{record.first_byte * 1000:.1f} ms",
        record.outcome.value,
        extra={"exchange": record},
    )


def log_websocket(record: WebSocketRecord) -> None:
    """Write the access line of a WebSocket that has closed; the record travels along as ``websocket``."""
    if not access_log.isEnabledFor(logging.INFO):
        return
    access_log.info(
        '%s "WebSocket %s" closed %d after %.1f s received %d messages %d bytes sent %d messages %d bytes %s',
        _printable(record.client),
        _printable(record.target).replace('"', '\\"'),
        record.code,
        record.duration,
        record.received_messages,
        record.received,
        record.sent_messages,
        record.sent,
        record.outcome.value,
        extra={"websocket": record},
    )


def log_application_error(message: str, error: BaseException | None, request_line: str) -> None:
    """Write one record with the error's trace and the request it belongs to."""
    request_line = _printable(request_line)
    error_log.error("%s: %s", message, request_line, exc_info=error, extra={"request_line": request_line})
    tell_of_asyncio(error)


# CRITICAL is what ends the process: logged so because no log_level silences it, called "error" because it is one.
_LABELS = {logging.CRITICAL: "error"}
_COLOR_ERROR, _COLOR_WARNING, _COLOR_FINE, _COLOR_FAINT = "31", "33", "32", "2"


class TextFormatter(logging.Formatter):
    """Lines for people: local time, level, message."""

    default_msec_format = "%s.%03d"

    def __init__(self, *, use_colors: bool = False) -> None:
        super().__init__()
        self._use_colors = use_colors

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        time = self.formatTime(record)
        label = _LABELS.get(record.levelno, record.levelname.lower())
        if self._use_colors:
            time = _paint(time, _COLOR_FAINT)
            label = _paint(label, _color_of(record))
        return f"{time} {label}: {record.message}"


def _paint(text: str, color: str) -> str:
    return f"\x1b[{color}m{text}\x1b[0m"


def _color_of(record: logging.LogRecord) -> str:
    """An access line takes the colour of how the exchange went, any other that of its level."""
    exchange = getattr(record, "exchange", None)
    if isinstance(exchange, ExchangeRecord):
        status = exchange.status or 0
        if status >= 500 or exchange.outcome is Outcome.ERROR:
            return _COLOR_ERROR
        return _COLOR_WARNING if status >= 400 or exchange.outcome is not Outcome.OK else _COLOR_FINE
    websocket = getattr(record, "websocket", None)
    if isinstance(websocket, WebSocketRecord):
        if websocket.outcome is Outcome.ERROR:
            return _COLOR_ERROR
        return _COLOR_FINE if websocket.outcome is Outcome.OK else _COLOR_WARNING
    if record.levelno >= logging.ERROR:
        return _COLOR_ERROR
    if record.levelno >= logging.WARNING:
        return _COLOR_WARNING
    return _COLOR_FINE if record.levelno >= logging.INFO else _COLOR_FAINT


class JSONFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and what the record carries besides."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values: PlainValues = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("exchange", "websocket"):
            ended = getattr(record, name, None)
            if isinstance(ended, ExchangeRecord | WebSocketRecord):
                values.update(ended.to_plain())
        request_line = getattr(record, "request_line", None)
        if request_line is not None:
            values["request_line"] = request_line
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


class _ConsoleHandler(logging.StreamHandler[TextIO]):
    """A handler of ours, told by its class from those that others have put on the logger."""

    def __init__(self, stream: TextIO, config: Config, *, takes_access: bool, use_colors: bool) -> None:
        super().__init__(stream)
        self._takes_access = takes_access
        self.addFilter(lambda record: (record.name == access_log.name) is takes_access)
        if config.log_format == "json":
            self.setFormatter(JSONFormatter())
        else:
            self.setFormatter(TextFormatter(use_colors=use_colors))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Fall silent once the stream is gone (``trioserve ... | head``); logging's own prints a trace per line."""
        if not (isinstance(sys.exception(), BrokenPipeError) or self.stream.closed):
            super().handleError(record)
            return
        # Not removed: logging is just walking along the list of handlers.
        self.setLevel(logging.CRITICAL + 1)
        _send_nowhere(self.stream)
        if self._takes_access:
            server_log.warning("stdout is closed: there are no more access lines")


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
    """Show what trioserve logs: access lines on stdout, everything else on stderr.

    ``colors_errors``: whether stderr takes colours; None: as ``use_colors`` says, or if it is a terminal.
    For the command line and ``run()`` only. Touches trioserve's own loggers and no other; a second call replaces what
    the first one did.
    """
    for handler in list(server_log.handlers):
        if isinstance(handler, _ConsoleHandler):
            server_log.removeHandler(handler)
    # Either is None in a process without a console (pythonw, a service), and run() may be called after a close().
    for stream, takes_access in ((sys.stderr, False), (sys.stdout, True)):
        if stream is not None and not stream.closed:
            colors = wants_colors(config.use_colors, stream) if takes_access or colors_errors is None else colors_errors
            handler = _ConsoleHandler(stream, config, takes_access=takes_access, use_colors=colors)
            server_log.addHandler(handler)
    # An application that calls logging.basicConfig() would otherwise repeat every line on the console.
    server_log.propagate = False
    server_log.setLevel(config.log_level.upper())
    access_log.setLevel(logging.NOTSET if config.access_log else logging.CRITICAL + 1)
