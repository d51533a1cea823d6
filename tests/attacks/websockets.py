"""WebSockets that flood, break the rules, inflate, or never answer."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import trio

from ..websocket_client import frame, handshake_bytes
from .peer import Peer, Target, attack, be_served, demand, endlessly, peer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR, NOT_UTF8, TOO_BIG, NO_PONG = 1000, 1002, 1007, 1009, 1011
PING_FLOOD = b"".join(frame(PING, number.to_bytes(4, "big")) for number in range(5000))
MESSAGE = frame(BINARY, b"x" * 20000)
POURED = 1024 * 1024 * 1024
"""Bytes of which a server must not take that many from who never reads: a refusal throws them away for two seconds."""


class Frames:
    """The frames that a server sends, one after the other. Its pings are answered on the way."""

    def __init__(self, client: Peer) -> None:
        self._client = client
        self._at = 0
        self.answers = True

    async def _take(self, count: int) -> bytes | None:
        while len(self._client.received) < self._at + count:
            if not await self._client.receive():
                return None
        taken = self._client.received[self._at : self._at + count]
        self._at += count
        return taken

    async def next(self) -> tuple[int, bytes] | None:
        """Opcode and payload; None at the end of the connection."""
        while (came := await self._next()) is not None and came[0] == PING:
            if self.answers:
                await self._client.send(frame(PONG, came[1]))
        return came

    async def _next(self) -> tuple[int, bytes] | None:
        head = await self._take(2)
        if head is None:
            return None
        length = head[1]
        if length > 125:
            extended = await self._take(2 if length == 126 else 8)
            length = int.from_bytes(extended or b"", "big")
        payload = await self._take(length)
        self._client.received, self._at = self._client.received[self._at :], 0
        return None if payload is None else (head[0] & 0x0F, payload)

    async def closed_with(self, *codes: int) -> None:
        """Wait for a close frame, which must have such a code, and the end of the connection behind it."""
        while (came := await self.next()) is not None and came[0] != CLOSE:
            pass
        demand(came is not None, f"the connection ended without a close frame; expected {codes}")
        assert came is not None
        code = int.from_bytes(came[1][:2], "big")
        demand(code in codes, f"closed with {code}; expected {codes}")
        self._client.send_fin()
        demand(await self.next() is None, "a frame came after the close frame")


@asynccontextmanager
async def opened(
    target: Target, *, is_narrow: bool = False, deflates: bool = False
) -> AsyncIterator[tuple[Peer, Frames]]:
    """An open WebSocket, which echoes."""
    offer = [(b"sec-websocket-extensions", b"permessage-deflate")] if deflates else []
    async with peer(target, is_narrow=is_narrow) as client:
        await client.send(handshake_bytes("/ws", *offer))
        demand(await client.status() == 101, f"the handshake was refused: {client.received[:60]!r}")
        demand(not deflates or b"permessage-deflate" in client.received, "the server does not deflate")
        client.received = client.received.partition(b"\r\n\r\n")[2]
        yield client, Frames(client)


async def _closes(target: Target, sent: bytes, *codes: int) -> None:
    async with opened(target) as (client, frames):
        await client.send(sent)
        await frames.closed_with(*codes)


@attack()
async def broken_frames(target: Target, chance: random.Random) -> None:
    """Frames that RFC 6455 forbids: each is the end, with the code it asks for."""
    for sent in (
        frame(PING, b"", fin=False),  # §5.5: control frames are not fragmented
        frame(PING, b"x" * 126),  # and not long
        frame(CLOSE, b"x" * 70000),
        frame(CLOSE, b"\x03"),
        frame(CLOSE, b"\x03\xed"),  # 1005, §7.4.1
        frame(TEXT, b"x", rsv=1),
        frame(3, b"x"),
        frame(11, b"x"),
        frame(TEXT, b"x", mask=None),
        frame(CONTINUATION, b"x"),
        frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
        b"\x82\xff" + b"\xff" * 8,  # longer than 2**63
    ):
        await _closes(target, sent, PROTOCOL_ERROR, TOO_BIG)
    await _closes(target, frame(TEXT, b"\xff"), NOT_UTF8)
    await be_served(target)


@attack()
async def websocket_noise(target: Target, chance: random.Random) -> None:
    """Random bytes instead of frames."""
    for _ in range(5):
        async with opened(target) as (client, frames):
            await client.send(chance.randbytes(chance.randrange(100, 5000)) + frame(3, b""))
            client.send_fin()
            while await frames.next() is not None:
                pass


@attack()
async def closes_twice(target: Target, chance: random.Random) -> None:
    """One close is answered, and what follows it is not; more than a close may follow."""
    close = frame(CLOSE, b"\x03\xe8")
    await _closes(target, close + close, NORMAL)
    await _closes(target, close + frame(TEXT, b"x") + frame(PING, b"x") * 100, NORMAL)
    await _closes(target, close + frame(3, b"x" * 100), NORMAL)


@attack(clock=7)
async def ping_flood(target: Target, chance: random.Random) -> None:
    """Pings as fast as it goes, by one who reads its pongs: each is answered, in order."""
    async with opened(target) as (client, frames), trio.open_nursery() as nursery:
        nursery.start_soon(client.send, PING_FLOOD + frame(CLOSE, b"\x03\xe8"))
        pongs = 0
        while (came := await frames.next()) is not None and came[0] != CLOSE:
            if came[0] == PONG:
                demand(came[1] == pongs.to_bytes(4, "big"), "a pong is not that of its ping")
                pongs += 1
        # RFC 6455 §5.5.3 lets a server answer only the last of several pings.
        demand(came is not None and pongs, "the flood was not answered by a close")


@attack(clock=6)
async def ping_flood_unread(target: Target, chance: random.Random) -> None:
    """The same without reading any: what waits for this peer is bounded, and it is given up."""
    await _pour_unread(target, endlessly(frame(PING, b"x" * 125) * 500))


@attack(clock=6)
async def message_flood_unread(target: Target, chance: random.Random) -> None:
    """Messages whose echoes nobody reads."""
    await _pour_unread(target, endlessly(MESSAGE))


async def _pour_unread(target: Target, pieces: Iterator[bytes]) -> None:
    async with opened(target, is_narrow=True) as (client, _):
        poured = 0
        for piece in pieces:
            if not await client.send(piece):
                break
            poured += len(piece)
            demand(poured < POURED, f"{poured} bytes were taken from who reads nothing")
    await be_served(target)


@attack(clock=5)
async def control_flood(target: Target, chance: random.Random) -> None:
    """Pongs that nobody asked for, and empty pings, in great numbers: allowed, and not worth a word."""
    async with opened(target) as (client, frames):
        await client.send(frame(PONG, b"") * 3000 + frame(CLOSE, b"\x03\xe8"))
        await frames.closed_with(NORMAL)


@attack(clock=5)
async def empty_fragments(target: Target, chance: random.Random) -> None:
    """A message in fragments with nothing in them: it has no size that would end it."""
    async with opened(target) as (client, frames):
        await client.send(frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 3000)
        await client.send(frame(CONTINUATION, b"end"))
        came = await frames.next()
        demand(came == (TEXT, b"end"), f"the message was not echoed, but {came} came")
        await client.send(frame(CLOSE, b"\x03\xe8"))
        await frames.closed_with(NORMAL)


@attack(clock=7)
async def endless_message(target: Target, chance: random.Random) -> None:
    """A message of many small fragments, and one whose frame announces too much."""
    await _closes(target, b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"abcd", TOO_BIG, NO_PONG)
    async with opened(target) as (client, frames), trio.open_nursery() as nursery:
        await client.send(frame(BINARY, b"x", fin=False))
        nursery.start_soon(client.trickle, endlessly(frame(CONTINUATION, b"x" * 40, fin=False) * 500), 0)
        await frames.closed_with(TOO_BIG)
        nursery.cancel_scope.cancel()


@functools.cache
def bombs() -> tuple[bytes, ...]:
    """Messages that inflate to 64 MiB. RFC 7692 §7.2.1."""
    compressor = zlib.compressobj(9, wbits=-15)
    pieces = [compressor.compress(bytes(1 << 20)) for _ in range(64)]
    payload = (b"".join(pieces) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    middle = len(payload) // 2
    return (
        frame(BINARY, payload, rsv=4),
        frame(BINARY, payload[:middle], fin=False, rsv=4) + frame(CONTINUATION, payload[middle:]),
        frame(TEXT, b"", fin=False, rsv=4) + frame(CONTINUATION, payload),
    )


@attack(clock=5)
async def compression_bomb(target: Target, chance: random.Random) -> None:
    """Few bytes that inflate to many: 1009 as soon as they are more than ws_max_size, in one frame and in several."""
    for sent in bombs():
        async with opened(target, deflates=True) as (client, frames):
            await client.send(sent)
            await frames.closed_with(TOO_BIG)


@attack(clock=5)
async def damaged_deflate(target: Target, chance: random.Random) -> None:
    """A compressed message that is none."""
    async with opened(target, deflates=True) as (client, frames):
        await client.send(frame(BINARY, b"\xff" * 100, rsv=4))
        await frames.closed_with(PROTOCOL_ERROR, NOT_UTF8)


@attack(clock=13)
async def close_unanswered(target: Target, chance: random.Random) -> None:
    """The server has sent its close; this side never answers it, and goes on with pings. It has ten seconds."""
    async with opened(target) as (client, frames):
        await client.send(frame(TEXT, b"close"))
        demand(await frames.next() == (CLOSE, b"\x03\xe8"), "no close came")
        await client.trickle(endlessly(frame(PING, b"x")), 0.1)


@attack(clock=7)
async def never_pongs(target: Target, chance: random.Random) -> None:
    """A peer that takes everything, and answers no ping."""
    async with opened(target) as (_, frames):
        frames.answers = False
        await frames.closed_with(NO_PONG)


@attack(clock=5)
async def stalled_websocket_handshake(target: Target, chance: random.Random) -> None:
    """A handshake whose head never ends."""
    async with peer(target) as client:
        await client.send(handshake_bytes("/ws")[:-2])
        await client.refused_with(408)
