"""The boundary round the application: what becomes of whatever it does."""

from __future__ import annotations

import gc
import logging

import h11
import pytest
import trio
import trio.testing
from starlette.requests import ClientDisconnect

from trioserve import ClientDisconnected, MessageError
from trioserve.logs import Outcome

from .support import http_app, memory_server, nothing_left, respond, send_text, socket_server

pytestmark = [pytest.mark.timeout(20), pytest.mark.both_codecs]

START = {"type": "http.response.start", "status": 200, "headers": []}


def errors_logged(caplog) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.name == "trioserve.error"]


def application_error(caplog) -> logging.LogRecord:
    """The one record of an application error there must be."""
    (record,) = errors_logged(caplog)
    assert record.levelno == logging.ERROR
    return record


async def ask(server, target="/"):
    client = await server.connect()
    answer = await client.get(target)
    await client.aclose()
    return answer


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        ExceptionGroup("several", [ValueError(1), OSError(2)]),
        BaseExceptionGroup("several", [SystemExit(1), ValueError(2)]),
        # Cancelled by nobody we know: asyncio's, as a library for both may raise it.
        type("Odd", (BaseException,), {})("no Exception"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_exception_is_answered_with_500_and_logged(autojump_clock, caplog, error):
    """Whatever the application raises before its response is a 500, one record with trace and request line, and
    counted."""

    async def handler(scope, receive, send):
        raise error

    async with memory_server(http_app(handler)) as server:
        answer = await ask(server, "/broken?x=1")
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        assert answer.headers[b"content-type"] == b"text/plain; charset=utf-8"
        assert server.errors == [error]
        assert server.server.statistics().application_errors == 1
    record = application_error(caplog)
    assert record.getMessage() == "exception in the application: GET /broken?x=1 HTTP/1.1"
    assert record.exc_info[1] is error
    assert record.request_line == "GET /broken?x=1 HTTP/1.1"
    gc.collect()


async def test_after_a_500_the_connection_serves_on(autojump_clock, caplog):
    """An application error costs no connection: the next request on it is answered."""

    async def handler(scope, receive, send):
        if scope["path"] == "/broken":
            raise ValueError
        await send_text(send, "Hi")

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        assert (await client.get("/broken")).status == 500
        assert (await client.get("/")).body == b"Hi"
    application_error(caplog)


async def test_an_exception_after_the_head_was_given_is_a_500(autojump_clock, caplog):
    """http.response.start alone sends nothing, so the client still gets a 500."""

    async def handler(scope, receive, send):
        await send(START)
        raise ValueError

    async with memory_server(http_app(handler)) as server:
        assert (await ask(server)).status == 500
    application_error(caplog)


async def test_returning_without_a_response_is_a_500(autojump_clock, caplog):
    """An application that returns and said nothing gets a 500, and a record that says so."""

    async def handler(scope, receive, send):
        pass

    async with memory_server(http_app(handler)) as server:
        assert (await ask(server)).status == 500
        (error,) = server.errors
        assert isinstance(error, MessageError)
    record = application_error(caplog)
    assert record.getMessage() == "the application returned without a response: GET / HTTP/1.1"


@pytest.mark.parametrize("raises", [True, False])
async def test_a_chunked_response_that_breaks_off_is_cut(autojump_clock, caplog, raises):
    """After an error in the middle the connection closes without the last chunk: no client takes it for a whole one."""

    async def handler(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if raises:
            raise ValueError

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked read"):
            await client.get()
        assert server.records[0].outcome is Outcome.ERROR
        assert (server.records[0].status, server.records[0].sent) == (200, 4)
    message = "exception in the application" if raises else "the application returned before its response was complete"
    assert application_error(caplog).getMessage() == f"{message}: GET / HTTP/1.1"


async def test_a_response_with_a_length_that_breaks_off_is_cut(autojump_clock, caplog):
    """The same with Content-Length: fewer bytes come than were said, and then the end."""

    async def handler(scope, receive, send):
        await send({**START, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        with pytest.raises(h11.RemoteProtocolError, match="received 4 bytes, expected 10"):
            await client.get()
    application_error(caplog)


async def test_a_response_that_ends_by_close_is_reset_when_it_breaks_off(caplog):
    """An HTTP/1.0 response without a length ends by closing, so one that is cut ends with a reset."""
    go_on = trio.Event()

    async def handler(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await go_on.wait()
        raise ValueError

    async with socket_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        while not received.endswith(b"\r\n\r\nhalf"):
            received += await client.stream.receive_some()
        go_on.set()
        with pytest.raises(trio.BrokenResourceError):
            await client.stream.receive_some()
        await client.aclose()
    application_error(caplog)


async def test_an_exception_after_the_response_is_logged_and_nothing_else(autojump_clock, caplog):
    """What breaks after the response is complete (a background task) is logged; the client has its answer."""

    async def handler(scope, receive, send):
        await send_text(send, "Hi")
        raise ValueError("in the background")

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        assert (await client.get()).body == b"Hi"
        assert (await client.get()).body == b"Hi"
        assert [one.outcome for one in server.records] == [Outcome.OK, Outcome.OK]
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.statistics().application_errors == 2
    assert len(errors_logged(caplog)) == 2


@pytest.mark.parametrize("wrap", ["bare", "group", "caught"])
async def test_client_disconnected_is_no_application_error(autojump_clock, caplog, wrap):
    """An application that lets our ClientDisconnected through, or what Starlette makes of it, did nothing wrong."""
    left = trio.Event()

    async def handler(scope, receive, send):
        await left.wait()
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        try:
            for _ in range(100):
                await send_text_piece(send)
        except OSError as error:
            assert isinstance(error, ClientDisconnected)
            if wrap == "bare":
                raise
            if wrap == "group":
                raise ExceptionGroup("tasks", [error, ExceptionGroup("more", [error])]) from None
            raise ClientDisconnect from None

    async def app(scope, receive, send):
        await send(START)
        await handler(scope, receive, send)

    async def send_text_piece(send):
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
        await trio.testing.wait_all_tasks_blocked()
        assert server.errors == []
        assert [one.outcome for one in server.records] == [Outcome.CLIENT_LEFT]
    assert errors_logged(caplog) == []


async def test_an_error_in_the_clean_up_after_a_failed_send_is_logged(autojump_clock, caplog):
    """Only the failed send itself is excused: not what goes wrong in a ``finally`` on the way out."""
    left = trio.Event()

    async def handler(scope, receive, send):
        await left.wait()
        await send(START)
        try:
            for _ in range(100):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            raise KeyError("cleaning up failed")

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        left.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error) for error in server.errors] == [KeyError]


async def test_an_error_of_its_own_after_the_client_left_is_logged(autojump_clock, caplog):
    """That the client has left excuses no other error."""

    async def handler(scope, receive, send):
        await receive()
        await receive()
        raise ValueError("cleaning up failed")

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.errors) == 1
    assert application_error(caplog).getMessage() == "exception in the application: GET / HTTP/1.1"


async def test_returning_after_the_client_left_is_fine(autojump_clock, caplog):
    """An application that stops without a response because its client has left did right."""

    async def handler(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [one.outcome for one in server.records] == [Outcome.CLIENT_LEFT]
    assert errors_logged(caplog) == []


async def test_an_error_while_cancelled_is_logged_and_the_cancellation_passes(autojump_clock, caplog):
    """A handler whose clean-up breaks while the server is cancelled is logged; serve() still ends as cancelled."""
    begun = trio.Event()

    async def broken_clean_up():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("clean-up")

    async def handler(scope, receive, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken_clean_up)
            nursery.start_soon(trio.sleep_forever)
            begun.set()

    with nothing_left():
        async with memory_server(http_app(handler)) as server:
            client = await server.connect()
            await client.raw(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            await begun.wait()
        assert [one.outcome for one in server.records] == [Outcome.SHUTDOWN]
    (record,) = errors_logged(caplog)
    assert record.getMessage().endswith(": GET /x HTTP/1.1")
    assert "ValueError: clean-up" in caplog.text


@pytest.mark.parametrize("grouped", [True, False])
async def test_keyboard_interrupt_passes(autojump_clock, caplog, grouped):
    """Ctrl-C that strikes in a handler ends the program as Trio would."""

    async def handler(scope, receive, send):
        if grouped:
            raise BaseExceptionGroup("tasks", [KeyboardInterrupt()])
        raise KeyboardInterrupt

    with nothing_left(), pytest.raises(KeyboardInterrupt):
        async with memory_server(http_app(handler)) as server:
            client = await server.connect()
            await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.sleep(1)
    assert errors_logged(caplog) == []


async def test_keyboard_interrupt_beside_an_error(autojump_clock, caplog):
    """Of a group, KeyboardInterrupt passes and the rest is logged."""

    async def handler(scope, receive, send):
        raise BaseExceptionGroup("tasks", [KeyboardInterrupt(), ValueError("beside")])

    with pytest.raises(KeyboardInterrupt):
        async with memory_server(http_app(handler)) as server:
            client = await server.connect()
            await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await trio.sleep(1)
    record = application_error(caplog)
    assert record.getMessage() == "exception in the application while it was cancelled: GET / HTTP/1.1"


async def test_a_client_that_left_beside_a_cancellation(autojump_clock, caplog):
    """A stop that finds an application with the news that its client has left logs no error for that."""
    waiting = trio.Event()

    async def handler(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        waiting.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            raise BaseExceptionGroup("tasks", [cancelled, ClientDisconnected("the client has left")]) from None

    async with memory_server(http_app(handler), timeout_disconnect_grace=None) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.aclose()
        await waiting.wait()
    assert errors_logged(caplog) == []


async def test_a_client_that_left_gets_no_500(autojump_clock, caplog):
    """When the 500 can reach nobody the exchange still ends, as one whose client left."""
    left = trio.Event()

    async def handler(scope, receive, send):
        await left.wait()
        raise ValueError

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        left.set()
        await trio.testing.wait_all_tasks_blocked()
        (record,) = server.records
        assert record.outcome is Outcome.CLIENT_LEFT
    application_error(caplog)


async def test_the_two_boundaries_let_a_good_application_be(autojump_clock, caplog):
    """Nothing is logged as an error when there is none."""
    async with memory_server(respond()) as server:
        assert (await ask(server)).status == 200
    assert errors_logged(caplog) == []
