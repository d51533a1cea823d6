"""What fuzzing begins with. ``http11`` are inputs of the coverage-guided targets: as few as reach all that was reached.

To renew it: fuzz for long, `python -m tests.fuzz.coverage_guided http11 -max_len=1024 found tests/fuzz/corpus/http11`,
and then keep what counts, into an empty folder: `... http11 -set_cover_merge=1 new found tests/fuzz/corpus/http11`.
"""

from __future__ import annotations

from pathlib import Path

from ... import smuggling_bodies, smuggling_heads
from ...codec_reading import HEADS, PIECES
from ..http11 import write_input

HTTP11 = Path(__file__).parent / "http11"

LARGE = 900

WORDS = [
    *(b"Connection: keep-alive\r\n", b"Content-Length: 0\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n", b"0\r\n\r\n"),
    *(b"Upgrade: websocket\r\n", b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
    *(b"HEAD /", b"POST ", b"OPTIONS *", b"\r\n5\r\nhello\r\n", b"100-continue"),
]


def inputs() -> list[bytes]:
    """The committed corpus."""
    return [path.read_bytes() for path in sorted(HTTP11.iterdir())]


def seeds() -> list[bytes]:
    """The requests of the other tests, each in front of another one: smuggled ones are where fuzzing is to go on."""
    cases = [case.raw for case in (*smuggling_bodies.CASES, *smuggling_heads.CASES) if len(case.raw) < LARGE]
    return [write_input(case + HEADS[0]) for case in (*cases, *HEADS)]


def dictionary() -> str:
    """For libFuzzer: what may be put in anywhere."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in piece) + '"\n' for piece in (*PIECES, *WORDS))
