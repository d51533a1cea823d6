"""One span per request: what opentelemetry-instrumentation-asgi makes of requests that trioserve serves.

Each test has a provider of its own, so that nothing is set for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.requests import Request
from trio_websocket import connect_websocket

from trioserve.types import ASGIApp, Receive, Scope, Send

from .support import memory_server, plain_lifespan, send_text, socket_server

pytestmark = pytest.mark.both_codecs

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
ONE_SPAN = ("receive", "send")  # of these there are to be none
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


class Traces:
    """A provider, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def instrument(self, app: ASGIApp, exclude_spans: tuple[str, ...] = ONE_SPAN) -> ASGIApp:
        return OpenTelemetryMiddleware(app, tracer_provider=self.provider, exclude_spans=list(exclude_spans))

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    @property
    def servers(self) -> list[ReadableSpan]:
        return [one for one in self.all if one.kind is SpanKind.SERVER]

    def children_of(self, span: ReadableSpan) -> list[str]:
        return [one.name for one in self.all if one.parent is not None and one.parent.span_id == span.context.span_id]


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made
    made.provider.shutdown()
    # What a request began must not be the current span of what comes after it.
    assert trace.get_current_span() is trace.INVALID_SPAN


def handling(handler) -> ASGIApp:  # type: ignore[no-untyped-def]
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
        else:
            await handler(scope, receive, send)

    return app


def working(traces: Traces) -> ASGIApp:
    """Waits as long as its path says, and then works under a span of the path's name."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(float(scope["path"][1:]))
        with traces.tracer.start_as_current_span(scope["path"]):
            await send_text(send, "done")

    return handling(handler)


def path_of(span: ReadableSpan) -> str:
    assert span.attributes is not None
    return str(span.attributes["http.target"])


@contextmanager
def deadline() -> Iterator[None]:
    with trio.fail_after(20):
        yield


async def test_one_server_span_per_request(traces):
    """Each request on a connection is one span, with method, target, status and client; none has a parent."""
    async with socket_server(traces.instrument(working(traces))) as server:
        with deadline():
            client = await server.connect()
            for path in ("/0", "/0.0", "/0.00"):
                assert (await client.get(path)).status == 200
            address = client.stream.socket.getsockname()
            await client.aclose()
    assert [path_of(one) for one in traces.servers] == ["/0", "/0.0", "/0.00"]
    for one in traces.servers:
        assert one.parent is None
        assert one.name == f"GET {path_of(one)}"
        assert (one.attributes["http.method"], one.attributes["http.status_code"]) == ("GET", 200)
        assert (one.attributes["net.peer.ip"], one.attributes["net.peer.port"]) == address
        assert traces.children_of(one) == [path_of(one)]
    assert len(traces.all) == 6
    assert len({one.context.trace_id for one in traces.servers}) == 3


async def test_without_the_option_there_are_more(traces):
    """Why exclude_spans is needed: the middleware makes spans of what is received and sent, too."""
    async with memory_server(traces.instrument(working(traces), ())) as server:
        await (await server.connect()).get("/0")
    (span,) = traces.servers
    assert {one.name for one in traces.all} == {span.name, "/0", "GET /0 http send"}


async def test_a_caller_s_trace_goes_on_for_its_request_only(traces):
    """traceparent gives one request its parent; the next one on the same connection has none of it."""
    async with memory_server(traces.instrument(working(traces))) as server:
        client = await server.connect()
        await client.request(target="/0", headers=[TRACEPARENT])
        await client.get("/0.0")
    first, second = traces.servers
    assert first.parent is not None
    assert (f"{first.parent.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, PARENT)
    assert first.parent.is_remote
    assert second.parent is None
    assert f"{second.context.trace_id:032x}" != TRACE


async def test_pipelined_requests(traces):
    """Requests in one packet are as many traces, though the server never waits between them."""
    async with memory_server(traces.instrument(working(traces))) as server:
        client = await server.connect()
        parent = f"{TRACEPARENT[0]}: {TRACEPARENT[1]}\r\n".encode()
        head = b"GET /%s HTTP/1.1\r\nHost: test\r\n%s\r\n"
        await client.raw(head % (b"0", parent) + head % (b"0.0", b"") + head % (b"0.00", b"Connection: close\r\n"))
        assert (await client.receive_rest()).count(b"done") == 3
    assert [one.parent is None for one in traces.servers] == [False, True, True]
    assert [traces.children_of(one) for one in traces.servers] == [["/0"], ["/0.0"], ["/0.00"]]


async def test_requests_at_the_same_time_are_not_mixed(traces, autojump_clock: trio.testing.MockClock):
    """Work that a request does after others have begun and ended belongs to that request."""
    paths = [f"/{number}" for number in (3, 1, 2, 1.5, 2.5)]
    async with memory_server(traces.instrument(working(traces))) as server, trio.open_nursery() as nursery:
        for path in paths:
            client = await server.connect()
            nursery.start_soon(client.get, path)
    assert sorted(map(path_of, traces.servers)) == sorted(paths)
    for one in traces.servers:
        assert traces.children_of(one) == [path_of(one)]


async def test_a_websocket_is_one_span(traces):
    """From its handshake to its end, also with the messages that it sees; a request on that address is another."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send_text(send, "done")
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            with traces.tracer.start_as_current_span("message"):
                await send({"type": "websocket.send", "text": message["text"]})

    async with socket_server(traces.instrument(handling(handler))) as server, trio.open_nursery() as nursery:
        with deadline():
            host, port = server.server.addresses[0]
            client = await connect_websocket(nursery, host, port, "/chat", use_ssl=False, extra_headers=[TRACEPARENT])
            for _ in range(2):
                await client.send_message("hello")
                await client.get_message()
            assert traces.servers == []
            await client.aclose()
            other = await server.connect()
            await other.get("/chat")
            await other.aclose()
    socket, request = traces.servers
    assert socket.attributes["http.scheme"] == "ws"
    assert f"{socket.context.trace_id:032x}" == TRACE
    assert traces.children_of(socket) == ["message", "message"]
    assert (request.parent, traces.children_of(request)) == (None, [])


async def test_threads_and_background_tasks_belong_to_their_request(traces):
    """What a handler does in a thread, in a task of its own, or after its response, is a part of its trace."""

    def work(name: str) -> None:
        with traces.tracer.start_as_current_span(name):
            pass

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.to_thread.run_sync(work, "thread")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, work, "task")
        await send_text(send, "done")
        await trio.lowlevel.checkpoint()
        work("background")

    async with memory_server(traces.instrument(handling(handler))) as server:
        client = await server.connect()
        for _ in range(2):
            assert (await client.get()).body == b"done"
        await trio.testing.wait_all_tasks_blocked()  # until the last of them has done what comes after its response
    assert [traces.children_of(one) for one in traces.servers] == [["thread", "task", "background"]] * 2


async def test_a_request_that_is_cancelled_ends_its_span(traces, autojump_clock: trio.testing.MockClock):
    """When the client has left, and the handler is cancelled, the span ends then; the next client has its own."""
    async with memory_server(traces.instrument(working(traces)), timeout_disconnect_grace=3) as server:
        client = await server.connect()
        await client.raw(GET.replace(b"/", b"/600", 1))
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.sleep(4)
        (cut,) = traces.servers
        assert (path_of(cut), traces.children_of(cut)) == ("/600", [])
        assert (cut.end_time - cut.start_time) < 60e9  # of the system's clock, which does not jump
        await (await server.connect()).get("/0")
    assert traces.servers[1].parent is None
    assert traces.children_of(traces.servers[1]) == ["/0"]


async def test_a_handler_that_raises_has_an_error(traces):
    """An exception is in the span of the request that it ended, and not in the next one's."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/bad":
            raise ValueError("no such thing")
        await send_text(send, "done")

    async with memory_server(traces.instrument(handling(handler))) as server:
        assert (await (await server.connect()).get("/bad")).status == 500
        assert (await (await server.connect()).get("/good")).status == 200
        assert [str(error) for error in server.errors] == ["no such thing"]
    bad, good = traces.servers
    assert (bad.status.status_code, good.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert [event.name for event in bad.events] == ["exception"]


async def test_what_lifespan_sets_is_no_parent(traces):
    """A span that is current while the application starts is the parent of no request, if it is left as it must be."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            with traces.tracer.start_as_current_span("start"):
                await trio.lowlevel.checkpoint()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send_text(send, str(Request(scope).url.path))

    async with memory_server(traces.instrument(app)) as server:
        await (await server.connect()).get("/")
    assert [one.name for one in traces.all] == ["start", "GET /"]
    assert traces.servers[0].parent is None
