"""Starlette: what its responses rely on the server for."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os

import httpx
import pytest
import trio
import trio.lowlevel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from trioserve.logs import Outcome

from ..support import socket_server
from .clients import PATIENCE, wait, wait_until

pytestmark = pytest.mark.both_codecs

# Starlette abandons a StreamingResponse's generator when its client leaves, and Trio warns where it finds one.
ABANDONED = pytest.mark.filterwarnings(
    "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def one_route(endpoint, **options):
    return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])], **options)


@contextlib.asynccontextmanager
async def http_client(server):
    """httpx on the server's address, for at most PATIENCE seconds."""
    with trio.fail_after(PATIENCE):
        async with httpx.AsyncClient(base_url=server.server.urls[0], trust_env=False) as client:
            yield client


async def test_background_task_is_not_cancelled_when_its_client_leaves():
    """A background task runs after the response, and is out of reach of the disconnect grace."""
    client_left, finished = trio.Event(), trio.Event()

    async def work():
        await client_left.wait()
        await trio.sleep(0.2)  # time for a cancellation that must not come
        finished.set()

    async def endpoint(request):
        return PlainTextResponse("accepted", background=BackgroundTask(work))

    async with socket_server(one_route(endpoint), timeout_disconnect_grace=0) as server:
        client = await server.connect()
        assert (await client.get()).body == b"accepted"
        await client.aclose()
        client_left.set()
        await wait(finished)
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.OK]
    assert server.errors == []


@ABANDONED
async def test_streaming_stops_when_the_client_leaves():
    """A generator that goes on writing meets an error in send(); its finally runs, and nothing is logged as an
    error."""
    cleaned_up = trio.Event()

    async def numbers():
        try:
            for number in itertools.count():
                yield b"%d\n" % number * 1000
                await trio.lowlevel.checkpoint()
        finally:
            cleaned_up.set()

    async def endpoint(request):
        return StreamingResponse(numbers())

    # Never cancelled, so it is the error that ends it.
    async with socket_server(one_route(endpoint), timeout_disconnect_grace=None) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await client.stream.receive_some(100)
        await client.aclose()
        await wait(cleaned_up)
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


@ABANDONED
async def test_silent_stream_is_cancelled_after_the_grace():
    """A generator that waits for news hears of the leaving client by its cancellation, not before the grace is over."""
    cancelled = trio.Event()

    async def news():
        yield b"begun"
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def endpoint(request):
        return StreamingResponse(news())

    async with socket_server(one_route(endpoint), timeout_disconnect_grace=0.3) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        received = b""
        while b"begun" not in received:
            received += await client.stream.receive_some(100)
        start = trio.current_time()
        await client.aclose()
        await wait(cancelled)
        assert trio.current_time() - start >= 0.3
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


@ABANDONED
async def test_abandoned_generator_with_a_nursery_hurts_its_own_connection_only():
    """A generator that yields inside a nursery breaks Trio's task tree; the other connections do not notice."""

    async def ticks():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            while True:
                yield b"tick\n" * 1000
                await trio.lowlevel.checkpoint()

    async def endpoint(request):
        return StreamingResponse(ticks())

    async with socket_server(one_route(endpoint), timeout_disconnect_grace=0.1) as server:
        other = await server.connect()
        await other.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        for _ in range(3):
            leaver = await server.connect()
            await leaver.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            await leaver.stream.receive_some(100)
            await leaver.aclose()
        await wait_until(lambda: len(server.records) == 3)
        with trio.fail_after(PATIENCE):
            for _ in range(100):
                assert await other.stream.receive_some(65536)
        await other.aclose()
        await wait_until(lambda: len(server.records) == 4)


@ABANDONED
async def test_the_generator_of_a_leaver_does_not_wait_for_the_garbage_collector():
    """Starlette abandons the generator; nothing of ours holds it, so its finally runs when the handler ends."""
    cleaned_up = trio.Event()

    async def numbers():
        try:
            while True:
                yield b"more" * 1000
                await trio.lowlevel.checkpoint()
        finally:
            cleaned_up.set()

    async def endpoint(request):
        return StreamingResponse(numbers())

    gc.disable()
    try:
        async with socket_server(one_route(endpoint)) as server:
            client = await server.connect()
            await client.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            await client.stream.receive_some(100)
            await client.aclose()
            await wait(cleaned_up)
    finally:
        gc.enable()


async def test_sync_generator_streams_from_a_thread():
    """A plain generator runs in threads, piece by piece, and arrives whole."""

    def pieces():
        for number in range(100):
            yield f"{number},"

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/plain")

    async with socket_server(one_route(endpoint)) as server, http_client(server) as client:
        response = await client.get("/")
    assert response.text == "".join(f"{number}," for number in range(100))
    assert response.headers["transfer-encoding"] == "chunked"


async def test_is_disconnected_becomes_true():
    """A handler that asks sees false while its client waits and true once it has left."""
    answers = []
    asked, left = trio.Event(), trio.Event()

    async def endpoint(request: Request):
        await request.body()
        answers.append(await request.is_disconnected())
        asked.set()
        while not await request.is_disconnected():
            await trio.sleep(0.01)
        left.set()
        return PlainTextResponse("nobody reads this")

    async with socket_server(one_route(endpoint), timeout_disconnect_grace=None) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody")
        await wait(asked)
        await client.aclose()
        await wait(left)
    assert answers == [False]
    assert server.errors == []


async def leave_in_the_middle_of_an_upload():
    """Returns the server, after a client has left it before its body was complete."""
    begun = trio.Event()

    async def endpoint(request: Request):
        begun.set()
        return PlainTextResponse(await request.body())

    async with socket_server(one_route(endpoint)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4000\r\n\r\nbody")
        await wait(begun)
        await client.aclose()
        await wait_until(lambda: server.records)
    return server


async def test_leaving_in_the_middle_of_an_upload_is_no_error():
    """request.body() raises Starlette's ClientDisconnect, which is no error of the application: no trace is logged."""
    server = await leave_in_the_middle_of_an_upload()
    assert server.errors == []


async def test_leaving_in_the_middle_of_an_upload_is_logged_as_that():
    """The access line says that the client left, although Starlette answered with a 500 that nobody reads."""
    server = await leave_in_the_middle_of_an_upload()
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]


@pytest.fixture
def file_app(tmp_path):
    """An application that serves a file of 300 kB, the file's content, and the kinds of messages that were sent."""
    path = tmp_path / "data.bin"
    content = os.urandom(300_000)
    path.write_bytes(content)
    kinds = []

    async def endpoint(request):
        return FileResponse(path)

    starlette = Starlette(routes=[Route("/", endpoint)])

    async def app(scope, receive, send):
        async def listen(message):
            kinds.append(message["type"])
            await send(message)

        await starlette(scope, receive, listen if scope["type"] == "http" else send)

    return app, content, kinds


async def test_file_goes_out_by_path(file_app):
    """FileResponse takes the pathsend that the server offers, and the file arrives as it is."""
    app, content, kinds = file_app
    async with socket_server(app) as server, http_client(server) as client:
        response = await client.get("/")
    assert response.content == content
    assert response.headers["content-length"] == "300000"
    assert kinds == ["http.response.start", "http.response.pathsend"]
    assert [record.sent for record in server.records] == [300_000]


@pytest.mark.parametrize(
    ("asked", "part", "said"),
    [
        ("bytes=100000-199999", slice(100_000, 200_000), "bytes 100000-199999/300000"),
        ("bytes=-5", slice(299_995, 300_000), "bytes 299995-299999/300000"),
        ("bytes=0-0", slice(0, 1), "bytes 0-0/300000"),
    ],
)
async def test_range_of_a_file(file_app, asked, part, said):
    """A range gets 206 and exactly its bytes."""
    app, content, _ = file_app
    async with socket_server(app) as server, http_client(server) as client:
        response = await client.get("/", headers={"range": asked})
    assert response.status_code == 206
    assert response.headers["content-range"] == said
    assert response.content == content[part]


async def test_several_ranges_of_a_file(file_app):
    """Several ranges come as multipart/byteranges of the announced length."""
    app, content, _ = file_app
    async with socket_server(app) as server, http_client(server) as client:
        response = await client.get("/", headers={"range": "bytes=0-99,1000-1099"})
    assert response.status_code == 206
    assert response.headers["content-type"].startswith("multipart/byteranges")
    assert content[:100] in response.content
    assert content[1000:1100] in response.content


async def test_head_of_a_file(file_app):
    """HEAD tells the length and sends nothing; the connection serves the next request."""
    app, content, _ = file_app
    async with socket_server(app) as server, http_client(server) as client:
        response = await client.head("/")
        assert response.headers["content-length"] == "300000"
        assert response.content == b""
        assert (await client.get("/")).content == content
        assert server.server.statistics().connections_total == 1


async def test_file_that_is_missing(tmp_path):
    """Starlette's complaint about a missing file is one logged error and a 500."""

    async def endpoint(request):
        return FileResponse(tmp_path / "none")

    async with socket_server(one_route(endpoint)) as server, http_client(server) as client:
        assert (await client.get("/")).status_code == 500
    assert len(server.errors) == 1


async def test_lifespan_state_reaches_the_requests():
    """What the lifespan yields is in request.state and in the server's handle; its end comes after the last request."""
    story = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        story.append("started")
        yield {"greeting": "good morning"}
        story.append("stopped")

    async def endpoint(request):
        story.append("served")
        return PlainTextResponse(request.state.greeting)

    async with socket_server(one_route(endpoint, lifespan=lifespan)) as server, http_client(server) as client:
        assert (await client.get("/")).text == "good morning"
        assert server.server.state == {"greeting": "good morning"}
    assert story == ["started", "served", "stopped"]
