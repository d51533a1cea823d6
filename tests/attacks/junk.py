"""Requests that are none, that never end, or that are meant to be read in two ways."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator

import trio

from ..smuggling_bodies import CHUNKS, CODINGS, LENGTH_AND_CODING, SMUGGLED
from ..smuggling_heads import LINES, REQUEST_LINES
from .peer import Target, attack, be_served, demand, endlessly, peer, request

CHUNKED = request("/echo", "Transfer-Encoding: chunked", method="POST")
BOMB = gzip.compress(bytes(10_000_000))
ACCEPTABLE = 1024 * 1024 * 1024
"""Bytes that a server may take of what never ends: the kernels hold several MiB, and it throws away what comes for two
seconds after a refusal.
"""


async def _pour(target: Target, first: bytes, pieces: Iterator[bytes], *statuses: int) -> None:
    """Send as fast as it goes until the server refuses, which it must before it has taken too much."""
    async with peer(target) as client:
        poured = 0

        async def pour() -> None:
            nonlocal poured
            for piece in pieces:
                if not await client.send(piece):
                    return
                poured += len(piece)
                demand(poured < ACCEPTABLE, f"{poured} bytes of what never ends were taken")

        await client.send(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            status = await client.status()
            nursery.cancel_scope.cancel()
        demand(status in statuses, f"expected {statuses}, was answered {status}")
        await client.let_end()


@attack()
async def random_bytes(target: Target, chance: random.Random) -> None:
    """Noise where a request should be."""
    for _ in range(5):
        async with peer(target) as client:
            await client.send(b"\x01" + chance.randbytes(chance.randrange(1, 5000)) + b"\r\n\r\n")
            await client.refused_with(400, 414, 431)


@attack()
async def smuggling(target: Target, chance: random.Random) -> None:
    """Requests that hide another: refused, and what they hide is never answered."""
    cases = [
        case for case in LENGTH_AND_CODING + CODINGS + CHUNKS + LINES + REQUEST_LINES if _is_refused(case.expected)
    ]
    for case in chance.sample(cases, 20):
        async with peer(target) as client:
            await client.send(case.raw.replace(b" / ", b" /echo ", 1) + SMUGGLED)
            await client.refused_with(case.expected)
            demand(not client.received.endswith(b"hello"), f"what {case} hides was answered")


def _is_refused(expected: object) -> bool:
    return isinstance(expected, int)


@attack()
async def endless_line(target: Target, chance: random.Random) -> None:
    """A request line without end."""
    await _pour(target, b"GET /", endlessly(b"x" * 4096), 414)


@attack()
async def endless_field(target: Target, chance: random.Random) -> None:
    """One field without end, and fields without end."""
    await _pour(target, b"GET / HTTP/1.1\r\nX: ", endlessly(b"x" * 4096), 431)
    await _pour(target, b"GET / HTTP/1.1\r\n", endlessly(b"X: y\r\n" * 1000), 431)


@attack()
async def endless_empty_lines(target: Target, chance: random.Random) -> None:
    """Empty lines before a request, which are ignored as long as they are few."""
    await _pour(target, b"", endlessly(b"\r\n" * 1000), 400)


@attack()
async def endless_chunk_extension(target: Target, chance: random.Random) -> None:
    """A chunk whose extensions never end, a chunk's size that never does, and much more extensions than data."""
    await _pour(target, CHUNKED + b"5;a=", endlessly(b"b" * 4096), 400)
    await _pour(target, CHUNKED, endlessly(b"0" * 4096), 400)
    await _pour(target, CHUNKED, endlessly(b"1;a=" + b"b" * 4000 + b"\r\nx\r\n"), 400)


@attack()
async def endless_trailers(target: Target, chance: random.Random) -> None:
    """Trailers without end: as one field, and as many."""
    await _pour(target, CHUNKED + b"0\r\nX: ", endlessly(b"x" * 4096), 431)
    await _pour(target, CHUNKED + b"0\r\n", endlessly(b"X: y\r\n" * 1000), 431)


@attack(clock=7)
async def tiny_chunks(target: Target, chance: random.Random) -> None:
    """A body of single bytes in chunks with extensions, up to limit_request_body."""
    await _pour(target, CHUNKED, endlessly(b"1;a=bcdefg\r\nx\r\n" * 1000), 413)


@attack()
async def endless_body(target: Target, chance: random.Random) -> None:
    """A body without end, as fast as it goes."""
    await _pour(target, CHUNKED, endlessly(b"1000\r\n" + b"x" * 4096 + b"\r\n"), 413)


@attack()
async def compressed_body(target: Target, chance: random.Random) -> None:
    """Content-Encoding is the application's: the bomb reaches it as it is, and as small."""
    length = f"Content-Length: {len(BOMB)}"
    async with peer(target) as client:
        await client.send(request("/echo", "Content-Encoding: gzip", length, "Connection: close", method="POST") + BOMB)
        await client.receive_rest()
        demand(
            client.received.endswith(b"\r\n\r\n" + BOMB),
            f"the body was changed, or not answered: {client.received[:200]!r}",
        )


@attack(clock=6)
async def pipelines_and_never_reads(target: Target, chance: random.Random) -> None:
    """Requests without end whose answers nobody reads: the server stops reading, and cuts the connection."""
    requests = (request("/echo", "Content-Length: 10000", method="POST") + b"x" * 10000) * 10
    async with peer(target, is_narrow=True) as client:
        poured = 0
        while await client.send(requests):
            poured += len(requests)
            demand(poured < ACCEPTABLE, f"{poured} bytes of requests were taken, and no answer was read")
    await be_served(target)
