"""The access line as the user writes it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from trioserve.access_format import AccessFormat, Ended
from trioserve.errors import ConfigError
from trioserve.exchange import Endpoint, Request
from trioserve.logs import ExchangeRecord, Outcome

RECORD = ExchangeRecord("192.0.2.1:5000", "GET", "/a/b?c=d", "1.1", 404, 7, 13, 1.2345678, 0.25, Outcome.OK)
REQUEST = Request(
    "GET",
    b"/a/b?c=d",
    [(b"host", b"a"), (b"user-agent", b'x "y" \\'), (b"referer", b"http://r/"), (b"x-a", b"1"), (b"x-a", b"2")],
    "1.1",
    Endpoint(("192.0.2.1", 5000), ("10.0.0.1", 80)),
)
HEAD = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nset-cookie: a=b\r\nset-cookie: c=d\r\n\r\n"
ENDED = Ended(RECORD, REQUEST, HEAD)


def line(text: str, ended: Ended = ENDED) -> str:
    return AccessFormat(text).line(ended)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("100%% plain", "100% plain"),
        ("%(client)s|%(host)s|%(h)s", "192.0.2.1:5000|192.0.2.1|192.0.2.1"),
        ("%(l)s %(u)s", "- -"),
        ("%(request_line)s|%(r)s", "GET /a/b?c=d HTTP/1.1|GET /a/b?c=d HTTP/1.1"),
        ("%(method)s %(m)s", "GET GET"),
        ("%(target)s %(path)s %(U)s", "/a/b?c=d /a/b /a/b"),
        ("%(query)s %(q)s", "c=d c=d"),
        ("%(http_version)s %(H)s", "1.1 HTTP/1.1"),
        ("%(status)s %(s)s %(status)d %(status)5d|", "404 404 404   404|"),
        ("%(received)s %(sent)s %(b)s %(B)s", "7 13 13 13"),
        ("%(duration)s %(duration).3f %(L)s %(T)s %(M)s %(D)s", "1.234568 1.235 1.234568 1 1234 1234567"),
        ("%(first_byte)s %(first_byte).1f", "0.250000 0.2"),
        ("%(outcome)s %(outcome)-4s|", "ok ok  |"),
        ("%(method).2s", "GE"),
        ("%(f)s %(referer)s", "http://r/ http://r/"),
        ('"%(a)s" "%(user_agent)s"', r'"x \"y\" \\" "x \"y\" \\"'),
        ("%({Host}i)s %({x-a}i)s %({x-b}i)s", "a 1, 2 -"),
        ("%({content-type}o)s %({Set-Cookie}o)s %({etag}o)s", "text/plain a=b, c=d -"),
        ("%({NOT_SET_AT_ALL}e)s", "-"),
    ],
)
def test_each_value(text: str, shown: str) -> None:
    """Every name stands for what README says, in the notation of printf; what is not there is a hyphen."""
    assert line(text) == shown


def test_times() -> None:
    """The common log format's time is local, with English months; the long name is UTC, as in JSON lines."""
    assert re.fullmatch(
        r"\[\d\d/(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)/\d{4}(:\d\d){3} [-+]\d{4}\]", line("%(t)s")
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line("%(time)s"))


def test_a_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is read for the line, and not by a Config that checks its format."""
    read = AccessFormat("%({POD}e)s")
    monkeypatch.setenv("POD", "web-1")
    assert read.line(ENDED) == "web-1"


def test_what_is_not_there_is_a_hyphen() -> None:
    """Without a response, a client address or a body there are hyphens, also for numbers."""
    record = dataclasses.replace(RECORD, status=None, first_byte=None, sent=0, target="/")
    ended = Ended(record, Request("GET", b"/", [], "1.1", Endpoint()))
    shown = line("%(h)s %(s)s %(status)d %(status)4d %(first_byte).3f %(b)s %(B)s %({x}o)s", ended)
    assert shown == "- - -    - - - 0 -"
    assert line("[%(q)s]", ended) == "[]"


def test_no_client_can_forge_a_line() -> None:
    """Line feeds, escapes, quotes and what is not ASCII are escaped; a percent sign is text."""
    record = dataclasses.replace(RECORD, client="a\nb", target="/%(h)s%n\r\n\x1b", outcome=Outcome.ERROR)
    request = dataclasses.replace(REQUEST, headers=[(b"user-agent", b'\xe4"\r\nforged')])
    shown = line('%(client)s %(target)s "%(a)s"', Ended(record, request))
    assert shown == r'a\nb /%(h)s%n\r\n\x1b "\xe4\"\r\nforged"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("%(statis)s", "access_log_format: there is no %(statis)s; did you mean %(status)s?"),
        ("%(z)s", "access_log_format: there is no %(z)s; there are status, received, "),
        ("%({\u20ac}i)s", "access_log_format: there is no %({\u20ac}i)s; there are "),
        ("%({\ud800}e)s", "access_log_format: there is no "),
        ("%({}i)s", "access_log_format: there is no %({}i)s; "),
        ("%({x}z)s", "access_log_format: there is no %({x}z)s; there are "),
        ("%()s", "access_log_format: there is no %()s; "),
        ("%(h)d", "access_log_format: %(h)d is no number; write %(h)s"),
        ("%({x}i).2f", "access_log_format: %({x}i)f is no number; write %({x}i)s"),
        ("%h %s", "access_log_format must have %(name)s, or %% for a percent sign, not '%h %s'"),
        ("100%", "access_log_format must have %(name)s, or %% for a percent sign, not '%'"),
        ("%(h)x", "access_log_format must have %(name)s, or %% for a percent sign, not '%(h)x'"),
        ("%(h)99999s", "access_log_format must have "),
        ("%(h", "access_log_format must have "),
    ],
)
def test_what_is_unknown_is_named(text: str, said: str) -> None:
    """What cannot be read is a ConfigError with the name that is probably meant, or all there are."""
    with pytest.raises(ConfigError) as caught:
        AccessFormat(text)
    assert str(caught.value).startswith(said)


def test_only_some_formats_show_the_response() -> None:
    """Whether the response head has to be kept is known beforehand."""
    assert AccessFormat("%({x}o)s").shows_response_fields
    assert not AccessFormat("%({x}i)s %(s)s %%o").shows_response_fields
