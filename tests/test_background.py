"""An application that runs on after its response, and the requests that follow on its connection."""

from __future__ import annotations

import contextvars

import pytest
import trio
import trio.testing

from trioserve.types import Receive, Scope, Send

from .support import http_app, memory_server, nothing_left, send_text, socket_server

pytestmark = pytest.mark.both_codecs

REQUEST = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"


class Worker:
    """Answers "/job" and works on for ten seconds; answers everything else at once."""

    def __init__(self) -> None:
        self.finished: list[float] = []
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, scope["path"])
        if scope["path"] == "/job":
            try:
                await trio.sleep(10)
                self.finished.append(trio.current_time())
            except trio.Cancelled:
                self.cancelled += 1
                raise


async def test_the_next_request_does_not_wait_for_a_background_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A client that asks again on its connection while a background task runs is answered at once."""
    worker = Worker()
    async with memory_server(http_app(worker)) as server:
        client = await server.connect()
        start = trio.current_time()
        assert (await client.get("/job")).body == b"/job"
        for _ in range(3):
            assert (await client.get("/other")).body == b"/other"
        assert (await client.get("/job")).body == b"/job"
        assert (await client.get("/last")).body == b"/last"
        assert trio.current_time() == start
        assert server.server.statistics().connections == 1
        await trio.sleep(11)
        assert worker.finished == [start + 10, start + 10]
        assert (await client.get("/after")).body == b"/after"


async def test_pipelined_requests_do_not_wait_either(autojump_clock: trio.testing.MockClock) -> None:
    """Nor does a request that came in the same packet as the one with the background task."""
    worker = Worker()
    async with memory_server(http_app(worker)) as server:
        client = await server.connect()
        start = trio.current_time()
        await client.raw(b"".join(REQUEST % path for path in (b"/job", b"/a", b"/job", b"/b")))
        received = b""
        while b"/b" not in received:
            received += await client.stream.receive_some()
        assert trio.current_time() == start
        assert received.count(b"HTTP/1.1 200 OK") == 4
        assert received.index(b"/job") < received.index(b"/a")


async def test_over_a_real_socket() -> None:
    """The same where the kernel tells what has come."""
    let_go = trio.Event()
    finished = trio.Event()

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, scope["path"])
        if scope["path"] == "/job":
            await let_go.wait()
            finished.set()

    with trio.fail_after(10):
        async with socket_server(http_app(handler)) as server:
            client = await server.connect()
            for path in ("/job", "/a", "/b"):
                assert (await client.get(path)).body == path.encode()
            let_go.set()
            await finished.wait()
            assert (await client.get("/c")).body == b"/c"
            await client.aclose()


async def test_a_successor_closes_the_connection_though_the_background_task_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A client that asks for Connection: close gets its end at once, and the background task is not cancelled."""
    worker = Worker()
    async with memory_server(http_app(worker)) as server:
        client = await server.connect()
        start = trio.current_time()
        await client.raw(REQUEST % b"/job" + b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await client.receive_rest()).endswith(b"/a")
        assert trio.current_time() == start
        await trio.sleep(20)
        assert worker.finished == [start + 10]
        assert server.server.statistics().connections == 0


async def test_a_client_that_leaves_does_not_cancel_the_background_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With a successor and without: what runs after a complete response is nobody's business but the deadline's."""
    worker = Worker()
    async with memory_server(http_app(worker)) as server:
        for more in (0, 1):
            client = await server.connect()
            await client.get("/job")
            for _ in range(more):
                await client.get("/a")
            await client.aclose()
        await trio.sleep(20)
        assert (len(worker.finished), worker.cancelled) == (2, 0)


async def test_a_stop_cancels_background_tasks_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A stop waits for background tasks as for requests; at the deadline all of a connection's are cancelled."""
    worker = Worker()
    with nothing_left():
        async with memory_server(http_app(worker)) as server:
            client = await server.connect()
            await client.get("/job")
            await client.get("/job")
            await client.get("/a")
            assert "2 requests" in server.server.describe_waiting()
            server.server.shutdown(grace=3)
            assert await client.receive_rest() == b""
            await trio.sleep(4)
            assert worker.cancelled == 2


async def test_context_variables_of_a_successor(autojump_clock: trio.testing.MockClock) -> None:
    """The request after one with a background task sees nothing of its context variables, and the task keeps them."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    before: dict[str, str] = {}
    after: dict[str, str] = {}

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        before[path] = variable.get()
        variable.set(path)
        await send_text(send, path)
        await trio.sleep(5)
        after[path] = variable.get()

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.get("/a")
        await client.get("/b")
        await trio.sleep(6)
    assert before == {"/a": "unset", "/b": "unset"}
    assert after == {"/a": "/a", "/b": "/b"}


@pytest.mark.parametrize("times", [1, 3])
async def test_an_error_in_a_background_task_is_its_own(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """A background task that raises after its connection went on is logged; the connection serves on."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, scope["path"])
        if scope["path"] == "/job":
            await trio.sleep(1)
            raise ValueError("on purpose")

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        for _ in range(times):
            await client.get("/job")
        await client.get("/a")
        await trio.sleep(2)
        assert [str(error) for error in server.errors] == ["on purpose"] * times
        assert (await client.get("/b")).body == b"/b"


async def test_a_successor_closes_a_connection_it_cannot_use(autojump_clock: trio.testing.MockClock) -> None:
    """A request body that nobody read, too large to swallow, ends the connection now, not after the background task."""
    worker = Worker()
    async with memory_server(http_app(worker)) as server:
        client = await server.connect()
        start = trio.current_time()
        await client.raw(b"POST /job HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        assert (await client.receive_rest()).endswith(b"/job")
        assert trio.current_time() - start < 3
        await client.aclose()
        await trio.sleep(20)
        assert worker.finished == [start + 10]
