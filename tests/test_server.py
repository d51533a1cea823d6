"""serve() and its handle: what it takes, what it gives, how it fails, and that nothing is left."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import ssl
import sys
from contextlib import closing
from functools import partial

import h11
import pytest
import trio
import trio.testing
import trustme

import trioserve
from trioserve import (
    AppLoadError,
    BindError,
    CertificateError,
    Config,
    ConfigError,
    LifespanError,
    Server,
    serve,
    serve_stream,
)
from trioserve.net.listeners import Listener
from trioserve.observer import Phase
from trioserve.server import serve_observed
from trioserve.testing.memory_server import MemoryListener

from .support import (
    LINUX,
    Client,
    Recorder,
    http_app,
    memory_server,
    nothing_left,
    open_descriptors,
    plain_lifespan,
    respond,
    send_text,
    socket_server,
)

pytestmark = pytest.mark.timeout(30)


def bound_socket(*, reuse: bool = True) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    made.bind(("127.0.0.1", 0))
    return made


async def get(address, target="/"):
    stream = await (trio.open_unix_socket(address) if isinstance(address, str) else trio.open_tcp_stream(*address))
    async with stream:
        return await Client(stream).get(target)


# The handle


async def test_handle_does_not_exist_before_start():
    """nursery.start returns the handle once the application has started, and then requests are answered."""
    order = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await trio.sleep(0.01)
            order.append("started")
            await send({"type": "lifespan.startup.complete"})
            await receive()
        else:
            await send_text(send, "Hi")

    with nothing_left():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, app, port=0))
            order.append("handle")
            assert isinstance(server, Server)
            assert (await get(server.addresses[0])).body == b"Hi"
            server.shutdown()
    assert order == ["started", "handle"]


async def test_handle_says_where_it_listens(tmp_path):
    """urls and addresses have what was really bound, in order: port 0 has become a port."""
    file = tmp_path / "s"
    path = str(file)
    async with socket_server(respond(), bind=["127.0.0.1:0", f"unix:{path}"]) as server:
        (host, port), unix = server.server.addresses
        assert (host, unix) == ("127.0.0.1", path)
        assert port != 0
        assert server.server.urls == (f"http://127.0.0.1:{port}", f"unix:{path}")
        for address in server.server.addresses:
            assert (await get(address)).status == 200
    assert not file.exists()


async def test_statistics_count_connections_and_requests(autojump_clock):
    """statistics() gives what is open now, and totals; it is a snapshot that changes no more."""
    proceed = trio.Event()

    async def handler(scope, receive, send):
        await proceed.wait()
        await send_text(send, "Hi")

    async with memory_server(http_app(handler)) as server:
        before = server.server.statistics()
        assert (before.connections, before.connections_total, before.requests, before.requests_total) == (0, 0, 0, 0)
        client = await server.connect()
        await client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]), h11.EndOfMessage())
        await trio.testing.wait_all_tasks_blocked()
        during = server.server.statistics()
        assert (during.connections, during.connections_total, during.requests, during.requests_total) == (1, 1, 1, 1)
        proceed.set()
        await client.answer()
        bad = await server.connect()
        await bad.raw(b"\x00\r\n\r\n")
        await bad.receive_rest()
        await bad.aclose()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        after = server.server.statistics()
        assert (after.connections, after.connections_total, after.requests, after.requests_total) == (0, 2, 0, 1)
        assert after.rejected == {400: 1}
        assert after.application_errors == 0
        assert (during.connections, during.rejected) == (1, {})


async def test_shutdown_makes_serve_return(autojump_clock):
    """shutdown() does not wait; serve() then returns by itself, without an error, and may be told again."""
    recorder = Recorder()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            start = partial(trioserve.server.serve_observed, respond(), Config(), listeners=[MemoryListener()])
            server = await nursery.start(partial(start, observer=recorder))
            server.shutdown()
            server.shutdown()
    server.shutdown()
    assert recorder.phases == [Phase.STARTING, Phase.SERVING, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]


async def test_phases_of_a_server_that_is_cancelled(autojump_clock):
    """A server that is cancelled does not drain: it cancels, stops and has stopped."""
    recorder = Recorder()
    async with memory_server(respond(), recorder=recorder):
        pass
    assert recorder.phases == [Phase.STARTING, Phase.SERVING, Phase.CANCELLING, Phase.STOPPING, Phase.STOPPED]


# What it takes


async def test_retire_lets_idle_connections_have_one_more_request(autojump_clock):
    """retire() accepts nothing more, but a connection that is idle is answered once again before it closes."""
    async with memory_server(respond()) as server:
        idle, other = await server.connect(), await server.connect()
        for client in (idle, other):
            assert b"connection" not in (await client.get()).headers
        server.server.retire()
        assert server.recorder.phases[-1] is Phase.DRAINING
        await trio.sleep(1)
        with pytest.raises(trio.ClosedResourceError):
            await server.listener.accept()
        answer = await idle.get()
        assert (answer.status, answer.headers[b"connection"]) == (200, b"close")
        assert await idle.receive_rest() == b""
        start = trio.current_time()
        assert await other.receive_rest() == b""
        assert trio.current_time() - start == 30 - 1  # timeout_graceful_shutdown
        await trio.sleep(1)
        assert server.recorder.phases[-1] is Phase.STOPPED


async def test_retire_with_a_grace(autojump_clock):
    """retire(grace) takes so many seconds at most, and may be called again with fewer."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.get()
        start = trio.current_time()
        server.server.retire(20)
        server.server.retire(5)
        assert await client.receive_rest() == b""
        assert trio.current_time() - start == 5


async def test_shutdown_after_retire(autojump_clock):
    """shutdown() after retire() waits for idle connections no longer."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.get()
        start = trio.current_time()
        server.server.retire()
        server.server.shutdown()
        assert await client.receive_rest() == b""
        assert trio.current_time() == start


@pytest.mark.parametrize("sees_to_it", [True, False])
async def test_limit_that_somebody_else_sees_to(autojump_clock, sees_to_it):
    """At limit_max_requests the observer is told once; if it sees to the end itself, the server serves on."""
    told = []

    class Keeper(Recorder):
        def limit_reached(self):
            told.append(len(self.records))
            return sees_to_it

    async with memory_server(respond(), recorder=Keeper(), limit_max_requests=2) as server:
        client = await server.connect()
        assert b"connection" not in (await client.get()).headers
        second = await client.get()
        assert told == [1]
        if sees_to_it:
            assert b"connection" not in second.headers
            for _ in range(3):
                assert b"connection" not in (await client.get()).headers
            assert server.recorder.phases[-1] is Phase.SERVING
        else:
            assert second.headers[b"connection"] == b"close"
            assert server.recorder.phases[-1] in (Phase.DRAINING, Phase.STOPPING, Phase.STOPPED)
        await client.aclose()
    assert told == [1]


async def test_options_go_before_the_config():
    """serve() takes a Config and single options, which win, and leaves the Config as it was."""
    config = Config(port=1, server_header=False, date_header=False)
    with nothing_left():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, respond(), config, port=0))
            headers = (await get(server.addresses[0])).headers
            server.shutdown()
    assert set(headers) == {b"content-length"}
    assert config == Config(port=1, server_header=False, date_header=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"prot": 1}, "there is no option 'prot'; did you mean 'port'?"), ({"port": "x"}, "^port must be a whole number")],
)
@pytest.mark.parametrize("config", [None, Config()])
async def test_a_wrong_option_is_refused(options, text, config):
    """A wrong option raises ConfigError from serve() itself."""
    with nothing_left(), pytest.raises(ConfigError, match=text):
        await serve(respond(), config, **options)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"workers": 2}, "workers=2"),
        ({"reload": True}, "reload"),
        ({"watchdog": 1}, "watchdog"),
        ({"pid_file": "app.pid"}, "pid_file"),
        ({"log_config": "log.json"}, "log_config"),
        ({"metrics_bind": "127.0.0.1:0"}, "metrics_bind"),
        ({"drain_delay": 1}, "drain_delay"),
        ({"workers": 1}, None),
    ],
)
@pytest.mark.parametrize("how", ["options", "config"])
async def test_several_processes_are_refused(options, asked, how):
    """serve() is one server in this process: it refuses what only a supervisor can do, before it does anything."""
    given = bound_socket()
    start = partial(serve, respond(), sockets=[given])
    start = partial(start, **options) if how == "options" else partial(start, config=Config(**options))
    if asked is None:
        async with trio.open_nursery() as nursery:
            (await nursery.start(start)).shutdown()
        return
    with closing(given), pytest.raises(ConfigError) as caught:
        await start()
    assert str(caught.value) == f"{asked} is for the command line and run(): serve() is one server in this process"


@pytest.mark.parametrize("kind", [socket.socket, trio.socket.SocketType])
@pytest.mark.parametrize("listening", [True, False])
async def test_ready_sockets_are_served_and_closed(kind, listening):
    """Sockets, listening or only bound, of Trio's kind or Python's, are served in place of host and port, and
    closed."""
    ready = bound_socket()
    if listening:
        ready.listen()
    address = ready.getsockname()
    given = ready if kind is socket.socket else trio.socket.from_stdlib_socket(ready)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, respond(), port=1, sockets=[given]))
        assert server.addresses == (address,)
        assert (await get(address)).status == 200
        server.shutdown()
    assert ready.fileno() == -1 or given.fileno() == -1


async def test_named_addresses_are_bound_beside_ready_sockets():
    """With sockets, host and port are not bound; addresses that were named are."""
    async with trio.open_nursery() as nursery:
        start = partial(serve, respond(), bind=["127.0.0.1:0"], sockets=[bound_socket()])
        server = await nursery.start(start)
        assert len(server.addresses) == 2
        for address in server.addresses:
            assert (await get(address)).status == 200
        server.shutdown()


async def test_bound_listeners_are_served_and_closed():
    """Listeners that are ready are served under their names in place of every address of the Config, and closed."""
    with nothing_left():
        ready = [Listener.from_socket(bound_socket(), tls=False, address=name) for name in ("fd:3", "fd:4")]
        other = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            # An address that cannot be bound shows that nobody tries.
            config = Config(bind=["192.0.2.1:1"])
            start = partial(serve_observed, respond(), config, bound=ready, listeners=other, observer=Recorder())
            server = await nursery.start(start)
            addresses = [one.raw_address for one in ready] + [one.socket.getsockname() for one in other]
            assert list(server.addresses) == addresses
            for address in addresses:
                assert (await get(address)).status == 200
            server.shutdown()
        assert [one.raw_socket.fileno() for one in ready] == [-1, -1]


async def test_bound_listener_knows_whether_it_speaks_tls(tmp_path):
    """A ready listener speaks TLS if it was made to, whatever the others do."""
    authority = trustme.CA()
    chain = tmp_path / "chain.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(chain))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    plain, secured = (Listener.from_socket(bound_socket(), tls=tls) for tls in (False, True))
    async with trio.open_nursery() as nursery:
        config = Config(ssl_certfile=str(chain))
        start = partial(serve_observed, respond(), config, bound=[plain, secured], observer=Recorder())
        server = await nursery.start(start)
        assert [url.partition(":")[0] for url in server.urls] == ["http", "https"]
        assert (await get(plain.raw_address)).status == 200
        stream = trio.SSLStream(
            await trio.open_tcp_stream(*secured.raw_address),
            context,
            server_hostname="localhost",
            https_compatible=True,
        )
        assert (await Client(stream).get()).status == 200
        await trio.aclose_forcefully(stream)
        server.shutdown()


async def test_bound_listeners_are_closed_if_the_start_fails(tmp_path):
    """A start that fails closes the ready listeners as well."""
    ready = Listener.from_socket(bound_socket(), tls=True)
    config = Config(ssl_certfile=str(tmp_path / "missing.pem"))
    with pytest.raises(CertificateError):
        await serve_observed(respond(), config, bound=[ready], observer=Recorder())
    assert ready.raw_socket.fileno() == -1


async def test_any_trio_listener_is_served():
    """A listener of any make is served as it comes; it has no address, and is closed at the end."""
    listener = MemoryListener()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, respond(), listeners=[listener]))
            assert (server.urls, server.addresses) == ((), (None,))
            stream = listener.connect()
            assert (await Client(stream).get()).body == b"Hello, world!"
            await stream.aclose()
            server.shutdown()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_trio_socket_listeners_are_served():
    """What trio.open_tcp_listeners gives is served like a socket, with its address."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, respond(), listeners=listeners))
        assert server.addresses == (listeners[0].socket.getsockname(),)
        assert (await get(server.addresses[0])).status == 200
        server.shutdown()


async def test_a_listener_that_breaks_ends_the_server():
    """What a listener of another make raises comes out of serve(), after lifespan.shutdown."""

    class Broken(MemoryListener):
        async def accept(self):
            raise LookupError("no more")

    with nothing_left(), pytest.raises(ExceptionGroup) as caught:
        await serve(respond(), listeners=[Broken()])
    assert caught.group_contains(LookupError, match="no more")


async def test_factory_is_called_for_the_application():
    """With factory the first argument is called, without arguments, and returns the application."""
    made = []

    def factory():
        made.append(1)
        return respond(b"made")

    async with socket_server(factory, factory=True) as server:
        assert (await get(server.server.addresses[0])).body == b"made"
    assert made == [1]


async def test_serve_stream_serves_one_connection(autojump_clock):
    """serve_stream serves requests on any stream until it closes, without lifespan, with a copy of the state each."""
    client_side, server_side = trio.testing.memory_stream_pair()
    state = {"a": 1}
    seen = []

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = 1
        await send_text(send, "Hi")

    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_stream, app, server_side, state=state, server_header=False))
            client = Client(client_side)
            for _ in range(2):
                answer = await client.get()
                assert answer.body == b"Hi"
                assert b"server" not in answer.headers
            await client.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await server_side.receive_some()
    assert seen == [state, state] == [{"a": 1}, {"a": 1}]


async def test_serve_stream_has_the_clocks_of_a_server(autojump_clock):
    """serve_stream closes an idle stream after timeout_keep_alive, and returns; the state may be left out."""
    client_side, server_side = trio.testing.memory_stream_pair()
    start = trio.current_time()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_stream, respond(), server_side, Config(timeout_keep_alive=9)))
            client = Client(client_side)
            await client.get()
        assert trio.current_time() - start == 9
        assert await client.receive_rest() == b""
        await client.aclose()


async def test_serve_stream_refuses_a_wrong_option():
    """serve_stream raises ConfigError before it touches the stream."""
    client_side, server_side = trio.testing.memory_stream_pair()
    with pytest.raises(ConfigError):
        await serve_stream(respond(), server_side, prot=1)
    await server_side.send_all(b"still open")
    assert await client_side.receive_some() == b"still open"


async def test_cancelling_serve_stream_cancels_the_handler(autojump_clock):
    """serve_stream ends when it is cancelled, after the handler's finally, and closes the stream."""
    client_side, server_side = trio.testing.memory_stream_pair()
    events = []

    async def app(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            events.append("finally")

    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, app, server_side)
            await client_side.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert events == ["finally"]
        assert await client_side.receive_some() == b""


# A start that fails


@pytest.mark.parametrize("position", ["first", "second"])
async def test_port_in_use_raises_bind_error_with_address(position):
    """An address that is taken raises BindError with the address, and what was bound before it is closed."""
    with nothing_left(), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        bind = [address] if position == "first" else ["127.0.0.1:0", address]
        descriptors = open_descriptors()
        with pytest.raises(BindError) as caught:
            await serve(respond(), bind=bind)
        assert open_descriptors() == descriptors
    assert str(caught.value) == f"cannot listen on {address}: address already in use"
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.skipif(not LINUX, reason="elsewhere bind() already refuses")
async def test_address_taken_only_at_listen_fails_after_lifespan_shutdown():
    """An address may turn out to be taken only at listen(): the same error, once the application has shut down
    again."""
    given = bound_socket()
    address = given.getsockname()
    events = []
    recorder = Recorder()

    async def app(scope, receive, send):
        with socket.socket() as rival:
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            rival.bind(address)
            rival.listen()
            await plain_lifespan(receive, send)
            events.append("shut down")

    with pytest.raises(BindError) as caught:
        await trioserve.server.serve_observed(app, Config(), sockets=[given], observer=recorder)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{address[1]}: address already in use"
    assert events == ["shut down"]
    assert given.fileno() == -1
    assert recorder.phases == [Phase.STARTING, Phase.STOPPING, Phase.STOPPED]


async def test_a_bad_certificate_fails_before_anything_is_bound(tmp_path):
    """A missing certificate raises CertificateError; given sockets are closed, the application is never called."""
    given = bound_socket()

    async def app(scope, receive, send):
        pytest.fail("the application was called")

    with pytest.raises(CertificateError, match=r"^ssl_certfile .*: no such file or directory"):
        await serve(app, sockets=[given], ssl_certfile=str(tmp_path / "none.pem"))
    assert given.fileno() == -1


async def test_a_factory_that_raises_fails_the_start():
    """What the factory raises is the cause of an AppLoadError that names it; nothing is left."""
    given = bound_socket()

    def factory():
        raise ZeroDivisionError("no app")

    with pytest.raises(AppLoadError) as caught:
        await serve(factory, sockets=[given], factory=True)
    assert str(caught.value) == "the application factory raised ZeroDivisionError: no app"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert given.fileno() == -1


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (respond(), "'scope'; if it is the application itself, leave the option factory out"),
        (lambda settings: respond(), "'settings'"),
    ],
)
async def test_a_factory_must_take_no_arguments(factory, said):
    """What needs arguments is refused uncalled; that it is the application itself is said only if it could be."""
    with nothing_left(), pytest.raises(AppLoadError) as caught:
        await serve(factory, port=0, factory=True)
    expected = f"the application factory must take no arguments: missing a required argument: {said}"
    assert str(caught.value) == expected


async def test_a_factory_must_return_an_application():
    """A factory that returns nothing that can be called is refused at the start, and not at the first request."""
    with nothing_left(), pytest.raises(AppLoadError) as caught:
        await serve(lambda: None, port=0, factory=True)
    assert str(caught.value) == "the application factory must return an application, not None"


async def test_async_factory(autojump_clock):
    """A factory that is async is refused, and what it has returned is closed."""

    async def make(): ...

    with pytest.raises(AppLoadError, match="the application factory must not be async"):
        await serve(make, factory=True, port=0)


async def test_lifespan_failed_raises_and_leaves_no_socket(tmp_path):
    """An application that cannot start raises LifespanError; no socket, no file of a unix socket is left."""
    path = tmp_path / "s"

    async def app(scope, receive, send):
        assert path.exists()
        await receive()
        raise ValueError("no")

    with nothing_left(), pytest.raises(LifespanError, match=r"ValueError: no$"):
        await serve(app, bind=["127.0.0.1:0", f"unix:{path}"])
    assert not path.exists()


async def test_nobody_can_connect_before_the_application_has_started():
    """Binding comes before start-up and listening after it: a client is refused meanwhile, and not left waiting."""
    given = bound_socket()
    address = given.getsockname()
    refused = []

    async def app(scope, receive, send):
        await receive()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*address)
        refused.append(True)
        await send({"type": "lifespan.startup.complete"})
        await receive()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, app, sockets=[given]))
        server.shutdown()
    assert refused == [True]


# Cancelling


async def test_cancel_during_startup(autojump_clock):
    """Cancelling serve() while the application starts cancels the start-up, and leaves nothing."""
    events = []

    async def app(scope, receive, send):
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            events.append("cleaned up")

    with nothing_left():
        with trio.move_on_after(5) as scope:
            await serve(app, port=0)
    assert scope.cancelled_caught
    assert events == ["cleaned up"]


async def test_cancel_of_given_sockets_before_the_first_checkpoint():
    """serve() owns its sockets and listeners from the call on, also when it is cancelled before it does anything."""
    given, listener = bound_socket(), MemoryListener()
    recorder = Recorder()
    with trio.CancelScope() as scope:
        scope.cancel()
        await trioserve.server.serve_observed(
            respond(), Config(), sockets=[given], listeners=[listener], observer=recorder
        )
    assert given.fileno() == -1
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    assert recorder.phases[-1] is Phase.STOPPED


async def test_cancel_while_the_start_fails_closes_what_was_given(tmp_path):
    """A start that fails in a cancelled scope closes its sockets all the same."""
    given = bound_socket()
    with trio.CancelScope() as scope, pytest.raises(CertificateError):
        scope.cancel()
        await serve(respond(), sockets=[given], ssl_certfile=str(tmp_path / "none.pem"))
    assert given.fileno() == -1


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the k-th step that any task makes from now on."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


class Life:
    """An application that notes what happens to it, and checks the order of it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self.events.append("handler")
        try:
            await trio.lowlevel.checkpoint()
            await send_text(send, "Hi")
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.events.append("handler ended")

    async def _live(self, receive, send):
        self.events.append("called")
        try:
            await receive()
            await trio.lowlevel.checkpoint()
            await send({"type": "lifespan.startup.complete"})
            self.events.append("started")
            await receive()
            self.events.append("stopping")
            await trio.lowlevel.checkpoint()
            await send({"type": "lifespan.shutdown.complete"})
            self.events.append("stopped")
        finally:
            self.events.append("returned")

    def check(self) -> None:
        events = self.events
        assert events.count("handler") == events.count("handler ended")
        if "called" in events:
            assert events[-1] == "returned"
        if "started" in events:
            assert events[-3:] == ["stopping", "stopped", "returned"]


async def visit(stream: trio.abc.Stream) -> None:
    """A client that makes one request and takes what comes."""
    try:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await stream.receive_some(65536)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def live_once(step: int, start, connect) -> bool:
    """Start, serve one request, shut down; cancel serve() before this step. Whether that step was reached."""
    life = Life()
    stream = None
    tasks, descriptors = trio.lowlevel.current_statistics().tasks_living, open_descriptors()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            instrument = CancelAtStep(nursery.cancel_scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                server = await nursery.start(partial(start, life))
                stream = await connect(server)
                await visit(stream)
                server.shutdown()
            finally:
                if stream is not None:
                    await trio.aclose_forcefully(stream)
    trio.lowlevel.remove_instrument(instrument)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert open_descriptors() == descriptors
    life.check()
    return instrument.left <= 0


async def test_cancel_at_every_step(autojump_clock):
    """Whenever serve() is cancelled, every handler ends, then lifespan shuts down if it started, and nothing is
    left."""
    step = 1
    while True:
        listener = MemoryListener()

        async def connect(server, listener=listener):
            return listener.connect()

        if not await live_once(step, partial(serve, listeners=[listener]), connect):
            break
        step += 1
    assert step > 30


async def test_cancel_at_every_step_with_sockets(tmp_path):
    """The same with real sockets: no descriptor and no file of a unix socket is left, whenever it is cancelled."""
    path = tmp_path / "s"
    step = 1
    # Which steps there are depends a little on the kernel here.
    for step in range(1, 90):
        start = partial(serve, bind=[f"unix:{path}", "127.0.0.1:0"])
        reached = await live_once(step, start, lambda server: trio.open_unix_socket(server.addresses[0]))
        assert not path.exists()
        if not reached:
            break
    assert step > 30


async def test_cancel_at_every_step_with_tls(tmp_path):
    """The same with TLS over TCP: a handshake may be cut at any point too."""
    ca = trustme.CA()
    pem = tmp_path / "both.pem"
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    context = ssl.create_default_context()
    ca.configure_trust(context)

    async def connect(server):
        stream = await trio.open_tcp_stream(*server.addresses[0])
        return trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)

    step = 1
    for step in range(1, 120):
        if not await live_once(step, partial(serve, port=0, ssl_certfile=str(pem)), connect):
            break
    assert step > 30


# Nothing global


def snapshot() -> dict[str, object]:
    loggers = {"": logging.root, **logging.Logger.manager.loggerDict}
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "loggers": {
            name: (one.level, list(one.handlers), one.propagate, one.disabled, list(one.filters))
            for name, one in loggers.items()
            if isinstance(one, logging.Logger)
        },
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, sys.unraisablehook, list(sys.path)),
    }


async def test_nothing_global_is_touched():
    """serve() leaves signals, every logger, the folder and the environment as they are, while serving and after."""
    before = snapshot()
    async with socket_server(respond()) as server:
        assert (await get(server.server.addresses[0])).status == 200
        assert snapshot() == before
        server.server.shutdown()
    assert snapshot() == before


async def test_the_environment_is_not_read(monkeypatch, tmp_path):
    """serve() reads neither TRIOSERVE_ variables nor configuration files; only the command line and run() do."""
    monkeypatch.setenv("TRIOSERVE_PORT", "nonsense")
    monkeypatch.setenv("TRIOSERVE_SERVER_HEADER", "off")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trioserve.toml").write_text("nonsense")
    async with socket_server(respond()) as server:
        assert (await get(server.server.addresses[0])).headers[b"server"] == b"trioserve"


async def test_two_servers_in_one_program(autojump_clock):
    """Two servers know nothing of each other: other options, states, statistics; one stops and the other serves on."""

    def app(name):
        async def one(scope, receive, send):
            if scope["type"] == "lifespan":
                scope["state"]["name"] = name
                await plain_lifespan(receive, send)
            else:
                await send_text(send, scope["state"]["name"])

        return one

    async with memory_server(app("b"), header=["X-Server: b"]) as second:
        await trio.testing.wait_all_tasks_blocked()
        async with memory_server(app("a"), header=["X-Server: a"]) as first:
            for server, name in ((first, b"a"), (second, b"b")):
                client = await server.connect()
                answer = await client.get()
                assert (answer.body, answer.headers[b"x-server"]) == (name, name)
                await client.aclose()
            first.server.shutdown()
            await trio.sleep(1)
            client = await second.connect()
            assert (await client.get()).body == b"b"
            await client.aclose()
            assert first.server.statistics().requests_total == 1
            assert second.server.statistics().requests_total == 2
            await trio.sleep(1)


async def test_the_public_names():
    """What trioserve exports is what DESIGN.md lists."""
    assert set(trioserve.__all__) == {
        "AppLoadError", "BindError", "CertificateError", "ClientDisconnected", "Config", "ConfigError", "LifespanError",
        "MessageError", "Server", "StartupError", "TrioserveError", "__version__", "run", "serve", "serve_stream",
    }  # fmt: skip
    for name in trioserve.__all__:
        assert hasattr(trioserve, name)
