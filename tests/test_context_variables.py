"""Each request runs in a fresh copy of the context variables that the lifespan left."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import trio
import trio.testing

from trioserve.types import ASGIApp, Receive, Scope, Send

from .support import Client, memory_server, plain_lifespan, send_text, socket_server
from .websocket_client import WebSocketClient, open_handshake

pytestmark = pytest.mark.both_codecs

word: ContextVar[str] = ContextVar("word", default="unset")
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def telling(*, sets: bool = True) -> ASGIApp:
    """Answers with the variable as the request found it, and then sets it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            word.set("lifespan")
            await plain_lifespan(receive, send)
            return
        found = word.get()
        if sets:
            word.set("request")
        await send_text(send, found + "!")

    return app


@pytest.mark.parametrize("serve", [memory_server, socket_server])
async def test_requests_on_one_connection_see_nothing_of_each_other(serve) -> None:  # type: ignore[no-untyped-def]
    """What a request sets is not seen by the next one; what lifespan set is seen by all."""
    async with serve(telling()) as server:
        with trio.fail_after(10):
            client = await server.connect()
            for _ in range(3):
                assert (await client.get()).body == b"lifespan!"
            await client.aclose()


@pytest.mark.parametrize("serve", [memory_server, socket_server])
async def test_requests_in_one_packet_see_nothing_of_each_other(serve) -> None:  # type: ignore[no-untyped-def]
    """The same where the requests are pipelined, and the server never waits between them."""
    async with serve(telling()) as server:
        with trio.fail_after(10):
            client = await server.connect()
            await client.raw(GET * 3 + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = await client.receive_rest()
            assert answer.count(b"lifespan!") == 4
            await client.aclose()


async def test_other_connections_see_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """What a request sets is not seen by a later connection."""
    async with memory_server(telling()) as server:
        for _ in range(2):
            assert (await (await server.connect()).get()).body == b"lifespan!"


async def test_the_caller_s_variables_are_seen(autojump_clock: trio.testing.MockClock) -> None:
    """Without a lifespan a request starts from what serve() was called with."""
    word.set("caller")
    async with memory_server(telling(), lifespan="off") as server:
        assert (await (await server.connect()).get()).body == b"caller!"
    assert word.get() == "caller"


async def test_a_variable_survives_the_first_await(autojump_clock: trio.testing.MockClock) -> None:
    """A variable set before the first await is still there after it, in every request of a connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        word.set(scope["path"])
        await trio.sleep(1)
        first = word.get()
        await send_text(send, first + word.get())

    async with memory_server(app) as server:
        client = await server.connect()
        for path in ("/a", "/b"):
            assert (await client.get(path)).body == (path * 2).encode()
        await client.raw(b"GET /c HTTP/1.1\r\nHost: a\r\n\r\nGET /d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await client.receive_rest()
        assert answer.endswith(b"/d/d")
        assert b"/c/c" in answer


async def test_child_tasks_inherit(autojump_clock: trio.testing.MockClock) -> None:
    """Tasks that a request starts see what it has set, and what they set stays with them."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return

        async def child() -> None:
            seen.append(word.get())
            word.set("child")

        word.set(scope["path"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        await send_text(send, word.get())

    async with memory_server(app) as server:
        client = await server.connect()
        for path in ("/a", "/b"):
            assert (await client.get(path)).body == path.encode()
        assert seen == ["/a", "/b"]


def waiting(seen: list[str]) -> ASGIApp:
    """Sets the variable to its path, waits for so many seconds, and answers with what the variable is then."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            word.set("lifespan")
            await plain_lifespan(receive, send)
            return
        seen.append(word.get())
        word.set(scope["path"])
        await trio.sleep(float(scope["path"][1:]))
        await send_text(send, word.get())

    return app


async def test_requests_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    """Requests of several connections that run at the same time see each its own, whatever the others set."""
    seen: list[str] = []

    async with memory_server(waiting(seen)) as server, trio.open_nursery() as nursery:

        async def ask(client: Client, paths: tuple[str, ...]) -> None:
            for path in paths:
                assert (await client.get(path)).body == path.encode()

        for paths in (("/3", "/1"), ("/1", "/4"), ("/2", "/2.5")):
            nursery.start_soon(ask, await server.connect(), paths)
    assert seen == ["lifespan"] * 6


async def test_a_cancelled_request_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """What a handler had set that was cancelled, as its client had left, is seen by nobody."""
    seen: list[str] = []
    async with memory_server(waiting(seen), timeout_disconnect_grace=1) as server:
        client = await server.connect()
        await client.raw(b"GET /600 HTTP/1.1\r\nHost: test\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.sleep(2)
        assert server.server.statistics().requests == 0
        assert (await (await server.connect()).get("/1")).body == b"/1"
    assert seen == ["lifespan", "lifespan"]


async def test_a_request_cut_by_its_deadline_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The same where the handler was cancelled at timeout_request."""
    seen: list[str] = []
    async with memory_server(waiting(seen), timeout_request=5) as server:
        assert (await (await server.connect()).get("/600")).status == 504
        assert (await (await server.connect()).get("/1")).body == b"/1"
    assert seen == ["lifespan", "lifespan"]


async def test_a_request_that_raises_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """The same after a handler that raises once its response is complete, and whose connection goes on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            word.set("lifespan")
            await plain_lifespan(receive, send)
            return
        found = word.get()
        word.set(scope["path"])
        await send_text(send, found)
        raise ValueError("after the response")

    async with memory_server(app) as server:
        client = await server.connect()
        for path in ("/a", "/b"):
            assert (await client.get(path)).body == b"lifespan"
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.errors) == 2


async def test_what_runs_on_after_its_response(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that runs on in the background keeps what it set; the next requests on its connection begin anew."""
    seen: list[tuple[str, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            word.set("lifespan")
            await plain_lifespan(receive, send)
            return
        path = scope["path"]
        found = word.get()
        word.set(path)
        await send_text(send, found)
        await trio.sleep(10)
        seen.append((path, word.get()))

    async with memory_server(app) as server:
        client = await server.connect()
        for path in ("/a", "/b", "/c"):
            assert (await client.get(path)).body == b"lifespan"
            await trio.sleep(1)
        assert seen == []
        await trio.sleep(10)
    assert seen == [("/a", "/a"), ("/b", "/b"), ("/c", "/c")]


async def test_threads_see_their_request_s() -> None:
    """Code in a thread sees what its request has set, and what it sets stays there."""

    def work() -> str:
        found = word.get()
        word.set("thread")
        return found

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        word.set(scope["path"])
        found = await trio.to_thread.run_sync(work)
        await send_text(send, f"{found} {word.get()}")

    async with memory_server(app) as server:
        with trio.fail_after(10):
            client = await server.connect()
            for path in ("/a", "/b"):
                assert (await client.get(path)).body == f"{path} {path}".encode()


async def test_websockets(autojump_clock: trio.testing.MockClock) -> None:
    """A WebSocket begins with what lifespan set, keeps what it sets for its life, and shares it with nobody."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            word.set("lifespan")
            await plain_lifespan(receive, send)
            return
        found = word.get()
        word.set("request")
        if scope["type"] == "http":
            await send_text(send, found)
            return
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": found})
            found = word.get()
            word.set(message["text"])

    async with memory_server(app) as server:
        first, second = await server.connect(), await server.connect()
        # The same connections carry a request before.
        sockets = []
        for client in (first, second):
            assert (await client.get()).body == b"lifespan"
            opened = await open_handshake(client.stream)
            assert isinstance(opened, WebSocketClient)
            sockets.append(opened)
        for texts in (("1", "2"), ("3", "4"), ("5", "6")):
            for one, text in zip(sockets, texts, strict=True):
                await one.send_text(text)
        answers = [[await one.receive() for _ in range(3)] for one in sockets]
        assert answers == [["lifespan", "request", "1"], ["lifespan", "request", "2"]]
        assert (await (await server.connect()).get()).body == b"lifespan"
