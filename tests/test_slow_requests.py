"""The line of a request that takes long: once, while it runs, with where it waits."""

from __future__ import annotations

import json
import logging
import re
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing

from trioserve import serve_stream, slow_requests
from trioserve.formatters import JSONFormatter
from trioserve.logs import current_request_id, slow_log
from trioserve.types import Receive, Scope, Send

from .logging_state import loggers  # noqa: F401 - a fixture
from .support import Client, RunningServer, http_app, memory_server, nothing_left, respond, send_text, socket_server
from .websocket_client import handshake_bytes

pytestmark = [pytest.mark.timeout(20)]

HERE = re.escape(__file__)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == slow_log.name]


async def sleeps(scope: Scope, receive: Receive, send: Send) -> None:
    """Sleeps for as many seconds as the path says, and answers."""
    await trio.sleep(float(scope["path"].strip("/")))
    await send_text(send, "x")


async def ask(server: RunningServer, target: str, *, method: str = "GET", body: bytes = b"") -> Client:
    client = await server.connect()
    length = f"Content-Length: {len(body) + 1}\r\n" if body else ""
    await client.raw(f"{method} {target} HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode() + body)
    return client


@pytest.mark.both_codecs
async def test_the_line(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Client, request line, age, whether a response has begun, where and for what it waits: at the limit, and once."""
    async with memory_server(http_app(sleeps), slow_request=5) as server:
        await ask(server, '/60?"')
        await trio.sleep(4.9)
        assert lines(caplog) == []
        await trio.sleep(0.2)
        (line,) = lines(caplog)
        said, where = line.split(", no response yet: ")
        assert said == '- "GET /60?\\" HTTP/1.1" has run for 5.0 s'
        assert re.fullmatch(rf"{HERE}:\d+ in sleeps waits for a sleep to end", where)
        assert caplog.records[-1].levelno == logging.WARNING
        await trio.sleep(100)
    assert len(lines(caplog)) == 1


@pytest.mark.both_codecs
async def test_what_is_in_time_has_none(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a request that ends before the limit has a line, nor one by one on the same connection."""
    async with memory_server(http_app(sleeps), slow_request=5) as server:
        client = await server.connect()
        for _ in range(10):
            await client.get("/4")
        await trio.sleep(30)
    assert lines(caplog) == []


async def test_off_by_default(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Without the option nothing is said."""
    async with memory_server(http_app(sleeps)) as server:
        await (await server.connect()).get("/600")
    assert lines(caplog) == []


@pytest.mark.both_codecs
async def test_each_wait_of_the_server_s_own(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that does not come, a client that does not read, one whose leaving is waited for."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/body" or scope["path"] == "/leave":
            await receive()
            await receive()
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * 100})

    async with memory_server(http_app(handler), slow_request=5) as server:
        await ask(server, "/body", method="POST", body=b"x")
        await trio.sleep(2)
        await ask(server, "/leave")
        await trio.sleep(2)
        client, server_side = trio.testing.lockstep_stream_pair()
        server.listener._send.send_nowait(server_side)
        await client.send_all(b"GET /read HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(6)
        await client.aclose()
    said = r'"\w+ (/\w+) .* 5\.0 s, ([^:]+): .* in .*handler waits for (.*)'
    assert [one.groups() for line in lines(caplog) if (one := re.search(said, line))] == [
        ("/body", "no response yet", "the request body"),
        ("/leave", "no response yet", "the client to leave"),
        ("/read", "response begun", "the client to take what was sent"),
    ]


async def test_many_at_once(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """One line stands for all that are due, names the oldest, and says how many more there are."""
    async with memory_server(http_app(sleeps), slow_request=5) as server:
        for number in range(60, 100):
            await ask(server, f"/{number}")
        await trio.sleep(40)
    (line,) = lines(caplog)
    assert '"GET /60 ' in line
    assert line.endswith(" waits for a sleep to end; and 39 more")


async def test_one_line_a_second(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """What becomes due while nothing may be said is counted in the next line, which one that still runs gets."""
    async with memory_server(http_app(sleeps), slow_request=5) as server:
        for number in range(60, 65):
            await ask(server, f"/{number}")
            await trio.sleep(0.3)
        await trio.sleep(60)
    told = [re.search(r"GET (/\d+) .* run for ([\d.]+) s.* a sleep to end(.*)", line) for line in lines(caplog)]
    assert [one.groups() for one in told if one] == [
        ("/60", "5.0", ""),
        ("/61", "5.7", "; and 2 more"),
        ("/64", "5.8", ""),
    ]


async def test_what_has_ended_before_it_could_be_told(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of requests that became due and ended while nothing might be said there is their number."""
    async with memory_server(http_app(sleeps), slow_request=5) as server:
        await ask(server, "/60")
        await trio.sleep(0.2)
        await ask(server, "/5.1")
        await trio.sleep(5.5)
        assert len(lines(caplog)) == 1
        await trio.sleep(5)
        await ask(server, "/60")
        await trio.sleep(0.2)
        await ask(server, "/5.1")
        await ask(server, "/5.1")
        await trio.sleep(20)
    assert lines(caplog)[1] == "1 more request has taken longer than 5 s"
    assert lines(caplog)[3] == "2 more requests have taken longer than 5 s"
    assert len(lines(caplog)) == 4


async def test_an_idle_server_does_not_wake(autojump_clock: trio.testing.MockClock) -> None:
    """With no request that is in time yet, the clock is at rest: whatever runs has been told of."""

    class Wakes(trio.abc.Instrument):
        count = 0

        def after_io_wait(self, timeout: float) -> None:
            self.count += 1

    wakes = Wakes()
    async with memory_server(http_app(sleeps), slow_request=5, timeout_keep_alive=10000) as server:
        client = await server.connect()
        await client.get("/1")
        await ask(server, "/5000")
        await trio.sleep(10)
        trio.lowlevel.add_instrument(wakes)
        await trio.sleep(1000)
        trio.lowlevel.remove_instrument(wakes)
    assert wakes.count < 10


@pytest.mark.both_codecs
async def test_websockets_do_not_count(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An open WebSocket is no slow request, beside others that are."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await sleeps(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with memory_server(app, lifespan="off", slow_request=5, ws_ping_interval=None) as server:
        stream = await server.connect_stream()
        await stream.send_all(handshake_bytes())
        await trio.sleep(30)
        assert lines(caplog) == []
        await ask(server, "/60")
        await trio.sleep(30)
        assert len(lines(caplog)) == 1


async def test_background_tasks_do_not_count(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What runs on after the response keeps nobody waiting."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, "x")
        await trio.sleep(60)

    async with memory_server(http_app(handler), slow_request=5) as server:
        await (await server.connect()).get()
        await trio.sleep(50)
    assert lines(caplog) == []


async def test_it_carries_the_request_s_id(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The record has the id of the request, though the clock's task writes it, and is a JSON line with all values."""
    seen = []
    caplog.handler.addFilter(lambda record: seen.append(current_request_id.get()) or True)
    async with memory_server(http_app(sleeps), slow_request=5, request_id=True) as server:
        client = await ask(server, "/7?a=b")
        answer = await client.stream.receive_some()
        await trio.lowlevel.checkpoint()
        (ended,) = server.records
    (record,) = [one for one in caplog.records if one.name == slow_log.name]
    values = json.loads(JSONFormatter().format(record))
    assert values["request_id"] == ended.request_id == seen[0]
    assert ended.request_id
    assert ended.request_id.encode() in answer
    assert values["place"].startswith(__file__)
    del values["time"], values["message"], values["request_id"], values["place"]
    assert values == {
        "level": "warning",
        "logger": "trioserve.slow",
        "client": "-",
        "method": "GET",
        "target": "/7?a=b",
        "http_version": "1.1",
        "status": None,
        "age": 5.0,
        "waits_for": "a sleep to end",
        "more": 0,
        "ended": False,
    }


async def test_what_cannot_be_looked_at_harms_nobody(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error while the frames of foreign code are read is shown; the clock goes on."""

    def broken(task: trio.lowlevel.Task) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(slow_requests, "find_deepest_wait", broken)
    async with memory_server(http_app(sleeps), slow_request=5, timeout_request=10) as server:
        assert (await (await server.connect()).get("/60")).status == 504
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_serve_stream_has_it(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """As has every server, whoever calls it."""
    client_side, server_side = trio.testing.memory_stream_pair()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_stream, http_app(sleeps), server_side, slow_request=5))
            client = Client(client_side)
            await client.get("/6")
            await client.aclose()
    assert len(lines(caplog)) == 1


async def test_a_request_that_is_answered_by_the_server(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is no slow request."""
    async with memory_server(respond(), slow_request=5, limit_request_body=1) as server:
        client = await server.connect()
        assert (await client.request("POST", body=b"xx")).status == 413
        await trio.sleep(60)
    assert lines(caplog) == []


# What nobody could look at


def block(clock: trio.testing.MockClock, scope: Scope) -> None:
    """Let as many seconds pass as the path says, without a moment for any other task: as time.sleep does."""
    clock.jump(float(scope["path"].strip("/")))


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let everyone do what is to be done now, and then after so many seconds."""
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked()


# On sockets, where a response ends in the step that sends it, as long as its client reads: in memory everyone gets a
# turn before that, the clock too.


async def test_what_blocks_the_event_loop_is_told_of_afterwards(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it has ended, with how long it took and a guess at why; none for what was in time."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        block(mock_clock, scope)
        await send_text(send, "x")

    async with socket_server(http_app(handler), slow_request=2, request_id=True) as server:
        client = await server.connect()
        await client.get("/1")
        assert lines(caplog) == []
        await client.get("/3")
        await pass_time(mock_clock, 10)
        await client.aclose()
    (line,) = lines(caplog)
    said = '"GET /3 HTTP/1.1" has taken 3.0 s, unseen: the event loop may have been blocked (see the option watchdog)'
    assert re.sub(r"^127\.0\.0\.1:\d+ ", "", line) == said
    (record,) = [one for one in caplog.records if one.name == slow_log.name]
    values = json.loads(JSONFormatter().format(record))
    told = ("status", "age", "place", "waits_for", "more", "ended", "request_id")
    assert [values[name] for name in told] == [200, 3.0, None, None, 0, True, server.records[-1].request_id]


async def test_what_blocks_and_then_waits_is_told_of_while_it_waits(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the loop goes on it is a request like any other, with one line."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        block(autojump_clock, scope)
        await trio.sleep(1)
        await send_text(send, "x")

    async with memory_server(http_app(handler), slow_request=2) as server:
        await (await server.connect()).get("/3")
        await trio.sleep(10)
    (line,) = lines(caplog)
    assert "has run for 3.0 s, no response yet" in line


async def test_blocking_requests_share_the_pause_between_lines(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What may not be said yet is counted in the next line, whoever that is about."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        block(mock_clock, scope)
        await send_text(send, "x")

    async with socket_server(http_app(handler), slow_request=0.2) as server:
        client = await server.connect()
        for target in ("/0.3", "/0.3", "/0.3", "/2", "/0.3"):
            await client.get(target)
        await pass_time(mock_clock, 10)
        await client.aclose()
    told = [re.search(r"GET (/[\d.]+) .* has taken ([\d.]+) s, unseen: [^;]*(.*)", line) for line in lines(caplog)]
    assert [one.groups() for one in told if one] == [("/0.3", "0.3", ""), ("/2", "2.0", "; and 2 more")]
    assert lines(caplog)[2:] == ["1 more request has taken longer than 0.2 s"]


async def test_those_that_wait_beside_one_that_blocks(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of the one that blocked takes nothing from an older one that is due and runs on."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/waits":
            await trio.sleep(60)
        else:
            block(mock_clock, scope)
        await send_text(send, "x")

    async with socket_server(http_app(handler), slow_request=2) as server:
        clients = [await ask(server, "/waits"), await server.connect()]
        await pass_time(mock_clock, 1)
        await clients[1].get("/3")
        await pass_time(mock_clock, 1)
        for client in clients:
            await client.aclose()
    first, second = lines(caplog)
    assert '"GET /3 HTTP/1.1" has taken 3.0 s, unseen' in first
    assert re.search('"GET /waits .* has run for 5.0 s, no response yet: .* waits for a sleep to end$', second)


async def test_websockets_and_background_work_that_block(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a handshake that is accepted late, nor what blocks after the response, is a slow request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send_text(send, "x")
            autojump_clock.jump(30)
            return
        await receive()
        autojump_clock.jump(30)
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with memory_server(app, lifespan="off", slow_request=5, ws_ping_interval=None) as server:
        await (await server.connect()).get()
        await trio.sleep(30)
        stream = await server.connect_stream()
        await stream.send_all(handshake_bytes())
        await trio.sleep(30)
    assert lines(caplog) == []
