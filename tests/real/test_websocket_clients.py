"""WebSocket clients that people use: websockets on Trio, asyncio and threads, and trio-websocket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import urllib.parse

import pytest
import trio
import trio_websocket
import trustme
import websockets.asyncio.client
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.trio.client import ClientConnection, unix_connect

from trioserve.logs import Outcome

from ..programs import start
from ..support import plain_lifespan, socket_server
from .clients import PATIENCE, SERVE, closing_of, wait_until, websocket_to

MIB = 1024 * 1024
TEXT = "Grüße, 世界 🎉"
BINARY = bytes(range(256))


class App:
    """An application for every path below, which notes how its WebSockets ended."""

    def __init__(self):
        self.scopes = []
        self.ends = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        self.scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        await getattr(self, scope["path"].strip("/") or "echo")(scope, receive, send)

    async def echo(self, scope, receive, send):
        """Send everything back."""
        subprotocol = scope["subprotocols"][-1] if scope["subprotocols"] else None
        headers = [(b"x-answer", b"first"), (b"x-answer", b"second")]
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        self.ends.append((message["code"], message["reason"]))

    async def close(self, scope, receive, send):
        """Close at once, with what the query says."""
        query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": int(query["code"]), "reason": query.get("reason", "")})
        message = await receive()
        self.ends.append((message["code"], message["reason"]))

    async def refuse(self, scope, receive, send):
        await send({"type": "websocket.close"})

    async def deny(self, scope, receive, send):
        """Refuse with a response of its own."""
        headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Basic")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"Who ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"are you?"})

    async def fail(self, scope, receive, send):
        await send({"type": "websocket.accept"})
        raise ValueError("on purpose")


@contextlib.asynccontextmanager
async def serving(**options):
    """The application on a real port; yields it, the server and the address. All is over within PATIENCE seconds."""
    app = App()
    with trio.fail_after(PATIENCE):
        async with socket_server(app, **options) as server:
            yield app, server, server.server.urls[0].replace("http", "ws", 1)


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path):
    """The path of a chain and key for localhost."""
    path = tmp_path / "server.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def context(authority):
    """A client's TLS context that trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# websockets, on Trio


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_there_and_back(compression):
    """Text and bytes come back as they were sent; the end is clean on both sides."""
    async with serving() as (app, server, url):
        async with websocket_to(url, compression=compression) as websocket:
            for message in (TEXT, BINARY, "", b"", "x" * 70_000, BINARY * 1000):
                await websocket.send(message)
                assert await websocket.recv() == message
        await wait_until(lambda: server.recorder.websockets)
        assert websocket.close_code == 1000
    assert app.ends == [(1000, "")]
    (record,) = server.recorder.websockets
    assert (record.code, record.outcome, record.received_messages, record.sent_messages) == (1000, Outcome.OK, 6, 6)
    assert record.received == record.sent == len(TEXT.encode()) + 256 + 70_000 + 256_000
    assert server.errors == []


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("size", [MIB, 16 * MIB])
async def test_a_large_message_there_and_back(size, compression):
    """A message of up to 16 MiB comes back whole."""
    message = os.urandom(1024) * (size // 1024)
    async with serving() as (_, server, url), websocket_to(url, compression=compression) as websocket:
        await websocket.send(message)
        received = await websocket.recv()
    assert received == message
    assert server.errors == []


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_one_byte_too_much(compression):
    """One byte more than 16 MiB is refused with 1009, which the client reads."""
    async with serving() as (app, server, url):
        async with websocket_to(url, compression=compression) as websocket:
            with contextlib.suppress(ConnectionClosed):
                await websocket.send(bytes(16 * MIB + 1))
            code, _ = await closing_of(websocket)
            assert code == 1009
        await wait_until(lambda: server.recorder.websockets)
    assert app.ends[0][0] == 1009
    assert server.errors == []


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_far_too_much(compression):
    """A client that is still sending when its message is refused reads why, and is not merely reset."""
    message = os.urandom(MIB) * 16
    async with serving(ws_max_size=MIB) as (_, server, url):
        async with websocket_to(url, compression=compression) as websocket:
            with contextlib.suppress(ConnectionClosed):
                await websocket.send(message)
            code, _ = await closing_of(websocket)
            assert code == 1009
        await wait_until(lambda: server.recorder.websockets)
    assert server.errors == []


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_fragments(compression):
    """A message that the client sends in fragments comes back as one."""
    async with serving() as (_, server, url), websocket_to(url, compression=compression) as websocket:
        await websocket.send(["Grü", "ße", "", ", 世界"])
        assert await websocket.recv() == "Grüße, 世界"
        await websocket.send([b"one ", b"two ", BINARY * 1000])
        assert await websocket.recv() == b"one two " + BINARY * 1000
    assert server.recorder.websockets[0].received_messages == 2


async def test_many_messages_at_once():
    """A client that sends and receives at the same time gets all back, in order."""
    messages = [f"{number} {'x' * (number % 500)}" for number in range(2000)]
    async with serving() as (_, _, url), websocket_to(url) as websocket, trio.open_nursery() as nursery:

        async def send():
            for message in messages:
                await websocket.send(message)

        nursery.start_soon(send)
        assert [await websocket.recv() for _ in messages] == messages


async def test_many_websockets():
    """A hundred at once are all served, and told apart."""
    async with serving() as (app, server, url):

        async def talk(number):
            async with websocket_to(url) as websocket:
                for _ in range(3):
                    await websocket.send(str(number))
                    assert await websocket.recv() == str(number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(talk, number)
        await wait_until(lambda: len(server.recorder.websockets) == 100)
        assert server.server.statistics().websockets == 0
    assert app.ends == [(1000, "")] * 100


async def test_pings_of_the_client():
    """Each ping of the client gets its pong, with and without a payload, also while messages go by."""
    async with serving() as (_, _, url), websocket_to(url) as websocket:
        for payload in (None, b"", b"payload", b"x" * 125):
            pong = await websocket.ping(payload)
            await websocket.send("between")
            await pong.wait()
        assert [await websocket.recv() for _ in range(4)] == ["between"] * 4


async def test_pings_of_the_server():
    """The client's pongs are taken: it is pinged again and again, and not closed."""
    pings = []

    class Pinged(ClientConnection):
        def process_event(self, event):
            if getattr(event, "opcode", None) is Opcode.PING:
                pings.append(bytes(event.data))
            super().process_event(event)

    async with (
        serving(ws_ping_interval=0.02, ws_ping_timeout=10) as (_, _, url),
        websocket_to(url, create_connection=Pinged) as websocket,
    ):
        await wait_until(lambda: len(pings) >= 4)
        await websocket.send("still here")
        assert await websocket.recv() == "still here"
    assert len(set(pings)) == len(pings)


async def test_subprotocol():
    """The application chooses among what the client offers."""
    async with serving() as (app, _, url), websocket_to(url, subprotocols=["chat", "superchat"]) as websocket:
        assert websocket.subprotocol == "superchat"
        assert app.scopes[0]["subprotocols"] == ["chat", "superchat"]


async def test_headers_both_ways():
    """Fields of the client are in the scope, and fields of the accept in the client's response."""
    headers = {"X-Question": "why", "Authorization": "Basic eDp5"}
    async with (
        serving() as (app, _, url),
        websocket_to(f"{url}/echo?a=b", additional_headers=headers, origin="http://example.org") as websocket,
    ):
        assert websocket.response.headers.get_all("x-answer") == ["first", "second"]
        assert websocket.response.headers["server"] == "trioserve"
    (scope,) = app.scopes
    fields = dict(scope["headers"])
    assert fields[b"x-question"] == b"why"
    assert fields[b"authorization"] == b"Basic eDp5"
    assert fields[b"origin"] == b"http://example.org"
    assert (scope["path"], scope["query_string"], scope["scheme"]) == ("/echo", b"a=b", "ws")


async def test_refusal():
    """A close in place of an accept is a 403 for the client."""
    async with serving() as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/refuse"):
                pass
    assert caught.value.response.status_code == 403
    assert [record.status for record in server.records] == [403]
    assert server.errors == []


async def test_denial():
    """The application's own response reaches the client: status, fields and body."""
    async with serving() as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/deny"):
                pass
    response = caught.value.response
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Basic"
    assert response.body == b"Who are you?"
    assert [record.status for record in server.records] == [401]
    assert server.errors == []


async def test_the_application_fails():
    """An application that raises closes with 1011."""
    async with serving() as (_, server, url):
        async with websocket_to(f"{url}/fail") as websocket:
            assert await closing_of(websocket) == (1011, "")
        await wait_until(lambda: server.recorder.websockets)
    assert [str(error) for error in server.errors] == ["on purpose"]


# permessage-deflate

OFFERS = {
    "nothing": ({"client_max_window_bits": None}, "server_max_window_bits=12"),
    "as usual": ({}, "server_max_window_bits=12; client_max_window_bits=12"),
    "a small window of the server": (
        {"server_max_window_bits": 9},
        "server_max_window_bits=9; client_max_window_bits=12",
    ),
    "large windows": (
        {"server_max_window_bits": 15, "client_max_window_bits": 15},
        "server_max_window_bits=12; client_max_window_bits=12",
    ),
    "a small window of the client": (
        {"client_max_window_bits": 9},
        "server_max_window_bits=12; client_max_window_bits=9",
    ),
    "nothing kept": (
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
        "server_no_context_takeover; client_no_context_takeover; server_max_window_bits=12; client_max_window_bits=12",
    ),
    "nothing kept by the server": (
        {"server_no_context_takeover": True},
        "server_no_context_takeover; server_max_window_bits=12; client_max_window_bits=12",
    ),
    "nothing kept by the client": (
        {"client_no_context_takeover": True, "client_max_window_bits": None},
        "client_no_context_takeover; server_max_window_bits=12",
    ),
}


@pytest.mark.parametrize("name", OFFERS)
async def test_compression_as_agreed(name):
    """Whatever the client asks for is agreed to, and messages go both ways."""
    parameters, answer = OFFERS[name]
    factory = ClientPerMessageDeflateFactory(**parameters)
    # Repeats from near and far, and what cannot be compressed.
    noise = os.urandom(3000)
    messages = [TEXT * 20, noise, noise * 3, "x" * 100_000, TEXT * 20, ["Grü", "ße"], b"", noise]
    async with serving() as (_, _, url), websocket_to(url, compression=None, extensions=[factory]) as websocket:
        assert websocket.response.headers["Sec-WebSocket-Extensions"] == f"permessage-deflate; {answer}"
        for message in messages:
            await websocket.send(message)
            assert await websocket.recv() == ("".join(message) if isinstance(message, list) else message)


@pytest.mark.parametrize(
    ("parameters", "options"), [({"server_max_window_bits": 8}, {}), ({}, {"ws_per_message_deflate": False})]
)
async def test_without_compression(parameters, options):
    """An offer that cannot be taken, or is not to be, is passed over, and messages go uncompressed."""
    factory = ClientPerMessageDeflateFactory(**parameters)
    async with (
        serving(**options) as (_, _, url),
        websocket_to(url, compression=None, extensions=[factory]) as websocket,
    ):
        assert "Sec-WebSocket-Extensions" not in websocket.response.headers
        await websocket.send(TEXT)
        assert await websocket.recv() == TEXT


# The end


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "Grüße"), (4999, "x" * 123)])
async def test_the_client_closes(code, reason):
    """The application is told the client's code and reason, and the client gets its own code back."""
    async with serving() as (app, server, url):
        async with websocket_to(url) as websocket:
            await websocket.aclose(code, reason)
            assert (websocket.close_code, websocket.close_reason) == (code, reason)
        await wait_until(lambda: server.recorder.websockets)
    assert app.ends == [(code, reason)]
    (record,) = server.recorder.websockets
    assert (record.code, record.reason, record.outcome) == (code, reason, Outcome.OK)
    assert server.errors == []


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999])
async def test_the_application_closes(code):
    """Every code that an application may send reaches the client with its reason, and is what is logged."""
    async with serving() as (app, server, url):
        async with websocket_to(f"{url}/close?code={code}&reason=Gr%C3%BC%C3%9Fe") as websocket:
            assert await closing_of(websocket) == (code, "Grüße")
        await wait_until(lambda: server.recorder.websockets)
    (record,) = server.recorder.websockets
    assert (record.code, record.reason, record.outcome) == (code, "Grüße", Outcome.OK)
    assert [end[0] for end in app.ends] == [code]
    assert server.errors == []


async def test_a_normal_close_is_no_error_for_the_client():
    """1000 ends the client's loop as it should, another code raises."""
    async with serving() as (_, _, url):
        async with websocket_to(f"{url}/close?code=1000") as websocket:
            assert [message async for message in websocket] == []
            with pytest.raises(ConnectionClosedOK):
                await websocket.recv()
        async with websocket_to(f"{url}/close?code=4000") as websocket:
            with pytest.raises(ConnectionClosedError):
                await websocket.recv()


async def test_the_client_is_gone():
    """A client that is cut off is a disconnect with 1006, and no error."""
    async with serving() as (app, server, url):
        stream = await trio.open_tcp_stream(*server.server.addresses[0])
        with contextlib.suppress(ConnectionClosed):
            async with websocket_to(url, stream=stream) as websocket:
                await websocket.send("x")
                assert await websocket.recv() == "x"
                await trio.aclose_forcefully(stream)
        await wait_until(lambda: server.recorder.websockets)
    assert app.ends == [(1006, "")]
    assert [record.outcome for record in server.recorder.websockets] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


async def test_the_server_shuts_down():
    """Every client is told 1012 with a reason, and the server ends without waiting for its grace."""
    async with serving(timeout_graceful_shutdown=3600) as (app, server, url):
        ends = []

        async def listen(task_status):
            async with websocket_to(url) as websocket:
                task_status.started()
                ends.append(await closing_of(websocket))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                await nursery.start(listen)
            server.server.shutdown()
    assert ends == [(1012, "the server is shutting down")] * 3
    assert app.ends == ends
    assert [record.outcome for record in server.recorder.websockets] == [Outcome.SHUTDOWN] * 3
    assert server.errors == []


# TLS and unix sockets


@pytest.mark.parametrize("size", [10, 16 * MIB])
async def test_over_tls(certificate, context, size):
    """wss: messages of any size, and a clean end."""
    message = os.urandom(size)
    async with serving(ssl_certfile=certificate) as (app, server, url):
        async with websocket_to(url, ssl=context, compression=None) as websocket:
            await websocket.send(message)
            assert await websocket.recv() == message
        assert websocket.close_code == 1000
        await wait_until(lambda: server.recorder.websockets)
    assert [scope["scheme"] for scope in app.scopes] == ["wss"]
    assert app.ends == [(1000, "")]


async def test_too_much_over_tls(certificate, context):
    """1009 is read over TLS, too, by a client that was still sending."""
    async with (
        serving(ssl_certfile=certificate, ws_max_size=MIB) as (_, _, url),
        websocket_to(url, ssl=context, compression=None) as websocket,
    ):
        with contextlib.suppress(ConnectionClosed):
            await websocket.send(bytes(8 * MIB))
        code, _ = await closing_of(websocket)
        assert code == 1009


async def test_shutdown_over_tls(certificate, context):
    """1012 is read over TLS, too."""
    async with serving(ssl_certfile=certificate) as (_, server, url), websocket_to(url, ssl=context) as websocket:
        server.server.shutdown()
        assert await closing_of(websocket) == (1012, "the server is shutting down")


async def test_over_a_unix_socket(tmp_path):
    """A WebSocket on a unix socket, where there is no client's address."""
    path = str(tmp_path / "socket")
    app = App()
    with trio.fail_after(PATIENCE):
        async with socket_server(app, bind=[f"unix:{path}"]) as server:
            async with unix_connect(path, max_size=None) as websocket:
                for message in (TEXT, os.urandom(MIB)):
                    await websocket.send(message)
                    assert await websocket.recv() == message
            await wait_until(lambda: server.recorder.websockets)
    assert app.ends == [(1000, "")]
    assert [record.client for record in server.recorder.websockets] == ["-"]


# websockets, on asyncio and on threads


async def in_thread(function):
    """Run a blocking client beside the server."""
    return await trio.to_thread.run_sync(function)


def assert_served(app, server):
    assert app.ends == [(4000, "bye")]
    assert server.errors == []


async def test_asyncio_client():
    """The asyncio client: text, bytes, a ping and its own close."""

    async def talk():
        async with websockets.asyncio.client.connect(url, proxy=None, open_timeout=PATIENCE) as websocket:
            for message in (TEXT, BINARY * 1000):
                await websocket.send(message)
                assert await websocket.recv() == message
            await (await websocket.ping())
            await websocket.close(4000, "bye")

    async with serving() as (app, server, url):
        await in_thread(lambda: asyncio.run(talk()))
        await wait_until(lambda: app.ends)
    assert_served(app, server)


async def test_threading_client():
    """The client of threads: text, bytes, a ping and its own close."""

    def talk():
        with websockets.sync.client.connect(url, proxy=None, open_timeout=PATIENCE) as websocket:
            for message in (TEXT, BINARY * 1000):
                websocket.send(message)
                assert websocket.recv(PATIENCE) == message
            assert websocket.ping().wait(PATIENCE)
            websocket.close(4000, "bye")

    async with serving() as (app, server, url):
        await in_thread(talk)
        await wait_until(lambda: app.ends)
    assert_served(app, server)


# The program

PROGRAM = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
    print("ended with", message["code"], flush=True)
"""


def test_the_program_is_stopped(tmp_path):
    """SIGTERM to the program: its clients read 1012, its handlers end, and its exit code is 0."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with start(*SERVE, "program:app", "--port", "0", cwd=tmp_path) as program:
        url = program.wait_for(r"listening on http(://\S+)")[1]
        with websockets.sync.client.connect(f"ws{url}", proxy=None, open_timeout=PATIENCE) as websocket:
            websocket.send(TEXT)
            assert websocket.recv(PATIENCE) == TEXT
            program.process.terminate()
            with pytest.raises(ConnectionClosed) as caught:
                websocket.recv(PATIENCE)
        assert program.wait() == 0, program.errors
    assert caught.value.rcvd.code == 1012
    assert "ended with 1012" in program.output
    assert "Traceback" not in program.errors


# trio-websocket


@contextlib.asynccontextmanager
async def open_other(url, context=None, **options):
    """trio-websocket on a stream of ours, because it leaves its own open when it is the server that closes."""
    parts = urllib.parse.urlsplit(url)
    stream = await trio.open_tcp_stream(parts.hostname, parts.port)
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname=parts.hostname, https_compatible=True)
    async with on_stream(stream, f"{parts.path or '/'}?{parts.query}", **options) as websocket:
        yield websocket


@contextlib.asynccontextmanager
async def on_stream(stream, resource, **options):
    options = {"max_message_size": 2**30, "receive_buffer_size": 65536, **options}
    try:
        async with trio.open_nursery() as nursery:
            websocket = await trio_websocket.wrap_client_stream(nursery, stream, "test", resource, **options)
            yield websocket
            await websocket.aclose()
    finally:
        await trio.aclose_forcefully(stream)


async def test_messages_of_trio_websocket():
    """Text and bytes come back as they were sent, up to 16 MiB; the end is clean on both sides."""
    async with serving() as (app, server, url):
        async with open_other(url) as websocket:
            for message in (TEXT, BINARY, "", b"", os.urandom(MIB), os.urandom(16 * MIB)):
                await websocket.send_message(message)
                assert await websocket.get_message() == message
            await websocket.aclose(4000, "bye")
        await wait_until(lambda: app.ends)
    assert_served(app, server)


async def test_too_much_of_trio_websocket():
    """A message that is too large is refused with 1009."""
    async with serving(ws_max_size=MIB) as (_, server, url), open_other(url) as websocket:
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            await websocket.send_message(bytes(MIB + 1))
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await websocket.get_message()
    assert caught.value.reason.code == 1009
    assert server.errors == []


async def test_pings_of_trio_websocket():
    """Its pings get their pongs."""
    async with serving() as (_, _, url), open_other(url) as websocket:
        await websocket.ping(b"payload")
        await websocket.ping()


async def test_handshake_of_trio_websocket():
    """Subprotocol and fields, both ways."""
    async with (
        serving() as (app, _, url),
        open_other(url, subprotocols=["a", "b"], extra_headers=[(b"x-question", b"why")]) as websocket,
    ):
        assert websocket.subprotocol == "b"
        assert [value for name, value in websocket.handshake_headers if name == b"x-answer"] == [
            b"first",
            b"second",
        ]
    assert (b"x-question", b"why") in app.scopes[0]["headers"]


@pytest.mark.parametrize(("path", "status", "body"), [("refuse", 403, b""), ("deny", 401, b"Who are you?")])
async def test_denial_of_trio_websocket(path, status, body):
    """It reads why it was refused."""
    async with serving() as (_, server, url):
        with pytest.RaisesGroup(trio_websocket.ConnectionRejected) as caught:
            async with open_other(f"{url}/{path}"):
                pass
    (rejection,) = caught.value.exceptions
    assert rejection.status_code == status
    assert (rejection.body or b"") == body
    assert server.errors == []


@pytest.mark.parametrize(("code", "reason"), [(1000, None), (1001, "going"), (1011, "Grüße"), (4999, "x" * 123)])
async def test_the_application_closes_trio_websocket(code, reason):
    """It reads the application's code and reason."""
    query = f"code={code}" + (f"&reason={urllib.parse.quote(reason)}" if reason else "")
    async with serving() as (app, _, url), open_other(f"{url}/close?{query}") as websocket:
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await websocket.get_message()
    assert (caught.value.reason.code, caught.value.reason.reason or None) == (code, reason)
    assert [end[0] for end in app.ends] == [code]


async def test_shutdown_and_trio_websocket(certificate, context):
    """It is told 1012 over TLS, in the middle of a wait."""
    async with serving(ssl_certfile=certificate) as (app, server, url), open_other(url, context) as websocket:
        await websocket.send_message(TEXT)
        assert await websocket.get_message() == TEXT
        server.server.shutdown()
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await websocket.get_message()
    assert (caught.value.reason.code, caught.value.reason.reason) == (1012, "the server is shutting down")
    assert [scope["scheme"] for scope in app.scopes] == ["wss"]


async def test_trio_websocket_over_a_unix_socket(tmp_path):
    """On a stream that the client was given."""
    path = str(tmp_path / "socket")
    app = App()
    with trio.fail_after(PATIENCE):
        async with socket_server(app, bind=[f"unix:{path}"]) as server:
            async with on_stream(await trio.open_unix_socket(path), "/") as websocket:
                await websocket.send_message(TEXT)
                assert await websocket.get_message() == TEXT
                await websocket.aclose(4000, "bye")
            await wait_until(lambda: app.ends)
    assert_served(app, server)
