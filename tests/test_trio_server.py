"""open_server: a server in the test's own Trio loop, from its start to whatever ends it."""

from __future__ import annotations

import dataclasses
import re
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, ConnectionRejected

from trioserve import AppLoadError, BindError, CertificateError, ConfigError, LifespanError
from trioserve.testing import FinishedRequest, ServerStuckError, TrioServer, memory_server, open_server

from .support import Client, http_app, nothing_left, plain_lifespan, read_body, respond, send_text
from .transports import until

pytestmark = pytest.mark.timeout(30)

SHORT = {"timeout_graceful_shutdown": 0, "timeout_hard_shutdown": 0.05, "timeout_shutdown": 0.05}
"""Stops that take a little more than the second that is always added."""

DEADLINE = 10.0

START = {"type": "http.response.start", "status": 200, "headers": []}


class Broken(Exception):
    """What applications and blocks raise here."""


async def hello(scope, receive, send):
    await send_text(send, "Hello")


async def wait_for_ever(scope, receive, send):
    await trio.sleep_forever()


async def fail(scope, receive, send):
    raise Broken(scope["path"])


async def pour(scope, receive, send):
    """An answer without an end."""
    await send(START)
    while True:
        await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})


def shielded(released: trio.Event):
    """A handler that no cancellation reaches."""

    async def handler(scope, receive, send):
        with trio.CancelScope(shield=True):
            await released.wait()

    return handler


def with_lifespan(lifespan, handler=hello):
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await handler(scope, receive, send)

    return app


def websocket_app(handler):
    """An application that accepts each WebSocket, and leaves the rest to the handler."""

    async def run(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await handler(scope, receive, send)

    return http_app(run)


async def echo(scope, receive, send):
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def get(server: TrioServer, target: str = "/"):
    async with await server.connect() as stream:
        return await Client(stream).get(target)


async def ask(server: TrioServer, target: str = "/") -> trio.abc.Stream:
    """A client whose request is being handled, and which waits for the answer; closed with the server."""
    stream = await server.connect()
    before = server.active
    await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    await until(lambda: server.active > before)
    return stream


@asynccontextmanager
async def serving(app, **options) -> AsyncIterator[TrioServer]:
    """open_server with a deadline, and the proof that nothing is left of it."""
    with trio.fail_after(DEADLINE), nothing_left():
        async with open_server(app, **options) as server:
            yield server


@pytest.fixture
def socket_path():
    """A path that is short enough for a unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "s")


# What it is


async def test_it_serves_for_as_long_as_the_block():
    """In the block requests are answered at its URL; after it nobody listens, and nothing is left."""
    async with serving(respond()) as server:
        assert (await get(server)).body == b"Hello, world!"
        host, port = server.host, server.port
    with pytest.raises(OSError, match=r"."):
        await trio.open_tcp_stream(host, port)


async def test_it_says_where_it_is():
    """The parts of the address fit together, and with what the server itself says."""
    async with serving(respond()) as server:
        assert (server.host, server.unix_path, server.ca) == ("127.0.0.1", None, None)
        assert server.port != 0
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.ws_url == f"ws://127.0.0.1:{server.port}"
        assert server.server.urls == (server.url,)
        assert repr(server) == f"<TrioServer {server.url}>"


async def test_its_state_is_that_of_the_lifespan():
    """``state`` is what the application's lifespan put there."""

    async def app(scope, receive, send):
        scope["state"]["answer"] = 42
        await plain_lifespan(receive, send)

    async with serving(app) as server:
        assert server.state == {"answer": 42}


async def test_ipv6():
    """An IPv6 address is served, and stands in brackets in URLs."""
    async with serving(respond(), host="::1") as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert (await get(server)).status == 200
        await server.client_gone("/")


async def test_every_interface():
    """A server on all interfaces is reached on the loopback."""
    async with serving(respond(), host="0.0.0.0") as server:
        assert server.host == "127.0.0.1"
        assert (await get(server)).status == 200


async def test_unix_socket(socket_path):
    """On a unix socket every client works as on TCP, and the file is removed at the end."""
    async with serving(http_app(hello), uds=socket_path) as server:
        assert (server.unix_path, server.host, server.port) == (socket_path, "localhost", 0)
        assert server.url == "http://localhost"
        assert (await get(server)).body == b"Hello"
        await server.client_gone("/gone")
        async with server.slow("/slow", 10_000) as client:
            assert (await client.wait()).endswith(b"Hello")
        await server.wait_idle()
        assert {one.path for one in server.requests} == {"/", "/gone", "/slow"}
    assert not await trio.Path(socket_path).exists()


async def test_websocket_on_a_unix_socket(socket_path):
    """WebSockets are opened on unix sockets, too."""
    async with serving(websocket_app(echo), uds=socket_path) as server, server.websocket("/chat") as socket:
        await socket.send_message("hi")
        assert await socket.get_message() == "hi"


async def test_tls():
    """tls=True makes a certificate that our own clients, and contexts of the authority, trust; others do not."""

    async def handler(scope, receive, send):
        await send_text(send, scope["scheme"])

    async with serving(http_app(handler), tls=True) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        assert server.ws_url == f"wss://127.0.0.1:{server.port}"
        assert (await get(server)).body == b"https"
        await server.client_gone("/gone")
        async with server.stall("/stalled"):
            await until(lambda: len(server.requests) == 3)
        for host in ("localhost", "127.0.0.1"):
            stream = await trio.open_ssl_over_tcp_stream(host, server.port, ssl_context=server.ca.client_context())
            assert (await Client(stream).get()).body == b"https"
            await trio.aclose_forcefully(stream)
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        await trio.aclose_forcefully(stream)


async def test_websocket_over_tls():
    """A WebSocket to a TLS server is a wss one."""

    async def handler(scope, receive, send):
        await send({"type": "websocket.send", "text": scope["scheme"]})
        await receive()

    async with serving(websocket_app(handler), tls=True) as server, server.websocket() as socket:
        assert await socket.get_message() == "wss"


async def test_a_client_that_is_cancelled_in_its_handshake_leaves_nothing(monkeypatch):
    """When a TLS handshake of ours takes too long, or is cancelled, its connection is closed."""
    monkeypatch.setattr("trioserve.testing.trio_server.HANDSHAKE_PATIENCE", 0)
    async with serving(respond(), tls=True) as server:
        with pytest.raises(trio.TooSlowError):
            await server.connect()
        await until(lambda: server.server.statistics().connections == 0)


async def test_connecting_is_cancelled_or_refused_without_a_trace():
    """A connection that does not come about leaves no socket."""
    async with serving(respond()) as server:
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.connect()
        assert scope.cancelled_caught
        await server.shutdown()
        with pytest.raises(ConnectionRefusedError):
            await server.connect()


async def test_several_servers_at_once():
    """Each has a port, requests and errors of its own."""
    bodies = (b"one", b"two", b"three")
    async with AsyncExitStack() as stack:
        stack.enter_context(nothing_left())
        one, two, three = [await stack.enter_async_context(open_server(respond(body))) for body in bodies]
        answers = [await get(server) for server in (three, two, one)]
        assert [one.body for one in answers] == [b"three", b"two", b"one"]
        assert len({one.port, two.port, three.port}) == 3
        await one.shutdown()
        assert (await get(two)).body == b"two"
        assert [len(server.requests) for server in (one, two, three)] == [1, 2, 1]


async def test_an_application_by_its_name(tmp_path):
    """ "module:attribute" is imported from ``app_dir``; sys.path stays as it was."""
    (tmp_path / "application_of_this_test.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await send({'type': 'http.response.start', 'status': 204, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b''})\n"
    )
    async with serving("application_of_this_test:app", app_dir=str(tmp_path), lifespan="off") as server:
        assert (await get(server)).status == 204


# What has happened


async def test_requests_are_on_record():
    """Each request that has ended is there, in order, with what was asked and how it ended."""

    async def handler(scope, receive, send):
        assert await read_body(receive) == b"12345"
        await send_text(send, "123", 201)

    async with serving(http_app(handler)) as server:
        async with await server.connect() as stream:
            client = Client(stream)
            await client.request("POST", "/a%20b?c=d&e", body=b"12345")
            await client.request("PUT", "/", body=b"12345")
            await server.wait_idle()
            port = stream.socket.getsockname()[1]
        first, second = server.requests
        duration = first.duration
        assert first == FinishedRequest("POST", "/a%20b", "c=d&e", 201, 3, 5, duration, "ok", f"127.0.0.1:{port}")
        assert 0 <= duration < DEADLINE
        assert (second.method, second.path, second.query) == ("PUT", "/", "")
        server.requests.clear()
        assert server.requests == []


async def test_websockets_are_on_record():
    """A WebSocket that has closed is among ``websockets`` and, with 101, among ``requests``."""
    async with serving(websocket_app(echo)) as server:
        async with server.websocket("/chat?room=1") as socket:
            assert server.active == 1
            await socket.send_message("hi")
            assert await socket.get_message() == "hi"
        await server.wait_idle()
        (record,), (request,) = server.websockets, server.requests
        assert (record.code, record.received_messages, record.sent_messages) == (1000, 1, 1)
        assert (request.path, request.query, request.status, request.outcome) == ("/chat", "room=1", 101, "ok")


async def test_active_counts_handlers_that_run():
    """``active`` is the number of requests whose application has not returned."""
    async with serving(http_app(wait_for_ever), timeout_graceful_shutdown=0) as server:
        assert server.active == 0
        for number in (1, 2, 3):
            await ask(server)
            assert server.active == number


async def test_wait_idle_waits_for_the_last_handler():
    """wait_idle returns when no handler is running, also of those that began while it waited."""
    proceed = {"/first": trio.Event(), "/second": trio.Event()}
    idle = trio.Event()

    async def handler(scope, receive, send):
        await proceed[scope["path"]].wait()
        await send_text(send, "done")

    async with serving(http_app(handler)) as server, trio.open_nursery() as nursery:
        await server.wait_idle(0)
        await ask(server, "/first")

        async def wait() -> None:
            await server.wait_idle()
            idle.set()

        nursery.start_soon(wait)
        await ask(server, "/second")
        proceed["/first"].set()
        await until(lambda: server.active == 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not idle.is_set()
        proceed["/second"].set()
        await idle.wait()
        assert [one.path for one in server.requests] == ["/first", "/second"]


async def test_wait_idle_says_for_whom_it_waited_in_vain():
    """After ``timeout`` seconds TimeoutError names the requests whose handlers are still running."""
    async with serving(http_app(wait_for_ever), timeout_graceful_shutdown=0) as server:
        await ask(server, "/one?a=b")
        await ask(server, "/two")
        with pytest.raises(TimeoutError) as caught:
            await server.wait_idle(0.01)
        assert str(caught.value) == "still running after 0.01 s: GET /one?a=b HTTP/1.1, GET /two HTTP/1.1"


# Errors of the application


async def test_an_error_of_the_application_comes_out_at_the_end():
    """What the application raised is raised bare at the end of the block, with the request, cut to its own frames."""
    with pytest.raises(Broken, match="/broken") as caught:
        async with serving(http_app(fail)) as server:
            assert (await get(server, "/broken")).status == 500
    assert caught.value.__notes__ == ["raised in the application by GET /broken HTTP/1.1"]
    names = [entry.name for entry in caught.traceback]
    assert names[-1] == "fail"
    assert "_call_application" not in names


async def test_several_errors_of_the_application_come_out_as_a_group():
    """Several errors have to be a group, which holds all of them, in order."""
    with pytest.raises(ExceptionGroup, match="2 errors in the application") as caught:
        async with serving(http_app(fail)) as server:
            await get(server, "/one")
            await get(server, "/two")
    assert [str(one) for one in caught.value.exceptions] == ["/one", "/two"]


async def test_the_same_error_object_from_several_requests():
    """An error that the application keeps and raises again comes out once, and names each request once."""
    error = Broken("kept")

    async def handler(scope, receive, send):
        raise error

    with pytest.raises(Broken) as caught:
        async with serving(http_app(handler)) as server:
            for target in ("/one", "/one", "/two"):
                await get(server, target)
            assert server.errors == [error] * 3
    assert caught.value is error
    notes = [f"raised in the application by GET {target} HTTP/1.1" for target in ("/one", "/two")]
    assert error.__notes__ == notes


async def test_an_error_that_was_expected():
    """An error that the test takes out of ``errors`` is not raised; the others are."""
    with pytest.raises(Broken, match="/two"):
        async with serving(http_app(fail)) as server:
            await get(server, "/one")
            error = server.errors.pop()
            assert isinstance(error, Broken)
            await get(server, "/two")


async def test_allow_errors():
    """With allow_errors nothing is raised, and ``errors`` has all."""
    async with serving(http_app(fail), allow_errors=True) as server:
        assert (await get(server)).status == 500
        assert [type(error) for error in server.errors] == [Broken]
        assert [(one.status, one.outcome) for one in server.requests] == [(500, "error")]


async def test_a_failing_block_tells_what_the_application_raised():
    """An error of the block goes first; what the application raised is added to it, which may explain it."""
    with pytest.raises(AssertionError) as caught:
        async with serving(http_app(fail)) as server:
            assert (await get(server, "/broken")).status == 200
    (note,) = caught.value.__notes__
    assert note.endswith("tests.test_trio_server.Broken: /broken\nraised in the application by GET /broken HTTP/1.1")
    assert "in fail\n" in note


async def test_a_block_that_raises_what_the_application_raised():
    """When the block raises the application's error itself, that is not also added to it."""
    with pytest.raises(Broken) as caught:
        async with serving(http_app(fail)) as server:
            await get(server)
            raise server.errors[0]
    assert caught.value.__notes__ == ["raised in the application by GET / HTTP/1.1"]


async def test_a_block_that_calls_pytest_fail_tells_what_the_application_raised():
    """pytest.fail() in the block is a failure like that of an assert."""
    with pytest.raises(pytest.fail.Exception) as caught:
        async with serving(http_app(fail)) as server:
            await get(server)
            pytest.fail("not as expected")
    assert any("Broken" in note for note in getattr(caught.value, "__notes__", ()))


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Many applications have such errors. Nobody can add a note to them."""

    code: int


async def test_an_error_that_takes_no_notes():
    """An error to which nothing can be added is answered and raised like any other."""

    async def handler(scope, receive, send):
        raise FrozenError(7)

    with trio.fail_after(DEADLINE), nothing_left():
        async with open_server(http_app(handler), allow_errors=True) as server:
            stream = await server.connect()
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 500 ")
            assert server.errors == [FrozenError(7)]


# What the block raises, and what ends it


@pytest.mark.parametrize("kind", [Broken, AssertionError, KeyboardInterrupt, pytest.fail.Exception])
async def test_an_error_of_the_block_comes_out_bare(kind):
    """pytest.raises works across the block, whatever is raised in it, and handlers are not waited for."""
    error = kind("of the block")
    with pytest.raises(kind) as caught:
        async with serving(http_app(wait_for_ever), timeout_graceful_shutdown=60) as server:
            await ask(server)
            raise error
    assert caught.value is error


async def test_handlers_clean_up_when_the_block_raises():
    """A handler that runs when the block raises is cancelled at once, and ends before the error comes out."""
    ended = []

    async def handler(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            ended.append(True)

    with nothing_left(), pytest.raises(Broken):
        async with serving(http_app(handler), timeout_graceful_shutdown=60) as server:
            await ask(server)
            raise Broken
    assert ended == [True]


async def test_running_requests_finish_at_the_end_of_the_block():
    """At the end of the block running handlers have timeout_graceful_shutdown to answer."""
    proceed = trio.Event()

    async def handler(scope, receive, send):
        await proceed.wait()
        await send_text(send, "late")

    async def release() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)  # the block has ended, and waits
        proceed.set()

    with nothing_left(), trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            async with open_server(http_app(handler), timeout_graceful_shutdown=5) as server:
                client = Client(await trio.open_tcp_stream(server.host, server.port))
                await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await until(lambda: server.active == 1)
                nursery.start_soon(release)
            assert (await client.receive_rest()).endswith(b"late")
            await client.aclose()
    assert [one.outcome for one in server.requests] == ["ok"]


async def test_a_cancellation_from_outside():
    """move_on_after round the block ends block and server, and nothing comes out."""
    with nothing_left(), trio.move_on_after(0.05) as scope:
        async with open_server(http_app(wait_for_ever), timeout_graceful_shutdown=60) as server:
            await ask(server)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [one.outcome for one in server.requests] != []


async def test_a_cancellation_from_outside_during_the_start():
    """A start that is cancelled leaves nothing, and the application hears of it."""
    heard = []

    async def lifespan(receive, send):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            heard.append("cancelled")
            raise

    with nothing_left(), trio.move_on_after(0.05) as scope:
        async with open_server(with_lifespan(lifespan)):
            raise AssertionError("it has started")
    assert scope.cancelled_caught
    assert heard == ["cancelled"]


async def test_a_cancellation_of_the_shutdown():
    """A wait for the end may be cancelled; the server stops nevertheless."""
    released = trio.Event()
    async with serving(http_app(shielded(released)), timeout_graceful_shutdown=5, allow_errors=True) as server:
        await ask(server)
        with trio.move_on_after(0.01) as scope:
            await server.shutdown()
        assert scope.cancelled_caught
        released.set()


async def test_the_server_may_be_cancelled_in_the_block():
    """cancel() cancels handlers at once; the block goes on, and nothing is raised."""
    async with serving(http_app(wait_for_ever), timeout_graceful_shutdown=60) as server:
        stream = await ask(server)
        server.cancel()
        await until(lambda: server.witness.has_ended)
        assert [one.outcome for one in server.requests] == ["shutdown"]
        assert await stream.receive_some() == b""
        await server.shutdown()


async def test_the_block_may_run_in_a_nursery_of_the_test():
    """Clients in the test's own tasks see the server's end and raise nothing into it."""
    heard = []

    async def listen(server: TrioServer) -> None:
        stream = await trio.open_tcp_stream(server.host, server.port)
        async with stream:
            heard.append(await stream.receive_some())

    async with trio.open_nursery() as nursery, serving(respond()) as server:
        nursery.start_soon(listen, server)
        await until(lambda: server.server.statistics().connections == 1)
    assert heard == [b""]


async def test_an_interrupt_in_a_handler():
    """Ctrl-C may hit a handler: KeyboardInterrupt comes out of the block, bare, as pytest needs it."""

    async def handler(scope, receive, send):
        raise KeyboardInterrupt

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - what it is is the question
        async with serving(http_app(handler)) as server:
            await (await server.connect()).send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.sleep_forever()
    assert type(caught.value) is KeyboardInterrupt


# The start


@pytest.mark.parametrize("allow_errors", [False, True])
async def test_a_start_up_that_raises(allow_errors):
    """LifespanError comes out bare, its cause is the application's error, cut to its own frames."""

    async def lifespan(receive, send):
        raise Broken("no database")

    with nothing_left(), pytest.raises(LifespanError, match="Broken: no database") as caught:
        async with open_server(with_lifespan(lifespan), lifespan="on", allow_errors=allow_errors):
            raise AssertionError("it has started")
    cause = caught.value.__cause__
    assert isinstance(cause, Broken)
    assert cause.__traceback__.tb_frame.f_code.co_name == "app"


async def test_a_start_up_that_says_it_failed():
    """The application's own words are in the error."""

    async def lifespan(receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no luck"})

    with nothing_left(), pytest.raises(LifespanError, match="the application could not start: no luck"):
        async with open_server(with_lifespan(lifespan)):
            raise AssertionError("it has started")


async def test_a_start_up_that_takes_too_long():
    """A start-up has timeout_startup seconds."""

    async def lifespan(receive, send):
        await trio.sleep_forever()

    with nothing_left(), pytest.raises(LifespanError, match=r"did not start within 0\.05 s"):
        async with open_server(with_lifespan(lifespan), timeout_startup=0.05):
            raise AssertionError("it has started")


async def test_a_start_up_that_is_slow_but_not_too_slow(autojump_clock):
    """A start-up that ends a moment before its time-out is fine."""

    async def lifespan(receive, send):
        await trio.sleep(9.5)
        await plain_lifespan(receive, send)

    async with open_server(with_lifespan(lifespan), timeout_startup=10) as server:
        assert server.active == 0


async def test_a_start_up_that_takes_too_long_is_seen_at_its_work(autojump_clock):
    """LifespanError has a note with the tree of tasks, which shows where the start-up hangs."""

    async def lifespan(receive, send):
        await trio.sleep_forever()

    with nothing_left(), pytest.raises(LifespanError, match="did not start within 100 s") as caught:
        async with open_server(with_lifespan(lifespan), timeout_startup=100):
            raise AssertionError("it has started")
    (note,) = caught.value.__notes__
    assert "seen_at_its_work.<locals>.lifespan" in note


async def test_a_start_up_that_shields_itself_for_ever(autojump_clock):
    """A start-up that no cancellation reaches is told of like a stop that does not end, instead of hanging."""

    async def lifespan(receive, send):
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    with trio.fail_after(1000), pytest.raises((ServerStuckError, LifespanError)):
        async with open_server(with_lifespan(lifespan)):
            raise AssertionError("it has started")


@pytest.mark.parametrize("tls", [False, True])
async def test_an_address_that_is_taken(tls):
    """BindError comes out bare, and nothing is left."""
    async with serving(respond()) as server:
        await trio.testing.wait_all_tasks_blocked()  # all its tasks have begun
        with nothing_left(), pytest.raises(BindError, match="cannot listen on 127.0.0.1") as caught:
            async with open_server(respond(), port=server.port, tls=tls):
                raise AssertionError("it has started")
        assert caught.value.address == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("app", ["no_such_module_here:app", "json:no_such_thing", "json"])
async def test_an_application_that_cannot_be_loaded(app):
    """AppLoadError comes out bare."""
    with nothing_left(), pytest.raises(AppLoadError):
        async with open_server(app):
            raise AssertionError("it has started")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prot": 1}, "did you mean 'port'"),
        ({"workers": 2}, "workers=2 is for the command line"),
        ({"reload": True}, "reload is for the command line"),
        ({"watchdog": 1.5}, "watchdog is for the command line"),
        ({"log_config": {"version": 1}}, "log_config is for the command line"),
        ({"metrics_bind": "127.0.0.1:0"}, "metrics_bind is for the command line"),
        ({"drain_delay": 1}, "drain_delay is for the command line"),
    ],
)
async def test_options_that_are_wrong(options, text):
    """ConfigError comes out bare."""
    with nothing_left(), pytest.raises(ConfigError, match=text):
        async with open_server(respond(), **options):
            raise AssertionError("it has started")


async def test_a_certificate_that_is_missing(tmp_path):
    """What keeps a server from starting is raised, and what was bound before is closed."""
    with nothing_left(), pytest.raises(CertificateError):
        async with open_server(respond(), ssl_certfile=str(tmp_path / "none.pem")):
            raise AssertionError("it has started")


# The end


def ends_when(told: trio.Event, error: Exception | None = None):
    async def lifespan(receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await told.wait()
        if error is not None:
            raise error

    return lifespan


@pytest.mark.parametrize("error", [None, Broken("lost the database")])
async def test_a_lifespan_that_ends_while_serving_ends_the_block(error):
    """The block is cancelled, and LifespanError comes out, with its cause."""
    told = trio.Event()
    reached = []
    with pytest.raises(LifespanError, match="while serving") as caught:
        async with serving(with_lifespan(ends_when(told, error))):
            told.set()
            await trio.sleep_forever()
            reached.append(True)
    assert caught.value.__cause__ is error
    assert reached == []


async def test_a_block_that_ends_by_itself_when_the_lifespan_does():
    """The error comes out at the end of the block, too."""
    told = trio.Event()
    with pytest.raises(LifespanError, match="while serving"):
        async with serving(with_lifespan(ends_when(told))):
            told.set()
            await trio.testing.wait_all_tasks_blocked()


async def test_a_block_that_fails_because_the_lifespan_has_ended():
    """A client that is refused because the lifespan has ended is told why: by the error, or by a note on it."""
    told = trio.Event()
    app = with_lifespan(ends_when(told, Broken("lost the database")), wait_for_ever)
    with pytest.raises((LifespanError, OSError)) as caught:
        async with serving(app) as server:
            await ask(server)  # so that the end of the server takes its second
            told.set()
            while True:
                async with await server.connect():
                    await trio.lowlevel.checkpoint()
    texts = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert any("lost the database" in text for text in texts)


def fails_to_stop(error: Exception | None):
    async def lifespan(receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if error is not None:
            raise error
        await send({"type": "lifespan.shutdown.failed", "message": "no luck"})

    return lifespan


@pytest.mark.parametrize("error", [None, Broken("no luck")])
async def test_a_shutdown_that_fails(error):
    """LifespanError comes out at the end of the block, with its cause."""
    with pytest.raises(LifespanError, match="no luck") as caught:
        async with serving(with_lifespan(fails_to_stop(error))) as server:
            await get(server)
    assert caught.value.__cause__ is error


async def test_a_shutdown_in_the_block_that_fails():
    """shutdown() itself raises LifespanError; the block goes on, and does not raise it again."""
    went_on = []
    async with serving(with_lifespan(fails_to_stop(Broken("no luck")))) as server:
        with pytest.raises(LifespanError, match="no luck"):
            await server.shutdown()
        went_on.append(True)
    assert went_on == [True]


async def test_a_shutdown_that_takes_too_long():
    """The lifespan has timeout_shutdown seconds; then LifespanError."""

    async def lifespan(receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await trio.sleep_forever()

    with pytest.raises(LifespanError, match=r"did not shut down within 0\.05 s"):
        async with serving(with_lifespan(lifespan), timeout_shutdown=0.05):
            pass


async def test_shutdown_may_be_called_again():
    """shutdown() waits until the server has ended; twice, and then the end of the block, is as once."""
    async with serving(respond()) as server:
        await get(server)
        await server.shutdown()
        assert server.witness.has_ended
        await server.shutdown()
        await server.shutdown(0)
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
        assert [one.status for one in server.requests] == [200]


async def test_shutdown_by_several_tasks():
    """Whoever waits for the end sees it."""
    async with serving(respond()) as server, trio.open_nursery() as nursery:
        for grace in (None, 0, 1):
            nursery.start_soon(server.shutdown, grace)


async def test_shutdown_with_a_grace():
    """shutdown(0) cancels running handlers at once, however long the options would wait."""
    async with serving(http_app(wait_for_ever), timeout_graceful_shutdown=60) as server:
        stream = await ask(server)
        await server.shutdown(0)
        assert server.active == 0
        assert [one.outcome for one in server.requests] == ["shutdown"]
        assert await stream.receive_some() == b""


async def test_a_shutdown_by_the_application():
    """A handler may stop the server with its own handle; the block goes on, and nothing is raised."""
    servers = []

    async def handler(scope, receive, send):
        servers[0].server.shutdown()
        await send_text(send, "bye")

    async with serving(http_app(handler)) as server:
        servers.append(server)
        assert (await get(server)).body == b"bye"
        await until(lambda: server.witness.has_ended)


async def test_connections_that_were_left_open_are_closed():
    """What connect() opened and nobody closed is closed at the end, however the block ends."""
    async with serving(respond()) as server:
        stream = await server.connect()
        closed = await server.connect()
        await closed.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    with pytest.raises(Broken):
        async with serving(respond()) as server:
            stream = await server.connect()
            raise Broken
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


# A server that does not end


async def test_a_handler_that_shields_itself_for_ever():
    """ServerStuckError comes out, bare, with the tree of tasks, which shows the handler; and nothing is left."""
    with pytest.raises(ServerStuckError) as caught:
        async with serving(http_app(shielded(trio.Event())), **SHORT) as server:
            await ask(server)
    text = str(caught.value)
    assert re.match(r"the server has not ended 1\.\d s after it was told to stop\n\nTasks, each", text)
    assert "\n- trioserve.testing" in text or "  - trioserve.testing" in text
    assert "shielded.<locals>.handler" in text


async def test_a_shutdown_of_a_server_that_does_not_end():
    """shutdown() itself raises ServerStuckError, once; the block goes on, and its end is quiet."""
    async with serving(http_app(shielded(trio.Event())), **SHORT) as server:
        await ask(server)
        with pytest.raises(ServerStuckError, match="shielded.<locals>.handler"):
            await server.shutdown()
        assert server.active == 0
        await server.shutdown()


async def test_a_block_that_raises_over_a_server_that_does_not_end():
    """The block's error comes out, and tells of the handler that did not end."""
    with pytest.raises(Broken) as caught:
        async with serving(http_app(shielded(trio.Event())), **SHORT) as server:
            await ask(server)
            raise Broken
    assert any("shielded.<locals>.handler" in note for note in getattr(caught.value, "__notes__", ()))


async def test_a_cancelled_block_over_a_server_that_does_not_end():
    """A cancellation from outside ends within the same time."""
    with nothing_left(), trio.move_on_after(0.05) as scope:
        async with open_server(http_app(shielded(trio.Event())), **SHORT) as server:
            await ask(server)
            await trio.sleep_forever()
    assert scope.cancelled_caught


# Clients


@asynccontextmanager
async def serving_on(kind, app, **options):
    """A server on this kind of connection."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "memory":
            with trio.fail_after(DEADLINE):
                async with memory_server(app, **options) as server:
                    yield server
        else:
            more = {"uds": str(Path(folder) / "s")} if kind == "unix" else {"tls": kind == "tls"}
            async with serving(app, **more, **options) as server:
                yield server


ON_EACH_KIND = pytest.mark.parametrize("kind", ["socket", "tls", "unix", "memory"])


@ON_EACH_KIND
async def test_one_request(kind):
    """request() sends what it is told to, and returns the whole answer; its connection is gone then."""

    async def handler(scope, receive, send):
        body = await read_body(receive)
        asked = [scope["method"].encode(), scope["path"].encode(), scope["query_string"], body]
        fields = [(b"X-Answer", dict(scope["headers"]).get(b"x-name", b"none"))]
        await send({"type": "http.response.start", "status": 201, "headers": fields})
        for part in asked:
            await send({"type": "http.response.body", "body": part + b"\n", "more_body": True})
        await send({"type": "http.response.body"})

    async with serving_on(kind, http_app(handler)) as server:
        answer = await server.request("/a?b", method="PUT", headers=[(b"X-Name", b"value")], body=b"body")
        assert (answer.status, answer.text, dict(answer.headers)[b"x-answer"]) == (201, "PUT\n/a\nb\nbody\n", b"value")
        answer = await server.request()
        assert (answer.body, dict(answer.headers)[b"x-answer"]) == (b"GET\n/\n\n\n", b"none")
        assert (await server.request(method="HEAD")).body == b""
        await until(lambda: server.server.statistics().connections == 0)
        assert [one.method for one in server.requests] == ["PUT", "GET", "HEAD"]


async def test_a_request_whose_body_is_not_read():
    """An application that answers before it has read a large body is understood."""
    async with serving(respond()) as server:
        assert (await server.request(method="POST", body=bytes(20_000_000))).body == b"Hello, world!"


@ON_EACH_KIND
@pytest.mark.parametrize("when", ["before", "in the middle of"])
async def test_a_request_whose_answer_is_cut(kind, when):
    """An answer that does not come, or not to its end, raises trio.BrokenResourceError, bare."""

    async def handler(scope, receive, send):
        if when != "before":
            await send(START)
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
        await server.drop_connections()

    async with serving_on(kind, http_app(handler), allow_errors=True) as server:
        with pytest.raises(trio.BrokenResourceError):
            await server.request()
        await server.wait_idle()


async def test_a_request_for_a_path_that_is_none():
    """ValueError, and nothing is sent."""
    async with serving(respond()) as server:
        with pytest.raises(ValueError, match="path must begin with /"):
            await server.request("path")
        assert server.requests == []


async def test_client_gone_leaves_once_its_handler_runs():
    """client_gone returns when the handler has been called, which then sees its client leave."""
    heard = []

    async def handler(scope, receive, send):
        assert await read_body(receive) == b"body"
        heard.append((scope["method"], scope["path"], dict(scope["headers"]).get(b"x-name")))
        heard.append((await receive())["type"])

    async with serving(http_app(handler)) as server:
        await server.client_gone("/gone?x", method="PUT", headers=[(b"X-Name", b"value")], body=b"body")
        await server.wait_idle()
        assert heard == [("PUT", "/gone", b"value"), "http.disconnect"]
        assert [(one.outcome, one.received) for one in server.requests] == [("client left", 4)]


async def test_client_gone_after_some_of_the_response():
    """With ``after`` the client reads so many bytes first."""
    async with serving(http_app(pour)) as server:
        await server.client_gone("/", after=200_000)
        await server.wait_idle()
        (request,) = server.requests
        assert (request.status, request.outcome) == (200, "client left")
        assert request.bytes > 190_000


async def test_client_gone_after_more_than_there_is():
    """A response that is shorter than ``after`` is read to its end."""
    async with serving(http_app(hello)) as server:
        await server.client_gone("/", after=1_000_000)
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["ok"]


@pytest.mark.parametrize("path", ["", "relative", "/white space", "/ü", "/line\r\nbreak"])
async def test_paths_that_are_none(path):
    """A path that cannot stand in a request line is refused before anything is sent."""
    async with serving(respond()) as server:
        with pytest.raises(ValueError, match="path must begin with / and be percent-encoded"):
            await server.client_gone(path)
        assert server.server.statistics().connections_total == 0


async def test_a_request_that_does_not_begin(monkeypatch):
    """A client whose handler is never called says so, after a while."""
    monkeypatch.setattr("trioserve.testing.trio_clients.HANDSHAKE_PATIENCE", 0.05)
    async with serving(respond()) as server:
        with pytest.raises(TimeoutError, match=r"^the beginning of GET / took longer than 0\.05 s$"):
            await server.client_gone("/", headers=[(b"bad name", b"")])


async def test_a_request_whose_body_the_handler_does_not_read(monkeypatch):
    """A body that is larger than what the kernel takes does not keep a client that leaves from leaving."""
    monkeypatch.setattr("trioserve.testing.trio_clients.HANDSHAKE_PATIENCE", 1)
    async with serving(http_app(wait_for_ever), timeout_disconnect_grace=0) as server:
        await server.client_gone("/upload", method="POST", body=bytes(20_000_000))
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["client left"]


async def test_a_client_that_stalls():
    """A client that takes nothing of a response ends the request with "deadline" after timeout_write."""
    async with serving(http_app(pour), timeout_write=0.2) as server, server.stall("/") as client:
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["deadline"]
        assert client.received == b""


async def test_a_client_that_stalls_leaves_at_the_end_of_its_block():
    """At the end of the block the connection is lost."""
    async with serving(http_app(pour)) as server:
        async with server.stall("/"):
            assert server.active == 1
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["client left"]


async def test_an_error_in_the_block_of_a_client_comes_out_bare():
    """pytest.raises works across the blocks of all clients."""
    async with serving(http_app(pour), timeout_graceful_shutdown=0) as server:
        with pytest.raises(Broken):
            async with server.stall("/"):
                raise Broken
        with pytest.raises(Broken):
            async with server.slow("/", 100):
                raise Broken
    async with serving(websocket_app(echo)) as server:
        with pytest.raises(Broken):
            async with server.websocket():
                raise Broken
        await server.wait_idle()
        assert [one.code for one in server.websockets] == [1006]


async def test_a_slow_client_takes_its_time():
    """A client reads no faster than it is told to, and all of it."""
    async with serving(respond(bytes(3000))) as server:
        start = trio.current_time()
        async with server.slow("/", 10_000) as client:
            received = await client.wait()
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == bytes(3000)
        assert trio.current_time() - start >= len(received) / 10_000


async def test_a_slow_client_that_is_cut_off():
    """A connection that is lost is an end of the response, too."""
    async with serving(http_app(pour)) as server, server.slow("/", 100_000) as client:
        await until(lambda: len(client.received) > 0)
        await server.drop_connections()
        assert (await client.wait()).startswith(b"HTTP/1.1 200 ")


async def test_websocket_subprotocols_and_headers():
    """What the client offers reaches the application, and its choice the client; Host is the server's own."""

    async def handler(scope, receive, send):
        fields = dict(scope["headers"])
        assert (await receive())["type"] == "websocket.connect"
        assert scope["subprotocols"] == ["chat", "superchat"]
        await send({"type": "websocket.accept", "subprotocol": "superchat", "headers": [(b"x-answer", b"yes")]})
        await send({"type": "websocket.send", "text": (fields[b"host"] + b" " + fields[b"x-name"]).decode()})
        await receive()

    async with serving(http_app(handler)) as server:
        options = {"subprotocols": iter(["chat", "superchat"]), "headers": ((b"x-name", b"value"),)}
        async with server.websocket("/", **options) as socket:
            assert socket.subprotocol == "superchat"
            assert (b"x-answer", b"yes") in socket.handshake_headers
            assert await socket.get_message() == f"127.0.0.1:{server.port} value"


async def test_a_websocket_that_is_refused():
    """A refusal raises trio_websocket.ConnectionRejected, bare, with its status."""

    async def handler(scope, receive, send):
        await send({"type": "websocket.close"})

    async with serving(http_app(handler)) as server:
        with pytest.raises(ConnectionRejected) as caught:
            async with server.websocket():
                raise AssertionError("it has opened")
        assert caught.value.status_code == 403


async def test_a_websocket_that_the_server_closes():
    """When the application closes, the client's next wait raises ConnectionClosed, bare, with code and reason."""

    async def handler(scope, receive, send):
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})

    async with serving(websocket_app(handler)) as server:
        with pytest.raises(ConnectionClosed) as caught:
            async with server.websocket() as socket:
                await socket.get_message()
        assert (caught.value.reason.code, caught.value.reason.reason) == (4000, "enough")


async def test_a_websocket_whose_connection_is_lost_in_the_handshake(monkeypatch):
    """A handshake that is never answered is given up in words."""
    monkeypatch.setattr("trioserve.testing.trio_clients.HANDSHAKE_PATIENCE", 0.1)

    async def handler(scope, receive, send):
        await servers[0].drop_connections()

    servers = []
    async with serving(http_app(handler), allow_errors=True) as server:
        servers.append(server)
        with pytest.raises(TimeoutError, match="^the handshake of a WebSocket for / took longer than 0.1 s$"):
            async with server.websocket():
                raise AssertionError("it has opened")


@pytest.mark.parametrize("option", ["message_queue_size", "max_message_size", "receive_buffer_size"])
async def test_websocket_options(option):
    """Options of trio_websocket.wrap_client_stream are taken."""
    async with serving(websocket_app(echo)) as server, server.websocket("/", **{option: 5}) as socket:
        await socket.send_message("hi")
        assert await socket.get_message() == "hi"


async def test_a_websocket_that_never_answers_the_close(monkeypatch):
    """A server that does not complete the closing handshake holds a client up for a moment only."""
    monkeypatch.setattr("trioserve.testing.trio_clients.CLOSE_PATIENCE", 0.05)
    blocked = trio.Event()

    async def handler(scope, receive, send):
        while True:
            await send({"type": "websocket.send", "bytes": bytes(65536)})
            blocked.set()

    async with serving(websocket_app(handler), timeout_graceful_shutdown=0) as server:
        async with server.websocket("/", message_queue_size=0):
            await blocked.wait()
        await server.wait_idle()
        assert [one.code for one in server.websockets] == [1000]
