"""The fixtures serve applications of any framework, however the test is written."""

from __future__ import annotations

import contextlib

import httpx
import pytest
import trio
from fastapi import FastAPI, WebSocket
from litestar import Litestar, get
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ..support import respond


def fastapi_app():
    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield {"database": "open"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def hello() -> str:
        return "hello"

    @app.get("/broken")
    async def broken():
        raise LookupError("no such shelf")

    @app.websocket("/echo")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())

    return app


def starlette_app():
    async def hello(request):
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", hello)])


def litestar_app():
    @get("/")
    async def hello() -> str:
        return "hello"

    return Litestar([hello], logging_config=None)


def quart_app():
    app = QuartTrio(__name__)

    @app.route("/")
    async def hello():
        return "hello"

    return app


def bare_app():
    return respond(b"hello")


APPS = [fastapi_app, starlette_app, litestar_app, quart_app, bare_app]


@pytest.mark.parametrize("make_app", APPS)
def test_in_a_thread(serve_app, make_app):
    """serve_app serves it, given as it is or as a factory."""
    for server in (serve_app(make_app()), serve_app(make_app, factory=True)):
        assert "hello" in httpx.get(server.url, trust_env=False).text


@pytest.mark.parametrize("make_app", APPS)
async def test_in_the_loop_of_the_test(trio_server, make_app):
    """trio_server serves it."""
    server = await trio_server(make_app())
    with trio.fail_after(10):
        async with httpx.AsyncClient(trust_env=False) as client:
            assert "hello" in (await client.get(server.url)).text


@pytest.mark.parametrize("make_app", APPS)
async def test_on_memory_streams(memory_server, make_app):
    """memory_server serves it."""
    server = await memory_server(make_app())
    with trio.fail_after(10):
        stream = await server.connect()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        received = b""
        while data := await stream.receive_some():
            received += data
    assert b"hello" in received


def test_what_a_framework_passes_on_is_an_error(serve_app):
    """FastAPI answers 500 and raises: the exception is in the list once the client has its answer."""
    server = serve_app(fastapi_app())
    assert server.state == {"database": "open"}
    for _ in range(20):
        assert httpx.get(f"{server.url}/broken", trust_env=False).status_code == 500
        error = server.errors.pop()
        assert (type(error), str(error)) == (LookupError, "no such shelf")
        assert (server.requests[-1].status, server.requests[-1].outcome) == (500, "error")
    assert not server.errors


def test_a_websocket_of_a_framework(serve_app):
    """A blocking WebSocket talks to it."""
    with serve_app(fastapi_app()).websocket("/echo") as websocket:
        websocket.send_message("hello")
        assert websocket.get_message() == "hello"
