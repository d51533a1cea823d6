"""HTTP/1.1 on the wire: one connection's requests, one after the other."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from trioserve import serve_stream
from trioserve.config import Config
from trioserve.context import DefaultHeaders, _choose_max_requests
from trioserve.drain import DrainKind
from trioserve.logs import Outcome
from trioserve.observer import Phase
from trioserve.types import ASGIApp, Receive, Scope, Send

from .support import Client, RunningServer, http_app, memory_server, read_body, respond, send_text, socket_server

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
DEADLINE = 10.0
"""Seconds of real time for what goes over sockets."""

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.both_codecs]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send_text(send, await read_body(receive))


async def tell_target(scope: Scope, receive: Receive, send: Send) -> None:
    await send_text(send, f"{scope['method']} {scope['path']} {scope['raw_path']!r} {scope['query_string']!r}")


async def exchange_raw(server: RunningServer, data: bytes) -> bytes:
    """Send these bytes on a new connection, and return all that comes until the server closes it."""
    client = await server.connect()
    await client.raw(data)
    answer = await client.receive_rest()
    await client.aclose()
    return answer


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split(b" ")[1])


def read_answers(data: bytes, *methods: str) -> list[bytes]:
    """The bodies of the responses in these bytes, which answer requests of these methods."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(data)
    bodies = []
    for method in methods:
        client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        client.send(h11.EndOfMessage())
        assert isinstance(client.next_event(), h11.Response)
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage), event
        bodies.append(body)
        if client.their_state is h11.DONE:
            client.start_next_cycle()
    assert client.trailing_data[0] == b""
    return bodies


# Keep-alive and pipelining


async def test_a_connection_stays_open(autojump_clock: trio.testing.MockClock) -> None:
    """After an answer the next request on the same connection is served."""
    async with memory_server(http_app(echo)) as server:
        client = await server.connect()
        for number in range(5):
            assert (await client.request("POST", body=b"%d" % number)).body == b"%d" % number
        assert server.server.statistics().connections_total == 1


async def test_connection_close_closes(autojump_clock: trio.testing.MockClock) -> None:
    """A client that asks to close is answered so, and the connection closes."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        answer = await client.request(headers=[("Connection", "close")])
        assert answer.headers[b"connection"] == b"close"
        start = trio.current_time()
        assert await client.receive_rest() == b""
        assert trio.current_time() == start


async def test_the_application_may_close(autojump_clock: trio.testing.MockClock) -> None:
    """Connection: close of the application closes the connection."""
    async with memory_server(respond(headers=[(b"Connection", b"close")])) as server:
        start = trio.current_time()
        answer = await exchange_raw(server, GET)
        assert answer.lower().count(b"connection: close") == 1
        assert trio.current_time() == start


async def test_bytes_after_the_last_request_are_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """What follows a request with Connection: close is not served; the request itself is."""
    async with memory_server(respond()) as server:
        answer = await exchange_raw(server, LAST_GET + GET)
        assert read_answers(answer, "GET") == [b"Hello, world!"]
        assert len(server.records) == 1


async def test_pipelined_requests_are_answered_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """Requests that came in one packet are answered one after the other, with their own bodies."""
    post = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n"
    async with memory_server(http_app(echo)) as server:
        data = b"".join(post + b"%d" % number for number in range(5))
        answer = await exchange_raw(server, data + LAST_GET)
        assert read_answers(answer, *["POST"] * 5, "GET") == [b"0", b"1", b"2", b"3", b"4", b""]


async def test_a_client_that_pipelines_does_not_starve_others(autojump_clock: trio.testing.MockClock) -> None:
    """Between pipelined requests other connections get their turn."""
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])
        await send_text(send, b"")

    async with memory_server(http_app(app)) as server:
        greedy, modest = await server.connect(), await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greedy.raw, b"GET /greedy HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
            nursery.start_soon(modest.raw, b"GET /modest HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert len(order) == 101
        assert order.index("/modest") < 10


async def test_empty_lines_before_a_request_are_ignored(autojump_clock: trio.testing.MockClock) -> None:
    """Empty lines before the request line are passed over, also between requests (RFC 9112 §2.2)."""
    async with memory_server(respond()) as server:
        answer = await exchange_raw(server, b"\r\n\r\n" + GET + b"\r\n" + LAST_GET)
        assert len(read_answers(answer, "GET", "GET")) == 2


# Versions, methods, framing


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"])
async def test_http_10_always_closes(autojump_clock: trio.testing.MockClock, head: bytes) -> None:
    """An HTTP/1.0 request is answered and its connection closed, whatever it asks for."""
    async with memory_server(respond()) as server:
        start = trio.current_time()
        answer = await exchange_raw(server, head)
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"Hello, world!")
        assert trio.current_time() == start


async def test_http_10_gets_no_chunks(autojump_clock: trio.testing.MockClock) -> None:
    """A response without a length goes to an HTTP/1.0 client as it is, and ends with the connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["http_version"] == "1.0"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with memory_server(http_app(app)) as server:
        head, _, body = (await exchange_raw(server, b"GET / HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
        assert body == b"onetwo"
        assert b"transfer-encoding" not in head.lower()


async def test_head_gets_the_head_alone(autojump_clock: trio.testing.MockClock) -> None:
    """The answer to HEAD has the application's fields and no body, and the connection stays open."""
    async with memory_server(respond(headers=[(b"content-length", b"13")])) as server:
        client = await server.connect()
        answer = await client.request("HEAD")
        assert (answer.headers[b"content-length"], answer.body) == (b"13", b"")
        assert (await client.get()).body == b"Hello, world!"
        assert [record.sent for record in server.records] == [0, 13]


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_body_gets_none(autojump_clock: trio.testing.MockClock, status: int) -> None:
    """204 and 304 go out without body, framing or length, and the connection stays open."""
    async with memory_server(respond(b"never sent", status=status)) as server:
        client = await server.connect()
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.body) == (status, b"")
            assert not {b"content-length", b"transfer-encoding"} & set(answer.headers)


async def test_a_streamed_response_is_chunked(autojump_clock: trio.testing.MockClock) -> None:
    """A body of unknown length goes out in chunks, each when it is sent; the connection stays open."""
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        first = await client.stream.receive_some()
        assert first.endswith(b"\r\n\r\n3\r\none\r\n")
        assert b"transfer-encoding: chunked" in first.lower()
        go_on.set()
        assert await client.stream.receive_some() == b"3\r\ntwo\r\n0\r\n\r\n"
        await client.raw(LAST_GET)
        assert await client.receive_rest()


async def test_a_simple_response_is_one_write(autojump_clock: trio.testing.MockClock) -> None:
    """Head and body given one after the other leave in one piece, with the length of the body."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(GET)
        answer = await client.stream.receive_some()
        assert b"content-length: 13\r\n" in answer
        assert answer.endswith(b"\r\n\r\nHello, world!")


async def test_an_empty_piece_sends_the_head_alone(autojump_clock: trio.testing.MockClock) -> None:
    """An empty piece with more_body=True sends the head at once; a start alone sends nothing."""
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await go_on.wait()
        await send({"type": "http.response.body", "more_body": True})
        await trio.sleep_forever()

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        with trio.move_on_after(5) as scope:
            await client.stream.receive_some()
        assert scope.cancelled_caught
        go_on.set()
        assert (await client.stream.receive_some()).endswith(b"\r\n\r\n")


async def test_a_chunked_request_is_taken_apart(autojump_clock: trio.testing.MockClock) -> None:
    """A chunked request reaches the application as plain bytes; its trailers are dropped."""
    async with memory_server(http_app(echo)) as server:
        client = await server.connect()
        await client.raw(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none"
        )
        await client.raw(b"\r\n3;x=y\r\ntwo\r\n0\r\nTrailer: dropped\r\n\r\n")
        assert read_answers(await client.receive_rest(), "POST") == [b"onetwo"]
        assert server.records[0].received == 6


# Expect: 100-continue


async def test_100_is_sent_when_the_application_waits_for_the_body(autojump_clock: trio.testing.MockClock) -> None:
    """A client that waits for 100 gets it once, when the application first waits for the body."""
    asked, go_on = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await go_on.wait()
        await echo(scope, receive, send)

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        await asked.wait()
        with trio.move_on_after(1) as scope:
            await client.stream.receive_some()
        assert scope.cancelled_caught
        go_on.set()
        assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.raw(b"bo")
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(b"dy")
        assert (await client.stream.receive_some()).endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
async def test_no_100_without_need(autojump_clock: trio.testing.MockClock, expect: str) -> None:
    """No 100 goes to a client that did not ask for it, or that sent its body without waiting."""
    async with memory_server(http_app(echo)) as server:
        head = f"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n{expect}\r\n"
        assert status_of(await exchange_raw(server, head.encode() + b"body")) == 200


async def test_an_answer_without_the_body_closes(autojump_clock: trio.testing.MockClock) -> None:
    """An application that does not want the body answers a waiting client at once, which then must not send it."""
    async with memory_server(respond(status=403)) as server:
        answer = await exchange_raw(
            server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        assert status_of(answer) == 403
        assert b"connection: close" in answer.lower()


async def test_no_100_after_the_response_has_begun(autojump_clock: trio.testing.MockClock) -> None:
    """100 may not follow the final response's head."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "more_body": True})
        body = await read_body(receive)
        await send({"type": "http.response.body", "body": body})

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        await client.raw(b"body")
        assert b"100 Continue" not in await client.receive_rest()


# Targets


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("GET /a%20b%2Fc?d=%20", "GET /a b/c b'/a%20b%2Fc' b'd=%20'"),
        ("GET /%C3%A4", "GET /ä b'/%C3%A4' b''"),
        ("GET /%ff", "GET /\ufffd b'/%ff' b''"),
        ("GET /%zz", "GET /%zz b'/%zz' b''"),
        ("GET /a?b?c", "GET /a b'/a' b'b?c'"),
        (f"GET /{'%20' * 100}?b", f"GET /{' ' * 100} b'/{'%20' * 100}' b'b'"),
        ("GET http://elsewhere/a?b", "GET /a b'/a' b'b'"),
        ("OPTIONS *", "OPTIONS * b'*' b''"),
        ("OPTIONS http://elsewhere", "OPTIONS * b'*' b''"),
        ("DELETE //a/../b", "DELETE //a/../b b'//a/../b' b''"),
    ],
)
async def test_the_application_sees_the_target(autojump_clock: trio.testing.MockClock, line: str, seen: str) -> None:
    """path is percent-decoded, raw_path and query_string are not; the host of an absolute-form target is taken off."""
    async with memory_server(http_app(tell_target)) as server:
        head = f"{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        assert read_answers(await exchange_raw(server, head), line.split(maxsplit=1)[0]) == [seen.encode()]


@pytest.mark.parametrize(
    ("root_path", "target", "path"),
    [
        ("/api", "/items", "/api/items"),
        ("/api", "/api/items", "/api/items"),
        ("/api", "/api", "/api"),
        ("", "/a", "/a"),
    ],
)
async def test_path_includes_root_path_once(
    autojump_clock: trio.testing.MockClock, root_path: str, target: str, path: str
) -> None:
    """ASGI's path includes root_path, whether the proxy stripped it or passed it on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["root_path"] == root_path
        await send_text(send, scope["path"])

    async with memory_server(http_app(app), root_path=root_path) as server:
        assert (await (await server.connect()).get(target)).body == path.encode()


async def test_the_scope_is_fresh_for_every_request(autojump_clock: trio.testing.MockClock) -> None:
    """What an application changes in its scope, headers or state is not seen by the next request."""
    seen: list[tuple[object, object]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((list(scope["headers"]), dict(scope["state"])))
        scope["headers"].append((b"x", b"y"))
        scope["state"]["x"] = "y"
        scope["extensions"].clear()
        await send_text(send, b"")

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.get()
        await client.get()
        assert seen == [([(b"host", b"test")], {})] * 2


# Fields of every response


async def test_date_and_server_are_said(autojump_clock: trio.testing.MockClock) -> None:
    """Every response has Date, of this second, and Server."""
    async with memory_server(respond()) as server:
        answer = await (await server.connect()).get()
        assert answer.headers[b"server"] == b"trioserve"
        date = email.utils.parsedate_to_datetime(answer.headers[b"date"].decode())
        assert abs(date.timestamp() - time.time()) < 5


def test_date_is_made_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one second the same fields are used; the next second has its own Date."""
    now = 1_000_000_000.25
    monkeypatch.setattr("trioserve.context.time.time", lambda: now)
    headers = DefaultHeaders(Config())
    first = headers.current()
    now += 0.7
    assert headers.current() is first
    assert dict(first)[b"date"] == b"Sun, 09 Sep 2001 01:46:40 GMT"
    now += 0.1
    assert dict(headers.current())[b"date"] == b"Sun, 09 Sep 2001 01:46:41 GMT"


async def test_date_and_server_can_be_left_out(autojump_clock: trio.testing.MockClock) -> None:
    """Each can be turned off."""
    async with memory_server(respond(), date_header=False, server_header=False) as server:
        assert not {b"date", b"server"} & set((await (await server.connect()).get()).headers)


async def test_extra_headers_are_in_every_response(autojump_clock: trio.testing.MockClock) -> None:
    """Fields of the configuration are added, to the server's own answers too."""
    async with memory_server(respond(), header=["X-One: 1", "X-Two: 2, 3"]) as server:
        answer = await (await server.connect()).get()
        assert (answer.headers[b"x-one"], answer.headers[b"x-two"]) == (b"1", b"2, 3")
        assert b"x-one: 1" in await exchange_raw(server, b"nonsense\r\n\r\n")


async def test_the_application_s_own_field_goes_before(autojump_clock: trio.testing.MockClock) -> None:
    """A field that the application sets is not said a second time."""
    headers = [(b"Server", b"mine"), (b"Date", b"then"), (b"X-One", b"its own")]
    async with memory_server(respond(headers=headers), header=["X-One: 1"]) as server:
        answer = await exchange_raw(server, LAST_GET)
        assert (
            answer.lower().count(b"server:") == answer.lower().count(b"date:") == answer.lower().count(b"x-one:") == 1
        )
        assert b"mine" in answer


@pytest.mark.parametrize(
    "field", [(b"a", b"b\r\nSet-Cookie: c=d"), (b"a\r\nSet-Cookie", b"c"), (b"a", b"b\x00"), (b"a b", b"c")]
)
async def test_response_splitting_is_refused(
    autojump_clock: trio.testing.MockClock, field: tuple[bytes, bytes]
) -> None:
    """A field that would be read as another raises in the application, and the client gets 500 without it."""
    async with memory_server(respond(headers=[field])) as server:
        answer = await (await server.connect()).get()
        assert answer.status == 500
        assert b"set-cookie" not in answer.headers
        assert "response head is wrong" in str(server.errors[0])


# Malformed input

LONG = b"x" * 300
MALFORMED = {
    "nonsense": (b"nonsense\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "the HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "NUL": (b"\x00", 400),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "wrong Host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "folded": (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400),
    "a space before the colon": (b"GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n", 400),
    "a control character": (b"GET / HTTP/1.1\r\nHost: a\r\nA: \x01\r\n\r\n", 400),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    "a listed length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
    "gzip and chunked": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    "a fragment": (b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an asterisk": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a long target": (b"GET /" + LONG, 414),
    "a long field": (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + LONG, 431),
    "many fields": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 5 + b"\r\n", 431),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_input_is_answered_and_the_connection_closed(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """What is no request never reaches the application: it gets a status by the RFC, and the connection closes at
    once."""
    data, status = MALFORMED[name]
    async with memory_server(respond(), limit_request_head=256, limit_request_fields=5) as server:
        start = trio.current_time()
        answer = await exchange_raw(server, data)
        assert status_of(answer) == status
        assert b"connection: close" in answer.lower()
        assert len(read_answers(answer, "GET")) == 1
        assert trio.current_time() == start
        assert server.server.statistics().rejected == {status: 1}
        assert [(one.status, one.outcome) for one in server.records] == [(status, Outcome.ERROR)]


async def test_tls_on_a_plain_port_gets_a_clear_answer(autojump_clock: trio.testing.MockClock) -> None:
    """A TLS client on a plain port is told so, not left in silence."""
    async with memory_server(respond()) as server:
        assert b"speaks plain HTTP" in await exchange_raw(server, b"\x16\x03\x01\x02\x00")


async def test_malformed_input_after_a_request_spares_the_request(autojump_clock: trio.testing.MockClock) -> None:
    """A good request before nonsense is answered; the nonsense gets its 400."""
    async with memory_server(respond()) as server:
        answer = await exchange_raw(server, GET + b"nonsense\r\n\r\n")
        assert read_answers(answer, "GET", "GET")[0] == b"Hello, world!"
        assert [record.status for record in server.records] == [200, 400]


BAD_BODY = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"


async def test_a_malformed_body_is_answered_with_400(autojump_clock: trio.testing.MockClock) -> None:
    """An application that reads a malformed body gets http.disconnect, the client 400."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])

    async with memory_server(http_app(app)) as server:
        assert status_of(await exchange_raw(server, BAD_BODY)) == 400
        assert seen == ["http.disconnect"]
        assert server.errors == []


async def test_a_malformed_body_cuts_a_response_that_has_begun(autojump_clock: trio.testing.MockClock) -> None:
    """Where the response has begun, a malformed body ends the connection without the last chunk."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    async with memory_server(http_app(app)) as server:
        answer = await exchange_raw(server, BAD_BODY)
        assert status_of(answer) == 200
        assert answer.endswith(b"3\r\none\r\n")
        assert server.records[0].outcome is Outcome.ERROR


async def test_an_unread_malformed_body_closes_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    """An application that does not read a malformed body answers, and the connection closes."""
    async with memory_server(respond()) as server:
        answer = await exchange_raw(server, BAD_BODY + GET)
        assert read_answers(answer, "POST") == [b"Hello, world!"]


# Body limits


async def test_a_body_that_says_to_be_too_large_is_refused_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """A Content-Length above limit_request_body gets 413, and the application is not called."""
    calls: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope)

    async with memory_server(http_app(app), limit_request_body=4) as server:
        answer = await exchange_raw(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        assert status_of(answer) == 413
        assert calls == []


async def test_a_body_that_grows_too_large_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """A chunked body that goes over limit_request_body gets 413, the application http.disconnect."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1] != "http.disconnect":
            seen.append((await receive())["type"])

    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with memory_server(http_app(app), limit_request_body=4) as server:
        client = await server.connect()
        await client.raw(head + b"4\r\nfour\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(b"1\r\n!\r\n0\r\n\r\n")
        assert status_of(await client.receive_rest()) == 413
        assert seen == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(
    "body", [b"Content-Length: 4\r\n\r\nfour", b"Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n"]
)
async def test_a_body_within_the_limit_passes(autojump_clock: trio.testing.MockClock, body: bytes) -> None:
    """A body of exactly limit_request_body bytes is served."""
    async with memory_server(http_app(echo), limit_request_body=4) as server:
        answer = await exchange_raw(server, b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + body)
        assert read_answers(answer, "POST") == [b"four"]


# Limits


async def test_one_request_too_many_gets_503(autojump_clock: trio.testing.MockClock) -> None:
    """Above limit_concurrency a request gets 503 with Retry-After; later ones are served again."""
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await send_text(send, b"served")

    async with memory_server(http_app(app), limit_concurrency=1) as server, trio.open_nursery() as nursery:
        first, second, third = [await server.connect() for _ in range(3)]
        nursery.start_soon(first.get)
        await trio.testing.wait_all_tasks_blocked()
        answer = await second.get()
        assert (answer.status, answer.headers[b"retry-after"]) == (503, b"1")
        assert answer.headers[b"connection"] == b"close"
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await third.get()).body == b"served"


async def test_a_connection_closes_after_its_number_of_requests(autojump_clock: trio.testing.MockClock) -> None:
    """The last request that limit_requests_per_connection allows is answered with Connection: close."""
    async with memory_server(respond(), limit_requests_per_connection=2) as server:
        client = await server.connect()
        assert b"connection" not in (await client.get()).headers
        assert (await client.get()).headers[b"connection"] == b"close"
        assert await client.receive_rest() == b""


async def test_the_server_stops_after_its_number_of_requests(autojump_clock: trio.testing.MockClock) -> None:
    """At limit_max_requests the server drains: running requests end, and serve() returns."""
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await send_text(send, b"served")

    async with memory_server(http_app(app), limit_max_requests=2) as server:
        slow, fast, idle = [await server.connect() for _ in range(3)]
        async with trio.open_nursery() as nursery:

            async def get_slowly() -> None:
                answer = await slow.get("/slow")
                assert (answer.body, answer.headers[b"connection"]) == (b"served", b"close")

            nursery.start_soon(get_slowly)
            await trio.testing.wait_all_tasks_blocked()
            assert (await fast.get()).headers[b"connection"] == b"close"
            assert await idle.receive_rest() == b""
            assert server.recorder.phases[-1] is Phase.DRAINING
            go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert server.recorder.phases[-1] is Phase.STOPPED


# Drain


async def test_a_stop_closes_idle_connections_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """When the server stops, a connection between requests closes without a word."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.get()
        start = trio.current_time()
        server.server.shutdown()
        assert await client.receive_rest() == b""
        assert trio.current_time() == start


async def test_a_head_that_has_begun_may_end_during_a_stop(autojump_clock: trio.testing.MockClock) -> None:
    """A head in progress has one more second when the server stops, and is then answered."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(GET[:10])
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        await trio.sleep(0.9)
        await client.raw(GET[10:])
        assert status_of(await client.receive_rest()) == 200


async def test_a_head_that_does_not_end_in_a_stop_gets_408(autojump_clock: trio.testing.MockClock) -> None:
    """After that second the head is given up."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(GET[:10])
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        server.server.shutdown()
        assert status_of(await client.receive_rest()) == 408
        assert trio.current_time() - start == 1


async def test_a_retiring_server_waits_for_the_next_request(autojump_clock: trio.testing.MockClock) -> None:
    """When another worker accepts, an idle connection stays until its next request, which is answered with close."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.get()
        server.server._context.drain.begin(DrainKind.RETIRE)
        await trio.sleep(1)
        answer = await client.get()
        assert (answer.status, answer.headers[b"connection"]) == (200, b"close")
        assert await client.receive_rest() == b""


async def test_a_response_that_streams_outlives_a_stop(autojump_clock: trio.testing.MockClock) -> None:
    """A response whose head went out before the stop comes to its end, and then the connection closes."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await trio.sleep(5)
        await send({"type": "http.response.body", "body": b"two"})

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        assert read_answers(await client.receive_rest(), "GET") == [b"onetwo"]


# Unread bodies


async def test_an_unread_body_is_swallowed(autojump_clock: trio.testing.MockClock) -> None:
    """A body that the application did not read is thrown away, and the connection carries the next request."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.request("POST", body=b"x" * 60_000)).status == 200
        assert server.server.statistics().connections_total == 1


async def test_an_unread_body_that_comes_later_is_swallowed(autojump_clock: trio.testing.MockClock) -> None:
    """The rest of an unread body may come within a second of the answer, also while the server retires."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nfo")
        assert await client.stream.receive_some()
        server.server._context.drain.begin(DrainKind.RETIRE)
        await trio.sleep(0.5)
        await client.raw(b"ur" + GET)
        assert status_of(await client.receive_rest()) == 200


async def test_a_large_unread_body_closes_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    """More than 64 KiB of unread body cost more than a new connection: it closes."""
    async with memory_server(respond()) as server:
        body = b"x" * 100_000
        answer = await exchange_raw(
            server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + body + GET
        )
        assert len(read_answers(answer, "POST")) == 1
        assert len(server.records) == 1


async def test_an_unread_body_that_does_not_come_closes_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    """The rest of an unread body is waited for one second."""
    async with memory_server(respond()) as server:
        start = trio.current_time()
        await exchange_raw(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell")
        assert trio.current_time() - start == 1


async def test_a_closing_connection_lingers(autojump_clock: trio.testing.MockClock) -> None:
    """After an early answer the server says that it ends, and throws away what still comes for at most two seconds."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(b"nonsense\r\n\r\n")
        await client.receive_rest()
        start = trio.current_time()
        await trio.sleep(1.5)
        await client.raw(b"still sending")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await trio.sleep(0.1)
                await client.raw(b"x")
        assert 2 <= trio.current_time() - start < 2.2


async def test_a_client_that_closes_ends_the_lingering(autojump_clock: trio.testing.MockClock) -> None:
    """The server closes as soon as the client has."""
    async with memory_server(respond()) as server:
        start = trio.current_time()
        await exchange_raw(server, b"nonsense\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.statistics().connections == 0
        assert trio.current_time() == start


@pytest.mark.parametrize("answer", [respond(status=403), http_app(echo)], ids=["unread", "over the limit"])
async def test_an_early_answer_reaches_a_client_that_still_sends(answer: ASGIApp) -> None:
    """On a real socket a client that goes on sending gets the early answer, not a reset."""
    async with socket_server(answer, limit_request_body=10_000_000) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            await client.raw(b"10000\r\n" + b"x" * 65536 + b"\r\nnonsense\r\n" + b"x" * 200_000)
            assert status_of(await client.receive_rest()) in (400, 403)
            await client.aclose()


# Half-closing clients

HALF_CLOSING: dict[str, tuple[bytes, list[bytes]]] = {
    "no body": (GET, [b""]),
    "5 B": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", [b"hello"]),
    "300 kB": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, [b"x" * 300_000]),
    "chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        [b"hello!"],
    ),
    "two requests": (
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n!"
        ),
        [b"hello", b"!"],
    ),
}


@pytest.mark.parametrize("name", HALF_CLOSING)
async def test_a_half_closing_client_is_answered(name: str) -> None:
    """A client that sends a FIN after its last byte gets every answer (real sockets)."""
    data, bodies = HALF_CLOSING[name]
    async with socket_server(http_app(echo)) as server:
        with trio.fail_after(DEADLINE):
            stream = await server.connect_stream()
            received = b""

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                async for piece in stream:
                    received += piece
            await stream.aclose()
        assert read_answers(received, *["POST"] * len(bodies)) == bodies
        assert [record.outcome for record in server.records] == [Outcome.OK] * len(bodies)


async def test_a_half_closing_client_is_answered_late(autojump_clock: trio.testing.MockClock) -> None:
    """The same where the application reads only after the FIN, in several pieces and more than is read ahead."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        await echo(scope, receive, send)

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"
        await client.raw(data)
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(b"l")
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(b"lo")
        assert isinstance(client.stream, trio.StapledStream)
        await client.stream.send_stream.aclose()
        assert read_answers(await client.receive_rest(), "POST") == [b"hello"]


async def test_a_body_that_can_no_longer_end_is_a_disconnect(autojump_clock: trio.testing.MockClock) -> None:
    """A FIN in the middle of a body is http.disconnect at once, never more_body=False."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        seen.append((await receive())["type"])

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell")
        await client.aclose()
        await trio.sleep(2)
        assert seen == ["http.disconnect"]
        assert [(one.status, one.outcome) for one in server.records] == [(None, Outcome.CLIENT_LEFT)]


async def test_a_client_that_leaves_in_the_middle_of_a_head_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    """A FIN in the middle of a head ends the connection without an answer."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(GET[:10])
        assert isinstance(client.stream, trio.StapledStream)
        await client.stream.send_stream.aclose()
        start = trio.current_time()
        assert await client.receive_rest() == b""
        assert trio.current_time() == start


# Errors of the application


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(3), BaseException("odd")])
async def test_an_application_that_raises_gets_500(
    autojump_clock: trio.testing.MockClock, error: BaseException
) -> None:
    """Whatever the application raises before its response is a 500 and one record; the connection stays open."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.body) == (500, b"Internal Server Error")
        assert server.errors == [error, error]
        assert server.server.statistics().application_errors == 2


async def test_an_application_that_returns_without_a_response_gets_500(autojump_clock: trio.testing.MockClock) -> None:
    """A response that never began is a 500."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async with memory_server(http_app(app)) as server:
        assert (await (await server.connect()).get()).status == 500
        assert str(server.errors[0]) == "the application returned without a response"


@pytest.mark.parametrize("end", [lambda: None, lambda: int("x")], ids=["returns", "raises"])
async def test_an_application_that_ends_in_its_response_cuts_it(
    autojump_clock: trio.testing.MockClock, end: Callable[[], object]
) -> None:
    """A response that has begun and is not completed is cut before its last chunk, so that the client can tell."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        end()

    async with memory_server(http_app(app)) as server:
        answer = await exchange_raw(server, GET)
        assert answer.endswith(b"3\r\none\r\n")
        assert len(server.errors) == 1
        assert server.records[0].outcome is Outcome.ERROR


async def test_an_error_after_the_response_is_only_logged(autojump_clock: trio.testing.MockClock) -> None:
    """What the application raises after its response is complete is recorded; the client has its answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, b"complete")
        raise ValueError

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.get()).body == b"complete"
        assert len(server.errors) == 2


async def test_a_cut_response_to_http_10_is_a_reset() -> None:
    """An HTTP/1.0 client would take an ordinary close for the end of the response: it gets a reset (real socket)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await cut.wait()
        raise ValueError

    cut = trio.Event()
    async with socket_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            await client.raw(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.stream.receive_some()).endswith(b"one")
            cut.set()
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_rest()
            await client.aclose()


async def test_only_its_own_connection_is_hurt(autojump_clock: trio.testing.MockClock) -> None:
    """While one connection fails in every way, another is served."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            raise KeyError
        await send_text(send, b"good")

    async with memory_server(http_app(app)) as server:
        good = await server.connect()
        for data in (
            b"GET /bad HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"\x16",
            BAD_BODY,
        ):
            await exchange_raw(server, data)
            assert (await good.get()).body == b"good"


# What the server says of its work


async def test_what_a_drain_waits_for_is_said(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing, idle connections, or running requests with the oldest one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    async with memory_server(http_app(app)) as server:
        assert server.server.describe_waiting() == "nothing"
        first, _ = await server.connect(), await server.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.describe_waiting() == "2 connections"
        await first.raw(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(35)
        assert server.server.describe_waiting() == "1 request, oldest GET /first 35 s"


async def test_two_requests_are_said_so(autojump_clock: trio.testing.MockClock) -> None:
    """Several requests are counted, and the oldest is named."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    async with memory_server(http_app(app)) as server:
        for name in (b"first", b"second"):
            client = await server.connect()
            await client.raw(b"GET /" + name + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.sleep(5)
        assert server.server.describe_waiting() == "2 requests, oldest GET /first 10 s"


async def test_the_record_tells_what_happened(autojump_clock: trio.testing.MockClock) -> None:
    """The record of an exchange has its bytes, its time, and the time to the first byte."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        await trio.sleep(2)
        await send({"type": "http.response.start", "status": 201})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await trio.sleep(3)
        await send({"type": "http.response.body", "body": b"end"})

    async with memory_server(http_app(app)) as server:
        await Client((await server.connect()).stream).request("POST", "/a?b", body=b"12345")
        (record,) = server.records
        assert (record.method, record.target, record.http_version, record.status) == ("POST", "/a?b", "1.1", 201)
        assert (record.received, record.sent, record.duration, record.first_byte) == (5, 8, 5, 2)
        assert record.outcome is Outcome.OK


@pytest.mark.parametrize("jitter", [0, 5])
async def test_the_number_of_requests_has_some_chance_in_it(
    autojump_clock: trio.testing.MockClock, jitter: int
) -> None:
    """limit_max_requests_jitter adds at most so many requests, so that workers do not stop together."""
    async with memory_server(respond(), limit_max_requests=1, limit_max_requests_jitter=jitter) as server:
        client = await server.connect()
        served = 1
        while b"connection" not in (await client.get()).headers:
            served += 1
        assert 1 <= served <= 1 + jitter


def test_the_numbers_of_requests_differ() -> None:
    """limit_max_requests_jitter gives each server a number of its own, by chance, and none beyond what it allows."""
    config = Config(limit_max_requests=10, limit_max_requests_jitter=5)
    numbers = {_choose_max_requests(config) for _ in range(200)}
    assert len(numbers) > 1
    assert numbers <= set(range(10, 16))


# What is told of odd ends


async def test_a_drain_does_not_disturb_a_body(autojump_clock: trio.testing.MockClock) -> None:
    """A request whose body is still coming when the server stops is served, and answered with close."""
    async with memory_server(http_app(echo)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        await trio.sleep(1)
        await client.raw(b"llo")
        assert read_answers(await client.receive_rest(), "POST") == [b"hello"]


async def test_after_a_refusal_nothing_can_be_sent(autojump_clock: trio.testing.MockClock) -> None:
    """An application whose request was answered in its place gets an OSError from send()."""
    raised: list[OSError] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        try:
            await send_text(send, b"too late")
        except OSError as error:
            raised.append(error)
            raise

    async with memory_server(http_app(app)) as server:
        assert status_of(await exchange_raw(server, BAD_BODY)) == 400
        assert len(raised) == 1
        assert server.errors == []


async def test_after_a_failed_send_the_body_is_over(autojump_clock: trio.testing.MockClock) -> None:
    """Once a write has failed, receive() gives http.disconnect, whatever of the body has come."""
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        with contextlib.suppress(OSError):
            await send_text(send, b"nobody reads this")
        kinds.append((await receive())["type"])

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        await client.aclose()
        await trio.sleep(2)
        assert kinds == ["http.disconnect"]


async def test_a_complete_answer_is_followed_by_no_other(autojump_clock: trio.testing.MockClock) -> None:
    """Where the body's deadline passes just as another task completes the response, there is one answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(30)
            await send_text(send, b"in time")

    async with memory_server(http_app(app)) as server:
        for _ in range(20):  # which of the two is first is up to Trio
            answer = await exchange_raw(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
            assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_error_after_the_client_left_is_recorded(autojump_clock: trio.testing.MockClock) -> None:
    """An application that fails for reasons of its own after its client has gone is recorded; nobody gets the 500."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        raise ValueError

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        await client.aclose()
        await trio.sleep(2)
        assert [type(error) for error in server.errors] == [ValueError]
        assert server.records[0].outcome is Outcome.CLIENT_LEFT


async def test_without_an_access_log_nobody_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """A server whose exchanges nobody wants to hear of serves all the same."""
    client_end, server_end = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_stream, respond(), server_end, access_log=False))
        client = Client(client_end)
        for _ in range(2):
            assert (await client.get()).body == b"Hello, world!"
        await client.aclose()


async def test_a_client_that_does_not_take_a_file_is_given_up(tmp_path: Path) -> None:
    """A file that a client does not read ends at timeout_write, and is no error of the application (real socket)."""
    path = tmp_path / "file"
    path.write_bytes(bytes(30_000_000))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.pathsend", "path": str(path)})

    async with socket_server(http_app(app), timeout_write=0.3) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            await client.raw(GET)
            while not server.records:
                await trio.sleep(0.01)
            await client.aclose()
        assert server.records[0].outcome is Outcome.DEADLINE
        assert server.errors == []


async def test_a_second_stop_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A stop that is asked for twice is one stop, and a stop is not turned into a retirement."""
    async with memory_server(respond()) as server:
        server.server.shutdown()
        server.server.shutdown()
        server.server._context.drain.begin(DrainKind.RETIRE)
        await trio.testing.wait_all_tasks_blocked()
        assert server.recorder.phases.count(Phase.DRAINING) == 1
        assert server.recorder.phases[-1] is Phase.STOPPED


async def test_without_an_access_log_an_observer_is_told(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """access_log=False writes no line; whoever observes the server still hears of each exchange."""
    caplog.set_level("INFO", logger="trioserve.access")
    async with memory_server(respond(), access_log=False) as server:
        await (await server.connect()).get()
        assert len(server.records) == 1
    assert not [record for record in caplog.records if record.name == "trioserve.access"]


async def test_a_stop_closes_whatever_the_application_says_of_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An application's own Connection field does not keep a connection that the server is about to close."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Connection", b"keep-alive")]})
        await send({"type": "http.response.body", "body": b"x"})

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(0.5)
        server.server.shutdown()
        received = (await client.receive_rest()).lower()
        assert b"connection: close" in received
        assert b"keep-alive" not in received


async def test_configured_server_and_date_replace_ours(autojump_clock: trio.testing.MockClock) -> None:
    """A configured field of the same name stands in place of the server's own, not beside it."""
    async with memory_server(respond(), header=["Server: mine", "Date: today"]) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = await client.receive_rest()
        assert received.count(b"server: ") == received.count(b"date: ") == 1
        assert b"server: mine" in received


async def test_asterisk_form_is_not_below_the_root_path(autojump_clock: trio.testing.MockClock) -> None:
    """OPTIONS * is about the whole server, wherever the application is mounted."""
    paths: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await send_text(send, b"")

    async with memory_server(http_app(app), root_path="/api") as server:
        client = await server.connect()
        await client.request("OPTIONS", "*")
        assert paths == ["*"]
