"""Servers, clients and applications for the tests. Each server ends by proving that nothing is left of it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import h11
import trio
import trio.testing

from trioserve.config import Config
from trioserve.logs import ExchangeRecord
from trioserve.net.binding import bind_all
from trioserve.observer import Phase
from trioserve.server import Server
from trioserve.testing.flat_nursery import open_flat_nursery
from trioserve.testing.memory_server import MemoryListener, MemoryServer
from trioserve.testing.preparation import Preparation, prepare
from trioserve.testing.trio_server import TrioServer
from trioserve.testing.witness import Witness
from trioserve.types import AnyValue, ASGIApp, Message, PlainValues, Receive, Scope, Send


class Recorder(Witness):
    """Keeps all that a server tells."""

    def __init__(self, *, wants_debug: bool = False) -> None:
        super().__init__()
        self.wants_debug = wants_debug
        self.phases: list[Phase] = []
        self.records: list[ExchangeRecord] = []
        self.debug: list[PlainValues] = []

    def phase_changed(self, phase: Phase) -> None:
        super().phase_changed(phase)
        self.phases.append(phase)

    def exchange_ended(self, record: ExchangeRecord) -> None:
        super().exchange_ended(record)
        self.records.append(record)

    def debug_received(self, info: PlainValues) -> None:
        self.debug.append(info)


@dataclass
class Answer:
    """A whole response as the h11 client read it. ``informational`` are the 1xx before it, with their fields."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    trailers: dict[bytes, bytes]
    http_version: bytes
    informational: list[tuple[int, dict[bytes, bytes]]] = field(default_factory=list)


class Client:
    """An HTTP/1.1 client made of h11, on any stream. ``raw`` methods go past h11."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h11 = h11.Connection(h11.CLIENT)

    async def send(self, *events: h11.Event) -> None:
        await self.stream.send_all(b"".join(self.h11.send(event) or b"" for event in events))

    async def request(
        self,
        method: str = "GET",
        target: str = "/",
        headers: list[tuple[str, str]] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One whole exchange; the connection is made ready for the next if it can be."""
        fields = [("Host", "test"), *(headers or [])]
        if body and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in fields):
            fields.append(("Content-Length", str(len(body))))
        events: list[h11.Event] = [h11.Request(method=method, target=target, headers=fields)]
        if body:
            events.append(h11.Data(data=body))
        await self.send(*events, h11.EndOfMessage())
        return await self.answer()

    async def get(self, target: str = "/") -> Answer:
        return await self.request("GET", target)

    async def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.h11.receive_data(await self.stream.receive_some(65536))

    async def answer(self) -> Answer:
        """Read one response to its end."""
        informational = []
        while True:
            head = await self.next_event()
            if not isinstance(head, h11.InformationalResponse):
                break
            informational.append((head.status_code, dict(head.headers)))
        assert isinstance(head, h11.Response), head
        body = b""
        while isinstance(event := await self.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage), event
        if self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE:
            self.h11.start_next_cycle()
        return Answer(head.status_code, dict(head.headers), body, dict(event.headers), head.http_version, informational)

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive_rest(self) -> bytes:
        """All bytes up to the server's close."""
        received = b""
        while data := await self.stream.receive_some(65536):
            received += data
        return received

    async def aclose(self) -> None:
        await self.stream.aclose()


@dataclass
class RunningServer:
    """A server under test, whose clients are made of h11."""

    handle: TrioServer
    recorder: Recorder
    nursery: trio.Nursery

    @property
    def server(self) -> Server:
        return self.handle.server

    @property
    def listener(self) -> MemoryListener:
        assert isinstance(self.handle, MemoryServer)
        return self.handle.listener

    def cancel(self) -> None:
        """Cancel the block, and with it the server, as a program does whose nursery is cancelled."""
        self.nursery.cancel_scope.cancel()

    async def connect_stream(self) -> trio.abc.Stream:
        """The bare stream, without a handshake."""
        address = self.server.addresses[0]
        if type(self.handle) is not TrioServer or address is None:
            return await self.handle.connect()
        if isinstance(address, str):
            return await trio.open_unix_socket(address)
        return await trio.open_tcp_stream(*address)

    async def connect(self) -> Client:
        return Client(await self.connect_stream())

    @property
    def records(self) -> list[ExchangeRecord]:
        return self.recorder.records

    @property
    def errors(self) -> list[BaseException]:
        return self.recorder.errors


@contextmanager
def nothing_left() -> Iterator[None]:
    """Inside a Trio program: no task and no descriptor more after than before.

    One less is none of this block's: the garbage collector may come for what an earlier test has left.
    """
    tasks = trio.lowlevel.current_statistics().tasks_living
    descriptors = open_descriptors()
    yield
    gc.collect()
    assert trio.lowlevel.current_statistics().tasks_living == tasks, "tasks are left"
    left = open_descriptors() - descriptors
    assert not left, f"descriptors are left: {left}"


def open_descriptors() -> set[str]:
    if not os.path.isdir("/proc/self/fd"):
        return set()
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return descriptors


@asynccontextmanager
async def memory_server(
    app: ASGIApp, *, recorder: Recorder | None = None, config: Config | None = None, **options: AnyValue
) -> AsyncIterator[RunningServer]:
    """A server on memory streams, so that autojump_clock can pass any deadline; cancelled at the end of the block."""
    recorder = recorder or Recorder()
    server = MemoryServer(prepare_fully(app, config, options), recorder)
    with nothing_left():
        async with run_server(server, recorder, listeners=[server.listener]) as running:
            yield running


@asynccontextmanager
async def socket_server(
    app: ASGIApp, *, recorder: Recorder | None = None, config: Config | None = None, **options: AnyValue
) -> AsyncIterator[RunningServer]:
    """A server on a real port of the loopback, or on whatever ``bind`` says; cancelled at the end of the block."""
    options = {"port": 0, **options} if config is None else options
    recorder = recorder or Recorder()
    preparation = prepare_fully(app, config, options)
    server = TrioServer(preparation, recorder)
    with nothing_left():
        async with run_server(server, recorder, bound=await bind_all(preparation.config)) as running:
            yield running


@asynccontextmanager
async def run_server(server: TrioServer, recorder: Recorder, **what: AnyValue) -> AsyncIterator[RunningServer]:
    """Run a prepared server; cancelled at the end of the block."""
    async with open_flat_nursery() as nursery, server.run(**what):
        yield RunningServer(server, recorder, nursery)
        server.cancel()


HTTP = "auto"
"""The codec of servers that are not told which; the fixture ``codec`` sets it."""


def prepare_fully(app: ASGIApp, config: Config | None, options: PlainValues) -> Preparation:
    """As the testing tools prepare, but with the deadlines of servers that are not under test."""
    config = Config.from_plain({"http": HTTP}).replace(**options) if config is None else config.replace(**options)
    return prepare(app, tls=False, options=config.to_plain())


# Applications


def respond(
    body: bytes = b"Hello, world!", *, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> ASGIApp:
    """An application that answers every request so, without reading its body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": headers or []})
        await send({"type": "http.response.body", "body": body})

    return app


def http_app(handler: Callable[[Scope, Receive, Send], AnyValue]) -> ASGIApp:
    """An application made of one HTTP handler, with a lifespan that does nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
        else:
            await handler(scope, receive, send)

    return app


async def plain_lifespan(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    await send({"type": "lifespan.shutdown.complete"})


async def send_text(send: Send, text: bytes | str, status: int = 200) -> None:
    body = text.encode() if isinstance(text, str) else text
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    """The whole request body; a disconnect in the middle is an AssertionError."""
    body = b""
    more = True
    while more:
        message: Message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        more = message["more_body"]
    return body


LINUX = sys.platform == "linux"
