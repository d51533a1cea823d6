"""What a server says its connections are doing, to whoever asks where it hangs."""

from __future__ import annotations

import ssl

import pytest
import trio
import trio.testing
import trustme

from trioserve.config import Config
from trioserve.connection import Connections
from trioserve.context import ServerContext
from trioserve.exchange import Endpoint
from trioserve.types import AnyValue, Receive, Scope, Send
from trioserve.wire.http11 import HTTP11Connection

from .support import Recorder, RunningServer, http_app, memory_server, send_text, socket_server
from .websocket_client import open_handshake, websocket_app

pytestmark = pytest.mark.timeout(20)


async def work(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once, or after a while, or work on after the answer."""
    if scope["path"] == "/slow":
        await trio.sleep(100)
    await send_text(send, b"Hi")
    if scope["path"] == "/behind":
        await trio.sleep(float(scope["query_string"] or 100))


def told(server: RunningServer) -> list[str]:
    """What is told of the server's connections, in the order of the words."""
    activities = server.server.activities()
    root = trio.lowlevel.current_root_task()
    assert root is not None
    assert activities.keys() <= living(root)
    return sorted(activities.values())


def living(root: trio.lowlevel.Task) -> set[trio.lowlevel.Task]:
    found = {root}
    ahead = [root]
    while ahead:
        children = [task for nursery in ahead.pop().child_nurseries for task in nursery.child_tasks]
        found.update(children)
        ahead += children
    return found


async def test_from_the_first_byte_to_the_close(autojump_clock: trio.testing.MockClock) -> None:
    """A connection is idle, reads a head, serves a request, is idle again, and is told of no more once it is closed."""
    async with memory_server(http_app(work), timeout_request_head=10) as server:
        assert told(server) == []
        client = await server.connect()
        await trio.sleep(3)
        assert told(server) == ["- idle, 3.0 s"]
        await client.raw(b"GET /slow?a=b HTTP/1.1\r\n")
        await trio.sleep(2)
        assert told(server) == ["- reads a head, 5.0 s"]
        await client.raw(b"Host: a\r\n\r\n")
        await trio.sleep(99)
        assert told(server) == ["- GET /slow?a=b, 99.0 s"]
        await client.stream.receive_some()
        await trio.sleep(30)
        assert told(server) == ["- idle, 30.0 s"]
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert told(server) == []


async def test_work_after_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    """What goes on after the response says so, and the connection's next request is told beside it."""
    async with memory_server(http_app(work)) as server:
        client = await server.connect()
        assert (await client.get("/behind")).body == b"Hi"
        await trio.sleep(10)
        assert told(server) == ["- GET /behind (answered), 10.0 s"]
        await client.raw(b"POST /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(5)
        assert told(server) == ["- GET /behind (answered), 15.0 s", "- POST /slow, 5.0 s"]
        await client.aclose()


async def test_many_requests_with_background_tasks(autojump_clock: trio.testing.MockClock) -> None:
    """However often a connection has been taken over from a background task, what is left of that is nothing."""
    async with memory_server(http_app(work), timeout_keep_alive=1000) as server:
        client = await server.connect()
        most = 0
        for _ in range(1500):
            assert (await client.get("/behind")).body == b"Hi"  # each runs on for 100 s
            most = max(most, len(told(server)))
        assert most == 17
        await trio.sleep(101)
        assert told(server) == ["- idle, 1.0 s"]
        await client.aclose()


async def test_one_more_request_than_may_be_taken_over(autojump_clock: trio.testing.MockClock) -> None:
    """With 16 behind it the last request's handler holds up the next one, until one of them has ended."""
    async with memory_server(http_app(work), timeout_keep_alive=1000) as server:
        client = await server.connect()
        await client.get("/behind?10")
        for _ in range(16):
            await client.get("/behind")
        assert len(told(server)) == 17
        began = trio.current_time()
        assert (await client.get("/")).body == b"Hi"
        assert trio.current_time() == began + 10
        await client.aclose()


async def test_a_body_that_is_thrown_away(autojump_clock: trio.testing.MockClock) -> None:
    """While the rest of a body is thrown away, for the sake of the next request, the connection is not idle."""
    async with memory_server(http_app(work)) as server:
        client = await server.connect()
        await trio.sleep(5)
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        await client.stream.receive_some()
        await trio.sleep(0.5)
        assert told(server) == ["- closes"]
        await client.aclose()


async def test_a_refused_client_that_does_not_go(autojump_clock: trio.testing.MockClock) -> None:
    """While the client may still read why it was refused, its connection closes."""
    async with memory_server(http_app(work)) as server:
        client = await server.connect()
        await client.raw(b"nonsense\r\n\r\n")
        await client.stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert told(server) == ["- closes"]
        await client.aclose()


async def test_sockets_have_names_and_websockets_are_told_as_such() -> None:
    """A connection is told by its client's address; a WebSocket by that it is one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    async with socket_server(websocket_app(app)) as server:
        stream = await server.connect_stream()
        assert isinstance(stream, trio.SocketStream)
        host, port = stream.socket.getsockname()
        await open_handshake(stream)
        [words] = told(server)
        assert words.startswith(f"{host}:{port} WebSocket /, ")
        await stream.aclose()


async def test_a_tls_handshake(tmp_path) -> None:
    """A handshake that does not come to its end is told."""
    path = str(tmp_path / "both.pem")
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with socket_server(http_app(work), ssl_certfile=path) as server:
        stream = await server.connect_stream()
        while not told(server):
            await trio.sleep(0.005)
        [words] = told(server)
        assert " TLS handshake, " in words
        secured = trio.SSLStream(stream, context, server_hostname="localhost")
        await secured.do_handshake()
        while "TLS" in told(server)[0]:
            await trio.sleep(0.005)
        assert " idle, " in told(server)[0]
        await stream.aclose()


async def test_a_connection_whose_task_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is told of as soon as its task runs."""
    monkeypatch.setattr("trioserve.connection.REACTOR_SUPPORTED", False)  # which would need a task of its own
    connections = Connections(ServerContext(http_app(work), Config(), observer=Recorder()))
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        connections.start(nursery, theirs, False, "")
        assert connections.activities() == {}
        await trio.testing.wait_all_tasks_blocked()
        [words] = connections.activities().values()
        assert words.startswith("- idle, ")
        await ours.aclose()
        nursery.cancel_scope.cancel()


def test_http_that_does_not_run() -> None:
    """Before its task runs, and once it has ended, there is nothing to tell."""
    nothing: AnyValue = None
    assert list(HTTP11Connection(nothing, nothing, Endpoint(), nothing, nothing, nothing).activities()) == []


async def test_loop_lag_in_the_statistics() -> None:
    """How late the event loop was is kept, with the worst of it; None until somebody measures it."""
    async with memory_server(http_app(work)) as server:
        figures = server.server.statistics()
        assert (figures.loop_lag, figures.loop_lag_max) == (None, None)
        for seconds in (0.25, 2.0, 0.125):
            server.server.note_loop_lag(seconds)
        figures = server.server.statistics()
        assert (figures.loop_lag, figures.loop_lag_max) == (0.125, 2.0)
