"""What is logged."""

import dataclasses
import logging

import pytest

from trioserve.logs import (
    ExchangeRecord,
    Outcome,
    WebSocketRecord,
    log_application_error,
    log_exchange,
    log_websocket,
    server_log,
)

RECORD = ExchangeRecord("127.0.0.1:50312", "GET", "/x", "1.1", 200, 0, 13, 0.0012, 0.0009, Outcome.OK)


def raised(error):
    try:
        raise error
    except ValueError as caught:
        return caught


def test_access_line(caplog):
    """The access line says who asked what, the status, the bytes, both times and how it ended."""
    caplog.set_level(logging.INFO, "trioserve.access")
    log_exchange(RECORD)
    assert caplog.messages == ['127.0.0.1:50312 "GET /x HTTP/1.1" 200 13 bytes 1.2 ms first byte 0.9 ms ok']


def test_access_line_without_a_response(caplog):
    """Where no response was begun, dashes stand for the status and the first byte."""
    caplog.set_level(logging.INFO, "trioserve.access")
    log_exchange(dataclasses.replace(RECORD, status=None, sent=0, first_byte=None, outcome=Outcome.CLIENT_LEFT))
    assert caplog.messages == ['127.0.0.1:50312 "GET /x HTTP/1.1" - 0 bytes 1.2 ms first byte - client left']


def test_no_control_character_reaches_the_line(caplog):
    """Line feeds and escapes of a client are written as escapes, and quotes cannot end the field."""
    caplog.set_level(logging.INFO, "trioserve.access")
    log_exchange(dataclasses.replace(RECORD, client="a\nb", target='/"\x1b[2J\r\n\xe4'))
    (line,) = caplog.messages
    assert line.startswith('a\\nb "GET /\\"\\x1b[2J\\r\\n\\xe4 HTTP/1.1" 200')


def test_a_backslash_cannot_undo_the_escape_of_a_quote(caplog):
    """A target with a backslash before its quote does not end the field either."""
    caplog.set_level(logging.INFO, "trioserve.access")
    log_exchange(dataclasses.replace(RECORD, target='/\\" 200'))
    assert caplog.messages[0].startswith('127.0.0.1:50312 "GET /\\\\\\" 200 HTTP/1.1" 200 13')


class Broken(logging.Handler):
    """A handler of somebody who does not know that emit must not raise."""

    def emit(self, record):
        raise ZeroDivisionError


@pytest.mark.parametrize("shown", [True, False])
def test_a_handler_that_raises_ends_no_request(monkeypatch, capsys, caplog, shown):
    """Its error is printed, as logging prints those of its own handlers, and goes no further."""
    caplog.set_level(logging.INFO, "trioserve")
    monkeypatch.setattr(logging, "raiseExceptions", shown)
    handler = Broken()
    server_log.addHandler(handler)
    try:
        log_exchange(RECORD)
        log_exchange(RECORD, "a line")
        log_websocket(WebSocketRecord("a", "/"))
        log_application_error("it raised", None, "GET / HTTP/1.1")
    finally:
        server_log.removeHandler(handler)
    assert capsys.readouterr().err.count("Traceback") == (4 if shown else 0)


def test_application_error_is_one_record(caplog):
    """An application's error is one record with its trace and the request line."""
    error = raised(ValueError("no such row"))
    log_application_error("the application raised", error, "GET /x HTTP/1.1")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("trioserve.error", "ERROR")
    assert record.getMessage() == "the application raised: GET /x HTTP/1.1"
    assert record.exc_info[1] is error
