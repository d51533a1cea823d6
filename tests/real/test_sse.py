"""sse-starlette: endless streams, the application that most often keeps a server from stopping."""

from __future__ import annotations

import signal

import pytest
import trio
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route

from trioserve.logs import Outcome
from trioserve.observer import Phase

from ..programs import start
from ..support import socket_server
from .clients import REPOSITORY, SERVE, curl, wait, wait_until

# sse-starlette leaves its generator to the garbage collector when it is cancelled, and Trio warns where it finds one.
pytestmark = [
    pytest.mark.both_codecs,
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]


class Events:
    """An application with one endless stream; ``ended`` once its generator has cleaned up."""

    def __init__(self, **options):
        self.ended = trio.Event()
        self._options = options
        self.app = Starlette(routes=[Route("/", self.endpoint)])

    async def endpoint(self, request):
        return EventSourceResponse(self.generate(), **self._options)

    async def generate(self):
        try:
            for number in range(1_000_000):
                yield {"event": "number", "data": str(number)}
                await trio.sleep(0.01)
        finally:
            self.ended.set()


async def open_stream(server):
    """A client that has read the first events."""
    client = await server.connect()
    await client.raw(b"GET / HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n")
    received = b""
    while b"data: 3" not in received:
        received += await client.stream.receive_some(4096)
    assert b"content-type: text/event-stream" in received.lower()
    return client


async def test_events_arrive_and_stop_with_the_client():
    """Events arrive as they are made; when the client leaves, the generator ends and nothing is logged as an error."""
    events = Events()
    async with socket_server(events.app) as server:
        client = await open_stream(server)
        await client.aclose()
        await wait(events.ended)
        await wait_until(lambda: server.records)
    assert [record.outcome for record in server.records] == [Outcome.CLIENT_LEFT]
    assert server.errors == []


async def test_the_close_handler_hears_of_the_client():
    """sse-starlette's own listener receives http.disconnect while the generator is being sent."""
    heard = []

    async def close_handler(message):
        heard.append(message["type"])

    events = Events(client_close_handler_callable=close_handler)
    async with socket_server(events.app, timeout_disconnect_grace=None) as server:
        client = await open_stream(server)
        await client.aclose()
        await wait_until(lambda: heard)
        await wait_until(lambda: server.records)
    assert heard == ["http.disconnect"]


async def test_pings_go_out_beside_the_events():
    """sse-starlette's ping task sends while the generator waits: two tasks, one send."""

    async def generate():
        yield {"data": "begun"}
        await trio.sleep_forever()

    async def endpoint(request):
        return EventSourceResponse(generate(), ping=0.02)

    async with socket_server(Starlette(routes=[Route("/", endpoint)]), timeout_disconnect_grace=0.1) as server:
        answer = await curl("--http1.1", "-N", "--max-time", "0.5", server.server.urls[0])
        await wait_until(lambda: server.records)
    assert answer.body.startswith(b"data: begun\r\n\r\n")
    assert answer.body.count(b": ping") >= 3
    assert server.errors == []


async def test_shutdown_ends_the_stream_at_its_deadline():
    """An endless stream is cancelled when the graceful deadline passes; the server then ends."""
    events = Events()
    async with socket_server(events.app) as server:
        client = await open_stream(server)
        start_time = trio.current_time()
        server.server.shutdown(grace=0.2)
        await wait_until(lambda: Phase.STOPPED in server.recorder.phases)
        assert 0.2 <= trio.current_time() - start_time < 5
        assert events.ended.is_set()
        await client.aclose()
    assert [record.outcome for record in server.records] == [Outcome.SHUTDOWN]
    assert server.errors == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_program_with_an_open_stream_stops(number):
    """The program cuts an open event stream at the graceful deadline and ends with 0 and without a trace."""
    arguments = (*SERVE, "tests.real.apps:events", "--port", "0", "--timeout-graceful-shutdown", "0.5")
    with start(*arguments, cwd=REPOSITORY) as program, program.connect("/"):
        program.signal(number)
        program.wait_for(r"waiting for 1 request, oldest GET / ")
        assert program.wait() == 0, program.errors
    assert "Traceback" not in program.errors
    assert "events cleaned up" in program.output


def test_second_signal_cuts_the_stream_at_once():
    """A second Ctrl-C does not wait for the graceful deadline."""
    with start(*SERVE, "tests.real.apps:events", "--port", "0", cwd=REPOSITORY) as program, program.connect("/"):
        program.signal()
        program.wait_for("Ctrl-C again cuts")
        program.signal()
        assert program.wait() == 0, program.errors
    assert "Traceback" not in program.errors
    assert "events cleaned up" in program.output
