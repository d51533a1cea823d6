"""The access line as the user writes it: ``%(name)s``, with the names of other servers or longer ones."""

from __future__ import annotations

import difflib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import ConfigError
from .exchange import Request
from .logs import ExchangeRecord, quotable
from .types import Headers


@dataclass(frozen=True, slots=True)
class Ended:
    """What a line is made of; ``head`` is the response head as it was sent, empty if it was not kept."""

    record: ExchangeRecord
    request: Request
    head: bytes = b""


Value = str | int | float | None
"""None is shown as a hyphen."""

Atom = Callable[[Ended], Value]


def _host(ended: Ended) -> Value:
    client = ended.request.endpoint.client
    return None if client is None else client[0]


def _clf_time(ended: Ended) -> Value:
    now = time.localtime()
    # Not %b, which speaks the language of the locale.
    return time.strftime(f"[%d/{_MONTHS[now.tm_mon - 1]}/%Y:%H:%M:%S %z]", now)


def _iso_time(ended: Ended) -> Value:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _path(ended: Ended) -> Value:
    return ended.record.target.partition("?")[0]


def _query(ended: Ended) -> Value:
    return ended.record.target.partition("?")[2]


def _request_field(name: str) -> Atom:
    wanted = name.lower().encode("latin-1")
    return lambda ended: _join(ended.request.headers, wanted)


def _response_field(name: str) -> Atom:
    wanted = name.lower().encode("latin-1")
    return lambda ended: _join([_split(line) for line in ended.head.split(b"\r\n")[1:]], wanted)


def _split(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name.lower(), value


def _join(fields: Headers, wanted: bytes) -> str | None:
    values = [value.decode("latin-1") for name, value in fields if name == wanted]
    return ", ".join(values) if values else None


def _variable(name: str) -> Atom:
    return lambda ended: os.environ.get(name)


def _user_agent(ended: Ended) -> Value:
    return _join(ended.request.headers, b"user-agent")


def _referer(ended: Ended) -> Value:
    return _join(ended.request.headers, b"referer")


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_NUMBERS: dict[str, Atom] = {
    "status": lambda ended: ended.record.status,
    "received": lambda ended: ended.record.received,
    "sent": lambda ended: ended.record.sent,
    "duration": lambda ended: ended.record.duration,
    "first_byte": lambda ended: ended.record.first_byte,
    "pid": lambda ended: os.getpid(),
    "s": lambda ended: ended.record.status,
    "b": lambda ended: ended.record.sent or None,
    "B": lambda ended: ended.record.sent,
    "T": lambda ended: int(ended.record.duration),
    "M": lambda ended: int(ended.record.duration * 1000),
    "D": lambda ended: int(ended.record.duration * 1_000_000),
    "L": lambda ended: ended.record.duration,
}

_TEXTS: dict[str, Atom] = {
    "client": lambda ended: ended.record.client,
    "host": _host,
    "request_line": lambda ended: ended.request.line,
    "method": lambda ended: ended.record.method,
    "target": lambda ended: ended.record.target,
    "path": _path,
    "query": _query,
    "http_version": lambda ended: ended.record.http_version,
    "request_id": lambda ended: ended.record.request_id,
    "outcome": lambda ended: ended.record.outcome.value,
    "referer": _referer,
    "user_agent": _user_agent,
    "time": _iso_time,
    "h": _host,
    "l": lambda ended: None,
    "u": lambda ended: None,
    "t": _clf_time,
    "r": lambda ended: ended.request.line,
    "m": lambda ended: ended.record.method,
    "U": _path,
    "q": _query,
    "H": lambda ended: f"HTTP/{ended.record.http_version}",
    "f": _referer,
    "a": _user_agent,
    "p": lambda ended: f"<{os.getpid()}>",
}

_NAMED: dict[str, Callable[[str], Atom]] = {"i": _request_field, "o": _response_field, "e": _variable}
"""What stands behind ``{name}``: a field of the request, of the response, a variable of the environment."""

_DIRECTIVE = re.compile(
    r"%(?:(?P<percent>%)|\((?P<name>[^()]*)\)(?P<how>[-+ 0#]*\d{0,3}(?:\.\d{1,3})?)(?P<kind>[sdf])|.{0,9})", re.DOTALL
)
_NAMED_ATOM = re.compile(r"\{([!-z|~]+)\}([ioe])")  # what is no such name nobody can have sent


class AccessFormat:
    """A format that has been read. What clients say cannot forge a line, or end a field that stands in quotes.

    Raises ConfigError that names what is unknown, and the nearest name that is known.
    """

    def __init__(self, text: str) -> None:
        self._parts: list[str | _Directive] = []
        self.shows_response_fields = False
        position = 0
        for found in _DIRECTIVE.finditer(text):
            self._parts.append(text[position : found.start()])
            self._parts.append("%" if found["percent"] else _read(found))
            self.shows_response_fields |= (found["name"] or "").endswith("}o")
            position = found.end()
        self._parts.append(text[position:])

    def line(self, ended: Ended) -> str:
        return "".join([part if isinstance(part, str) else part.show(ended) for part in self._parts])


@dataclass(frozen=True, slots=True)
class _Directive:
    """A value, and how it is shown: what printf has between its % and its letter, and that letter."""

    atom: Atom
    how: str
    kind: str

    def show(self, ended: Ended) -> str:
        value = self.atom(ended)
        if self.kind != "s" and value is not None:
            return f"%{self.how}{self.kind}" % value
        if isinstance(value, float):
            value = f"{value:.6f}"
        return f"%{self.how}s" % ("-" if value is None else quotable(str(value)))


def _read(found: re.Match[str]) -> _Directive:
    name, kind = found["name"], found["kind"]
    if name is None:
        raise ConfigError(f"access_log_format must have %(name)s, or %% for a percent sign, not {found[0]!r}")
    named = _NAMED_ATOM.fullmatch(name)
    atom = _NAMED[named[2]](named[1]) if named else _NUMBERS.get(name) or _TEXTS.get(name)
    if atom is None:
        near = difflib.get_close_matches(name, [*_NUMBERS, *_TEXTS], 1)
        names = f"did you mean %({near[0]})s?" if near else f"there are {', '.join([*_NUMBERS, *_TEXTS, *_FORMS])}"
        raise ConfigError(f"access_log_format: there is no %({name}){kind}; {names}")
    if kind != "s" and name not in _NUMBERS:
        raise ConfigError(f"access_log_format: %({name}){kind} is no number; write %({name})s")
    return _Directive(atom, found["how"], kind)


_FORMS = ("{field}i", "{field}o", "{variable}e")
