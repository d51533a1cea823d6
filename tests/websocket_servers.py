"""Servers on each kind of stream for the WebSocket tests, and an application that a test plays itself."""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from trioserve.net.listeners import Listener
from trioserve.testing.memory_server import MemoryListener, MemoryServer
from trioserve.testing.trio_server import TrioServer
from trioserve.types import AnyValue, ASGIApp, Message, Receive, Scope, Send

from .support import Recorder, RunningServer, nothing_left, plain_lifespan, prepare_fully, run_server

KINDS = ("memory", "socket", "tls")
ON_EACH_KIND = pytest.mark.parametrize("kind", KINDS)
"""Memory streams, sockets of the loopback, and TLS over them."""

ON_EACH_NETWORK = pytest.mark.parametrize("kind", ["socket", "tls"])

NARROW = 8 * 1024
"""A kernel buffer that is soon full."""


class Side:
    """The application's side of one accepted WebSocket, for the test to play. Its handler waits until it is ended."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self._ended = trio.Event()
        self._error: BaseException | None = None
        self.was_cancelled = False
        self.has_returned = trio.Event()

    async def wait(self) -> None:
        """What the handler does."""
        try:
            await self._ended.wait()
            if self._error is not None:
                raise self._error
        except trio.Cancelled:
            self.was_cancelled = True
            raise
        finally:
            self.has_returned.set()

    def end(self, error: BaseException | None = None) -> None:
        """Let the handler return, or raise."""
        self._error = error
        self._ended.set()

    async def say(self, data: str | bytes) -> None:
        await self.send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.send({"type": "websocket.close", "code": code, "reason": reason})

    async def hear(self) -> str | bytes | tuple[int, str]:
        """The data of the next message, or code and reason of the disconnect."""
        message: Message = await self.receive()
        if message["type"] == "websocket.disconnect":
            return message["code"], message["reason"]
        assert message["type"] == "websocket.receive", message
        assert len(message) == 2, message
        text: str | None = message.get("text")
        return message["bytes"] if text is None else text

    async def hear_all(self) -> list[str | bytes | tuple[int, str]]:
        """All up to the disconnect."""
        heard = [await self.hear()]
        while not isinstance(heard[-1], tuple):
            heard.append(await self.hear())
        return heard


class Stage:
    """An application that accepts every WebSocket and hands its side to the test."""

    def __init__(self) -> None:
        self._enter, self._entered = trio.open_memory_channel[Side](100)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        side = Side(scope, receive, send)
        self._enter.send_nowait(side)
        await side.wait()

    async def next(self) -> Side:
        return await self._entered.receive()


def accepting(handler: Callable[[Side], Awaitable[None]]) -> ASGIApp:
    """An application that accepts every WebSocket and leaves the rest to the handler."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        await handler(Side(scope, receive, send))

    return app


async def echo(side: Side) -> None:
    """A handler that sends back what comes."""
    while not isinstance(data := await side.hear(), tuple):
        await side.say(data)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = trio.current_time()

    @property
    def seconds(self) -> float:
        return round(trio.current_time() - self._start, 6)


class LockstepListener(MemoryListener):
    """Its streams hold nothing: a send lasts until the other side has read all of it."""

    def connect(self, *, reads_little: bool = False) -> trio.abc.Stream:
        client, server = trio.testing.lockstep_stream_pair()
        self._send.send_nowait(server)
        return client


@asynccontextmanager
async def server_on(
    kind: str, app: ASGIApp, *, narrow: bool = False, recorder: Recorder | None = None, **options: AnyValue
) -> AsyncIterator[RunningServer]:
    """A server on streams of this kind ("lockstep" is one, too), cancelled at the end of the block, which has a
    deadline. ``narrow``: the kernel holds little between the two ends.
    """
    recorder = recorder or Recorder()
    is_virtual = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    with trio.fail_after(3600 if is_virtual else 10), nothing_left(), tempfile.TemporaryDirectory() as folder:
        if kind in ("memory", "lockstep"):
            memory = MemoryServer(prepare_fully(app, None, options), recorder)
            if kind == "lockstep":
                memory.listener = LockstepListener()
            context = run_server(memory, recorder, listeners=[memory.listener])
        else:
            connect = _prepare(kind, narrow, options, Path(folder))
            server = ConnectingServer(prepare_fully(app, None, options), recorder)
            server.connect_client = connect.client
            context = run_server(server, recorder, bound=[Listener.from_socket(connect.listener, tls=kind == "tls")])
        async with context as running:
            yield running


class ConnectingServer(TrioServer):
    """A server whose clients are made otherwise."""

    connect_client: Callable[[], Awaitable[trio.abc.Stream]]

    async def _open(self, *, reads_little: bool = False) -> tuple[trio.abc.Stream, None]:
        return await self.connect_client(), None


@dataclass
class Prepared:
    """A bound socket, and what connects to it."""

    listener: socket.socket
    client: Callable[[], AnyValue]


def _prepare(kind: str, narrow: bool, options: dict[str, AnyValue], folder: Path) -> Prepared:
    listener = socket.socket()
    if narrow:
        _make_narrow(listener)  # inherited by what it accepts
    listener.bind(("127.0.0.1", 0))
    connect: Callable[[], AnyValue] = partial(_connect_tcp, listener.getsockname(), narrow)
    if kind == "tls":
        authority, certificate = trustme.CA(), folder / "chain.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        options["ssl_certfile"] = str(certificate)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        connect = partial(_connect_tls, connect, context)
    return Prepared(listener, connect)


def _make_narrow(sock: socket.socket | trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)


async def _connect_tcp(address: tuple[str, int], narrow: bool) -> trio.SocketStream:
    sock = trio.socket.socket()
    try:
        if narrow:
            _make_narrow(sock)
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _connect_tls(connect: Callable[[], AnyValue], context: ssl.SSLContext) -> trio.abc.Stream:
    stream = trio.SSLStream(await connect(), context, server_hostname="localhost", https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream
