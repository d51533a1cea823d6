"""One application, made with three frameworks: what it sees of its client, and the URLs that it makes of that."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from quart import jsonify, request, url_for, websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


def tell(request):
    client = request.client
    return {
        "client": None if client is None else client.host,
        "scheme": request.url.scheme,
        "path": request.scope["path"],
        "root_path": request.scope["root_path"],
        "url": str(request.url_for("show")),
    }


async def show(request: Request):
    return JSONResponse(tell(request))


async def echo(socket: WebSocket):
    await socket.accept()
    await socket.send_json(
        {"client": socket.client.host, "scheme": socket.url.scheme, "text": await socket.receive_text()}
    )
    await socket.close()


starlette = Starlette(routes=[Route("/show", show, name="show"), WebSocketRoute("/echo", echo)])

fastapi = FastAPI()


@fastapi.get("/show", name="show")
async def show_with_fastapi(request: FastAPIRequest):
    return tell(request)


@fastapi.websocket("/echo")
async def echo_with_fastapi(socket: WebSocket):
    await echo(socket)


quart = QuartTrio(__name__)


@quart.get("/show", endpoint="show")
async def show_with_quart():
    return jsonify(
        client=request.remote_addr,
        scheme=request.scheme,
        path=request.scope["path"],
        root_path=request.root_path,
        url=url_for("show", _external=True),
    )


@quart.websocket("/echo")
async def echo_with_quart():
    await websocket.send_json(
        {"client": websocket.remote_addr, "scheme": websocket.scheme, "text": await websocket.receive()}
    )
