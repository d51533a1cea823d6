"""The application under stress: it answers what can be checked, and it misbehaves in every way that it is asked to.

What begins with /stress is its own; everything else is that of the attacks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import trio

from trioserve.types import AnyValue, Receive, Scope, Send

from ..attacks.app import app as attacked
from .content import Body
from .control import Control
from .locks import StandstillWatch

PREFIX = "/stress/"
FOLDER = "STRESS_FOLDER"
"""The variable of the environment that says where workers open the sockets for their figures."""
LIMIT = "STRESS_LIMIT"
"""The one that says how many seconds a thread may stand still."""

_WORKER = (b"x-worker", b"%d" % os.getpid())
_THREADS = 4  # at once: the pool of them is a part of what must not grow
_limiter = trio.CapacityLimiter(_THREADS)
_Query = dict[str, str]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _live(receive, send)
    elif not scope["path"].startswith(PREFIX):
        await attacked(scope, receive, send)
    elif scope["type"] == "websocket":
        await WEBSOCKETS[scope["path"].removeprefix(PREFIX)](receive, send)
    else:
        query = dict(parse_qsl(scope["query_string"].decode()))
        await PATHS[scope["path"].removeprefix(PREFIX)](query, receive, send)


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    # How its abandoned generators end is asked for, and would be told in many lines that mix with those of others.
    logging.getLogger("trio.async_generator_errors").addFilter(
        lambda record: _ticks.__name__ not in record.getMessage()
    )
    StandstillWatch(float(os.environ[LIMIT]), _say).start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Control(Path(os.environ[FOLDER])).run)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        nursery.cancel_scope.cancel()
    await send({"type": "lifespan.shutdown.complete"})


def _say(text: str) -> None:
    os.write(2, (text.rstrip() + "\n").encode())


# --- what is answered


async def _start(send: Send, status: int = 200, size: int | None = None) -> None:
    length = [] if size is None else [(b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": status, "headers": [_WORKER, *length]})


async def _piece(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _answer(query: _Query, send: Send, body: Body) -> None:
    """Answer with this: ``chunked`` or not, in pieces of ``piece`` bytes, with a pause of ``pause`` seconds."""
    piece, pause = int(query.get("piece", 65536)), float(query.get("pause", 0))
    await _start(send, int(query.get("status", 200)), None if "chunked" in query else body.size)
    for start in range(0, body.size, piece):
        await _piece(send, body.part(start, start + piece))
        if pause:
            await trio.sleep(pause)
    await _piece(send, b"", more=False)


def _body_of(query: _Query) -> Body:
    return Body(int(query["seed"]), int(query["size"]))


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    message: AnyValue = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return bytes(body)


async def echo(query: _Query, receive: Receive, send: Send) -> None:
    await _answer(query, send, Body.of(await _read(receive)))


async def digest(query: _Query, receive: Receive, send: Send) -> None:
    """The digest of what was uploaded, which is taken piece by piece."""
    seen, more = hashlib.sha256(), True
    while more:
        message = await receive()
        seen.update(message.get("body", b""))
        more = message.get("more_body", False)
        if "pause" in query:
            await trio.sleep(float(query["pause"]))
    await _answer({}, send, Body.of(seen.hexdigest().encode()))


async def download(query: _Query, receive: Receive, send: Send) -> None:
    await _answer(query, send, _body_of(query))


async def sleep(query: _Query, receive: Receive, send: Send) -> None:
    await trio.sleep(float(query["seconds"]))
    await _answer(query, send, _body_of(query))


async def thread(query: _Query, receive: Receive, send: Send) -> None:
    await trio.to_thread.run_sync(time.sleep, float(query["seconds"]), limiter=_limiter)
    await _answer(query, send, _body_of(query))


async def background(query: _Query, receive: Receive, send: Send) -> None:
    """Work that goes on when the answer is complete."""
    await _answer(query, send, _body_of(query))
    await trio.sleep(float(query["seconds"]))


# --- what goes wrong


class Asked(Exception):
    """What the application raises because it was asked to."""


async def fail(query: _Query, receive: Receive, send: Send) -> None:
    """Raise before the head, or in the middle of a response of ``size`` bytes."""
    if "size" in query:
        body = _body_of(query)
        await _start(send, size=None if "chunked" in query else 2 * body.size)
        await _piece(send, body.whole)
    raise _ERRORS[query.get("error", "plain")]()


_ERRORS: dict[str, AnyValue] = {
    "plain": partial(Asked, "raised as asked"),
    "group": lambda: ExceptionGroup("raised as asked", [Asked("one"), Asked("two")]),
    "exit": partial(sys.exit, "wants to go, as asked"),
    "lookup": partial(KeyError, "raised as asked"),
}


async def hang(query: _Query, receive: Receive, send: Send) -> None:
    if "head" in query:
        await _start(send)
        await _piece(send, b"begun")
    await trio.sleep_forever()


async def stubborn(query: _Query, receive: Receive, send: Send) -> None:
    """Ignore cancellation for a while."""
    try:
        await trio.sleep(float(query["seconds"]))
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(float(query["shielded"]))
    await _answer(query, send, _body_of(query))


async def swallow(query: _Query, receive: Receive, send: Send) -> None:
    """Wait for the client to leave, and then for a while longer, in a scope of its own that nobody cancels."""
    while (await receive())["type"] != "http.disconnect":
        pass
    with trio.move_on_after(float(query["shielded"]), shield=True):
        await trio.sleep_forever()


async def abandon(query: _Query, receive: Receive, send: Send) -> None:
    """What many write, and Trio cannot bear: a generator that yields inside a nursery, and is left half-way."""
    await _start(send)
    async for body in _ticks():
        await _piece(send, body)
        await trio.sleep(0.05)


async def _ticks() -> AnyValue:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        while True:
            yield b"tick"


async def anything(query: _Query, receive: Receive, send: Send) -> None:
    """Whatever the seed says; nobody checks what comes of it."""
    chance = random.Random(int(query["seed"]))
    way = chance.choice([fail, hang, stubborn, swallow, thread, background, download, echo])
    made = {"size": str(chance.randrange(200_000)), "seconds": str(chance.random() / 2), "shielded": "0.3"}
    if chance.random() < 0.5:
        made["chunked"] = "yes"
    await way({**query, **made}, receive, send)


PATHS = {
    "echo": echo,
    "digest": digest,
    "download": download,
    "sleep": sleep,
    "thread": thread,
    "background": background,
    "fail": fail,
    "hang": hang,
    "stubborn": stubborn,
    "swallow": swallow,
    "abandon": abandon,
    "anything": anything,
}


# --- WebSockets


async def echo_messages(receive: Receive, send: Send) -> None:
    """Say who this is, then repeat each message."""
    await _accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        echo = {name: message[name] for name in ("text", "bytes") if message.get(name) is not None}
        await send({"type": "websocket.send", **echo})


async def _accept(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": str(os.getpid())})


async def fail_open(receive: Receive, send: Send) -> None:
    await _accept(receive, send)
    await receive()
    raise Asked("raised as asked")


async def refuse(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1008})


async def push(receive: Receive, send: Send) -> None:
    """Send numbers, and take nothing, until the client has left."""
    await _accept(receive, send)
    number = 0
    while True:
        await send({"type": "websocket.send", "text": str(number)})
        number += 1
        await trio.sleep(0.005)


WEBSOCKETS = {"echo": echo_messages, "fail": fail_open, "refuse": refuse, "push": push}
