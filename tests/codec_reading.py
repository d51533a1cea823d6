"""What a codec of HTTP/1.1 reads from a client's bytes, to be compared: with another codec's, or cut elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trioserve.config import Config
from trioserve.errors import ProtocolError
from trioserve.exchange import Response
from trioserve.wire.codec import Codec
from trioserve.wire.codecs import codec_maker
from trioserve.wire.request_reader import Head
from trioserve.wire.rules import CHUNK_LINE_LIMIT

CONFIG = {"limit_request_head": 400, "limit_request_fields": 8}
CONFIGS = {name: Config.from_plain({"http": name, **CONFIG}) for name in ("h11", "httptools")}

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

MakeCodec = Callable[[], Codec]


@dataclass(frozen=True)
class Exchange:
    """A whole request and the answer to it: what the codec then expects of the connection is part of it."""

    head: Head
    wants_continue: bool
    body: bytes
    answer: bytes
    can_reuse: bool


@dataclass
class Reading:
    """What a codec made of some bytes. ``refusal`` is the status of the error that ended it, None if there was none;
    ``head`` and ``body`` are of a request that is not complete.
    """

    exchanges: list[Exchange] = field(default_factory=list)
    head: Head | None = None
    wants_continue: bool = False
    body: bytes = b""
    has_begun: bool = False
    refusal: int | None = None
    is_known_difference: bool = False


def fresh_codecs() -> dict[str, MakeCodec]:
    """What makes codecs that share the heads they have parsed with nobody before."""
    return {name: codec_maker(config) for name, config in CONFIGS.items()}


def read(codec: Codec, pieces: Sequence[bytes]) -> Reading:
    """Feed a codec, and answer each whole request, until it closes or refuses."""
    reading = Reading()
    try:
        for piece in pieces:
            if piece:
                codec.feed(piece)
            if not _read_on(codec, reading):
                break
            check_held(codec, reading)
        else:
            reading.has_begun = codec.has_begun
    except ProtocolError as error:
        reading.refusal, reading.is_known_difference = error.status, error.reason == KNOWN_DIFFERENCE
        reading.body = b""  # how much of it had come out depends on where it was cut
    return reading


def _read_on(codec: Codec, reading: Reading) -> bool:
    """Take all that has come; False if nothing more can."""
    while True:
        if reading.head is None:
            reading.head = codec.next_head()
            if reading.head is None:
                return True
            reading.wants_continue = codec.wants_continue
        came = codec.next_body()
        if came is None:
            return True
        reading.body += came[0]
        if came[1]:
            continue
        answer = codec.response_head(Response(200, [(b"content-length", b"0")]), (), says_close=False)
        answer += codec.end(())
        exchange = Exchange(reading.head, reading.wants_continue, reading.body, answer, codec.can_reuse)
        reading.exchanges.append(exchange)
        reading.head, reading.wants_continue, reading.body = None, False, b""
        if not exchange.can_reuse:
            return False
        codec.start_next()


def check_held(codec: Codec, reading: Reading) -> None:
    """What a codec holds, once all that can be taken is taken, is no more than its limits say."""
    if reading.head is None:
        assert len(codec._buffer) <= CONFIG["limit_request_head"] + len(b"\r\n\r\n")
    else:
        assert not codec._buffer, "bytes of a body are held back"
        if codec._scanner is not None:
            assert len(codec._scanner._line) <= max(CHUNK_LINE_LIMIT, CONFIG["limit_request_head"])


def check_alike(pieces: Sequence[bytes], codecs: Mapping[str, MakeCodec] | None = None) -> None:
    """Both codecs read the same, but for the one known difference."""
    makers = codecs or fresh_codecs()
    ours, theirs = (read(makers[name](), pieces) for name in ("httptools", "h11"))
    if ours.is_known_difference and ours.refusal == 501:
        # A method that llhttp does not know. What came before it is the same.
        assert ours.exchanges == theirs.exchanges[: len(ours.exchanges)]
    else:
        assert ours == theirs, f"httptools: {ours}\nh11: {theirs}"


def check_cuts(pieces: Sequence[bytes], codecs: Mapping[str, MakeCodec] | None = None) -> None:
    """Each codec reads the same wherever the bytes are cut."""
    for make in (codecs or fresh_codecs()).values():
        in_pieces, whole = read(make(), pieces), read(make(), [b"".join(pieces)])
        assert in_pieces == whole, f"cut: {in_pieces}\nwhole: {whole}"


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The data in pieces; ``places`` may come in any order."""
    ends = sorted(places)
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]
