"""The demo application, driven as a server would drive it: a scope, a receive and a send made by hand."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field

import pytest
import trio

from trioserve import demo
from trioserve.demo import Message, Scope, State, Visits
from trioserve.demo_chat import Room


@dataclass
class Call:
    """One call of the application: what it will receive, and what it has sent."""

    scope: Scope
    incoming: list[Message] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    sends_until_gone: float = math.inf

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        return self.incoming.pop(0) if self.incoming else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if len(self.sent) >= self.sends_until_gone:
            raise BrokenPipeError
        self.sent.append(message)

    async def run(self) -> Call:
        with trio.fail_after(5):
            await demo.app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        """Each piece but the last said that there is more."""
        pieces = [message.get("more_body", False) for message in self.sent[1:]]
        return pieces == [True] * (len(pieces) - 1) + [False]


def http(method: str, path: str, *body: bytes, query: bytes = b"", state: State | None = None) -> Call:
    scope: Scope = {"type": "http", "method": method, "path": path, "query_string": query}
    if state is not None:
        scope["state"] = state
    last = len(body) - 1
    pieces: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": number < last} for number, piece in enumerate(body)
    ]
    return Call(scope, pieces or [{"type": "http.request"}])


async def test_lifespan_leaves_the_applications_memory_in_the_state():
    """Start-up puts the memory of the application into the lifespan state, and shutdown is answered."""
    state: State = {}
    call = Call({"type": "lifespan", "state": state}, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    await call.run()
    assert [message["type"] for message in call.sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert state["visits"].requests == 0
    assert state["chat"].participants == []


async def test_lifespan_without_state_is_answered_too():
    """A server that knows no lifespan state can still run the application."""
    call = await Call({"type": "lifespan"}, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]).run()
    assert len(call.sent) == 2


async def test_other_protocols_are_refused():
    """A scope that the application does not know raises, as ASGI asks."""
    with pytest.raises(NotImplementedError, match="not webtransport"):
        await Call({"type": "webtransport"}).run()


async def test_page_shows_what_the_lifespan_remembers():
    """The page is whole HTML and shows the counters of the shared state."""
    state: State = {"visits": Visits(requests=41, listeners=7)}
    call = await http("GET", "/", state=state).run()
    assert call.status == 200
    assert call.headers[b"content-type"] == b"text/html; charset=utf-8"
    assert call.headers[b"content-length"] == str(len(call.body)).encode()
    assert b"Requests so far: 42. Listening to events now: 7." in call.body
    assert b"[started]" not in call.body
    assert call.body.endswith(b"</html>\n")


async def test_page_works_without_lifespan():
    """Without lifespan state every request starts from nothing."""
    assert b"Requests so far: 0." in (await http("GET", "/").run()).body


@pytest.mark.parametrize("path", ["/", "/download", "/events", "/chat"])
async def test_head_is_answered_like_get_but_without_a_body(path):
    """HEAD gives the fields of GET and ends, also where GET would go on for ever."""
    call = await http("HEAD", path).run()
    assert call.status == 200
    assert call.body == b""
    assert call.is_complete
    assert b"content-type" in call.headers


async def test_echo_answers_the_same_json():
    """A JSON body in several pieces comes back as JSON of the same value."""
    value = {"hello": ["wörld", 1, None]}
    content = json.dumps(value).encode()
    call = await http("POST", "/echo", content[:5], content[5:]).run()
    assert call.status == 200
    assert call.headers[b"content-type"] == b"application/json"
    assert json.loads(call.body) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"NaN", b"[" * 50_000], ids=repr)
async def test_echo_refuses_what_is_not_json(content):
    """A body that is not JSON gets 400 and a text that says why."""
    call = await http("POST", "/echo", content).run()
    assert call.status == 400
    assert call.headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert call.body.startswith(b"The body is not JSON: ")


async def test_echo_reads_no_more_than_its_limit():
    """One byte too many gets 413, and what follows is not read."""
    call = http("POST", "/echo", b" " * demo.ECHO_LIMIT, b" ", b"never read")
    assert (await call.run()).status == 413
    assert [message["body"] for message in call.incoming] == [b"never read"]


@pytest.mark.parametrize("count", [0, 1, len(demo.PIECE), len(demo.PIECE) + 1, 3 * len(demo.PIECE)])
async def test_download_sends_as_many_bytes_as_asked_for(count):
    """The length is announced and kept, in pieces that do not exceed the piece size."""
    call = await http("GET", "/download", query=b"bytes=%d" % count).run()
    assert call.status == 200
    assert call.headers[b"content-length"] == b"%d" % count
    assert len(call.body) == count
    assert call.is_complete
    assert max(len(message["body"]) for message in call.sent[1:]) <= len(demo.PIECE)


async def test_download_has_a_default_size():
    """Without a query the default is sent."""
    assert len((await http("GET", "/download").run()).body) == demo.DOWNLOAD_DEFAULT


@pytest.mark.parametrize("text", ["-1", "x", "1e3", "²", "1073741825", "9" * 5000], ids=lambda text: text[:12])
async def test_download_refuses_other_sizes(text):
    """What is not a whole number up to the limit gets 400."""
    call = await http("GET", "/download", query=b"bytes=" + text.encode()).run()
    assert call.status == 400


async def test_upload_counts_bytes_and_keeps_none():
    """The answer has the number of bytes and their SHA-256."""
    call = await http("POST", "/upload", b"abc", b"", b"def").run()
    assert json.loads(call.body) == {"bytes": 6, "sha256": hashlib.sha256(b"abcdef").hexdigest()}


@pytest.mark.parametrize("path", ["/echo", "/upload"])
async def test_client_that_leaves_in_the_middle_of_its_body_is_not_answered(path):
    """A body cut short by a disconnect ends the handler without a response."""
    call = http("POST", path)
    call.incoming = [{"type": "http.request", "body": b"[1,", "more_body": True}]
    assert (await call.run()).sent == []


async def test_events_come_once_per_second_until_cancelled(autojump_clock):
    """Events are numbered and a second apart; the number of listeners falls back when the handler is cancelled."""
    visits = Visits()
    call = http("GET", "/events", state={"visits": visits})
    with trio.move_on_after(2.5):
        await call.run()
    assert call.headers[b"content-type"] == b"text/event-stream"
    events = call.body.decode().removesuffix("\n\n").split("\n\n")
    assert [json.loads(event.partition("\ndata: ")[2])["count"] for event in events] == [1, 2, 3]
    assert [event.partition("\n")[0] for event in events] == ["id: 1", "id: 2", "id: 3"]
    assert visits.listeners == 0


async def test_events_end_with_the_error_of_send_when_the_client_has_left(autojump_clock):
    """A failing send ends the stream, and the listener is no longer counted."""
    visits = Visits()
    call = http("GET", "/events", state={"visits": visits})
    call.sends_until_gone = 3
    with pytest.raises(BrokenPipeError):
        await call.run()
    assert visits.listeners == 0


async def test_unknown_path_gets_404_with_a_text():
    """A path without a handler is not found."""
    call = await http("GET", "/nowhere").run()
    assert (call.status, call.body) == (404, b"There is nothing at /nowhere\n")


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", "/echo", b"POST"), ("POST", "/", b"GET, HEAD")])
async def test_wrong_method_gets_405_and_learns_the_right_one(method, path, allowed):
    """RFC 9110 §15.5.6: the answer names the methods that are allowed."""
    call = await http(method, path).run()
    assert call.status == 405
    assert call.headers[b"allow"] == allowed
    assert method.encode() in call.body


def websocket(path: str, *, query: bytes = b"", state: State | None = None) -> Call:
    scope: Scope = {"type": "websocket", "path": path, "query_string": query}
    if state is not None:
        scope["state"] = state
    return Call(scope, [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}])


async def test_chat_page_is_linked_and_needs_nothing_from_elsewhere():
    """GET /chat gives a whole page that loads nothing from another host."""
    assert b'href="/chat"' in (await http("GET", "/").run()).body
    call = await http("GET", "/chat").run()
    assert (call.status, call.headers[b"content-type"]) == (200, b"text/html; charset=utf-8")
    assert call.body.endswith(b"</html>\n")
    assert b"limit]" not in call.body
    assert b"//" not in call.body.replace(b"  // ", b"")  # neither an address nor a comment taken for one


async def test_chat_socket_enters_the_room_of_the_lifespan_under_the_name_of_the_query():
    """All websockets of one server meet in the room that its lifespan left."""
    state: State = {"visits": Visits(), "chat": Room()}
    state["chat"].enter("Bob")
    call = websocket("/chat/socket", query=b"name=Zo%C3%AB+A", state=state)
    receive = call.receive

    async def receive_while_looking_round() -> Message:
        assert state["chat"].names() == ["Bob", "Zoë A"]
        return await receive()

    call.receive = receive_while_looking_round
    await call.run()
    assert call.sent[0] == {"type": "websocket.accept"}
    assert state["chat"].names() == ["Bob"]


async def test_chat_socket_works_without_lifespan():
    """Without lifespan state there is a room too, with nobody else in it."""
    call = await websocket("/chat/socket").run()
    assert call.sent[0] == {"type": "websocket.accept"}


@pytest.mark.parametrize("path", ["/", "/chat", "/chat/socket/", "/nowhere"])
async def test_other_websockets_are_refused_before_they_open(path):
    """A path without a websocket gets websocket.close instead of an accept, which the client sees as 403."""
    call = await websocket(path).run()
    assert call.sent == [{"type": "websocket.close"}]
    assert [message["type"] for message in call.incoming] == ["websocket.disconnect"]  # connect has been received
