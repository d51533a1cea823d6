"""Both codecs take a request for the same, however it is mutated and split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .codec_reading import HEADS, PIECES, check_alike, cut, fresh_codecs, read


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One or two requests, with some bytes replaced, inserted or taken out."""
    data = b"".join(draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 0, 1, 2, 5]))
        data = data[:place] + draw(st.sampled_from([b"", *PIECES])) + data[place + length :]
    return data


@settings(max_examples=300)
@given(requests(), st.data())
def test_both_codecs_read_a_mutated_request_alike(data: bytes, draw: st.DataObject) -> None:
    """The same requests, bodies and errors, whatever the bytes are and wherever they are split."""
    check_alike(cut(data, draw.draw(st.lists(st.integers(0, len(data)), max_size=4))))


@pytest.mark.parametrize("data", HEADS)
def test_both_codecs_read_a_request_alike_split_at_every_byte(data: bytes) -> None:
    """Each request byte by byte, and in two pieces at each place."""
    check_alike([bytes([byte]) for byte in data])
    for place in range(len(data) + 1):
        check_alike([data[:place], data[place:]])


@pytest.mark.parametrize("data", HEADS)
def test_both_codecs_read_a_request_alike_with_any_piece_at_any_place(data: bytes) -> None:
    """Each piece in front of each line, and in place of one byte in three of the first two lines."""
    for place in range(min(len(data), 40)):
        for piece in PIECES[place % 3 :: 3]:
            check_alike([data[:place] + piece + data[place + 1 :]])


def test_a_method_that_llhttp_does_not_know_is_the_only_difference() -> None:
    """h11 passes any method on; llhttp has a list of them."""
    data = b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"
    codecs = fresh_codecs()
    ours = read(codecs["httptools"](), [data])
    assert (ours.refusal, ours.is_known_difference, ours.exchanges) == (501, True, [])
    assert len(read(codecs["h11"](), [data]).exchanges) == 1
