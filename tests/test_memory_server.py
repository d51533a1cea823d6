"""memory_server: a server over memory streams, in virtual time."""

from __future__ import annotations

import itertools
import time

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, ConnectionRejected

from trioserve import ConfigError, LifespanError
from trioserve.exchange import Endpoint, Request
from trioserve.testing import MemoryServer, ServerStuckError, memory_server
from trioserve.testing.memory_server import MemoryListener
from trioserve.testing.witness import Witness

from .support import Client, http_app, nothing_left, respond, send_text
from .test_trio_server import Broken, echo, fail, fails_to_stop, hello, pour, shielded, wait_for_ever, websocket_app
from .test_trio_server import with_lifespan as lifespan_app

pytestmark = pytest.mark.timeout(20)

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Watch:
    """Seconds that have passed since it was made, virtual and real."""

    def __init__(self) -> None:
        self._virtual, self._real = trio.current_time(), time.monotonic()

    @property
    def virtual(self) -> float:
        return round(trio.current_time() - self._virtual, 6)

    @property
    def real(self) -> float:
        return time.monotonic() - self._real


async def ask(server: MemoryServer, data: bytes = REQUEST) -> trio.abc.Stream:
    """A client whose request the server has seen."""
    stream = await server.connect()
    await stream.send_all(data)
    await trio.testing.wait_all_tasks_blocked()
    return stream


async def is_closed(stream: trio.abc.ReceiveStream) -> bool:
    try:
        return await stream.receive_some() == b""
    except trio.BrokenResourceError:
        return True


# What it is


async def test_it_says_where_it_is(autojump_clock):
    """Nothing is bound: there is a name for Host, but no port and no path."""
    async with memory_server(respond()) as server:
        assert (server.host, server.port, server.unix_path, server.ca) == ("localhost", 0, None, None)
        assert (server.url, server.ws_url) == ("http://localhost", "ws://localhost")
        assert repr(server) == "<MemoryServer http://localhost>"
        assert server.server.addresses == (None,)


async def test_there_is_no_tls(autojump_clock):
    """The argument tls does not exist here."""
    with pytest.raises((TypeError, ConfigError), match="tls"):
        async with memory_server(respond(), tls=True):
            raise AssertionError("it has started")


async def test_no_address_is_bound(tmp_path):
    """Nothing is bound, whatever address the options name: they may be those of the application's usual Config."""
    path = tmp_path / "s"
    async with memory_server(respond(), uds=str(path), port=1) as server:
        assert server.server.addresses == (None,)
        assert not path.exists()


async def test_it_serves_for_as_long_as_the_block(autojump_clock):
    """Several connections with several requests each are served; nothing is left."""
    with nothing_left():
        async with memory_server(respond()) as server:
            for _ in range(3):
                client = Client(await server.connect())
                for _ in range(3):
                    assert (await client.get()).body == b"Hello, world!"
            await server.wait_idle()
            assert [(one.status, one.client) for one in server.requests] == [(200, "-")] * 9


# Virtual time


async def test_thirty_minutes_of_keep_alive(autojump_clock):
    """An idle connection closes when its half hour is over, and the test takes a moment."""
    async with memory_server(respond(), timeout_keep_alive=1800) as server:
        client = Client(await server.connect())
        await client.get()
        watch = Watch()
        assert await client.receive_rest() == b""
        assert watch.virtual == 1800
        assert watch.real < 1


async def test_a_slow_handler(autojump_clock):
    """A handler that takes an hour is answered with 504 when timeout_request is over."""

    async def handler(scope, receive, send):
        await trio.sleep(3600)

    async with memory_server(http_app(handler), timeout_request=1000) as server:
        watch = Watch()
        assert (await Client(await server.connect()).get()).status == 504
        assert watch.virtual == 1000
        assert watch.real < 1
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["deadline"]


async def test_wait_idle_in_virtual_time(autojump_clock):
    """wait_idle has its time-out in virtual time, too."""
    async with memory_server(http_app(wait_for_ever), timeout_graceful_shutdown=0) as server:
        await ask(server)
        watch = Watch()
        with pytest.raises(TimeoutError, match=r"^still running after 600 s: GET / HTTP/1\.1$"):
            await server.wait_idle(600)
        assert watch.virtual == 600
        assert watch.real < 1


async def test_a_client_that_stalls(autojump_clock):
    """Memory streams hold nothing for a client that stalls: the first piece runs into timeout_write."""
    async with memory_server(respond(b"short"), timeout_write=1200) as server, server.stall("/") as client:
        watch = Watch()
        await server.wait_idle(5000)
        assert watch.virtual == 1200
        assert watch.real < 1
        assert [one.outcome for one in server.requests] == ["deadline"]
        assert client.received == b""


@pytest.mark.parametrize("pace", [0.5, 10, 1000])
async def test_a_slow_client_has_the_right_pace(autojump_clock, pace):
    """A response of so many bytes, head included, takes a slow client as many seconds as they are at its pace."""
    async with memory_server(respond(bytes(5000)), timeout_write=1e6) as server:
        watch = Watch()
        async with server.slow("/", pace) as client:
            received = await client.wait()
        assert received.endswith(bytes(5000))
        assert watch.virtual == pytest.approx(len(received) / pace, rel=0.01)
        assert watch.real < max(5, watch.virtual / 25)
        assert bytes(client.received) == received


async def test_a_slow_client_holds_its_handler_up(autojump_clock):
    """The handler sends no faster than the client reads."""
    sent = []

    async def handler(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
            sent.append(trio.current_time())
        await send({"type": "http.response.body"})

    async with memory_server(http_app(handler), timeout_write=1000) as server, server.slow("/", 10_000) as client:
        await client.wait()
    assert [round(late - early) for early, late in itertools.pairwise(sent)] == [10, 10]


async def test_a_slow_client_of_small_pieces_does_not_stall(autojump_clock):
    """A client that reads each piece within timeout_write is not cut off, however long the whole takes."""

    async def handler(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
        await send({"type": "http.response.body"})

    async with memory_server(http_app(handler), timeout_write=30) as server:
        async with server.slow("/", 1000) as client:
            assert len(await client.wait()) > 100_000
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["ok"]


@pytest.mark.parametrize("pace", [0, -1, float("inf")])
async def test_a_pace_that_is_none(pace):
    """A pace must be above 0; who wants to read nothing is told of stall."""
    async with memory_server(respond()) as server:
        with pytest.raises(ValueError, match="^bytes_per_second must be above 0, and finite, not .*; 0 is stall$"):
            async with server.slow("/", pace):
                pytest.fail("it has begun")


@pytest.mark.parametrize("options", [{"tls": True}, {"ssl_certfile": "chain.pem"}])
async def test_memory_streams_have_no_tls(options):
    """TLS is refused in words that say where it works."""
    with pytest.raises(ConfigError, match="^memory streams have no TLS: tls and ssl_.* are for sockets$"):
        async with memory_server(respond(), **options):
            pytest.fail("it has started")


async def test_a_slow_client_that_leaves_early(autojump_clock):
    """At the end of its block a slow client is gone, in the middle of the response."""
    async with memory_server(http_app(pour), timeout_write=300) as server:
        async with server.slow("/", 1000) as client:
            await trio.sleep(60)
            assert len(client.received) == pytest.approx(60_000, rel=0.01)
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["client left"]


# Clients


async def test_client_gone(autojump_clock):
    """Its handler sees it leave, before the response or after some of it."""
    async with memory_server(http_app(pour)) as server:
        await server.client_gone("/")
        await server.client_gone("/", after=100_000)
        await server.wait_idle()
        assert [one.outcome for one in server.requests] == ["client left"] * 2
        assert server.requests[1].bytes >= 65536


async def test_client_gone_several_times_at_once(autojump_clock):
    """Clients with the same path do not take each other's requests for theirs, even though none has a name."""
    async with memory_server(http_app(wait_for_ever)) as server, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(server.client_gone, "/")
    assert [one.outcome for one in server.requests] == ["client left"] * 20


async def test_clients_with_several_paths_at_once(autojump_clock):
    """Each client waits for its own request, in whatever order they begin."""
    proceed = trio.Event()

    async def handler(scope, receive, send):
        await proceed.wait()
        await send_text(send, scope["path"])

    async with memory_server(http_app(handler)) as server:
        async with server.slow("/one", 1e6) as one, server.slow("/two", 1e6) as two, server.slow("/one", 1e6) as three:
            assert [request.target for request in server.witness.active] == [b"/one", b"/two", b"/one"]
            proceed.set()
            for client, path in ((three, b"/one"), (two, b"/two"), (one, b"/one")):
                assert (await client.wait()).endswith(path)
        async with trio.open_nursery() as nursery:
            for path in ("/one", "/two", "/one"):
                nursery.start_soon(server.client_gone, path)


async def test_a_client_waits_for_no_other_request():
    """Only a request for the same target, of the same client, is the one that a client waits for; each for one."""
    witness = Witness()
    here, there = Endpoint(client=("127.0.0.1", 1)), Endpoint(client=("127.0.0.1", 2))
    with witness.expect(b"/", here.client) as first, witness.expect(b"/", here.client) as second:
        for target, endpoint in ((b"/other", here), (b"/", there), (b"/", Endpoint())):
            witness.exchange_began(Request("GET", target, [], "1.1", endpoint))
        assert not first.is_set()
        witness.exchange_began(Request("GET", b"/", [], "1.1", here))
        assert (first.is_set(), second.is_set()) == (True, False)


async def test_websocket(autojump_clock):
    """A WebSocket is opened, and pinged for an hour."""
    options = {"ws_ping_interval": 60, "ws_ping_timeout": 5}
    async with memory_server(websocket_app(echo), **options) as server:
        async with server.websocket("/chat") as socket:
            await trio.sleep(3600)
            await socket.send_message("hi")
            assert await socket.get_message() == "hi"
        await server.wait_idle()
        assert [(one.code, one.duration) for one in server.websockets] == [(1000, pytest.approx(3600))]


async def test_a_websocket_that_is_refused(autojump_clock):
    """A refusal comes out bare, at once."""
    async with memory_server(respond()) as server:
        watch = Watch()
        with pytest.raises(ConnectionRejected):
            async with server.websocket():
                raise AssertionError("it has opened")
        assert watch.virtual == 0
        assert [type(error) for error in server.errors]
        server.errors.clear()


async def test_a_websocket_that_is_not_answered(autojump_clock):
    """An application that neither accepts nor refuses: the server's 504 comes after timeout_ws_handshake."""
    async with memory_server(http_app(wait_for_ever), timeout_ws_handshake=3) as server:
        watch = Watch()
        with pytest.raises(ConnectionRejected) as caught:
            async with server.websocket():
                raise AssertionError("it has opened")
        assert caught.value.status_code == 504
        assert watch.virtual == 3


async def test_a_websocket_at_the_end_of_the_server(autojump_clock):
    """An open WebSocket hears of the shutdown with 1012."""
    async with (
        memory_server(websocket_app(echo)) as server,
        server.websocket() as socket,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(server.shutdown)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.get_message()
        assert caught.value.reason.code == 1012


# How it ends


async def test_an_error_of_the_application_comes_out(autojump_clock):
    """As with open_server: raised at the end, unless it was taken out."""
    with pytest.raises(Broken, match="/"):
        async with memory_server(http_app(fail)) as server:
            assert (await Client(await server.connect()).get()).status == 500
    async with memory_server(http_app(fail)) as server:
        await Client(await server.connect()).get()
        server.errors.clear()
    async with memory_server(http_app(fail), allow_errors=True) as server:
        await Client(await server.connect()).get()


async def test_an_error_of_the_block_comes_out_bare(autojump_clock):
    """pytest.raises works across the block."""
    with nothing_left(), pytest.raises(Broken):
        async with memory_server(http_app(wait_for_ever)) as server:
            await ask(server)
            raise Broken


async def test_a_cancellation_from_outside(autojump_clock):
    """move_on_after round the block ends it."""
    with nothing_left(), trio.move_on_after(5000) as scope:
        async with memory_server(respond()) as server:
            await server.connect()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_errors_of_the_lifespan(autojump_clock):
    """LifespanError comes out bare, from the start and from the end."""

    async def lifespan(receive, send):
        await trio.sleep_forever()

    watch = Watch()
    with nothing_left(), pytest.raises(LifespanError, match="did not start within 300 s"):
        async with memory_server(lifespan_app(lifespan), timeout_startup=300):
            raise AssertionError("it has started")
    assert watch.virtual == 300
    with nothing_left(), pytest.raises(LifespanError, match="could not shut down: no luck"):
        async with memory_server(lifespan_app(fails_to_stop(None))):
            pass


@pytest.mark.parametrize(("options", "expected"), [({}, 1), ({"timeout_graceful_shutdown": 1800}, 1800)])
async def test_a_grace_in_virtual_time(autojump_clock, options, expected):
    """At the end of the block handlers have as long as the options say: one second, or half an hour."""
    with nothing_left():
        async with memory_server(http_app(wait_for_ever), **options) as server:
            await ask(server)
            watch = Watch()
        assert watch.virtual == expected
        assert watch.real < 1
        assert [one.outcome for one in server.requests] == ["shutdown"]


async def test_a_handler_that_shields_itself_for_ever(autojump_clock):
    """ServerStuckError comes after all deadlines of the server and a second, with the tree of tasks."""
    with nothing_left(), pytest.raises(ServerStuckError) as caught:
        async with memory_server(http_app(shielded(trio.Event())), timeout_graceful_shutdown=600) as server:
            await ask(server)
            watch = Watch()
    assert watch.virtual == pytest.approx(600 + 2 + 1, abs=0.5)
    assert watch.real < 1
    assert str(caught.value).startswith("the server has not ended 603.0 s after it was told to stop\n\nTasks, each")
    assert "shielded.<locals>.handler" in str(caught.value)


async def test_clean_up_that_puts_up_new_shields(autojump_clock):
    """A handler that shields itself again whenever it is cancelled is ended nevertheless."""
    depth = []

    async def dig_in() -> None:
        depth.append(True)
        if len(depth) == 10:
            return
        try:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        finally:
            await dig_in()

    async def handler(scope, receive, send):
        await dig_in()

    with nothing_left(), pytest.raises(ServerStuckError, match="dig_in"):
        async with memory_server(http_app(handler), allow_errors=True) as server:
            await ask(server)
    assert len(depth) == 10


async def test_a_lifespan_that_shields_itself_for_ever(autojump_clock):
    """A lifespan that does not end is told of, too."""

    async def lifespan(receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    with nothing_left(), pytest.raises(ServerStuckError, match=r"lifespan_that_shields_itself_for_ever.<locals>"):
        async with memory_server(lifespan_app(lifespan)) as server:
            watch = Watch()
    assert watch.virtual <= server.seconds_to_end(None)


async def test_tasks_of_a_handler_that_shield_themselves(autojump_clock):
    """Shields in tasks that a handler has started are broken, too, in nurseries within nurseries."""

    async def child() -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                with trio.CancelScope(shield=True):
                    await trio.sleep_forever()

    async def handler(scope, receive, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)

    with nothing_left(), pytest.raises(ServerStuckError, match=r"handler_that_shield_themselves.<locals>.child"):
        async with memory_server(http_app(handler)) as server:
            await ask(server)


async def test_connect_after_the_stop(autojump_clock):
    """As a server that listens no more: ConnectionRefusedError, for every client."""
    async with memory_server(respond()) as server:
        await server.shutdown()
        with pytest.raises(ConnectionRefusedError, match="the server has been stopped"):
            await server.connect()
        with pytest.raises(ConnectionRefusedError):
            await server.client_gone("/")
        with pytest.raises(ConnectionRefusedError):
            async with server.stall("/"):
                raise AssertionError("it has connected")
        with pytest.raises(ConnectionRefusedError):
            async with server.websocket():
                raise AssertionError("it has connected")
        await server.shutdown()


async def test_connections_that_were_left_open_are_closed(autojump_clock):
    """What connect() opened and nobody closed is closed at the end."""
    async with memory_server(respond()) as server:
        stream = await server.connect()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


# The listener


async def test_connections_that_wait_when_the_listener_closes():
    """Those that nobody has accepted are ended, so that their clients do not wait for ever."""
    listener = MemoryListener()
    streams = [listener.connect() for _ in range(3)]
    await listener.aclose()
    assert [await is_closed(stream) for stream in streams] == [True] * 3
    await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_connections_that_wait_when_the_listener_closes_in_a_cancelled_scope():
    """aclose() in a cancelled scope closes all, as that of every Trio resource does."""
    listener = MemoryListener()
    streams = [listener.connect() for _ in range(3)]
    with trio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    with trio.fail_after(1):
        assert [await is_closed(stream) for stream in streams] == [True] * 3
    with pytest.raises(ConnectionRefusedError):
        listener.connect()


async def test_an_accept_that_waits_when_the_listener_closes():
    """Whoever waits in accept() gets ClosedResourceError."""
    listener = MemoryListener()

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()


async def test_many_connections_at_once(autojump_clock):
    """However many clients connect in the same moment, all are served."""
    async with memory_server(http_app(hello)) as server:
        answers = []

        async def get() -> None:
            answers.append((await Client(await server.connect()).get()).status)

        async with trio.open_nursery() as nursery:
            for _ in range(250):
                nursery.start_soon(get)
        assert answers == [200] * 250


async def test_a_client_that_reads_little_sees_all():
    """A connection with ``reads_little`` carries bytes both ways, and holds back what is not read."""
    listener = MemoryListener()
    client = listener.connect(reads_little=True)
    server = await listener.accept()
    await client.send_all(b"request")
    assert await server.receive_some() == b"request"
    sent = trio.Event()

    async def send() -> None:
        await server.send_all(b"response")
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        assert await client.receive_some() == b"response"
    await client.aclose()
    await server.aclose()
    await listener.aclose()


async def test_plain_text_for_its_own_clients(autojump_clock):
    """Host is what ``url`` says."""

    async def handler(scope, receive, send):
        await send_text(send, dict(scope["headers"])[b"host"])

    async with memory_server(http_app(handler)) as server, server.slow("/", 1e6) as client:
        assert (await client.wait()).endswith(b"localhost")
