"""How log records are shown: lines for people, or JSON lines. For any handler, whoever makes it."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

from .logs import ExchangeRecord, Outcome, SlowRecord, WebSocketRecord, quotable
from .types import AnyValue, PlainValues

# CRITICAL is what ends the process: logged so because no log_level silences it, called "error" because it is one.
_LABELS = {logging.CRITICAL: "error"}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but not a line's end and a tab, which traces are made of
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
        request_id = _request_id_of(record)
        tag = "" if request_id is None else f"[{quotable(request_id)}] "
        return f"{time} {label}: {tag}{record.message}"

    def formatException(self, ei: AnyValue) -> str:  # noqa: N802 - logging's own name
        # An error's text may quote what a client has sent, and this may be shown on a terminal.
        return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], super().formatException(ei))


class AccessLineFormatter(TextFormatter):
    """As TextFormatter, but of an exchange nothing but its line, which access_log_format has made."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        is_line = isinstance(getattr(record, "exchange", None), ExchangeRecord)
        return record.message if is_line else super().formatMessage(record)


def _request_id_of(record: logging.LogRecord) -> str | None:
    # As a handler's filter, the process's record factory, or the application's own call has set it.
    request_id = getattr(record, "request_id", None)
    return None if request_id in (None, "-") else str(request_id)


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
        request_id = _request_id_of(record)
        if request_id is not None:
            values["request_id"] = request_id
        for name in ("exchange", "websocket", "slow_request"):
            ended = getattr(record, name, None)
            if isinstance(ended, ExchangeRecord | WebSocketRecord | SlowRecord):
                values.update(ended.to_plain())
        request_line = getattr(record, "request_line", None)
        if request_line is not None:
            values["request_line"] = request_line
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)
