"""Clients that take their time: heads, bodies and responses that never come to their end, and silence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, repeat

import trio

from .peer import Peer, Target, attack, bytes_of, demand, endlessly, peer, request

FLOOD = 20
"""Connections of one attack that needs many."""


async def _while_sending(client: Peer, pieces: Iterator[bytes], *statuses: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.trickle, pieces, 0.05)
        await client.refused_with(*statuses)
        nursery.cancel_scope.cancel()


@attack()
async def slow_head(target: Target, chance: random.Random) -> None:
    """A head, one byte at a time, without end: 408 when its time is over, however many bytes come."""
    async with peer(target) as client:
        await _while_sending(client, chain(bytes_of(b"GET / HTTP/1.1\r\nX: "), endlessly(b"x")), 408)


@attack()
async def slow_fields(target: Target, chance: random.Random) -> None:
    """Slowloris: one more field line now and then."""
    async with peer(target) as client:
        await _while_sending(client, chain([b"GET / HTTP/1.1\r\n"], endlessly(b"X-a: b\r\n")), 408)


@attack()
async def slow_second_head(target: Target, chance: random.Random) -> None:
    """The same on a connection that has been good once."""
    async with peer(target) as client:
        await client.send(request("/"))
        demand(await client.receive_until(b"hello"), "the first request was not answered")
        client.received = b""
        await _while_sending(client, chain([b"GET / HTTP/1.1\r\n"], endlessly(b"x")), 408)


@attack(clock=4)
async def stalled_body(target: Target, chance: random.Random) -> None:
    """A body that comes in single bytes, and then no more. (Its least rate counts only after 30 s of waiting.)"""
    async with peer(target) as client:
        await client.send(request("/echo", "Content-Length: 100000", method="POST"))
        await _while_sending(client, repeat(b"x", chance.randrange(1, 20)), 408)


@attack(clock=4)
async def stalled_chunk(target: Target, chance: random.Random) -> None:
    """A chunked body that stops in the middle of a chunk, or of its size."""
    async with peer(target) as client:
        await client.send(request("/echo", "Transfer-Encoding: chunked", method="POST"))
        await _while_sending(client, iter([b"5\r\nhello\r\n", chance.choice([b"7", b"7\r\nhe", b"0\r\n"])]), 408)


@attack(clock=5)
async def never_reads(target: Target, chance: random.Random) -> None:
    """A long download of which nothing is read: reset when nothing has been taken for timeout_write."""
    async with peer(target, is_narrow=True) as client:
        await client.send(request("/download"))
        await client.wait_cut()


@attack(clock=6)
async def reads_single_bytes(target: Target, chance: random.Random) -> None:
    """A long download that is read one byte at a time, so that its window never opens."""
    async with peer(target, is_narrow=True) as client:

        async def sip() -> None:
            while await client.receive(1):
                await trio.sleep(0.1)

        await client.send(request("/download"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sip)
            await client.wait_cut()
            nursery.cancel_scope.cancel()


@attack()
async def idle_flood(target: Target, chance: random.Random) -> None:
    """Many connections that say nothing: each is closed, and is told nothing."""

    async def idle() -> None:
        async with peer(target) as client:
            await client.receive_rest()
            demand(not client.received, f"silence was answered: {client.received[:60]!r}")

    async with trio.open_nursery() as nursery:
        for _ in range(FLOOD):
            nursery.start_soon(idle)


@attack()
async def idle_after_answer(target: Target, chance: random.Random) -> None:
    """A connection that is kept, and never used again."""
    async with peer(target) as client:
        await client.send(request("/"))
        await client.receive_rest()
        demand(client.received.endswith(b"hello"), "something was said after the answer")


@attack()
async def half_closed(target: Target, chance: random.Random) -> None:
    """FIN in some place, and then nothing: the server closes its half, too."""
    places = (b"", b"GET / HT", request("/echo", "Content-Length: 9", method="POST") + b"hell", request("/forever"))
    for begun in places:
        async with peer(target) as client:
            await client.send(begun)
            client.send_fin()
            await client.receive_rest()
            demand(b" 200 " not in client.received, "a request without an end was answered")


@attack(clock=5)
async def never_closes(target: Target, chance: random.Random) -> None:
    """The server has said that it closes; this side goes on sending, and never closes."""
    async with peer(target) as client:
        await client.send(b"nonsense\r\n\r\n")
        demand(await client.status() == 400, "nonsense was not refused")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.trickle, endlessly(b"x"), 0.05)
            await client.wait_cut()
            nursery.cancel_scope.cancel()
