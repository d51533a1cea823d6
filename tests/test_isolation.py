"""One connection is one boundary: an error at any await of its tasks hurts nobody else, and nothing of it is left."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import ssl
from pathlib import Path

import outcome
import pytest
import trio
import trio.testing
import trustme

from trioserve.lanes import TASK_NAME
from trioserve.types import Receive, Scope, Send

from .support import RunningServer, socket_server

pytestmark = [pytest.mark.both_codecs, pytest.mark.timeout(60)]

PIECE = 4096
BODY = random.Random(8).randbytes(16 * PIECE)
DIGEST = hashlib.sha256(BODY).digest()


class InjectedError(Exception):
    """Of nobody's making."""


class Injector(trio.abc.Instrument):
    """Raises an error at one wake-up of the tasks of the next connection: the ``number``th, counted from 0.

    ``fired``: it has come to that.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._tasks: set[trio.lowlevel.Task] = set()
        self._steps = 0
        self.fired = False

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        nursery = task.parent_nursery
        is_child = nursery is not None and nursery.parent_task in self._tasks
        if is_child or (not self._tasks and task.name == TASK_NAME):
            self._tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        # A task that begins waits for nothing. Trio has no public way to raise in one that has been woken.
        if task not in self._tasks or not isinstance(task._next_send, outcome.Outcome):
            return
        # An error within Trio's own wait for children leaves the nursery open, and so breaks Trio.
        if any(frame.f_code.co_qualname == "Nursery._nested_child_finished" for frame, _ in task.iter_await_frames()):
            return
        if self._steps == self._number:
            self.fired = True
            task._next_send = outcome.Error(InjectedError("injected"))
        self._steps += 1


async def handle(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that waits in all ways."""
    kind = scope["type"]
    if kind == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif kind == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
    elif scope["path"] == "/ignored":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"z"})
        await trio.sleep(0.005)
    elif scope["path"] == "/download":
        await send({"type": "http.response.start", "status": 200})
        for start in range(0, len(BODY), PIECE):
            await trio.sleep(0.001)
            await send({"type": "http.response.body", "body": BODY[start : start + PIECE], "more_body": True})
        await send({"type": "http.response.body"})
    else:
        while (await receive()).get("more_body"):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await trio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": b"y"})


POST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
FRAME = b"\x82\x85\0\0\0\0hello"
CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"

IGNORED = b"POST /ignored HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

CLIENTS = {
    "a request": [LAST],
    "two requests": [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", LAST],
    "a body in pieces": [POST + b"01", b"234", b"56789"],
    "a request that is refused": [b"GET / HTTP/9.9\r\n\r\n"],
    "a WebSocket": [UPGRADE, FRAME, FRAME, CLOSE],
    "a body that nobody reads": [
        b"POST /ignored HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01",
        b"23456789",
        LAST,
    ],
    "a request behind a handler that runs on": [b"GET /ignored HTTP/1.1\r\nHost: a\r\n\r\n" + LAST],
    "an expectation": [POST.replace(b"Host", b"Expect: 100-continue\r\nHost"), b"0123456789"],
}


async def open_stream(server: RunningServer, context: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await server.connect_stream()
    if context is None:
        return stream
    return trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)


async def play(stream: trio.abc.Stream, pieces: list[bytes]) -> None:
    """Send each piece when the server has had its turn, and read until the server closes."""

    async def read() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for number, piece in enumerate(pieces):
                await stream.send_all(piece)
                if number == 0:
                    nursery.start_soon(read)
                await trio.sleep(0.002)
    await trio.aclose_forcefully(stream)


async def download(server: RunningServer, context: ssl.SSLContext | None) -> None:
    """The neighbour: its bytes are all there, and right."""
    received = b""
    async with await open_stream(server, context) as stream:
        await stream.send_all(b"GET /download HTTP/1.0\r\n\r\n")
        async for data in stream:
            received += data
    assert hashlib.sha256(received.partition(b"\r\n\r\n")[2]).digest() == DIGEST


def living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def serve_with(injector: Injector, server: RunningServer, context: ssl.SSLContext | None, kind: str) -> None:
    """Serve a connection whose tasks the injector sees, beside a neighbour, and wait until nothing of both is left."""
    await trio.testing.wait_all_tasks_blocked()
    before = living()
    async with trio.open_nursery() as nursery:
        began = server.server.statistics().requests_total
        nursery.start_soon(download, server, context)
        while server.server.statistics().requests_total == began:
            await trio.sleep(0.001)
        trio.lowlevel.add_instrument(injector)
        await play(await open_stream(server, context), CLIENTS[kind])
        trio.lowlevel.remove_instrument(injector)
    while server.server.statistics().connections or living() > before:
        await trio.sleep(0.005)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", CLIENTS)
async def test_an_error_at_any_await_hurts_one_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, tls: bool
) -> None:
    """Whichever wake-up of a connection's tasks fails: a neighbour's download is right, and nothing is left."""
    caplog.set_level(logging.CRITICAL, "trioserve")
    monkeypatch.setattr("trioserve.lanes.PATIENCE", 0.005)
    authority, context, options = trustme.CA(), None, {}
    if tls:
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
        options |= {"ssl_certfile": str(tmp_path / "cert.pem")}
        context = ssl.create_default_context()
        authority.configure_trust(context)
    async with socket_server(handle, **options) as server:
        for number in range(200):
            injector = Injector(number)
            with trio.fail_after(10):
                await serve_with(injector, server, context, kind)
            if not injector.fired:
                break
    assert number < 200
    assert number >= 1 or kind == "a request that is refused"  # which may have come with the connection
