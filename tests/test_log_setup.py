"""Where the log goes."""

import errno
import io
import json
import logging
import os
import sys

import pytest

from trioserve.config import Config
from trioserve.logs import ExchangeRecord, Outcome, error_log, log_exchange, server_log
from trioserve.process.log_setup import configure_logging, wants_colors

from .logging_state import loggers  # noqa: F401 - a fixture

RECORD = ExchangeRecord("127.0.0.1:50312", "GET", "/x", "1.1", 200, 0, 13, 0.0012, 0.0009, Outcome.OK)


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


class Full(io.StringIO):
    """A stream into a file on a full disk, until there is room again."""

    is_full = True

    def write(self, text):
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_full_disk(monkeypatch, capsys):
    """What cannot be written is told of once, and not by a trace per line; once there is room lines come again."""
    monkeypatch.setattr(sys, "stdout", Full())
    configure_logging(Config())
    log_exchange(RECORD)
    log_exchange(RECORD)
    sys.stdout.is_full = False
    log_exchange(RECORD)
    assert sys.stdout.getvalue().count("GET /x") == 1
    text = "cannot write to stdout: No space left on device; log lines are lost as long as that lasts\n"
    assert capsys.readouterr().err == text


def test_full_disk_for_errors(monkeypatch, capsys):
    """Where errors cannot be written nobody can be told, and the access lines go on."""
    monkeypatch.setattr(sys, "stderr", Full())
    configure_logging(Config())
    server_log.info("unheard")
    log_exchange(RECORD)
    assert "GET /x" in capsys.readouterr().out


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
    """What is wrong with a line itself is logging's to show, each time."""
    configure_logging(Config())
    server_log.info("%d", "no number")
    server_log.info("%d", "no number")
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
