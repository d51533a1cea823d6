"""FastAPI: dependencies, forms, threads, validation and errors."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading

import httpx
import pytest
import trio
from fastapi import Depends, FastAPI, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from trioserve.logs import Outcome

from ..support import socket_server
from .clients import PATIENCE, wait, wait_until

pytestmark = pytest.mark.both_codecs


class Item(BaseModel):
    name: str
    price: float


class Resource:
    """A dependency that is open while a request needs it."""

    def __init__(self):
        self.opened = trio.Event()
        self.closed = trio.Event()

    async def use(self):
        self.opened.set()
        try:
            yield self
        finally:
            self.closed.set()


def make_app(resource=None):
    app = FastAPI()
    needed = Depends(resource.use if resource else lambda: None)

    @app.get("/quick", dependencies=[needed])
    async def quick():
        return {"closed": resource.closed.is_set()}

    @app.get("/slow", dependencies=[needed])
    async def slow():
        await trio.sleep_forever()

    @app.get("/stream", dependencies=[needed])
    async def stream():
        async def ticks():
            yield b"begun"
            await trio.sleep_forever()

        return StreamingResponse(ticks())

    @app.post("/upload")
    async def upload(file: UploadFile):
        digest, size = hashlib.sha256(), 0
        while piece := await file.read(65536):
            digest.update(piece)
            size += len(piece)
        return {"name": file.filename, "size": size, "sha256": digest.hexdigest()}

    @app.get("/thread")
    def thread():
        return {"main": threading.current_thread() is threading.main_thread()}

    @app.post("/items", status_code=201)
    async def create(item: Item) -> Item:
        return item

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


async def test_dependency_is_closed_after_the_response():
    """A dependency with yield is open in the endpoint and closed after the response."""
    resource = Resource()
    async with serving(make_app(resource)) as (_, client):
        assert (await client.get("/quick")).json() == {"closed": False}
        await wait(resource.closed)


@pytest.mark.parametrize("path", ["/slow", "/stream"])
# FastAPI abandons the generator of a stream whose client left, as Starlette does; Trio warns where it finds one.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_dependency_is_closed_after_the_client_left(path):
    """A handler whose client left is cancelled after the grace, and its dependencies are closed."""
    resource = Resource()
    async with socket_server(make_app(resource), timeout_disconnect_grace=0.1) as server:
        client = await server.connect()
        await client.raw(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await wait(resource.opened)
        await client.aclose()
        await wait(resource.closed)
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


async def test_upload_of_a_form():
    """A file of 5 MB in a multipart form arrives whole."""
    content = os.urandom(5_000_000)
    async with serving(make_app()) as (_, client):
        response = await client.post("/upload", files={"file": ("data.bin", content)})
    digest = hashlib.sha256(content).hexdigest()
    assert response.json() == {"name": "data.bin", "size": 5_000_000, "sha256": digest}


async def test_upload_whose_client_leaves():
    """A form that breaks off is no error of the application, and no trace is logged."""
    async with socket_server(make_app()) as server:
        client = await server.connect()
        await client.raw(
            b"POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: 5000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        await client.aclose()
        await wait_until(lambda: server.records)
    assert server.errors == []


async def test_plain_function_runs_in_a_thread():
    """An endpoint declared with def runs outside the event loop's thread."""
    async with serving(make_app()) as (_, client):
        assert (await client.get("/thread")).json() == {"main": False}


async def test_json_there_and_back():
    """A JSON body is read and answered."""
    async with serving(make_app()) as (_, client):
        response = await client.post("/items", json={"name": "tea", "price": 2.5})
    assert response.status_code == 201
    assert response.json() == {"name": "tea", "price": 2.5}


async def test_validation_error():
    """A body that does not fit is FastAPI's 422, and no error of the application."""
    async with serving(make_app()) as (server, client):
        response = await client.post("/items", json={"name": "tea"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "price"]
    assert server.errors == []


async def test_exception_is_a_500_and_the_server_lives():
    """An endpoint that raises gives 500 and one logged error; the next request on the server is served."""
    async with serving(make_app()) as (server, client):
        assert (await client.get("/fail")).status_code == 500
        assert (await client.get("/thread")).status_code == 200
    assert [repr(error) for error in server.errors] == ["ValueError('on purpose')"]
    assert [record.status for record in server.records] == [500, 200]


async def test_documentation_is_served():
    """The pages that every FastAPI user opens first."""
    async with serving(make_app()) as (_, client):
        assert "swagger" in (await client.get("/docs")).text
        assert "/items" in (await client.get("/openapi.json")).json()["paths"]
