"""A Transport with TLS: what is TLS's own. What it does as the other kinds do is in test_transports.py."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from trio.testing import MemoryReceiveStream, wait_all_tasks_blocked

from trioserve.clock import Clock
from trioserve.drain import Drain
from trioserve.errors import ClientDisconnected, WriteTimeout
from trioserve.net.reactor import LEFT
from trioserve.net.stream_transport import StreamTransport
from trioserve.net.tls_handshake import TLSSession, handshake
from trioserve.net.tls_transport import (
    CLOSE_PATIENCE,
    FILE_PIECE,
    LEAST_PIECE,
    PIECE,
    RECORD,
    YIELD_AFTER,
    TLSTransport,
)
from trioserve.transport import READ_AHEAD, FilePiece, Wake

from .support import LINUX, respond, socket_server
from .tls_client import ALERT, APPLICATION_DATA, HANDSHAKE, KEY_UPDATE, VERSIONS, Seal, TLSClient
from .transports import (
    DEADLINE,
    STALL,
    AfterFirstStep,
    MakeSockets,
    SocketSide,
    pattern,
    receive_exactly,
    secured_context,
    socket_side,
    tcp_sockets,
    unix_sockets,
    until,
    writing_transport,
)

pytestmark = pytest.mark.timeout(30)

EPOLL = pytest.mark.skipif(not LINUX, reason="only Linux has epoll")
TLS_1_2, TLS_1_3 = VERSIONS
BOTH = pytest.mark.parametrize("version", VERSIONS, ids=lambda one: one.name)


@dataclass
class Side:
    """A TLSTransport over a memory stream whose other end, ``wire``, is the test's; nothing moves by itself."""

    transport: TLSTransport
    client: TLSClient
    wire: trio.StapledStream
    below: StreamTransport
    nursery: trio.Nursery

    async def say(self, *data: bytes) -> None:
        """Let each of these be one read of the server."""
        for one in data:
            await self.wire.send_all(one)
            await wait_all_tasks_blocked()

    def heard(self) -> bytes:
        """The records that the server has sent so far."""
        receiver = self.wire.receive_stream
        assert isinstance(receiver, MemoryReceiveStream)
        try:
            return bytes(receiver._incoming.get_nowait())
        except trio.WouldBlock:
            return b""

    def open(self) -> bytes:
        return self.client.open(self.heard())

    def hold(self) -> None:
        """The client takes nothing any more."""
        stream = self.below._stream
        assert isinstance(stream, trio.StapledStream)
        stream.send_stream, self.wire.receive_stream = trio.testing.lockstep_stream_one_way_pair()

    async def take_all(self) -> bytes:
        """Let the client take everything up to the end, which must be a close_notify."""
        opened = b""
        while data := await self.wire.receive_some(65536):
            opened += self.client.open(bytes(data))
        assert self.client.has_heard_the_end
        return opened


@asynccontextmanager
async def connected(
    version: ssl.TLSVersion = TLS_1_3,
    folder: Path | None = None,
    *,
    at_once: int = 65536,
    with_the_end: bytes = b"",
) -> AsyncIterator[Side]:
    """A client whose handshake is done; ``folder``: whose records can be sealed."""
    context, authority = secured_context()
    client = TLSClient(authority, version, folder)
    wire, near = trio.testing.memory_stream_pair()
    clock = Clock()
    sessions: list[TLSSession] = []

    async def shake() -> None:
        sessions.append(await handshake(below, context, deadline=inf, drain=Drain()))

    async with trio.open_nursery() as nursery, writing_transport(near, clock) as below:
        nursery.start_soon(clock.run)
        async with trio.open_nursery() as handshakes:
            handshakes.start_soon(shake)
            await client.shake(wire, at_once=at_once, with_the_end=with_the_end)
        transport = TLSTransport(below, sessions[0], clock, STALL)
        yield Side(transport, client, wire, below, nursery)
        await transport.aclose(reset=True)
        nursery.cancel_scope.cancel()


# The handshake


@BOTH
async def test_a_handshake_may_come_byte_by_byte(version: ssl.TLSVersion) -> None:
    """However the client's words are cut, the handshake goes on when they are complete."""
    async with connected(version, at_once=1) as side:
        await side.say(side.client.record(b"request"))
        assert side.transport.receive_nowait() == b"request"


async def test_a_request_may_come_with_the_end_of_the_handshake() -> None:
    """What came in one packet with the client's last word is there to be received, without a wait."""
    async with connected(with_the_end=b"request") as side:
        assert side.transport.has_unread
        with trio.testing.assert_no_checkpoints():
            assert await side.transport.receive(inf) == b"request"
        assert not side.transport.has_unread
        assert side.transport.receive_nowait() is None


@BOTH
async def test_a_session_is_resumed(version: ssl.TLSVersion) -> None:
    """A client that comes back with its ticket saves the expensive half of the handshake."""
    context, authority = secured_context(tickets=2)
    client = TLSClient(authority, version)
    session = None
    for is_second in (False, True):
        client.begin(session)
        wire, near = trio.testing.memory_stream_pair()
        async with writing_transport(near) as below:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.shake, wire)
                made = await handshake(below, context, deadline=inf, drain=Drain())
            transport = TLSTransport(below, made, Clock(), STALL)
            await transport.send(b"hello", STALL)
            await transport.flush()
            await wait_all_tasks_blocked()
            assert client.open(bytes(await wire.receive_some(65536))) == b"hello"
        assert made.tls.session_reused is is_second
        assert client.tls.session_reused is is_second
        session = client.tls.session


# Records


@BOTH
async def test_a_record_may_be_cut_anywhere(version: ssl.TLSVersion) -> None:
    """Half a record is nothing yet, and nobody is told of it; with the other half it is all there."""
    told: list[bool] = []
    async with connected(version) as side:
        side.transport.tell(left=lambda: None, unread=lambda: told.append(True))
        for cut in itertools.count(1):
            record = side.client.record(b"a request")
            if cut == len(record):
                break
            await side.say(record[:cut])
            assert not side.transport.has_unread
            assert side.transport.receive_nowait() is None
            assert told == []
            await side.say(record[cut:])
            assert side.transport.has_unread
            assert told == [True]
            assert side.transport.receive_nowait() == b"a request"
            assert side.transport.receive_nowait() is None
            told.clear()


@BOTH
async def test_many_records_may_come_in_one_read(version: ssl.TLSVersion) -> None:
    """Each of them is there at once, in its order, to be received without a wait."""
    pieces = [b"%d" % number * number for number in range(1, 200)]
    async with connected(version) as side:
        await side.say(b"".join(side.client.record(piece) for piece in pieces))
        for piece in pieces:
            side.transport.has_waited = False
            assert side.transport.has_unread
            assert await side.transport.receive(inf) == piece
            assert not side.transport.has_waited
        assert not side.transport.has_unread
        assert side.transport.receive_nowait() is None


async def test_the_largest_record_may_come_in_many_reads() -> None:
    """16 KiB in small pieces wake the reader once, with all of it."""
    data = pattern(RECORD)
    async with connected() as side:
        record = side.client.record(data)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read() -> None:
                assert await side.transport.receive(inf) == data

            await side.say(*(record[start : start + 1000] for start in range(0, len(record), 1000)))


async def test_a_reader_goes_on_until_half_a_record_is_whole() -> None:
    """Where more waits below although a read gave nothing, the reader lets others run and reads on."""
    async with connected() as side:
        full = b"".join(side.client.record(b"x" * RECORD) for _ in range(READ_AHEAD // RECORD))
        end = side.client.record(b"end")
        await side.say(full, end[:10], end[10:])
        for _ in range(READ_AHEAD // RECORD):
            assert side.transport.receive_nowait() == b"x" * RECORD
        side.transport.has_waited = False
        assert await side.transport.receive(inf) == b"end"
        assert not side.transport.has_waited


async def test_read_ahead_is_bounded() -> None:
    """While nobody receives, only so much is decrypted; the rest stays below, where it holds the client up."""
    data = pattern(1_000_000)
    async with connected() as side:
        records = b"".join(side.client.record(data[start : start + RECORD]) for start in range(0, len(data), RECORD))
        await side.say(records)
        assert sum(map(len, side.transport._chunks)) <= READ_AHEAD
        assert side.transport._incoming.pending + side.below._buffered <= 2 * READ_AHEAD
        with trio.fail_after(DEADLINE):
            assert await receive_exactly(side.transport, len(data)) == data


async def test_small_records_count_as_larger_ones() -> None:
    """A client that sends its bytes one by one cannot make the server decrypt a hundred thousand at a time."""
    async with connected() as side:
        await side.say(b"".join(side.client.record(b"x") for _ in range(1000)))
        assert len(side.transport._chunks) == READ_AHEAD // LEAST_PIECE
        with trio.fail_after(DEADLINE):
            assert await receive_exactly(side.transport, 1000) == b"x" * 1000


# The end


@BOTH
async def test_a_close_notify_is_the_end(version: ssl.TLSVersion) -> None:
    """Alone it ends the connection at once, although what carries it stays open; the server may still send."""
    told: list[bool] = []
    async with connected(version) as side:
        side.transport.tell(left=lambda: told.append(True), unread=lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.transport.wait_left)
            await side.say(side.client.close_notify())
        assert told == [True]
        assert side.transport.has_left
        assert not side.transport.is_broken
        assert not side.transport.has_unread
        assert await side.transport.receive(inf) == b""
        await side.transport.send(b"answer", STALL)
        await side.transport.flush()
        assert side.heard()


@BOTH
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_came_before_a_close_notify_counts(version: ssl.TLSVersion, at_once: bool) -> None:
    """In the same read or not, data come before the end."""
    async with connected(version) as side:
        pieces = [side.client.record(b"request"), side.client.close_notify()]
        await side.say(*([b"".join(pieces)] if at_once else pieces))
        assert side.transport.has_left
        assert await side.transport.receive(inf) == b"request"
        assert await side.transport.receive(inf) == b""


async def test_a_waiting_reader_hears_a_close_notify() -> None:
    """The reader that waits gets the end."""
    async with connected() as side, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            assert await side.transport.receive(inf) == b""

        await wait_all_tasks_blocked()
        await side.say(side.client.close_notify())


@BOTH
async def test_what_comes_after_a_close_notify_is_ignored(version: ssl.TLSVersion) -> None:
    """Neither in the same read nor later does anything follow the end, and nothing of it is kept."""
    async with connected(version) as side:
        await side.say(side.client.close_notify() + b"junk" * 100, b"more junk" * 1000)
        assert await side.transport.receive(inf) == b""
        kept = side.transport._incoming.pending
        await side.say(b"more junk" * 1000)
        assert await side.transport.receive(inf) == b""
        assert side.transport._incoming.pending == kept
        assert not side.transport.is_broken


@BOTH
async def test_a_close_notify_may_be_cut_anywhere(version: ssl.TLSVersion) -> None:
    """Half of it is nothing yet; the bare end after that is an end, too."""
    async with connected(version) as side:
        whole = side.client.close_notify()
    for cut in range(1, len(whole)):
        async with connected(version) as side:
            notify = side.client.close_notify()
            await side.say(notify[:cut])
            assert not side.transport.has_left
            if cut % 2:
                await side.say(notify[cut:])
            else:
                await side.wire.send_eof()
                await side.transport.wait_left()
            assert side.transport.receive_nowait() == b""
            assert not side.transport.is_broken


async def test_a_bare_end_is_an_end() -> None:
    """Many clients never say close_notify: what came before counts, and the server may still send."""
    async with connected() as side:
        await side.say(side.client.record(b"request"))
        await side.wire.send_eof()
        await side.transport.wait_left()
        assert await side.transport.receive(inf) == b"request"
        assert await side.transport.receive(inf) == b""
        await side.transport.send(b"answer", STALL)
        await side.transport.flush()
        assert side.open() == b"answer"


async def test_an_end_amid_a_record_is_an_end() -> None:
    """What was whole is received, the half is dropped, and nothing is raised."""
    async with connected() as side:
        await side.say(side.client.record(b"request") + side.client.record(b"another")[:-1])
        await side.wire.send_eof()
        await side.transport.wait_left()
        assert await side.transport.receive(inf) == b"request"
        assert await side.transport.receive(inf) == b""
        assert not side.transport.is_broken


@asynccontextmanager
async def connected_by_socket(
    version: ssl.TLSVersion = TLS_1_3, folder: Path | None = None, make: MakeSockets = tcp_sockets
) -> AsyncIterator[tuple[TLSTransport, TLSClient, SocketSide]]:
    context, authority = secured_context()
    client = TLSClient(authority, version, folder)
    async with socket_side(make) as side:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.shake, side.peer)
            session = await handshake(side.transport, context, deadline=inf, drain=Drain())
        transport = TLSTransport(side.transport, session, side.clock, STALL)
        yield transport, client, side
        await transport.aclose(reset=True)


@EPOLL
@pytest.mark.parametrize("is_waiting", [True, False])
async def test_data_and_the_end_in_one_edge(is_waiting: bool) -> None:
    """When data, close_notify and FIN are announced together, as they are only once, none of them is missed."""
    received: list[bytes | Wake] = []
    with trio.fail_after(DEADLINE):
        async with connected_by_socket() as (transport, client, side), trio.open_nursery() as nursery:

            async def read() -> None:
                while not received or received[-1]:
                    received.append(await transport.receive(inf))

            if is_waiting:
                nursery.start_soon(read)
                await wait_all_tasks_blocked()
            side.raw_peer.send(client.record(b"request") + client.close_notify())
            side.raw_peer.shutdown(socket.SHUT_WR)
            await transport.wait_left()
            assert side.transport.events[-1] & LEFT
            assert not transport.is_broken
            if not is_waiting:
                await read()
    assert received == [b"request", b""]


@EPOLL
async def test_what_came_before_a_reset_counts() -> None:
    """A client that closes with our tickets unread resets without meaning to; its last request is received."""
    with trio.fail_after(DEADLINE):
        async with connected_by_socket() as (transport, client, side):
            side.transport.hears_last_words = True
            await transport.send(b"what the client does not read", STALL)
            side.raw_peer.send(client.record(b"request"))
            side.raw_peer.close()
            await transport.wait_left()
            assert transport.is_broken
            assert await transport.receive(inf) == b"request"
            assert await transport.receive(inf) == b""


# What is no TLS, or asks too much


@BOTH
@pytest.mark.parametrize("where", [0, 1, 3, 7, -1])
async def test_a_corrupted_record_breaks_the_connection(version: ssl.TLSVersion, where: int) -> None:
    """What came before it is received, then comes the end; the client hears why, and nothing else can be sent."""
    told: list[bool] = []
    async with connected(version) as side:
        side.transport.tell(left=lambda: told.append(True), unread=lambda: None)
        good, bad = side.client.record(b"good"), bytearray(side.client.record(b"bad"))
        bad[where] ^= 0x80
        await side.say(good + bytes(bad))
        assert told == [True]
        assert side.transport.is_broken
        assert not side.transport.has_stalled
        assert await side.transport.receive(inf) == b"good"
        assert await side.transport.receive(inf) == b""
        with pytest.raises(ssl.SSLError, match="(?i)alert"):
            side.open()
        for late in (side.transport.send(b"x", STALL), side.transport.flush(), side.transport.send(b"x" * 99999, 1)):
            with pytest.raises(ClientDisconnected):
                await late


async def test_a_corrupted_record_ends_its_connection_alone(tmp_path: Path) -> None:
    """To a server it is a client that has left: no error of the application, and its neighbours are served on."""
    authority = trustme.CA()
    path = str(tmp_path / "chain.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    async with socket_server(respond(), ssl_certfile=path) as server:
        streams = [await server.connect_stream() for _ in range(2)]
        clients = [TLSClient(authority, TLS_1_3) for _ in streams]
        for client, stream in zip(clients, streams, strict=True):
            await client.shake(stream)
        request = bytearray(clients[0].record(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
        request[-1] ^= 1
        await streams[0].send_all(request)
        heard = b"".join([bytes(piece) async for piece in streams[0]])
        with pytest.raises(ssl.SSLError, match="(?i)bad record mac"):
            clients[0].open(heard)
        await streams[1].send_all(clients[1].record(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
        heard = b"".join([bytes(piece) async for piece in streams[1]])
        assert clients[1].open(heard).startswith(b"HTTP/1.1 200 ")
        assert clients[1].has_heard_the_end
        assert server.errors == []
        for stream in streams:
            await stream.aclose()


async def test_new_keys(tmp_path: Path) -> None:
    """A client that changes its keys and asks for ours to change is read and answered on."""
    async with connected(TLS_1_3, tmp_path) as side:
        seal = side.client.sealer()
        await side.say(seal(b"before", APPLICATION_DATA), seal(KEY_UPDATE, HANDSHAKE))
        assert await side.transport.receive(inf) == b"before"
        assert not side.transport.has_unread
        assert not side.transport.is_broken
        await side.transport.send(b"answer", STALL)
        await side.transport.flush()
        # The client's OpenSSL follows the new keys, or could not open this.
        assert side.open() == b"answer"


def asks_again(side: Side, seal: Seal) -> bytes:
    """A new ClientHello in an old connection of TLS 1.2."""
    return seal(side.client.hello[5:], HANDSHAKE)


NO_RENEGOTIATION = 100  # RFC 5246 §7.2


async def test_renegotiation_is_refused(tmp_path: Path) -> None:
    """A client cannot make the server redo its handshake: it is told so at once, and served on."""
    async with connected(TLS_1_2, tmp_path) as side:
        seal = side.client.sealer()
        side.heard()
        await side.say(asks_again(side, seal))
        assert side.heard()[0] == ALERT
        assert not side.transport.has_unread
        assert not side.transport.is_broken
        await side.say(seal(b"request", APPLICATION_DATA))
        assert await side.transport.receive(inf) == b"request"


async def test_who_asks_without_end_and_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """What we should say waits while the client is held up by other things; too much of it breaks the connection."""
    async with connected(TLS_1_2, tmp_path) as side:
        seal = side.client.sealer()
        side.hold()
        side.transport.send_nowait(bytes(READ_AHEAD), STALL)
        side.transport.send_nowait(b"x", STALL)
        await side.say(asks_again(side, seal))
        assert not side.transport.is_broken
        told: list[bool] = []
        side.transport.tell(left=lambda: told.append(True), unread=lambda: None)
        flood = b"".join(asks_again(side, seal) for _ in range(READ_AHEAD // 31 + 1))
        for start in range(0, len(flood), READ_AHEAD):
            await side.say(flood[start : start + READ_AHEAD])
        assert told == [True]
        assert side.transport.is_broken
        assert await side.transport.receive(inf) == b""


@EPOLL
async def test_a_reader_gets_through_a_flood_of_nothing(tmp_path: Path) -> None:
    """Where a whole read gave nothing and more is there, the waiting reader goes on, as no edge would wake it again."""
    with trio.fail_after(DEADLINE):
        # What is sent to a unix socket is there at once.
        async with connected_by_socket(TLS_1_2, tmp_path, unix_sockets) as (transport, client, side):
            seal = client.sealer()
            flood = b"".join(seal(client.hello[5:], HANDSHAKE) for _ in range(READ_AHEAD // len(client.hello)))
            request = seal(b"request", APPLICATION_DATA)
            assert READ_AHEAD < len(flood) < 2 * READ_AHEAD
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read() -> None:
                    assert await transport.receive(inf) == b"request"

                await wait_all_tasks_blocked()
                assert side.raw_peer.send(flood + request) == len(flood + request)


# Sending


async def test_a_sender_lets_others_run() -> None:
    """Who streams without ever waiting yields after every 64 KiB, or sixteen pieces."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with connected() as side, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        before = turns
        for _ in range(64):
            await side.transport.send(b"x" * 4096, STALL)
            side.heard()
        assert turns - before >= 3
        nursery.cancel_scope.cancel()


async def test_a_receiver_lets_others_run() -> None:
    """Who receives much that is all there yields, too, also in a cancelled scope, where it still gets it all."""
    async with connected() as side:
        await side.say(b"".join(side.client.record(b"x" * LEAST_PIECE) for _ in range(40)))
        turns = 0
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            with trio.CancelScope() as scope:
                scope.cancel()
                await receive_exactly(side.transport, 40 * LEAST_PIECE)
            assert not scope.cancelled_caught
            assert turns >= 40 * LEAST_PIECE // YIELD_AFTER - 1  # in the last round we may be the first
            nursery.cancel_scope.cancel()


async def test_much_is_encrypted_piece_by_piece() -> None:
    """While the client takes nothing, only a little more than READ_AHEAD of what is sent is encrypted."""
    data = pattern(1_000_000)
    async with connected() as side:
        side.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.transport.send, data, STALL)
            await wait_all_tasks_blocked()
            assert side.below._unsent < 2 * PIECE
            nursery.start_soon(side.transport.aclose)
            nursery.cancel_scope.cancel()


async def test_a_send_that_is_cancelled_loses_nothing() -> None:
    """However much of it was encrypted, all of it goes out, whole records in their order, and what follows it."""
    data = pattern(500_000)
    async with connected() as side:
        side.hold()
        with trio.move_on_after(0) as scope:
            await side.transport.send(data, STALL)
        assert scope.cancelled_caught
        side.transport.send_nowait(b"after", STALL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.transport.aclose)
            assert await side.take_all() == data + b"after"


async def test_a_send_that_is_cancelled_before_its_turn_loses_nothing() -> None:
    """Nor does one that waits for another, nor what waits behind both; each keeps its place."""
    pieces = [pattern(200_000), pattern(300_000), b"between", pattern(100_000)]
    async with connected() as side:
        side.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.transport.send, pieces[0], STALL)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as cut:
                cut.start_soon(side.transport.send, pieces[1], STALL)
                await wait_all_tasks_blocked()
                side.transport.send_nowait(pieces[2], STALL)
                cut.cancel_scope.cancel()
            assert side.transport.is_congested
            nursery.start_soon(side.transport.send, pieces[3], STALL)
            nursery.start_soon(side.transport.wait_room)
            await wait_all_tasks_blocked()

            @nursery.start_soon
            async def close() -> None:
                await side.transport.flush()
                await side.transport.aclose()

            assert await side.take_all() == b"".join(pieces)
        assert side.transport._held == 0


async def test_who_waits_for_a_turn_hears_that_the_client_is_lost() -> None:
    """Whoever waits behind another, for room or for all to be sent gets ClientDisconnected."""
    raised: list[str] = []

    async with connected() as side:
        side.hold()

        async def expect(name: str, *arguments: object) -> None:
            with pytest.raises(ClientDisconnected):
                await getattr(side.transport, name)(*arguments)
            raised.append(name)

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(expect, "send", bytes(200_000), STALL)
                    await wait_all_tasks_blocked()
                side.transport.send_nowait(bytes(READ_AHEAD + 1), STALL)
                nursery.start_soon(expect, "wait_room")
                nursery.start_soon(expect, "flush")
                await wait_all_tasks_blocked()
                await side.transport.lose()
    assert sorted(raised) == ["flush", "send", "send", "wait_room"]


async def test_a_client_that_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """It is given up after the stall, with WriteTimeout for whoever sends, then or later."""
    async with connected() as side:
        side.hold()
        with pytest.raises(WriteTimeout):
            await side.transport.send(bytes(200_000), 5)
        assert trio.current_time() == pytest.approx(5)
        assert side.transport.has_stalled
        assert side.transport.is_broken
        with pytest.raises(WriteTimeout):
            await side.transport.send(b"x", 5)


async def test_nothing_is_sent_for_nothing() -> None:
    """Sending no bytes makes no record."""
    async with connected() as side:
        side.heard()
        await side.transport.send(b"", STALL)
        await side.transport.flush()
        assert side.heard() == b""


# Files


@contextmanager
def file_with(path: Path, data: bytes) -> Iterator[int]:
    path.write_bytes(data)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def test_a_file_is_encrypted_piece_by_piece(tmp_path: Path) -> None:
    """A large file is never in memory, nor encrypted, as a whole."""
    data = pattern(2 * FILE_PIECE + 100)
    with file_with(tmp_path / "file", data) as file:
        async with connected() as side:
            side.hold()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send() -> None:
                    await side.transport.send_file(FilePiece(b"<", file, 0, len(data), b">"), STALL)
                    await side.transport.aclose()

                await until(lambda: side.below.is_congested)
                await wait_all_tasks_blocked()
                assert side.below._unsent < 2 * PIECE
                assert await side.take_all() == b"<" + data + b">"


async def test_a_file_that_is_cut_is_no_end(tmp_path: Path) -> None:
    """Cancelled in the middle, nothing may follow it, not even what waited; closing says no close_notify."""
    with file_with(tmp_path / "file", bytes(FILE_PIECE)) as file:
        async with connected() as side:
            side.hold()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send_file, FilePiece(b"", file, 0, FILE_PIECE, b"after"), STALL)
                await until(lambda: side.below.is_congested)
                side.transport.send_nowait(b"behind", STALL)
                nursery.cancel_scope.cancel()
            assert side.transport.is_broken
            assert not side.transport.has_left
            with pytest.raises(ClientDisconnected):
                side.transport.send_nowait(b"more", STALL)
            heard = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.aclose)
                while data := await side.wire.receive_some(65536):
                    heard += data
            opened = side.client.open(heard)
            assert opened.strip(b"\0") == b""
            assert len(opened) < FILE_PIECE
            assert not side.client.has_heard_the_end


async def test_a_file_that_is_cancelled_before_its_turn_is_not_sent(tmp_path: Path) -> None:
    """Nothing of it goes out; what was sent behind it does."""
    before = pattern(200_000)
    with file_with(tmp_path / "file", b"never") as file:
        async with connected() as side:
            side.hold()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.transport.send, before, STALL)
                await wait_all_tasks_blocked()
                async with trio.open_nursery() as cut:
                    cut.start_soon(side.transport.send_file, FilePiece(b"(", file, 0, 5, b")"), STALL)
                    await wait_all_tasks_blocked()
                    side.transport.send_nowait(b"behind", STALL)
                    cut.cancel_scope.cancel()

                @nursery.start_soon
                async def close() -> None:
                    await side.transport.flush()
                    await side.transport.aclose()

                assert await side.take_all() == before + b"behind"


# Closing


@BOTH
@pytest.mark.parametrize("has_said", [True, False])
async def test_closing_says_so(version: ssl.TLSVersion, has_said: bool) -> None:
    """A close_notify follows all that was sent, whether the client has said its own or not."""
    async with connected(version) as side:
        if has_said:
            await side.say(side.client.close_notify())
        await side.transport.send(b"bye", STALL)
        await side.transport.aclose()
        heard = side.heard()
        if not has_said:
            assert side.client.open(heard) == b"bye"
            assert side.client.has_heard_the_end
        assert heard
        assert side.below.is_broken


async def test_closing_with_a_reset_says_nothing() -> None:
    """The client of a stream that cannot be reset sees the bare end."""
    async with connected() as side:
        side.heard()
        await side.transport.aclose(reset=True)
        assert side.heard() == b""
        assert await side.wire.receive_some() == b""


async def test_closing_takes_a_second_at_most(autojump_clock: trio.testing.MockClock) -> None:
    """Also from a client that takes nothing, and in a cancelled scope; what it could still read is no whole end."""
    async with connected() as side:
        side.hold()
        side.transport.send_nowait(b"x", STALL)
        start = trio.current_time()
        with trio.CancelScope() as scope:
            scope.cancel()
            await side.transport.aclose()
        assert trio.current_time() - start == pytest.approx(CLOSE_PATIENCE)


async def test_closing_amid_what_is_sent_is_no_end() -> None:
    """While something is still to be encrypted a close_notify would be a lie."""
    async with connected() as side:
        side.hold()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(ClientDisconnected):
                    await side.transport.send(bytes(500_000), STALL)

            await wait_all_tasks_blocked()
            await side.transport.aclose()


@EPOLL
async def test_a_closed_connection_leaves_nothing_to_the_collector() -> None:
    """OpenSSL's memory is free again at once: no cycle keeps it until a garbage collection."""
    gc.collect()
    gc.disable()
    try:
        async with connected_by_socket() as (transport, _, side):
            transport.tell(left=transport._leave, unread=transport._look)
            kept = weakref.ref(transport._tls)
            await transport.aclose()
            del transport
        assert kept() is None
        assert side.transport.is_broken
    finally:
        gc.enable()


async def test_a_reader_of_tls_is_woken_also_while_it_lets_others_run() -> None:
    """As on a plain connection: a stop that comes in this moment must not wait for the reader's deadline."""
    came: list[bytes | Wake] = []
    count = YIELD_AFTER // LEAST_PIECE
    with trio.fail_after(DEADLINE):
        async with connected() as side:
            await side.say(b"".join(side.client.record(b"x") for _ in range(count + 1)))
            for _ in range(count):
                assert side.transport.receive_nowait() == b"x"

            async def receive() -> None:
                came.append(await side.transport.receive(inf))

            instrument = AfterFirstStep("reader", lambda: side.transport.wake(Wake.DRAIN))
            trio.lowlevel.add_instrument(instrument)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, name="reader")
            trio.lowlevel.remove_instrument(instrument)
            assert came == [Wake.DRAIN]
            assert await side.transport.receive(inf) == b"x"


class Flood:
    """What lies under a TLSTransport, and always has something more, of which nothing becomes a record."""

    has_unread = True

    def __init__(self, below: StreamTransport) -> None:
        self._below = below
        self._head: bytes | None = bytes([APPLICATION_DATA, 3, 3, 0x40, 0])

    def __getattr__(self, name: str) -> object:
        return getattr(self._below, name)

    def receive_nowait(self) -> bytes | None:
        head, self._head = self._head, None
        return head


async def test_a_flood_of_nothing_keeps_neither_a_deadline_nor_a_cancellation_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A peer of which much comes, and nothing for us, does not hold the reader."""
    async with connected() as side:
        side.transport._below = Flood(side.below)  # type: ignore[assignment]  # what it needs, that has
        assert await side.transport.receive(trio.current_time()) is Wake.DEADLINE
        with trio.CancelScope() as scope:
            scope.cancel()
            await side.transport.receive(inf)
        assert scope.cancelled_caught
        side.transport._below = side.below


async def test_what_must_not_wait_is_encrypted_in_pieces() -> None:
    """A message of any size that is sent without waiting arrives whole, and in order."""
    data = pattern(3 * PIECE + 5)
    with trio.fail_after(DEADLINE):
        async with connected() as side:
            side.transport.send_nowait(data, STALL)
            side.transport.send_nowait(b"end", STALL)
            opened = b""
            while not opened.endswith(b"end"):
                opened += side.client.open(bytes(await side.wire.receive_some(65536)))
            assert opened == data + b"end"
