"""WebSocket endpoints of the frameworks that run on Trio, with the websockets client."""

from __future__ import annotations

import contextlib
import json

import pytest
import trio
from fastapi import Depends, FastAPI
from litestar import Litestar, websocket_listener
from litestar import WebSocket as LitestarWebSocket
from litestar import websocket as litestar_websocket
from litestar.exceptions import WebSocketDisconnect as LitestarDisconnect
from quart import abort
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import InvalidStatus

from trioserve.logs import Outcome

from ..support import socket_server
from ..websocket_client import websocket
from .clients import PATIENCE, closing_of, wait, wait_until, websocket_to


class Room:
    """What the applications of the test note, and who is in."""

    def __init__(self):
        self.ends = []
        self.members = []
        self.cancelled = trio.Event()

    async def broadcast(self, text):
        async with trio.open_nursery() as nursery:
            for member in self.members:
                nursery.start_soon(member, text)


def starlette_endpoints(room):
    """The same functions serve Starlette and FastAPI."""

    async def echo(websocket: WebSocket):
        await websocket.accept(headers=[(b"x-answer", b"yes")])
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    room.ends.append(message["code"])
                    return
                await websocket.send({**message, "type": "websocket.send"})
        finally:
            room.cancelled.set()

    async def double(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_json({"twice": 2 * (await websocket.receive_json())["once"]})

    async def subprotocol(websocket: WebSocket):
        await websocket.accept(subprotocol=websocket.scope["subprotocols"][1])
        await websocket.send_text(websocket.headers["sec-websocket-protocol"])
        await websocket.close()

    async def close(websocket: WebSocket):
        await websocket.accept()
        await websocket.close(4000, "Grüße")

    async def refuse(websocket: WebSocket):
        await websocket.close(4000)

    async def deny(websocket: WebSocket):
        response = JSONResponse({"who": "are you?"}, 401, {"www-authenticate": "Basic"})
        await websocket.send_denial_response(response)

    async def raise_http(websocket: WebSocket):
        raise HTTPException(418, "a teapot")

    async def fail(websocket: WebSocket):
        await websocket.accept()
        raise ValueError("on purpose")

    async def fail_early(websocket: WebSocket):
        raise ValueError("too early")

    async def listen(websocket: WebSocket):
        """As most tutorials have it: the disconnect is caught, and its code looked at."""
        await websocket.accept()
        try:
            async with contextlib.aclosing(websocket.iter_text()) as texts:
                async for text in texts:
                    await websocket.send_text(text)
            await websocket.receive_text()
        except (WebSocketDisconnect, RuntimeError) as error:
            room.ends.append(getattr(error, "code", type(error).__name__))

    async def let_through(websocket: WebSocket):
        """WebSocketDisconnect is caught by nobody."""
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    async def flood(websocket: WebSocket):
        await websocket.accept()
        while True:
            await websocket.send_text("more" * 1000)

    async def sleep(websocket: WebSocket):
        """Neither reads nor sends."""
        await websocket.accept()
        await websocket.send_text("asleep")
        try:
            await trio.sleep_forever()
        finally:
            room.cancelled.set()

    async def chat(websocket: WebSocket):
        await websocket.accept()
        room.members.append(websocket.send_text)
        try:
            async for text in websocket.iter_text():
                await room.broadcast(text)
        finally:
            room.members.remove(websocket.send_text)

    return (
        echo, double, subprotocol, close, refuse, deny, raise_http, fail, fail_early, listen, let_through, flood, sleep,
        chat,
    )  # fmt: skip


def make_starlette(room):
    return Starlette(routes=[WebSocketRoute(f"/{one.__name__}", one) for one in starlette_endpoints(room)])


def make_fastapi(room):
    app = FastAPI()
    for one in starlette_endpoints(room):
        app.websocket(f"/{one.__name__}")(one)
    return app


def make_litestar(room):
    @litestar_websocket("/echo")
    async def echo(socket: LitestarWebSocket) -> None:
        await socket.accept(headers={"x-answer": "yes"})
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    room.ends.append(message["code"])
                    return
                await socket.send({**message, "type": "websocket.send"})
        finally:
            room.cancelled.set()

    @websocket_listener("/double")
    async def double(data: dict[str, int]) -> dict[str, int]:
        return {"twice": 2 * data["once"]}

    @litestar_websocket("/subprotocol")
    async def subprotocol(socket: LitestarWebSocket) -> None:
        await socket.accept(subprotocols=socket.scope["subprotocols"][1])
        await socket.send_text(socket.headers["sec-websocket-protocol"])
        await socket.close()

    @litestar_websocket("/close")
    async def close(socket: LitestarWebSocket) -> None:
        await socket.accept()
        await socket.close(4000, "Grüße")

    @litestar_websocket("/refuse")
    async def refuse(socket: LitestarWebSocket) -> None:
        await socket.close(4000)

    @litestar_websocket("/fail")
    async def fail(socket: LitestarWebSocket) -> None:
        await socket.accept()
        raise ValueError("on purpose")

    @litestar_websocket("/listen")
    async def listen(socket: LitestarWebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except LitestarDisconnect as error:
            room.ends.append(error.code)

    @litestar_websocket("/let_through")
    async def let_through(socket: LitestarWebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_text(await socket.receive_text())

    @litestar_websocket("/flood")
    async def flood(socket: LitestarWebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_text("more" * 1000)

    @litestar_websocket("/sleep")
    async def sleep(socket: LitestarWebSocket) -> None:
        await socket.accept()
        await socket.send_text("asleep")
        try:
            await trio.sleep_forever()
        finally:
            room.cancelled.set()

    @litestar_websocket("/chat")
    async def chat(socket: LitestarWebSocket) -> None:
        await socket.accept()
        room.members.append(socket.send_text)
        try:
            while True:
                await room.broadcast(await socket.receive_text())
        except LitestarDisconnect:
            pass
        finally:
            room.members.remove(socket.send_text)

    handlers = [echo, double, subprotocol, close, refuse, fail, listen, let_through, flood, sleep, chat]
    return Litestar(handlers, logging_config=None)  # as in test_litestar.py


def make_quart(room):
    app = QuartTrio(__name__)

    @app.websocket("/echo")
    async def echo():
        await quart_websocket.accept(headers={"x-answer": "yes"})
        try:
            while True:
                await quart_websocket.send(await quart_websocket.receive())
        finally:
            room.cancelled.set()

    @app.websocket("/double")
    async def double():
        while True:
            await quart_websocket.send_json({"twice": 2 * (await quart_websocket.receive_json())["once"]})

    @app.websocket("/subprotocol")
    async def subprotocol():
        await quart_websocket.accept(subprotocol=quart_websocket.requested_subprotocols[1])
        await quart_websocket.send(quart_websocket.headers["Sec-WebSocket-Protocol"])

    @app.websocket("/close")
    async def close():
        await quart_websocket.accept()
        await quart_websocket.close(4000, "Grüße")

    @app.websocket("/refuse")
    async def refuse():
        abort(403)

    @app.websocket("/deny")
    async def deny():
        return {"who": "are you?"}, 401, {"www-authenticate": "Basic"}

    @app.websocket("/flood")
    async def flood():
        while True:
            await quart_websocket.send("more" * 1000)

    @app.websocket("/sleep")
    async def sleep():
        await quart_websocket.send("asleep")
        try:
            await trio.sleep_forever()
        finally:
            room.cancelled.set()

    @app.websocket("/chat")
    async def chat():
        await quart_websocket.accept()
        send = quart_websocket._get_current_object().send
        room.members.append(send)
        try:
            while True:
                await room.broadcast(await quart_websocket.receive())
        finally:
            room.members.remove(send)

    return app


MAKE = {"Starlette": make_starlette, "FastAPI": make_fastapi, "Litestar": make_litestar, "Quart": make_quart}
ALL = pytest.mark.parametrize("framework", MAKE)
NOT_QUART = pytest.mark.parametrize("framework", ["Starlette", "FastAPI", "Litestar"])  # it cancels its handlers itself
STARLETTES = pytest.mark.parametrize("framework", ["Starlette", "FastAPI"])


@contextlib.asynccontextmanager
async def serving(framework, **options):
    """The framework's application on a real port; yields what it notes, the server and the address."""
    room = Room()
    with trio.fail_after(PATIENCE):
        async with socket_server(MAKE[framework](room), **options) as server:
            yield room, server, server.server.urls[0].replace("http", "ws", 1)


@ALL
async def test_echo(framework):
    """Text and bytes go both ways, and fields of the accept arrive."""
    async with serving(framework) as (_, server, url):
        async with websocket_to(f"{url}/echo") as client:
            assert client.response.headers["x-answer"] == "yes"
            for message in ("Grüße", b"\x00\xff", "x" * 100_000, ""):
                await client.send(message)
                assert await client.recv() == message
        await wait_until(lambda: server.recorder.websockets)
    assert [(record.code, record.outcome) for record in server.recorder.websockets] == [(1000, Outcome.OK)]
    assert server.errors == []


@ALL
async def test_json(framework):
    """JSON is read and answered."""
    async with serving(framework) as (_, server, url):
        async with websocket_to(f"{url}/double") as client:
            for number in (1, -5):
                await client.send(json.dumps({"once": number}))
                assert json.loads(await client.recv()) == {"twice": 2 * number}
        await wait_until(lambda: server.recorder.websockets)
    assert server.errors == []


@ALL
async def test_subprotocol(framework):
    """The endpoint sees what is offered, and the client what was chosen."""
    offered = ["a", "b", "c"]
    async with (
        serving(framework) as (_, server, url),
        websocket_to(f"{url}/subprotocol", subprotocols=offered) as client,
    ):
        assert client.subprotocol == "b"
        assert await client.recv() == "a, b, c"
        assert await closing_of(client) == (1000, "")
    assert server.errors == []


@ALL
async def test_the_endpoint_closes(framework):
    """The endpoint's code and reason reach the client."""
    async with serving(framework) as (_, server, url):
        async with websocket_to(f"{url}/close") as client:
            assert await closing_of(client) == (4000, "Grüße")
        await wait_until(lambda: server.recorder.websockets)
    assert [(record.code, record.reason) for record in server.recorder.websockets] == [(4000, "Grüße")]
    assert server.errors == []


@ALL
async def test_refusal(framework):
    """A close before the accept is a 403."""
    async with serving(framework) as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/refuse"):
                pass
    assert caught.value.response.status_code == 403
    assert server.errors == []


@pytest.mark.parametrize("framework", ["Starlette", "FastAPI", "Quart"])
async def test_denial_response(framework):
    """A response of the endpoint's own reaches the client whole."""
    async with serving(framework) as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/deny"):
                pass
    response = caught.value.response
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Basic"
    assert json.loads(response.body) == {"who": "are you?"}
    assert server.errors == []


@STARLETTES
async def test_http_exception(framework):
    """HTTPException before the accept is a response of its status."""
    async with serving(framework) as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/raise_http"):
                pass
    assert caught.value.response.status_code == 418
    assert server.errors == []


@ALL
async def test_no_such_endpoint(framework):
    """A path that nobody serves is refused, and the server goes on."""
    async with serving(framework) as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/none"):
                pass
        assert caught.value.response.status_code in (403, 404)
        async with websocket_to(f"{url}/echo") as client:
            await client.send("x")
            assert await client.recv() == "x"
    assert server.errors == []


# Exceptions


@STARLETTES
async def test_exception_is_1011(framework):
    """An endpoint that raises closes with 1011; the error is logged once, and the next client is served."""
    async with serving(framework) as (_, server, url):
        async with websocket_to(f"{url}/fail") as client:
            assert await closing_of(client) == (1011, "")
        async with websocket_to(f"{url}/echo") as client:
            await client.send("x")
            assert await client.recv() == "x"
        await wait_until(lambda: len(server.recorder.websockets) == 2)
    assert [record.outcome for record in server.recorder.websockets] == [Outcome.ERROR, Outcome.OK]
    assert [str(error) for error in server.errors] == ["on purpose"]


async def test_exception_in_litestar():
    """Litestar itself answers an exception with a close of 4500."""
    async with serving("Litestar") as (_, _, url), websocket_to(f"{url}/fail") as client:
        code, _ = await closing_of(client)
    assert code == 4500


@STARLETTES
async def test_exception_before_the_accept(framework):
    """An endpoint that raises before it has accepted is a 500."""
    async with serving(framework) as (_, server, url):
        with pytest.raises(InvalidStatus) as caught:
            async with websocket_to(f"{url}/fail_early"):
                pass
    assert caught.value.response.status_code == 500
    assert [str(error) for error in server.errors] == ["too early"]


# The client leaves


@contextlib.asynccontextmanager
async def leaving(server, path, how):
    """A client that leaves at the end of the block: with a close frame of 4001, with one without a code, as browsers
    send it, or cut off.
    """
    stream = await trio.open_tcp_stream(*server.server.addresses[0])
    url = server.server.urls[0].replace("http", "ws", 1)
    async with websocket_to(f"{url}{path}", stream=stream) as client:
        yield client
        if how == "close":
            await client.aclose(4001)
        elif how == "no code":
            async with client.send_context():
                client.protocol.send_close()
        else:
            await trio.aclose_forcefully(stream)


LEAVE = pytest.mark.parametrize(("how", "code"), [("close", 4001), ("no code", 1005), ("cut", 1006)])


@NOT_QUART
@LEAVE
async def test_the_disconnect_is_caught(framework, how, code):
    """The framework's own exception carries the client's code, and nothing is logged as an error."""
    async with serving(framework) as (room, server, _):
        async with leaving(server, "/listen", how) as client:
            await client.send("x")
            assert await client.recv() == "x"
        await wait_until(lambda: server.recorder.websockets)
    if framework == "Litestar":
        assert room.ends == [code]
    else:
        assert room.ends == ["WebSocketDisconnected"]  # iter_text has swallowed the disconnect itself
    assert [record.code for record in server.recorder.websockets] == [code]
    assert server.errors == []


@NOT_QUART
@LEAVE
async def test_the_disconnect_is_let_through(framework, how, code):
    """An endpoint that lets the framework's exception out is no failure: the client has only left."""
    outcome = Outcome.CLIENT_LEFT if how == "cut" else Outcome.OK
    async with serving(framework) as (_, server, _):
        async with leaving(server, "/let_through", how) as client:
            await client.send("x")
            assert await client.recv() == "x"
        await wait_until(lambda: server.recorder.websockets)
    assert [(record.code, record.outcome) for record in server.recorder.websockets] == [(code, outcome)]
    assert server.errors == []


@NOT_QUART
@LEAVE
async def test_the_disconnect_is_an_event(framework, how, code):
    """An endpoint that receives events reads the code in the disconnect."""
    async with serving(framework) as (room, server, _):
        async with leaving(server, "/echo", how) as client:
            await client.send("x")
            assert await client.recv() == "x"
        await wait_until(lambda: server.recorder.websockets)
    assert room.ends == [code]
    assert server.errors == []


@ALL
@LEAVE
async def test_the_endpoint_is_left_while_it_receives(framework, how, code):
    """An endpoint that waits for a message ends when its client leaves, long before any grace, and without a trace."""
    async with serving(framework, timeout_disconnect_grace=3600) as (room, server, _):
        async with leaving(server, "/echo", how) as client:
            await client.send("x")
            assert await client.recv() == "x"
        await wait(room.cancelled)
        await wait_until(lambda: server.recorder.websockets)
    assert [record.code for record in server.recorder.websockets] == [code]
    assert server.errors == []


@ALL
async def test_the_endpoint_is_left_while_it_sends(framework):
    """An endpoint that only sends learns from send() that its client has left, and that is no error."""
    async with serving(framework, timeout_disconnect_grace=3600) as (_, server, _):
        # Not the websockets client, which stops reading when its queue is full.
        async with websocket(server, "/flood") as client:
            assert await client.receive() == "more" * 1000
        await wait_until(lambda: server.recorder.websockets)
    assert [record.outcome for record in server.recorder.websockets] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


@ALL
@LEAVE
async def test_the_endpoint_is_left_while_it_sleeps(framework, how, code):
    """An endpoint that does neither is cancelled after the grace, and that is no error."""
    async with serving(framework, timeout_disconnect_grace=0.1) as (room, server, _):
        async with leaving(server, "/sleep", how) as client:
            assert await client.recv() == "asleep"
        await wait(room.cancelled)
        await wait_until(lambda: server.recorder.websockets)
    assert [record.code for record in server.recorder.websockets] == [code]
    assert server.errors == []


# More than one


@ALL
async def test_broadcast(framework):
    """What one client says all of them hear; one that leaves is missed by nobody."""
    async with serving(framework) as (room, server, url):
        async with websocket_to(f"{url}/chat") as one:
            async with websocket_to(f"{url}/chat") as two:
                await wait_until(lambda: len(room.members) == 2)
                for number, speaker in enumerate((one, two, one)):
                    await speaker.send(f"message {number}")
                    assert [await one.recv(), await two.recv()] == [f"message {number}"] * 2
            await wait_until(lambda: len(room.members) == 1)
            await one.send("alone")
            assert await one.recv() == "alone"
        await wait_until(lambda: len(server.recorder.websockets) == 2)
    assert room.members == []
    assert server.errors == []


@ALL
async def test_shutdown(framework):
    """Endpoints that wait for messages end when the server does, and their clients are told 1012."""
    async with serving(framework, timeout_graceful_shutdown=3600) as (room, server, url):
        async with websocket_to(f"{url}/echo") as client:
            server.server.shutdown()
            assert await closing_of(client) == (1012, "the server is shutting down")
        await wait(room.cancelled)
        await wait_until(lambda: server.recorder.websockets)
    assert [record.outcome for record in server.recorder.websockets] == [Outcome.SHUTDOWN]
    assert server.errors == []


# What only one of them has


async def test_class_of_starlette():
    """WebSocketEndpoint's on_connect, on_receive and on_disconnect are called in their order."""
    story = []

    class Endpoint(WebSocketEndpoint):
        encoding = "json"

        async def on_connect(self, websocket):
            story.append("connect")
            await websocket.accept()

        async def on_receive(self, websocket, data):
            story.append(data)
            await websocket.send_json(data)

        async def on_disconnect(self, websocket, close_code):
            story.append(close_code)

    app = Starlette(routes=[WebSocketRoute("/", Endpoint)])
    with trio.fail_after(PATIENCE):
        async with socket_server(app) as server:
            async with leaving(server, "/", "close") as client:
                await client.send('{"a": 1}')
                assert json.loads(await client.recv()) == {"a": 1}
            await wait_until(lambda: server.recorder.websockets)
    assert story == ["connect", {"a": 1}, 4001]
    assert server.errors == []


async def test_dependency_of_fastapi():
    """A dependency is open while its endpoint runs, and closed when the client has left."""
    app, story = FastAPI(), []

    async def resource():
        story.append("opened")
        yield "resource"
        story.append("closed")

    @app.websocket("/{name}")
    async def endpoint(websocket: WebSocket, name: str, one: int = 0, used: str = Depends(resource)):
        await websocket.accept()
        await websocket.send_json([name, one, used])
        async for _ in websocket.iter_text():
            pass

    with trio.fail_after(PATIENCE):
        async with socket_server(app) as server:
            async with leaving(server, "/tea?one=1", "close") as client:
                assert json.loads(await client.recv()) == ["tea", 1, "resource"]
                assert story == ["opened"]
            await wait_until(lambda: server.recorder.websockets)
    assert story == ["opened", "closed"]
    assert server.errors == []


async def test_validation_of_fastapi():
    """A parameter that does not fit refuses the WebSocket, and is no error."""
    app = FastAPI()

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, number: int):
        await websocket.accept()

    with trio.fail_after(PATIENCE):
        async with socket_server(app) as server:
            url = server.server.urls[0].replace("http", "ws", 1)
            with pytest.raises(InvalidStatus) as caught:
                async with websocket_to(f"{url}/?number=none"):
                    pass
    assert caught.value.response.status_code == 403
    assert server.errors == []
