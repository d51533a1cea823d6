"""The clocks of an open WebSocket: pings and pongs, in virtual time and to the second."""

from __future__ import annotations

import os
import time

import pytest
import trio
import trio.testing
from wsproto.events import CloseConnection, Ping, Pong

from trioserve.logs import Outcome

from .support import RunningServer
from .websocket_client import WebSocketClient, frame, websocket
from .websocket_servers import Stage, Stopwatch, accepting, echo, server_on

pytestmark = pytest.mark.timeout(20)

CONTINUATION, TEXT, BINARY, PING = 0, 1, 2, 9

NO_PONG = (1011, "no pong came in time")


async def next_ping(client: WebSocketClient) -> Ping:
    event = await client.next_event()
    assert isinstance(event, Ping), event
    return event


async def test_a_ping_every_interval(autojump_clock):
    """The first ping comes ws_ping_interval after the accept, each later one so long after the last pong."""
    async with server_on("memory", Stage()) as server, websocket(server) as client:
        watch = Stopwatch()
        for seconds in (20, 43, 66):
            ping = await next_ping(client)
            assert watch.seconds == seconds
            await trio.sleep(3)
            await client.send(ping.response())


async def test_no_pong(autojump_clock):
    """Without a pong the WebSocket closes with 1011, ws_ping_timeout after the ping, and the application hears so."""
    stage = Stage()
    async with (
        server_on("memory", stage, ws_ping_interval=5, ws_ping_timeout=7) as server,
        websocket(server) as client,
    ):
        watch = Stopwatch()
        side = await stage.next()
        assert await side.hear() == NO_PONG
        assert watch.seconds == 12
        await next_ping(client)
        assert await client.receive_close() == NO_PONG
        assert watch.seconds == 12
        side.end()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        (record,) = server.recorder.websockets
        assert (record.code, record.outcome, record.duration) == (1011, Outcome.DEADLINE, 12)


async def test_no_pong_while_the_application_is_busy(autojump_clock):
    """The clock runs though nobody receives, and the handler is cancelled timeout_disconnect_grace later."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        await next_ping(client)
        assert await client.receive_close() == NO_PONG
        assert watch.seconds == 40
        await side.has_returned.wait()
        assert watch.seconds == 43
        assert side.was_cancelled


async def test_messages_are_no_pongs(autojump_clock):
    """A client that sends messages and does not answer pings is closed all the same."""
    async with (
        server_on("memory", accepting(echo)) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        watch = Stopwatch()

        async def talk() -> None:
            while True:
                await client.send_text("still here")
                await trio.sleep(1)

        nursery.start_soon(talk)
        while not isinstance(event := await client.next_event(), CloseConnection):
            pass
        assert (event.code, watch.seconds) == (1011, 40)
        nursery.cancel_scope.cancel()


async def test_a_pong_for_another_ping(autojump_clock):
    """A pong counts only with the payload of the ping that waits for it."""
    async with server_on("memory", Stage()) as server, websocket(server) as client:
        watch = Stopwatch()
        ping = await next_ping(client)
        await client.send(Pong(payload=b""), Pong(payload=bytes(ping.payload) + b"!"))
        assert await client.receive_close() == NO_PONG
        assert watch.seconds == 40


async def test_no_pings(autojump_clock):
    """With ws_ping_interval=None nobody is pinged, and a silent WebSocket stays open."""
    stage = Stage()
    async with server_on("memory", stage, ws_ping_interval=None) as server, websocket(server) as client:
        side = await stage.next()
        await trio.sleep(3000)
        await side.say("still open")
        assert await client.next_event() != Ping()
        await client.send_text("yes")
        assert await side.hear() == "yes"


async def test_pings_without_a_timeout(autojump_clock):
    """With ws_ping_timeout=None pings go out every interval, and no pong is missed."""
    stage = Stage()
    async with server_on("memory", stage, ws_ping_timeout=None) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        payloads = []
        for number in range(1, 101):
            payloads.append(bytes((await next_ping(client)).payload))
            assert watch.seconds == number * 20
        assert len(set(payloads)) == 100
        await client.send_text("still open")
        assert await side.hear() == "still open"


async def test_a_long_frame_postpones_the_pong(autojump_clock):
    """Before the end of a frame no pong can come: as long as some of it comes within each ws_ping_timeout the client
    is not given up, and its pong has that time from the last look on.
    """
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        long_frame = frame(BINARY, b"x" * 1000)
        await client.raw(long_frame[:100])
        ping = await next_ping(client)
        for start in range(100, 1000, 100):
            await trio.sleep(15)
            await client.raw(long_frame[start : start + 100])
        await client.raw(long_frame[1000:])
        await client.send(ping.response())
        assert await side.hear() == b"x" * 1000
        await trio.sleep(10)
        await client.send_text("still open")
        assert await side.hear() == "still open"


async def test_a_long_frame_that_does_not_go_on(autojump_clock):
    """A client that stops in the middle of a frame is given up ws_ping_timeout after a ping in which nothing came."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        await trio.sleep(25)
        await client.raw(frame(BINARY, b"x" * 1000)[:500])
        assert await side.hear() == NO_PONG
        assert watch.seconds == 60


async def test_fragments_do_not_postpone_the_pong(autojump_clock):
    """Between the fragments of a message a pong can come, so they do not postpone it."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client, trio.open_nursery() as nursery:
        watch = Stopwatch()
        side = await stage.next()

        async def trickle() -> None:
            await client.raw(frame(BINARY, b"x", fin=False))
            while True:
                await trio.sleep(1)
                await client.raw(frame(CONTINUATION, b"x", fin=False))

        nursery.start_soon(trickle)
        assert await side.hear() == NO_PONG
        assert watch.seconds == 40
        nursery.cancel_scope.cancel()


async def _fill(server: RunningServer, client: WebSocketClient) -> None:
    """Send more than the server takes in at ws_max_queue=1, and wait until it has stopped reading."""
    await client.raw(frame(TEXT, b"1") + frame(TEXT, b"2") + frame(TEXT, b"3"))
    await trio.testing.wait_all_tasks_blocked()


async def test_the_pong_clock_stands_still_while_reading_has_stopped(autojump_clock):
    """A pong behind messages that the application does not take cannot be seen, and is not missed. The same ping goes
    out every ws_ping_interval meanwhile.
    """
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=1) as server, websocket(server) as client:
        side = await stage.next()
        await _fill(server, client)
        ping = await next_ping(client)
        await client.send(ping.response())
        watch = Stopwatch()
        for seconds in (20, 40, 60):
            assert await next_ping(client) == ping
            assert watch.seconds == seconds
        watch = Stopwatch()
        assert [await side.hear() for _ in range(3)] == ["1", "2", "3"]
        await client.send((await next_ping(client)).response())
        assert watch.seconds == 20
        await client.send_text("still open")
        assert await side.hear() == "still open"


@pytest.mark.parametrize("pinged_before", [True, False])
async def test_the_pong_clock_goes_on_when_reading_does(autojump_clock, pinged_before):
    """What was left of ws_ping_timeout when reading stopped is left when it goes on."""
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=1) as server, websocket(server) as client:
        side = await stage.next()
        if pinged_before:
            await next_ping(client)
            await trio.sleep(5)
        await _fill(server, client)
        await trio.sleep(1000)
        watch = Stopwatch()
        for _ in range(3):
            await side.hear()
        assert await side.hear() == NO_PONG
        assert watch.seconds == (15 if pinged_before else 20)


@pytest.mark.parametrize("is_busy", [True, False])
async def test_a_pong_that_came_while_the_loop_was_blocked(is_busy):
    """What came in time wins over its deadline, though an application that blocks the loop let that pass first."""
    stage = Stage()
    async with (
        server_on("socket", stage, ws_ping_interval=0.1, ws_ping_timeout=0.4) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        side = await stage.next()
        if not is_busy:
            nursery.start_soon(side.hear)
        for _ in range(3):
            ping = await next_ping(client)
            assert isinstance(client.stream, trio.SocketStream)
            os.write(client.stream.socket.fileno(), client.wsproto.send(ping.response()))
            time.sleep(0.5)  # noqa: ASYNC251 - an application that blocks the loop
        nursery.cancel_scope.cancel()


async def test_a_client_that_takes_nothing(autojump_clock):
    """A ping that does not go out, because the client takes nothing, is answered by no pong either: 1011 to the second,
    long before timeout_write.
    """
    stage = Stage()
    async with (
        server_on("lockstep", stage, ws_ping_interval=5, ws_ping_timeout=5, timeout_write=300) as server,
        websocket(server),
        trio.open_nursery() as nursery,
    ):
        watch = Stopwatch()
        side = await stage.next()

        async def say_much() -> None:
            with pytest.raises(OSError, match="closed|left"):
                while True:
                    await side.say(b"x" * 40_000)

        nursery.start_soon(say_much)
        assert await side.hear() == NO_PONG
        assert watch.seconds == 10
        nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_take_its_pongs(autojump_clock):
    """A client that floods us with pings and reads nothing has not stopped us from reading: 1011 to the second."""
    stage = Stage()
    async with (
        server_on("lockstep", stage, ws_ping_interval=5, ws_ping_timeout=5, timeout_write=300) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        watch = Stopwatch()
        side = await stage.next()

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.raw(frame(PING, b"x" * 125) * 10)

        nursery.start_soon(flood)
        with trio.fail_after(100):
            assert await side.hear() == NO_PONG
        assert watch.seconds == 10
        nursery.cancel_scope.cancel()
