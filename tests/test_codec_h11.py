"""What is h11's alone among the codecs: the cache of response heads that it has checked."""

from __future__ import annotations

import h11
import pytest

from trioserve.wire.codec_h11 import HeadCache


def test_a_head_that_was_checked_is_kept() -> None:
    """The same response head is checked once, in whatever list it comes."""
    heads = HeadCache()
    assert heads.get(h11.Response, 200, [(b"a", b"b")]) is heads.get(h11.Response, 200, ((b"a", b"b"),))


@pytest.mark.parametrize(("status", "headers"), [(201, [(b"a", b"b")]), (200, [(b"A", b"b")]), (200, [])])
def test_another_head_is_another(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """A head that differs in anything is not mistaken for one that is kept."""
    heads = HeadCache()
    assert heads.get(h11.Response, 200, [(b"a", b"b")]) is not heads.get(h11.Response, status, headers)


def test_only_so_many_heads_are_kept() -> None:
    """An application that says something new each time does not fill the memory."""
    heads = HeadCache()
    first = heads.get(h11.Response, 200, [])
    for number in range(HeadCache.LIMIT):
        heads.get(h11.Response, 200, [(b"a", b"%d" % number)])
    assert heads.get(h11.Response, 200, []) is not first


def test_a_wrong_head_is_not_kept() -> None:
    """A head that HTTP forbids is refused each time."""
    heads = HeadCache()
    for _ in range(2):
        with pytest.raises(h11.LocalProtocolError):
            heads.get(h11.Response, 200, [(b"a", b"b\n")])
