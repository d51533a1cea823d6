"""HTTP/1.1 by either codec: bytes in, requests out; responses in, bytes out."""

from __future__ import annotations

from collections.abc import Callable

import h11
import pytest

from trioserve.config import Config
from trioserve.errors import MessageError, ProtocolError
from trioserve.exchange import Response
from trioserve.wire.codec import Codec
from trioserve.wire.codecs import codec_maker
from trioserve.wire.request_reader import Head

MakeCodec = Callable[..., Codec]
Read = Callable[..., tuple[Codec, Head]]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
HTTP_10 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def make_codec(codec: str) -> MakeCodec:
    """Makes a codec of this name, with the limits it is given."""
    return lambda **options: codec_maker(Config.from_plain({"http": codec, **options}))()


@pytest.fixture
def read(make_codec: MakeCodec) -> Read:
    """Makes a codec that has read one head out of some bytes."""

    def read(data: bytes, **options: int) -> tuple[Codec, Head]:
        codec = make_codec(**options)
        codec.feed(data)
        head = codec.next_head()
        assert head is not None
        return codec, head

    return read


# Reading


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_head_is_read_however_it_comes(make_codec: MakeCodec, size: int) -> None:
    """A head is given once it is whole: method, target, lower-case names, version and length."""
    codec = make_codec()
    data = b"POST /a?b HTTP/1.1\r\nHost: a\r\nX-Y: Z\r\nContent-Length: 3\r\n\r\n"
    for start in range(0, len(data), size):
        assert codec.next_head() is None
        codec.feed(data[start : start + size])
    assert codec.next_head() == Head(
        "POST", b"/a?b", [(b"host", b"a"), (b"x-y", b"Z"), (b"content-length", b"3")], "1.1", 3
    )


def test_empty_lines_before_a_request_are_ignored(make_codec: MakeCodec) -> None:
    """Empty lines before the request line are passed over, also one whose LF is still to come (RFC 9112 §2.2)."""
    codec = make_codec()
    codec.feed(b"\r\n\r\n\r")
    assert codec.next_head() is None
    codec.feed(b"\n" + GET)
    assert codec.next_head() is not None


def test_an_empty_line_before_each_of_many_requests(make_codec: MakeCodec) -> None:
    """Old clients send an empty line after each body; those of one request do not count for the next."""
    codec = make_codec()
    for _ in range(20):
        codec.feed(b"\r\n" + GET)
        assert codec.next_head() is not None
        codec.response_head(Response(200, [(b"content-length", b"0")]), (), False)
        codec.end(())
        codec.start_next()


def test_a_head_has_begun_with_its_first_byte(make_codec: MakeCodec) -> None:
    """What lies in the buffer is the beginning of a head; after a whole request nothing is."""
    codec = make_codec()
    assert not codec.has_begun
    codec.feed(b"G")
    assert codec.has_begun
    codec.feed(GET[1:])
    codec.next_head()
    assert not codec.has_begun


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"x" * 300, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 300, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 300 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\n\r\n", 431),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"\nGET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"\x16\x03\x01\x02", 400),
        (b"\x16\x03\x01\x02\r\n\r\n", 400),
    ],
)
def test_a_wrong_head_is_an_error_with_its_status(make_codec: MakeCodec, data: bytes, status: int) -> None:
    """What can never become a right head is refused as soon as that is known."""
    codec = make_codec(limit_request_head=256, limit_request_fields=2)
    codec.feed(data)
    with pytest.raises(ProtocolError) as caught:
        codec.next_head()
    assert caught.value.status == status


def filled(head: bytes, size: int) -> bytes:
    """A head of so many bytes before its empty line; ``head`` has a star where it is filled up."""
    return head.replace(b"*", b"x" * (size - len(head) + 1))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (filled(b"GET / HTTP/1.1\r\nHost: a\r\nA: *", 256) + b"\r\n\r\n", None),
        (filled(b"GET / HTTP/1.1\r\nHost: a\r\nA: *", 257) + b"\r\n\r\n", 431),
        (filled(b"GET / HTTP/1.1\r\nHost: a\r\nA: *", 257), None),  # so far
        (filled(b"GET /* HTTP/1.1", 256) + b"\r\nHost: a\r\n\r\n", 431),
        (filled(b"GET /* HTTP/1.1", 257) + b"\r\nHost: a\r\n\r\n", 414),
        (filled(b"GET /* HTTP/1.1", 250) + b"\nHost: a\r\n\r\n", 400),
        (filled(b"GET /* HTTP/1.1", 300) + b"\nHost: a\r\n\r\n", 414),
        (b"\x01" + b"x" * 300, 400),
    ],
)
def test_the_limit_of_a_head_is_the_same_wherever_it_is_cut(
    make_codec: MakeCodec, data: bytes, status: int | None
) -> None:
    """Bytes that come in two pieces get the answer that they get in one."""
    for place in range(len(data)):
        codec = make_codec(limit_request_head=256)
        refusal = None
        try:
            for piece in (data[:place], data[place:]):
                codec.feed(piece)
                codec.next_head()
        except ProtocolError as error:
            refusal = error.status
        assert refusal == status, place


def test_the_limit_of_a_head_is_of_that_head_alone(read: Read) -> None:
    """What follows a head in the same packet does not count towards its limit."""
    read(GET + b"x" * 1000, limit_request_head=256)


def test_no_body_is_read_at_once(read: Read) -> None:
    """A request without a body is complete with its head."""
    codec, head = read(GET)
    assert head.length == 0
    assert codec.body_read
    assert codec.next_body() == (b"", False)


def test_a_body_of_known_length_ends_there(read: Read) -> None:
    """A body of known length is given as it comes, and what follows it belongs to the next request."""
    codec, _ = read(POST)
    assert codec.next_body() is None
    codec.feed(b"he")
    assert codec.next_body() == (b"he", True)
    assert not codec.body_read
    codec.feed(b"llo" + GET)
    assert codec.next_body() == (b"llo", False)
    assert codec.body_read
    assert codec.has_begun


def test_a_head_that_comes_again_is_the_same(make_codec: MakeCodec) -> None:
    """The second request with the same head is read as the first, on this connection and on others."""
    data = b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: x\r\nContent-Length: 2\r\n\r\n"
    codec = make_codec()
    heads = []
    for _ in range(3):
        codec.feed(data)
        heads.append(codec.next_head())
        assert codec.wants_continue
        codec.feed(b"hi")
        assert codec.next_body() == (b"hi", False)
        write_head(codec, 200, LENGTH)
        codec.body(b"hello")
        codec.end(())
        codec.start_next()
    assert heads[0] == heads[1] == heads[2]


def test_the_case_of_a_coding_is_not_shown(read: Read) -> None:
    """Both codecs show the application the same fields."""
    _, head = read(CHUNKED.replace(b"chunked", b"Chunked"))
    assert (b"transfer-encoding", b"chunked") in head.headers


def test_a_chunked_body_is_taken_apart(read: Read) -> None:
    """Chunks that came together are one piece; extensions and trailers are dropped."""
    codec, head = read(CHUNKED)
    assert head.length is None
    codec.feed(b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n")
    assert codec.next_body() == (b"hello", True)
    assert codec.next_body() is None
    codec.feed(b"A: b\r\n\r\n" + GET)
    assert codec.next_body() == (b"", False)
    assert codec.has_begun


@pytest.mark.parametrize("body", [b"x\r\n", b"5\r\nhello!\r\n", b"0\r\nA\r\n", b"0\r\nContent-Length: x\r\n\r\n"])
def test_a_wrong_chunked_body_is_an_error(read: Read, body: bytes) -> None:
    """A chunked body that is not what the RFC says is refused."""
    codec, _ = read(CHUNKED)
    codec.feed(body)
    with pytest.raises(ProtocolError):
        while True:
            codec.next_body()


def test_the_client_waits_for_100_until_it_has_sent(read: Read) -> None:
    """Whether a client waits for 100 is known from its head, and no longer so once its body comes."""
    codec, _ = read(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert codec.wants_continue
    codec.feed(b"h")
    codec.next_body()
    assert not codec.wants_continue


def test_only_100_is_what_the_client_waits_for(read: Read) -> None:
    """An early hint does not tell a client to send its body (RFC 9110 §10.1.1)."""
    codec, _ = read(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    codec.informational(103, [(b"link", b"</a>")])
    assert codec.wants_continue
    codec.informational(100, ())
    assert not codec.wants_continue


# Writing


def write_head(codec: Codec, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    return codec.response_head(Response(status, headers), (), says_close=False)


HEADS = {"GET": GET, "HEAD": HEAD, "HTTP/1.0": HTTP_10}
LENGTH = [(b"content-length", b"5")]


def read_back(request: bytes, response: bytes) -> tuple[h11.Response, bytes, h11.EndOfMessage]:
    """Read a response with h11's client, as the answer to this request."""
    client = h11.Connection(h11.CLIENT)
    method = request.split(b" ", 1)[0]
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(response)
    client.receive_data(b"")
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return head, body, event


def test_a_body_of_said_length_goes_out_as_it_is(read: Read) -> None:
    """With Content-Length the body is neither framed nor ended by anything."""
    codec, _ = read(GET)
    write_head(codec, 200, LENGTH)
    assert (codec.is_chunked, codec.ends_by_close, codec.drops_body) == (False, False, False)
    assert codec.body(b"hello") == b"hello"
    assert codec.end(()) == b""
    assert codec.can_reuse
    assert codec.keeps_alive


def test_a_body_without_length_is_chunked(read: Read) -> None:
    """Without Content-Length a body goes out in chunks, and may have trailers."""
    codec, _ = read(GET)
    head = write_head(codec, 200, [])
    assert (codec.is_chunked, codec.ends_by_close) == (True, False)
    response = head + codec.body(b"hello") + codec.body(b"") + codec.end([(b"a", b"b")])
    _, body, end = read_back(GET, response)
    assert body == b"hello"
    assert list(end.headers) == [(b"a", b"b")]
    assert codec.can_reuse


def test_http_10_gets_no_chunks(read: Read) -> None:
    """To an HTTP/1.0 client a body without length ends with the connection, and trailers are left out."""
    codec, _ = read(HTTP_10)
    head = write_head(codec, 200, [])
    assert (codec.is_chunked, codec.ends_by_close) == (False, True)
    assert b"chunked" not in head
    assert codec.body(b"hello") == b"hello"
    assert codec.end([(b"a", b"b")]) == b""
    assert not codec.can_reuse


@pytest.mark.parametrize(
    ("status", "left"), [(204, []), (304, [b"content-length: 5"]), (200, [b"transfer-encoding: chunked"])]
)
def test_what_has_no_body_says_nothing_of_its_framing(read: Read, status: int, left: list[bytes]) -> None:
    """204 has neither length nor coding, 304 no coding (RFC 9110 §8.6, RFC 9112 §6.1)."""
    head = write_head(read(GET)[0], status, [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")])
    assert head.lower().split(b"\r\n")[1:-2] == left


@pytest.mark.parametrize(("request_head", "status"), [(HEAD, 200), (GET, 204), (GET, 304)])
def test_a_response_that_has_no_body_gets_none(read: Read, request_head: bytes, status: int) -> None:
    """HEAD, 204 and 304 have no body, whatever the application sends (RFC 9110 §6.4.1)."""
    codec, _ = read(request_head)
    write_head(codec, status, [])
    assert codec.drops_body
    assert not codec.is_chunked
    assert codec.body(b"hello") == b""
    assert codec.end([(b"a", b"b")]) == b""
    assert codec.can_reuse


def test_the_reason_of_a_known_status_is_said(read: Read) -> None:
    """A known status goes out with its reason, an unknown one without."""
    assert write_head(read(GET)[0], 404, LENGTH).startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert write_head(read(GET)[0], 599, LENGTH).startswith(b"HTTP/1.1 599 \r\n")


def test_an_informational_response_goes_before(read: Read) -> None:
    """103 goes out with its fields, and the final response can follow."""
    codec, _ = read(GET)
    assert codec.informational(103, [(b"link", b"</a>")]) == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    write_head(codec, 200, LENGTH)


def test_a_file_is_framed_without_its_bytes(read: Read) -> None:
    """What goes before and after a file's bytes is what its length asks for."""
    codec, _ = read(GET)
    write_head(codec, 200, [])
    assert codec.frame(255) == (b"ff\r\n", b"\r\n")
    framed, _ = read(GET)
    write_head(framed, 200, LENGTH)
    assert framed.frame(5) == (b"", b"")
    assert framed.end(()) == b""


WRONG_HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    "a name with a space": [(b"a b", b"c")],
    "a name with a line break": [(b"a\r\nb", b"c")],
    "an empty name": [(b"", b"c")],
    "a value with a line break": [(b"a", b"b\r\nSet-Cookie: c")],
    "a value with a bare LF": [(b"a", b"b\nc")],
    "a value with a bare CR": [(b"a", b"b\rc")],
    "a value with NUL": [(b"a", b"b\x00c")],
    "a length that is no number": [(b"content-length", b"x")],
    "two lengths": [(b"content-length", b"1"), (b"content-length", b"2")],
}


@pytest.mark.parametrize("name", WRONG_HEADS)
@pytest.mark.parametrize("status", [103, 200])
def test_response_splitting_is_refused(read: Read, name: str, status: int) -> None:
    """Field lines that would be read as something else are refused, in the application."""
    codec, _ = read(GET)
    with pytest.raises(MessageError, match="response head is wrong"):
        if status < 200:
            codec.informational(status, WRONG_HEADS[name])
        else:
            write_head(codec, status, WRONG_HEADS[name])


def test_more_than_the_said_length_is_refused(read: Read) -> None:
    """More body than Content-Length says would be read as the next response."""
    codec, _ = read(GET)
    write_head(codec, 200, LENGTH)
    with pytest.raises(MessageError, match="Too much data"):
        codec.body(b"hello!")


def test_nothing_frames_what_is_not_sent(read: Read) -> None:
    """Where the body is dropped, so is its framing."""
    codec, _ = read(HEAD)
    write_head(codec, 200, [])
    assert codec.frame(5) == (b"", b"")


def test_more_file_than_the_said_length_is_refused(read: Read) -> None:
    """The same for a file."""
    codec, _ = read(GET)
    write_head(codec, 200, LENGTH)
    with pytest.raises(MessageError, match="Too much data"):
        codec.frame(6)


def test_less_than_the_said_length_is_refused(read: Read) -> None:
    """Less body than Content-Length says would leave the client waiting."""
    codec, _ = read(GET)
    write_head(codec, 200, LENGTH)
    codec.body(b"hell")
    with pytest.raises(MessageError, match="Too little data"):
        codec.end(())


# Reuse


def test_a_connection_carries_one_request_after_the_other(read: Read) -> None:
    """After both messages are complete the next head is read, pipelined or not."""
    codec, _ = read(POST + b"hello" + HEAD)
    assert codec.next_body() == (b"hello", False)
    write_head(codec, 200, LENGTH)
    codec.body(b"hello")
    codec.end(())
    assert codec.can_reuse
    codec.start_next()
    head = codec.next_head()
    assert head is not None
    assert head.method == "HEAD"


@pytest.mark.parametrize(
    ("request_head", "headers"),
    [
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), LENGTH),
        (GET, [*LENGTH, (b"connection", b"close")]),
        (HTTP_10, LENGTH),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", LENGTH),
    ],
)
def test_a_connection_that_either_side_closes_is_not_reused(
    read: Read, request_head: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Connection: close of either side, and HTTP/1.0, end the connection; the client is told."""
    codec, _ = read(request_head)
    head = write_head(codec, 200, headers)
    codec.body(b"hello")
    codec.end(())
    assert b"connection: close" in head.lower()
    assert not codec.can_reuse
    assert not codec.keeps_alive


def test_an_unread_body_is_in_the_way_of_the_next_request(read: Read) -> None:
    """While a request body is unread the connection cannot be reused, although it was kept open."""
    codec, _ = read(POST)
    write_head(codec, 200, LENGTH)
    codec.body(b"hello")
    codec.end(())
    assert not codec.can_reuse
    assert codec.keeps_alive


# Another protocol

UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
SWITCH = [(b"upgrade", b"websocket"), (b"connection", b"Upgrade")]


def test_a_switch_is_a_101(read: Read) -> None:
    """What accepts the upgrade is a 101 with the fields it was given, as h11's client reads it."""
    codec, _ = read(UPGRADE)
    head, left_over = codec.switch([*SWITCH, (b"sec-websocket-accept", b"x")])
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a"), ("Upgrade", "websocket")]))
    client.send(h11.EndOfMessage())
    client.receive_data(head)
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse)
    assert list(event.headers) == [*SWITCH, (b"sec-websocket-accept", b"x")]
    assert client.next_event() is h11.PAUSED
    assert left_over == b""


@pytest.mark.parametrize("rest", [b"\x81\x80abcd", GET, b"\r\n"])
def test_what_came_after_the_request_is_left_over(read: Read, rest: bytes) -> None:
    """Bytes behind the request belong to the other protocol, whatever they look like, and are given once."""
    codec, _ = read(UPGRADE + rest[:1])
    codec.feed(rest[1:])
    assert codec.switch(SWITCH)[1] == rest
    assert not codec.has_begun


def test_a_switch_that_nobody_asked_for_is_refused(read: Read) -> None:
    """A client that did not ask for an upgrade would not understand a 101."""
    codec, _ = read(GET)
    with pytest.raises(MessageError, match="response head is wrong"):
        codec.switch(SWITCH)


@pytest.mark.parametrize("name", ["a name with a line break", "a value with a line break", "a value with NUL"])
def test_a_wrong_head_of_a_switch_is_refused(read: Read, name: str) -> None:
    """The fields of a 101 are checked as those of any response."""
    codec, _ = read(UPGRADE)
    with pytest.raises(MessageError, match="response head is wrong"):
        codec.switch([*SWITCH, *WRONG_HEADS[name]])


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
    ],
)
def test_what_h11_refuses_is_said_in_our_words(make_codec: MakeCodec, head: bytes, status: int) -> None:
    """The client reads a sentence about its request, not how a parser keeps its bytes."""
    codec = make_codec()
    codec.feed(head)
    with pytest.raises(ProtocolError) as caught:
        codec.next_head()
    assert caught.value.status == status
    assert "bytearray" not in caught.value.reason


def test_empty_lines_before_a_request_are_few(make_codec: MakeCodec) -> None:
    """Eight empty lines are ignored, as the RFC asks for one; a flood of them is refused at once."""
    codec = make_codec()
    codec.feed(b"\r\n" * 8 + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert codec.next_head() is not None
    codec = make_codec()
    codec.feed(b"\r\n" * 9)
    with pytest.raises(ProtocolError, match="too many empty lines"):
        codec.next_head()
