"""Servers, clients and applications for the tests. Each server ends by proving that nothing is left of it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import h11
import trio
import trio.testing

from trioserve.config import Config
from trioserve.exchange import Request
from trioserve.logs import ExchangeRecord, WebSocketRecord
from trioserve.observer import Observer, Phase
from trioserve.server import Server, serve_observed
from trioserve.types import AnyValue, ASGIApp, Message, PlainValues, Receive, Scope, Send


class Recorder(Observer):
    """Keeps all that a server tells."""

    def __init__(self, *, wants_debug: bool = False) -> None:
        self.wants_debug = wants_debug
        self.phases: list[Phase] = []
        self.records: list[ExchangeRecord] = []
        self.websockets: list[WebSocketRecord] = []
        self.errors: list[BaseException] = []
        self.debug: list[PlainValues] = []

    def phase_changed(self, phase: Phase) -> None:
        self.phases.append(phase)

    def exchange_ended(self, record: ExchangeRecord) -> None:
        self.records.append(record)

    def websocket_closed(self, record: WebSocketRecord) -> None:
        self.websockets.append(record)

    def application_failed(self, error: BaseException, request: Request | None) -> None:
        self.errors.append(error)

    def debug_received(self, info: PlainValues) -> None:
        self.debug.append(info)


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener whose clients are made with connect()."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](100)

    def connect(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]:
        client, server = trio.testing.memory_stream_pair()
        self._send.send_nowait(server)
        return client

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()
        await trio.lowlevel.checkpoint()


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
    """A server under test. ``connect`` gives a client, ``connect_stream`` the bare stream."""

    server: Server
    recorder: Recorder
    connect_stream: Callable[[], AnyValue]
    nursery: trio.Nursery

    async def connect(self) -> Client:
        stream = self.connect_stream()
        return Client(stream if isinstance(stream, trio.abc.Stream) else await stream)

    @property
    def records(self) -> list[ExchangeRecord]:
        return self.recorder.records

    @property
    def errors(self) -> list[BaseException]:
        return self.recorder.errors


@contextmanager
def nothing_left() -> Iterator[None]:
    """Inside a Trio program: no task and no descriptor more after than before."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    descriptors = open_descriptors()
    yield
    gc.collect()
    assert trio.lowlevel.current_statistics().tasks_living == tasks, "tasks are left"
    assert open_descriptors() == descriptors, "descriptors are left"


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
    listener = MemoryListener()
    async with _running(app, recorder, config, options, listeners=[listener]) as (server, recorder, nursery):
        yield RunningServer(server, recorder, listener.connect, nursery)


@asynccontextmanager
async def socket_server(
    app: ASGIApp, *, recorder: Recorder | None = None, config: Config | None = None, **options: AnyValue
) -> AsyncIterator[RunningServer]:
    """A server on a real port of the loopback, or on whatever ``bind`` says; cancelled at the end of the block."""
    options = {"port": 0, **options} if config is None else options
    async with _running(app, recorder, config, options) as (server, recorder, nursery):

        def connect() -> AnyValue:
            address = server.addresses[0]
            if isinstance(address, str):
                return trio.open_unix_socket(address)
            assert address is not None
            return trio.open_tcp_stream(*address)

        yield RunningServer(server, recorder, connect, nursery)


@asynccontextmanager
async def _running(
    app: ASGIApp, recorder: Recorder | None, config: Config | None, options: PlainValues, **more: AnyValue
) -> AsyncIterator[tuple[Server, Recorder, trio.Nursery]]:
    recorder = recorder or Recorder()
    config = Config(**options) if config is None else config.replace(**options)
    with nothing_left():
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            start = partial(serve_observed, app, config, observer=recorder, **more)
            server = await nursery.start(start)
            yield server, recorder, nursery
            nursery.cancel_scope.cancel()


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
