"""The request heads that are kept parsed."""

from __future__ import annotations

import pytest

from trioserve.config import Config
from trioserve.errors import ProtocolError
from trioserve.wire.codec_httptools import HttptoolsCodec
from trioserve.wire.framing import FramedHeads
from trioserve.wire.request_reader import Head, ParsedHeads


def read(parsed: ParsedHeads, data: bytes) -> Head:
    """Read one head on a fresh connection of a server."""
    codec = HttptoolsCodec(Config(), parsed, FramedHeads())
    codec.feed(data)
    head = codec.next_head()
    assert head is not None
    return head


def make_head(target: str = "/", padding: int = 0) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\nX: {'x' * padding}\r\n\r\n".encode()


def test_a_head_that_was_parsed_is_kept_for_all_connections() -> None:
    """The same bytes are parsed once."""
    parsed = ParsedHeads()
    assert read(parsed, make_head()) is read(parsed, make_head())


def test_another_head_is_another() -> None:
    """A byte that differs makes another head."""
    parsed = ParsedHeads()
    assert read(parsed, make_head("/a")).target == b"/a"
    assert read(parsed, make_head("/b")).target == b"/b"


def test_large_heads_are_not_kept() -> None:
    """What carries much of one client is forgotten with its request."""
    parsed = ParsedHeads()
    spare = ParsedHeads.LARGEST - len(make_head())
    assert read(parsed, make_head(padding=spare)) is read(parsed, make_head(padding=spare))
    large = make_head(padding=spare + 1)
    assert read(parsed, large) is not read(parsed, large)


def test_only_so_many_heads_are_kept() -> None:
    """Clients that ask for something else each time do not fill the memory."""
    parsed = ParsedHeads()
    first = read(parsed, make_head())
    for number in range(ParsedHeads.LIMIT):
        read(parsed, make_head(f"/{number}"))
    assert read(parsed, make_head()) is not first


def test_a_wrong_head_is_refused_each_time() -> None:
    """What was refused once is not kept as if it were right."""
    parsed = ParsedHeads()
    for _ in range(2):
        with pytest.raises(ProtocolError):
            read(parsed, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "Proxy-Authorization"])
def test_heads_that_say_who_somebody_is_are_not_kept(name: str) -> None:
    """What is secret is forgotten with its request."""
    parsed = ParsedHeads()
    head = f"GET / HTTP/1.1\r\nHost: a\r\n{name}: secret\r\n\r\n".encode()
    assert read(parsed, head) is not read(parsed, head)


@pytest.mark.parametrize("method", ["BREW", "DESCRIBE", "FLUSH", "PRI", "get"])
def test_a_method_that_httptools_does_not_know_is_not_implemented(method: str) -> None:
    """Also those that it knows, but of other protocols (RFC 9110 §15.6.2)."""
    with pytest.raises(ProtocolError, match="method is not known") as caught:
        read(ParsedHeads(), f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert caught.value.status == 501
