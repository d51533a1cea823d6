"""TLS that is none, that stands still, or that wants to begin anew."""

from __future__ import annotations

import functools
import random
import ssl
import tempfile
from pathlib import Path

from ..tls_client import HANDSHAKE, TLSClient
from .peer import Peer, Target, attack, be_served, demand, raw_peer, request

RENEGOTIATIONS = 200


@functools.cache
def client_hello(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """The first record of a client."""
    return TLSClient(None, version).hello


async def _is_dropped(target: Target, sent: bytes) -> bytes:
    async with raw_peer(target) as client:
        await client.send(sent)
        return await client.receive_rest()


@attack(needs_tls=True)
async def junk_handshakes(target: Target, chance: random.Random) -> None:
    """Noise, records of silly sizes and kinds, a ClientHello with wrong bytes in it: closed with an alert at most."""
    hello = client_hello()
    damaged = bytearray(hello)
    for _ in range(30):
        damaged[chance.randrange(5, len(damaged))] = chance.randrange(256)
    for sent in (
        chance.randbytes(3000),
        b"\x16\x03\x01\xff\xff" + b"x" * 70000,
        b"\x16\x03\x01\x00\x00" * 1000,
        b"\x17\x03\x03\x00\x20" + b"x" * 32,
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        hello + hello,
        bytes(damaged),
    ):
        received = await _is_dropped(target, sent)
        demand(b"HTTP" not in received, "junk was answered with HTTP")
    await be_served(target)


@attack(needs_tls=True)
async def stalled_handshake(target: Target, chance: random.Random) -> None:
    """A handshake that stops: at once, within ClientHello, and before Finished. All end with timeout_tls_handshake."""
    hello = client_hello()
    await _is_dropped(target, b"")
    await _is_dropped(target, hello[: chance.randrange(1, len(hello))])
    received = await _is_dropped(target, hello)
    demand(received[:1] == bytes([HANDSHAKE]), "a ClientHello was not answered")


@attack(needs_tls=True)
async def slow_handshake(target: Target, chance: random.Random) -> None:
    """A ClientHello, one byte at a time: the time for it is absolute."""
    async with raw_peer(target) as client:
        await client.trickle((bytes([byte]) for byte in client_hello() * 9), 0.02)


@attack(needs_tls=True)
async def plain_http(target: Target, chance: random.Random) -> None:
    """HTTP on a port for HTTPS is told so."""
    async with raw_peer(target) as client:
        await client.send(request("/"))
        await client.refused_with(400)


@attack(needs_tls=True)
async def renegotiation(target: Target, chance: random.Random) -> None:
    """TLS 1.2 would let a client make the server sign again and again, over one connection: no handshake begins."""
    with tempfile.TemporaryDirectory() as folder:
        tls = TLSClient(None, ssl.TLSVersion.TLSv1_2, Path(folder))
        async with raw_peer(target) as client:
            await _shake(client, tls)
            seal = tls.sealer()
            hello = client_hello(ssl.TLSVersion.TLSv1_2)[5:]
            for _ in range(RENEGOTIATIONS):
                if not await client.send(seal(hello, HANDSHAKE)):
                    break
            await client.receive_rest()
            _check_records(client.received)
    await be_served(target)


async def _shake(client: Peer, tls: TLSClient) -> None:
    answer = tls.hello
    while not tls.is_secured:
        await client.send(answer)
        came = await client.receive()
        demand(came, "the server broke off an honest handshake")
        answer = tls.answer(came)
    await client.send(answer)
    client.received = b""


def _check_records(received: bytes) -> None:
    while received:
        length = int.from_bytes(received[3:5], "big")
        demand(received[0] != HANDSHAKE, "the server began to renegotiate")
        received = received[5 + length :]
