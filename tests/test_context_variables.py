"""Each request runs in a fresh copy of the context variables that the lifespan left."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import trio
import trio.testing

from trioserve.types import ASGIApp, Receive, Scope, Send

from .support import memory_server, plain_lifespan, send_text, socket_server

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
