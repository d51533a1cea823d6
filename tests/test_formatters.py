"""How log records are shown."""

import dataclasses
import io
import json
import logging

import pytest

from trioserve.formatters import JSONFormatter, TextFormatter
from trioserve.logs import (
    ExchangeRecord,
    Outcome,
    access_log,
    error_log,
    log_application_error,
    log_exchange,
    server_log,
)

from .logging_state import loggers  # noqa: F401 - a fixture

RECORD = ExchangeRecord("127.0.0.1:50312", "GET", "/x", "1.1", 200, 0, 13, 0.0012, 0.0009, Outcome.OK)


def raised(error):
    try:
        raise error
    except ValueError as caught:
        return caught


def shown_in(formatter, log, emit):
    """What a handler with this formatter writes."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(formatter)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    emit()
    return handler.stream.getvalue()


def test_json_access_line():
    """A JSON line carries the values of the exchange, and its time in UTC."""
    line = shown_in(JSONFormatter(), access_log, lambda: log_exchange(RECORD))
    values = json.loads(line)
    assert line.count("\n") == 1
    assert values.pop("time")[-5] == "."
    assert values.pop("message").startswith("127.0.0.1:50312 ")
    assert values == {
        "level": "info",
        "logger": "trioserve.access",
        "client": "127.0.0.1:50312",
        "method": "GET",
        "target": "/x",
        "http_version": "1.1",
        "status": 200,
        "received": 0,
        "sent": 13,
        "duration": 0.0012,
        "first_byte": 0.0009,
        "outcome": "ok",
    }


def test_json_access_line_without_a_response():
    """What did not happen is null."""
    record = dataclasses.replace(RECORD, status=None, first_byte=None)
    values = json.loads(shown_in(JSONFormatter(), access_log, lambda: log_exchange(record)))
    assert values["status"] is None
    assert values["first_byte"] is None


def test_text_of_an_error():
    """What an error quotes cannot drive a terminal: control characters are escaped, but for those of the trace."""

    def emit():
        try:
            raise ValueError("\x1b[31mred\r\x9b")
        except ValueError:
            error_log.exception("wrong")

    lines = shown_in(TextFormatter(), error_log, emit).split("\n")[:-1]
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"ValueError: \x1b[31mred\r\x9b"


def test_json_error_line():
    """A JSON line carries the request line and the trace, and stays one line."""
    error = raised(ValueError("two\nlines"))
    line = shown_in(JSONFormatter(), error_log, lambda: log_application_error("it raised", error, "GET /x HTTP/1.1"))
    values = json.loads(line)
    assert line.count("\n") == 1
    assert values["request_line"] == "GET /x HTTP/1.1"
    assert values["exception"].startswith("Traceback (most recent call last):")
    assert values["exception"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize(
    ("level", "label"), [("CRITICAL", "error"), ("ERROR", "error"), ("WARNING", "warning"), ("INFO", "info")]
)
def test_text_line(level, label):
    """A text line is local time with milliseconds, a label and the message; what ends the process is an error."""
    line = shown_in(TextFormatter(), server_log, lambda: server_log.log(getattr(logging, level), "well"))
    date, time, rest = line.split(" ", 2)
    assert len(date) == len("2025-01-01")
    assert len(time) == len("12:00:00.000")
    assert rest == f"{label}: well\n"


@pytest.mark.parametrize(
    ("emit", "color"),
    [
        (lambda: server_log.critical("x"), 31),
        (lambda: server_log.warning("x"), 33),
        (lambda: server_log.info("x"), 32),
        (lambda: server_log.debug("x"), 2),
        (lambda: log_exchange(RECORD), 32),
        (lambda: log_exchange(dataclasses.replace(RECORD, status=404)), 33),
        (lambda: log_exchange(dataclasses.replace(RECORD, outcome=Outcome.CLIENT_LEFT)), 33),
        (lambda: log_exchange(dataclasses.replace(RECORD, status=503)), 31),
        (lambda: log_exchange(dataclasses.replace(RECORD, status=None, outcome=Outcome.ERROR)), 31),
    ],
)
def test_colour(emit, color):
    """The label has the colour of its level; that of an access line the colour of how the exchange went."""
    line = shown_in(TextFormatter(use_colors=True), server_log, emit)
    assert f" \x1b[{color}m" in line
