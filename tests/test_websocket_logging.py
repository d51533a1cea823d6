"""What is told of WebSockets: access lines, records, figures."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from functools import partial

import pytest
import trio
import trio.testing

from trioserve import serve
from trioserve.formatters import JSONFormatter, TextFormatter
from trioserve.logs import (
    Outcome,
    WebSocketRecord,
    access_log,
    log_websocket,
)
from trioserve.testing.memory_server import MemoryListener

from .support import nothing_left
from .websocket_client import WebSocketClient, deflated, frame, open_handshake, websocket
from .websocket_servers import Stage, server_on

pytestmark = pytest.mark.timeout(20)

TEXT = 1

RECORD = WebSocketRecord(
    client="192.0.2.1:5000",
    target='/chat?q="x"',
    code=1000,
    reason="bye",
    received_messages=3,
    received=30,
    sent_messages=4,
    sent=40,
    duration=12.3456789,
    outcome=Outcome.OK,
)


@pytest.fixture
def lines(caplog):
    """Gives the access lines so far."""
    caplog.set_level(logging.INFO, "trioserve.access")
    return lambda: [one.getMessage() for one in caplog.records if one.name == access_log.name]


async def test_a_line_when_it_opens_and_one_when_it_closes(autojump_clock, lines, caplog):
    """The handshake has its line at once, with 101; the close has one with code, duration, messages and bytes both
    ways.
    """
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server, '/chat?q="x"') as client:
        side = await stage.next()
        assert lines() == ['- "GET /chat?q=\\"x\\" HTTP/1.1" 101 0 bytes 0.0 ms first byte 0.0 ms ok']
        await client.send_text("ü")
        await client.send_bytes(b"12345")
        await side.hear()
        await side.hear()
        await side.say("Grüße")
        await trio.sleep(2.5)
        await client.close(4000, "enough")
        await trio.testing.wait_all_tasks_blocked()
        (line,) = lines()[1:]
        ended, counted = line.split(" received ")
        assert ended == '- "WebSocket /chat?q=\\"x\\"" closed 4000 after 2.5 s'
        assert counted == "2 messages 7 bytes sent 1 messages 7 bytes ok"
        (record,) = server.recorder.websockets
        assert caplog.records[-1].websocket is record
        assert record == WebSocketRecord("-", '/chat?q="x"', 4000, "enough", 2, 7, 1, 7, 2.5, Outcome.OK)
        assert [(one.status, one.outcome) for one in server.records] == [(101, Outcome.OK)]


async def test_the_line_names_the_client(lines):
    """Over TCP the line begins with the client's address and port."""
    stage = Stage()
    async with server_on("socket", stage) as server, websocket(server) as client:
        await stage.next()
        assert isinstance(client.stream, trio.SocketStream)
        host, port = client.stream.socket.getsockname()
        await client.close()
        await client.wait_eof()
        with trio.fail_after(5):
            while len(lines()) < 2:
                await trio.sleep(0.005)
        assert re.fullmatch(rf'{host}:{port} "WebSocket /" closed 1000 after 0\.\d s .* ok', lines()[1])


async def test_inflated_bytes_count():
    """A compressed message counts with what it inflates to."""
    stage = Stage()
    field = (b"sec-websocket-extensions", b"permessage-deflate")
    async with server_on("memory", stage) as server, websocket(server, "/", field) as client:
        side = await stage.next()
        await client.raw(frame(TEXT, deflated(b"x" * 1000), rsv=4))
        await side.say(await side.hear())
        await client.receive()
        await client.close()
        await trio.testing.wait_all_tasks_blocked()
        (record,) = server.recorder.websockets
        assert (record.received, record.sent) == (1000, 1000)


async def test_without_an_access_log(lines):
    """access_log=False writes no lines; whoever observes the server is told all the same."""
    stage = Stage()
    async with server_on("memory", stage, access_log=False) as server, websocket(server) as client:
        await stage.next()
        await client.close()
        await trio.testing.wait_all_tasks_blocked()
        assert lines() == []
        assert len(server.recorder.websockets) == 1


async def test_without_an_access_log_or_an_observer(lines):
    """Where nobody is to be told nothing is."""
    stage, listener = Stage(), MemoryListener()
    with nothing_left(), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, stage, listeners=[listener], access_log=False))
            opened = await open_handshake(listener.connect())
            assert isinstance(opened, WebSocketClient)
            await opened.close()
            assert await (await stage.next()).hear() == (1000, "")
            await opened.aclose()
            nursery.cancel_scope.cancel()
    assert lines() == []


async def test_figures():
    """Statistics count WebSockets that are open, also among the requests, and all since the start."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server) as first, websocket(server):
        sides = [await stage.next(), await stage.next()]
        await trio.testing.wait_all_tasks_blocked()
        figures = server.server.statistics()
        assert (figures.websockets, figures.websockets_total, figures.requests) == (2, 2, 2)
        await first.close()
        for side in sides:
            side.end()
        await trio.testing.wait_all_tasks_blocked()
        figures = server.server.statistics()
        assert (figures.websockets, figures.websockets_total, figures.requests) == (1, 2, 1)


async def test_what_a_stop_waits_for(autojump_clock):
    """WebSockets are named beside requests, and the oldest of both with its age."""
    stage = Stage()
    async with server_on("memory", stage) as server, websocket(server, "/chat") as first:
        side = await stage.next()
        await trio.sleep(5)
        assert server.server.describe_waiting() == "1 WebSocket, oldest GET /chat 5 s"
        async with websocket(server, "/other"):
            await trio.sleep(5)
            assert server.server.describe_waiting() == "2 WebSockets, oldest GET /chat 10 s"
            await first.close()
            await trio.testing.wait_all_tasks_blocked()
            # Its handler has not ended.
            assert server.server.describe_waiting() == "1 request and 1 WebSocket, oldest GET /chat 10 s"
            side.end()
            await trio.testing.wait_all_tasks_blocked()
            assert server.server.describe_waiting() == "1 WebSocket, oldest GET /other 5 s"


# Formats


def shown_in(formatter: logging.Formatter, record: WebSocketRecord) -> str:
    """The access line of a record as a formatter writes it."""
    shown = []

    class Keeper(logging.Handler):
        def emit(self, line: logging.LogRecord) -> None:
            shown.append(formatter.format(line))

    keeper, level = Keeper(), access_log.level
    access_log.addHandler(keeper)
    access_log.setLevel(logging.INFO)
    try:
        log_websocket(record)
    finally:
        access_log.removeHandler(keeper)
        access_log.setLevel(level)
    (line,) = shown
    return line


def test_text_format():
    """Text is the line itself; quotes in a target are escaped."""
    assert shown_in(TextFormatter(), RECORD).endswith(
        ' info: 192.0.2.1:5000 "WebSocket /chat?q=\\"x\\"" closed 1000 after 12.3 s'
        " received 3 messages 30 bytes sent 4 messages 40 bytes ok"
    )


def test_json_format():
    """JSON has each value by its name."""
    values = json.loads(shown_in(JSONFormatter(), RECORD))
    assert values["logger"] == "trioserve.access"
    assert {name: values[name] for name in RECORD.to_plain()} == {
        "client": "192.0.2.1:5000",
        "target": '/chat?q="x"',
        "code": 1000,
        "reason": "bye",
        "received_messages": 3,
        "received": 30,
        "sent_messages": 4,
        "sent": 40,
        "duration": 12.345679,
        "outcome": "ok",
    }


def test_a_client_cannot_forge_lines():
    """What is no printable ASCII is escaped."""
    record = dataclasses.replace(RECORD, client="a\nb", target="/\x1b[31m\nforged")
    line = shown_in(TextFormatter(), record)
    assert "\n" not in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("outcome", "color"),
    [
        (Outcome.OK, 32),
        (Outcome.CLIENT_LEFT, 33),
        (Outcome.DEADLINE, 33),
        (Outcome.SHUTDOWN, 33),
        (Outcome.ERROR, 31),
    ],
)
def test_colours(outcome, color):
    """The label has the colour of how it ended."""
    line = shown_in(TextFormatter(use_colors=True), dataclasses.replace(RECORD, outcome=outcome))
    assert f" \x1b[{color}minfo" in line


def test_access_lines_that_are_turned_off(caplog):
    """Nothing is written below the level of the access log."""
    caplog.set_level(logging.WARNING, "trioserve.access")
    log_websocket(RECORD)
    assert not caplog.records
