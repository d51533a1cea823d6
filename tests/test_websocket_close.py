"""The end of a WebSocket: who closes it and how, what the application hears, and when its handler is cancelled."""

from __future__ import annotations

import gc
import socket
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from wsproto.events import CloseConnection, Ping, Pong

from trioserve import ClientDisconnected
from trioserve.asgi.session import WebSocketSession
from trioserve.logs import Outcome, WebSocketRecord

from .support import RunningServer
from .websocket_client import WebSocketClient, frame, websocket, websocket_app
from .websocket_servers import ON_EACH_KIND, ON_EACH_NETWORK, Side, Stage, Stopwatch, accepting, server_on

pytestmark = pytest.mark.timeout(20)

CONTINUATION, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9


def leave_half(client: WebSocketClient) -> None:
    """Send a FIN without a close frame."""
    if isinstance(client.stream, trio.StapledStream):
        client.stream.send_stream.close()
    else:
        assert isinstance(client.stream, trio.SocketStream)
        client.stream.socket.shutdown(socket.SHUT_WR)


async def reset(client: WebSocketClient) -> None:
    stream = client.stream
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def only_record(server: RunningServer) -> WebSocketRecord:
    """The record of the one WebSocket that there is, once it has ended."""
    with trio.fail_after(5):
        while not server.recorder.websockets:
            await trio.sleep(0.005)
    (record,) = server.recorder.websockets
    return record


# The client closes


@ON_EACH_KIND
async def test_the_client_closes(kind):
    """The application hears code and reason, the client gets the same code, and then the connection ends."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        assert await client.close(4321, "Schluß") == (4321, "Schluß")
        await client.wait_eof()
        assert await side.hear() == (4321, "Schluß")


@ON_EACH_KIND
async def test_the_client_closes_while_it_is_sent_messages(kind):
    """An application that sends without a pause is told by send() that this is the end; the client is answered."""
    ends = []

    async def pour(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "news"})
        except ClientDisconnected:
            ends.append(await receive())

    async with server_on(kind, websocket_app(pour)) as server, websocket(server) as client:
        with trio.fail_after(5):
            assert await client.receive() == "news"
            assert await client.close(1000, "enough") == (1000, "enough")
            await client.wait_eof()
        record = await only_record(server)
        assert (record.code, record.outcome) == (1000, Outcome.OK)
    assert ends == [{"type": "websocket.disconnect", "code": 1000, "reason": "enough"}]


async def test_nonsense_instead_of_an_answer():
    """A client that answers the application's close with what is no frame has not answered it: 1006, and the end."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await side.close(4000, "done")
        await client.raw(b"GET / HTTP/1.1\r\n\r\n")
        assert await side.hear() == (1006, "")
        assert await client.receive_close(answers=False) == (4000, "done")
        await client.wait_eof()


class FewSteps(trio.abc.Instrument):
    """Cancels a scope after 3,000 steps of any task: the clock of a test stands still while one spins."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope, self._left = scope, 3000

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


@contextmanager
def few_steps() -> Iterator[None]:
    """The block needs few steps of all tasks together: nobody spins."""
    with trio.CancelScope() as scope:
        instrument = FewSteps(scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(instrument)
    assert not scope.cancelled_caught, "somebody spins"


@pytest.mark.parametrize("begins", ["the application", "the shutdown"])
async def test_a_failure_behind_a_message_is_no_answer_either(autojump_clock, begins):
    """What is no frame ends the wait for the client's answer at once, also behind a message that nobody has taken,
    whether it has come before the close or after it.
    """
    with few_steps():
        await fail_while_closing(begins)


async def fail_while_closing(begins: str) -> None:
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        if begins == "the application":
            await client.raw(frame(TEXT, b"untaken") + frame(3, b""))
            await trio.testing.wait_all_tasks_blocked()
            side.end()
        else:
            await client.raw(frame(TEXT, b"untaken"))
            await trio.testing.wait_all_tasks_blocked()
            server.server.shutdown()
            await trio.testing.wait_all_tasks_blocked()
            await client.raw(frame(3, b""))
        assert (await client.receive_close(answers=False))[0] == (1000 if begins == "the application" else 1012)
        await client.wait_eof()
        assert watch.seconds == 0
        await client.aclose()
        side.end()
        await trio.sleep(1)
        assert server.server.statistics().connections == 0


@ON_EACH_KIND
async def test_a_close_without_a_code(kind):
    """A close without a code is 1005 for the application, and is answered without a code."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(frame(CLOSE, b""))
        assert bytes(await client.stream.receive_some(100)) == b"\x88\x00"
        assert await side.hear() == (1005, "")


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1012, 3000, 4999])
async def test_every_code_is_told(code):
    """Whatever code a client may send is what the application hears, while it waits for a message."""
    heard = []
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()

        async def listen() -> None:
            heard.append(await side.hear())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            assert await client.close(code, "x" * 123) == (code, "x" * 123)
    assert heard == [(code, "x" * 123)]


@ON_EACH_KIND
async def test_messages_before_the_close_are_delivered(kind):
    """What came before the close is received first and in order, however much of it waits; then the disconnect, each
    time it is asked for.
    """
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(100):
            await client.send_text(str(number))
        await client.send(CloseConnection(code=4000))
        assert await side.hear_all() == [*map(str, range(100)), (4000, "")]
        assert [await side.hear() for _ in range(3)] == [(4000, "")] * 3


@ON_EACH_KIND
async def test_messages_before_the_client_vanished_are_delivered(kind):
    """What came before an end without a close is received first, and then the disconnect with 1006."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(100):
            await client.send_text(str(number))
        await client.aclose()
        assert await side.hear_all() == [*map(str, range(100)), (1006, "")]


async def test_nothing_counts_after_a_close():
    """Whatever follows the client's close frame is thrown away, be it messages, another close or nonsense."""
    for after in (frame(TEXT, b"late"), frame(CLOSE, b"\x0f\xa1"), b"\xff" * 1000, frame(PING, b"x") * 1000):
        stage = Stage()
        async with server_on("memory", stage) as server, websocket(server) as client:
            side = await stage.next()
            await client.raw(frame(CLOSE, b"\x0f\xa0") + after)
            assert await client.receive_close(answers=False) == (4000, "")
            await client.raw(after)
            assert await side.hear_all() == [(4000, "")]


@ON_EACH_NETWORK
async def test_a_client_that_goes_on_sending_after_its_close_reads_the_answer(kind):
    """A client that sends on after its close frame still gets the answer, not a reset."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        await stage.next()
        await client.raw(frame(CLOSE, b"\x0f\xa0") + bytes(200_000))
        assert await client.receive_close(answers=False) == (4000, "")


# The client vanishes


@ON_EACH_KIND
@pytest.mark.parametrize("is_busy", [True, False])
async def test_an_end_without_a_close(kind, is_busy):
    """A client that ends its stream without a close frame is 1006, whether the application receives just then or not;
    the record says that it left.
    """
    heard = []
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()

        async def listen() -> None:
            heard.append(await side.hear())

        async with trio.open_nursery() as nursery:
            if not is_busy:
                nursery.start_soon(listen)
                await trio.testing.wait_all_tasks_blocked(0.01)
            await client.stream.aclose()
            if is_busy:
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.start_soon(listen)
        assert heard == [(1006, "")]
        side.end()
        record = await only_record(server)
        assert (record.code, record.outcome) == (1006, Outcome.CLIENT_LEFT)
        assert not server.errors


@ON_EACH_NETWORK
async def test_a_reset(kind):
    """A client that resets its connection is 1006."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.send_text("x")
        assert await side.hear() == "x"
        await reset(client)
        assert await side.hear() == (1006, "")


@pytest.mark.parametrize("half", [True, False])
async def test_the_record_of_a_client_that_left_behind_a_full_queue(autojump_clock, half):
    """A client that leaves while messages of it wait that nobody takes has left: its record says so, though its end
    was never read.
    """
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=1) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(5):
            await client.send_text(str(number))
        if half:
            leave_half(client)
        else:
            await client.aclose()
        await side.has_returned.wait()
        await trio.sleep(1)
        assert [record.outcome for record in server.recorder.websockets] == [Outcome.CLIENT_LEFT]


@pytest.mark.parametrize("kind", ["memory", "socket"])
async def test_half_a_message_at_the_end(kind):
    """A frame that is cut off by the end of the stream is no message."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.raw(frame(TEXT, b"whole") + frame(TEXT, b"half")[:-1])
        leave_half(client)
        assert await side.hear_all() == ["whole", (1006, "")]


# send() afterwards


@pytest.mark.parametrize("end", ["close", "vanish", "failure"])
async def test_send_after_the_end(end):
    """Once the client has closed, left or failed, send() raises ClientDisconnected, an OSError; so does a close. An
    application that lets it through has done nothing wrong.
    """
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        if end == "close":
            await client.close()
        elif end == "vanish":
            await client.aclose()
        else:
            await client.raw(frame(3, b""))
        assert isinstance(await side.hear(), tuple)
        with pytest.raises(ClientDisconnected) as caught:
            await side.say("too late")
        assert isinstance(caught.value, OSError)
        with pytest.raises(ClientDisconnected):
            await side.close()
        side.end(caught.value)
        await trio.testing.wait_all_tasks_blocked()
        assert not server.errors


# The application closes


@ON_EACH_KIND
async def test_the_application_closes(kind):
    """The client gets code and reason; its answer ends the connection at once, and the application may ask for it."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        await side.close(4444, "Schluß")
        assert await client.receive_close() == (4444, "Schluß")
        with trio.fail_after(5):
            await client.wait_eof()
            assert await side.hear() == (4444, "Schluß")


async def test_a_close_without_anything():
    """The default is code 1000 without a reason; None is no reason."""
    for message in ({"type": "websocket.close"}, {"type": "websocket.close", "reason": None}):
        stage = Stage()
        async with server_on("memory", stage) as server, websocket(server) as client:
            await (await stage.next()).send(message)
            assert await client.receive_close() == (1000, "")


async def test_a_long_reason():
    """A reason of more than 123 bytes is cut, at a character."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        await (await stage.next()).close(1000, "ü" * 100)
        assert await client.receive_close() == (1000, "ü" * 61)


async def test_what_comes_after_our_close_is_nothing(autojump_clock):
    """Between our close and the client's answer messages are thrown away, pings not answered, and however many come,
    the answer is found.
    """
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=1) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        await side.close()
        await client.raw((frame(TEXT, b"late") + frame(PING, b"?")) * 1000 + frame(CLOSE, b"\x03\xe8"))
        assert await client.receive_close(answers=False) == (1000, "")
        assert await side.hear_all() == [(1000, "")]
        await client.wait_eof()
        assert watch.seconds == 0


async def test_messages_that_waited_when_the_application_closed(autojump_clock):
    """What had come before the application closed may still be received."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.send_text("1")
        await client.send_text("2")
        await trio.testing.wait_all_tasks_blocked()
        await side.close()
        await client.receive_close()
        assert await side.hear_all() == ["1", "2", (1000, "")]


@pytest.mark.parametrize("kind", ["memory", "socket", "tls"])
async def test_an_application_that_closes_with_a_full_queue(kind):
    """Messages that nobody received do not hold up the closing handshake."""
    stage = Stage()
    async with server_on(kind, stage, ws_max_queue=1) as server, websocket(server) as client:
        side = await stage.next()
        for number in range(5):
            await client.send_text(str(number))
        await trio.testing.wait_all_tasks_blocked(0.01)
        side.end()
        assert await client.receive_close() == (1000, "")
        with trio.fail_after(2):
            await client.wait_eof()


async def test_both_close_at_once(autojump_clock):
    """Two close frames that cross are a whole closing handshake; the application hears of the client's code, and its
    own is in the record.
    """
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        await side.close(4001)
        assert await client.close(4002) == (4001, "")
        await client.wait_eof()
        assert watch.seconds == 0
        assert await side.hear() == (4002, "")
        side.end()
        await trio.testing.wait_all_tasks_blocked()
        (record,) = server.recorder.websockets
        assert (record.code, record.outcome) == (4001, Outcome.OK)


@pytest.mark.parametrize("kind", ["memory", "lockstep"])
async def test_a_client_that_never_answers(autojump_clock, kind):
    """A client that does not answer the close frame is cut after 10 s, whether it reads or not."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        await side.close()
        assert await side.hear() == (1006, "")
        assert watch.seconds == 10
        side.end()
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.receive_close(answers=False))[0] in (1000, 1006)
        await client.wait_eof()
        assert watch.seconds == 10
        assert server.server.statistics().connections == 0


async def test_a_client_that_never_answers_is_reset(autojump_clock):
    """A client that is given up sees a reset, which it cannot take for the end of its stream."""
    autojump_clock.autojump_threshold = 0.01
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        (await stage.next()).end()
        assert await client.receive_close(answers=False) == (1000, "")
        watch = Stopwatch()
        with pytest.raises(trio.BrokenResourceError):
            await client.stream.receive_some(100)
        assert watch.seconds == 10


async def test_a_client_that_does_not_take_its_pongs_is_cut(autojump_clock):
    """An application that returns while pongs wait for a client that does not read: the client is cut after 10 s."""
    stage = Stage()
    async with (
        server_on("lockstep", stage, timeout_write=300, ws_ping_interval=None) as server,
        websocket(server) as client,
        trio.open_nursery() as nursery,
    ):
        side = await stage.next()

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.raw(frame(PING, b"x" * 125) * 10)

        nursery.start_soon(flood)
        await trio.testing.wait_all_tasks_blocked()
        watch = Stopwatch()
        side.end()
        while server.server.statistics().connections:
            await trio.sleep(0.5)
        assert watch.seconds <= 11
        (record,) = server.recorder.websockets
        assert record.duration == 10


async def test_a_client_that_goes_on_instead_of_answering(autojump_clock):
    """The 10 s are not prolonged by what else comes."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client, trio.open_nursery() as nursery:
        watch = Stopwatch()
        side = await stage.next()
        await side.close()

        async def talk() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.send_text("what?")
                    await client.send(Ping())
                    await trio.sleep(0.7)

        client.wsproto.receive_data(b"")
        nursery.start_soon(talk)
        assert await side.hear() == (1006, "")
        assert watch.seconds == 10


@pytest.mark.parametrize("kind", ["memory", "lockstep"])
async def test_a_failed_client_that_never_leaves(autojump_clock, kind):
    """A client that was told why its frames are none is cut in the end, though it neither answers nor closes."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        await client.raw(frame(3, b""))
        assert (await side.hear())[0] == 1002
        assert watch.seconds == 0
        side.end()
        while server.server.statistics().connections:
            await trio.sleep(0.1)
        assert watch.seconds <= 11


# The handler ends


@ON_EACH_KIND
async def test_an_application_that_returns(kind):
    """A handler that returns closes with 1000; the record counts it as fine."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        (await stage.next()).end()
        assert await client.receive_close() == (1000, "")
        await client.wait_eof()
        record = await only_record(server)
        assert (record.code, record.outcome) == (1000, Outcome.OK)
        assert not server.errors


@ON_EACH_KIND
async def test_an_application_that_raises(kind):
    """A handler that raises closes with 1011, its error is reported, and the connection alone ends."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client, websocket(server) as other:
        error = ValueError("oops")
        (await stage.next()).end(error)
        assert await client.receive_close() == (1011, "")
        await client.wait_eof()
        record = await only_record(server)
        assert (record.code, record.outcome) == (1011, Outcome.ERROR)
        assert server.errors == [error]
        await other.close()


async def test_an_application_that_raises_after_its_own_close():
    """An error after the application's own close is reported; the client has had its code already."""
    error = ValueError("late")

    async def handler(side: Side) -> None:
        await side.close(4000)
        raise error

    async with server_on("memory", accepting(handler)) as server, websocket(server) as client:
        assert await client.receive_close() == (4000, "")
        await client.wait_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert server.errors == [error]


async def test_an_application_that_raises_after_the_client_left():
    """An error that is no mere disconnect is reported, though nobody can be told any more."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.close()
        await side.hear()
        error = ValueError("late")
        side.end(error)
        await trio.testing.wait_all_tasks_blocked()
        assert server.errors == [error]


async def test_an_application_that_returns_while_the_client_leaves():
    """A close that finds nobody is no error."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        await reset(client)
        side.end()
        with trio.fail_after(5):
            while server.server.statistics().connections:
                await trio.sleep(0.005)
        assert not server.errors


# The handler is cancelled


@pytest.mark.parametrize("end", ["close", "vanish", "half", "failure"])
@pytest.mark.parametrize("hears", [True, False])
async def test_the_handler_has_its_grace(autojump_clock, end, hears):
    """timeout_disconnect_grace seconds after the client has left the handler is cancelled, whether it has heard of it
    or not.
    """
    stage = Stage()
    async with server_on("memory", stage, timeout_disconnect_grace=5) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        if end == "close":
            await client.close()
        elif end == "vanish":
            await client.aclose()
        elif end == "half":
            leave_half(client)
        else:
            await client.raw(frame(3, b""))
        if hears:
            await side.hear()
        await side.has_returned.wait()
        assert watch.seconds == 5
        assert side.was_cancelled
        assert not server.errors


async def test_the_grace_runs_from_the_first_sign(autojump_clock):
    """A client that has left while messages of it wait for the application has left: the grace runs, and afterwards
    nothing keeps the connection.
    """
    stage = Stage()
    async with server_on("memory", stage, ws_max_queue=1) as server, websocket(server) as client:
        watch = Stopwatch()
        side = await stage.next()
        for number in range(5):
            await client.send_text(str(number))
        leave_half(client)
        await side.has_returned.wait()
        assert watch.seconds == 3
        await client.wait_eof()
        assert watch.seconds == 3
        assert side.was_cancelled


@ON_EACH_KIND
async def test_the_handler_is_cancelled_on_each_kind_of_stream(kind):
    """The end of the stream cancels a handler that is busy."""
    stage = Stage()
    async with server_on(kind, stage, timeout_disconnect_grace=0) as server, websocket(server) as client:
        side = await stage.next()
        await client.aclose()
        await side.has_returned.wait()
        assert side.was_cancelled


async def test_no_grace_is_for_ever(autojump_clock):
    """With timeout_disconnect_grace=None the handler goes on as long as it likes."""
    stage = Stage()
    async with server_on("memory", stage, timeout_disconnect_grace=None) as server, websocket(server) as client:
        side = await stage.next()
        await client.close()
        await trio.sleep(3000)
        assert not side.has_returned.is_set()


@pytest.mark.parametrize("answers", [True, False])
async def test_who_has_closed_is_not_cancelled(autojump_clock, answers):
    """A handler that has closed its WebSocket itself may go on, whatever becomes of the client."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await side.close()
        if answers:
            await client.receive_close()
        await client.aclose()
        await trio.sleep(3000)
        assert not side.has_returned.is_set()
        side.end()
        await side.has_returned.wait()
        assert not side.was_cancelled


async def test_a_handler_that_ends_within_its_grace(autojump_clock):
    """A handler that returns in time is not cancelled."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as client:
        side = await stage.next()
        await client.close()
        await trio.sleep(2.9)
        side.end()
        await side.has_returned.wait()
        assert not side.was_cancelled


def sessions() -> list[WebSocketSession]:
    return [one for one in gc.get_objects() if type(one) is WebSocketSession]


@ON_EACH_KIND
async def test_nothing_of_it_waits_for_the_garbage_collector(kind):
    """Once a WebSocket is closed and its application has ended, what it held is freed at once."""
    stage = Stage()
    gc.collect()
    known = {id(one) for one in sessions()}  # of other tests, which pytest may remember
    gc.disable()
    try:
        async with server_on(kind, stage) as server, websocket(server) as client:
            side = await stage.next()
            await client.send_text("never taken")
            await client.send(Ping())
            assert isinstance(await client.next_event(), Pong)
            (session,) = [weakref.ref(one) for one in sessions() if id(one) not in known]
            await client.close()
            await client.wait_eof()
            side.end()
            del side
            with trio.fail_after(5):
                while server.server.statistics().requests:
                    await trio.lowlevel.checkpoint()
            assert session() is None
    finally:
        gc.enable()
