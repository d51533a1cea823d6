"""Clients that vanish with an RST, at every stage of a connection. The server must go on as if nothing had been."""

from __future__ import annotations

import random

import trio

from ..websocket_client import frame, handshake_bytes
from .peer import Peer, Target, attack, be_served, demand, peer, raw_peer, request
from .secured import client_hello

UPLOAD = request("/echo", "Content-Length: 90000", method="POST")
TEXT, CLOSE = 1, 8
MESSAGE = frame(TEXT, b"x" * 60000)

STAGES: dict[str, bytes] = {
    "connected": b"",
    "in_the_head": b"GET / HTTP/1.1\r\nHost: loc",
    "after_the_head": request("/forever"),
    "before_the_body": UPLOAD,
    "in_the_body": UPLOAD + b"x" * 1000,
    "in_a_chunk": request("/echo", "Transfer-Encoding: chunked", method="POST") + b"ff\r\nhello",
    "with_requests_waiting": request("/forever") + request("/") * 100,
    "in_a_websocket_handshake": handshake_bytes("/ws")[:-9],
}
"""What has been sent before the reset."""


async def _reset_after(target: Target, sent: bytes, heard: bytes) -> None:
    async with peer(target) as client:
        await client.send(sent)
        demand(await client.receive_until(heard), f"{heard!r} did not come")
        client.reset()


@attack()
async def reset_while_sending(target: Target, chance: random.Random) -> None:
    """With half a request out, or one that is being answered by nothing."""
    for sent in STAGES.values():
        await _reset_after(target, sent, b"")
    await be_served(target)


@attack()
async def reset_while_receiving(target: Target, chance: random.Random) -> None:
    """In the middle of a response, after one, and where a refusal is on its way."""
    await _reset_after(target, request("/download"), b"xxxx")
    await _reset_after(target, request("/"), b"hello")
    await _reset_after(target, request("/") * 100, b"hello")
    await _reset_after(target, b"nonsense\r\n\r\n", b"")
    await _reset_after(target, b"nonsense\r\n\r\n", b"400")
    await be_served(target)


@attack()
async def reset_of_websockets(target: Target, chance: random.Random) -> None:
    """An open WebSocket: at once, in a message, between fragments, in the closing handshake."""
    switched = b"\r\n\r\n"
    for sent, heard in (
        (b"", b""),
        (b"", switched),
        (frame(TEXT, b"hello")[:-2], switched),
        (frame(TEXT, b"hello", fin=False), switched),
        (frame(TEXT, b"hello"), b"hello"),
        (frame(TEXT, b"close"), b"\x88\x02\x03\xe8"),
        (frame(CLOSE, b"\x03\xe8"), switched),
        (frame(CLOSE, b"\x03\xe8"), b"\x88\x02\x03\xe8"),
        (MESSAGE * 20, switched),
    ):
        await _reset_after(target, handshake_bytes("/ws") + sent, heard)
    await be_served(target)


@attack(needs_tls=True)
async def reset_of_handshakes(target: Target, chance: random.Random) -> None:
    """In a TLS handshake: before the first byte, within ClientHello, and after ServerHello."""
    hello = client_hello()
    for sent in (b"", hello[:3], hello[:50], hello):
        async with raw_peer(target) as client:
            await client.send(sent)
            if sent == hello:
                await client.receive()
            client.reset()
    await be_served(target)


@attack()
async def reset_at_random(target: Target, chance: random.Random) -> None:
    """Anywhere in what a client may send."""
    whole = chance.choice([request("/") * 3, UPLOAD + b"x" * 80_000, handshake_bytes("/ws") + MESSAGE])
    for _ in range(10):
        async with peer(target) as client:
            await client.send(whole[: chance.randrange(len(whole))])
            if chance.random() < 0.5:
                await _hear_something(client)
            client.reset()
    await be_served(target)


async def _hear_something(client: Peer) -> None:
    with trio.move_on_after(0.05):
        await client.receive()
