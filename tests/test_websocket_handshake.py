"""The opening handshake: its rules, what the application is told and may say, and one answer on every way out."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
import trustme
from wsproto.events import Pong

from trioserve import ClientDisconnected, MessageError
from trioserve.drain import DrainKind
from trioserve.logs import Outcome

from .support import Answer, Client, RunningServer, http_app, memory_server, nothing_left, send_text, socket_server
from .websocket_client import (
    ACCEPT,
    KEY,
    WebSocketClient,
    frame,
    handshake_bytes,
    open_handshake,
    read_fields,
    read_handshake,
    websocket,
    websocket_app,
)
from .websocket_servers import server_on

pytestmark = [pytest.mark.timeout(20), pytest.mark.both_codecs]

ACCEPT_MESSAGE = {"type": "websocket.accept"}
CLOSE_MESSAGE = {"type": "websocket.close"}
DENIAL = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"no ticket")]}
DENIAL_BODY = {"type": "websocket.http.response.body", "body": b"denied"}


@asynccontextmanager
async def memory(handler, **options) -> AsyncIterator[RunningServer]:
    """A server on memory streams for one WebSocket handler; all of it within 100 seconds of virtual time."""
    with trio.fail_after(100):
        async with memory_server(websocket_app(handler), **options) as server:
            yield server


@pytest.fixture(params=["memory", "sockets"])
def serve_on(request):
    """memory_server or socket_server, for tests that need no virtual time."""
    return {"memory": memory_server, "sockets": socket_server}[request.param]


async def ask(server: RunningServer, request: bytes | None = None) -> tuple[WebSocketClient | Answer, Client]:
    """A handshake on a connection of its own: what came of it, and an HTTP client for what follows."""
    client = await server.connect()
    return await open_handshake(client.stream, request), client


async def refused(server: RunningServer, request: bytes | None = None) -> tuple[Answer, Client]:
    answer, client = await ask(server, request)
    assert isinstance(answer, Answer), answer
    return answer, client


async def goes_on(client: Client) -> None:
    """Nothing more was said, and the connection takes its next request."""
    answer = await client.get()
    assert (answer.status, answer.body) == (200, b"plain")
    await client.aclose()


async def accept(scope, receive, send):
    """An application that accepts, and reads until the end."""
    assert await receive() == {"type": "websocket.connect"}
    await send(ACCEPT_MESSAGE)
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def never_called(scope, receive, send):
    raise AssertionError("the application was called")


async def forever(scope, receive, send):
    await trio.sleep_forever()


def retire(server: RunningServer) -> None:
    server.server._context.drain.begin(DrainKind.RETIRE)


DRAINS = {"stop": lambda server: server.server.shutdown(), "retire": retire}


# Rules checked before the application runs

WRONG = {
    "no version": (handshake_bytes(without=(b"sec-websocket-version",)), 400),
    "an empty version": (handshake_bytes("/", (b"sec-websocket-version", b"")), 426),
    "version 8": (handshake_bytes("/", (b"sec-websocket-version", b"8")), 426),
    "version 013": (handshake_bytes("/", (b"sec-websocket-version", b"013")), 426),
    "two versions": (
        handshake_bytes("/", (b"sec-websocket-version", b"13"), (b"sec-websocket-version", b"8")),
        400,
    ),
    "no key": (handshake_bytes(without=(b"sec-websocket-key",)), 400),
    "an empty key": (handshake_bytes("/", (b"sec-websocket-key", b"")), 400),
    "a key of 15 bytes": (handshake_bytes("/", (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAA")), 400),
    "a key of 17 bytes": (handshake_bytes("/", (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAAA=")), 400),
    "a key that is not base64": (handshake_bytes("/", (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZ!==")), 400),
    "two keys": (handshake_bytes("/", (b"sec-websocket-key", KEY), (b"sec-websocket-key", KEY)), 400),
    "POST": (handshake_bytes(method="POST"), 405),
    "a length": (handshake_bytes("/", (b"content-length", b"5")) + b"hello", 400),
    "chunks": (handshake_bytes("/", (b"transfer-encoding", b"chunked")) + b"5\r\nhello\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_handshake_is_refused_before_the_application_runs(autojump_clock, name):
    """A handshake against RFC 6455 §4.2.1 gets 400, 405 or 426; its connection goes on, and the application hears
    nothing of it."""
    request, status = WRONG[name]
    async with memory(never_called) as server:
        answer, client = await refused(server, request)
        assert answer.status == status
        assert server.server.statistics().rejected == {status: 1}
        await goes_on(client)
        assert [(one.status, one.outcome) for one in server.records] == [(status, Outcome.ERROR), (200, Outcome.OK)]
        assert server.errors == []


async def test_head_is_refused_without_a_body(autojump_clock):
    """HEAD gets 405 too, and no body: what follows is the next answer."""
    async with memory(never_called) as server:
        client = await server.connect()
        await client.raw(handshake_bytes(method="HEAD") + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        head, _, rest = (await client.receive_rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert rest.startswith(b"HTTP/1.1 200 ")


async def test_an_application_may_change_its_headers(autojump_clock):
    """What the scope says is the application's: the answer to the key needs nothing of it."""

    async def app(scope, receive, send):
        scope["headers"].clear()
        await receive()
        await send(ACCEPT_MESSAGE)
        await send({"type": "websocket.send", "text": "hello"})

    async with memory(app) as server, websocket(server) as client:
        assert await client.receive() == "hello"


async def test_http_1_0_cannot_upgrade(autojump_clock):
    """An upgrade in HTTP/1.0 gets 400, which names the version."""
    async with memory(never_called) as server:
        answer, client = await refused(server, handshake_bytes(version="1.0"))
        assert answer.status == 400
        assert b"HTTP/1.0" in answer.body
        assert await client.receive_rest() == b""


async def test_426_names_the_version_and_the_protocol(autojump_clock):
    """A 426 has Sec-WebSocket-Version: 13, and Upgrade with Connection as RFC 9110 §15.5.22 asks."""
    async with memory(never_called) as server:
        answer, client = await refused(server, handshake_bytes("/", (b"sec-websocket-version", b"12")))
        assert answer.status == 426
        assert answer.headers[b"sec-websocket-version"] == b"13"
        assert answer.headers[b"upgrade"].lower() == b"websocket"
        assert answer.headers[b"connection"].lower() == b"upgrade"
        assert b"12" in answer.body
        await goes_on(client)


async def test_a_wrong_version_is_repeated_with_care(autojump_clock, caplog):
    """What the client calls its version is in the answer and in the log escaped, and cut."""
    caplog.set_level("INFO", "trioserve")
    version = (b"sec-websocket-version", b"\x9b31mred \x85" + b"8" * 3000)
    async with memory(never_called) as server:
        answer, _ = await refused(server, handshake_bytes("/", version))
    assert answer.status == 426
    (line,) = [one.getMessage() for one in caplog.records if "refused a WebSocket" in one.getMessage()]
    for text in (answer.body.decode("ascii").rstrip("\n"), line):
        assert "'\\x9b31mred \\x858888" in text
        assert text.isprintable()
        assert len(text) < 150


async def test_a_400_for_no_version_names_the_version(autojump_clock):
    """A client that names no version is told which one there is."""
    async with memory(never_called) as server:
        answer, _ = await refused(server, handshake_bytes(without=(b"sec-websocket-version",)))
        assert (answer.status, answer.headers[b"sec-websocket-version"]) == (400, b"13")


async def test_405_names_the_method(autojump_clock):
    """A 405 has Allow: GET."""
    async with memory(never_called) as server:
        answer, _ = await refused(server, handshake_bytes(method="PUT"))
        assert (answer.status, answer.headers[b"allow"]) == (405, b"GET")


async def test_a_refused_body_that_never_comes_closes_the_connection(autojump_clock):
    """After a handshake with a body that does not come, the connection ends; nothing of it is read as a request."""
    async with memory(never_called) as server:
        client = await server.connect()
        await client.raw(handshake_bytes("/", (b"content-length", b"500")) + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = await client.receive_rest()
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1 ") == 1


RIGHT = {
    "upper case": handshake_bytes().replace(b"upgrade: websocket", b"UPGRADE: WEBSOCKET"),
    "upper case in Connection": handshake_bytes("/", (b"CONNECTION", b"UPGRADE"), without=(b"connection",)),
    "lower case": handshake_bytes("/", (b"connection", b"upgrade")),
    "a list in Connection": handshake_bytes("/", (b"connection", b"keep-alive , Upgrade")),
    "two fields Connection": handshake_bytes("/", (b"connection", b"keep-alive"), (b"connection", b"Upgrade")),
    "a list in Upgrade": handshake_bytes("/", (b"upgrade", b"h2c,\twebsocket")),
    "two fields Upgrade": handshake_bytes("/", (b"upgrade", b"h2c"), (b"upgrade", b"WebSocket")),
    "a length of nothing": handshake_bytes("/", (b"content-length", b"0")),
}


@pytest.mark.parametrize("name", RIGHT)
async def test_how_an_upgrade_may_be_written(autojump_clock, name):
    """Names and tokens count in any case; Connection and Upgrade are lists, in one field or several."""
    async with memory(accept) as server:
        opened, _ = await ask(server, RIGHT[name])
        assert isinstance(opened, WebSocketClient)
        assert await opened.close() == (1000, "")


ORDINARY = {
    "Upgrade that Connection does not name": ({}, handshake_bytes(without=(b"connection",))),
    "Connection that names another field": ({}, handshake_bytes("/", (b"connection", b"keep-alive"))),
    "Connection without Upgrade": ({}, handshake_bytes(without=(b"upgrade",))),
    "another protocol": ({}, handshake_bytes("/", (b"upgrade", b"h2c"))),
    "a protocol that only begins so": ({}, handshake_bytes("/", (b"upgrade", b"websocket2"))),
    "ws=off": ({"ws": "off"}, handshake_bytes()),
    "ws=off and a wrong version": ({"ws": "off"}, handshake_bytes("/", (b"sec-websocket-version", b"8"))),
}


@pytest.mark.parametrize("name", ORDINARY)
async def test_what_is_an_ordinary_request(autojump_clock, name):
    """A request that does not ask for a WebSocket, or not us, or with ws=off, is HTTP for the application, with all
    its fields; the connection goes on."""
    options, request = ORDINARY[name]
    scopes = []

    async def handler(scope, receive, send):
        scopes.append(scope)
        await send_text(send, "plain")

    with trio.fail_after(100):
        async with memory_server(http_app(handler), **options) as server:
            answer, client = await refused(server, request)
            assert (answer.status, answer.body) == (200, b"plain")
            await goes_on(client)
    assert [scope["type"] for scope in scopes] == ["http", "http"]
    assert (b"sec-websocket-key", KEY) in scopes[0]["headers"]
    assert scopes[0]["method"] == "GET"


# The scope


async def test_the_scope_of_a_websocket(autojump_clock):
    """The scope has ASGI's keys, no method, and the extension for a response in place of the WebSocket."""
    scopes = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["pool"] = "a pool"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            scopes.append(scope)
            await accept(scope, receive, send)

    request = handshake_bytes("/chat%20room?a=b%20c", (b"X-Token", b"1"), (b"cookie", b"c=d"))
    with trio.fail_after(100):
        async with memory_server(app) as server:
            opened, _ = await ask(server, request)
            await opened.close()
    (scope,) = scopes
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": scope["asgi"]["spec_version"]},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/chat room",
        "raw_path": b"/chat%20room",
        "query_string": b"a=b%20c",
        "root_path": "",
        "headers": [
            (b"host", b"test"),
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-key", KEY),
            (b"sec-websocket-version", b"13"),
            (b"x-token", b"1"),
            (b"cookie", b"c=d"),
        ],
        "client": None,
        "server": None,
        "subprotocols": [],
        "state": {"pool": "a pool"},
        "extensions": {"websocket.http.response": {}},
    }


async def test_the_scope_has_the_addresses():
    """Over TCP client and server are their addresses."""
    scopes = []

    async def handler(scope, receive, send):
        scopes.append(scope)
        await accept(scope, receive, send)

    with trio.fail_after(5):
        async with socket_server(websocket_app(handler)) as server, websocket(server) as opened:
            assert isinstance(opened.stream, trio.SocketStream)
            assert scopes[0]["client"] == opened.stream.socket.getsockname()
            assert scopes[0]["server"] == server.server.addresses[0]


async def test_root_path_mounts_a_websocket(autojump_clock):
    """root_path is in the scope and, as ASGI wants it, at the beginning of path."""
    scopes = []

    async def handler(scope, receive, send):
        scopes.append(scope)
        await accept(scope, receive, send)

    async with memory(handler, root_path="/api") as server, websocket(server, "/chat"):
        pass
    assert (scopes[0]["root_path"], scopes[0]["path"], scopes[0]["raw_path"]) == ("/api", "/api/chat", b"/chat")


async def test_each_websocket_has_its_own_state(autojump_clock):
    """What one WebSocket puts into its state another does not find there."""
    seen = []

    async def handler(scope, receive, send):
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        await accept(scope, receive, send)

    async with memory(handler) as server, websocket(server), websocket(server):
        pass
    assert seen == [{}, {}]


async def test_over_tls_the_scheme_is_wss(tmp_path):
    """Over TLS the scheme is wss, and the tls extension is there as for HTTP."""
    scopes = []

    async def handler(scope, receive, send):
        scopes.append(scope)
        await accept(scope, receive, send)

    authority = trustme.CA()
    pem = tmp_path / "both.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with trio.fail_after(5):
        async with socket_server(websocket_app(handler), ssl_certfile=str(pem)) as server:
            inner = await server.connect_stream()
            stream = trio.SSLStream(inner, context, server_hostname="localhost", https_compatible=True)
            opened = await open_handshake(stream)
            assert isinstance(opened, WebSocketClient)
            assert await opened.close() == (1000, "")
            await opened.aclose()
    assert scopes[0]["scheme"] == "wss"
    assert set(scopes[0]["extensions"]) == {"websocket.http.response", "tls"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], []),
        ([b"chat"], ["chat"]),
        ([b"chat, superchat"], ["chat", "superchat"]),
        ([b"chat ,\tv2.chat", b"Chat"], ["chat", "v2.chat", "Chat"]),
        ([b", chat,,"], ["chat"]),
    ],
)
async def test_subprotocols_in_the_scope(autojump_clock, fields, expected):
    """All that the client offers, in its order, over one field or several, in its own case."""
    seen = []

    async def handler(scope, receive, send):
        seen.append(scope["subprotocols"])
        await accept(scope, receive, send)

    more = [(b"sec-websocket-protocol", value) for value in fields]
    async with memory(handler) as server, websocket(server, "/", *more):
        pass
    assert seen == [expected]


# websocket.accept


async def test_the_101(autojump_clock):
    """The 101 has Upgrade, Connection and the accept key, the server's default fields, and no body."""
    async with memory(accept, header=["X-Ours: 1"]) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        head, _, rest = (await client.stream.receive_some(65536)).partition(b"\r\n\r\n")
        fields = read_fields(head)
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert (fields[b"upgrade"], fields[b"connection"]) == (b"websocket", b"Upgrade")
        assert fields[b"sec-websocket-accept"] == ACCEPT
        assert fields[b"server"] == b"trioserve"
        assert fields[b"x-ours"] == b"1"
        assert b"date" in fields
        assert not {b"content-length", b"transfer-encoding"} & fields.keys()
        assert rest == b""
        await client.aclose()
        await trio.sleep(1)
        assert [(one.status, one.outcome) for one in server.records] == [(101, Outcome.OK)]


async def test_accept_with_subprotocol_and_headers(autojump_clock):
    """accept's subprotocol and headers are in the 101; a field of the application takes the default's place."""

    async def handler(scope, receive, send):
        headers = [(b"X-Mine", b"1"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d"), (b"Server", b"mine")]
        await send({**ACCEPT_MESSAGE, "subprotocol": "b", "headers": headers})
        await receive()

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes("/", (b"sec-websocket-protocol", b"a, b")))
        head = await client.stream.receive_some(65536)
        assert head.startswith(b"HTTP/1.1 101 ")
        fields = read_fields(head)
        assert fields[b"sec-websocket-protocol"] == b"b"
        assert fields[b"x-mine"] == b"1"
        assert head.lower().count(b"set-cookie: ") == 2
        assert head.lower().count(b"server: ") == 1
        assert fields[b"server"] == b"mine"


async def test_connect_is_the_first_message(autojump_clock):
    """websocket.connect is what receive() gives first, also to an application that has accepted before it asks."""
    got = []

    async def handler(scope, receive, send):
        await send(ACCEPT_MESSAGE)
        got.extend([await receive(), await receive()])

    async with memory(handler) as server, websocket(server) as opened:
        await opened.send_text("x")
        assert await opened.receive_close() == (1000, "")
    assert got == [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "x"}]


async def test_accept_without_subprotocol(autojump_clock):
    """An application that chooses none of what is offered still has its WebSocket, without that field."""

    async def handler(scope, receive, send):
        await send({**ACCEPT_MESSAGE, "subprotocol": None, "headers": []})
        await receive()

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes("/", (b"sec-websocket-protocol", b"a, b")))
        head = await client.stream.receive_some(65536)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-protocol" not in head.lower()


@pytest.mark.parametrize("deflate", [True, False])
async def test_the_extension_is_accepted_where_it_is_wanted(autojump_clock, deflate):
    """permessage-deflate is in the 101 if the client offers it and ws_per_message_deflate is on."""
    async with memory(accept, ws_per_message_deflate=deflate) as server:
        client = await server.connect()
        await client.raw(handshake_bytes("/", (b"sec-websocket-extensions", b"foo, permessage-deflate")))
        fields = read_fields(await client.stream.receive_some(65536))
        assert (b"sec-websocket-extensions" in fields) is deflate


WRONG_ACCEPTS = {
    "a subprotocol that was not offered": ({"subprotocol": "c"}, "offers a, b, not subprotocol 'c'"),
    "a subprotocol in another case": ({"subprotocol": "A"}, "not subprotocol 'A'"),
    "a subprotocol as bytes": ({"subprotocol": b"a"}, "not subprotocol b'a'"),
    "an empty subprotocol": ({"subprotocol": ""}, "not subprotocol ''"),
    "headers of text": ({"headers": [("a", "b")]}, "'headers' must be pairs of bytes"),
    "headers that are none": ({"headers": None}, "'headers' must be pairs of bytes"),
    "a header that splits the response": ({"headers": [(b"a", b"b\r\nset-cookie: c=d")]}, "response head is wrong"),
}


@pytest.mark.parametrize("name", WRONG_ACCEPTS)
async def test_a_wrong_accept_is_a_500(autojump_clock, name):
    """A websocket.accept that is wrong raises MessageError in the application; let through, it is a 500 and a trace."""
    fields, text = WRONG_ACCEPTS[name]

    async def handler(scope, receive, send):
        await send({**ACCEPT_MESSAGE, **fields})

    async with memory(handler) as server:
        answer, client = await refused(server, handshake_bytes("/", (b"sec-websocket-protocol", b"a, b")))
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        assert b"set-cookie" not in answer.headers
        (error,) = server.errors
        assert isinstance(error, MessageError)
        assert text in str(error)
        await goes_on(client)


async def test_an_unoffered_subprotocol_where_nothing_is_offered(autojump_clock):
    """The error says that the client offers nothing."""

    async def handler(scope, receive, send):
        await send({**ACCEPT_MESSAGE, "subprotocol": "c"})

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert answer.status == 500
        assert "the client offers nothing, not subprotocol 'c'" in str(server.errors[0])
        await goes_on(client)


@pytest.mark.parametrize(
    "name",
    [
        b"Connection", b"content-length", b"sec-websocket-accept", b"Sec-WebSocket-Extensions",
        b"sec-websocket-protocol", b"transfer-encoding", b"UPGRADE",
    ],
)  # fmt: skip
async def test_the_handshake_s_own_fields_are_the_server_s(autojump_clock, name):
    """Fields of the handshake itself in accept's headers are a MessageError, in any case."""

    async def handler(scope, receive, send):
        with pytest.raises(MessageError, match="the server sets"):
            await send({**ACCEPT_MESSAGE, "headers": [(name, b"1")]})
        # It was not taken, so the application may do better.
        await accept(scope, receive, send)

    async with memory(handler) as server:
        opened, _ = await ask(server)
        assert isinstance(opened, WebSocketClient)
        await opened.close()
        assert server.errors == []


CAUGHT = {name: fields for name, (fields, _) in WRONG_ACCEPTS.items()}


@pytest.mark.parametrize("name", CAUGHT)
async def test_an_application_may_do_better_after_a_wrong_accept(autojump_clock, name):
    """A message that raised MessageError was not taken: the application that catches it may still refuse, and the
    client gets that one answer."""

    async def handler(scope, receive, send):
        with pytest.raises(MessageError):
            await send({**ACCEPT_MESSAGE, **CAUGHT[name]})
        await send(CLOSE_MESSAGE)

    async with memory(handler) as server:
        answer, client = await refused(server, handshake_bytes("/", (b"sec-websocket-protocol", b"a, b")))
        assert answer.status == 403
        assert server.errors == []
        await goes_on(client)


@pytest.mark.parametrize("name", CAUGHT)
async def test_a_wrong_accept_that_is_passed_over_is_a_500(autojump_clock, name):
    """An application that catches the MessageError of its accept and returns has not decided: 500, never silence."""

    async def handler(scope, receive, send):
        with pytest.raises(MessageError):
            await send({**ACCEPT_MESSAGE, **CAUGHT[name]})

    async with memory(handler) as server:
        answer, client = await refused(server, handshake_bytes("/", (b"sec-websocket-protocol", b"a, b")))
        assert answer.status == 500
        assert len(server.errors) == 1
        await goes_on(client)


# Bytes that come early


async def test_a_message_that_comes_with_the_handshake_is_not_lost(serve_on):
    """Frames in the very packet of the handshake are the first messages."""
    got = []

    async def handler(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        await send(ACCEPT_MESSAGE)
        got.extend([await receive(), await receive()])
        await send(CLOSE_MESSAGE)

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            client = await server.connect()
            opened = await open_handshake(client.stream, handshake_bytes() + frame(1, b"early") + frame(2, b"too"))
            assert (await opened.receive_close())[0] == 1000
            await opened.aclose()
    assert got == [{"type": "websocket.receive", "text": "early"}, {"type": "websocket.receive", "bytes": b"too"}]


async def test_what_comes_before_accept_is_held(serve_on):
    """Frames that come while the application makes up its mind are held, in order, also a frame that is cut."""
    got, asked, may_accept = [], trio.Event(), trio.Event()

    async def handler(scope, receive, send):
        await receive()
        asked.set()
        await may_accept.wait()
        await send(ACCEPT_MESSAGE)
        got.extend([(await receive())["text"] for _ in range(3)])
        await send(CLOSE_MESSAGE)

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            client = await server.connect()
            third = frame(1, b"third")
            await client.raw(handshake_bytes() + frame(1, b"first")[:3])
            await asked.wait()
            await client.raw(frame(1, b"first")[3:] + frame(1, b"second"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.raw(third[:4])
            await trio.testing.wait_all_tasks_blocked(0.01)
            may_accept.set()
            opened = await read_handshake(client.stream)
            await opened.raw(third[4:])
            await opened.receive_close()
            await opened.aclose()
    assert got == ["first", "second", "third"]


async def test_what_comes_before_accept_is_bounded(autojump_clock):
    """Of what a client sends before accept the server takes a bounded amount; once it is accepted all of it comes."""
    size, count = 10_000, 50
    may_accept, lengths, sent = trio.Event(), [], []

    async def handler(scope, receive, send):
        await receive()
        await may_accept.wait()
        await send(ACCEPT_MESSAGE)
        lengths.extend([len((await receive())["bytes"]) for _ in range(count)])
        await send(CLOSE_MESSAGE)

    # A client whose send returns once the server has read it: what was sent is what the server holds.
    stream, server_side = trio.testing.lockstep_stream_pair()

    async def send_all():
        for _ in range(count):
            await stream.send_all(frame(2, b"x" * size))
            sent.append(size)

    async with memory(handler) as server:
        server.listener._send.send_nowait(server_side)
        await stream.send_all(handshake_bytes())
        server.nursery.start_soon(send_all)
        await trio.sleep(5)
        assert 0 < sum(sent) <= 2 * 65536
        may_accept.set()
        opened = await read_handshake(stream)
        assert (await opened.receive_close())[0] == 1000
        await opened.aclose()
    assert lengths == [size] * count


async def test_a_ping_before_accept_is_answered(serve_on):
    """Once accepted, a ping that came earlier is answered, also if the application never receives."""
    asked, may_accept = trio.Event(), trio.Event()

    async def handler(scope, receive, send):
        asked.set()
        await may_accept.wait()
        await send(ACCEPT_MESSAGE)
        await trio.sleep_forever()

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            client = await server.connect()
            await client.raw(handshake_bytes())
            await asked.wait()
            await client.raw(frame(9, b"early"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            may_accept.set()
            opened = await read_handshake(client.stream)
            pong = None
            with trio.move_on_after(1):
                pong = await opened.next_event()
            await opened.aclose()
    assert isinstance(pong, Pong), pong
    assert pong.payload == b"early"


async def test_a_close_before_accept_is_answered(autojump_clock):
    """A client that has closed before it is accepted gets its closing handshake, also if the application only
    waits."""
    asked, may_accept = trio.Event(), trio.Event()

    async def handler(scope, receive, send):
        asked.set()
        await may_accept.wait()
        await send(ACCEPT_MESSAGE)
        await trio.sleep_forever()

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await asked.wait()
        await client.raw(frame(8, (1001).to_bytes(2, "big")))
        await trio.testing.wait_all_tasks_blocked()
        may_accept.set()
        opened = await read_handshake(client.stream)
        start = trio.current_time()
        assert (await opened.receive_close(answers=False))[0] == 1001
        assert trio.current_time() == start
        await opened.aclose()


async def test_a_task_that_receives_while_another_accepts(autojump_clock):
    """A receive() that waits since before the accept, in another task, has the first message."""
    got = []

    async def handler(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"

        async def listen():
            got.append(await receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            await send(ACCEPT_MESSAGE)
        await send({"type": "websocket.send", "bytes": got[0]["bytes"]})

    async with memory(handler) as server, websocket(server) as opened:
        await opened.send_bytes(b"first")
        assert await opened.receive() == b"first"
        assert await opened.receive_close() == (1000, "")
        assert server.errors == []
    assert got == [{"type": "websocket.receive", "bytes": b"first"}]


# Refused by the application


async def test_websocket_close_is_a_403(autojump_clock):
    """websocket.close before accept is a 403 without a body; the connection goes on, and the application hears of the
    end."""
    heard = []

    async def handler(scope, receive, send):
        await receive()
        await send({**CLOSE_MESSAGE, "code": 4000, "reason": "not you"})
        heard.append(await receive())
        heard.append(await receive())

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert (answer.status, answer.body, answer.headers[b"content-length"]) == (403, b"", b"0")
        await goes_on(client)
        assert [(one.status, one.outcome) for one in server.records] == [(403, Outcome.OK), (200, Outcome.OK)]
        assert server.server.statistics().rejected == {}
        assert server.errors == []
    assert heard == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}] * 2


async def test_a_refused_client_need_not_wait_for_the_application(autojump_clock):
    """The next request on the connection is served while the application that refused still runs."""
    ended = []

    async def handler(scope, receive, send):
        await send(CLOSE_MESSAGE)
        try:
            await trio.sleep(20)
        finally:
            ended.append(trio.current_time() - start)

    async with memory(handler) as server:
        start = trio.current_time()
        answer, client = await refused(server)
        assert answer.status == 403
        await goes_on(client)
        assert trio.current_time() == start
        assert ended == []
        await trio.sleep(30)
        assert ended == [20]


async def test_a_refused_client_may_ask_for_a_websocket_again(serve_on):
    """A second handshake on the connection of a refused one can succeed."""

    async def handler(scope, receive, send):
        if scope["path"] == "/no":
            await send(CLOSE_MESSAGE)
        else:
            await accept(scope, receive, send)

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            answer, client = await refused(server, handshake_bytes("/no"))
            assert answer.status == 403
            opened = await open_handshake(client.stream, handshake_bytes("/yes"))
            assert isinstance(opened, WebSocketClient)
            assert await opened.close() == (1000, "")
            await opened.aclose()


async def test_a_response_of_the_application_s_own(serve_on):
    """websocket.http.response.start and .body are the answer instead of a 403; the connection goes on."""

    async def handler(scope, receive, send):
        await receive()
        await send(DENIAL)
        await send(DENIAL_BODY)
        assert (await receive())["type"] == "websocket.disconnect"

    with trio.fail_after(5):
        async with serve_on(websocket_app(handler)) as server:
            answer, client = await refused(server)
            assert (answer.status, answer.body, answer.headers[b"x-why"]) == (401, b"denied", b"no ticket")
            assert answer.headers[b"content-length"] == b"6"
            await goes_on(client)
            assert [one.status for one in server.records] == [401, 200]
            assert server.errors == []


async def test_a_response_of_its_own_has_no_trailers(autojump_clock):
    """The extension knows no trailers: a response that announces some is complete without them, and no error."""

    async def handler(scope, receive, send):
        await send({**DENIAL, "trailers": True})
        await send(DENIAL_BODY)

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert (answer.status, answer.body, answer.trailers) == (401, b"denied", {})
        await goes_on(client)
        assert server.errors == []


async def test_a_response_of_its_own_in_pieces(autojump_clock):
    """That response may be streamed: pieces arrive as they are sent, and the handshake's clock no longer runs."""

    async def handler(scope, receive, send):
        await send(DENIAL)
        for piece in (b"one ", b"two "):
            await send({**DENIAL_BODY, "body": piece, "more_body": True})
            await trio.sleep(20)
        await send({**DENIAL_BODY, "body": b"three"})

    async with memory(handler) as server:
        start = trio.current_time()
        client = await server.connect()
        await client.raw(handshake_bytes())
        assert (await client.stream.receive_some(65536)).endswith(b"one \r\n")
        assert trio.current_time() == start
        assert await client.stream.receive_some(65536) == b"4\r\ntwo \r\n"
        assert trio.current_time() == start + 20
        assert await client.stream.receive_some(65536) == b"5\r\nthree\r\n0\r\n\r\n"
        await goes_on(client)
        assert server.errors == []


async def test_a_denial_held_back_is_late(autojump_clock):
    """A response of which nothing has been sent does not stop the clock of the handshake: 504, and the connection goes
    on.
    """

    async def handler(scope, receive, send):
        await send(DENIAL)
        await trio.sleep(50)
        await send(DENIAL_BODY)

    async with memory(handler) as server:
        start = trio.current_time()
        answer, client = await refused(server)
        assert (answer.status, trio.current_time() - start) == (504, 10)
        await goes_on(client)
        assert server.errors == []


async def test_a_denial_that_is_being_sent_has_its_time(autojump_clock):
    """Once something of its response is out the handshake's clock has stopped: 504 is for the undecided."""

    async def handler(scope, receive, send):
        await send(DENIAL)
        await send({**DENIAL_BODY, "body": b"", "more_body": True})
        await trio.sleep(50)
        await send(DENIAL_BODY)

    async with memory(handler) as server:
        start = trio.current_time()
        answer, client = await refused(server)
        assert (answer.status, trio.current_time() - start) == (401, 50)
        await goes_on(client)


@pytest.mark.parametrize("raises", [True, False])
async def test_a_response_of_its_own_that_is_only_begun_is_a_500(autojump_clock, raises):
    """An application that ends after the start of its response, with nothing sent, is a 500."""

    async def handler(scope, receive, send):
        await send(DENIAL)
        if raises:
            raise ValueError("no")

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        assert b"x-why" not in answer.headers
        assert type(server.errors[0]) is (ValueError if raises else MessageError)
        await goes_on(client)


@pytest.mark.parametrize("raises", [True, False])
async def test_a_response_of_its_own_that_breaks_off_is_cut(autojump_clock, raises):
    """An application that ends in the middle of its response has it cut, and is logged; the connection closes."""

    async def handler(scope, receive, send):
        await send(DENIAL)
        await send({**DENIAL_BODY, "more_body": True})
        if raises:
            raise ValueError("no")

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        received = await client.receive_rest()
        assert received.count(b"HTTP/1.1 ") == 1
        assert received.endswith(b"6\r\ndenied\r\n")
        assert type(server.errors[0]) is (ValueError if raises else MessageError)
        assert [(one.status, one.outcome) for one in server.records] == [(401, Outcome.ERROR)]


async def test_a_client_that_leaves_a_response_of_its_own_is_no_error(autojump_clock):
    """An application that stops sending its response because the client left has made no mistake, as with HTTP."""

    async def handler(scope, receive, send):
        await send(DENIAL)
        try:
            while True:
                await send({**DENIAL_BODY, "more_body": True})
                await trio.sleep(1)
        except OSError:
            return

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await client.stream.receive_some(65536)
        await client.aclose()
        await trio.sleep(5)
        assert server.errors == []
        assert [(one.status, one.outcome) for one in server.records] == [(401, Outcome.CLIENT_LEFT)]


# What an application may not send

BEFORE = {
    "websocket.send": ([{"type": "websocket.send", "text": "x"}], "expected websocket.accept"),
    "http.response.start": ([{"type": "http.response.start", "status": 200}], "not 'http.response.start'"),
    "an unknown type": ([{"type": "websocket.ping"}], "not 'websocket.ping'"),
    "no type": ([{}], "'type' must be str, not nothing"),
    "a type that is no text": ([{"type": b"websocket.accept"}], "'type' must be str"),
    "a body before its start": ([DENIAL_BODY], "not 'websocket.http.response.body'"),
    "a response without a status": ([{"type": "websocket.http.response.start"}], "'status' must be a number"),
    "a response with status 101": ([{**DENIAL, "status": 101}], "'status' must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
async def test_a_wrong_message_before_accept_is_a_500(autojump_clock, name):
    """A wrong message while CONNECTING raises MessageError in the application; let through, it is a 500."""
    messages, text = BEFORE[name]

    async def handler(scope, receive, send):
        for message in messages:
            await send(message)

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        (error,) = server.errors
        assert isinstance(error, MessageError)
        assert text in str(error)
        await goes_on(client)
        assert server.server.statistics().application_errors == 1


@pytest.mark.parametrize("name", BEFORE)
async def test_after_a_wrong_message_before_accept_the_right_one_counts(autojump_clock, name):
    """A wrong message that is caught changes nothing: the WebSocket can still be accepted."""

    async def handler(scope, receive, send):
        with pytest.raises(MessageError):
            await send(BEFORE[name][0][0])
        await accept(scope, receive, send)

    async with memory(handler) as server, websocket(server) as opened:
        assert await opened.close() == (1000, "")
        assert server.errors == []


REFUSED = {
    "accept after close": ([CLOSE_MESSAGE], ACCEPT_MESSAGE, "expected nothing more"),
    "close after close": ([CLOSE_MESSAGE], CLOSE_MESSAGE, "expected nothing more"),
    "a response after close": ([CLOSE_MESSAGE], DENIAL, "expected nothing more"),
    "accept after a start": ([DENIAL], ACCEPT_MESSAGE, "expected websocket.http.response.body"),
    "a second start": ([DENIAL], DENIAL, "expected"),
    "a body after the last": ([DENIAL, DENIAL_BODY], DENIAL_BODY, "nothing more"),
    "accept after a response": ([DENIAL, DENIAL_BODY], ACCEPT_MESSAGE, "expected nothing more"),
    "trailers": ([DENIAL], {"type": "websocket.http.response.trailers"}, "expected websocket.http.response.body"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_messages_after_a_refusal_are_wrong(autojump_clock, name):
    """A refused WebSocket can be neither accepted nor refused again: MessageError, and the one answer stays."""
    before, message, text = REFUSED[name]
    raised = []

    async def handler(scope, receive, send):
        for one in before:
            await send(one)
        with pytest.raises(MessageError, match=text) as caught:
            await send(message)
        raised.append(caught.value)
        if before == [DENIAL]:
            await send(DENIAL_BODY)

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert answer.status == (403 if before[0] is CLOSE_MESSAGE else 401)
        await goes_on(client)
        assert server.errors == []
    assert len(raised) == 1


OPEN = {
    "accept again": (ACCEPT_MESSAGE, "expected websocket.send or websocket.close"),
    "an unknown type": ({"type": "websocket.ping"}, "not 'websocket.ping'"),
    "no type": ({}, "'type' must be str, not nothing"),
    "a response": (DENIAL, "expected websocket.send or websocket.close"),
    "text and bytes": ({"type": "websocket.send", "text": "a", "bytes": b"a"}, "either 'text'"),
    "neither": ({"type": "websocket.send"}, "either 'text'"),
    "both None": ({"type": "websocket.send", "text": None, "bytes": None}, "either 'text'"),
    "text as bytes": ({"type": "websocket.send", "text": b"a"}, "either 'text'"),
    "bytes as text": ({"type": "websocket.send", "bytes": "a"}, "'bytes' must be bytes"),
    "half a surrogate": ({"type": "websocket.send", "text": "\ud800"}, "cannot be sent as UTF-8"),
    "code 999": ({"type": "websocket.close", "code": 999}, "'code' must be"),
    "code 1004": ({"type": "websocket.close", "code": 1004}, "'code' must be"),
    "code 1005": ({"type": "websocket.close", "code": 1005}, "'code' must be"),
    "code 1006": ({"type": "websocket.close", "code": 1006}, "'code' must be"),
    "code 1015": ({"type": "websocket.close", "code": 1015}, "'code' must be"),
    "code 2999": ({"type": "websocket.close", "code": 2999}, "'code' must be"),
    "code 5000": ({"type": "websocket.close", "code": 5000}, "'code' must be"),
    "code None": ({"type": "websocket.close", "code": None}, "'code' must be"),
    "a code that is text": ({"type": "websocket.close", "code": "1000"}, "'code' must be"),
    "a reason that is bytes": ({"type": "websocket.close", "reason": b"x"}, "'reason' must be a str"),
}


@pytest.mark.parametrize("name", OPEN)
async def test_a_wrong_message_after_accept_closes_with_1011(autojump_clock, name):
    """A wrong message on an open WebSocket raises MessageError in the application; let through, it closes with 1011."""
    message, text = OPEN[name]

    async def handler(scope, receive, send):
        await send(ACCEPT_MESSAGE)
        await send(message)

    async with memory(handler) as server, websocket(server) as opened:
        assert await opened.receive_close() == (1011, "")
        await opened.wait_eof()
        (error,) = server.errors
        assert isinstance(error, MessageError)
        assert text in str(error)


@pytest.mark.parametrize("name", OPEN)
async def test_after_a_wrong_message_the_websocket_is_still_open(autojump_clock, name):
    """A wrong message that is caught has not been sent, and the WebSocket goes on."""

    async def handler(scope, receive, send):
        await send(ACCEPT_MESSAGE)
        with pytest.raises(MessageError):
            await send(OPEN[name][0])
        await send({"type": "websocket.send", "text": "still here"})
        await send({"type": "websocket.close", "code": 3000, "reason": "done"})

    async with memory(handler) as server, websocket(server) as opened:
        assert await opened.receive() == "still here"
        assert await opened.receive_close() == (3000, "done")
        assert server.errors == []


# What an application may raise


async def test_an_exception_is_a_500_with_a_trace(autojump_clock, caplog):
    """An application that raises before it decides is a 500 and one logged trace; the connection goes on."""

    async def handler(scope, receive, send):
        await receive()
        raise ValueError("no")

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        await goes_on(client)
        assert [type(one) for one in server.errors] == [ValueError]
        assert server.server.statistics().application_errors == 1
        assert [(one.status, one.outcome) for one in server.records] == [(500, Outcome.ERROR), (200, Outcome.OK)]
    (record,) = [one for one in caplog.records if one.name == "trioserve.error"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    assert "GET / HTTP/1.1" in record.getMessage()


async def test_returning_undecided_is_a_500_with_a_trace(autojump_clock, caplog):
    """So is one that returns without a decision."""

    async def handler(scope, receive, send):
        await receive()

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        await goes_on(client)
        (error,) = server.errors
        assert isinstance(error, MessageError)
        assert "returned without accepting or refusing" in str(error)
    assert len([one for one in caplog.records if one.name == "trioserve.error"]) == 1


RAISED = {
    "SystemExit": SystemExit(3),
    "a group": ExceptionGroup("several", [ValueError(1), OSError(2)]),
    "a group with SystemExit": BaseExceptionGroup("several", [SystemExit(1), ValueError(2)]),
    "an OSError of its own": BrokenPipeError("a database's"),
    "a disconnect where nobody left": type("WebSocketDisconnect", (Exception,), {})(1000),
}


@pytest.mark.parametrize("name", RAISED)
async def test_whatever_is_raised_before_accept_is_a_500(autojump_clock, name):
    """SystemExit and groups end one handshake, not the server: 500, and the application's own error is logged."""

    async def handler(scope, receive, send):
        raise RAISED[name]

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert answer.status == 500
        assert server.errors == [RAISED[name]]
        await goes_on(client)


@pytest.mark.parametrize("name", RAISED)
async def test_whatever_is_raised_after_accept_closes_with_1011(autojump_clock, name):
    """The same on an open WebSocket closes it with 1011."""

    async def handler(scope, receive, send):
        await send(ACCEPT_MESSAGE)
        raise RAISED[name]

    async with memory(handler) as server:
        async with websocket(server) as opened:
            assert await opened.receive_close() == (1011, "")
            await opened.wait_eof()
        assert server.errors == [RAISED[name]]
        await goes_on(await server.connect())


@pytest.mark.parametrize("opens", [True, False], ids=["open", "connecting"])
@pytest.mark.parametrize("kind", ["ours", "a group of ours", "Starlette's", "a group of both"])
async def test_a_disconnect_that_is_let_through_is_no_error(autojump_clock, kind, opens):
    """After the client left, our error for it and a framework's own WebSocketDisconnect are no application errors."""
    foreign = type("WebSocketDisconnect", (Exception,), {})(1006)

    async def handler(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        if opens:
            await send(ACCEPT_MESSAGE)
        assert (await receive())["type"] == "websocket.disconnect"
        try:
            await send({"type": "websocket.send", "text": "x"} if opens else ACCEPT_MESSAGE)
        except OSError as error:
            both = {"ours": [error], "a group of ours": [error], "Starlette's": [foreign]}.get(kind, [error, foreign])
            if "group" in kind:
                raise ExceptionGroup("several", both) from None
            raise both[0] from None

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.sleep(1)
        assert server.errors == []
        assert server.server.statistics().requests == 0


@pytest.mark.parametrize("opens", [True, False], ids=["open", "connecting"])
async def test_another_client_s_disconnect_is_an_error(autojump_clock, opens):
    """An application that sends to another client, which has left, and lets the error through fails its own: 1011 or
    500, and the error is logged.
    """
    sends = []

    async def handler(scope, receive, send):
        if scope["path"] == "/gone":
            await send(ACCEPT_MESSAGE)
            sends.append(send)
            return
        if opens:
            await send(ACCEPT_MESSAGE)
        await sends[0]({"type": "websocket.send", "text": "somebody joins"})

    async with memory(handler) as server:
        async with websocket(server, "/gone") as gone:
            await gone.receive_close()
            await gone.wait_eof()
        if opens:
            async with websocket(server) as opened:
                assert await opened.receive_close() == (1011, "")
        else:
            answer, client = await refused(server)
            assert answer.status == 500
            await goes_on(client)
        (error,) = server.errors
        assert isinstance(error, ClientDisconnected)


async def test_an_error_beside_a_disconnect_is_an_error(autojump_clock):
    """A group of a disconnect and something else is an error of the application."""

    async def handler(scope, receive, send):
        await receive()
        await receive()
        raise ExceptionGroup("several", [ClientDisconnected("x"), ValueError("mine")])

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.sleep(1)
        assert [type(one) for one in server.errors] == [ExceptionGroup]


@pytest.mark.parametrize("opens", [True, False], ids=["open", "connecting"])
async def test_keyboard_interrupt_passes(autojump_clock, opens):
    """KeyboardInterrupt in a WebSocket's application ends the server, as it does anywhere, and leaves nothing."""

    async def handler(scope, receive, send):
        if opens:
            await send(ACCEPT_MESSAGE)
        raise KeyboardInterrupt

    with nothing_left(), pytest.raises(KeyboardInterrupt):
        async with memory(handler) as server:
            client = await server.connect()
            await client.raw(handshake_bytes())
            await trio.sleep(50)


# Time


async def test_an_undecided_handshake_is_a_504(autojump_clock):
    """After exactly timeout_ws_handshake seconds without a decision the application is cancelled, and the client gets
    504; its connection goes on."""
    ends = []

    async def handler(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time() - start)

    async with memory(handler, timeout_ws_handshake=7) as server:
        start = trio.current_time()
        answer, client = await refused(server)
        assert (answer.status, trio.current_time() - start) == (504, 7)
        assert server.server.statistics().rejected == {504: 1}
        await goes_on(client)
        assert ends == [7]
        assert [(one.status, one.outcome) for one in server.records] == [(504, Outcome.DEADLINE), (200, Outcome.OK)]
        assert server.errors == []


async def test_a_late_handshake_leaves_its_connection(autojump_clock):
    """The connection of a 504 goes on also where an application is cancelled the moment its client leaves: this one
    has not left.
    """
    async with memory(forever, timeout_disconnect_grace=0) as server:
        answer, client = await refused(server)
        assert answer.status == 504
        again = await open_handshake(client.stream)
        assert isinstance(again, Answer)
        assert again.status == 504
        await goes_on(client)
        assert server.errors == []


async def test_the_handshake_has_ten_seconds(autojump_clock):
    """The default of timeout_ws_handshake is ten seconds."""
    async with memory(forever) as server:
        start = trio.current_time()
        answer, _ = await refused(server)
        assert (answer.status, trio.current_time() - start) == (504, 10)


async def test_a_decision_in_time_is_kept(autojump_clock):
    """A WebSocket accepted just before its time is over stays open; the clock no longer runs."""

    async def handler(scope, receive, send):
        await trio.sleep(6.9)
        await accept(scope, receive, send)

    async with memory(handler, timeout_ws_handshake=7) as server, websocket(server) as opened:
        await trio.sleep(15)
        assert await opened.close() == (1000, "")
        assert server.server.statistics().rejected == {}


async def test_a_late_application_cannot_accept(autojump_clock):
    """An application that holds on against its cancellation finds its WebSocket gone; the answer is the 504 alone."""
    raised = []

    async def handler(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for message in (ACCEPT_MESSAGE, CLOSE_MESSAGE, DENIAL):
                    with pytest.raises(ClientDisconnected) as caught:
                        await send(message)
                    raised.append(str(caught.value))

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert answer.status == 504
        await goes_on(client)
        assert server.errors == []
    assert raised == ["the handshake has failed"] * 3


@pytest.mark.parametrize("how", ["instead", "beside", "after"])
async def test_an_error_of_a_late_application_is_logged(autojump_clock, how):
    """What its clean-up raises is logged, in place of the cancellation or beside it; the client gets its 504 in time,
    and an answer to its next request, even if the application takes no notice of the cancellation.
    """

    async def raise_late():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("late")

    async def handler(scope, receive, send):
        if how == "instead":
            await raise_late()
        elif how == "beside":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raise_late)
                nursery.start_soon(trio.sleep_forever)
        else:
            with trio.CancelScope(shield=True):
                await trio.sleep(11)
            raise ValueError("late")

    async with memory(handler) as server:
        start = trio.current_time()
        answer, client = await refused(server)
        assert (answer.status, trio.current_time() - start) == (504, 10)
        await goes_on(client)
        assert trio.current_time() - start == 10
        await trio.sleep(2)
        (error,) = server.errors
        assert isinstance(error, ValueError if how != "beside" else ExceptionGroup)


async def test_timeout_request_is_not_for_websockets(autojump_clock):
    """timeout_request, where it is shorter, ends neither a handshake nor an open WebSocket."""

    async def handler(scope, receive, send):
        if scope["path"] == "/late":
            await trio.sleep_forever()
        await accept(scope, receive, send)

    async with memory(handler, timeout_request=5) as server:
        start = trio.current_time()
        answer, _ = await refused(server, handshake_bytes("/late"))
        assert (answer.status, trio.current_time() - start) == (504, 10)
        async with websocket(server) as opened:
            await trio.sleep(15)
            assert await opened.close() == (1000, "")


# Limits


async def test_limit_concurrency_counts_websockets(autojump_clock):
    """An open WebSocket counts as a request in progress; one more, of either kind, gets 503 with Retry-After."""
    async with memory(accept, limit_concurrency=1) as server:
        async with websocket(server) as opened:
            answer, _ = await refused(server)
            assert (answer.status, answer.headers[b"retry-after"]) == (503, b"1")
            assert (await (await server.connect()).get()).status == 503
            assert await opened.close() == (1000, "")
            await opened.wait_eof()
        again, _ = await ask(server)
        assert isinstance(again, WebSocketClient)
        assert await again.close() == (1000, "")


async def test_statistics_count_websockets(autojump_clock):
    """websockets are those that are open now, websockets_total all that ever were; a refused one never was."""

    async def handler(scope, receive, send):
        if scope["path"] == "/no":
            await send(CLOSE_MESSAGE)
        else:
            await accept(scope, receive, send)

    async with memory(handler) as server:
        await refused(server, handshake_bytes("/no"))
        async with websocket(server) as opened, websocket(server):
            await trio.testing.wait_all_tasks_blocked()
            statistics = server.server.statistics()
            assert (statistics.websockets, statistics.websockets_total) == (2, 2)
            assert (statistics.requests, statistics.requests_total) == (2, 3)
            await opened.close()
            await trio.testing.wait_all_tasks_blocked()
            assert server.server.statistics().websockets == 1
        await trio.sleep(1)
        assert server.server.statistics().websockets == 0
        assert server.server.statistics().websockets_total == 2


# Shutdown


@pytest.mark.parametrize("kind", DRAINS)
async def test_a_handshake_when_the_drain_begins_gets_503(autojump_clock, kind):
    """A handshake that is undecided when a drain begins gets 503 at once, and its connection closes; the application
    can no longer accept."""
    told = []

    async def handler(scope, receive, send):
        await receive()
        told.append((await receive())["type"])
        with pytest.raises(OSError, match="the handshake has failed"):
            await send(ACCEPT_MESSAGE)

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        DRAINS[kind](server)
        answer = await read_handshake(client.stream)
        assert (answer.status, trio.current_time() - start) == (503, 0)
        assert answer.headers[b"connection"] == b"close"
        assert await client.receive_rest() == b""
        assert trio.current_time() == start
        await trio.sleep(1)
        assert server.server.statistics().rejected == {503: 1}
        assert [(one.status, one.outcome) for one in server.records] == [(503, Outcome.ERROR)]
        assert server.errors == []
    assert told == ["websocket.disconnect"]


@pytest.mark.parametrize("kind", DRAINS)
async def test_an_application_refused_by_the_drain_has_the_disconnect_s_grace(autojump_clock, kind):
    """An application that goes on after that 503 is cancelled timeout_disconnect_grace seconds later."""
    ends = []

    async def handler(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time() - start)

    async with memory(handler, timeout_disconnect_grace=2) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        DRAINS[kind](server)
        answer = await read_handshake(client.stream)
        assert answer.status == 503
        await trio.sleep(20)
        assert ends == [2]
        assert server.errors == []


NEW = {
    "accepts": [ACCEPT_MESSAGE],
    "refuses": [CLOSE_MESSAGE],
    "responds": [DENIAL, DENIAL_BODY],
    "returns": [],
    "sends what is wrong": [{"type": "websocket.send", "text": "x"}],
}


@pytest.mark.parametrize("name", NEW)
async def test_a_new_handshake_in_a_retire_gets_503(autojump_clock, name):
    """A handshake on a connection that a retiring server keeps gets 503 and the end, whatever the application does."""

    async def handler(scope, receive, send):
        for message in NEW[name]:
            await send(message)

    async with memory(handler) as server:
        client = await server.connect()
        await client.get()
        retire(server)
        await trio.sleep(1)
        answer = await open_handshake(client.stream)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.headers[b"connection"]) == (503, b"close")
        assert await client.receive_rest() == b""
        assert server.errors == []


async def test_a_handshake_that_is_completed_during_a_stop_gets_503(autojump_clock):
    """A handshake whose head comes to its end within the second a stop leaves it gets 503, not a WebSocket."""
    async with memory(accept) as server:
        client = await server.connect()
        await client.raw(handshake_bytes()[:30])
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        await trio.sleep(0.5)
        await client.raw(handshake_bytes()[30:])
        answer = await read_handshake(client.stream)
        assert (answer.status, answer.headers[b"connection"]) == (503, b"close")
        assert await client.receive_rest() == b""


async def test_accept_after_the_drain_began_is_a_503(autojump_clock):
    """An application that accepts in the very moment the drain begins gets an OSError, and the client its 503."""
    raised = []

    async def handler(scope, receive, send):
        # No checkpoint in between: the server's own task has not seen the drain yet.
        server.server.shutdown()
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT_MESSAGE)
        raised.append(True)

    async with memory(handler) as server:
        answer, client = await refused(server)
        assert answer.status == 503
        assert await client.receive_rest() == b""
        assert server.server.statistics().rejected == {503: 1}
    assert raised == [True]


@pytest.mark.parametrize("kind", DRAINS)
async def test_a_response_that_has_begun_may_end_in_a_drain(autojump_clock, kind):
    """An application's own response in progress is completed during a drain; then the connection closes."""
    started, go_on = trio.Event(), trio.Event()

    async def handler(scope, receive, send):
        await send(DENIAL)
        started.set()
        await go_on.wait()
        await send(DENIAL_BODY)

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await started.wait()
        DRAINS[kind](server)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        answer = await read_handshake(client.stream)
        assert (answer.status, answer.body, answer.headers[b"connection"]) == (401, b"denied", b"close")
        assert await client.receive_rest() == b""


async def test_a_wrong_handshake_in_a_drain_closes(autojump_clock):
    """A wrong handshake during a drain gets its own answer, with Connection: close in place of Upgrade."""
    async with memory(never_called) as server:
        client = await server.connect()
        await client.get()
        retire(server)
        answer = await open_handshake(client.stream, handshake_bytes("/", (b"sec-websocket-version", b"8")))
        assert (answer.status, answer.headers[b"connection"]) == (426, b"close")
        assert await client.receive_rest() == b""


# Cancelling serve()


async def test_cancelling_the_server_answers_an_undecided_handshake(autojump_clock):
    """When serve() is cancelled an undecided handshake gets 503, not a bare end."""
    async with memory(forever) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        server.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 50):
            received = await client.receive_rest()
    assert received.startswith(b"HTTP/1.1 503 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("_", range(6))  # because Trio runs tasks in any order
async def test_a_shielded_accept_after_cancelling_the_server(autojump_clock, at_once, _):
    """An application that accepts behind a shield once all is cancelled is told at once that it is too late, and its
    client gets 503, or 101 and the end, if the application was quicker than the server.
    """
    heard = []

    async def handler(scope, receive, send):
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            start = trio.current_time()
            with trio.CancelScope(shield=True, deadline=start + 50):
                if not at_once:
                    await trio.testing.wait_all_tasks_blocked()
                try:
                    await send(ACCEPT_MESSAGE)
                    heard.append((await receive())["code"])
                except ClientDisconnected:
                    heard.append("too late")
                heard.append(trio.current_time() - start)

    async with memory(handler) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        server.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 50):
            received = await client.receive_rest()
    assert heard in (["too late", 0], [1012, 0])
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 503 ") or at_once
    assert server.server.statistics().websockets == 0


async def test_an_accept_that_is_quicker_than_the_end():
    """Over a socket of ours an accept goes out at once. Behind a shield it may come before the server has noticed that
    all is cancelled; then the client gets 1012, or else 503.
    """
    seen = set()

    async def handler(scope, receive, send):
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5), suppress(ClientDisconnected):
                await send(ACCEPT_MESSAGE)

    with trio.fail_after(10):
        for _ in range(16):  # because Trio runs tasks in any order
            async with socket_server(websocket_app(handler)) as server:
                client = await server.connect()
                await client.raw(handshake_bytes())
                while not server.server.statistics().requests:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                server.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    received = await client.receive_rest()
                    await client.aclose()
            seen.add((received[9:12], received.endswith(b"\x88\x02\x03\xf4")))
    assert seen == {(b"503", False), (b"101", True)}


async def test_an_accept_that_goes_out_while_all_is_cancelled(autojump_clock):
    """A 101 that a shielded application is still sending when the server has been cancelled opens nothing."""
    heard = []

    async def handler(scope, receive, send):
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 50):
            try:
                await send(ACCEPT_MESSAGE)
            except ClientDisconnected as error:
                heard.append(str(error))

    async with server_on("lockstep", websocket_app(handler)) as server:
        client = await server.connect()
        await client.raw(handshake_bytes())
        await trio.testing.wait_all_tasks_blocked()
        server.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 50):
            await trio.testing.wait_all_tasks_blocked()
            received = await client.receive_rest()
    assert heard == ["all was cancelled while the WebSocket was being accepted"]
    assert received.startswith(b"HTTP/1.1 101 ")
    assert received.endswith(b"\r\n\r\n")
    assert server.server.statistics().websockets_total == 0
