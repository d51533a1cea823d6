"""Which exchanges have an access line, and what it says, in running servers."""

from __future__ import annotations

import json
import logging

import pytest
import trio
import trio.testing

from trioserve.access_log import AccessLog
from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.exchange import Endpoint, Request
from trioserve.logs import ExchangeRecord, Outcome, access_log, error_log, server_log
from trioserve.process.log_setup import configure_logging
from trioserve.types import Receive, Scope, Send

from .logging_state import loggers  # noqa: F401 - a fixture
from .support import RunningServer, http_app, memory_server, respond, send_text
from .websocket_client import WebSocketClient, open_handshake

pytestmark = [pytest.mark.timeout(20), pytest.mark.both_codecs]


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trioserve")


async def open_websocket(server: RunningServer) -> WebSocketClient:
    client = await open_handshake(await server.connect_stream())
    assert isinstance(client, WebSocketClient)
    return client


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == access_log.name]


async def test_a_format_of_one_s_own(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """The line is the format's, with fields of the request and of the response as it was sent."""
    text = '%(h)s "%(r)s" %(s)s %(b)s %({X-A}i)s %({content-length}o)s %({server}o)s %({x-b}o)s'
    async with memory_server(respond(headers=[(b"x-b", b"c")]), access_log_format=text) as server:
        client = await server.connect()
        await client.request(headers=[("X-A", "a")])
        await client.request("GET", "/2")
    assert lines(caplog) == [
        '- "GET / HTTP/1.1" 200 13 a 13 trioserve c',
        '- "GET /2 HTTP/1.1" 200 13 - 13 trioserve c',
    ]
    assert caplog.records[0].exchange is server.records[0]  # type: ignore[attr-defined]


async def test_each_answer_has_its_own_fields(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What an earlier response of the connection said is not shown for one without a response, nor for a refusal."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            await send_text(send, "x")
        else:
            await trio.sleep_forever()

    options = {"access_log_format": "%(s)s %({content-type}o)s", "timeout_disconnect_grace": 1}
    async with memory_server(http_app(handler), **options) as server:
        client = await server.connect()
        await client.get()
        await client.raw(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        other = await server.connect()
        await other.raw(b"nonsense\r\n\r\n")
        await other.receive_rest()
        await trio.sleep(5)
    assert sorted(lines(caplog)) == ["- -", "200 text/plain", "400 text/plain; charset=utf-8"]


async def test_an_application_that_spoils_its_fields(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list is the application's; a line that cannot be made is one line less, and nothing else."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"][:] = [(b"x-a", None)]
        await send_text(send, "x")

    async with memory_server(http_app(handler), access_log_format="%({x-a}i)s") as server:
        client = await server.connect()
        assert (await client.get()).status == (await client.get()).status == 200
    assert lines(caplog) == []
    assert "AttributeError" in capsys.readouterr().err


async def test_a_filter_that_raises(autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the filters of a configuration raise, clients have their answers, and the server goes on."""

    def broken(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/raise":
            raise ValueError
        await send_text(send, "x")

    for log in (server_log, access_log, error_log):
        log.addFilter(broken)
    async with memory_server(http_app(handler)) as server:
        for target, status in (("/", 200), ("/raise", 500)):
            assert (await (await server.connect()).get(target)).status == status
        client = await server.connect()
        await client.raw(b"nonsense\r\n\r\n")
        assert b" 400 " in await client.receive_rest()
        assert (await (await server.connect()).get()).status == 200
        server.errors.clear()
    assert capsys.readouterr().err.count("ZeroDivisionError") >= 6


async def test_a_handshake_has_the_format_and_a_close_its_own_line(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A WebSocket's handshake is an exchange with status 101; the line of its close stays as it is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"x-b", b"c")]})
        await receive()

    async with memory_server(app, lifespan="off", access_log_format="%(s)s %({x-b}o)s %({upgrade}o)s") as server:
        client = await open_websocket(server)
        await client.close()
        await server.handle.wait_idle()
    assert lines(caplog)[0] == "101 c websocket"
    assert lines(caplog)[1].startswith('- "WebSocket /" closed 1000 after ')


@pytest.mark.parametrize(
    ("target", "has_line"),
    [
        ("/healthz", False),
        ("/healthz?full=1", False),
        ("/healthz/", True),
        ("/static/", False),
        ("/static/a/b.css", False),
        ("/static", True),
        ("/x/ping", False),
        ("/?x=/healthz", True),
        ("/HEALTHZ", True),
    ],
)
async def test_excluded_paths(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, target: str, has_line: bool
) -> None:
    """A path, without its query, that matches a pattern has no line; observers hear of it all the same."""
    patterns = ["/healthz", "/static/*", "*/ping"]
    async with memory_server(respond(status=404), access_log_exclude=patterns) as server:
        await (await server.connect()).get(target)
        assert len(server.records) == 1
    assert len(lines(caplog)) == has_line


@pytest.mark.parametrize("way", ["500", "raise", "deadline", "left"])
async def test_what_fails_on_an_excluded_path(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """A failure of ours has its line wherever it is: 5xx, errors, deadlines. A client that leaves has not."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if way == "500":
            await send_text(send, "no", status=500)
            return
        if way == "raise":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise ValueError
        await trio.sleep_forever()

    async with memory_server(http_app(handler), access_log_exclude=["/*"], timeout_request=20) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        if way == "left":
            await client.aclose()
        await trio.sleep(60)
        assert len(server.records) == 1
    assert len(lines(caplog)) == (way != "left")


@pytest.mark.parametrize("fails", [True, False])
async def test_websockets_of_excluded_paths(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """Neither its handshake nor its close has a line, unless it ends in an error."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if fails:
            raise ValueError
        await receive()

    async with memory_server(app, lifespan="off", access_log_exclude=["/"]) as server:
        client = await open_websocket(server)
        await client.close()
        await server.handle.wait_idle()
        assert server.records[0].status == 101
    assert len(lines(caplog)) == fails


def test_patterns_begin_as_paths_do() -> None:
    """A pattern that no path can match is a mistake."""
    with pytest.raises(ConfigError, match=r"access_log_exclude must begin with / or \*, as a path does, not 'healthz'"):
        Config(access_log_exclude=["healthz"])


async def test_nothing_is_made_of_it_if_nobody_reads(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A logger that takes no INFO gets nothing."""
    caplog.set_level(logging.WARNING, "trioserve.access")
    async with memory_server(respond(status=500), access_log_format="%({x}o)s") as server:
        assert (await (await server.connect()).get()).status == 500
        assert server.records[0].outcome is Outcome.OK
    assert lines(caplog) == []


def exchange(target: str = "/x") -> None:
    """Log one as a server does."""
    access = AccessLog.from_config(Config(access_log_format="%(m)s %(s)s"))
    assert access is not None
    record = ExchangeRecord("-", "GET", target, "1.1", 200, 0, 13, 0.1, 0.1, Outcome.OK)
    access.exchange_ended(record, Request("GET", target.encode(), [], "1.1", Endpoint()), b"")


def test_a_formatted_line_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """On the console it has nothing before it: other programs read it. Other lines keep their time and level."""
    configure_logging(Config(access_log_format="%(m)s %(s)s"))
    exchange()
    access_log.info("other")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "GET 200"
    assert second.endswith(" info: other")


def test_in_json_it_is_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON line has all values as ever, and the formatted line as its message."""
    configure_logging(Config(access_log_format="%(m)s %(s)s", log_format="json"))
    exchange()
    values = json.loads(capsys.readouterr().out)
    assert (values["message"], values["target"], values["status"]) == ("GET 200", "/x", 200)
