"""Open WebSockets when the server stops: each hears so at once, and none outlives the graceful deadline."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from wsproto.events import CloseConnection

from trioserve.logs import Outcome

from .support import Recorder, RunningServer, plain_lifespan
from .websocket_client import WebSocketClient, frame, handshake_bytes, read_handshake, websocket
from .websocket_servers import ON_EACH_KIND, Side, Stage, Stopwatch, server_on

pytestmark = pytest.mark.timeout(20)

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9

RESTART = (1012, "the server is shutting down")


@ON_EACH_KIND
@pytest.mark.parametrize("is_busy", [True, False])
async def test_everybody_hears_of_a_stop_at_once(kind, is_busy):
    """At a stop the client gets close 1012 and the application its disconnect at once, whether it receives or not."""
    heard = []
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()

        async def listen() -> None:
            heard.append(await side.hear())

        async with trio.open_nursery() as nursery:
            if not is_busy:
                nursery.start_soon(listen)
                await trio.testing.wait_all_tasks_blocked(0.01)
            server.server.shutdown()
            assert await client.receive_close() == RESTART
            await client.wait_eof()
            if is_busy:
                nursery.start_soon(listen)
        assert heard == [RESTART]
        with pytest.raises(OSError, match="closed"):
            await side.say("too late")
        side.end()
        with trio.fail_after(5):
            while not server.recorder.websockets:
                await trio.sleep(0.005)
        (record,) = server.recorder.websockets
        assert (record.code, record.outcome) == (1012, Outcome.SHUTDOWN)
        assert not server.errors


async def test_messages_that_wait_are_still_received(autojump_clock):
    """What had come before the stop is received before the disconnect."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(5):
            await client.send_text(str(number))
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        assert await side.hear_all() == [*map(str, range(5)), RESTART]


async def test_a_stop_right_after_the_accept(autojump_clock):
    """A stop between the accept and the first look after the WebSocket is not missed."""
    servers: list[RunningServer] = []
    heard = []

    async def app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        servers[0].server.shutdown()
        heard.append(await Side(scope, receive, send).hear())

    async with server_on("memory", app) as server:
        servers.append(server)
        watch = Stopwatch()
        async with websocket(server) as client:
            assert await client.receive_close() == RESTART
        assert heard == [RESTART]
        assert watch.seconds == 0


async def test_a_stop_while_the_101_goes_out(autojump_clock):
    """A stop that begins while the 101 is being written does not answer beside it: the WebSocket opens, and closes
    with 1012.
    """
    heard = []

    async def app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        heard.append(await Side(scope, receive, send).hear())

    async with server_on("lockstep", app) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        await trio.testing.wait_all_tasks_blocked()
        opened = await read_handshake(client.stream)
        assert isinstance(opened, WebSocketClient)
        assert await opened.receive_close() == RESTART
        await opened.wait_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [RESTART]
        assert server.server.statistics().rejected == {}
        assert not server.errors


async def test_a_101_that_is_not_taken_is_cut_at_the_deadline(autojump_clock):
    """A client that does not take its 101 has until the graceful deadline of a stop that begins meanwhile."""
    async with server_on("lockstep", Stage()) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        watch = Stopwatch()
        server.server.shutdown(grace=7)
        await trio.sleep(6.9)
        assert server.server.statistics().connections == 1
        while server.server.statistics().connections:
            await trio.sleep(0.1)
        assert watch.seconds <= 8.1
        assert server.server.statistics().rejected == {}
        assert server.server.statistics().websockets_total == 0


async def test_a_handler_may_finish(autojump_clock):
    """After its disconnect a handler has until the graceful deadline, and the server waits for it."""
    stage, recorder = Stage(), Recorder()
    async with server_on("memory", stage, recorder=recorder) as server, websocket(server) as client:
        side = await stage.next()
        server.server.shutdown()
        await client.receive_close()
        await client.wait_eof()
        await trio.sleep(29)
        assert not side.has_returned.is_set()
        side.end()
        await side.has_returned.wait()
        assert not side.was_cancelled


async def test_a_handler_that_does_not_end(autojump_clock):
    """At the graceful deadline the handler is cancelled."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        watch = Stopwatch()
        server.server.shutdown(grace=7)
        await client.receive_close()
        await side.has_returned.wait()
        assert watch.seconds == 7
        assert side.was_cancelled


@pytest.mark.parametrize("kind", ["memory", "lockstep"])
@pytest.mark.parametrize(("grace", "seconds"), [(4, 4), (30, 10)])
async def test_a_client_that_does_not_answer(autojump_clock, kind, grace, seconds):
    """A client that does not answer the close, whether it reads or not, is cut after 10 s, and never later than the
    graceful deadline.
    """
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server):
        side = await stage.next()
        watch = Stopwatch()
        server.server.shutdown(grace=grace)
        assert await side.hear() == RESTART
        assert watch.seconds == 0
        side.end()
        await trio.sleep(60)
        assert server.server.statistics().connections == 0
        assert server.recorder.websockets[0].duration == seconds


async def test_a_close_that_waits_for_its_answer_is_cut_at_the_deadline(autojump_clock):
    """The 10 s for the answer to an application's own close end with the graceful deadline, too."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server):
        side = await stage.next()
        side.end()
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown(grace=3)
        await trio.sleep(60)
        assert server.server.statistics().connections == 0
        assert server.recorder.websockets[0].duration == 3


async def _read_to_close(client: WebSocketClient) -> tuple[int, str]:
    while not isinstance(event := await client.next_event(), CloseConnection):
        pass
    return int(event.code), event.reason or ""


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_a_stop_while_pongs_are_stuck(kind):
    """A client that pings and does not read does not keep the disconnect from the application; when it reads at last,
    it finds whole pongs, and then close 1012.
    """
    stage = Stage()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                for _ in range(200):
                    await client.raw(frame(PING, b"x" * 125) * 50)

            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.05)
            server.server.shutdown()
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.fail_after(2):
                assert await side.hear() == RESTART
            assert await _read_to_close(client) == RESTART
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
async def test_a_stop_while_messages_are_stuck(kind):
    """A client that does not read what the application sends finds whole messages, and then close 1012; a send that
    waits does not keep the disconnect from the application.
    """
    stage = Stage()
    async with server_on(kind, stage, narrow=True) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:

            async def say_much() -> None:
                with pytest.raises(OSError, match="closed"):
                    while True:
                        await side.say(b"x" * 100_000)

            nursery.start_soon(say_much)
            await trio.testing.wait_all_tasks_blocked(0.05)
            server.server.shutdown()
            with trio.fail_after(2):
                assert await side.hear() == RESTART
            with pytest.raises(AssertionError, match="1012"):
                while True:
                    assert await client.receive() == b"x" * 100_000


async def test_stuck_messages_are_cut(autojump_clock):
    """A client that never reads is cut at the graceful deadline at the latest."""
    stage = Stage()
    async with server_on("lockstep", stage) as server, websocket(server), trio.open_nursery() as nursery:
        side = await stage.next()

        async def say_much() -> None:
            with pytest.raises(OSError, match="closed|left"):
                while True:
                    await side.say(b"x" * 100_000)
            side.end()

        nursery.start_soon(say_much)
        await trio.testing.wait_all_tasks_blocked()
        watch = Stopwatch()
        server.server.shutdown(grace=5)
        assert await side.hear() == RESTART
        assert watch.seconds == 0
        await trio.sleep(60)
        assert server.server.statistics().connections == 0
        assert server.recorder.websockets[0].duration == 5


async def test_a_stop_while_the_queue_is_full(autojump_clock):
    """Messages that nobody has received do not keep the client's answer from being seen."""
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=1) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(5):
            await client.send_text(str(number))
        await trio.testing.wait_all_tasks_blocked()
        watch = Stopwatch()
        server.server.shutdown()
        assert await client.receive_close() == RESTART
        await client.wait_eof()
        assert watch.seconds == 0
        *messages, last = await side.hear_all()
        assert last == RESTART
        assert messages == [str(number) for number in range(len(messages))]


async def test_a_stop_changes_nothing_for_who_is_closing(autojump_clock):
    """A WebSocket that closes already is not closed again."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await side.close(4000)
        server.server.shutdown()
        await trio.testing.wait_all_tasks_blocked()
        assert await client.receive_close() == (4000, "")
        await client.wait_eof()
        assert await side.hear() == (4000, "")


# Cancelling serve()


@ON_EACH_KIND
async def test_cancelling_the_server_says_goodbye(kind):
    """When serve() is cancelled each open WebSocket gets close 1012; its handler is cancelled at once."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        scope = server.nursery.cancel_scope
        scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            assert await client.receive_close(answers=False) == (1012, "")
            await client.wait_eof()
            await side.has_returned.wait()
        assert side.was_cancelled
    (record,) = server.recorder.websockets
    assert (record.code, record.outcome) == (1012, Outcome.SHUTDOWN)


@pytest.mark.parametrize("kind", ["memory", "lockstep"])
@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with another task"])
async def test_cancelling_the_server_tells_a_shielded_receive(autojump_clock, kind, others):
    """A receive() that waits behind a shield when all is cancelled hears of the end at once, whoever else waits."""
    heard = []
    called = trio.Event()

    async def app(scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})

        async def listen() -> None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 100):
                heard.append(await Side(scope, receive, send).hear())

        async with trio.open_nursery() as nursery:
            for _ in range(1 + others):
                nursery.start_soon(listen)
            called.set()

    async with server_on(kind, app, ws_ping_interval=None) as server, websocket(server):
        await called.wait()
        await trio.testing.wait_all_tasks_blocked()
        server.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert heard == [(1012, "")] * (1 + others)


async def test_cancelling_the_server_waits_for_nobody(autojump_clock):
    """A client that does not take the goodbye holds up the end for a second, not more."""
    stage = Stage()
    async with server_on("lockstep", stage) as server, websocket(server):
        side = await stage.next()
        watch = Stopwatch()
        server.cancel()
    assert side.was_cancelled
    assert watch.seconds <= 2


async def test_cancelling_the_server_while_messages_are_stuck():
    """Where a message is stuck half-way no goodbye can follow, and none is waited for long."""
    stage = Stage()
    async with server_on("tls", stage, narrow=True) as server, websocket(server), trio.open_nursery() as nursery:
        side = await stage.next()

        async def say_much() -> None:
            while True:
                await side.say(b"x" * 100_000)

        nursery.start_soon(say_much)
        await trio.testing.wait_all_tasks_blocked(0.02)
        server.cancel()
    assert side.was_cancelled


async def test_cancelling_the_server_after_the_end(autojump_clock):
    """A WebSocket that has closed, whose handler still runs, gets no goodbye."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await side.close(4000)
        assert await client.receive_close(answers=False) == (4000, "")
        server.cancel()
        with trio.CancelScope(shield=True):
            assert await client.stream.receive_some(100) == b""
    assert side.was_cancelled
