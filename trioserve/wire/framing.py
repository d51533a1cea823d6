"""Response heads and body framing: what h11 does on the way out, for codecs whose parser only reads.

Source: RFC 9112 §6 (message body), §7 (chunked), §9.3 (persistence); RFC 9110 §5.5 (field values), §6.4.1 (no content).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from ..errors import MessageError
from ..exchange import WITHOUT_BODY, Response
from ..types import Headers
from .rules import tokens

REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
# As h11 has it: some cookies in the wild have control characters in them, but these three split messages.
_VALUE = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?")
_LENGTH = re.compile(rb"[0-9]{1,20}")


class Ending(Enum):
    """What tells a client where a response's body ends."""

    AT_ONCE = auto()  # it has none, whatever its head says
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()  # of the connection


@dataclass(frozen=True, slots=True)
class FramedHead:
    """A response head as it goes out; ``length`` is the body's, in bytes, where that is what ends it."""

    data: bytes
    ending: Ending
    length: int
    closes: bool


class FramedHeads:
    """Response heads that have been checked and serialised, for all connections of a server.

    Most applications send the same few again and again: 0.7 µs for one that is kept, 7 for one that is not. Small,
    because Date makes all of them useless after a second.
    """

    LIMIT = 64

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], FramedHead] = {}
        self._defaults: Headers = ()

    def get(
        self, response: Response, defaults: Headers, is_head: bool, http_version: str, says_close: bool, closes: bool
    ) -> FramedHead:
        """Return the head of a response to such a request, completed with ``defaults``.

        ``says_close``: the server closes the connection; ``closes``: the client does. Raises MessageError for a head
        that HTTP forbids.
        """
        if defaults is not self._defaults:  # Date has changed
            self._defaults = defaults
            self._heads.clear()
        key = (response.status, response.length, is_head, http_version, says_close, closes, *response.headers)
        head = self._heads.get(key)
        if head is None:
            fields = response.complete_headers(defaults)
            if says_close:
                fields = say_close(fields)
            head = frame_head(response.status, fields, is_head=is_head, http_version=http_version, closes=closes)
            if len(self._heads) >= self.LIMIT:
                self._heads.clear()
            self._heads[key] = head
        return head


def say_close(fields: Headers) -> list[tuple[bytes, bytes]]:
    """What the application says of the connection counts only while the server has no reason to close it."""
    return [*_without(fields, b"connection"), (b"connection", b"close")]


def frame_head(status: int, headers: Headers, *, is_head: bool, http_version: str, closes: bool) -> FramedHead:
    """Serialise a final response head, with the fields that its framing needs. Raises MessageError."""
    fields = list(headers)
    length, has_coding = _check_head(fields)
    ending = Ending.AT_ONCE if status in WITHOUT_BODY else Ending.LENGTH
    if ending is Ending.LENGTH and (has_coding or length is None):
        # Transfer-Encoding overrides the length (RFC 9112 §6.3).
        fields = _without(fields, b"content-length", b"transfer-encoding")
        ending = Ending.CLOSE
        if http_version != "1.0":
            ending = Ending.CHUNKED
            fields.append((b"transfer-encoding", b"chunked"))
    if is_head:
        ending = Ending.AT_ONCE  # with the fields that a response to GET would have
    closes = closes or b"close" in _connection_options(fields)
    if closes:
        options = (_connection_options(fields) - {b"keep-alive"}) | {b"close"}
        fields = [*_without(fields, b"connection"), (b"connection", b", ".join(sorted(options)))]
    return FramedHead(serialise(status, fields), ending, length or 0, closes)


def serialise(status: int, fields: Headers) -> bytes:
    """Write a head whose fields have been checked."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, REASONS.get(status, b""), b"".join(lines))


def frame_informational(status: int, headers: Headers) -> bytes:
    """Serialise the head of a 1xx response. Raises MessageError."""
    fields = list(headers)
    _check_head(fields)
    return serialise(status, fields)


def check_fields(fields: Headers, error: str) -> None:
    """Refuse field lines that would be read as something else. Raises MessageError that begins with ``error``."""
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise MessageError(f"{error}: Illegal header name {name!r}")
        if not _VALUE.fullmatch(value):
            raise MessageError(f"{error}: Illegal header value {value!r}")


def _check_head(fields: list[tuple[bytes, bytes]]) -> tuple[int | None, bool]:
    """Check fields that the application gave; returns the length they say, and whether they say chunked."""
    check_fields(fields, "the response head is wrong")
    return _only_length(fields), _has_coding(fields)


def _only_length(fields: list[tuple[bytes, bytes]]) -> int | None:
    """Return the length that the fields say, None if they say none; lengths that agree become one."""
    lengths = {one.strip() for name, value in fields if name.lower() == b"content-length" for one in value.split(b",")}
    if not lengths:
        return None
    if len(lengths) > 1:
        raise MessageError("the response head is wrong: conflicting Content-Length headers")
    (length,) = lengths
    if not _LENGTH.fullmatch(length):
        raise MessageError("the response head is wrong: bad Content-Length")
    places = [place for place, (name, _) in enumerate(fields) if name.lower() == b"content-length"]
    fields[places[0]] = (fields[places[0]][0], length)
    for place in reversed(places[1:]):
        del fields[place]
    return int(length)


def _has_coding(fields: list[tuple[bytes, bytes]]) -> bool:
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise MessageError("the response head is wrong: the only Transfer-Encoding that can be sent is chunked, once")
    return bool(codings)


def _connection_options(fields: list[tuple[bytes, bytes]]) -> set[bytes]:
    values = [value.lower() for name, value in fields if name.lower() == b"connection"]
    return {option for value in values for option in tokens(value) if option}


def _without(fields: Headers, *names: bytes) -> list[tuple[bytes, bytes]]:
    return [field for field in fields if field[0].lower() not in names]


class BodyFraming:
    """The framing of a response's body, from its head to its end; ``begin`` it for each response of a connection."""

    __slots__ = ("_left", "ending", "is_complete")

    def __init__(self) -> None:
        self.ending: Ending | None = None
        """None until the head is known."""
        self._left = 0
        self.is_complete = False

    def begin(self, head: FramedHead) -> None:
        self.ending, self._left, self.is_complete = head.ending, head.length, False

    def reset(self) -> None:
        self.ending, self.is_complete = None, False

    def frame(self, count: int) -> tuple[bytes, bytes]:
        """Return what goes before and after ``count`` bytes, which is not zero. Raises MessageError for too many."""
        if self.ending is Ending.CHUNKED:
            return b"%x\r\n" % count, b"\r\n"
        if self.ending is Ending.LENGTH:
            self._left -= count
            if self._left < 0:
                raise MessageError("the response body is wrong: Too much data for declared Content-Length")
        return b"", b""

    def end(self, trailers: Headers) -> bytes:
        """Return what ends the body; trailers only where it is chunked. Raises MessageError if bytes are missing."""
        end = b""
        if self.ending is Ending.CHUNKED:
            check_fields(trailers, "the response cannot end here")
            end = b"0\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % field for field in trailers])
        elif self.ending is Ending.LENGTH and self._left != 0:
            raise MessageError("the response cannot end here: Too little data for declared Content-Length")
        self.is_complete = True
        return end
