"""Server.drop_connections: connections of every kind, lost in the middle of whatever they do, as by a network."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed

from trioserve.errors import ClientDisconnected
from trioserve.testing import TrioServer, memory_server, open_server
from trioserve.transport import FilePiece

from .support import LINUX, Client, http_app, nothing_left, read_body, respond, send_text
from .test_trio_server import echo, pour, wait_for_ever, websocket_app
from .test_trio_server import hello as answer_hello
from .transports import (
    DEADLINE,
    STALL,
    MakeSide,
    socket_over_tcp,
    socket_over_unix,
    stream_over_memory,
    stream_over_tcp,
    stream_over_tls,
    tls_over_memory,
    tls_over_socket,
    transport_over,
    until,
)

pytestmark = pytest.mark.timeout(30)

KINDS = ("socket", "tls", "unix", "memory")
ON_EACH_KIND = pytest.mark.parametrize("kind", KINDS)
RESETS = ("socket", "tls")
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}


@asynccontextmanager
async def serving_on(kind: str, app, **options) -> AsyncIterator[TrioServer]:
    """A server on this kind of connection, with a deadline; nothing is left of it."""
    with trio.fail_after(DEADLINE), nothing_left(), tempfile.TemporaryDirectory() as folder:
        if kind == "memory":
            manager = memory_server(app, **options)
        elif kind == "unix":
            manager = open_server(app, uds=str(Path(folder) / "s"), **options)
        else:
            manager = open_server(app, tls=kind == "tls", **options)
        async with manager as server:
            yield server


async def read_end(stream: trio.abc.ReceiveStream) -> tuple[bytes, bool]:
    """All up to the end, and whether that was a reset."""
    received = b""
    try:
        while data := await stream.receive_some(65536):
            received += data
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        assert isinstance(cause, OSError)
        # Over TLS the bare end of what carries it is as clear as a reset.
        assert cause.errno == errno.ECONNRESET or isinstance(cause, ssl.SSLEOFError)
        return received, True
    return received, False


async def ask(server: TrioServer, data: bytes = REQUEST) -> trio.abc.Stream:
    """A client that has sent this, whose handler is running."""
    stream = await server.connect()
    before = server.active
    await stream.send_all(data)
    await until(lambda: server.active > before)
    return stream


async def drop_and_see(server: TrioServer, kind: str, *streams: trio.abc.Stream) -> list[bytes]:
    """Drop; all these clients see the end at once, on TCP a reset. Returns what they still received."""
    await server.drop_connections()
    start = trio.current_time()
    ends = [await read_end(stream) for stream in streams]
    assert trio.current_time() - start < 1
    assert [was_reset for _, was_reset in ends] == [kind in RESETS] * len(streams)
    return [received for received, _ in ends]


async def is_served(server: TrioServer) -> bool:
    async with await server.connect() as stream:
        return (await Client(stream).get("/after")).status == 200


def by_path(handler):
    """An application whose "/after" tells that new connections are served."""

    async def run(scope, receive, send):
        await (answer_hello if scope["path"] == "/after" else handler)(scope, receive, send)

    return http_app(run)


# Connections without a request


@ON_EACH_KIND
async def test_idle_connections_are_lost(kind):
    """A connection that is silent, in half a head or between two requests is lost, and new ones are served."""
    async with serving_on(kind, respond()) as server:
        fresh, half, used = [await server.connect() for _ in range(3)]
        await half.send_all(b"GET / HTT")
        assert (await Client(used).get()).status == 200
        await until(lambda: server.server.statistics().connections == 3)
        await trio.testing.wait_all_tasks_blocked()
        assert await drop_and_see(server, kind, fresh, half, used) == [b"", b"", b""]
        await until(lambda: server.server.statistics().connections == 0)
        assert await is_served(server)
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["ok", "ok"]


@ON_EACH_KIND
async def test_it_may_be_repeated(kind):
    """Without a connection nothing happens; each later connection can be lost again, a lost one twice."""
    async with serving_on(kind, respond()) as server:
        await server.drop_connections()
        for _ in range(3):
            stream = await server.connect()
            await Client(stream).get()
            await server.drop_connections()
            await server.drop_connections()
            assert await read_end(stream) == (b"", kind in RESETS)
        assert await is_served(server)


@ON_EACH_KIND
async def test_a_connection_of_this_moment_is_lost(kind):
    """For its client a connection is open once connect() has returned: then drop_connections() ends it."""
    async with serving_on(kind, respond()) as server:
        stream = await server.connect()
        await server.drop_connections()
        with trio.move_on_after(0.5) as scope:
            await read_end(stream)
        assert not scope.cancelled_caught


async def test_a_handshake_in_progress(caplog):
    """A connection that does not speak HTTP yet is dropped, too, and said to have failed its handshake."""
    caplog.set_level("INFO", "trioserve")
    async with serving_on("tls", respond()) as server:
        bare = await trio.open_tcp_stream(server.host, server.port)
        await until(lambda: server.server.statistics().connections == 1)
        await server.drop_connections()
        with pytest.raises(trio.BrokenResourceError):
            await bare.receive_some()
        await bare.aclose()
        assert (await server.request()).status == 200
        (failure,) = server.server.statistics().handshake_failures
        assert failure[1] == "the connection was dropped"
        assert not server.errors
    assert "failed: the connection was dropped" in caplog.text


# In the middle of an exchange


@ON_EACH_KIND
@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
async def test_in_the_middle_of_a_request_body(kind, framing):
    """The handler gets what has come, and then http.disconnect; its send raises."""
    heard = []

    async def handler(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            heard.append(message["body"])
        heard.append(message["type"])
        with pytest.raises(OSError, match="client"):
            await send_text(send, "too late")
        heard.append("refused")

    async with serving_on(kind, by_path(handler)) as server:
        stream = await ask(server, b"POST / HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n2\r\nab\r\n" % framing)
        await until(lambda: bool(heard))
        await drop_and_see(server, kind, stream)
        await server.wait_idle()
        assert heard[1:] == ["http.disconnect", "refused"]
        assert b"ab" in heard[0]
        assert await is_served(server)
        assert [one.outcome for one in server.requests] == ["client left", "ok"]


@ON_EACH_KIND
async def test_while_the_handler_works(kind):
    """A handler that waits for its client to leave hears of it at once, before any response."""
    heard = []

    async def handler(scope, receive, send):
        await read_body(receive)
        heard.append((await receive())["type"])

    async with serving_on(kind, by_path(handler)) as server:
        streams = [await ask(server) for _ in range(3)]
        assert await drop_and_see(server, kind, *streams) == [b"", b"", b""]
        await server.wait_idle(1)
        assert heard == ["http.disconnect"] * 3
        assert [(one.outcome, one.status) for one in server.requests] == [("client left", None)] * 3
        assert await is_served(server)


@ON_EACH_KIND
async def test_a_handler_that_does_not_care(kind):
    """A handler that does not look is cancelled after timeout_disconnect_grace."""
    async with serving_on(kind, by_path(wait_for_ever), timeout_disconnect_grace=0) as server:
        stream = await ask(server)
        await drop_and_see(server, kind, stream)
        await server.wait_idle(1)
        assert [one.outcome for one in server.requests] == ["client left"]


@ON_EACH_KIND
async def test_in_the_middle_of_a_response(kind):
    """The next send of the handler raises an OSError; the client gets no last chunk."""
    raised = []
    proceed = trio.Event()

    async def handler(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await proceed.wait()
        try:
            await send({"type": "http.response.body", "body": b"second"})
        except OSError as error:
            raised.append(error)
            raise

    async with serving_on(kind, by_path(handler)) as server:
        stream = await ask(server)
        received = b""
        while b"first" not in received:
            received += await stream.receive_some()
        assert await drop_and_see(server, kind, stream) in ([b""], [b"\r\n"])
        proceed.set()
        await server.wait_idle()
        assert [type(error) for error in raised] == [ClientDisconnected]
        assert [(one.outcome, one.status) for one in server.requests] == [("client left", 200)]
        assert await is_served(server)


@ON_EACH_KIND
@pytest.mark.parametrize("who", ["stall", "slow"])
async def test_a_send_that_waits_for_its_client(kind, who):
    """A handler whose send waits for a client that takes nothing, or little, is told at once; this is no stall."""
    async with serving_on(kind, http_app(pour)) as server:
        client = server.stall("/") if who == "stall" else server.slow("/", 1000)
        async with client:
            await trio.testing.wait_all_tasks_blocked(0.05)
            await server.drop_connections()
            await server.wait_idle(1)
            assert [one.outcome for one in server.requests] == ["client left"]


@ON_EACH_KIND
async def test_several_tasks_that_send(kind):
    """Every task of a handler that waits in send is told."""
    raised = []

    async def handler(scope, receive, send):
        async def run() -> None:
            try:
                while True:
                    await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
            except OSError:
                raised.append(True)

        await send(START)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)

    async with serving_on(kind, http_app(handler)) as server, server.stall("/"):
        await trio.testing.wait_all_tasks_blocked(0.05)
        await server.drop_connections()
        await server.wait_idle(1)
        assert raised == [True] * 3


@ON_EACH_KIND
@pytest.mark.parametrize("how", ["path", "zerocopy"])
@pytest.mark.parametrize("is_stalled", [True, False])
async def test_in_the_middle_of_a_file(kind, how, is_stalled, tmp_path):
    """A handler that sends a file is told at once, whether its client stalls or reads."""
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 1_000_000_000)
    raised = []

    async def handler(scope, receive, send):
        await send(START)
        try:
            if how == "zerocopy" and "http.response.zerocopysend" in scope["extensions"]:
                with file.open("rb") as opened:
                    await send({"type": "http.response.zerocopysend", "file": opened})
            else:
                await send({"type": "http.response.pathsend", "path": str(file)})
        except OSError as error:
            raised.append(type(error))
            raise

    async with serving_on(kind, by_path(handler)) as server:
        async with server.stall("/") if is_stalled else server.slow("/", 100_000_000) as client:
            if is_stalled:
                await trio.testing.wait_all_tasks_blocked(0.05)
            else:
                await until(lambda: len(client.received) > 1_000_000)
            await server.drop_connections()
            await server.wait_idle(3)
        assert raised == [ClientDisconnected]
        assert [one.outcome for one in server.requests] == ["client left"]
        assert await is_served(server)


@ON_EACH_KIND
async def test_a_background_task_after_the_response_runs_on(kind):
    """Once the response is complete nothing is cancelled for the client's sake."""
    proceed = trio.Event()
    ended = []

    async def handler(scope, receive, send):
        await send_text(send, "done")
        await proceed.wait()
        ended.append(True)

    async with serving_on(kind, http_app(handler), timeout_disconnect_grace=0) as server:
        stream = await server.connect()
        assert (await Client(stream).get()).body == b"done"
        await drop_and_see(server, kind, stream)
        assert server.active == 1
        proceed.set()
        await server.wait_idle()
        assert ended == [True]
        assert [one.outcome for one in server.requests] == ["ok"]


@ON_EACH_KIND
async def test_requests_that_wait_behind_the_one_that_runs(kind):
    """What the client has sent in advance is not handled any more."""
    paths = []

    async def handler(scope, receive, send):
        paths.append(scope["path"])
        await read_body(receive)
        await receive()

    async with serving_on(kind, http_app(handler)) as server:
        stream = await ask(server, REQUEST + REQUEST)
        await trio.testing.wait_all_tasks_blocked()
        await drop_and_see(server, kind, stream)
        await server.wait_idle()
        assert paths == ["/"]


@ON_EACH_KIND
async def test_a_handler_that_drops_its_own_connection(kind):
    """A handler may do it itself: it goes on, and learns from receive and send what it has done."""
    heard = []

    async def handler(scope, receive, send):
        await read_body(receive)
        await servers[0].drop_connections()
        heard.append((await receive())["type"])
        await send_text(send, "nobody reads this")

    async with serving_on(kind, by_path(handler)) as server:
        servers = [server.server]
        stream = await server.connect()
        await stream.send_all(REQUEST)
        assert await read_end(stream) == (b"", kind in RESETS)
        await server.wait_idle()
        assert heard == ["http.disconnect"]
        assert [one.outcome for one in server.requests] == ["client left"]
        assert await is_served(server)


@ON_EACH_KIND
async def test_while_the_server_stops(kind):
    """Requests that a stop waits for are lost, too, and the stop is over."""

    async def handler(scope, receive, send):
        await read_body(receive)
        await receive()

    async with serving_on(kind, http_app(handler), timeout_graceful_shutdown=60) as server:
        stream = await ask(server)
        server.server.shutdown()
        await trio.testing.wait_all_tasks_blocked()
        await drop_and_see(server, kind, stream)
        await until(lambda: server.witness.has_ended)


@ON_EACH_KIND
async def test_while_a_refusal_waits_to_be_read(kind):
    """A connection that lingers after an error, for its client to read that, is lost as well."""
    async with serving_on(kind, respond()) as server:
        stream = await server.connect()
        await stream.send_all(b"\x00\r\n\r\n")
        assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 400 ")
        await server.drop_connections()
        start = trio.current_time()
        await until(lambda: server.server.statistics().connections == 0)
        assert trio.current_time() - start < 1  # lingering takes two


async def test_only_the_connections_of_this_server():
    """Another server in the same loop keeps its own."""
    async with serving_on("socket", respond()) as one, open_server(respond()) as other:
        kept = Client(await other.connect())
        await kept.get()
        await one.drop_connections()
        assert (await kept.get()).status == 200
        await kept.aclose()


async def test_the_connections_of_all_listeners():
    """Connections are lost whatever address they came by."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s")
        async with serving_on("socket", respond(), bind=["127.0.0.1:0", f"unix:{path}"]) as server:
            tcp, unix = Client(await server.connect()), Client(await trio.open_unix_socket(path))
            for client in (tcp, unix):
                await client.get()
            await server.drop_connections()
            assert await read_end(tcp.stream) == (b"", True)
            assert await read_end(unix.stream) == (b"", False)
            await unix.aclose()


# WebSockets


@ON_EACH_KIND
async def test_an_open_websocket(kind):
    """Application and client both learn at once that it was lost: code 1006, and no close frame."""
    heard = []

    async def handler(scope, receive, send):
        await send({"type": "websocket.send", "text": "hi"})
        message = await receive()
        heard.append((message["type"], message["code"]))
        with pytest.raises(OSError, match=r"."):
            await send({"type": "websocket.send", "text": "too late"})
        heard.append("refused")

    async with serving_on(kind, websocket_app(handler)) as server:
        async with server.websocket() as socket:
            assert await socket.get_message() == "hi"
            await server.drop_connections()
            start = trio.current_time()
            with pytest.raises(ConnectionClosed) as caught:
                await socket.get_message()
            assert caught.value.reason.code == 1006
            assert trio.current_time() - start < 1
        await server.wait_idle(1)
        assert heard == [("websocket.disconnect", 1006), "refused"]
        assert [(one.code, one.outcome) for one in server.websockets] == [(1006, "client left")]


@ON_EACH_KIND
async def test_a_websocket_that_waits_in_send(kind):
    """A send that waits for a client that does not read raises at once."""
    raised = []

    async def handler(scope, receive, send):
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(65536)})
        except OSError as error:
            raised.append(error)
            raise

    async with serving_on(kind, websocket_app(handler)) as server:
        async with server.websocket("/", message_queue_size=0):
            # Over memory the application is never held up, as the streams hold everything; it fails at its next send.
            with trio.move_on_after(0.1):
                await trio.testing.wait_all_tasks_blocked(0.05)
            await server.drop_connections()
            await server.wait_idle(1)
        assert len(raised) == 1
        assert [one.code for one in server.websockets] == [1006]


@ON_EACH_KIND
async def test_a_websocket_can_be_opened_again(kind):
    """A client that has lost its WebSocket opens another."""
    async with serving_on(kind, websocket_app(echo)) as server:
        for _ in range(3):
            async with server.websocket() as socket:
                await socket.send_message("hi")
                assert await socket.get_message() == "hi"
                await server.drop_connections()
                with pytest.raises(ConnectionClosed):
                    await socket.get_message()
        await server.wait_idle()
        assert [one.code for one in server.websockets] == [1006] * 3


# The transports themselves

EPOLL = pytest.mark.skipif(not LINUX, reason="only Linux has epoll")
STREAMS = [stream_over_memory, stream_over_tcp, stream_over_tls]
SOCKETS = [pytest.param(socket_over_tcp, marks=EPOLL), pytest.param(socket_over_unix, marks=EPOLL)]
SECURED = [tls_over_memory, pytest.param(tls_over_socket, marks=EPOLL)]
ALL = pytest.mark.parametrize("make", [*STREAMS, *SOCKETS, *SECURED])


@ALL
async def test_lose_tells_both_sides(make: MakeSide) -> None:
    """Readers, watchers and the owner are told once that the peer has left; the peer sees an end or a reset."""
    told: list[str] = []

    async with make() as side:
        transport = side.transport
        transport.tell(left=lambda: told.append("left"), unread=lambda: None)

        async def read() -> None:
            assert await transport.receive(inf) == b""
            told.append("read")

        async def watch() -> None:
            await transport.wait_left()
            told.append("watched")

        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(watch)
                await trio.testing.wait_all_tasks_blocked()
                await transport.lose()
            await transport.lose()
            assert sorted(told) == ["left", "read", "watched"]
            assert (transport.has_left, transport.is_broken, transport.has_stalled) == (True, True, False)
            assert await transport.receive(inf) == b""
            await transport.wait_left()
            received, was_reset = await read_end(side.peer)
            assert (received, was_reset) == (b"", make not in (socket_over_unix, stream_over_memory))
            await transport.aclose()
            await transport.lose()


@ALL
async def test_lose_ends_what_sends(make: MakeSide) -> None:
    """Who sends, waits for room or flushes gets ClientDisconnected, and so does who begins to."""
    async with make() as side:
        transport = side.transport

        async def send() -> None:
            with pytest.raises(ClientDisconnected):
                while True:
                    await transport.send(bytes(1_000_000), STALL)

        async def flush() -> None:
            with pytest.raises(ClientDisconnected):
                await transport.flush()

        if make in (stream_over_memory, tls_over_memory):
            fill_up(side)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.testing.wait_all_tasks_blocked(0.02)
                nursery.start_soon(send)
                nursery.start_soon(flush)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await transport.lose()
            for late in (transport.send(b"late", STALL), transport.flush()):
                with pytest.raises(ClientDisconnected):
                    await late
            await transport.send_eof()


def fill_up(side) -> None:
    """A memory stream takes everything: let it be full."""
    transport, peer = side.transport, side.peer
    if isinstance(peer, trio.SSLStream):
        transport, peer = transport._below, peer.transport_stream
    peer.receive_stream.close()
    transport._stream.send_stream, peer.receive_stream = trio.testing.lockstep_stream_one_way_pair()


@ALL
async def test_lose_ends_what_sends_a_file(make: MakeSide, tmp_path: Path) -> None:
    """Files end in the middle, or before their turn has come, with ClientDisconnected, too."""
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1_000_000_000)
    file = os.open(path, os.O_RDONLY)
    try:
        async with make() as side:
            if make in (stream_over_memory, tls_over_memory):
                fill_up(side)

            async def send() -> None:
                piece = FilePiece(b"before", file, 0, 1_000_000_000, b"after")
                with pytest.raises(ClientDisconnected):
                    await side.transport.send_file(piece, STALL)

            with trio.fail_after(DEADLINE):
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(send)
                        await trio.testing.wait_all_tasks_blocked(0.02)
                    await side.transport.lose()
                await send()
    finally:
        os.close(file)


@ALL
async def test_what_had_come_before_is_still_received(make: MakeSide) -> None:
    """Streams give what they have read ahead; a socket of ours throws away what is still in the kernel."""
    async with make() as side:
        with trio.fail_after(DEADLINE):
            await side.peer.send_all(b"unread")
            await until(lambda: side.transport.has_unread)
            await side.transport.lose()
            received = [await side.transport.receive(inf), await side.transport.receive(inf)]
        assert received in ([b"unread", b""], [b"", b""])


async def test_a_unix_socket_as_a_stream_is_just_closed() -> None:
    """On a unix socket there is no reset: its peer reads the end."""
    server, peer = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair())
    async with transport_over(server, peer) as side:
        with trio.fail_after(DEADLINE):
            await side.transport.lose()
            assert await read_end(side.peer) == (b"", False)


async def test_lose_in_a_cancelled_scope() -> None:
    """A cancellation does not keep a connection from being lost."""
    for make in (stream_over_memory, stream_over_tcp, stream_over_tls):
        async with make() as side:
            with trio.CancelScope() as scope:
                scope.cancel()
                await side.transport.lose()
            with trio.fail_after(DEADLINE):
                assert (await read_end(side.peer))[0] == b""
