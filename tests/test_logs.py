"""What is logged and how it is shown."""

import dataclasses
import errno
import io
import json
import logging
import os
import sys

import pytest

from trioserve.config import Config
from trioserve.logs import (
    ExchangeRecord,
    JSONFormatter,
    Outcome,
    TextFormatter,
    access_log,
    configure_logging,
    error_log,
    log_application_error,
    log_exchange,
    server_log,
    wants_colors,
)

RECORD = ExchangeRecord("127.0.0.1:50312", "GET", "/x", "1.1", 200, 0, 13, 0.0012, 0.0009, Outcome.OK)


@pytest.fixture(autouse=True)
def loggers():
    """Loggers are the process's: what a test changes is put back."""
    kept = [(log, log.level, log.propagate, list(log.handlers)) for log in (server_log, error_log, access_log)]
    yield
    for log, level, propagate, handlers in kept:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown_on_a_terminal(monkeypatch, config, **variables):
    """What a line looks like on a terminal, with these variables in the environment and no others about colours."""
    # Not a fixture: pytest puts its own streams in place again between a fixture and its test.
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    configure_logging(config)
    server_log.info("well")
    return sys.stderr.getvalue()


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


def test_access_line_only_when_wanted(caplog):
    """Nothing is made of an exchange that nobody logs."""
    caplog.set_level(logging.WARNING, "trioserve.access")
    log_exchange(RECORD)
    assert not caplog.records


def test_application_error_is_one_record(caplog):
    """An application's error is one record with its trace and the request line."""
    error = raised(ValueError("no such row"))
    log_application_error("the application raised", error, "GET /x HTTP/1.1")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("trioserve.error", "ERROR")
    assert record.getMessage() == "the application raised: GET /x HTTP/1.1"
    assert record.exc_info[1] is error


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


def test_access_on_stdout_and_the_rest_on_stderr(capsys):
    """Access lines go to stdout, everything else to stderr, nothing to both."""
    configure_logging(Config())
    server_log.info("general")
    error_log.error("wrong")
    log_exchange(RECORD)
    out, err = capsys.readouterr()
    assert ["GET /x" in line for line in out.splitlines()] == [True]
    assert [line.split(": ")[1] for line in err.splitlines()] == ["general", "wrong"]


def test_configuring_twice_does_not_repeat_lines(capsys):
    """A second call replaces what the first did, and leaves handlers of others where they are."""
    foreign = logging.NullHandler()
    server_log.addHandler(foreign)
    configure_logging(Config(log_format="json"))
    configure_logging(Config())
    server_log.info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert foreign in server_log.handlers


def test_root_and_foreign_loggers_are_left_alone():
    """The root logger, its handlers and the application's loggers are not touched."""
    theirs = logging.getLogger("someone.else")
    before = (logging.root.level, list(logging.root.handlers), theirs.disabled, theirs.propagate, theirs.level)
    configure_logging(Config())
    after = (logging.root.level, list(logging.root.handlers), theirs.disabled, theirs.propagate, theirs.level)
    assert after == before


def test_log_level(capsys):
    """log_level is the least level that is shown."""
    configure_logging(Config(log_level="warning"))
    server_log.info("quiet")
    server_log.warning("loud")
    log_exchange(RECORD)
    out, err = capsys.readouterr()
    assert out == ""
    assert "quiet" not in err
    assert "loud" in err


def test_access_log_can_be_turned_off_and_on_again(capsys):
    """access_log=False silences access lines only, until configured otherwise."""
    configure_logging(Config(access_log=False))
    log_exchange(RECORD)
    server_log.info("here")
    out, err = capsys.readouterr()
    assert (out, "here" in err) == ("", True)
    configure_logging(Config())
    log_exchange(RECORD)
    assert "GET /x" in capsys.readouterr().out


def test_json_format(capsys):
    """log_format=json makes JSON of both streams."""
    configure_logging(Config(log_format="json"))
    server_log.info("well")
    log_exchange(RECORD)
    out, err = capsys.readouterr()
    assert (json.loads(out)["status"], json.loads(err)["message"]) == (200, "well")


class Pipe(io.StringIO):
    """A stream whose reader may leave."""

    is_broken = False

    def write(self, text):
        if self.is_broken:
            raise BrokenPipeError
        return super().write(text)

    def break_(self):
        self.is_broken = True


@pytest.mark.parametrize("end", [Pipe.break_, Pipe.close])
def test_access_log_falls_silent_once_its_stream_is_gone(monkeypatch, capsys, end):
    """Once stdout is closed there are no more access lines, and one line on stderr says so."""
    monkeypatch.setattr(sys, "stdout", Pipe())
    configure_logging(Config())
    end(sys.stdout)
    log_exchange(RECORD)
    log_exchange(RECORD)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" warning: stdout is closed: there are no more access lines")


def test_stderr_gone(monkeypatch, capsys):
    """Once stderr is closed there is nobody left to tell, and the access lines go on."""
    monkeypatch.setattr(sys, "stderr", Pipe())
    configure_logging(Config())
    sys.stderr.break_()
    server_log.info("unheard")
    log_exchange(RECORD)
    assert "GET /x" in capsys.readouterr().out


def test_what_was_left_in_a_broken_pipe_goes_nowhere(monkeypatch):
    """Python flushes stdout at its end, which must not fail for the line that found the pipe broken."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        configure_logging(Config())
        log_exchange(RECORD)
        print("the application's own line", file=pipe, flush=True)


def test_other_errors_of_a_stream_are_shown(monkeypatch, capsys):
    """A full disk may have room again: each failure is logging's to show, and the next line is tried."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    configure_logging(Config())
    log_exchange(RECORD)
    log_exchange(RECORD)
    assert capsys.readouterr().err.count("--- Logging error ---") == 2


def test_colours_on_a_terminal(monkeypatch):
    """A terminal gets colours."""
    assert "\x1b[" in shown_on_a_terminal(monkeypatch, Config())


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_the_environment_refuses_them(monkeypatch, name, value):
    """NO_COLOR and a dumb terminal are respected."""
    assert "\x1b[" not in shown_on_a_terminal(monkeypatch, Config(), **{name: value})


@pytest.mark.parametrize("use_colors", [True, False])
def test_colours_as_asked(monkeypatch, use_colors):
    """use_colors wins over the environment and the terminal."""
    config = Config(use_colors=use_colors)
    shown = shown_on_a_terminal(monkeypatch, config, NO_COLOR="1" if use_colors else "")
    assert ("\x1b[" in shown) is use_colors


def test_without_a_console(monkeypatch):
    """A process without standard streams, or with closed ones, logs nothing and does not fail."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    sys.stdout.close()
    configure_logging(Config())
    assert not server_log.handlers


@pytest.mark.parametrize("colors", [True, False])
@pytest.mark.parametrize("use_colors", [True, False, None])
def test_colours_of_who_shows_the_errors(monkeypatch, colors, use_colors):
    """Who knows where stderr ends, as a worker does of its supervisor's, decides for stderr alone."""
    streams = {name: Terminal() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    for name, value in (("NO_COLOR", ""), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    configure_logging(Config(use_colors=use_colors), colors_errors=colors)
    server_log.info("well")
    log_exchange(RECORD)
    assert ("\x1b[" in streams["stderr"].getvalue()) is colors
    assert ("\x1b[" in streams["stdout"].getvalue()) is (use_colors is not False)


@pytest.mark.parametrize(
    ("stream", "variables", "wanted"),
    [
        ("terminal", {}, True),
        ("terminal", {"NO_COLOR": "1"}, False),
        ("terminal", {"TERM": "dumb"}, False),
        ("file", {}, False),
        ("closed", {}, False),
        ("none", {}, False),
    ],
)
def test_which_streams_want_colours(monkeypatch, stream, variables, wanted):
    """A terminal wants colours unless the environment refuses them; the option decides whatever the stream is."""
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    closed = Terminal()
    closed.close()
    made = {"terminal": Terminal(), "file": io.StringIO(), "closed": closed, "none": None}[stream]
    assert wants_colors(None, made) is wanted
    assert wants_colors(True, made) is True
    assert wants_colors(False, made) is False
