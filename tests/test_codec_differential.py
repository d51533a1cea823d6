"""Both codecs take a request for the same, however it is mutated and split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.config import Config
from trioserve.errors import ProtocolError
from trioserve.exchange import Response
from trioserve.wire.codecs import codec_maker

CONFIG = {"limit_request_head": 400, "limit_request_fields": 8}

HEADS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a?b=%20 HTTP/1.1\r\nHost: a.b:80\r\nUser-Agent: x  y\r\nAccept: */*\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x80abcd",
    b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 2\r\n\r\nhi",
    b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]

PIECES = [
    *(bytes([code]) for code in b"\0\x01\t\n\v\f\r !\"#%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~\x7f\x80\xff"),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n\n",
        b"\r\n ",
        b": ",
        b" :",
        b"  ",
        b"\t",
        b"0",
        b"00",
        b"+5",
        b"-1",
        b"0x5",
        b"5,5",
        b";a=b",
    ),
    *(
        b"Host: b\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 6\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length:\r\n",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
    ),
    *(b"Transfer-Encoding:\r\n", b"Transfer_Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(
        b"Connection: close\r\n",
        b"Connection: upgrade\r\n",
        b"Upgrade: x\r\n",
        b"Expect: 100-continue\r\n",
        b"Expect: x\r\n",
    ),
    *(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"http/1.1", b"HTTP/1.10", b"RTSP/1.0", b"ICE/1.0"),
    *(b"DESCRIBE ", b"PRI ", b"SOURCE ", b"chunked", b"Chunked", b"CHUNKED"),
    *(b"http://", b"https://a", b"//", b"*", b"#", b"?", b"a@b", b"[::1]", b"%00", b"\xff", b"\xc3\xa4"),
]

KNOWN_DIFFERENCE = "The request's method is not known here."
"""What only httptools says: llhttp has a fixed list of methods."""


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One or two requests, with some bytes replaced, inserted or taken out."""
    data = b"".join(draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 0, 1, 2, 5]))
        data = data[:place] + draw(st.sampled_from([b"", *PIECES])) + data[place + length :]
    return data


def outcomes(name: str, pieces: list[bytes]) -> list[object]:
    """What a codec reads: each head and whole body, what it then expects of the connection, and how it ends."""
    codec = codec_maker(Config.from_plain({"http": name, **CONFIG}))()
    read: list[object] = []
    body = b""
    in_body = False
    for piece in [*pieces, b""]:
        if piece:
            codec.feed(piece)
        while True:
            try:
                if not in_body:
                    head = codec.next_head()
                    if head is None:
                        break
                    read += [head, codec.wants_continue]
                    body, in_body = b"", True
                came = codec.next_body()
                if came is None:
                    break
                body += came[0]
                if came[1]:
                    continue
            except ProtocolError as error:
                return [*read, error.status, error.reason == KNOWN_DIFFERENCE]
            read += [
                body,
                codec.response_head(Response(200, [(b"content-length", b"0")]), (), says_close=False).lower(),
                codec.end(()),
                codec.can_reuse,
            ]
            if not codec.can_reuse:
                return read
            codec.start_next()
            in_body = False
    return [*read, body, codec.has_begun, in_body]


def check_alike(pieces: list[bytes]) -> None:
    ours, theirs = outcomes("httptools", pieces), outcomes("h11", pieces)
    if ours and ours[-1] is True and ours[-2] == 501:
        # A method that llhttp does not know. What came before it is the same.
        ours, theirs = ours[:-2], theirs[: len(ours) - 2]
    assert ours == theirs


@settings(max_examples=300)
@given(requests(), st.data())
def test_both_codecs_read_a_mutated_request_alike(data: bytes, draw: st.DataObject) -> None:
    """The same requests, bodies and errors, whatever the bytes are and wherever they are split."""
    places = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=4)))
    check_alike([data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)])


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
    assert outcomes("httptools", [data])[-2:] == [501, True]
    assert len(outcomes("h11", [data])) > 3
