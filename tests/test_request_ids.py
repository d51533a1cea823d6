"""The id of a request: whose word counts, and where it is seen."""

from __future__ import annotations

import io
import logging
import logging.handlers
import queue
import re
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from trioserve import serve_stream
from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.formatters import TextFormatter
from trioserve.logs import WebSocketRecord, access_log, current_request_id, error_log, server_log
from trioserve.process.log_setup import configure_logging
from trioserve.request_ids import RequestIdFilter, RequestLogRecord, tag_records
from trioserve.types import AnyValue, ASGIApp, Receive, Scope, Send

from .logging_state import loggers  # noqa: F401 - a fixture
from .support import (
    Client,
    http_app,
    memory_server,
    nothing_left,
    plain_lifespan,
    respond,
    send_text,
    socket_server,
)
from .websocket_client import WebSocketClient, handshake_bytes

pytestmark = [pytest.mark.timeout(20)]

ID = re.compile(r"[0-9a-f]{32}")
PROXIES = {"forwarded_allow_ips": ["127.0.0.1"]}
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

app_log = logging.getLogger("tests.app")


class Lines(logging.Handler):
    """Keeps (logger, request id, message) of each record, as an ordinary handler's format would show them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(name)s|%(request_id)s|%(message)s"))
        self.lines: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        name, request_id, message = self.format(record).split("\n")[0].split("|")
        self.lines.append((name, request_id, message))

    def of(self, text: str) -> list[str]:
        """The ids of the records with this in their message."""
        return [request_id for _, request_id, message in self.lines if text in message]


@pytest.fixture
def seen() -> Iterator[Lines]:
    """All records of the process, tagged as the command line tags them."""
    tag_records()
    handler = Lines()
    logging.getLogger().addHandler(handler)
    for log in (logging.getLogger(), server_log, access_log, error_log):
        log.setLevel(logging.INFO)
    yield handler
    logging.getLogger().removeHandler(handler)


def telling() -> ASGIApp:
    """Logs in its own words, in a child task and in a thread, and answers with the id in its state."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            app_log.info("lifespan")
            await plain_lifespan(receive, send)
            return
        app_log.info("handler %s", scope["path"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, scope["path"])
        await trio.to_thread.run_sync(app_log.info, f"thread {scope['path']}")
        await send_text(send, scope["state"]["request_id"])

    async def child(path: str) -> None:
        await trio.lowlevel.checkpoint()
        app_log.info("child %s", path)

    return app


async def ask(client: Client, *fields: tuple[str, str], target: str = "/") -> tuple[str, str]:
    """The id in the application's state, and that of the response."""
    answer = await client.request("GET", target, list(fields))
    return answer.body.decode(), answer.headers[b"x-request-id"].decode()


# Whose word counts


@pytest.mark.both_codecs
async def test_an_id_is_made() -> None:
    """Each request of a connection has one of its own, in the scope's state and in the response."""
    async with memory_server(telling(), request_id=True) as server:
        client = await server.connect()
        first, second = await ask(client), await ask(client, ("X-Request-ID", "forged"))
        assert first[0] == first[1] != second[0] == second[1]
        assert ID.fullmatch(first[0])
        assert ID.fullmatch(second[0])
        assert [one.request_id for one in server.records] == [first[0], second[0]]


async def test_off_by_default() -> None:
    """Without the option there is none, whatever comes, and the response has no such field."""
    async with memory_server(respond()) as server:
        answer = await (await server.connect()).request(headers=[("X-Request-ID", "a")])
        assert b"x-request-id" not in answer.headers
        assert server.records[0].request_id is None
        assert "request_id" not in server.records[0].to_plain()


@pytest.mark.parametrize("more", [{}, {"proxy_headers": False}, {"forwarded_headers": ["forwarded"]}])
async def test_the_id_of_a_trusted_proxy_is_taken(more: dict[str, AnyValue]) -> None:
    """A peer that forwarded_allow_ips names may give one, for each request anew, whatever else counts."""
    async with socket_server(telling(), request_id=True, **PROXIES, **more) as server:
        with trio.fail_after(10):
            client = await server.connect()
            assert await ask(client, ("X-Request-ID", "a-1"), ("X-Forwarded-For", "192.0.2.1")) == ("a-1", "a-1")
            assert await ask(client, ("x-request-id", "b/2=")) == ("b/2=", "b/2=")
            assert ID.fullmatch((await ask(client))[0])
            await client.aclose()


@pytest.mark.parametrize(
    "fields",
    [
        [""],
        ["a b"],
        ["a\tb"],
        ['a"b'],
        ["a,b"],
        ["[x]"],
        ["\xe4"],
        ["x" * 129],
        ["a", "b"],
        ["a", "a"],
    ],
)
async def test_an_id_that_is_none_is_replaced(fields: list[str]) -> None:
    """What could not stand in a log line, is too long or comes twice is replaced, also if the proxy is trusted."""
    async with socket_server(telling(), request_id=True, **PROXIES) as server:
        with trio.fail_after(10):
            client = await server.connect()
            lines = b"".join(b"X-Request-ID: %b\r\n" % one.encode("latin-1") for one in fields)
            await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + lines + b"\r\n")
            answer = await client.receive_rest()
            assert re.search(rb"\r\nx-request-id: [0-9a-f]{32}\r\n", answer)
            await client.aclose()


async def test_the_longest_id() -> None:
    """128 characters are taken."""
    async with socket_server(telling(), request_id=True, **PROXIES) as server:
        with trio.fail_after(10):
            client = await server.connect()
            longest = "x" * 128
            assert await ask(client, ("X-Request-ID", longest)) == (longest, longest)
            await client.aclose()


def test_a_header_of_that_name_is_refused() -> None:
    """Two options that set one field contradict each other."""
    with pytest.raises(ConfigError, match="request_id sets X-Request-ID"):
        Config(request_id=True, header=["x-request-ID: 1"])
    assert Config(header=["x-request-ID: 1"]).extra_headers


# The response


@pytest.mark.both_codecs
async def test_the_application_may_answer_with_one_of_its_own() -> None:
    """Then that is the only one in the response."""
    app = respond(headers=[(b"X-Request-Id", b"mine")])
    async with memory_server(app, request_id=True) as server:
        client = await server.connect()
        await client.raw(GET.replace(b"1.1", b"1.0"))
        answer = await client.receive_rest()
        assert answer.lower().count(b"x-request-id") == 1
        assert b"X-Request-Id: mine\r\n" in answer


@pytest.mark.both_codecs
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_the_response_is_otherwise_the_same(version: bytes, method: bytes) -> None:
    """The id is one field at the end of the head."""
    answers = []
    for on in (False, True):
        async with memory_server(respond(), request_id=on, date_header=False) as server:
            client = await server.connect()
            await client.raw(method + b" / HTTP/" + version + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
            answers.append(await client.receive_rest())
    without, with_id = answers
    assert re.sub(rb"x-request-id: [0-9a-f]{32}\r\n(\r\n)", rb"\1", with_id) == without != with_id


@pytest.mark.both_codecs
@pytest.mark.parametrize(
    ("options", "request_", "status"),
    [
        ({"limit_request_body": 3}, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", 413),
        (
            {"limit_request_body": 3},
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n",
            413,
        ),
        ({}, b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n", 500),
        ({"timeout_request": 1}, b"GET /forever HTTP/1.1\r\nHost: a\r\n\r\n", 504),
        ({"timeout_request_body": 1}, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", 408),
        ({}, b"nonsense\r\n\r\n", 400),
        ({}, handshake_bytes(version="1.1", method="POST"), 405),
        ({}, handshake_bytes("/raise"), 500),
        ({}, handshake_bytes("/refuse"), 403),
    ],
)
async def test_answers_of_the_server_have_it(
    autojump_clock: trio.testing.MockClock,
    seen: Lines,
    options: dict[str, AnyValue],
    request_: bytes,
    status: int,
) -> None:
    """Whoever answers, the response carries the id that the log has."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/raise":
            raise ValueError("wrong")
        if scope["path"] == "/refuse":
            await send({"type": "websocket.close"})
            return
        if scope["path"] == "/forever":
            await trio.sleep_forever()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with memory_server(app, lifespan="off", request_id=True, **options) as server:
        client = await server.connect()
        await client.raw(request_)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await client.stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        found = re.search(rb"\r\nx-request-id: ([0-9a-f]{32})\r\n", answer)
        assert found
        await client.aclose()
        await trio.sleep(60)
    assert {request_id for _, request_id, _ in seen.lines} == {found[1].decode()}


async def test_a_busy_server_answers_with_it(autojump_clock: trio.testing.MockClock) -> None:
    """A 503 of limit_concurrency has it, too."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(5)
        await send_text(send, "x")

    async with memory_server(http_app(handler), request_id=True, limit_concurrency=1) as server:
        first, second = await server.connect(), await server.connect()
        await first.raw(GET)
        await trio.testing.wait_all_tasks_blocked()
        answer = await second.get()
        assert (answer.status, len(answer.headers[b"x-request-id"])) == (503, 32)


async def test_websockets(autojump_clock: trio.testing.MockClock, seen: Lines) -> None:
    """The 101 has it, the state, every record of the WebSocket up to its close, and the record of that."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        app_log.info("handler %s", scope["state"]["request_id"])
        await send({"type": "websocket.accept", "headers": []})
        await receive()
        app_log.info("closed")
        raise ValueError

    async with memory_server(app, lifespan="off", request_id=True) as server:
        stream = await server.connect_stream()
        await stream.send_all(handshake_bytes())
        answer = await stream.receive_some()
        found = re.search(rb"\r\nx-request-id: ([0-9a-f]{32})\r\n", answer)
        assert found
        client = WebSocketClient(stream)
        await client.close()
        await server.handle.wait_idle()
        (closed,) = server.recorder.websockets
        assert isinstance(closed, WebSocketRecord)
        assert closed.request_id == closed.to_plain()["request_id"] == found[1].decode()
    assert len(seen.lines) == 5
    assert {request_id for _, request_id, _ in seen.lines} == {found[1].decode()}


# Every log record


@pytest.mark.both_codecs
async def test_every_record_of_a_request_has_it(seen: Lines) -> None:
    """The application's own loggers, in its task, in child tasks and in threads; ours, too; lifespan has none."""
    async with memory_server(telling(), request_id=True) as server:
        with trio.fail_after(10):
            client = await server.connect()
            (first, _), (second, _) = await ask(client, target="/1"), await ask(client, target="/2")
    for path, request_id in (("/1", first), ("/2", second)):
        for who in ("handler", "child", "thread", '"GET'):
            assert seen.of(f"{who} {path}") == [request_id]
    assert seen.of("lifespan") == ["-"]


@pytest.mark.both_codecs
async def test_pipelined_requests_keep_apart(autojump_clock: trio.testing.MockClock, seen: Lines) -> None:
    """Requests in one packet, the last of them malformed, have an id each, and none has another's."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        app_log.info("before %s", scope["path"])
        await send_text(send, scope["state"]["request_id"])
        app_log.info("after %s", scope["path"])

    async with memory_server(http_app(handler), request_id=True) as server:
        client = await server.connect()
        await client.raw(GET.replace(b"/ ", b"/1 ") + GET.replace(b"/ ", b"/2 ") + b"nonsense\r\n\r\n")
        answer = await client.receive_rest()
        ids = [one.decode() for one in re.findall(rb"x-request-id: ([0-9a-f]{32})\r\n", answer)]
        assert len(set(ids)) == 3
        assert [one.request_id for one in server.records] == ids
    for place, path in enumerate(("/1", "/2")):
        assert seen.of(f"before {path}") == seen.of(f"after {path}") == seen.of(f"GET {path}") == [ids[place]]
    assert seen.of("refused a request") == [ids[2]]


async def test_background_tasks_keep_theirs(autojump_clock: trio.testing.MockClock, seen: Lines) -> None:
    """What runs on after a response has the id of its own request, while the connection serves the next ones."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, scope["state"]["request_id"])
        if scope["path"] == "/1":
            await trio.sleep(5)
            app_log.info("background")

    async with memory_server(http_app(handler), request_id=True) as server:
        client = await server.connect()
        first, _ = await ask(client, target="/1")
        second, _ = await ask(client, target="/2")
        await trio.sleep(10)
    assert seen.of("background") == [first] != [second]
    assert seen.of("GET /2") == [second]


async def test_a_request_that_another_one_ends(autojump_clock: trio.testing.MockClock, seen: Lines) -> None:
    """The access line has the id of the request it is about, whoever sent the last piece of its response."""
    sends: list[Send] = []

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/1":
            sends.append(send)
            await trio.sleep(5)
        else:
            await send_text(sends[0], "of another")
            app_log.info("still itself")
            await send_text(send, scope["state"]["request_id"])

    async with memory_server(http_app(handler), request_id=True) as server:
        waiting, other = await server.connect(), await server.connect()
        await waiting.raw(GET.replace(b"/ ", b"/1 "))
        await trio.testing.wait_all_tasks_blocked()
        second, _ = await ask(other, target="/2")
        first = server.records[0].request_id
        assert first
        await trio.sleep(10)
    assert seen.of("GET /1") == [first]
    assert seen.of("still itself") == seen.of("GET /2") == [second]


@pytest.mark.parametrize("way", ["left", "cut"])
async def test_requests_that_are_cancelled(autojump_clock: trio.testing.MockClock, seen: Lines, way: str) -> None:
    """What a cancelled handler says while it cleans up has the id, and so has its access line."""

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            app_log.info("cleans up %s", scope["state"]["request_id"])

    async with memory_server(http_app(handler), request_id=True, timeout_disconnect_grace=1) as server:
        client = await server.connect()
        await client.raw(GET)
        await trio.testing.wait_all_tasks_blocked()
        if way == "left":
            await client.aclose()
        else:
            server.server.shutdown(grace=0)
        await trio.sleep(10)
        (record,) = server.records
    assert seen.of(f"cleans up {record.request_id}") == seen.of('"GET /') == [record.request_id]


async def test_a_failed_handshake_has_none(seen: Lines) -> None:
    """What happens before the first request has no id, also on a server that has served some."""
    async with socket_server(telling(), request_id=True, **PROXIES, proxy_protocol=True) as server:
        with trio.fail_after(10):
            client = await server.connect()
            await client.raw(b"PROXY UNKNOWN\r\n")
            await ask(client)
            await client.aclose()
            other = await server.connect()
            await other.raw(b"GET / HTTP/1.1\r\n\r\n")
            assert await other.receive_rest() == b""
            await other.aclose()
    assert seen.of("closed a connection") == ["-"]


async def test_nothing_of_it_is_left_with_the_caller() -> None:
    """serve_stream in a task with variables of its own leaves them as they are, and so does a whole server."""
    client_side, server_side = trio.testing.memory_stream_pair()
    with nothing_left():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_served, server_side)
            client = Client(client_side)
            assert (await client.get()).headers[b"x-request-id"]
            await client.aclose()
    assert current_request_id.get() is None


async def serve_served(stream: trio.abc.Stream) -> None:
    await serve_stream(respond(), stream, request_id=True)
    assert current_request_id.get() is None


# The records themselves


def within(request_id: str | None) -> None:
    current_request_id.set(request_id)


@pytest.fixture
def inside() -> Iterator[None]:
    token = current_request_id.set("of-context")
    yield
    current_request_id.reset(token)


def shown(emit: AnyValue, *, form: str = "%(request_id)s %(message)s", wraps: AnyValue = None) -> str:
    """What a handler shows of one record of the application's."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(form))
    if wraps is not None:
        handler = wraps(handler)
    app_log.addHandler(handler)
    app_log.setLevel(logging.INFO)
    try:
        emit()
    finally:
        app_log.removeHandler(handler)
    return stream.getvalue()


@pytest.mark.usefixtures("inside")
def test_applications_may_give_their_own() -> None:
    """``extra`` with a request_id is no error, and goes before ours."""
    tag_records()
    assert shown(lambda: app_log.info("x", extra={"request_id": "theirs"})) == "theirs x\n"
    assert shown(lambda: app_log.info("x")) == "of-context x\n"


@pytest.mark.usefixtures("inside")
def test_filters_and_queues_see_it() -> None:
    """It is an attribute from the beginning, and goes through a queue, whose other end has another context."""
    tag_records()
    found = []
    waiting: queue.Queue[logging.LogRecord] = queue.Queue()

    def through_queue(handler: logging.Handler) -> logging.Handler:
        entry = logging.handlers.QueueHandler(waiting)
        entry.addFilter(lambda record: found.append(record.request_id) or True)
        return entry

    assert shown(lambda: app_log.info("x"), wraps=through_queue) == ""
    assert found == ["of-context"]
    token = current_request_id.set("another")
    assert logging.Formatter("%(request_id)s").format(waiting.get_nowait()) == "of-context"
    current_request_id.reset(token)


@pytest.mark.usefixtures("inside")
def test_a_factory_of_somebody_else_s_is_kept() -> None:
    """Its records get a request_id as well; doing it twice changes nothing more."""

    class Foreign(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Foreign)
    tag_records()
    factory = logging.getLogRecordFactory()
    tag_records()
    assert logging.getLogRecordFactory() is factory
    assert shown(lambda: app_log.info("x")) == "of-context x\n"
    assert type(factory("x", 20, "", 1, "", (), None)) is Foreign


def test_doing_it_twice_changes_nothing() -> None:
    """configure_logging may be called again, as run() does."""
    configure_logging(Config(request_id=True))
    configure_logging(Config(request_id=True))
    assert logging.getLogRecordFactory() is RequestLogRecord


def test_without_the_option_records_are_as_ever() -> None:
    """The factory stays Python's."""
    configure_logging(Config())
    assert logging.getLogRecordFactory() is logging.LogRecord


@pytest.mark.usefixtures("inside")
def test_the_filter_of_programs() -> None:
    """A program that calls serve() adds a filter to its handler, or its logger; what a record has already stays."""
    one = RequestIdFilter()

    def filtered(handler: logging.Handler) -> logging.Handler:
        handler.addFilter(one)
        return handler

    assert shown(lambda: app_log.info("x"), wraps=filtered) == "of-context x\n"
    assert shown(lambda: app_log.info("x", extra={"request_id": "y"}), wraps=filtered) == "y x\n"


def test_text_lines_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Between the level and the message; lines outside of requests have none."""
    configure_logging(Config(request_id=True))
    server_log.info("outside")
    token = current_request_id.set("a-1")
    server_log.info("inside")
    current_request_id.reset(token)
    outside, inside_ = capsys.readouterr().err.splitlines()
    assert outside.endswith(" info: outside")
    assert inside_.endswith(" info: [a-1] inside")


def test_an_application_s_own_cannot_forge_a_line() -> None:
    """TextFormatter escapes what an application gave as request_id, which may be a client's."""
    record = logging.makeLogRecord({"msg": "x", "request_id": "a\nb", "levelname": "INFO"})
    assert TextFormatter().format(record).endswith("info: [a\\nb] x")


async def test_json_lines_have_it(autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    """Each JSON line of a request has a member request_id; others have none."""
    configure_logging(Config(request_id=True, log_format="json"))
    async with memory_server(respond(), request_id=True) as server:
        answer = await (await server.connect()).get()
        server_log.info("outside")
    out, err = capsys.readouterr()
    assert f'"request_id": "{answer.headers[b"x-request-id"].decode()}"' in out
    assert "request_id" not in err


async def test_the_format_of_an_access_line_may_have_it(autojump_clock: trio.testing.MockClock, seen: Lines) -> None:
    """%(request_id)s stands for it."""
    async with memory_server(respond(), request_id=True, access_log_format="id=%(request_id)s") as server:
        answer = await (await server.connect()).get()
    assert seen.lines[-1][2] == f"id={answer.headers[b'x-request-id'].decode()}"
