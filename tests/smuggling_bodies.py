"""Raw requests whose bodies could end elsewhere for another parser: which rule says what, and what becomes of them.

Every case is sent alone and in front of another request. That must never be answered if it is hidden in the case.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """``expected`` is the status of the refusal, the body of the request if it is a good one, or None if it waits for
    the rest of its body. ``source`` is the rule, with the RFC's number and section. ``closes``: no request follows it.
    """

    raw: bytes
    source: str
    expected: int | bytes | None
    closes: bool = False

    def __str__(self) -> str:
        return f"{self.source} {self.raw[:200]!r}"


def head(*fields: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: a\r\n") -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def chunked(body: bytes) -> bytes:
    return head(b"Transfer-Encoding: chunked") + body


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
LENGTH, CODING = b"Content-Length: 5", b"Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

LENGTH_AND_CODING = [
    Case(head(LENGTH, CODING) + HELLO, "9112 §6.1", 400),
    Case(head(CODING, LENGTH) + HELLO, "9112 §6.1", 400),
    Case(head(b"Content-Length: 0", CODING) + b"0\r\n\r\n" + SMUGGLED, "9112 §6.1", 400),
    Case(head(b"Content-Length: 15", CODING) + HELLO, "9112 §6.1", 400),
    Case(head(b"content-length: 5", b"TRANSFER-ENCODING: CHUNKED") + HELLO, "9112 §6.1", 400),
    Case(head(b"Content-Length: 4", CODING) + b"2d\r\n" + SMUGGLED, "9112 §6.1", 400),
    Case(head(LENGTH, b"Transfer-Encoding: identity") + b"hello", "9112 §6.1", 400),
    Case(head(LENGTH, b"Transfer-Encoding:") + b"hello", "9112 §6.1", 400),
    Case(head(LENGTH, b"Transfer-Encoding: gzip, chunked") + HELLO, "9112 §6.1", 501),
    Case(head(b"Content-Length: x", CODING) + HELLO, "9112 §6.3", 400),
    Case(head(LENGTH, CODING, line=b"GET / HTTP/1.1") + HELLO, "9112 §6.1", 400),
    Case(head(LENGTH, CODING, b"Connection: close") + HELLO, "9112 §6.1", 400),
]

CODINGS = [
    *(
        Case(head(b"Transfer-Encoding: " + value) + HELLO, "9112 §6.1", 400)
        for value in (
            *(b"xchunked", b"chunkedx", b"chunke", b"identity", b"gzip", b"chunked, identity", b"chunked, gzip"),
            *(
                b"chunked,",
                b'"chunked"',
                b"chunked;q=1",
                b"chunked x",
                b"chunked\xa0",
                b"\xef\xbb\xbfchunked",
                b"",
                b"0",
            ),
            *(b"\x0bchunked", b"chunked\x0c", b"\x00chunked", b"chun\rked", b"chunked\x7f"),
        )
    ),
    *(
        Case(head(b"Transfer-Encoding: " + value) + HELLO, "9112 §6.1", 501)
        for value in (b"gzip, chunked", b"identity, chunked", b"chunked, chunked", b", chunked", b"x,chunked")
    ),
    *(
        Case(head(b"Transfer-Encoding:" + value) + HELLO, "9110 §5.6.3", b"hello")
        for value in (b"chunked", b"  chunked  ", b" Chunked", b" CHUNKED")
    ),
    *(
        Case(head(b"Transfer-Encoding:" + value) + HELLO, "9110 §5.6.3", 400)
        for value in (b"\tchunked", b" chunked\t", b"\t chunked")
    ),
    Case(head(b"transfer-encoding: chunked") + HELLO, "9110 §5.1", b"hello"),
    Case(head(CODING, CODING) + HELLO, "9112 §6.1", 501),
    Case(head(CODING, b"Transfer-Encoding: x") + HELLO, "9112 §6.1", 400),
    Case(head(b"Transfer-Encoding: x", CODING) + HELLO, "9112 §6.1", 501),
    Case(head(CODING, b"Transfer-encoding: identity") + HELLO, "9112 §6.1", 400),
    Case(head(b"Transfer-Encoding : chunked") + HELLO, "9112 §5.1", 400),
    Case(head(b"Transfer-Encoding\t: chunked") + HELLO, "9112 §5.1", 400),
    Case(head(b" Transfer-Encoding: chunked") + HELLO, "9112 §5.2", 400),
    Case(head(b"X: y\r\n Transfer-Encoding: chunked") + HELLO, "9112 §5.2", 400),
    Case(head(b"Transfer-Encoding:\r\n chunked") + HELLO, "9112 §5.2", 400),
    Case(head(b"Transfer-Encoding: chunked\r\n\tx") + HELLO, "9112 §5.2", 400),
    Case(head(b"X: y\nTransfer-Encoding: chunked") + HELLO, "9112 §2.2", 400),
    Case(head(b"X: y\rTransfer-Encoding: chunked") + HELLO, "9112 §2.2", 400),
    Case(head(b"Transfer-Encoding\r: chunked") + HELLO, "9110 §5.1", 400),
    Case(head(b"Transfer-Encoding\x00: chunked") + HELLO, "9110 §5.1", 400),
    Case(head(b"Transfer Encoding: chunked", LENGTH) + b"hello", "9110 §5.1", 400),
    Case(head(b"Transfer-Encoding;: chunked", LENGTH) + b"hello", "9110 §5.1", 400),
    Case(head(CODING, line=b"POST / HTTP/1.0") + HELLO, "9112 §6.1", 400),
    Case(head(CODING, b"Connection: keep-alive", line=b"POST / HTTP/1.0") + HELLO, "9112 §6.1", 400),
    Case(head(b"Transfer_Encoding: chunked", LENGTH) + b"hello", "3875 §4.1.18", 400),
    # Other names, which say nothing of the message's length.
    Case(head(b"X-Transfer-Encoding: chunked", LENGTH) + b"hello", "9112 §6.3", b"hello"),
    Case(head(b"Content-Encoding: chunked", LENGTH) + b"hello", "9110 §8.4", b"hello"),
    Case(head(b"TE: chunked", LENGTH) + b"hello", "9110 §10.1.4", b"hello"),
]

LENGTHS = [
    *(
        Case(head(b"Content-Length: " + value) + b"hello", "9110 §8.6", 400)
        for value in (
            *(
                b"+5",
                b"-5",
                b"-0",
                b"0x5",
                b"5.0",
                b"5e0",
                b"5 5",
                b"5, 5",
                b"5,5",
                b"5,",
                b",5",
                b"5;",
                b"5 x",
                b"x",
                b"",
            ),
            *(
                b"5_0",
                b"\xd9\xa5",
                b"\xef\xbc\x95",
                b"5\xa0",
                b"5\x0b",
                b"\x0c5",
                b"5\x00",
                b"9" * 20,
                b"1" * 100,
                b"5l",
            ),
        )
    ),
    *(
        Case(head(b"Content-Length:" + value) + b"hello", "9110 §5.6.3", b"hello")
        for value in (b"5", b" 5", b"   5  ", b" 05", b" 0000000000000000005")
    ),
    *(Case(head(b"Content-Length:" + value) + b"hello", "9110 §5.6.3", 400) for value in (b"\t5", b" 5\t")),
    Case(head(b"Content-Length: 0"), "9110 §8.6", b""),
    Case(head(b"Content-Length: " + b"9" * 19) + b"hello", "9110 §8.6", None),
    Case(head(LENGTH, LENGTH) + b"hello", "9110 §8.6", 400),
    Case(head(LENGTH, b"content-length: 5") + b"hello", "9110 §8.6", 400),
    Case(head(LENGTH, b"Content-Length: 6") + b"hello", "9112 §6.3", 400),
    Case(head(b"Content-Length: 0", LENGTH) + b"hello", "9112 §6.3", 400),
    Case(head(b"Content-Length: 0", b"X: y", b"Content-Length: 44") + SMUGGLED, "9112 §6.3", 400),
    Case(head(b"Content-Length : 5") + b"hello", "9112 §5.1", 400),
    Case(head(b"Content-Length\t: 5") + b"hello", "9112 §5.1", 400),
    Case(head(b" Content-Length: 5") + b"hello", "9112 §5.2", 400),
    Case(head(b"Content-Length:\r\n 5") + b"hello", "9112 §5.2", 400),
    Case(head(b"Content-Length: 5\r\n 6") + b"hello", "9112 §5.2", 400),
    Case(head(b"X: y\nContent-Length: 5") + b"hello", "9112 §2.2", 400),
    Case(head(b"Content Length: 5") + b"hello", "9110 §5.1", 400),
    Case(head(b"Content_Length: 44"), "3875 §4.1.18", 400),
    Case(head(b"Content-Length: 1000") + SMUGGLED, "9112 §6.3", None),
]

CHUNKS = [
    *(
        Case(chunked(line + b"\r\nhello\r\n0\r\n\r\n"), "9112 §7.1", 400)
        for line in (
            *(
                b"",
                b" 5",
                b"5 ",
                b"0x5",
                b"+5",
                b"-5",
                b"5h",
                b"g",
                b"5 ;a",
                b"5,",
                b"5\x00",
                b"5\x0b",
                b"5\t",
                b"\xef\xbc\x95",
            ),
            *(
                b"F" * 17,
                b"0" * 16 + b"5",
                b"5;\x00",
                b"5;\x7f",
                b"5;a\nb",
                b"5\r",
                b"5;a\rb",
                b"5:a",
                b"5;" + b"x" * 4096,
            ),
        )
    ),
    *(
        Case(chunked(line + b"\r\nhello\r\n0\r\n\r\n"), "9112 §7.1.1", b"hello")
        for line in (b"5", b"05", b"0000000000000005", b"5;a", b"5;a=b", b'5;a="b"', b"5;;", b"5;\t")
    ),
    Case(chunked(b"F" * 16 + b"\r\nhello"), "9112 §7.1", None),
    Case(chunked(b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"), "9112 §7.1", b"0123456789" * 2),
    Case(chunked(b"5\nhello\r\n0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"5\r\nhello\n0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"5\r\nhello0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"5\r\nhellox\r\n0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"5\r\nhell\r\n0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"5\r\nhello\rx0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"5\r\nhello\r\n\r\n0\r\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"0\n\r\n"), "9112 §7.1", 400),
    Case(chunked(b"0\r\n\n"), "9112 §7.1.2", 400),
    Case(chunked(b"0\r\n\r\n"), "9112 §7.1", b""),
    Case(chunked(b"000\r\n\r\n"), "9112 §7.1", b""),
    Case(chunked(b"0;a=b\r\n\r\n"), "9112 §7.1.1", b""),
    Case(chunked(b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n"), "9112 §7.1.2", b"hello"),
    *(
        Case(chunked(b"0\r\n" + trailer + b"\r\n\r\n"), "9112 §7.1.2", 400)
        for trailer in (b"A", b"A : b", b" A: b", b": b", b"A: b\nC: d", b"A: \x00", b"A: b\r\n c", b"A: b\rC: d")
    ),
    *(
        Case(chunked(b"0\r\n" + trailer + b"\r\n\r\n"), "9110 §6.5.1", 400)
        for trailer in (b"Content-Length: 5", CODING, b"content-length: 0", b"TRANSFER-ENCODING: x")
    ),
]

BODIES = [
    *(
        Case(head(LENGTH, line=method + b" / HTTP/1.1") + b"hello", "9110 §9.3", b"hello")
        for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"PATCH")
    ),
    *(
        Case(head(CODING, line=method + b" / HTTP/1.1") + HELLO, "9110 §9.3", b"hello")
        for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"PATCH")
    ),
    Case(head(b"Content-Length: %d" % len(SMUGGLED), line=b"GET / HTTP/1.1") + SMUGGLED, "9110 §9.3.1", SMUGGLED),
    Case(chunked(b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"), "9112 §7.1", SMUGGLED),
    Case(head(LENGTH, b"Upgrade: h2c", b"Connection: Upgrade") + b"hello", "9110 §7.8", b"hello"),
    Case(head(CODING, b"Upgrade: h2c", b"Connection: Upgrade") + HELLO, "9110 §7.8", b"hello"),
    Case(head(LENGTH, b"Expect: 100-continue") + b"hello", "9110 §10.1.1", b"hello"),
    Case(head(LENGTH, line=b"POST / HTTP/1.0") + b"hello", "9112 §6.3", b"hello", closes=True),
]

CASES = [*LENGTH_AND_CODING, *CODINGS, *LENGTHS, *CHUNKS, *BODIES]
