"""The access line: written when an exchange ends, with how it ended."""

from __future__ import annotations

import logging
import re

import pytest
import trio
import trio.testing

from trioserve.logs import Outcome, access_log

from .support import http_app, memory_server, read_body, respond, send_text, socket_server

pytestmark = [pytest.mark.timeout(20), pytest.mark.both_codecs]

START = {"type": "http.response.start", "status": 200, "headers": []}
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level(logging.INFO, "trioserve.access")


def lines(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == access_log.name]


async def ask(server, data: bytes = REQUEST):
    """Send this, wait until nothing more happens, and leave the client as it is."""
    client = await server.connect()
    await client.raw(data)
    await trio.testing.wait_all_tasks_blocked()
    return client


async def test_the_access_line(autojump_clock, caplog):
    """Client ("-" on a stream that has no address), request line, status, bytes of body, duration, time to first byte,
    outcome; written when the exchange ends.
    """

    async def handler(scope, receive, send):
        await trio.sleep(0.25)
        await send(START)
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        await trio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"678"})
        # A background task is not part of the exchange.
        await trio.sleep(10)

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(b"GET /a?b=1 HTTP/1.1\r\nHost: a\r\n\r\n")
        await trio.sleep(0.6)
        assert lines(caplog) == []
        await trio.sleep(0.2)
        assert lines(caplog) == ['- "GET /a?b=1 HTTP/1.1" 200 8 bytes 750.0 ms first byte 250.0 ms ok']
        (record,) = server.records
        assert (record.duration, record.first_byte) == (0.75, 0.25)
        assert caplog.records[-1].exchange is record
        assert caplog.records[-1].levelno == logging.INFO


async def test_the_line_names_the_client(caplog):
    """Over TCP the line begins with the client's address and port."""
    async with socket_server(respond()) as server:
        client = await server.connect()
        host, port = client.stream.socket.getsockname()
        await client.get()
        await client.aclose()
        assert re.fullmatch(
            rf'{host}:{port} "GET / HTTP/1\.1" 200 13 bytes \d+\.\d ms first byte \d+\.\d ms ok', lines(caplog)[0]
        )


async def test_received_and_sent_are_bytes_of_bodies(autojump_clock):
    """The record counts the body that the application took and the one it sent, without heads and chunks."""

    async def handler(scope, receive, send):
        await read_body(receive)
        await send_text(send, b"x" * 321)

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.request("POST", body=b"y" * 123)
        (record,) = server.records
        assert (record.received, record.sent) == (123, 321)


async def test_head_sends_no_bytes(autojump_clock):
    """The body of an answer to HEAD is not sent, and not counted."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.request("HEAD")
        assert (server.records[0].status, server.records[0].sent) == (200, 0)


@pytest.mark.parametrize("begun", [True, False])
async def test_outcome_client_left(autojump_clock, caplog, begun):
    """A client that leaves before the end is "client left", with the status if a response was begun."""

    async def handler(scope, receive, send):
        if begun:
            await send(START)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await trio.sleep_forever()

    async with memory_server(http_app(handler), timeout_disconnect_grace=2) as server:
        client = await ask(server)
        await client.aclose()
        await trio.sleep(5)
        (record,) = server.records
        assert record.outcome is Outcome.CLIENT_LEFT
        assert record.status == (200 if begun else None)
        assert record.duration == 2
    (line,) = lines(caplog)
    assert line.endswith("200 1 bytes 2000.0 ms first byte 0.0 ms client left") is begun
    assert line.endswith("- 0 bytes 2000.0 ms first byte - client left") is not begun


async def test_outcome_of_an_answer_to_a_client_that_has_closed_its_half(autojump_clock):
    """A client that closed its half and still gets its whole answer is ok."""

    async def handler(scope, receive, send):
        await trio.sleep(1)
        await send_text(send, "Hi")

    async with memory_server(http_app(handler)) as server:
        client = await server.connect()
        await client.raw(REQUEST)
        await client.stream.send_eof()
        assert (await client.receive_rest()).endswith(b"Hi")
        assert [one.outcome for one in server.records] == [Outcome.OK]


@pytest.mark.parametrize("begun", [True, False])
async def test_outcome_deadline(autojump_clock, begun):
    """A request that timeout_request ends is "deadline": 504, or cut if its response was begun."""

    async def handler(scope, receive, send):
        if begun:
            await send(START)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await trio.sleep_forever()

    async with memory_server(http_app(handler), timeout_request=4) as server:
        client = await ask(server)
        await client.stream.receive_some()
        await trio.sleep(10)
        (record,) = server.records
        assert (record.status, record.outcome) == (200 if begun else 504, Outcome.DEADLINE)
        assert record.duration == 4


async def test_outcome_deadline_of_a_body_that_does_not_come(autojump_clock):
    """A request body that stops coming is "deadline", answered with 408."""

    async def handler(scope, receive, send):
        await receive()
        await receive()

    async with memory_server(http_app(handler), timeout_request_body=4) as server:
        await ask(server, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx")
        await trio.sleep(20)
        (record,) = server.records
        assert (record.status, record.outcome, record.received) == (408, Outcome.DEADLINE, 1)


async def test_outcome_deadline_of_a_client_that_does_not_read(autojump_clock, caplog):
    """A client that takes nothing for timeout_write seconds is "deadline"."""
    client, server_side = trio.testing.lockstep_stream_pair()

    async def handler(scope, receive, send):
        await send_text(send, b"x" * 100)

    async with memory_server(http_app(handler), timeout_write=4) as server:
        server.listener._send.send_nowait(server_side)
        await client.send_all(REQUEST)
        await trio.sleep(10)
        (record,) = server.records
        assert (record.status, record.outcome) == (200, Outcome.DEADLINE)
        assert record.duration == 4
    await client.aclose()


@pytest.mark.parametrize("begun", [True, False])
async def test_outcome_error(autojump_clock, begun):
    """An application that raises is "error", whether that cut its response or the server could still answer 500."""

    async def handler(scope, receive, send):
        if begun:
            await send(START)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise ValueError

    async with memory_server(http_app(handler)) as server:
        client = await ask(server)
        await client.stream.receive_some()
        (record,) = server.records
        assert record.status == (200 if begun else 500)
        assert record.outcome is Outcome.ERROR


async def test_outcome_error_of_a_request_that_is_refused(autojump_clock, caplog):
    """A head that is no HTTP has a line too, with the status of the answer and no request line of the client's
    making."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.raw(b"nonsense\x00\r\n\r\n")
        await client.receive_rest()
        (record,) = server.records
        assert (record.status, record.outcome) == (400, Outcome.ERROR)
    assert '"- - HTTP/1.1" 400' in lines(caplog)[0]


async def test_outcome_shutdown(autojump_clock, caplog):
    """A request that a stop cuts is "shutdown"."""

    async def handler(scope, receive, send):
        await trio.sleep_forever()

    async with memory_server(http_app(handler)) as server:
        await ask(server)
        server.server.shutdown(grace=3)
        await trio.sleep(10)
        (record,) = server.records
        assert (record.status, record.outcome, record.duration) == (None, Outcome.SHUTDOWN, 3)
    assert lines(caplog)[0].endswith(" shutdown")


async def test_outcome_shutdown_of_a_response_that_is_being_written(autojump_clock):
    """A response that a stop cuts in the middle of a write is "shutdown" too: its client is still there."""
    client, server_side = trio.testing.lockstep_stream_pair()

    async def handler(scope, receive, send):
        await send_text(send, b"x" * 100)

    async with memory_server(http_app(handler)) as server:
        server.listener._send.send_nowait(server_side)
        await client.send_all(REQUEST)
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown(grace=3)
        await trio.sleep(10)
        assert [one.outcome for one in server.records] == [Outcome.SHUTDOWN]
    await client.aclose()


async def test_each_exchange_of_a_connection_has_its_line(autojump_clock, caplog):
    """Pipelined requests have one line each, in order."""
    async with memory_server(respond()) as server:
        await ask(server, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [one.target for one in server.records] == ["/1", "/2"]
    assert len(lines(caplog)) == 2


async def test_no_line_without_access_log(autojump_clock, caplog):
    """With access_log off there is no line; whoever observes the server still hears of each exchange."""
    async with memory_server(respond(), access_log=False) as server:
        client = await server.connect()
        await client.get()
        assert len(server.records) == 1
    assert lines(caplog) == []


async def test_an_idle_connection_has_no_line(autojump_clock, caplog):
    """A connection that closes without a request is no exchange."""
    async with memory_server(respond()) as server:
        client = await server.connect()
        await client.aclose()
        await trio.sleep(1)
        fresh = await server.connect()
        assert await fresh.receive_rest() == b""
    assert lines(caplog) == []
