"""Every deadline of a connection, in virtual time and to the second."""

from __future__ import annotations

from functools import partial
from math import inf

import pytest
import trio
import trio.testing

from trioserve import serve_stream
from trioserve.config import Config
from trioserve.errors import ClientDisconnected, WriteTimeout
from trioserve.logs import Outcome
from trioserve.server import serve_observed
from trioserve.testing.memory_server import MemoryListener
from trioserve.types import Receive, Scope, Send

from .support import Client, Recorder, http_app, memory_server, read_body, respond, send_text, socket_server

pytestmark = pytest.mark.both_codecs

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n"

Clock = trio.testing.MockClock


class Stopwatch:
    """Seconds of virtual time since it was made."""

    def __init__(self) -> None:
        self._start = trio.current_time()

    @property
    def seconds(self) -> float:
        return round(trio.current_time() - self._start, 6)


async def sleep_forever(scope: Scope, receive: Receive, send: Send) -> None:
    await trio.sleep_forever()


async def stream_forever(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    await trio.sleep_forever()


def leave_half(client: Client) -> None:
    """Send a FIN: the client will send no more, and still reads."""
    assert isinstance(client.stream, trio.StapledStream)
    client.stream.send_stream.close()


# Request head


async def test_a_silent_client_is_let_go_after_the_head_s_time(autojump_clock: Clock) -> None:
    """A connection on which nothing comes closes timeout_request_head seconds after accept, without a word."""
    async with memory_server(respond()) as server:
        client, watch = await server.connect(), Stopwatch()
        assert await client.receive_rest() == b""
        assert watch.seconds == 10


async def test_the_first_head_has_its_time_from_accept(autojump_clock: Clock) -> None:
    """A first head that is not whole timeout_request_head seconds after accept gets 408."""
    async with memory_server(respond(), timeout_request_head=4) as server:
        client, watch = await server.connect(), Stopwatch()
        await trio.sleep(1)
        await client.raw(GET[:-1])
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 4
        assert server.records[0].outcome is Outcome.DEADLINE


async def test_single_bytes_do_not_renew_the_head_s_time(autojump_clock: Clock) -> None:
    """One byte every nine seconds: the head's time is absolute."""
    async with memory_server(respond()) as server, trio.open_nursery() as nursery:
        client, watch = await server.connect(), Stopwatch()

        async def trickle() -> None:
            for byte in GET:
                await client.raw(bytes([byte]))
                await trio.sleep(9)

        nursery.start_soon(trickle)
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 10
        nursery.cancel_scope.cancel()


async def test_a_later_head_has_its_time_from_its_first_byte(autojump_clock: Clock) -> None:
    """Between requests the keep-alive time runs, and from the first byte of the next head the head's own."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.get()
        await trio.sleep(60)
        watch = Stopwatch()
        await client.raw(GET[:5])
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 10


async def test_a_head_that_came_with_the_last_request_has_its_time_from_there(autojump_clock: Clock) -> None:
    """Half a head that was pipelined has begun when the request before it was answered."""
    async with memory_server(respond()) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(GET + GET[:5])
        assert b"HTTP/1.1 408 " in await client.receive_rest()
        assert watch.seconds == 10


async def test_empty_lines_are_no_head(autojump_clock: Clock) -> None:
    """Empty lines alone do not make a 408; the first head's time runs all the same."""
    async with memory_server(respond()) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(b"\r\n")
        assert await client.receive_rest() == b""
        assert watch.seconds == 10


# Keep-alive


async def test_an_idle_connection_closes_after_the_keep_alive_time(autojump_clock: Clock) -> None:
    """After an answered request an idle client is let go after timeout_keep_alive seconds, without a response."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await trio.sleep(5)
        await client.get()
        watch = Stopwatch()
        assert await client.receive_rest() == b""
        assert watch.seconds == 75


async def test_each_request_renews_the_keep_alive_time(autojump_clock: Clock) -> None:
    """The keep-alive time runs from the last response."""
    async with memory_server(respond(), timeout_keep_alive=5) as server:
        client = await server.connect()
        for _ in range(5):
            await client.get()
            await trio.sleep(4)
        watch = Stopwatch()
        assert await client.receive_rest() == b""
        assert watch.seconds == 1


async def test_a_keep_alive_time_of_nothing_still_serves_what_is_there(autojump_clock: Clock) -> None:
    """With timeout_keep_alive=0 a connection closes after its response, unless the next request is already there."""
    async with memory_server(respond(), timeout_keep_alive=0) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(GET + GET)
        assert (await client.receive_rest()).count(b"Hello, world!") == 2
        assert watch.seconds == 0


# Body


async def test_a_body_that_does_not_come_gets_408(autojump_clock: Clock) -> None:
    """The application gets http.disconnect and the client 408 when no body came for timeout_request_body seconds."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])

    async with memory_server(http_app(app)) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(POST)
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 30
        assert seen == ["http.disconnect"]
        assert server.errors == []
        assert [(one.status, one.outcome) for one in server.records] == [(408, Outcome.DEADLINE)]


async def test_a_body_is_given_time_as_long_as_it_comes(autojump_clock: Clock) -> None:
    """Every piece of the body renews its time, where no rate is asked for."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, await read_body(receive))

    async with memory_server(http_app(app), limit_request_body_rate=None) as server:
        client = await server.connect()
        await client.raw(POST)
        for byte in b"hello":
            await trio.sleep(29)
            await client.raw(bytes([byte]))
        assert (await client.stream.receive_some()).endswith(b"hello")


async def drip(client: Client, piece: bytes, times: int) -> None:
    """Send a piece every second, until the server takes no more."""
    try:
        for _ in range(times):
            await trio.sleep(1)
            await client.raw(piece)
    except trio.BrokenResourceError:
        pass


async def test_a_body_that_comes_too_slowly_gets_408(autojump_clock: Clock) -> None:
    """After 30 s of waiting a client that drips a byte a second is let go, whatever it still has to send."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

    async with memory_server(http_app(app)) as server, trio.open_nursery() as nursery:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n")
        nursery.start_soon(drip, client, b"x", 1000)
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 30
        assert [(one.status, one.outcome) for one in server.records] == [(408, Outcome.DEADLINE)]


async def test_a_body_that_comes_fast_enough(autojump_clock: Clock) -> None:
    """Who keeps to the rate may take as long as the body is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, str(len(await read_body(receive))))

    async with memory_server(http_app(app), limit_request_body_rate=9) as server, trio.open_nursery() as nursery:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n")
        nursery.start_soon(drip, client, b"x" * 10, 100)
        assert (await client.stream.receive_some()).endswith(b"1000")
        assert watch.seconds == 100


async def test_a_body_that_slows_down_gets_408(autojump_clock: Clock) -> None:
    """What came fast at first buys time for what comes slowly: the rate is that of the whole body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

    async with memory_server(http_app(app), limit_request_body_rate=10) as server, trio.open_nursery() as nursery:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(b"x" * 600)
        nursery.start_soon(drip, client, b"x", 100)
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 66.6  # 600 bytes are worth 60 s, and the 66 that came meanwhile another 6.6


async def test_a_longer_time_for_the_body_is_one_for_its_rate_too(autojump_clock: Clock) -> None:
    """Who allows long pauses has them, whatever the rate."""
    async with memory_server(http_app(read_all), timeout_request_body=600) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(POST)
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 408 ")
        assert watch.seconds == 600


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    await read_body(receive)


async def test_time_that_the_application_takes_is_not_the_client_s(autojump_clock: Clock) -> None:
    """Only while the application waits for its body can a client be too slow."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        for _ in range(5):
            await trio.sleep(100)
            body += (await receive())["body"]
        await send_text(send, body)

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(POST)
        for byte in b"hello":
            await trio.sleep(101)
            await client.raw(bytes([byte]))
        assert (await client.stream.receive_some()).endswith(b"hello")


async def test_the_body_s_time_runs_only_while_the_application_waits(autojump_clock: Clock) -> None:
    """An application may take its time before it asks for the body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(100)
        await send_text(send, await read_body(receive))

    async with memory_server(http_app(app)) as server:
        assert (await (await server.connect()).request("POST", body=b"hello")).body == b"hello"


async def test_the_time_of_an_earlier_wait_is_over_with_it(mock_clock: Clock) -> None:
    """An upload that always has more for a slow application is not too slow, however long it takes.

    The server, which never waits for it, yields now and then; what passes then is the deadline of the last wait it had.
    """
    size = 3_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received, more = 0, True
        while more:
            message = await receive()
            assert message["type"] == "http.request", f"{message} after {received} bytes"
            received += len(message["body"])
            more = message["more_body"]
            mock_clock.jump(5)  # of hard work
        await send_text(send, str(received))

    with trio.fail_after(3600):
        async with socket_server(http_app(app), timeout_request_body=10, timeout_request_head=10) as server:
            client = await server.connect()
            async with client.stream:
                assert (await client.request("POST", body=b"x" * size)).body == str(size).encode()
            assert mock_clock.current_time() > 100


async def test_a_late_body_cuts_a_response_that_has_begun(autojump_clock: Clock) -> None:
    """Where the response has begun there is no 408: it is cut."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"

    async with memory_server(http_app(app)) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(POST)
        assert (await client.receive_rest()).endswith(b"5\r\nbegun\r\n")
        assert watch.seconds == 30
        assert server.records[0].outcome is Outcome.DEADLINE


async def test_a_handler_that_ignores_a_late_body_is_cancelled_after_the_grace(autojump_clock: Clock) -> None:
    """After a 408 the handler has nobody to answer: it is cancelled as if its client had left."""
    cancelled: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(watch.seconds)

    async with memory_server(http_app(app)) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(POST)
        await trio.sleep(60)
        assert cancelled == [33]


# Write


class NarrowListener(MemoryListener):
    """A listener whose clients take nothing until they read: a sender waits as on a full socket."""

    def connect(self) -> trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]:
        client, server = trio.testing.lockstep_stream_pair()
        self._send.send_nowait(server)
        return client


async def narrow_client(nursery: trio.Nursery, app: object, **options: object) -> tuple[Client, Outcomes]:
    """A client of a server of its own over streams without any buffer."""
    client, server_end = trio.testing.lockstep_stream_pair()
    outcomes = Outcomes()
    nursery.start_soon(outcomes.serve, app, server_end, options)
    return Client(client), outcomes


class Outcomes:
    """Serves one stream, and says when that was over."""

    def __init__(self) -> None:
        self.ended_at: float | None = None

    async def serve(self, app: object, stream: trio.abc.Stream, options: dict[str, object]) -> None:
        await serve_stream(app, stream, lifespan="off", **options)  # type: ignore[arg-type]
        self.ended_at = trio.current_time()


async def test_a_client_that_takes_nothing_is_given_up(autojump_clock: Clock) -> None:
    """When the client took nothing for timeout_write seconds send() raises an OSError, and the connection closes."""
    raised: list[tuple[float, Exception]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        try:
            await send({"type": "http.response.body", "body": b"x" * 1000})
        except OSError as error:
            raised.append((watch.seconds, error))
            raise

    async with trio.open_nursery() as nursery:
        client, outcomes = await narrow_client(nursery, app)
        await client.raw(GET)
        watch = Stopwatch()
        await trio.sleep(40)
        ((seconds, error),) = raised
        assert seconds == 30
        assert type(error) is WriteTimeout
        assert outcomes.ended_at is not None


async def test_a_client_that_takes_something_has_more_time(autojump_clock: Clock) -> None:
    """Every piece that the client takes renews the write's time, also within one large piece of the body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x" * 1_000_000})

    async with trio.open_nursery() as nursery:
        client, _ = await narrow_client(nursery, app)
        await client.raw(GET)
        watch = Stopwatch()
        received = 0
        while received < 1_000_000:
            await trio.sleep(29)
            received += len(await client.stream.receive_some())
        assert watch.seconds > 60
        await client.aclose()


async def test_a_write_that_timed_out_is_not_the_application_s_error(autojump_clock: Clock) -> None:
    """An application that lets the OSError of a stalled client through has done nothing wrong."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"x" * 1000})

    recorder, listener = Recorder(), NarrowListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_observed, http_app(app), Config(), listeners=[listener], observer=recorder))
        client = Client(listener.connect())
        await client.raw(GET)
        await trio.sleep(40)
        assert recorder.errors == []
        assert [one.outcome for one in recorder.records] == [Outcome.DEADLINE]
        nursery.cancel_scope.cancel()


# The whole request


async def test_a_request_that_takes_too_long_gets_504(autojump_clock: Clock) -> None:
    """After timeout_request seconds the handler is cancelled, and the client gets 504."""
    async with memory_server(http_app(sleep_forever), timeout_request=20) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(GET)
        answer = await client.receive_rest()
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"connection: close" in answer
        assert watch.seconds == 20
        assert [(one.status, one.outcome) for one in server.records] == [(504, Outcome.DEADLINE)]
        assert server.errors == []


async def test_a_response_that_takes_too_long_is_cut(autojump_clock: Clock) -> None:
    """Where the response has begun it is cut instead."""
    async with memory_server(http_app(stream_forever), timeout_request=20) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.raw(GET)
        assert (await client.receive_rest()).endswith(b"5\r\nbegun\r\n")
        assert watch.seconds == 20
        assert server.records[0].outcome is Outcome.DEADLINE


async def test_each_request_has_its_own_time(autojump_clock: Clock) -> None:
    """timeout_request runs from each request's head."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(19)
        await send_text(send, b"in time")

    async with memory_server(http_app(app), timeout_request=20) as server:
        client = await server.connect()
        for _ in range(3):
            assert (await client.get()).body == b"in time"


async def test_a_complete_response_is_in_time(autojump_clock: Clock) -> None:
    """What an application does after its response is complete is not cut by timeout_request."""
    finished: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, b"complete")
        await trio.sleep(100)
        finished.append(watch.seconds)

    async with memory_server(http_app(app), timeout_request=20) as server:
        client, watch = await server.connect(), Stopwatch()
        await client.get()
        await trio.sleep(200)
        assert finished == [100]


async def test_a_handler_may_clean_up_before_its_504(autojump_clock: Clock) -> None:
    """The 504 is said after the handler's own clean-up."""
    cleaned: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cleaned.append(True)

    async with memory_server(http_app(app), timeout_request=20) as server:
        client = await server.connect()
        await client.raw(GET)
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 504 ")
        assert cleaned == [True]


async def test_an_error_in_the_clean_up_is_recorded(autojump_clock: Clock) -> None:
    """What a cancelled handler raises besides the cancellation is one record, and the client still gets its 504."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("clean-up failed")

            nursery.start_soon(fail)
            await trio.sleep_forever()

    async with memory_server(http_app(app), timeout_request=20) as server:
        client = await server.connect()
        await client.raw(GET)
        assert (await client.receive_rest())[9:12] in (b"504", b"500")
        assert len(server.errors) == 1


# Grace after the client left


def timed(watch: list[Stopwatch], ends: list[float], *, respond_first: bool = False) -> object:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        watch.append(Stopwatch())
        if respond_first:
            await send_text(send, b"complete")
        try:
            await trio.sleep(1000)
        finally:
            ends.append(watch[-1].seconds)

    return http_app(app)


@pytest.mark.parametrize(("grace", "expected"), [(3, 8), (0, 5), (7, 12), (None, 1000)])
async def test_a_handler_whose_client_left_is_cancelled_after_the_grace(
    autojump_clock: Clock, grace: float | None, expected: float
) -> None:
    """timeout_disconnect_grace seconds after the client left its handler is cancelled; None: never."""
    watch: list[Stopwatch] = []
    ends: list[float] = []
    async with memory_server(timed(watch, ends), timeout_disconnect_grace=grace) as server:  # type: ignore[arg-type]
        client = await server.connect()
        await client.raw(GET)
        await trio.sleep(5)
        await client.aclose()
        await trio.sleep(1100)
        assert ends == [expected]
        assert [one.outcome for one in server.records] == [Outcome.CLIENT_LEFT]
        assert server.errors == []


async def test_the_default_grace_is_three_seconds(autojump_clock: Clock) -> None:
    """A half-closing client counts as left, too: the clock runs from its FIN."""
    watch: list[Stopwatch] = []
    ends: list[float] = []
    async with memory_server(timed(watch, ends)) as server:  # type: ignore[arg-type]
        client = await server.connect()
        await client.raw(GET)
        leave_half(client)
        assert await client.receive_rest() == b""
        assert ends == [3]


async def test_a_handler_that_ends_within_the_grace_is_not_cancelled(autojump_clock: Clock) -> None:
    """A half-closing client gets its answer if it is ready within the grace."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(2.5)
        await send_text(send, b"in time")

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        leave_half(client)
        assert (await client.receive_rest()).endswith(b"in time")


async def test_nothing_is_cancelled_once_the_response_is_complete(autojump_clock: Clock) -> None:
    """Background tasks run on when their client has left after the response."""
    watch: list[Stopwatch] = []
    ends: list[float] = []
    async with memory_server(timed(watch, ends, respond_first=True)) as server:  # type: ignore[arg-type]
        client = await server.connect()
        await client.get()
        await client.aclose()
        await trio.sleep(1100)
        assert ends == [1000]


async def test_a_response_completed_within_the_grace_ends_it(autojump_clock: Clock) -> None:
    """The grace clock stops when the response becomes complete."""
    ends: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        await send_text(send, b"complete")
        await trio.sleep(100)
        ends.append(trio.current_time())

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        leave_half(client)
        await trio.sleep(200)
        assert len(ends) == 1


async def test_each_pipelined_request_of_a_client_that_left_has_its_grace(autojump_clock: Clock) -> None:
    """Two requests and a FIN: both are served, each with its own grace from its beginning."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(2)
        await send_text(send, b"served")

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET + GET)
        leave_half(client)
        assert (await client.receive_rest()).count(b"served") == 2


async def test_timeout_request_counts_while_the_grace_runs(autojump_clock: Clock) -> None:
    """Whichever of the two deadlines comes first ends the handler."""
    watch: list[Stopwatch] = []
    ends: list[float] = []
    app = timed(watch, ends)
    async with memory_server(app, timeout_request=6, timeout_disconnect_grace=3) as server:  # type: ignore[arg-type]
        client = await server.connect()
        await client.raw(GET)
        await trio.sleep(5)
        await client.aclose()
        await trio.sleep(100)
        assert ends == [6]


# Shutdown


async def test_running_requests_have_the_grace_of_a_shutdown(autojump_clock: Clock) -> None:
    """A stop cancels handlers timeout_graceful_shutdown seconds later; their connections just close."""
    ends: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append(watch.seconds)

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        await trio.testing.wait_all_tasks_blocked()
        watch = Stopwatch()
        server.server.shutdown()
        assert await client.receive_rest() == b""
        assert ends == [30]
        assert [(one.status, one.outcome) for one in server.records] == [(None, Outcome.SHUTDOWN)]


async def test_send_after_the_client_left_raises_in_the_grace(autojump_clock: Clock) -> None:
    """A client that closed altogether refuses the write: send() raises ClientDisconnected, an OSError."""
    raised: list[Exception] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        try:
            await send_text(send, b"nobody reads this")
        except OSError as error:
            raised.append(error)
            raise

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(GET)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error) for error in raised] == [ClientDisconnected]
        assert server.errors == []


async def test_an_idle_server_sets_no_deadline(autojump_clock: Clock) -> None:
    """Without connections nothing wakes: the next deadline of the program is infinitely far."""
    async with memory_server(respond()):
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == inf


async def test_a_client_that_was_given_up_has_left(autojump_clock: Clock) -> None:
    """When a write has timed out in one task, another that listens gets http.disconnect: nobody waits for ever."""
    heard: list[tuple[str, float]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)

        async def talk() -> None:
            await send({"type": "http.response.start", "status": 200})
            with pytest.raises(WriteTimeout):
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            heard.append(((await receive())["type"], watch.seconds))

    async with trio.open_nursery() as nursery:
        client, _ = await narrow_client(nursery, app)
        await client.raw(GET)
        watch = Stopwatch()
        await trio.sleep(100)
        await client.aclose()
        assert heard == [("http.disconnect", 30)]
