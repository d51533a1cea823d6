"""A small real application to try a server with: ``trioserve trioserve.demo:app``.

It is written in plain ASGI 3, without a framework, and needs nothing but Trio, so that it also shows what an
application and a server say to each other. Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NoReturn, Required, TypedDict, cast
from urllib.parse import parse_qs

import trio

from . import demo_chat

ECHO_LIMIT = 64 * 1024
"""Bytes of JSON that are echoed; more gets 413."""

DOWNLOAD_LIMIT = 1024 * 1024 * 1024
DOWNLOAD_DEFAULT = 1024 * 1024
PIECE = bytes(range(64)) * 1024
"""What downloads are made of: 64 KiB."""


@dataclass
class Visits:
    """What the application remembers while it runs; the lifespan makes one, and every request sees the same."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    requests: int = 0
    listeners: int = 0


class State(TypedDict, total=False):
    """What the lifespan leaves for the requests."""

    visits: Visits
    chat: demo_chat.Room


class Scope(TypedDict, total=False):
    """What the server says at the start of a request or a websocket, as far as this application uses it."""

    type: Required[str]
    method: str
    path: str
    query_string: bytes
    state: State


class Message(TypedDict, total=False):
    """What the server and the application tell each other afterwards."""

    type: Required[str]
    status: int
    headers: Iterable[tuple[bytes, bytes]]
    body: bytes
    more_body: bool
    message: str


Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application: the server calls it once for its lifespan, and once for each request and each websocket."""
    match scope["type"]:
        case "lifespan":
            await run_lifespan(scope, receive, send)
        case "http":
            await answer(Request(scope, receive, send))
        case "websocket":
            # Which messages these two take and give depends on the scope's type, which types cannot say.
            await open_websocket(scope, cast(demo_chat.Receive, receive), cast(demo_chat.Send, send))
        case other:
            raise NotImplementedError(f"this application speaks HTTP and WebSocket, not {other}")


async def run_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Start up before the first request and shut down after the last."""
    await receive()  # lifespan.startup
    if "state" in scope:
        scope["state"]["visits"] = Visits()
        scope["state"]["chat"] = demo_chat.Room()
    await send({"type": "lifespan.startup.complete"})
    await receive()  # lifespan.shutdown
    await send({"type": "lifespan.shutdown.complete"})


async def open_websocket(scope: Scope, receive: demo_chat.Receive, send: demo_chat.Send) -> None:
    """There is one, /chat/socket; without lifespan everybody has a room of their own."""
    if scope["path"] != "/chat/socket":
        await demo_chat.refuse(receive, send)
        return
    room = scope.get("state", {}).get("chat") or demo_chat.Room()
    query = parse_qs(scope["query_string"].decode("latin-1"))
    await demo_chat.take_part(room, query.get("name", [""])[-1], receive, send)


class ClientLeft(Exception):
    """The client went away in the middle of its request."""


class Refused(Exception):
    """The request gets an error as its answer."""

    def __init__(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


@dataclass
class Request:
    """One request, and the way to answer it."""

    scope: Scope
    receive: Receive
    send: Send

    @property
    def visits(self) -> Visits:
        """What the lifespan left; a server that runs without lifespan leaves nothing."""
        return self.scope.get("state", {}).get("visits") or Visits()

    async def read(self) -> tuple[bytes, bool]:
        """Wait for the next piece of the body: (piece, more). Raises ClientLeft if the body ends too early."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message.get("body", b""), message.get("more_body", False)

    async def start(self, status: int, *headers: tuple[bytes, bytes]) -> bool:
        """Begin the response. Returns whether a body follows: the answer to HEAD has none."""
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        if self.scope["method"] != "HEAD":
            return True
        await self.send({"type": "http.response.body"})
        return False

    async def respond(self, status: int, kind: bytes, content: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Send a whole response."""
        length = str(len(content)).encode()
        if await self.start(status, (b"content-type", kind), (b"content-length", length), *headers):
            await self.send({"type": "http.response.body", "body": content})

    async def respond_json(self, value: object) -> None:
        """Send a value as JSON."""
        await self.respond(200, b"application/json", json.dumps(value).encode())


Handler = Callable[[Request], Awaitable[None]]


async def answer(request: Request) -> None:
    """Find the handler of a request and run it."""
    request.visits.requests += 1
    try:
        await find_handler(request)(request)
    except Refused as refusal:
        text = f"{refusal.text}\n".encode()
        await request.respond(refusal.status, b"text/plain; charset=utf-8", text, *refusal.headers)
    except ClientLeft:
        pass  # nobody is there to be answered


def find_handler(request: Request) -> Handler:
    """Look up path and method; raises Refused with 404 or 405."""
    path, method = request.scope["path"], request.scope["method"]
    if path not in ROUTES:
        raise Refused(404, f"There is nothing at {path}")
    wanted, handler = ROUTES[path]
    allowed = ("GET", "HEAD") if wanted == "GET" else (wanted,)
    if method not in allowed:
        raise Refused(405, f"{path} does not take {method}", (b"allow", ", ".join(allowed).encode()))
    return handler


async def show_page(request: Request) -> None:
    """GET /: a page that tries all the others."""
    visits = request.visits
    page = PAGE.replace("[started]", f"{visits.started:%Y-%m-%d %H:%M:%S} UTC")
    page = page.replace("[requests]", str(visits.requests)).replace("[listeners]", str(visits.listeners))
    await request.respond(200, b"text/html; charset=utf-8", page.encode())


async def echo(request: Request) -> None:
    """POST /echo: read JSON and send it back."""
    content, more = b"", True
    while more:
        piece, more = await request.read()
        content += piece
        if len(content) > ECHO_LIMIT:
            raise Refused(413, f"The limit is {ECHO_LIMIT} bytes of JSON")
    try:
        value = json.loads(content, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {error}") from error
    await request.respond_json(value)


def refuse_constant(name: str) -> NoReturn:
    """Python's parser takes NaN and Infinity, JSON does not."""
    raise ValueError(f"{name} is not a JSON value")


async def download(request: Request) -> None:
    """GET /download?bytes=N: send N bytes in pieces; the client's speed sets the pace."""
    query = parse_qs(request.scope["query_string"].decode("latin-1"))
    text = query.get("bytes", [str(DOWNLOAD_DEFAULT)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= DOWNLOAD_LIMIT):
        raise Refused(400, f"bytes must be a whole number up to {DOWNLOAD_LIMIT}")
    left = int(text)
    length = (b"content-length", str(left).encode())
    name = (b"content-disposition", b'attachment; filename="download.bin"')
    if not await request.start(200, (b"content-type", b"application/octet-stream"), length, name):
        return
    while left > len(PIECE):
        await request.send({"type": "http.response.body", "body": PIECE, "more_body": True})
        left -= len(PIECE)
    await request.send({"type": "http.response.body", "body": PIECE[:left]})


async def upload(request: Request) -> None:
    """POST /upload: count the bytes as they come in, and keep none of them."""
    count, digest, more = 0, hashlib.sha256(), True
    while more:
        piece, more = await request.read()
        count += len(piece)
        digest.update(piece)
    await request.respond_json({"bytes": count, "sha256": digest.hexdigest()})


async def send_events(request: Request) -> None:
    """GET /events: server-sent events, one per second, for as long as the client listens.

    Nothing here looks whether the client is still there: send() raises an OSError when it is not, and the server
    cancels handlers whose client has left. Either way ``finally`` runs.
    """
    kind = (b"content-type", b"text/event-stream")
    if not await request.start(200, kind, (b"cache-control", b"no-store")):
        return
    visits = request.visits
    visits.listeners += 1
    try:
        count = 0
        while True:
            count += 1
            data = json.dumps({"count": count, "time": f"{datetime.now(UTC):%H:%M:%S}"})
            event = f"id: {count}\ndata: {data}\n\n".encode()
            await request.send({"type": "http.response.body", "body": event, "more_body": True})
            await trio.sleep(1)
    finally:
        visits.listeners -= 1


async def show_chat(request: Request) -> None:
    """GET /chat: the page that talks to /chat/socket."""
    await request.respond(200, b"text/html; charset=utf-8", demo_chat.PAGE.encode())


ROUTES: dict[str, tuple[Literal["GET", "POST"], Handler]] = {
    "/": ("GET", show_page),
    "/echo": ("POST", echo),
    "/download": ("GET", download),
    "/upload": ("POST", upload),
    "/events": ("GET", send_events),
    "/chat": ("GET", show_chat),
}

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>trioserve demo</title>
<link rel="icon" href="data:,">
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; color: #223; }
  section { border-top: 1px solid #ccd; padding: .5rem 0 1rem; }
  h2 { font-size: 1.1rem; margin: .5rem 0; }
  textarea { width: 100%; box-sizing: border-box; font: 14px/1.4 monospace; }
  output { display: block; min-height: 1.5em; margin-top: .5rem; font: 14px/1.5 monospace; overflow-wrap: anywhere; }
</style>
<h1>It works</h1>
<p>Running since [started]. Requests so far: [requests]. Listening to events now: [listeners].</p>

<section>
  <h2>Events</h2>
  <p>One per second. Close this page, and the server's handler ends too.</p>
  <output id="events">waiting</output>
</section>
<section>
  <h2>Chat</h2>
  <p><a href="/chat">Open the chat</a>, best in two tabs: it talks through a WebSocket.</p>
</section>
<section>
  <h2>Echo</h2>
  <textarea id="json" rows="3">{"hello": ["world", 1, true, null]}</textarea>
  <button id="echo">Send</button>
  <output id="echoed"></output>
</section>
<section>
  <h2>Upload</h2>
  <p>The server counts the bytes while they arrive and keeps none.</p>
  <input id="file" type="file">
  <output id="uploaded"></output>
</section>
<section>
  <h2>Download</h2>
  <p>
    <a href="/download?bytes=1048576">1 MiB</a> &middot; <a href="/download?bytes=104857600">100 MiB</a> &middot;
    <button id="measure">Measure 100 MiB</button>
  </p>
  <output id="measured"></output>
</section>

<script>
  const by = id => document.getElementById(id);

  async function post(path, body, output) {
    const response = await fetch(path, { method: "POST", body });
    output.textContent = `${response.status} ${await response.text()}`;
  }

  by("echo").onclick = () => post("/echo", by("json").value, by("echoed"));
  by("file").onchange = () => post("/upload", by("file").files[0], by("uploaded"));

  by("measure").onclick = async () => {
    const start = performance.now();
    const reader = (await fetch("/download?bytes=104857600")).body.getReader();
    let bytes = 0;
    for (let part; !(part = await reader.read()).done;) bytes += part.value.length;
    const seconds = (performance.now() - start) / 1000;
    by("measured").textContent = `${(bytes / seconds / 1e6).toFixed(0)} MB/s`;
  };

  const events = new EventSource("/events");
  events.onmessage = event => by("events").textContent = event.data;
  events.onerror = () => by("events").textContent = "the server is gone; trying again";
</script>
</html>
"""
