"""What every codec must refuse in a request."""

from __future__ import annotations

import pytest

from trioserve.errors import ProtocolError
from trioserve.wire.rules import (
    CHUNK_LINE_LIMIT,
    ChunkScanner,
    check_beginning,
    check_fields,
    check_lengths,
    check_raw_head,
    check_target,
    explain_refusal,
    too_long,
)

Fields = list[tuple[bytes, bytes]]


@pytest.mark.parametrize("first", [b"\x16\x03\x01", b"\x00", b" ", b"\n", b"\x7f", b"\x80", b"\xff"])
def test_what_cannot_begin_a_method_is_refused_at_its_first_byte(first: bytes) -> None:
    """A first byte that is no visible ASCII character can never become a request."""
    with pytest.raises(ProtocolError) as caught:
        check_beginning(first)
    assert caught.value.status == 400


def test_tls_on_a_plain_port_is_named() -> None:
    """A TLS handshake on a plain port is told what is wrong."""
    with pytest.raises(ProtocolError, match="plain HTTP.*TLS handshake"):
        check_beginning(b"\x16")


@pytest.mark.parametrize("first", [b"G", b"!", b"~"])
def test_a_visible_character_may_begin_a_request(first: bytes) -> None:
    """What could begin a method is let through until the line is there."""
    check_beginning(first)


WRONG_HEADS = {
    "NUL in a value": (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
    "control character in a value": (b"GET / HTTP/1.1\r\nA: b\x01c\r\n\r\n", 400),
    "escape in a value": (b"GET / HTTP/1.1\r\nA: \x1b[31m\r\n\r\n", 400),
    "DEL in a value": (b"GET / HTTP/1.1\r\nA: b\x7fc\r\n\r\n", 400),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400),
    "bare LF after the request line": (b"GET / HTTP/1.1\nA: b\r\n\r\n", 400),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nA: b\nB: c\r\n\r\n", 400),
    "folded by a space": (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    "folded by a tab": (b"GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n", 400),
    "a space before the first field": (b"GET / HTTP/1.1\r\n A: b\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "two spaces after the method": (b"GET  / HTTP/1.1\r\n\r\n", 400),
    "two spaces before the version": (b"GET /  HTTP/1.1\r\n\r\n", 400),
    "a space after the version": (b"GET / HTTP/1.1 \r\n\r\n", 400),
    "a tab for a space": (b"GET\t/\tHTTP/1.1\r\n\r\n", 400),
    "a space in the target": (b"GET /a b HTTP/1.1\r\n\r\n", 400),
    "no ASCII in the target": (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", 400),
    "a method that is no token": (b"G(T / HTTP/1.1\r\n\r\n", 400),
    "a version in lower case": (b"GET / http/1.1\r\n\r\n", 400),
    "a version without a minor number": (b"GET / HTTP/1\r\n\r\n", 400),
    "a version of two digits": (b"GET / HTTP/1.10\r\n\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n\r\n", 505),
    "HTTP/0.9 spelled out": (b"GET / HTTP/0.9\r\n\r\n", 505),
    "a line without a colon": (b"GET / HTTP/1.1\r\nA\r\n\r\n", 400),
    "a space before the colon": (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
    "an empty name": (b"GET / HTTP/1.1\r\n: b\r\n\r\n", 400),
    "a tab before a coding": (b"GET / HTTP/1.1\r\nTransfer-Encoding:\tchunked\r\n\r\n", 400),
    "a tab after a length": (b"GET / HTTP/1.1\r\ncontent-length: 5\t\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\n\r\n", 501),
    "too many fields": (b"GET / HTTP/1.1\r\nA: 1\r\nA: 2\r\nA: 3\r\nA: 4\r\n\r\n", 431),
}


@pytest.mark.parametrize("name", WRONG_HEADS)
def test_a_wrong_head_is_refused(name: str) -> None:
    """A head that parsers could read in two ways is refused before any parser sees it."""
    head, status = WRONG_HEADS[name]
    with pytest.raises(ProtocolError) as caught:
        check_raw_head(head, max_fields=3)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"M-SEARCH * HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nA: 1, 2\r\nX-Content-Length: 5\r\n\r\n",
        b"GET /%20?a=b&c HTTP/1.1\r\nA: 1\r\nA: \xe4\tb\r\nA:\r\n\r\n",
        b"GET / HTTP/1.1\r\nX-Content-Length:\t1\r\nContent-Length: 1\r\nA:\t\r\n\r\n",
    ],
)
def test_a_right_head_passes(head: bytes) -> None:
    """A head as the RFC has it passes, also with as many fields as are allowed and bytes above ASCII in values."""
    method, target, version = check_raw_head(head, max_fields=3)
    assert head.startswith(f"{method} {target.decode()} HTTP/{version}\r\n".encode())


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"x" * 99, 414),
        (b"GET /" + b"x" * 99 + b" HTTP/1.1\r\nA: b\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 99, 431),
    ],
)
def test_too_long_a_head_is_about_the_line_or_the_fields(head: bytes, status: int) -> None:
    """Where the request line alone was too long the answer is 414, else 431."""
    assert too_long(bytearray(head), 64).status == status


WRONG_FIELDS: dict[str, tuple[Fields, str, int]] = {
    "no host": ([], "1.1", 400),
    "two hosts": ([(b"host", b"a"), (b"host", b"a")], "1.1", 400),
    "two hosts in HTTP/1.0": ([(b"host", b"a"), (b"host", b"b")], "1.0", 400),
    "a host with a path": ([(b"host", b"a/b")], "1.1", 400),
    "a host with a user": ([(b"host", b"me@a")], "1.1", 400),
    "a host with a space": ([(b"host", b"a b")], "1.1", 400),
    "a port that is no number": ([(b"host", b"a:b")], "1.1", 400),
    "an open bracket": ([(b"host", b"[::1")], "1.1", 400),
    "a length that is no number": ([(b"host", b"a"), (b"content-length", b"x")], "1.1", 400),
    "a length with a sign": ([(b"host", b"a"), (b"content-length", b"+5")], "1.1", 400),
    "a length that is negative": ([(b"host", b"a"), (b"content-length", b"-5")], "1.1", 400),
    "a length with a separator": ([(b"host", b"a"), (b"content-length", b"1_0")], "1.1", 400),
    "an empty length": ([(b"host", b"a"), (b"content-length", b"")], "1.1", 400),
    "a listed length": ([(b"host", b"a"), (b"content-length", b"5, 5")], "1.1", 400),
    "a repeated length": ([(b"host", b"a"), (b"content-length", b"5"), (b"content-length", b"5")], "1.1", 400),
    "a length beyond 64 bits": ([(b"host", b"a"), (b"content-length", b"9" * 20)], "1.1", 400),
    "length and coding": (
        [(b"host", b"a"), (b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        "1.1",
        400,
    ),
    "a coding in HTTP/1.0": ([(b"transfer-encoding", b"chunked")], "1.0", 400),
    "a coding without chunked": ([(b"host", b"a"), (b"transfer-encoding", b"gzip")], "1.1", 400),
    "chunked not last": ([(b"host", b"a"), (b"transfer-encoding", b"chunked, gzip")], "1.1", 400),
    "chunked misspelled": ([(b"host", b"a"), (b"transfer-encoding", b"xchunked")], "1.1", 400),
    "gzip and chunked": ([(b"host", b"a"), (b"transfer-encoding", b"gzip, chunked")], "1.1", 501),
    "gzip and chunked in two fields": (
        [(b"host", b"a"), (b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")],
        "1.1",
        501,
    ),
    "chunked twice": ([(b"host", b"a"), (b"transfer-encoding", b"chunked, chunked")], "1.1", 501),
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_framing_is_refused(name: str) -> None:
    """Fields that leave the host or the length of a request in doubt are refused."""
    headers, version, status = WRONG_FIELDS[name]
    with pytest.raises(ProtocolError) as caught:
        check_fields(headers, version)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("headers", "version", "length"),
    [
        ([(b"host", b"a")], "1.1", 0),
        ([(b"host", b"")], "1.1", 0),
        ([(b"host", b"[::1]:8000"), (b"content-length", b"5")], "1.1", 5),
        ([], "1.0", 0),
        ([(b"content-length", b"007")], "1.0", 7),
        ([(b"host", b"a:"), (b"transfer-encoding", b" Chunked\t")], "1.1", None),
    ],
)
def test_right_framing_gives_the_length(headers: Fields, version: str, length: int | None) -> None:
    """The length of a body is its Content-Length, nothing where there is none, and unknown where it is chunked."""
    assert check_fields(headers, version)[0] == length


@pytest.mark.parametrize(
    ("headers", "version", "closes", "expects"),
    [
        ([], "1.1", False, False),
        ([(b"connection", b"keep-alive")], "1.1", False, False),
        ([(b"connection", b"x ,\tClose")], "1.1", True, False),
        ([(b"connection", b"close"), (b"connection", b"x")], "1.1", True, False),
        ([(b"connection", b"closed")], "1.1", False, False),
        ([(b"connection", b"keep-alive")], "1.0", True, False),
        ([(b"expect", b"100-Continue")], "1.1", False, True),
        ([(b"expect", b"100-continue"), (b"expect", b"x")], "1.1", False, True),
        ([(b"expect", b"x")], "1.1", False, False),
        ([(b"expect", b"100-continue")], "1.0", True, False),
    ],
)
def test_what_the_client_expects_of_the_connection(headers: Fields, version: str, closes: bool, expects: bool) -> None:
    """Whether it closes after the request, as every HTTP/1.0 client does here, and whether it waits for 100."""
    assert check_fields([(b"host", b"a"), *headers], version) == (0, closes, expects, False)


@pytest.mark.parametrize("lengths", [b"Content-Length: 5\r\nCONTENT-LENGTH: 5", b"content-length: 5, 5"])
def test_lengths_that_agree_are_refused(lengths: bytes) -> None:
    """A repeated or listed length is refused in the bytes of the head, as h11 makes one of them."""
    with pytest.raises(ProtocolError, match="Content-Length must be one number"):
        check_lengths(b"GET / HTTP/1.1\r\n%b\r\n\r\n" % lengths)


@pytest.mark.parametrize("fields", [b"", b"Content-Length: 5\r\nA: 1, 2\r\nX-Content-Length: 5\r\n"])
def test_one_length_passes(fields: bytes) -> None:
    """No length, or one, passes, whatever other fields there are."""
    check_lengths(b"GET / HTTP/1.1\r\n%b\r\n" % fields)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", b"/a#b", 400),
        ("GET", b"*", 400),
        ("GET", b"a/b", 400),
        ("GET", b"http://", 400),
        ("GET", b"http:///a", 400),
        ("GET", b"http://me@a/", 400),
        ("GET", b"ftp://a/", 400),
        ("GET", b"?a", 400),
    ],
)
def test_a_wrong_target_is_refused(method: str, target: bytes, status: int) -> None:
    """A target that is neither a path, nor an http URL, nor the asterisk of OPTIONS is refused."""
    with pytest.raises(ProtocolError) as caught:
        check_target(method, target, [])
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", b"/a?b", b"/a?b"),
        ("GET", b"//a", b"//a"),
        ("OPTIONS", b"*", b"*"),
        ("GET", b"http://b/c?d", b"/c?d"),
        ("GET", b"HTTPS://b:1/c", b"/c"),
        ("GET", b"http://b", b"/"),
        ("GET", b"http://b?c", b"/?c"),
        ("OPTIONS", b"http://b", b"*"),
        ("OPTIONS", b"http://b/", b"/"),
    ],
)
def test_every_target_becomes_a_path_or_the_asterisk(method: str, target: bytes, expected: bytes) -> None:
    """An absolute-form target is reduced to its path and query, or to the asterisk for OPTIONS of a whole server."""
    assert check_target(method, target, [(b"host", b"a")]) == expected


def test_the_host_of_an_absolute_target_replaces_the_host_field() -> None:
    """The host in the target goes before the Host field, which is thrown away (RFC 9112 §3.2.2)."""
    headers = [(b"a", b"1"), (b"host", b"wrong"), (b"b", b"2")]
    check_target("GET", b"http://right:80/", headers)
    assert headers == [(b"host", b"right:80"), (b"a", b"1"), (b"b", b"2")]


def make_scanner() -> ChunkScanner:
    return ChunkScanner(max_trailer=100, max_fields=2)


def extended_chunk(extensions: int, data: int) -> bytes:
    return b"%x;%b\r\n%b\r\n" % (data, b"x" * (extensions - 1), b"d" * data)


CHUNKED_BODY = b"5;name=value\r\nhello\r\n0A\r\n0123456789\r\n0\r\nA: b\r\nC:\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_end_of_a_chunked_body_is_found(size: int) -> None:
    """The scanner says how many bytes belong to the body, however it comes in pieces."""
    scanner = make_scanner()
    data = CHUNKED_BODY + b"GET /"
    count = sum(scanner.scan(data[start : start + size], []) for start in range(0, len(data), size))
    assert scanner.done
    assert count == len(CHUNKED_BODY)


WRONG_CHUNKS = {
    "no size": (b"\r\n", 400),
    "a size that is no number": (b"x\r\n", 400),
    "a size with a prefix": (b"0x5\r\n", 400),
    "a size with a sign": (b"+5\r\n", 400),
    "a space before the extension": (b"5 ;a\r\n", 400),
    "a size beyond 64 bits": (b"1" * 17 + b"\r\n", 400),
    "NUL in an extension": (b"5;a\x00b\r\n", 400),
    "CR in an extension": (b"5;a\rb\r\n", 400),
    "a bare LF after the size": (b"5\nhello", 400),
    "a bare LF after the data": (b"5\r\nhello\n", 400),
    "a chunk that is longer than it says": (b"5\r\nhello!\r\n", 400),
    "an endless extension": (b"5;" + b"x" * CHUNK_LINE_LIMIT, 400),
    "more extensions than data": (extended_chunk(1000, 1) * 17, 400),
    "an endless trailer": (b"0\r\nA: " + b"x" * 100, 431),
    "trailers too large together": (b"0\r\nA: " + b"x" * 60 + b"\r\nB: " + b"x" * 60, 431),
    "too many trailers": (b"0\r\nA: 1\r\nB: 2\r\nC: 3\r\n", 431),
    "a trailer without a colon": (b"0\r\nA\r\n", 400),
    "a folded trailer": (b"0\r\nA: 1\r\n b\r\n", 400),
    "NUL in a trailer": (b"0\r\nA: \x00\r\n", 400),
    "a bare LF after a trailer": (b"0\r\nA: 1\n", 400),
    "a length in a trailer": (b"0\r\nContent-Length: 5\r\n", 400),
    "a coding in a trailer": (b"0\r\ntransfer-encoding:chunked\r\n", 400),
}


@pytest.mark.parametrize(
    "body",
    [extended_chunk(1000, 1) * 16, extended_chunk(18, 1) * 2000, extended_chunk(100, 50) * 2000],
    ids=["16 KiB", "16 bytes and twice the data", "twice the data"],
)
def test_extensions_in_proportion_to_the_data(body: bytes) -> None:
    """A signature for each chunk may be there, and in all 16 KiB more than that."""
    scanner, position = make_scanner(), 0
    body += b"0\r\n\r\n"
    while not scanner.done:
        position += scanner.scan(body[position:], [])
    assert position == len(body)


@pytest.mark.parametrize("name", WRONG_CHUNKS)
def test_a_wrong_chunked_body_is_refused(name: str) -> None:
    """A chunked body that parsers could end at two places, or that is made of anything but data, is refused."""
    data, status = WRONG_CHUNKS[name]
    with pytest.raises(ProtocolError) as caught:
        make_scanner().scan(data, [])
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("coding", "status"),
    [(b"chunked, gzip", 400), (b"identity", 400), (b"", 400), (b"chunked;q=1", 400), (b"gzip, chunked", 501)],
)
def test_a_transfer_coding_that_a_parser_refuses_gets_the_status_of_the_rfc(coding: bytes, status: int) -> None:
    """A last coding that is not chunked leaves the length unknown: 400. One that is not understood before it: 501."""
    error = explain_refusal(b"POST / HTTP/1.1\r\nTransfer-Encoding: " + coding + b"\r\n\r\n")
    assert (error.status, "Transfer-Encoding" in error.reason or "transfer coding" in error.reason) == (status, True)


def test_what_a_parser_refuses_for_another_reason_is_a_bad_request() -> None:
    """A head in which the rules find nothing wrong, and a length that is wrong before its coding is looked at."""
    assert explain_refusal(b"GET / HTTP/1.1\r\nA : b\r\n\r\n").reason == "The request head is not valid HTTP/1.1."
    both = b"PUT / HTTP/1.1\r\nContent-Length: 5, 5\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    assert explain_refusal(both).reason == "Content-Length must be one number."
