"""Response heads and body framing: the same as h11's, for any response."""

from __future__ import annotations

from collections.abc import Sequence

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.config import Config
from trioserve.errors import MessageError
from trioserve.exchange import Response
from trioserve.types import AnyValue
from trioserve.wire.codec import Codec
from trioserve.wire.codecs import codec_maker
from trioserve.wire.framing import REASONS, FramedHead, FramedHeads

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
]

names = st.sampled_from([b"content-length", b"Transfer-Encoding", b"Connection", b"x", b"X-Y", b"a b", b"", b"\xff"])
values = st.sampled_from(
    [
        *(b"5", b"0", b"5, 5", b"5,6", b"-1", b"x", b"chunked", b"Chunked", b"gzip, chunked", b"close", b"keep-alive"),
        *(b"Close, X", b"", b" a", b"a ", b"a  b", b"a\tb", b"a\x01b", b"a\nb", b"a\rb", b"a\x00b", b"\xff", b"9" * 21),
    ]
)
headers = st.lists(st.tuples(names, values), max_size=3)
bodies = st.lists(st.binary(max_size=3), max_size=3)
trailers = st.lists(st.tuples(st.sampled_from([b"x", b"a b"]), st.sampled_from([b"1", b"a\nb"])), max_size=1)


Fields = list[tuple[bytes, bytes]]


class H11:
    """A Codec's answers by h11, in both directions: what ours must be like."""

    def __init__(self, request: bytes) -> None:
        self._h11 = h11.Connection(h11.SERVER)
        self._h11.receive_data(request)
        event = self._h11.next_event()
        assert isinstance(event, h11.Request)
        self._request = event
        if not self.wants_continue:
            self._h11.next_event()  # EndOfMessage
        self.drops_body = self.is_chunked = self.ends_by_close = False

    @property
    def wants_continue(self) -> bool:
        return self._h11.they_are_waiting_for_100_continue

    def informational(self, status: int, headers: Fields) -> bytes:
        return self._send(h11.InformationalResponse(status_code=status, headers=headers, reason=reason(status)))

    def response_head(self, response: Response, _: object, says_close: bool) -> bytes:
        event = h11.Response(
            status_code=response.status, headers=response.complete_headers(()), reason=reason(response.status)
        )
        head = self._send(event)
        names = {name for name, _ in event.headers}
        self.drops_body = response.status in (204, 304) or self._request.method == b"HEAD"
        has_length = b"content-length" in names and b"transfer-encoding" not in names
        self.is_chunked = not (self.drops_body or has_length or self._request.http_version == b"1.0")
        self.ends_by_close = not (self.drops_body or has_length or self.is_chunked)
        return head

    def body(self, data: bytes) -> bytes:
        return b"" if self.drops_body else self._send(h11.Data(data=data))

    def frame(self, count: int) -> tuple[bytes, bytes]:
        if self.drops_body:
            return b"", b""
        before, _, after = self._send(h11.Data(data=b"x" * count)).partition(b"x" * count)
        return before, after

    def end(self, trailers: Fields) -> bytes:
        return self._send(h11.EndOfMessage(headers=trailers if self.is_chunked else []))

    @property
    def keeps_alive(self) -> bool:
        return self._h11.our_state is h11.DONE

    @property
    def can_reuse(self) -> bool:
        return self.keeps_alive and self._h11.their_state is h11.DONE

    def _send(self, event: h11.Event) -> bytes:
        sent = self._h11.send(event)
        assert sent is not None
        return sent


def reason(status: int) -> bytes:
    return REASONS.get(status, b"")


def ours(request: bytes) -> Codec:
    codec = codec_maker(Config())()
    codec.feed(request)
    codec.next_head()
    return codec


def respond(codec: Codec | H11, status: int, head: Fields, body: list[bytes], end: Fields) -> list[object]:
    """What becomes of a response, step by step, up to the first that is refused."""
    steps: list[object] = [codec.wants_continue]
    try:
        if status < 200:
            # Whether the client still waits is not h11's to say: it takes any 1xx for the 100.
            return [*steps, read_head(codec.informational(status, head))]
        steps.append(read_head(codec.response_head(Response(status, head), (), says_close=False)))
        steps += [codec.drops_body, codec.is_chunked, codec.ends_by_close, codec.wants_continue]
        for piece in body:
            steps.append(codec.body(piece))
            steps.append(codec.frame(3))
        steps.append(codec.end(end))
    except (MessageError, h11.LocalProtocolError):
        return [*steps, "refused"]
    return [*steps, codec.keeps_alive, codec.can_reuse]


def read_head(data: bytes) -> list[bytes]:
    """The lines of a head, as far as they mean the same: the case of names does not matter, nor where a field is that
    the framing adds."""
    first, *lines = data.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    fields: dict[bytes, set[bytes]] = {}
    for line in lines[:-2]:
        name, _, value = line.partition(b": ")
        fields.setdefault(name.lower(), set()).update(one.strip() for one in value.lower().split(b","))
    return [first, *(b"%b: %b" % (name, b",".join(sorted(all_of))) for name, all_of in sorted(fields.items()))]


@given(st.sampled_from(REQUESTS), st.sampled_from([103, 200, 204, 304, 404, 599]), headers, bodies, trailers)
def test_responses_are_as_h11_has_them(
    request: bytes, status: int, head: Fields, body: list[bytes], end: Fields
) -> None:
    """Whatever the application sends, h11 would send the same, or refuse it at the same step."""
    assert respond(ours(request), status, head, body, end) == respond(H11(request), status, head, body, end)


def get(
    heads: FramedHeads,
    status: int = 200,
    headers: Fields | None = None,
    *,
    length: int | None = None,
    is_head: bool = False,
    http_version: str = "1.1",
    says_close: bool = False,
    closes: bool = False,
    defaults: Sequence[tuple[bytes, bytes]] = (),
) -> FramedHead:
    response = Response(status, [(b"a", b"b")] if headers is None else headers, length=length)
    return heads.get(
        response, defaults, is_head=is_head, http_version=http_version, says_close=says_close, closes=closes
    )


def test_a_head_that_was_checked_is_kept() -> None:
    """The same response head is checked and serialised once, in whatever list it comes."""
    heads = FramedHeads()
    assert get(heads) is get(heads)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 201},
        {"headers": [(b"A", b"b")]},
        {"headers": []},
        {"length": 0},
        {"is_head": True},
        {"http_version": "1.0"},
        {"says_close": True},
        {"closes": True},
        {"defaults": [(b"a", b"b")]},
    ],
)
def test_another_head_is_another(changes: AnyValue) -> None:
    """A head that differs in anything, or answers another kind of request, is not mistaken for one that is kept."""
    heads = FramedHeads()
    assert get(heads) is not get(heads, **changes)


def test_only_so_many_heads_are_kept() -> None:
    """An application that says something new each time does not fill the memory."""
    heads = FramedHeads()
    first = get(heads)
    for number in range(FramedHeads.LIMIT):
        get(heads, headers=[(b"a", b"%d" % number)])
    assert get(heads) is not first


def test_a_wrong_head_is_not_kept() -> None:
    """A head that HTTP forbids is refused each time."""
    heads = FramedHeads()
    for _ in range(2):
        with pytest.raises(MessageError):
            get(heads, headers=[(b"a", b"b\n")])


@pytest.mark.parametrize(
    ("headers", "length", "expected"),
    [
        ([], 5, b"content-length: 5\r\nserver: s\r\n"),
        ([(b"Content-Length", b"6")], 5, b"Content-Length: 6\r\nserver: s\r\n"),
        ([(b"transfer-encoding", b"chunked")], 5, b"server: s\r\ntransfer-encoding: chunked\r\n"),
        ([(b"SERVER", b"t")], None, b"SERVER: t\r\ntransfer-encoding: chunked\r\n"),
    ],
)
def test_a_head_is_completed(headers: Fields, length: int | None, expected: bytes) -> None:
    """The length that is known and the defaults are added, unless the application gives its own."""
    head = get(FramedHeads(), headers=headers, length=length, defaults=[(b"server", b"s")])
    assert head.data == b"HTTP/1.1 200 OK\r\n" + expected + b"\r\n"


@pytest.mark.parametrize("status", [204, 304])
def test_what_has_no_body_gets_no_length(status: int) -> None:
    """204 and 304 have no body, so that their head says nothing of its length (RFC 9110 §8.6)."""
    assert b"content-length" not in get(FramedHeads(), status, [], length=5).data


def test_the_server_s_close_is_all_that_is_said_of_the_connection() -> None:
    """When the server closes, what the application says of the connection does not count."""
    head = get(FramedHeads(), headers=[(b"Connection", b"keep-alive, x")], length=0, says_close=True)
    assert head.data == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert head.closes


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"-1")],
        [(b"content-length", b"5"), (b"Content-Length", b"6")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
    ],
)
def test_a_framing_that_nobody_can_follow_is_refused(headers: Fields) -> None:
    """A length that is none, two lengths, and a coding that is not chunked alone."""
    with pytest.raises(MessageError, match="the response head is wrong"):
        get(FramedHeads(), headers=headers)


def test_lengths_that_agree_become_one() -> None:
    """A length that is said twice is sent once."""
    head = get(FramedHeads(), headers=[(b"a", b"b"), (b"Content-Length", b"5, 5"), (b"content-length", b"5")])
    assert head.data == b"HTTP/1.1 200 OK\r\na: b\r\nContent-Length: 5\r\n\r\n"
