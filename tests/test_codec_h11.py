"""What is h11's alone among the codecs: the cache of response heads that it has checked."""

from __future__ import annotations

import h11
import pytest

from trioserve.exchange import Response
from trioserve.types import AnyValue
from trioserve.wire.codec_h11 import HeadCache

DEFAULTS = [(b"server", b"s")]


def get(
    heads: HeadCache,
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    length: int | None = None,
    says_close: bool = False,
    defaults: list[tuple[bytes, bytes]] = DEFAULTS,
) -> h11.Response:
    response = Response(status, [(b"a", b"b")] if headers is None else headers, length=length)
    return heads.get(response, defaults, says_close=says_close)


def test_a_head_that_was_checked_is_kept() -> None:
    """The same response head is checked once, in whatever list it comes."""
    heads = HeadCache()
    assert get(heads) is get(heads)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 201},
        {"headers": [(b"A", b"b")]},
        {"headers": []},
        {"length": 0},
        {"says_close": True},
        {"defaults": list(DEFAULTS)},
    ],
)
def test_another_head_is_another(changes: AnyValue) -> None:
    """A head that differs in anything, or in the server's own fields, is not mistaken for one that is kept."""
    heads = HeadCache()
    assert get(heads) is not get(heads, **changes)


def test_only_so_many_heads_are_kept() -> None:
    """An application that says something new each time does not fill the memory."""
    heads = HeadCache()
    first = get(heads)
    for number in range(HeadCache.LIMIT):
        get(heads, headers=[(b"a", b"%d" % number)])
    assert get(heads) is not first


def test_a_wrong_head_is_not_kept() -> None:
    """A head that HTTP forbids is refused each time."""
    heads = HeadCache()
    for _ in range(2):
        with pytest.raises(h11.LocalProtocolError):
            get(heads, headers=[(b"a", b"b\n")])


def test_the_server_s_close_is_all_that_is_said_of_the_connection() -> None:
    """When the server closes, what the application says of the connection does not count."""
    head = get(HeadCache(), headers=[(b"Connection", b"keep-alive, x")], length=0, says_close=True)
    assert list(head.headers) == [(b"content-length", b"0"), (b"server", b"s"), (b"connection", b"close")]
