"""What becomes of a request body that the application does not read."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioserve.wire.discard import DISCARD_LIMIT

from .support import memory_server, respond

pytestmark = [pytest.mark.both_codecs, pytest.mark.timeout(20)]

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def ask(body: bytes) -> list[bytes]:
    """The bodies of the answers to a POST and a GET on one connection."""
    async with memory_server(respond(b"Hi")) as server:
        client = await server.connect()
        with trio.fail_after(3600):
            await client.raw(HEAD + body + LAST)
            answers = (await client.receive_rest()).split(b"\r\n\r\n")[1:]
        await client.aclose()
    return [answer[:2] for answer in answers]


@pytest.mark.parametrize(
    ("body", "is_kept"),
    [
        (b"0\r\n\r\n", True),
        (b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n", True),
        (b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n", False),  # less data than the limit, but much more work
        (b"%x\r\n%s\r\n0\r\n\r\n" % (DISCARD_LIMIT, bytes(DISCARD_LIMIT)), True),
        (b"%x\r\n%s\r\n0\r\n\r\n" % (DISCARD_LIMIT + 1, bytes(DISCARD_LIMIT + 1)), False),
    ],
    ids=["none", "5,000 chunks", "20,000 chunks", "the limit", "more"],
)
async def test_what_is_swallowed(autojump_clock: trio.testing.MockClock, body: bytes, is_kept: bool) -> None:
    """A little is swallowed, and the connection kept; the measure is bytes, and for tiny chunks the work."""
    assert await ask(body) == [b"Hi"] * (2 if is_kept else 1)


async def test_others_have_their_turn(autojump_clock: trio.testing.MockClock) -> None:
    """Tiny chunks that nobody reads are swallowed bit by bit: after each thousand others run."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        few = await turns_of(b"0\r\n\r\n", lambda: turns)
        many = await turns_of(b"1\r\nx\r\n" * 8000 + b"0\r\n\r\n", lambda: turns)
        nursery.cancel_scope.cancel()
    assert many >= few + 4


async def turns_of(body: bytes, turns) -> int:
    """How many others had, from the first answer's begin to the second's end."""
    async with memory_server(respond(b"Hi")) as server:
        client = await server.connect()
        await client.raw(HEAD + body + LAST)
        began = turns()
        await client.receive_rest()
        took = turns() - began
        await client.aclose()
    return took
