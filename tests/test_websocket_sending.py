"""What an application sends on a WebSocket, from whatever task, however slowly the client reads."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing
from wsproto.events import Ping, Pong

from trioserve import ClientDisconnected
from trioserve.logs import Outcome

from .websocket_client import WebSocketClient, websocket
from .websocket_servers import ON_EACH_NETWORK, Side, Stage, Stopwatch, accepting, server_on

pytestmark = pytest.mark.timeout(20)

DEFLATE = (b"sec-websocket-extensions", b"permessage-deflate")

EVERY_KIND = pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])


class Parser:
    """Takes every byte of a server's frames apart, and keeps what they carry."""

    def __init__(self) -> None:
        self._rest = b""
        self.frames: list[tuple[int, bytes]] = []

    def feed(self, data: bytes) -> None:
        self._rest += data
        while (length := self._length()) is not None:
            head, size = length
            if len(self._rest) < head + size:
                return
            self.frames.append((self._rest[0], self._rest[head : head + size]))
            self._rest = self._rest[head + size :]

    def _length(self) -> tuple[int, int] | None:
        if len(self._rest) < 10:
            # Frames of the tests are longer, but for a close, which is the last.
            return (2, self._rest[1]) if len(self._rest) >= 2 and self._rest[1] < 126 else None
        short = self._rest[1]
        extended = {126: 2, 127: 8}.get(short, 0)
        size = int.from_bytes(self._rest[2 : 2 + extended], "big") if extended else short
        return 2 + extended, size


async def read_slowly(client: WebSocketClient, parser: Parser, last: int) -> None:
    """Read a little at a time up to a frame that begins with this byte."""
    while not (parser.frames and parser.frames[-1][0] == last):
        data = await client.stream.receive_some(3000)
        assert data
        parser.feed(data)
        await trio.lowlevel.checkpoint()


CLOSE = 0x88


def numbered(sender: int, number: int, size: int) -> bytes:
    """A message in which each byte tells its sender and number."""
    return bytes([sender, number]) * (size // 2)


@EVERY_KIND
async def test_a_broadcast_from_many_tasks(kind):
    """Tasks of other connections send to one WebSocket whose client reads slowly: every frame is whole, and those of
    each task are in order.
    """
    stage, parser = Stage(), Parser()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client, websocket(server) as other:
        side = await stage.next()
        await stage.next()

        async def send(sender: int) -> None:
            for number in range(20):
                await side.say(numbered(sender, number, 200 + 3000 * (number % 3)))

        async def send_all() -> None:
            async with trio.open_nursery() as senders:
                for sender in range(8):
                    senders.start_soon(send, sender)
            await side.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            await read_slowly(client, parser, CLOSE)
        await other.send(Ping())
        assert await other.next_event() == Pong(payload=bytearray())
    *frames, close = parser.frames
    assert close == (CLOSE, b"\x03\xe8")
    for sender in range(8):
        expected = [numbered(sender, number, 200 + 3000 * (number % 3)) for number in range(20)]
        assert [payload for head, payload in frames if payload[0] == sender] == expected
    assert {head for head, _ in frames} == {0x82}


@EVERY_KIND
async def test_a_cancelled_send(kind):
    """A send that is cancelled in the middle leaves frames whole and in order, and the WebSocket as it was: what it
    was given goes out whole or not at all.
    """
    stage, parser = Stage(), Parser()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        cancelled = 0

        async def send_and_give_up() -> None:
            nonlocal cancelled
            for number in range(30):
                with trio.move_on_after(0.002) as scope:
                    await side.say(numbered(1, number, 100_000))
                cancelled += scope.cancelled_caught
            await side.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_give_up)
            await trio.testing.wait_all_tasks_blocked(0.02)
            await read_slowly(client, parser, CLOSE)
    *frames, close = parser.frames
    assert close == (CLOSE, b"\x03\xe8")
    assert cancelled
    numbers = [payload[1] for _, payload in frames]
    assert numbers == sorted(set(numbers))
    assert all(payload == numbered(1, number, 100_000) for (_, payload), number in zip(frames, numbers, strict=True))


@EVERY_KIND
async def test_a_cancelled_send_takes_nothing_of_others_along(kind):
    """What other tasks sent is not lost with a send that is cancelled, whoever of them was writing."""
    stage = Stage()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def is_cancelled() -> None:
                with scope:
                    for _ in range(2):
                        await side.say(b"x" * 500_000)

            nursery.start_soon(is_cancelled)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(side.say, "another's")
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert scope.cancelled_caught
            while (message := await client.receive()) != "another's":
                assert message == b"x" * 500_000


@EVERY_KIND
async def test_a_cancelled_send_right_after_the_accept(kind):
    """The first send, without any wait after the accept, may be cancelled as any other."""

    async def handler(side: Side) -> None:
        with trio.move_on_after(0.02):
            for _ in range(5):
                await side.say(b"x" * 500_000)
        await side.say("the end")

    async with server_on(kind, accepting(handler), narrow=True) as server, websocket(server) as client:
        await trio.testing.wait_all_tasks_blocked(0.05)
        while (message := await client.receive()) != "the end":
            assert message == b"x" * 500_000


async def test_a_send_in_a_cancelled_scope():
    """In a scope that is cancelled already nothing is sent."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        with trio.CancelScope() as scope:
            scope.cancel()
            await side.say("unsaid")
        assert scope.cancelled_caught
        await side.say("said")
        assert await client.receive() == "said"


@ON_EACH_NETWORK
async def test_cancelled_sends_with_deflate(kind):
    """What was compressed goes out, so that the client's window is the server's, whatever is cancelled."""
    stage = Stage()
    async with server_on(kind, stage, narrow=True) as server, websocket(server, "/", DEFLATE) as client:
        side = await stage.next()

        async def send_and_give_up() -> None:
            noise = bytes(number * number // 7 % 251 for number in range(50_000))
            for number in range(20):
                with trio.move_on_after(0.002):
                    await side.say(bytes([number]) + noise[number:])
            await side.say("the end")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_give_up)
            await trio.testing.wait_all_tasks_blocked(0.02)
            while (message := await client.receive()) != "the end":
                assert len(message) > 49_000


@EVERY_KIND
async def test_pongs_between_large_messages(kind):
    """Pings that come while a large message goes out are answered after it, with frames whole."""
    stage = Stage()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.say, b"x" * 500_000)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for number in range(10):
                await client.send(Ping(payload=b"%d" % number))
            assert await client.receive() == b"x" * 500_000
            for number in range(10):
                assert await client.next_event() == Pong(payload=bytearray(b"%d" % number))


async def test_a_client_that_takes_nothing(autojump_clock):
    """send() raises once the client has taken nothing for timeout_write seconds, to the second."""
    stage = Stage()
    async with server_on("lockstep", stage, timeout_write=5, ws_ping_interval=None) as server, websocket(server):
        side = await stage.next()
        watch = Stopwatch()
        with pytest.raises(ClientDisconnected):
            while True:
                await side.say(b"x" * 100_000)
        assert watch.seconds == 5
        assert await side.hear() == (1006, "")


@EVERY_KIND
async def test_the_record_of_a_client_that_takes_nothing(kind):
    """A client that takes nothing for timeout_write seconds has not left: its record says "deadline"."""
    stage = Stage()
    async with (
        server_on(kind, stage, narrow=True, timeout_write=0.3, ws_ping_interval=None) as server,
        websocket(server),
    ):
        side = await stage.next()
        with pytest.raises(ClientDisconnected):
            while True:
                await side.say(b"x" * 100_000)
        assert await side.hear() == (1006, "")
        side.end()
        with trio.fail_after(5):
            while not server.recorder.websockets:
                await trio.sleep(0.005)
        (record,) = server.recorder.websockets
        assert (record.code, record.outcome) == (1006, Outcome.DEADLINE)


async def test_pongs_that_a_client_does_not_take(autojump_clock):
    """A client that pings and reads nothing is given up, too."""
    stage = Stage()
    async with (
        server_on("lockstep", stage, timeout_write=5, ws_ping_interval=None) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        side = await stage.next()
        watch = Stopwatch()

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.send(Ping(payload=b"x" * 125))

        nursery.start_soon(flood)
        assert await side.hear() == (1006, "")
        assert watch.seconds == 5


@pytest.mark.parametrize("count", [1, 100])
async def test_messages_are_sent_when_the_application_has_returned(count):
    """What was sent before the handler returned arrives before the close, however slowly the client reads."""
    stage = Stage()
    async with server_on("socket", stage, narrow=True) as server, websocket(server) as client:
        side: Side = await stage.next()
        async with trio.open_nursery() as nursery:

            async def send_all() -> None:
                for number in range(count):
                    await side.say(numbered(7, number, 30_000))
                side.end()

            nursery.start_soon(send_all)
            for number in range(count):
                await trio.lowlevel.checkpoint()
                assert await client.receive() == numbered(7, number, 30_000)
            assert await client.receive_close() == (1000, "")


async def test_a_send_that_waits_when_the_client_closes():
    """A send that waits for the client to read does not outlive its connection."""
    stage = Stage()
    async with server_on("socket", stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:

            async def send_much() -> None:
                with pytest.raises(ClientDisconnected):
                    while True:
                        await side.say(b"x" * 100_000)

            nursery.start_soon(send_much)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(partial(trio.aclose_forcefully, client.stream))


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_what_was_given_up_is_not_kept(kind):
    """A broadcast that gives up on a slow client again and again leaves nothing of those messages in the server: the
    client gets no more than it had room for.
    """
    stage, parser = Stage(), Parser()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        given_up = 0
        for number in range(100):
            with trio.move_on_after(0) as scope:
                await side.say(numbered(1, number, 50_000))
            given_up += scope.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.close)
            await read_slowly(client, parser, CLOSE)
    *frames, _ = parser.frames
    assert len(frames) == 100 - given_up
    assert given_up > 80
