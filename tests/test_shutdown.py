"""Stopping: the kinds of drain, the deadlines, and the order of it all, whatever clients and handlers do."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing
import trustme

from trioserve import LifespanError
from trioserve.drain import DrainKind
from trioserve.logs import Outcome
from trioserve.observer import Phase

from .support import (
    Client,
    Recorder,
    RunningServer,
    http_app,
    memory_server,
    nothing_left,
    read_body,
    respond,
    send_text,
    socket_server,
)

pytestmark = [pytest.mark.timeout(20), pytest.mark.both_codecs]

START = {"type": "http.response.start", "status": 200, "headers": []}
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class TimedRecorder(Recorder):
    """Knows when each phase began, on Trio's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[Phase, float] = {}

    def phase_changed(self, phase: Phase) -> None:
        super().phase_changed(phase)
        self.times[phase] = trio.current_time()

    @property
    def stopped_after(self) -> float:
        """Seconds from the beginning of the drain to the end of serve()."""
        return self.times[Phase.STOPPED] - self.times[Phase.DRAINING]


@pytest.fixture
def recorder() -> TimedRecorder:
    return TimedRecorder()


async def asked(server: RunningServer, data: bytes = REQUEST) -> Client:
    """A client that has sent this, and the server has seen it."""
    client = await server.connect()
    await client.raw(data)
    await trio.testing.wait_all_tasks_blocked()
    return client


async def forever(scope, receive, send):
    await trio.sleep_forever()


def waits(seconds: float):
    async def handler(scope, receive, send):
        await trio.sleep(seconds)
        await send_text(send, "finished")

    return http_app(handler)


# Stop


async def test_stop_closes_idle_connections_at_once(autojump_clock, recorder):
    """A connection between requests, or one that has sent nothing yet, is closed at once, without a word."""
    async with memory_server(respond(), recorder=recorder) as server:
        idle, fresh = await server.connect(), await server.connect()
        await idle.get()
        server.server.shutdown()
        assert await idle.receive_rest() == b""
        assert await fresh.receive_rest() == b""
        await trio.sleep(100)
        assert recorder.stopped_after == 0
        assert Phase.CANCELLING not in recorder.phases


async def test_stop_accepts_nobody(autojump_clock):
    """From the drain on listeners are closed, while running requests finish."""
    async with memory_server(waits(5)) as server:
        await asked(server)
        server.server.shutdown()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
        assert server.server.statistics().requests == 1


async def test_running_requests_finish_and_answer_connection_close(autojump_clock, recorder):
    """A stop lets a running request finish; its answer says that the connection closes, and it does."""
    async with memory_server(waits(5), recorder=recorder) as server:
        client = await asked(server)
        server.server.shutdown()
        received = await client.receive_rest()
        assert b"\r\nconnection: close\r\n" in received.lower()
        assert received.endswith(b"finished")
        await trio.sleep(1)
        assert recorder.stopped_after == 5
        assert [one.outcome for one in server.records] == [Outcome.OK]


async def test_a_streaming_response_finishes_and_its_connection_closes(autojump_clock):
    """A response whose head is out already is completed too, and then the connection closes."""

    async def handler(scope, receive, send):
        await send(START)
        for _ in range(5):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await trio.sleep(1)
        await send({"type": "http.response.body"})

    async with memory_server(http_app(handler)) as server:
        client = await asked(server)
        server.server.shutdown()
        assert (await client.receive_rest()).endswith(b"0\r\n\r\n")


async def test_half_a_head_has_one_more_second(autojump_clock, recorder):
    """A request head in progress has one second after a stop; then 408 and the end."""
    async with memory_server(respond(), recorder=recorder) as server:
        client = await asked(server, b"GET / HTTP/1.1\r\nHo")
        start = trio.current_time()
        server.server.shutdown()
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - start == 1
        await client.aclose()
        await trio.sleep(10)
        assert recorder.stopped_after == 1


async def test_a_head_that_comes_to_its_end_in_time_is_answered(autojump_clock):
    """The rest of a head that comes within that second is a request like any other, with Connection: close."""
    async with memory_server(respond()) as server:
        client = await asked(server, b"GET / HTTP/1.1\r\nHo")
        server.server.shutdown()
        await trio.sleep(0.9)
        await client.raw(b"st: a\r\n\r\n")
        received = await client.receive_rest()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in received.lower()


async def test_half_a_body_may_come_to_its_end(autojump_clock):
    """A request whose body is on its way is running: it has the whole grace."""

    async def handler(scope, receive, send):
        await send_text(send, await read_body(receive))

    async with memory_server(http_app(handler)) as server:
        client = await asked(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst")
        server.server.shutdown()
        await trio.sleep(20)
        await client.raw(b"after")
        assert (await client.receive_rest()).endswith(b"firstafter")


async def test_half_a_body_that_never_ends_is_cut_at_the_deadline(autojump_clock, recorder):
    """A body that does not come to its end holds up a stop no longer than timeout_graceful_shutdown."""

    async def handler(scope, receive, send):
        await read_body(receive)

    app, options = http_app(handler), {"timeout_graceful_shutdown": 7, "timeout_request_body": 60}
    async with memory_server(app, recorder=recorder, **options) as server:
        client = await asked(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst")
        server.server.shutdown()
        await client.receive_rest()
        await trio.sleep(20)
        assert recorder.stopped_after == 7
        assert [one.outcome for one in server.records] == [Outcome.SHUTDOWN]


@pytest.mark.parametrize("handler", ["silent", "endless"])
async def test_what_runs_on_is_cancelled_at_the_deadline(autojump_clock, recorder, handler):
    """Handlers still running after timeout_graceful_shutdown are cancelled; their connections are cut."""
    ended = []

    async def endless(scope, receive, send):
        try:
            if handler == "silent":
                await trio.sleep_forever()
            await send(START)
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await trio.sleep(0.5)
        finally:
            ended.append(trio.current_time())

    async with memory_server(http_app(endless), recorder=recorder, timeout_graceful_shutdown=9) as server:
        client = await asked(server)
        server.server.shutdown()
        received = await client.receive_rest()
        assert not received.endswith(b"0\r\n\r\n")
        await trio.sleep(20)
        assert recorder.stopped_after == 9
        assert ended == [recorder.times[Phase.CANCELLING]]
    assert recorder.phases == [
        Phase.STARTING, Phase.SERVING, Phase.DRAINING, Phase.CANCELLING, Phase.STOPPING, Phase.STOPPED,
    ]  # fmt: skip
    assert [one.outcome for one in recorder.records] == [Outcome.SHUTDOWN]


async def test_a_client_that_never_reads_is_cut_at_the_deadline(autojump_clock, recorder):
    """A handler stuck in send(), because its client takes nothing, holds up a stop no longer than the grace."""
    client, server_side = trio.testing.lockstep_stream_pair()

    async def handler(scope, receive, send):
        await send_text(send, b"x" * 1_000_000)

    with nothing_left():
        async with memory_server(
            http_app(handler), recorder=recorder, timeout_graceful_shutdown=8, timeout_write=100
        ) as server:
            listener_side = server.listener
            listener_side._send.send_nowait(server_side)
            await client.send_all(REQUEST)
            await trio.testing.wait_all_tasks_blocked()
            server.server.shutdown()
            await trio.sleep(20)
            assert 8 <= recorder.stopped_after <= 9
    await client.aclose()


async def test_a_client_that_never_reads_over_a_socket(recorder):
    """The same over a real socket, whose buffers are full."""

    async def handler(scope, receive, send):
        await send(START)
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async with socket_server(http_app(handler), recorder=recorder) as server:
        client = await server.connect()
        await client.raw(REQUEST)
        with trio.fail_after(10):
            while not server.server.statistics().requests:
                await trio.sleep(0.01)
            server.server.shutdown(grace=0.2)
            while Phase.STOPPED not in recorder.phases:
                await trio.sleep(0.01)
        await client.aclose()
    assert recorder.stopped_after < 5


# Order


async def test_a_handler_that_ignores_cancellation_is_waited_for(autojump_clock, recorder):
    """A handler that takes two seconds to clean up is waited for; only then does lifespan shut down."""
    events = []

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            events.append(((await receive())["type"], trio.current_time()))
            return
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            events.append(("finally", trio.current_time()))

    async with memory_server(app, recorder=recorder, timeout_graceful_shutdown=3) as server:
        await asked(server)
        start = trio.current_time()
        server.server.shutdown()
        await trio.sleep(20)
    assert events == [("finally", start + 5), ("lifespan.shutdown", start + 5)]


async def test_a_lifespan_that_never_finishes_is_cut(autojump_clock, recorder):
    """After the handlers' grace the lifespan has timeout_shutdown, and no more; serve() then raises."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await trio.sleep_forever()

    with pytest.raises(LifespanError, match="did not shut down within 4 s"):
        async with memory_server(app, recorder=recorder, timeout_graceful_shutdown=3, timeout_shutdown=4) as server:
            await asked(server)
            server.server.shutdown()
            await trio.sleep(20)
    assert recorder.stopped_after == 7


async def test_a_clean_up_after_cancellation_may_still_write(autojump_clock):
    """The server's clocks run until the last handler has ended, so a goodbye in a finally reaches the client."""

    async def handler(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await trio.sleep(1)
                await send({"type": "http.response.body", "body": b"goodbye"})

    async with memory_server(http_app(handler)) as server:
        client = await asked(server)
        server.server.shutdown(grace=0)
        assert b"goodbye" in await client.receive_rest()


# The grace


async def test_shutdown_without_grace_cancels_at_once(autojump_clock, recorder):
    """shutdown(grace=0) cancels what runs at once; clean-up is still waited for."""
    async with memory_server(http_app(forever), recorder=recorder) as server:
        client = await asked(server)
        server.server.shutdown(grace=0)
        assert await client.receive_rest() == b""
        await trio.sleep(1)
        assert recorder.stopped_after == 0


async def test_timeout_graceful_shutdown_may_be_zero(autojump_clock, recorder):
    """With timeout_graceful_shutdown=0 a stop is a cancellation."""
    async with memory_server(http_app(forever), recorder=recorder, timeout_graceful_shutdown=0) as server:
        await asked(server)
        server.server.shutdown()
        await trio.sleep(1)
        assert recorder.stopped_after == 0


async def test_shutdown_again_with_a_shorter_grace(autojump_clock, recorder):
    """A second shutdown() with a grace sets the deadline anew; one without leaves it as it is."""
    async with memory_server(http_app(forever), recorder=recorder, timeout_graceful_shutdown=30) as server:
        await asked(server)
        server.server.shutdown()
        await trio.sleep(5)
        server.server.shutdown()
        await trio.sleep(5)
        server.server.shutdown(grace=3)
        server.server.shutdown()
        await trio.sleep(60)
        assert recorder.stopped_after == 13


# Retire


def retire(server: RunningServer) -> None:
    server.server._context.drain.begin(DrainKind.RETIRE)


async def test_retire_keeps_an_idle_connection_for_one_more_request(autojump_clock, recorder):
    """On a retire idle connections stay; their next request is answered with Connection: close, and then they close."""
    async with memory_server(respond(), recorder=recorder) as server:
        client = await server.connect()
        await client.get()
        retire(server)
        await trio.sleep(10)
        answer = await client.get()
        assert (answer.status, answer.headers[b"connection"]) == (200, b"close")
        assert await client.receive_rest() == b""
        await trio.sleep(1)
        assert recorder.stopped_after == 10


async def test_retire_closes_idle_connections_at_the_deadline(autojump_clock, recorder):
    """Connections that stay idle are closed when the grace is over."""
    async with memory_server(respond(), recorder=recorder, timeout_graceful_shutdown=20) as server:
        client = await server.connect()
        await client.get()
        retire(server)
        start = trio.current_time()
        assert await client.receive_rest() == b""
        assert trio.current_time() - start == 20
        await trio.sleep(1)
        assert recorder.stopped_after == 20


async def test_retire_lets_running_requests_finish(autojump_clock):
    """A running request finishes with Connection: close, as on a stop."""
    async with memory_server(waits(5)) as server:
        client = await asked(server)
        retire(server)
        received = await client.receive_rest()
        assert b"connection: close" in received.lower()
        assert received.endswith(b"finished")


async def test_retire_may_become_a_stop(autojump_clock, recorder):
    """A stop after a retire closes the idle connections that were left."""
    async with memory_server(respond(), recorder=recorder) as server:
        client = await server.connect()
        await client.get()
        retire(server)
        await trio.sleep(4)
        server.server.shutdown()
        assert await client.receive_rest() == b""
        await trio.sleep(1)
        assert recorder.stopped_after == 4
        assert recorder.phases.count(Phase.DRAINING) == 1


async def test_a_retire_does_not_soften_a_stop(autojump_clock, recorder):
    """After a stop a retire changes nothing."""
    async with memory_server(waits(5), recorder=recorder) as server:
        client = await asked(server)
        server.server.shutdown()
        retire(server)
        assert (await client.receive_rest()).endswith(b"finished")
        await trio.sleep(1)
        assert recorder.stopped_after == 5


# What starts it, and what is said of it


async def test_limit_max_requests_stops_the_server(autojump_clock, recorder):
    """After limit_max_requests requests the server drains by itself."""
    async with memory_server(respond(), recorder=recorder, limit_max_requests=2) as server:
        client = await server.connect()
        assert b"connection" not in (await client.get()).headers
        assert (await client.get()).headers[b"connection"] == b"close"
        await trio.sleep(1)
        assert recorder.phases[-1] is Phase.STOPPED


async def test_describe_waiting(autojump_clock):
    """describe_waiting says what a stop would wait for: requests and the oldest of them, connections, or nothing."""
    async with memory_server(http_app(forever)) as server:
        assert server.server.describe_waiting() == "nothing"
        await asked(server, b"")
        assert server.server.describe_waiting() == "1 connection"
        await asked(server, b"")
        assert server.server.describe_waiting() == "2 connections"
        await asked(server, b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        assert server.server.describe_waiting() == "1 request, oldest GET /events 0 s"
        # Before the connections that have sent nothing are closed.
        await trio.sleep(5)
        await asked(server, b"POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        await trio.sleep(30)
        assert server.server.describe_waiting() == "2 requests, oldest GET /events 35 s"


async def test_a_handshake_in_progress_has_one_more_second(tmp_path):
    """A TLS handshake that a client does not finish holds up a stop for a second, not for timeout_tls_handshake."""
    recorder = TimedRecorder()
    pem = tmp_path / "both.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    async with socket_server(respond(), recorder=recorder, ssl_certfile=str(pem)) as server:
        client = await server.connect()
        try:
            with trio.fail_after(5):
                while not server.server.statistics().connections:
                    await trio.sleep(0.01)
                server.server.shutdown()
                while Phase.STOPPED not in recorder.phases:
                    await trio.sleep(0.01)
        finally:
            await trio.aclose_forcefully(client.stream)
    assert recorder.stopped_after < 3


async def test_events_after_the_drain_began(autojump_clock):
    """A client with two pipelined requests gets the first answer, with Connection: close, and no second."""
    async with memory_server(waits(2)) as server:
        client = await asked(server, REQUEST * 2)
        server.server.shutdown()
        received = await client.receive_rest()
        assert received.count(b"HTTP/1.1 200") == 1
        assert len(server.records) == 1


async def test_h11_agrees_that_the_connection_closes(autojump_clock):
    """To a client made of h11 the connection is closed after the answer during a drain."""
    async with memory_server(waits(2)) as server:
        client = await server.connect()
        await client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]), h11.EndOfMessage())
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        assert (await client.answer()).body == b"finished"
        assert client.h11.their_state in (h11.CLOSED, h11.MUST_CLOSE)
