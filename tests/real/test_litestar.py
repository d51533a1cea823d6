"""Litestar, which runs on Trio where its server does."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Annotated

import httpx
import pytest
import sniffio
import trio
import trio.lowlevel
from litestar import Litestar, get, post
from litestar.params import Body
from litestar.response import ServerSentEvent, Stream

from trioserve.logs import Outcome

from ..support import socket_server
from .clients import PATIENCE, wait, wait_until

pytestmark = pytest.mark.both_codecs


@dataclass
class Item:
    name: str
    price: float


def make_app(*handlers, **options):
    # Litestar's own logging configures the root logger, which the other tests would see, and starts a thread.
    return Litestar(list(handlers), logging_config=None, **options)


@contextlib.asynccontextmanager
async def serving(*handlers, **options):
    """An application of these handlers on a real port, with httpx to talk to it."""
    async with socket_server(make_app(*handlers, **options)) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(base_url=server.server.urls[0], trust_env=False) as client:
                yield server, client


async def test_runs_on_trio():
    """Handlers run in Trio's event loop: they may use Trio itself."""

    @get("/")
    async def library() -> str:
        await trio.lowlevel.checkpoint()
        return sniffio.current_async_library()

    async with serving(library) as (_, client):
        assert (await client.get("/")).text == "trio"


async def test_json_there_and_back():
    """A JSON body becomes a dataclass and back; one that does not fit is Litestar's 400."""

    @post("/")
    async def create(data: Annotated[Item, Body()]) -> Item:
        return data

    async with serving(create) as (server, client):
        response = await client.post("/", json={"name": "tea", "price": 2.5})
        assert response.status_code == 201
        assert response.json() == {"name": "tea", "price": 2.5}
        assert (await client.post("/", json={"name": "tea"})).status_code == 400
    assert server.errors == []


async def test_plain_function_runs_in_a_thread():
    """A handler declared with def and sync_to_thread runs outside the event loop's thread."""

    @get("/", sync_to_thread=True)
    def thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    async with serving(thread) as (_, client):
        assert (await client.get("/")).json() is False


async def test_lifespan_surrounds_the_requests():
    """A lifespan context is open while requests are served."""
    story = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        story.append("started")
        yield
        story.append("stopped")

    @get("/")
    async def serve() -> None:
        story.append("served")

    async with serving(serve, lifespan=[lifespan]) as (_, client):
        await client.get("/")
    assert story == ["started", "served", "stopped"]


async def test_exception_is_a_500_and_the_server_lives():
    """A handler that raises gives 500; the next request on the server is served."""

    @get("/fail")
    async def fail() -> None:
        raise ValueError("on purpose")

    @get("/")
    async def serve() -> str:
        return "served"

    async with serving(fail, serve) as (_, client):
        assert (await client.get("/fail")).status_code == 500
        assert (await client.get("/")).text == "served"


async def test_server_sent_events():
    """A finite stream of events arrives whole."""

    @get("/")
    async def events() -> ServerSentEvent:
        async def numbers():
            for number in range(3):
                yield str(number)

        return ServerSentEvent(numbers())

    async with serving(events) as (_, client):
        response = await client.get("/")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [line for line in response.text.splitlines() if line] == ["data: 0", "data: 1", "data: 2"]


async def test_stream_ends_with_its_client():
    """The generator of a stream is cleaned up when its client leaves."""
    cleaned_up = trio.Event()

    @get("/")
    async def stream() -> Stream:
        async def ticks():
            try:
                while True:
                    yield b"tick\n"
                    await trio.sleep(0.01)
            finally:
                cleaned_up.set()

        return Stream(ticks())

    async with socket_server(make_app(stream), timeout_disconnect_grace=0.1) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await client.stream.receive_some(1000)).startswith(b"HTTP/1.1 200")
        await client.aclose()
        await wait(cleaned_up)
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []
