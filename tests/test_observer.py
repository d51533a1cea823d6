"""What an observer is told of requests and of the application's failures, in which order, and with what."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from trioserve import ClientDisconnected, MessageError, serve
from trioserve.exchange import Request
from trioserve.observer import Observer
from trioserve.testing.memory_server import MemoryListener

from .support import Client, Recorder, http_app, memory_server, read_body, respond, send_text, socket_server
from .websocket_client import Answer, WebSocketClient, handshake_bytes, open_handshake, websocket, websocket_app

pytestmark = pytest.mark.timeout(20)

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}


class Diary(Recorder):
    """Takes down what it is told of requests, in order; ``note`` lets applications add what they do."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, object]] = []
        self.asked: list[Request | None] = []

    @property
    def words(self) -> list[str]:
        return [word for word, _ in self.entries]

    def note(self, word: str) -> None:
        self.entries.append((word, None))

    def exchange_began(self, request):
        super().exchange_began(request)
        self.entries.append(("began", request))

    def exchange_left(self, request):
        super().exchange_left(request)
        self.entries.append(("left", request))

    def exchange_ended(self, record):
        super().exchange_ended(record)
        self.entries.append(("ended", record))

    def websocket_closed(self, record):
        super().websocket_closed(record)
        self.entries.append(("closed", record))

    def application_failed(self, error, request):
        super().application_failed(error, request)
        self.asked.append(request)
        self.entries.append(("failed", error))


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


# Requests


@pytest.mark.parametrize("server_on", [memory_server, socket_server])
async def test_a_request_begins_before_the_application_and_leaves_after_it(diary, server_on):
    """exchange_began comes before the call, exchange_left after its return, both with the same request, once each."""

    async def handler(scope, receive, send):
        diary.note("called")
        await send_text(send, "Hi")
        diary.note("returns")

    async with server_on(http_app(handler), recorder=diary) as server:
        client = await server.connect()
        for _ in range(3):
            assert (await client.get("/path?query")).status == 200
            await settled()
            assert [word for word in diary.words if word != "ended"] == ["began", "called", "returns", "left"]
            assert diary.words.count("ended") == 1
            (began,) = (about for word, about in diary.entries if word == "began")
            (left,) = (about for word, about in diary.entries if word == "left")
            assert began is left
            assert (began.method, began.target, began.line) == ("GET", b"/path?query", "GET /path?query HTTP/1.1")
            assert (b"host", b"test") in began.headers
            diary.entries.clear()
        await client.aclose()


async def test_a_response_may_end_before_the_application_does(diary, autojump_clock):
    """A background task lets exchange_left come after the response; the client's next request begins meanwhile."""

    async def handler(scope, receive, send):
        await send_text(send, scope["path"])
        if scope["path"] == "/long":
            await trio.sleep(60)

    async with memory_server(http_app(handler), recorder=diary) as server:
        client = await server.connect()
        await client.get("/long")
        await client.get("/short")
        await trio.sleep(100)
        told = [(word, about.target) for word, about in diary.entries if word in ("began", "left")]
        assert told == [("began", b"/long"), ("began", b"/short"), ("left", b"/short"), ("left", b"/long")]
        await client.aclose()


async def test_a_request_that_is_refused_begins_and_leaves_too(diary, autojump_clock):
    """A request that is answered in the application's place is told of like any other."""

    async def handler(scope, receive, send):
        diary.note("called")
        await trio.sleep_forever()

    async with memory_server(http_app(handler), recorder=diary, limit_concurrency=1, limit_request_body=3) as server:
        first, second = await server.connect(), await server.connect()
        assert (await first.request("POST", body=b"large")).status == 413
        await settled()
        assert diary.words == ["began", "ended", "left"] or diary.words == ["began", "left", "ended"]
        diary.entries.clear()
        third = await server.connect()
        await third.raw(REQUEST)
        await settled()
        assert (await second.get()).status == 503
        await settled()
        assert diary.words[:3] == ["began", "called", "began"]
        assert sorted(diary.words[3:]) == ["ended", "left"]
        for client in (first, second, third):
            await client.aclose()


async def test_a_head_that_is_none_does_not_begin(diary, autojump_clock):
    """What is no request is no exchange of the application's: neither begin nor leaving are told."""
    async with memory_server(respond(), recorder=diary) as server:
        client = await server.connect()
        await client.raw(b"\x00\r\n\r\n")
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 400 ")
        await client.aclose()
        await settled()
        assert "began" not in diary.words
        assert "left" not in diary.words


@pytest.mark.parametrize("why", ["the client leaves", "deadline", "cancelled"])
async def test_a_handler_that_is_cancelled_leaves(diary, autojump_clock, why):
    """However a handler ends, exchange_left is told once."""

    async def handler(scope, receive, send):
        try:
            await trio.sleep_forever()
        finally:
            diary.note("ends")

    options = {"timeout_request": 5} if why == "deadline" else {}
    async with memory_server(http_app(handler), recorder=diary, **options) as server:
        client = await server.connect()
        await client.raw(REQUEST)
        await settled()
        if why == "the client leaves":
            await client.aclose()
        elif why == "cancelled":
            server.server.shutdown(0)
        await trio.sleep(10)
        assert [word for word in diary.words if word != "ended"] == ["began", "ends", "left"]
        assert not diary.errors
        await client.aclose()


async def test_a_websocket_is_one_request(diary, autojump_clock):
    """A WebSocket begins with its handshake and leaves when its handler has returned."""

    async def handler(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        diary.note("returns")

    async with memory_server(websocket_app(handler), recorder=diary) as server:
        async with websocket(server, "/chat") as client:
            await settled()
            assert [word for word in diary.words if word != "ended"] == ["began"]
            assert diary.entries[0][1].protocol == "websocket"
            await client.close()
        await settled()
        words = [word for word in diary.words if word != "ended"]
        assert words[:2] == ["began", "returns"]
        assert sorted(words[2:]) == ["closed", "left"]


async def test_the_plain_observer_is_told_nothing_that_costs(autojump_clock):
    """The methods of Observer do nothing, and take what they are given."""
    observer = Observer()
    request = Request("GET", b"/", [], "1.1", None)
    assert observer.exchange_began(request) is None
    assert observer.exchange_left(request) is None
    assert observer.application_failed(ValueError(), request) is None
    assert observer.application_failed(ValueError(), None) is None
    assert observer.limit_reached() is False


async def test_a_server_that_nobody_observes(autojump_clock):
    """Without an observer requests are served, counted, and described just the same."""
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, respond(), listeners=[listener], access_log=False))
        client = Client(listener.connect())
        assert [(await client.get()).status for _ in range(2)] == [200, 200]
        await client.aclose()
        await settled()
        assert server.statistics().requests_total == 2
        assert server.describe_waiting() == "nothing"
        server.shutdown()


# Failures of the application


async def raises(scope, receive, send):
    raise ValueError(scope["path"])


async def raises_in_the_middle(scope, receive, send):
    await send(START)
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    raise ValueError(scope["path"])


async def raises_after_all(scope, receive, send):
    await send_text(send, "fine")
    raise ValueError(scope["path"])


async def raises_when_its_client_has_left(scope, receive, send):
    await read_body(receive)
    await receive()
    raise ValueError(scope["path"])


@pytest.mark.parametrize("handler", [raises, raises_in_the_middle, raises_after_all, raises_when_its_client_has_left])
async def test_an_error_is_told_with_its_request(diary, autojump_clock, handler):
    """application_failed has the error itself and the request in which it was raised, before exchange_left."""
    async with memory_server(http_app(handler), recorder=diary) as server:
        client = await server.connect()
        await client.raw(b"GET /broken HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await settled()
        await client.aclose()
        await settled()
        (error,), (request,) = diary.errors, diary.asked
        assert (type(error), error.args) == (ValueError, ("/broken",))
        assert request is diary.entries[0][1]
        assert diary.words.index("failed") < diary.words.index("left")
        assert server.server.statistics().application_errors == 1


async def test_errors_of_several_requests_are_told_apart(diary, autojump_clock):
    """Each error comes with its own request."""
    async with memory_server(http_app(raises), recorder=diary) as server:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                client = await server.connect()
                nursery.start_soon(client.get, f"/{number}")
        await settled()
        for error, request in zip(diary.errors, diary.asked, strict=True):
            assert error.args[0] == request.target.decode()
        assert len(diary.errors) == 10


async def test_a_response_that_is_missing(diary, autojump_clock):
    """An application that returns too early has failed with MessageError, which is told with the request."""

    async def handler(scope, receive, send):
        pass

    async with memory_server(http_app(handler), recorder=diary) as server:
        client = await server.connect()
        assert (await client.get()).status == 500
        await client.aclose()
        (error,), (request,) = diary.errors, diary.asked
        assert (type(error), str(error)) == (MessageError, "the application returned without a response")
        assert request.line == "GET / HTTP/1.1"


@pytest.mark.parametrize("accepts", [True, False])
async def test_an_error_in_a_websocket_is_told_with_its_request(diary, autojump_clock, accepts):
    """The request is the one of the handshake."""

    async def handler(scope, receive, send):
        await receive()
        if accepts:
            await send({"type": "websocket.accept"})
        raise ValueError(scope["path"])

    async with memory_server(websocket_app(handler), recorder=diary) as server:
        client = await server.connect()
        opened = await open_handshake(client.stream, handshake_bytes("/chat"))
        assert isinstance(opened, WebSocketClient if accepts else Answer)
        if accepts:
            assert (await opened.receive_close())[0] == 1011
        await client.aclose()
        await settled()
        (error,), (request,) = diary.errors, diary.asked
        assert (error.args, request.target, request.protocol) == (("/chat",), b"/chat", "websocket")


@pytest.mark.parametrize("kind", [ClientDisconnected, trio.Cancelled])
async def test_a_client_that_leaves_is_no_failure(diary, autojump_clock, kind):
    """What the server itself raises into an application whose client has left is not told."""

    async def handler(scope, receive, send):
        if kind is ClientDisconnected:
            await read_body(receive)
            await receive()
            await send_text(send, "too late")
        await trio.sleep_forever()

    async with memory_server(http_app(handler), recorder=diary) as server:
        client = await server.connect()
        await client.raw(REQUEST)
        await settled()
        await client.aclose()
        await trio.sleep(10)
        assert "left" in diary.words
        assert "failed" not in diary.words


async def test_an_error_while_it_is_cancelled(diary, autojump_clock):
    """What a handler raises while it is cancelled is told with its request, too."""

    async def handler(scope, receive, send):
        async def clean_up() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("in a finally")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up)
            await trio.sleep_forever()

    async with memory_server(http_app(handler), recorder=diary) as server:
        client = await server.connect()
        await client.raw(REQUEST)
        await settled()
        server.server.shutdown(0)
        await trio.sleep(10)
        (request,) = diary.asked
        assert request.line == "GET / HTTP/1.1"
        assert diary.words[:3] == ["began", "failed", "left"]
        await client.aclose()


async def test_a_broken_task_tree_is_told_without_a_request(diary, autojump_clock):
    """An application that leaves a nursery open ends its connection: that is told once, and counted; others go on."""
    kept = []

    async def handler(scope, receive, send):
        if scope["path"] == "/broken":
            kept.append(trio.open_nursery())
            nursery = await kept[-1].__aenter__()
            nursery.start_soon(trio.sleep_forever)
        await send_text(send, "fine")

    async with memory_server(http_app(handler), recorder=diary) as server:
        client, other = await server.connect(), await server.connect()
        await client.get("/broken")
        assert (await other.get()).status == 200
        await client.aclose()
        await trio.sleep(10)
        assert (await other.get()).status == 200
        assert diary.asked == [None]
        assert isinstance(diary.errors[0], BaseException)
        assert server.server.statistics().application_errors == 1
        began = [about for word, about in diary.entries if word == "began"]
        left = [about for word, about in diary.entries if word == "left"]
        assert sorted(map(id, left)) == sorted(map(id, began))
        await other.aclose()
    kept.clear()


async def test_errors_of_the_lifespan_are_not_told(diary, autojump_clock):
    """A lifespan that is refused is no failure of a request."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            raise ValueError("no lifespan here")
        await send_text(send, "Hi")

    async with memory_server(app, recorder=diary) as server:
        client = await server.connect()
        assert isinstance(client, Client)
        assert (await client.get()).status == 200
        assert diary.errors == []
        await client.aclose()
