"""How often a WebSocket's messages make the server read and write: system calls, counted where they are made."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FrameType

import pytest
import trio
import trio.testing
from wsproto.events import Ping, Pong

from trioserve import ClientDisconnected
from trioserve.asgi.outbound import GATHERED_AT_MOST
from trioserve.net.reactor import SUPPORTED

from .websocket_client import frame, websocket
from .websocket_servers import ON_EACH_KIND, Side, Stage, accepting, echo, server_on

pytestmark = [
    pytest.mark.timeout(20),
    pytest.mark.skipif(not SUPPORTED, reason="elsewhere Trio's sockets do it"),
]

TEXT, PING = 1, 9


@contextmanager
def system_calls() -> Iterator[Counter[str]]:
    """Count what a server's sockets are asked meanwhile: "send" and "recv"."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, called: object) -> None:
        is_ours = frame.f_code.co_filename.endswith(("socket_transport.py", "socket_writer.py"))
        if is_ours and event == "c_call" and isinstance(called, BuiltinFunctionType):
            calls[called.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


# Writing. The clock stands still, so that a machine that is slow between two sends makes no difference.


@pytest.mark.parametrize("count", [2, 10, GATHERED_AT_MOST + 1])
async def test_messages_without_a_wait_between_make_two_writes(mock_clock, count):
    """However many messages are sent before the application waits, they go out at once in two writes, in order."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        with system_calls() as calls:
            for number in range(count):
                await side.say(f"message {number}")
            assert calls["send"] == 1
            for number in range(count):
                assert await client.receive() == f"message {number}"
        assert calls["send"] == 2


async def test_a_message_alone_is_written_before_send_returns(mock_clock):
    """An answer is not put off: not after a receive that waited, and not after a pause."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        with system_calls() as calls:
            for number in range(1, 4):
                await client.send_text("question")
                assert await side.hear() == "question"
                await side.say("answer")
                assert calls["send"] == number
            await side.say("gathered")
            assert calls["send"] == 3
            await trio.testing.wait_all_tasks_blocked()
            assert calls["send"] == 4
            mock_clock.jump(1)
            await side.say("after a pause")
            assert calls["send"] == 5


async def test_an_answer_to_what_was_read_ahead_is_written_at_once(mock_clock):
    """Nor is one put off when its question came while the application did something else."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        with system_calls() as calls:
            for number in range(1, 4):
                await client.send_text("question")
                await trio.testing.wait_all_tasks_blocked()
                assert await side.hear() == "question"
                await side.say("answer")
                assert calls["send"] == number


async def test_the_next_turn_of_the_loop_writes_what_was_gathered(mock_clock):
    """A message that is gathered is late by one turn: a task that sends, and then yields once, finds it written."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server):
        side = await stage.next()
        with system_calls() as calls:
            for _ in range(3):
                await side.say("x")
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()  # tasks of one turn run in any order
            assert calls["send"] == 2


@ON_EACH_KIND
async def test_order_among_messages_pongs_and_a_close(kind, mock_clock):
    """What is sent later comes later, whatever was gathered when."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for text in ("one", "two", "three"):
            await side.say(text)
        assert [await client.receive() for _ in range(3)] == ["one", "two", "three"]
        await client.raw(frame(TEXT, b"question") + frame(PING, b"x"))
        assert await side.hear() == "question"
        for text in ("four", "five"):
            await side.say(text)
        await side.close(4000)
        assert await client.next_event() == Pong(payload=bytearray(b"x"))
        assert [await client.receive() for _ in range(2)] == ["four", "five"]
        assert await client.receive_close() == (4000, "")


async def test_a_pong_goes_out_behind_the_messages_before_it(mock_clock):
    """A ping that is read while messages are gathered is answered in the same write, behind them."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.hear)
            await trio.testing.wait_all_tasks_blocked()
            await side.say("one")
            await side.say("two")
            await client.send(Ping(payload=b"x"))
            assert await client.receive() == "one"
            assert await client.receive() == "two"
            assert await client.next_event() == Pong(payload=bytearray(b"x"))
            nursery.cancel_scope.cancel()


async def test_a_close_goes_out_with_the_messages_before_it(mock_clock):
    """Messages and the close behind them make two writes."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        with system_calls() as calls:
            for text in ("one", "two", "three"):
                await side.say(text)
            await side.close(4000)
            assert [await client.receive() for _ in range(3)] == ["one", "two", "three"]
            assert await client.receive_close() == (4000, "")
        assert calls["send"] == 2


@ON_EACH_KIND
async def test_what_was_gathered_goes_out_when_all_is_cancelled(kind, mock_clock):
    """A send that has returned has been sent, although the server is cancelled before it was written."""
    stage = Stage()
    async with server_on(kind, stage) as server, websocket(server) as client:
        side = await stage.next()
        for text in ("one", "two", "three"):
            await side.say(text)
        server.cancel()
        with trio.CancelScope(shield=True):
            assert [await client.receive() for _ in range(3)] == ["one", "two", "three"]
            assert (await client.receive_close())[0] == 1012


@ON_EACH_KIND
async def test_what_was_gathered_goes_out_when_the_application_returns(kind, mock_clock):
    """Messages sent right before the end of the handler arrive before the close."""

    async def handler(side: Side) -> None:
        for text in ("one", "two", "three"):
            await side.say(text)

    async with server_on(kind, accepting(handler)) as server, websocket(server) as client:
        assert [await client.receive() for _ in range(3)] == ["one", "two", "three"]
        assert await client.receive_close() == (1000, "")


async def test_sending_without_end_lets_others_run(mock_clock):
    """An application that sends small messages and never waits yields once so many are gathered."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        async with trio.open_nursery() as nursery:
            turns = 0

            async def count_turns() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            nursery.start_soon(count_turns)
            for number in range(10 * GATHERED_AT_MOST):
                await side.say(str(number))
            assert turns >= 4  # tasks of one turn run in any order
            nursery.cancel_scope.cancel()
        for number in range(10 * GATHERED_AT_MOST):
            assert await client.receive() == str(number)


async def test_a_cancelled_task_sends_no_more_once_enough_is_gathered(mock_clock):
    """The yield is before the message, which is sent whole or not at all."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        scope = trio.CancelScope()

        async def cancel() -> None:
            scope.cancel()

        sent = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            with scope:
                while True:
                    await side.say(str(sent))
                    sent += 1
        assert sent >= GATHERED_AT_MOST
        for number in range(sent):
            assert await client.receive() == str(number)
        await side.say("the next")
        assert await client.receive() == "the next"


async def test_sends_raise_once_the_client_has_left(mock_clock):
    """Not later than the turn after it was noticed, although messages are only gathered at first."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        side = await stage.next()
        await trio.aclose_forcefully(client.stream)
        with pytest.raises(ClientDisconnected):
            while True:
                await side.say("x")
                await side.say("y")
                await trio.lowlevel.checkpoint()
        assert await side.hear() == (1006, "")


# Reading


@ON_EACH_KIND
async def test_frames_of_one_packet_are_read_in_one_wake_up(kind):
    """Many messages in one packet cost one read and one wake-up, and their answers two writes."""
    packet = b"".join(frame(TEXT, b"message %d" % number) for number in range(10))
    async with server_on(kind, accepting(echo)) as server, websocket(server) as client:
        await trio.testing.wait_all_tasks_blocked(0.01)
        with system_calls() as calls:
            await client.raw(packet)
            for number in range(10):
                assert await client.receive() == f"message {number}"
        if kind == "socket":
            assert calls["recv"] == 1
            assert calls["send"] <= 2
