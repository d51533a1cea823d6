"""Quart-Trio: the framework that is Trio's own."""

from __future__ import annotations

import contextlib

import httpx
import pytest
import trio
from quart import request
from quart_trio import QuartTrio

from trioserve.logs import Outcome

from ..support import socket_server
from .clients import PATIENCE, wait, wait_until

pytestmark = pytest.mark.both_codecs


def make_app():
    app = QuartTrio(__name__)

    @app.post("/echo")
    async def echo():
        return await request.get_json()

    @app.post("/count")
    async def count():
        size = 0
        async for piece in request.body:
            size += len(piece)
        return {"size": size}

    @app.get("/fail")
    async def fail():
        raise ValueError("on purpose")

    return app


@contextlib.asynccontextmanager
async def serving(app, **options):
    """The application on a real port, with httpx to talk to it."""
    async with socket_server(app, **options) as server:
        with trio.fail_after(PATIENCE):
            async with httpx.AsyncClient(base_url=server.server.urls[0], trust_env=False) as client:
                yield server, client


async def test_json_there_and_back():
    """A JSON body is read and answered."""
    async with serving(make_app()) as (_, client):
        assert (await client.post("/echo", json={"tea": [2.5]})).json() == {"tea": [2.5]}


async def test_streamed_upload():
    """A chunked body is read piece by piece."""

    async def pieces():
        for _ in range(100):
            yield b"x" * 10_000

    async with serving(make_app()) as (_, client):
        assert (await client.post("/count", content=pieces())).json() == {"size": 1_000_000}


async def test_exception_is_a_500_and_the_server_lives():
    """A handler that raises gives 500; the next request on the server is served."""
    async with serving(make_app()) as (_, client):
        assert (await client.get("/fail")).status_code == 500
        assert (await client.post("/echo", json=[1])).json() == [1]


async def test_hooks_and_background_tasks():
    """before_serving, a background task begun in a handler, and after_serving run, in this order."""
    app, story, finished = make_app(), [], trio.Event()

    async def work():
        await trio.sleep(0.05)
        story.append("background")
        finished.set()

    @app.before_serving
    async def before():
        story.append("before")

    @app.after_serving
    async def after():
        story.append("after")

    @app.get("/start")
    async def start():
        app.add_background_task(work)
        return "started"

    async with serving(app, timeout_disconnect_grace=0) as (_, client):
        assert (await client.get("/start")).text == "started"
        await client.aclose()
        await wait(finished)
    assert story == ["before", "background", "after"]


async def test_stream_ends_with_its_client():
    """The generator of a stream is cleaned up when its client leaves."""
    app, cleaned_up = make_app(), trio.Event()

    @app.get("/stream")
    async def stream():
        async def ticks():
            try:
                while True:
                    yield b"tick\n"
                    await trio.sleep(0.01)
            finally:
                cleaned_up.set()

        return ticks()

    async with socket_server(app, timeout_disconnect_grace=0.1) as server:
        client = await server.connect()
        await client.raw(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
        assert (await client.stream.receive_some(1000)).startswith(b"HTTP/1.1 200")
        await client.aclose()
        await wait(cleaned_up)
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


async def test_waiting_handler_is_cancelled_when_its_client_leaves():
    """A handler that waits for something else is cancelled too."""
    app, entered, cleaned_up = make_app(), trio.Event(), trio.Event()

    @app.get("/wait")
    async def wait_long():
        entered.set()
        try:
            await trio.sleep_forever()
        finally:
            cleaned_up.set()

    async with socket_server(app, timeout_disconnect_grace=0.1) as server:
        client = await server.connect()
        await client.raw(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
        await wait(entered)
        await client.aclose()
        await wait(cleaned_up)
        await wait_until(lambda: server.records)
    assert server.errors == []
