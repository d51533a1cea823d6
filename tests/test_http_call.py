"""ASGI's HTTP messages: what an application may receive and send."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.errors import ClientDisconnected, MessageError
from trioserve.logs import Outcome
from trioserve.types import AnyValue, Message, Receive, Scope, Send
from trioserve.wire.rules import CHUNKS_AT_ONCE

from .support import Client, Recorder, http_app, memory_server, read_body, respond, send_text, socket_server

pytestmark = pytest.mark.both_codecs

Clock = trio.testing.MockClock
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
DEADLINE = 20.0
START: Message = {"type": "http.response.start", "status": 200}
PIECE: Message = {"type": "http.response.body", "body": b"piece", "more_body": True}
LAST: Message = {"type": "http.response.body", "body": b"last"}
WITH_TRAILERS: Message = {**START, "trailers": True}
NO_FILE = "/nonexistent/file"


@asynccontextmanager
async def calling(handler: Callable[[Scope, Receive, Send], AnyValue], **options: AnyValue) -> AsyncIterator[Client]:
    """A client whose request calls this handler."""
    async with memory_server(http_app(handler), **options) as server:
        yield await server.connect()


# Wrong messages

WRONG: dict[str, tuple[list[AnyValue], str]] = {
    "no type": ([{}], "the message: 'type' must be str, not nothing"),
    "a type that is no text": ([{"type": b"http.response.start"}], "'type' must be str, not b'http.response.start'"),
    "an unknown type": ([{"type": "http.response.strat"}], "expected http.response.start, not a message of type"),
    "a WebSocket's message": ([{"type": "websocket.accept"}], "expected http.response.start, not a message"),
    "a body without a start": ([LAST], "expected http.response.start, not http.response.body"),
    "a second start": ([START, START], "expected http.response.body, not http.response.start"),
    "a body after the last": ([START, LAST, LAST], "expected nothing more, the response is complete, not"),
    "a start after the last": ([START, LAST, START], "expected nothing more, the response is complete, not"),
    "no status": ([{"type": "http.response.start"}], "'status' must be a number from 200 to 999, not None"),
    "a status that is no number": (
        [{**START, "status": "200"}],
        "'status' must be a number from 200 to 999, not '200'",
    ),
    "a status that is a truth": ([{**START, "status": True}], "'status' must be a number from 200 to 999, not True"),
    "a status of 1xx": ([{**START, "status": 101}], "'status' must be a number from 200 to 999, not 101"),
    "a status of four digits": ([{**START, "status": 1000}], "'status' must be a number from 200 to 999, not 1000"),
    "headers of text": ([{**START, "headers": [("a", "b")]}], "'headers' must be pairs of bytes, not"),
    "headers of numbers": ([{**START, "headers": [(b"a", 5)]}], "'headers' must be pairs of bytes, not"),
    "headers of triples": ([{**START, "headers": [(b"a", b"b", b"c")]}], "'headers' must be pairs of bytes, not"),
    "headers that are None": ([{**START, "headers": None}], "'headers' must be pairs of bytes, not None"),
    "a body of text": ([START, {**LAST, "body": "text"}], "'body' must be bytes, not 'text'"),
    "a body that is a number": ([START, {**LAST, "body": 5}], "'body' must be bytes, not 5"),
    "a body that is None": ([START, {**LAST, "body": None}], "'body' must be bytes, not None"),
    "trailers that were not announced": (
        [START, LAST, {"type": "http.response.trailers"}],
        "expected nothing more, the response is complete, not http.response.trailers",
    ),
    "trailers before the body": (
        [WITH_TRAILERS, {"type": "http.response.trailers"}],
        "expected http.response.body, not http.response.trailers",
    ),
    "a body for trailers": ([WITH_TRAILERS, LAST, LAST], "expected http.response.trailers, not http.response.body"),
    "trailers in pieces": (
        [WITH_TRAILERS, LAST, {"type": "http.response.trailers", "more_trailers": True}],
        "send all trailers in one message",
    ),
    "trailers of text": (
        [WITH_TRAILERS, LAST, {"type": "http.response.trailers", "headers": [("a", "b")]}],
        "http.response.trailers: 'headers' must be pairs of bytes",
    ),
    "a hint after the start": (
        [START, {"type": "http.response.early_hint", "links": []}],
        "expected http.response.body, not http.response.early_hint",
    ),
    "a hint without links": ([{"type": "http.response.early_hint"}], "'links' must be list or tuple, not nothing"),
    "a hint of text": ([{"type": "http.response.early_hint", "links": ["a"]}], "'links' must be bytes, not 'a'"),
    "a hint with a line break": (
        [{"type": "http.response.early_hint", "links": [b"a\r\nb: c"]}],
        "the response head is wrong",
    ),
    "a path before the start": (
        [{"type": "http.response.pathsend", "path": "/a"}],
        "expected http.response.start, not http.response.pathsend",
    ),
    "no path": ([START, {"type": "http.response.pathsend"}], "'path' must be str, not nothing"),
    "a relative path": ([START, {"type": "http.response.pathsend", "path": "a"}], "'path' must be absolute, not 'a'"),
    "a folder": ([START, {"type": "http.response.pathsend", "path": "/"}], "'path' must be a regular file, not '/'"),
    "zerocopysend where it is not offered": (
        [START, {"type": "http.response.zerocopysend", "file": 0}],
        "expected http.response.body, not a message of type 'http.response.zerocopysend'",
    ),
    "debug where it is not offered": (
        [{"type": "http.response.debug", "info": {}}],
        "expected http.response.start, not a message of type 'http.response.debug'",
    ),
    "more than the length": (
        [{**START, "headers": [(b"content-length", b"3")]}, LAST],
        "Too much data for declared Content-Length",
    ),
    "less than the length": (
        [{**START, "headers": [(b"content-length", b"5")]}, LAST],
        "Too little data for declared Content-Length",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_message_raises_in_the_application(autojump_clock: Clock, name: str) -> None:
    """The application that sent a wrong message is told what it should have sent; nothing is left hanging."""
    messages, text = WRONG[name]
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages[:-1]:
            await send(message)
        try:
            await send(messages[-1])
        except BaseException as error:
            raised.append(error)
            raise

    async with calling(app) as client:
        await client.raw(GET)
        await client.receive_rest()
        assert [type(error) for error in raised] == [MessageError]
        assert text in str(raised[0])


async def test_a_wrong_message_can_be_made_good(autojump_clock: Clock) -> None:
    """After a MessageError the application may send the right message."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(MessageError):
            await send({**START, "status": "200"})
        await send(START)
        with pytest.raises(MessageError):
            await send({**LAST, "body": "text"})
        await send(LAST)

    async with calling(app) as client:
        assert (await client.get()).body == b"last"


# Right messages


@pytest.mark.parametrize(
    "body", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes")], ids=["bytes", "bytearray", "memoryview"]
)
async def test_a_body_may_be_any_bytes(autojump_clock: Clock, body: object) -> None:
    """A body is bytes, a bytearray or a memoryview."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": body})

    async with calling(app) as client:
        assert (await client.get()).body == b"bytes"


async def test_headers_may_be_any_bytes_and_any_iterable(autojump_clock: Clock) -> None:
    """Header names and values may be bytearrays and memoryviews, headers a generator, a status an enumeration's."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pairs = ((name, value) for name, value in [(bytearray(b"x-a"), memoryview(b"1")), (b"x-b", b"2")])
        await send({"type": "http.response.start", "status": HTTPStatus.CREATED, "headers": pairs})
        await send({"type": "http.response.body"})

    async with calling(app) as client:
        answer = await client.get()
        assert (answer.status, answer.headers[b"x-a"], answer.headers[b"x-b"]) == (201, b"1", b"2")


async def test_a_length_is_added_where_it_is_known(autojump_clock: Clock) -> None:
    """A body in one piece gets its Content-Length, unless the application framed it itself."""
    async with memory_server(respond(b"12345", headers=[(b"Transfer-Encoding", b"chunked")])) as server:
        headers = (await (await server.connect()).get()).headers
        assert b"content-length" not in headers
    async with memory_server(respond(b"12345")) as server:
        assert (await (await server.connect()).get()).headers[b"content-length"] == b"5"


async def test_trailers_follow_the_body(autojump_clock: Clock) -> None:
    """Announced trailers go out after the body, and the connection stays open."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["extensions"]["http.response.trailers"] == {}
        await send(WITH_TRAILERS)
        await send(LAST)
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"5")]})

    async with calling(app) as client:
        for _ in range(2):
            answer = await client.get()
            assert (answer.body, answer.trailers) == (b"last", {b"x-sum": b"5"})


async def test_an_application_that_owes_its_trailers_is_cut(autojump_clock: Clock) -> None:
    """A response whose trailers never come is not complete."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(WITH_TRAILERS)
        await send(LAST)

    async with calling(app) as client:
        await client.raw(GET)
        assert (await client.receive_rest()).endswith(b"4\r\nlast\r\n")


async def test_early_hints_go_out_before_the_response(autojump_clock: Clock) -> None:
    """http.response.early_hint is a 103 with a Link field for each link."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
        await send_text(send, b"body")

    async with calling(app) as client:
        answer = await client.get()
        assert answer.informational == [(103, {b"link": b"</a>; rel=preload"})]
        assert answer.body == b"body"


async def test_http_10_gets_no_hints(autojump_clock: Clock) -> None:
    """An HTTP/1.0 client gets no 1xx (RFC 9110 §15.2)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.early_hint", "links": [b"</a>"]})
        await send_text(send, b"body")

    async with calling(app) as client:
        await client.raw(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.receive_rest()).startswith(b"HTTP/1.1 200 ")


async def test_debug_reaches_who_wants_it(autojump_clock: Clock) -> None:
    """http.response.debug is offered when the server's owner wants it, and not otherwise."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if "http.response.debug" in scope["extensions"]:
            await send({"type": "http.response.debug", "info": {"template": "a.html"}})
        await send_text(send, b"")

    curious = Recorder(wants_debug=True)
    for recorder, heard in ((curious, [{"template": "a.html"}]), (Recorder(), [])):
        async with memory_server(http_app(app), recorder=recorder) as server:
            assert (await (await server.connect()).get()).status == 200
            assert recorder.debug == heard


# Files


def random_file(path: Path, size: int) -> bytes:
    data = os.urandom(size)
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("size", [0, 5, 1_000_000, 3_000_001])
@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_file_arrives_whole(tmp_path: Path, size: int, kind: str, method: str) -> None:
    """A file goes out byte for byte over a real socket, with its length, and the connection stays open."""
    path = tmp_path / "file"
    data = random_file(path, size)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert f"http.response.{kind}" in scope["extensions"]
        await send(START)
        if kind == "pathsend":
            await send({"type": "http.response.pathsend", "path": str(path)})
        else:
            with path.open("rb") as file:
                await send({"type": "http.response.zerocopysend", "file": file})

    async with socket_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            for _ in range(2):
                answer = await client.request(method)
                assert answer.body == (data if method == "GET" else b"")
                if method == "GET":
                    assert answer.headers[b"content-length"] == b"%d" % size
            await client.aclose()


async def test_parts_of_a_file_between_other_pieces(tmp_path: Path) -> None:
    """zerocopysend takes a descriptor, an offset and a count, and goes with other pieces, chunked, and trailers."""
    data = random_file(tmp_path / "file", 1000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(WITH_TRAILERS)
        await send(PIECE)
        with (tmp_path / "file").open("rb") as file:
            message = {"type": "http.response.zerocopysend", "file": file.fileno()}
            await send({**message, "offset": 10, "count": 20, "more_body": True})
            await send({**message, "offset": 990, "more_body": True})
            os.lseek(file.fileno(), 500, os.SEEK_SET)
            await send({**message, "count": 7, "more_body": True})
            await send({**message, "count": 3})  # without an offset it goes on where the piece before ended
        await send({"type": "http.response.trailers", "headers": [(b"x-a", b"b")]})

    async with socket_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            answer = await client.get()
            assert answer.body == b"piece" + data[10:30] + data[990:] + data[500:510]
            assert answer.trailers == {b"x-a": b"b"}
            await client.aclose()


async def test_a_file_that_shrinks_cuts_the_response(tmp_path: Path) -> None:
    """A file that is shorter than it was said to be cannot be completed: the client sees a cut, not an end."""
    random_file(tmp_path / "file", 1000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        with (tmp_path / "file").open("rb") as file:
            await send({"type": "http.response.zerocopysend", "file": file, "count": 2000})

    async with socket_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            await client.raw(GET)
            answer = await client.receive_rest()
            assert b"content-length: 2000" in answer.lower()
            assert len(answer.partition(b"\r\n\r\n")[2]) == 1000
            await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert "ended 1000 bytes early" in str(server.errors[0])
        assert server.records[0].outcome is Outcome.ERROR


async def test_pathsend_over_other_streams(tmp_path: Path) -> None:
    """Where there is no sendfile the file is read in a thread, and zerocopysend is not offered."""
    data = random_file(tmp_path / "file", 600_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert "http.response.zerocopysend" not in scope["extensions"]
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})

    async with memory_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            assert (await client.get()).body == data


async def test_a_missing_file_is_an_oserror_before_the_response(autojump_clock: Clock) -> None:
    """A path that cannot be opened raises OSError in the application, which may still answer otherwise."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**START, "headers": [(b"x-a", b"b")]})
        with pytest.raises(FileNotFoundError):
            await send({"type": "http.response.pathsend", "path": NO_FILE})
        await send(LAST)

    async with memory_server(http_app(app)) as server:
        assert (await (await server.connect()).get()).body == b"last"


WRONG_FILES: dict[str, tuple[Message, str]] = {
    "nothing": ({}, "'file' must be an open file with a descriptor, not None"),
    "a closed descriptor": ({"file": 1_000_000}, "'file' must be an open file with a descriptor"),
    "a path": ({"file": "/etc/passwd"}, "'file' must be an open file with a descriptor"),
    "a pipe": ({"file": "pipe"}, "'file' must be a regular file"),
    "a negative offset": ({"file": "open", "offset": -1}, "'offset' must be a number of bytes, not -1"),
    "an offset of text": ({"file": "open", "offset": "1"}, "'offset' must be a number of bytes, not '1'"),
    "a negative count": ({"file": "open", "count": -1}, "'count' must be a number of bytes, not -1"),
    "a count that is a truth": ({"file": "open", "count": True}, "'count' must be a number of bytes, not True"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
async def test_a_wrong_file_raises_in_the_application(tmp_path: Path, name: str) -> None:
    """zerocopysend takes an open regular file, and numbers of bytes."""
    fields, text = WRONG_FILES[name]
    random_file(tmp_path / "file", 10)
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        ends = os.pipe()
        with (tmp_path / "file").open("rb") as file:
            files = {"open": file, "pipe": ends[0]}
            given = {**fields, "file": files.get(fields.get("file", ""), fields.get("file"))}
            try:
                await send({"type": "http.response.zerocopysend", **given})
            except MessageError as error:
                raised.append(error)
        for end in ends:
            os.close(end)
        await send(LAST)

    async with socket_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            assert (await client.get()).body == b"last"
            await client.aclose()
        assert text in str(raised[0])


# What an application receives


async def test_the_body_comes_in_pieces(autojump_clock: Clock) -> None:
    """Pieces are given as they come, the last without more_body; a request without body is one empty piece."""
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            seen.append(await receive())
            if not seen[-1]["more_body"]:
                break
        await send_text(send, b"")

    async with calling(app) as client:
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(b"llo" + GET)
        await client.receive_rest()
        assert seen == [
            {"type": "http.request", "body": b"he", "more_body": True},
            {"type": "http.request", "body": b"llo", "more_body": False},
            {"type": "http.request", "body": b"", "more_body": False},
        ]


async def test_after_the_body_receive_waits_for_the_disconnect(autojump_clock: Clock) -> None:
    """Once the body is read receive() waits until the client has left."""
    seen: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        seen.append(trio.current_time() - start)

    async with calling(app) as client:
        await client.raw(GET)
        start = trio.current_time()
        await trio.sleep(100)
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [100]


async def test_after_the_response_receive_gives_the_disconnect(autojump_clock: Clock) -> None:
    """receive() after a complete response is http.disconnect at once, with the body unread, too."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_text(send, b"complete")
        for _ in range(2):
            assert (await receive())["type"] == "http.disconnect"

    async with calling(app) as client:
        for _ in range(2):
            assert (await client.request("POST", body=b"unread")).body == b"complete"


async def test_a_listener_hears_of_the_end_of_the_response(autojump_clock: Clock) -> None:
    """A task that waits in receive(), for the body or for the end, gets http.disconnect when another completes the
    response."""
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            heard.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            await send_text(send, b"complete")

    async with memory_server(http_app(app)) as server:
        client = await server.connect()
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        await client.stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == ["http.disconnect"] * 2


async def test_pieces_go_to_one_task_and_the_disconnect_to_all(autojump_clock: Clock) -> None:
    """Several tasks may receive: each piece goes to one of them, http.disconnect to every one."""
    pieces: list[bytes] = []
    disconnects = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            nonlocal disconnects
            while (message := await receive())["type"] == "http.request":
                pieces.append(message["body"])
            disconnects += 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(listen)

    async with calling(app) as client:
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        for byte in b"abc":
            await trio.testing.wait_all_tasks_blocked()
            await client.raw(bytes([byte]))
        await trio.testing.wait_all_tasks_blocked()
        assert (pieces, disconnects) == ([b"a", b"b", b"c"], 0)
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert disconnects == 3


async def test_a_listener_that_is_cancelled_leaves_its_place(autojump_clock: Clock) -> None:
    """A task cancelled while it waits for a piece loses nothing: the next one to ask gets it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.move_on_after(1):
            await receive()
        await send_text(send, await read_body(receive))

    async with calling(app) as client:
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        await trio.sleep(2)
        await client.raw(b"hello")
        assert (await client.stream.receive_some()).endswith(b"hello")


async def test_what_is_ready_is_given_without_a_checkpoint(autojump_clock: Clock) -> None:
    """A piece that is there, and the disconnect, are returned without a checkpoint, also in a cancelled scope."""
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            with trio.testing.assert_no_checkpoints():
                kinds.append((await receive())["type"])
        await trio.sleep(1)
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            with trio.testing.assert_no_checkpoints():
                kinds.append((await receive())["type"])

    async with calling(app) as client:
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        await trio.sleep(2)
        assert kinds == ["http.request", "http.disconnect"]


async def test_a_client_that_is_there_is_not_given_up_in_a_cancelled_scope(autojump_clock: Clock) -> None:
    """Starlette's is_disconnected asks in a cancelled scope: it learns nothing while the client is there."""
    learned: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            learned.append(await receive())
        await send_text(send, b"still here")

    async with calling(app) as client:
        assert (await client.get()).body == b"still here"
        assert learned == []


# What an application sends


async def test_several_tasks_may_send(autojump_clock: Clock) -> None:
    """Pieces of several tasks go out whole and in the order of their sends."""
    sent: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

        async def talk(name: bytes) -> None:
            for number in range(20):
                piece = name * 1000 + b"%d" % number
                sent.append(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        async with trio.open_nursery() as nursery:
            for name in (b"a", b"b", b"c"):
                nursery.start_soon(talk, name)
        await send({"type": "http.response.body"})

    async with calling(app) as client:
        assert (await client.get()).body == b"".join(sent)


async def test_send_is_cancelled_before_it_sends(autojump_clock: Clock) -> None:
    """send() in a cancelled scope sends nothing and is cancelled."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await send({**START, "status": 500})
        assert cancelled.cancelled_caught
        await send_text(send, b"good")

    async with calling(app) as client:
        assert (await client.get()).status == 200


async def test_a_scope_cancelled_after_the_head(autojump_clock: Clock) -> None:
    """A first piece that is cancelled is not sent, and the connection can still be used."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as cancelled:
            await send(START)
            cancelled.cancel()
            await send(PIECE)
        assert cancelled.cancelled_caught
        await send(LAST)

    async with calling(app) as client:
        assert (await client.get()).body == LAST["body"]


@pytest.mark.parametrize(
    "messages",
    [
        [START, LAST],
        [{"type": "http.response.early_hint", "links": [b"</a>"]}],
        [START, PIECE],
        [START, {"type": "http.response.pathsend", "path": __file__}],
    ],
)
async def test_send_after_the_client_has_left_raises(messages: list[Message]) -> None:
    """Once nothing reaches the client send() raises ClientDisconnected, which is an OSError (ASGI 2.4)."""
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        try:
            for message in messages:
                await send(message)
        except OSError as error:
            raised.append(error)
            raise

    async with memory_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            await client.raw(GET)
            await trio.testing.wait_all_tasks_blocked()
            await client.aclose()
            while server.server.statistics().connections:
                await trio.sleep(0.01)
        assert [type(error) for error in raised] == [ClientDisconnected]
        assert server.errors == []
        assert server.records[0].outcome is Outcome.CLIENT_LEFT


async def test_send_over_a_socket_that_was_reset_raises() -> None:
    """A reset on a real socket ends a stream of pieces with ClientDisconnected."""
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            raised.append(error)
            raise

    async with socket_server(http_app(app)) as server:
        with trio.fail_after(DEADLINE):
            client = await server.connect()
            await client.raw(GET)
            await client.stream.receive_some()
            await client.aclose()
            while not server.records:
                await trio.sleep(0.01)
        assert [type(error) for error in raised] == [ClientDisconnected]
        assert server.errors == []


async def test_tiny_chunks_let_others_run(autojump_clock: Clock) -> None:
    """A client that sends its body in the smallest chunks keeps nobody waiting: others have their turn in between."""
    turns, counts = 0, []

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            before = turns
            message = await receive()
            more = message["more_body"]
            counts.append((len(message["body"]), turns - before))
        await send_text(send, b"read")

    async with calling(app) as client, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        body = b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"
        await client.raw(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        assert (await client.stream.receive_some()).endswith(b"read")
        nursery.cancel_scope.cancel()
    assert sum(size for size, _ in counts) == 10_000
    assert max(size for size, _ in counts) <= CHUNKS_AT_ONCE
    full = [between for size, between in counts if size == CHUNKS_AT_ONCE]
    assert len(full) >= 8
    assert sum(full) >= len(full) - 1  # which of two tasks runs first is left to chance
