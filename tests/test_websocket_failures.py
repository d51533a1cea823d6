"""WebSockets that fail: whatever goes wrong, when it is over the server is where it was."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CoroutineType

import pytest
import trio
import trio.testing
from wsproto.events import CloseConnection

from trioserve import ClientDisconnected, MessageError, serve_stream
from trioserve.clock import COMPACT_AT
from trioserve.drain import DrainKind
from trioserve.exchange import Request
from trioserve.logs import ExchangeRecord, WebSocketRecord
from trioserve.observer import Phase
from trioserve.types import Receive, Scope, Send
from trioserve.wire.framing import FramedHead
from trioserve.wire.request_reader import Head

from .support import (
    LINUX,
    Answer,
    Client,
    Recorder,
    RunningServer,
    memory_server,
    nothing_left,
    open_descriptors,
    socket_server,
)
from .transports import tcp_streams
from .websocket_client import (
    WebSocketClient,
    frame,
    handshake_bytes,
    open_handshake,
    read_handshake,
    websocket,
    websocket_app,
)

pytestmark = pytest.mark.timeout(30)

ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}

Serve = Callable[..., contextlib.AbstractAsyncContextManager[RunningServer]]


@pytest.fixture(params=["memory", "sockets"])
def serve_on(request) -> Serve:
    """memory_server or socket_server, for tests that need no virtual time."""
    return {"memory": memory_server, "sockets": socket_server}[request.param]


@asynccontextmanager
async def memory(handler, **options) -> AsyncIterator[RunningServer]:
    """A server on memory streams for one WebSocket handler; all of it within 2000 seconds of virtual time."""
    with trio.fail_after(2000):
        async with memory_server(websocket_app(handler), **options) as server:
            yield server


def figures(server: RunningServer) -> tuple[int, ...]:
    """What the server says is open now, and the tasks there are."""
    now = server.server.statistics()
    tasks = trio.lowlevel.current_statistics().tasks_living
    return now.connections, now.requests, now.websockets, tasks


@asynccontextmanager
async def comes_back(server: RunningServer) -> AsyncIterator[None]:
    """After the block, while the server runs on: its figures, its tasks and its descriptors are what they were."""
    await trio.testing.wait_all_tasks_blocked()
    before = figures(server)
    with nothing_left():
        yield
        # Nobody tells when the server has noticed that its client is gone.
        with trio.move_on_after(3):
            while figures(server) != before:
                await trio.sleep(0.005)
        assert figures(server) == before


# Every kind of failure


@dataclass
class Application:
    """Misbehaves as the path says. ``called`` is set by each call, ``raised`` has what its sends raised."""

    called: trio.Event = field(default_factory=trio.Event)
    raised: list[BaseException] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        self.called.set()
        await getattr(self, scope["path"][1:])(receive, send)

    async def raises(self, receive: Receive, send: Send) -> None:
        raise ValueError("no")

    async def raises_a_group(self, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError("no")

    async def exits(self, receive: Receive, send: Send) -> None:
        raise SystemExit(1)

    async def returns(self, receive: Receive, send: Send) -> None:
        pass

    async def sends_what_is_wrong(self, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.send", "text": "too early"})

    async def accepts_what_is_wrong(self, receive: Receive, send: Send) -> None:
        await send({**ACCEPT, "subprotocol": "unoffered"})

    async def refuses(self, receive: Receive, send: Send) -> None:
        await send(CLOSE)

    async def responds(self, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 401})
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"you"})

    async def breaks_off(self, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.http.response.start", "status": 401})
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
        raise ValueError("no")

    async def raises_once_open(self, receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        raise ValueError("no")

    async def waits(self, receive: Receive, send: Send) -> None:
        """For the client to leave, and accepts it then."""
        assert (await receive())["type"] == "websocket.disconnect"
        try:
            await send(ACCEPT)
        except OSError as error:
            self.raised.append(error)
            raise

    async def echoes(self, receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})

    async def never_asks(self, receive: Receive, send: Send) -> None:
        """Accepts, and does something else until it is told by a send that the client is gone."""
        await send(ACCEPT)
        while True:
            await trio.sleep(0.01)
            await send({"type": "websocket.send", "text": "x"})


Visit = Callable[[Application, trio.abc.Stream], Awaitable[None]]


def gets(status: int, request: bytes) -> Visit:
    """A client that is refused with this status."""

    async def visit(app: Application, stream: trio.abc.Stream) -> None:
        answer = await open_handshake(stream, request)
        assert isinstance(answer, Answer)
        assert answer.status == status

    return visit


async def is_cut(app: Application, stream: trio.abc.Stream) -> None:
    await stream.send_all(handshake_bytes("/breaks_off"))
    received = await Client(stream).receive_rest()
    assert received.startswith(b"HTTP/1.1 401 ")
    assert not received.endswith(b"0\r\n\r\n")


async def leaves_before_accept(app: Application, stream: trio.abc.Stream) -> None:
    await stream.send_all(handshake_bytes("/waits"))
    await app.called.wait()


async def resets_before_accept(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_before_accept(app, stream)
    make_reset(stream)


async def leaves_with_its_handshake(app: Application, stream: trio.abc.Stream) -> None:
    await stream.send_all(handshake_bytes("/waits"))


async def leaves_before_its_head_ends(app: Application, stream: trio.abc.Stream) -> None:
    await stream.send_all(handshake_bytes("/waits")[:-3])


async def half_closes_before_accept(app: Application, stream: trio.abc.HalfCloseableStream) -> None:
    await leaves_before_accept(app, stream)
    await stream.send_eof()
    assert await stream.receive_some(1000) == b""


async def sends_before_accept(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_before_accept(app, stream)
    await stream.send_all(frame(1, b"hello") + frame(1, b"half a frame")[:5])


async def leaves_after_accept(app: Application, stream: trio.abc.Stream) -> None:
    assert isinstance(await open_handshake(stream, handshake_bytes("/echoes")), WebSocketClient)


async def resets_after_accept(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_after_accept(app, stream)
    make_reset(stream)


async def leaves_one_that_never_asks(app: Application, stream: trio.abc.Stream) -> None:
    assert isinstance(await open_handshake(stream, handshake_bytes("/never_asks")), WebSocketClient)


async def leaves_in_a_frame(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_after_accept(app, stream)
    await stream.send_all(frame(1, b"half a frame")[:5])


async def leaves_in_a_message(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_after_accept(app, stream)
    await stream.send_all(frame(1, b"half a message", fin=False))


async def sends_no_frame(app: Application, stream: trio.abc.Stream) -> None:
    opened = await open_handshake(stream, handshake_bytes("/echoes") + b"\xff" * 20)
    assert (await opened.receive_close(answers=False))[0] == 1002


async def leaves_at_close(app: Application, stream: trio.abc.Stream) -> None:
    opened = await open_handshake(stream, handshake_bytes("/raises_once_open"))
    assert (await opened.receive_close(answers=False))[0] == 1011


async def resets_at_close(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_at_close(app, stream)
    make_reset(stream)


async def half_closes_at_close(app: Application, stream: trio.abc.HalfCloseableStream) -> None:
    await leaves_at_close(app, stream)
    await stream.send_eof()


async def sends_no_frame_at_close(app: Application, stream: trio.abc.Stream) -> None:
    await leaves_at_close(app, stream)
    await stream.send_all(b"\xff" * 20)


async def leaves_unread(app: Application, stream: trio.abc.Stream) -> None:
    await stream.send_all(handshake_bytes("/raises_once_open"))
    await app.called.wait()


async def closes_and_leaves(app: Application, stream: trio.abc.Stream) -> None:
    opened = await open_handshake(stream, handshake_bytes("/echoes"))
    await opened.send(CloseConnection(code=1000))


def make_reset(stream: trio.abc.Stream) -> None:
    """Let its close be a reset, if it is a socket's."""
    if isinstance(stream, trio.SocketStream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


KINDS: dict[str, Visit] = {
    "the application raises": gets(500, handshake_bytes("/raises")),
    "a child task's sibling raises": gets(500, handshake_bytes("/raises_a_group")),
    "the application exits": gets(500, handshake_bytes("/exits")),
    "the application returns": gets(500, handshake_bytes("/returns")),
    "the application sends what is wrong": gets(500, handshake_bytes("/sends_what_is_wrong")),
    "the application accepts what is wrong": gets(500, handshake_bytes("/accepts_what_is_wrong")),
    "the application refuses": gets(403, handshake_bytes("/refuses")),
    "the application responds": gets(401, handshake_bytes("/responds")),
    "the application breaks off": is_cut,
    "the application raises once open": leaves_at_close,
    "wrong version": gets(426, handshake_bytes("/echoes", (b"sec-websocket-version", b"8"))),
    "missing version": gets(400, handshake_bytes("/echoes", without=(b"sec-websocket-version",))),
    "missing key": gets(400, handshake_bytes("/echoes", without=(b"sec-websocket-key",))),
    "bad key": gets(400, handshake_bytes("/echoes", (b"sec-websocket-key", b"bad"))),
    "wrong method": gets(405, handshake_bytes("/echoes", method="POST")),
    "HTTP/1.0": gets(400, handshake_bytes("/echoes", version="1.0")),
    "the client leaves before accept": leaves_before_accept,
    "the client resets before accept": resets_before_accept,
    "the client leaves with its handshake": leaves_with_its_handshake,
    "the client leaves before its head ends": leaves_before_its_head_ends,
    "the client half-closes before accept": half_closes_before_accept,
    "the client sends before accept": sends_before_accept,
    "the client leaves after accept": leaves_after_accept,
    "the client resets after accept": resets_after_accept,
    "the client leaves an application that never asks": leaves_one_that_never_asks,
    "the client leaves in a frame": leaves_in_a_frame,
    "the client leaves in a message": leaves_in_a_message,
    "the client sends no frame": sends_no_frame,
    "the client resets at close": resets_at_close,
    "the client half-closes at close": half_closes_at_close,
    "the client sends no frame at close": sends_no_frame_at_close,
    "the client leaves all unread": leaves_unread,
    "the client closes and leaves": closes_and_leaves,
}


async def visit_once(server: RunningServer, app: Application, visit: Visit) -> None:
    app.called = trio.Event()
    client = await server.connect()
    try:
        await visit(app, client.stream)
    finally:
        await trio.aclose_forcefully(client.stream)


@pytest.mark.parametrize("name", KINDS)
async def test_a_failure_leaves_nothing(serve_on, name):
    """After a WebSocket that failed, the running server's tasks, descriptors and figures are back where they began,
    and it serves the next."""
    app = Application()
    with trio.fail_after(5):
        async with serve_on(websocket_app(app)) as server:
            async with comes_back(server):
                await visit_once(server, app, KINDS[name])
            async with comes_back(server):
                opened = await open_handshake((await server.connect()).stream, handshake_bytes("/echoes"))
                await opened.send_text("x")
                assert await opened.receive() == "x"
                assert await opened.close() == (1000, "")
                await opened.aclose()


async def test_a_late_application_leaves_nothing(serve_on):
    """The same where the application did not decide in time."""
    app = Application()
    with trio.fail_after(5):
        async with serve_on(websocket_app(app), timeout_ws_handshake=0.05) as server, comes_back(server):
            await visit_once(server, app, gets(504, handshake_bytes("/waits")))


async def test_accept_after_the_client_left_raises_an_oserror(serve_on):
    """An application that accepts after its client left gets ClientDisconnected, which is an OSError, and no error is
    logged."""
    app = Application()
    with trio.fail_after(5):
        async with serve_on(websocket_app(app)) as server:
            async with comes_back(server):
                await visit_once(server, app, leaves_before_accept)
            assert [type(error) for error in app.raised] == [ClientDisconnected]
            assert server.errors == []


async def test_an_application_may_answer_for_a_client_that_left(serve_on):
    """Refusing or raising after the client left makes no other noise than the application's own error."""
    app = Application()

    async def refuses_late(receive, send):
        assert (await receive())["type"] == "websocket.disconnect"
        with contextlib.suppress(OSError):
            await send(CLOSE)

    async def raises_late(receive, send):
        assert (await receive())["type"] == "websocket.disconnect"
        raise ValueError("mine")

    with trio.fail_after(5):
        async with serve_on(websocket_app(app)) as server:
            for app.waits in (refuses_late, raises_late):
                async with comes_back(server):
                    await visit_once(server, app, resets_before_accept)
            assert [str(error) for error in server.errors] == ["mine"]


async def test_returning_after_the_client_left_is_fine(serve_on):
    """An application that returns undecided because its client left has made no mistake."""
    app = Application()

    async def returns(receive, send):
        assert (await receive())["type"] == "websocket.disconnect"

    app.waits = returns
    with trio.fail_after(5):
        async with serve_on(websocket_app(app)) as server:
            async with comes_back(server):
                await visit_once(server, app, leaves_before_accept)
            assert server.errors == []


# Shutdown


STATES = ["CONNECTING", "OPEN", "CLOSING"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", [DrainKind.STOP, DrainKind.RETIRE])
async def test_a_shutdown_leaves_nothing(serve_on, state, kind):
    """A drain while a WebSocket is CONNECTING, OPEN or CLOSING ends, and leaves no task, descriptor or figure; the
    client is told as its state demands."""
    called = trio.Event()

    async def handler(scope, receive, send):
        await receive()
        if state != "CONNECTING":
            await send(ACCEPT)
        if state == "CLOSING":
            await send(CLOSE)
        called.set()
        assert (await receive())["type"] == "websocket.disconnect"

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            client = await server.connect()
            await client.raw(handshake_bytes())
            await called.wait()
            server.server._context.drain.begin(kind)
            opened = await read_handshake(client.stream)
            if state == "CONNECTING":
                assert opened.status == 503
            else:
                assert (await opened.receive_close())[0] == (1012 if state == "OPEN" else 1000)
            assert await client.receive_rest() == b""
            while Phase.STOPPED not in server.recorder.phases:
                await trio.sleep(0.005)
            assert Phase.CANCELLING not in server.recorder.phases
            assert figures(server)[:3] == (0, 0, 0)
            assert server.errors == []
            await client.aclose()


@pytest.mark.parametrize("state", STATES)
async def test_a_shutdown_without_grace_leaves_nothing(serve_on, state):
    """The same when all is cancelled at once, with a client that says nothing more."""
    called = trio.Event()

    async def handler(scope, receive, send):
        await receive()
        if state != "CONNECTING":
            await send(ACCEPT)
        if state == "CLOSING":
            await send(CLOSE)
        called.set()
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            client = await server.connect()
            await client.raw(handshake_bytes())
            await called.wait()
            server.server.shutdown(grace=0)
            while Phase.STOPPED not in server.recorder.phases:
                await trio.sleep(0.005)
            assert figures(server)[:3] == (0, 0, 0)
            received = await client.receive_rest()
            assert received.count(b"HTTP/1.1 ") == 1
            assert received.startswith(b"HTTP/1.1 503 " if state == "CONNECTING" else b"HTTP/1.1 101 ")
            await client.aclose()


@pytest.mark.parametrize("kind", ["receive", "send"])
@pytest.mark.parametrize("listens", [True, False], ids=["told", "busy"])
async def test_a_clean_up_after_cancellation_knows_that_it_is_over(autojump_clock, kind, listens):
    """An application that cleans up behind a shield, when all is cancelled, is told that its WebSocket is closed: it
    waits for nothing that cannot come."""
    called, ended = trio.Event(), []

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        called.set()
        try:
            await (receive() if listens else trio.sleep_forever())
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 100):
                if kind == "receive":
                    ended.append((await receive())["code"])
                else:
                    with pytest.raises(OSError, match="closed"):
                        await send({"type": "websocket.send", "text": "x"})
                    ended.append(1012)

    async with memory(handler) as server:
        async with websocket(server) as opened:
            await called.wait()
            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
            server.server.shutdown(grace=0)
            await opened.wait_eof()
            assert trio.current_time() - start <= 1
        assert ended == [1012]


async def stop_at_once(server: RunningServer) -> None:
    server.server.shutdown(grace=0)


async def stop_and_cancel_soon(server: RunningServer) -> None:
    server.server.shutdown()
    await trio.testing.wait_all_tasks_blocked()
    server.server.shutdown(grace=0)


async def cancel(server: RunningServer) -> None:
    server.cancel()


@pytest.mark.parametrize("how", [stop_at_once, stop_and_cancel_soon, cancel])
@pytest.mark.parametrize("listens", [True, False], ids=["told", "busy"])
async def test_a_websocket_that_is_cancelled_says_goodbye(serve_on, how, listens):
    """However short the notice: an open WebSocket's client reads a close with 1012 before the end, and one only."""

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        await (receive() if listens else trio.sleep_forever())
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            client = await server.connect()
            opened = await open_handshake(client.stream)
            await trio.testing.wait_all_tasks_blocked()
            await how(server)
            # One of the ways cancels this task, too.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3):
                received = await client.receive_rest()
                await opened.aclose()
    assert (received[:1], received[2:4]) == (b"\x88", (1012).to_bytes(2, "big"))
    assert len(received) == 2 + received[1]


# A client that does not answer a close


class TimedRecorder(Recorder):
    """Knows when the server stopped, on Trio's clock."""

    stopped: float | None = None

    def phase_changed(self, phase: Phase) -> None:
        super().phase_changed(phase)
        if phase is Phase.STOPPED:
            self.stopped = trio.current_time()


async def closes(scope, receive, send):
    await send(ACCEPT)
    await send({**CLOSE, "code": 3000})


async def raises(scope, receive, send):
    await send(ACCEPT)
    raise ValueError("no")


async def returns(scope, receive, send):
    await send(ACCEPT)


@pytest.mark.parametrize(("handler", "code"), [(closes, 3000), (raises, 1011), (returns, 1000)])
async def test_a_client_that_is_silent_at_close_is_cut_after_ten_seconds(autojump_clock, handler, code):
    """Ten seconds after the server's close frame a client that has not answered is cut, and nothing is left of it."""
    async with memory(handler) as server, comes_back(server), websocket(server) as opened:
        assert (await opened.receive_close(answers=False))[0] == code
        start = trio.current_time()
        await opened.wait_eof()
        assert trio.current_time() - start == 10


async def test_a_client_that_talks_on_after_close_is_cut_after_ten_seconds(autojump_clock):
    """Messages and pings in place of an answer to the close do not lengthen its time."""
    async with memory(closes) as server, websocket(server) as opened:
        await opened.receive_close(answers=False)
        start = trio.current_time()

        async def talk():
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    await opened.raw(frame(1, b"and another thing") + frame(9, b""))
                    await trio.sleep(1)

        server.nursery.start_soon(talk)
        await opened.wait_eof()
        assert 10 <= trio.current_time() - start <= 12.5  # what it sends is thrown away for two seconds more


@pytest.mark.parametrize("handler", [closes, raises, returns])
async def test_a_client_that_takes_nothing_at_close_is_cut_after_ten_seconds(autojump_clock, handler):
    """A client that does not even take the close frame has ten seconds, too, and holds up the application no longer."""
    stream, server_side = trio.testing.lockstep_stream_pair()
    ends = []

    async def timed(scope, receive, send):
        try:
            await handler(scope, receive, send)
        finally:
            ends.append(trio.current_time())

    async with memory(timed) as server, comes_back(server):
        server.listener._send.send_nowait(server_side)
        await open_handshake(stream)
        start = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(60):
            while server.server.statistics().connections:
                await trio.sleep(0.25)
        assert trio.current_time() - start == pytest.approx(10, abs=0.5)
        assert ends[0] - start <= 10
        await trio.aclose_forcefully(stream)


async def test_after_ten_seconds_the_application_knows(autojump_clock):
    """The application waits for the end in receive(): it is told 1006 when the client has been given up."""
    told = []

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        await send(CLOSE)
        message = await receive()
        told.append((message["code"], trio.current_time()))

    async with memory(handler) as server, websocket(server) as opened:
        start = trio.current_time()
        await opened.wait_eof()
    assert told == [(1006, start + 10)]


@pytest.mark.parametrize("begins", ["before", "after"])
async def test_a_silent_client_is_never_waited_for_beyond_the_graceful_deadline(autojump_clock, begins):
    """Whether the close is the application's or the shutdown's: at the graceful deadline a silent client is cut."""
    recorder = TimedRecorder()
    closed = trio.Event()

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        if begins == "before":
            await send(CLOSE)
            closed.set()
        await receive()

    async with memory(handler, recorder=recorder, timeout_graceful_shutdown=4) as server, websocket(server) as opened:
        if begins == "before":
            await closed.wait()
        start = trio.current_time()
        server.server.shutdown()
        await opened.wait_eof()
        assert trio.current_time() - start == 4
        await trio.sleep(20)
        assert recorder.stopped == start + 4
        assert server.errors == []


async def test_a_silent_client_has_ten_seconds_of_a_longer_grace(autojump_clock):
    """With a longer grace a client that does not answer the shutdown's close is cut after its ten seconds."""
    recorder = TimedRecorder()

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        assert (await receive())["code"] == 1012

    async with memory(handler, recorder=recorder, timeout_graceful_shutdown=30) as server, websocket(server) as opened:
        start = trio.current_time()
        server.server.shutdown()
        assert (await opened.receive_close(answers=False))[0] == 1012
        assert trio.current_time() == start
        await opened.wait_eof()
        assert trio.current_time() - start == 10
        await trio.sleep(20)
        assert recorder.stopped == start + 10


# The grace after the client left


async def leave(opened: WebSocketClient) -> None:
    await opened.aclose()


async def close_and_leave(opened: WebSocketClient) -> None:
    await opened.close()
    await opened.aclose()


async def close_and_stay(opened: WebSocketClient) -> None:
    await opened.close()


async def break_the_protocol(opened: WebSocketClient) -> None:
    await opened.raw(b"\xff" * 20)


@pytest.mark.parametrize(("grace", "expected"), [(3, 8), (0, 5), (7, 12), (None, 1000)])
@pytest.mark.parametrize("how", [leave, close_and_leave, close_and_stay, break_the_protocol])
@pytest.mark.parametrize("listens", [True, False], ids=["told", "busy"])
async def test_an_application_whose_client_left_is_cancelled_after_the_grace(
    autojump_clock, grace, expected, how, listens
):
    """An application that goes on after its client ended the WebSocket is cancelled timeout_disconnect_grace seconds
    later; None: never."""
    ends = []

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        start = trio.current_time()
        try:
            if listens:
                assert (await receive())["type"] == "websocket.disconnect"
            await trio.sleep_until(start + 1000)
        finally:
            ends.append(trio.current_time() - start)

    # Without pings, which a client of this test would have to answer.
    async with memory(handler, timeout_disconnect_grace=grace, ws_ping_interval=None) as server:
        async with comes_back(server), websocket(server) as opened:
            await trio.sleep(5)
            await how(opened)
            await trio.sleep(1100)
        assert ends == [expected]
        assert server.errors == []


async def test_an_application_that_closed_itself_is_not_cancelled(autojump_clock):
    """An application that closed its WebSocket may go on for as long as it likes, also once the client has left."""
    ends = []

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        start = trio.current_time()
        await send(CLOSE)
        try:
            await trio.sleep(100)
        finally:
            ends.append(trio.current_time() - start)

    async with memory(handler) as server:
        async with comes_back(server):
            async with websocket(server) as opened:
                assert await opened.receive_close() == (1000, "")
                await opened.wait_eof()
                assert server.server.statistics().requests == 1
            await trio.sleep(200)
        assert ends == [100]
        assert server.errors == []


async def test_the_grace_of_a_handshake_whose_client_left(autojump_clock):
    """An application that is undecided when its client leaves is cancelled after the grace, too, and nobody is
    answered."""
    ends = []

    async def handler(scope, receive, send):
        start = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time() - start)

    async with memory(handler, timeout_disconnect_grace=2) as server:
        async with comes_back(server):
            client = await server.connect()
            await client.raw(handshake_bytes())
            await trio.sleep(5)
            await client.aclose()
            await trio.sleep(50)
        assert ends == [7]
        assert [one.status for one in server.records] == [None]
        assert server.errors == []


async def test_without_a_grace_a_lost_handshake_ends_at_its_time(autojump_clock):
    """With timeout_disconnect_grace=None an undecided application is cancelled at timeout_ws_handshake."""
    ends = []

    async def handler(scope, receive, send):
        start = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time() - start)

    async with memory(handler, timeout_disconnect_grace=None) as server:
        async with comes_back(server):
            client = await server.connect()
            await client.raw(handshake_bytes())
            await trio.sleep(5)
            await client.aclose()
            await trio.sleep(50)
        assert ends == [10]
        assert server.errors == []


async def test_send_after_the_client_left_raises_an_oserror(autojump_clock):
    """Sending and closing raise ClientDisconnected, an OSError, once the client has ended the WebSocket."""
    raised = []

    async def handler(scope, receive, send):
        await receive()
        await send(ACCEPT)
        assert (await receive())["type"] == "websocket.disconnect"
        for message in ({"type": "websocket.send", "text": "x"}, CLOSE, CLOSE):
            with pytest.raises(ClientDisconnected) as caught:
                await send(message)
            raised.append(caught.value)

    async with memory(handler) as server:
        async with comes_back(server), websocket(server) as opened:
            assert await opened.close() == (1000, "")
        assert server.errors == []
    assert len(raised) == 3


@pytest.mark.parametrize(
    "message", [{"type": "websocket.send", "text": "x"}, CLOSE, ACCEPT], ids=lambda one: one["type"]
)
async def test_send_after_its_own_close_is_wrong(autojump_clock, message):
    """An application that has closed may send nothing more: MessageError, and the close it sent stands."""

    async def handler(scope, receive, send):
        await send(ACCEPT)
        await send({**CLOSE, "code": 3000})
        with pytest.raises(MessageError, match="expected nothing more"):
            await send(message)

    async with memory(handler) as server:
        async with comes_back(server), websocket(server) as opened:
            assert await opened.receive_close() == (3000, "")
        assert server.errors == []


# Cancelled at any point


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the k-th step that any task makes from now on."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


@dataclass
class Life:
    """A whole session: what the application does in it, what the client sends in answer to what it is told."""

    lead: Callable[[Receive, Send], Awaitable[None]]
    request: bytes
    answers: list[tuple[bytes, bytes]]
    """Once the first has come the second is sent."""
    received: tuple[bytes, ...]
    """Frames or body, if it is not cancelled: one of these."""


async def echo_all(receive: Receive, send: Send) -> None:
    await receive()
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    assert message["code"] == 1000


async def close_first(receive: Receive, send: Send) -> None:
    await send(ACCEPT)
    await send({"type": "websocket.send", "text": "hello"})
    await send(CLOSE)
    assert (await receive())["type"] == "websocket.connect"
    assert (await receive())["type"] == "websocket.disconnect"


async def deny(receive: Receive, send: Send) -> None:
    await Application().responds(receive, send)


NORMAL_CLOSE = frame(8, (1000).to_bytes(2, "big"))
LIVES = {
    "the client closes": Life(
        echo_all,
        handshake_bytes(),
        [(b"\r\n\r\n", frame(1, b"hello") + frame(9, b"ping")), (b"hello", b""), (b"ping", NORMAL_CLOSE)],
        (b"\x81\x05hello\x8a\x04ping\x88\x02\x03\xe8", b"\x8a\x04ping\x81\x05hello\x88\x02\x03\xe8"),
    ),
    "the application closes": Life(
        close_first,
        handshake_bytes(),
        [(b"\x88\x02\x03\xe8", NORMAL_CLOSE)],
        (b"\x81\x05hello\x88\x02\x03\xe8",),
    ),
    "the application denies": Life(
        deny,
        handshake_bytes("/", (b"connection", b"Upgrade, close")),
        [],
        (b"4\r\nnot \r\n3\r\nyou\r\n0\r\n\r\n",),
    ),
}


async def converse(life: Life, stream: trio.abc.Stream) -> bytes:
    """The client's side of the session, as far as it comes; returns all that it was told."""
    received = b""

    async def read_until(expected: bytes) -> None:
        nonlocal received
        while expected not in received and (data := await stream.receive_some(65536)):
            received += data

    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(life.request)
        for told, answer in life.answers:
            await read_until(told)
            await stream.send_all(answer)
        await read_until(b"never said, so up to the end")
    return received


async def live_once(
    life: Life, step: int, pair: Callable[[], Awaitable[tuple[trio.abc.Stream, trio.abc.Stream]]]
) -> bool:
    """Serve one WebSocket, cancelled before this step. Whether it was reached before the end of the session."""
    events = []

    async def handler(scope, receive, send):
        events.append("begun")
        try:
            await life.lead(receive, send)
            events.append("fine")
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            events.append("ended")

    scope = trio.CancelScope()

    async def serve(stream):
        with scope:
            await serve_stream(websocket_app(handler), stream)

    tasks, descriptors = trio.lowlevel.current_statistics().tasks_living, open_descriptors()
    near, far = await pair()
    instrument = CancelAtStep(scope, step)
    async with trio.open_nursery(strict_exception_groups=True) as nursery:
        trio.lowlevel.add_instrument(instrument)
        nursery.start_soon(serve, near)
        received = await converse(life, far)
    trio.lowlevel.remove_instrument(instrument)
    await trio.aclose_forcefully(far)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert open_descriptors() == descriptors
    reached = instrument.left <= 0
    assert events.count("begun") == events.count("ended") <= 1
    assert received.count(b"HTTP/1.1 ") <= 1
    if not reached:
        assert events == ["begun", "fine", "ended"]
        _, _, rest = received.partition(b"\r\n\r\n")
        assert rest in life.received
    return reached


@pytest.mark.parametrize("name", LIVES)
async def test_cancel_at_every_step(autojump_clock, name):
    """Whenever a session is cancelled, from its handshake to its end, its application ends, its client sees the end,
    and nothing is left."""

    async def pair():
        return trio.testing.memory_stream_pair()

    step = 1
    with trio.fail_after(1000), nothing_left():
        while await live_once(LIVES[name], step, pair):
            step += 1
    assert step > 20


@pytest.mark.parametrize("name", LIVES)
async def test_cancel_at_every_step_with_sockets(name):
    """The same over TCP."""
    reached, step = True, 0
    with trio.fail_after(10), nothing_left():
        # Which steps there are depends a little on the kernel here.
        while reached and step < 200:
            step += 1
            reached = await live_once(LIVES[name], step, tcp_streams)
    assert not reached
    assert step > 10


# Again and again


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(server: RunningServer) -> dict[str, int]:
    """How many objects there are of each class of the server, its parsers and its tasks."""
    # The clock drops the timers of closed connections when they are many; here they shall not count.
    clock = server.server._context.clock
    for _ in range(10 * COMPACT_AT):
        clock.note_stale()
    gc.collect()
    counts: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)
        if kind in (CoroutineType, trio.lowlevel.Task, socket.socket) or str(kind.__module__).startswith(OURS):
            counts[kind.__qualname__] += 1
    # Heads that are kept for those that come again have bounds of their own, which other tests reach: a race that one
    # client in a thousand wins ends in a response that no other has had.
    for kept in (FramedHead, Head):
        del counts[kept.__qualname__]
    return counts


OURS = ("trioserve.", "h11.", "wsproto.")


@pytest.mark.timeout(60)  # on a machine that has much else to do
@pytest.mark.skipif(not LINUX, reason="reads /proc/self/statm")
async def test_two_thousand_failures_leave_nothing():
    """After 2,000 failed WebSockets of every kind the running server holds no more objects, memory, tasks and
    descriptors than before."""
    app, kinds = Application(), list(KINDS.values())
    logger = logging.getLogger("trioserve.error")
    level = logger.level
    # pytest keeps every record, and with it the error and all its frames.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        # With a Date the cache of response heads would grow, up to its bound, with every second this takes.
        async with socket_server(websocket_app(app), recorder=Silent(), date_header=False) as server:

            async def fail(count: int) -> None:
                async with comes_back(server):
                    for number in range(count):
                        with trio.fail_after(5):
                            await visit_once(server, app, kinds[number % len(kinds)])
                app.raised.clear()
                # Trio keeps what it last woke this task with: the Cancelled of a client's close, and so its socket.
                await trio.lowlevel.checkpoint()

            await fail(1500)
            objects, memory = held(server), resident()
            await fail(2000)
            objects_after, memory_after = held(server), resident()
    finally:
        logger.setLevel(level)
    more = {name: count - objects[name] for name, count in objects_after.items() if count > objects[name]}
    assert more == {}
    # The clock, Trio's own and the allocator keep some hundred closed connections' memory for a while, before and after
    # the count, and more of it the longer it runs, up to a bound that the first 1,500 reach. 2,000 tasks, or the frames
    # of 2,000 errors, would be more than twice as much.
    assert memory_after - memory < 4 * 1024 * 1024


class Silent(Recorder):
    """Keeps nothing."""

    def exchange_ended(self, record: ExchangeRecord) -> None:
        pass

    def websocket_closed(self, record: WebSocketRecord) -> None:
        pass

    def application_failed(self, error: BaseException, request: Request | None) -> None:
        pass
