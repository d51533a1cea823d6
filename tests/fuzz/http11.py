"""A client of HTTP/1.1 that sends anything: to both codecs, and to a whole server that has another client, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import trio
import trio.testing

from trioserve.errors import MessageError
from trioserve.types import ASGIApp, Receive, Scope, Send

from ..codec_reading import CONFIGS, MakeCodec, check_alike, check_cuts, cut, fresh_codecs, read
from ..support import Recorder, RunningServer, memory_server, plain_lifespan
from .http11_oracle import Call, Oracle
from .neighbour import Neighbour, respond, trio_run

MOST_CUTS = 7


class Ending(Enum):
    """What a client does once it has sent all."""

    HALF_CLOSES = 0
    WAITS = 1  # for the server to close
    VANISHES = 2


@dataclass(frozen=True)
class Input:
    """What a fuzzer's bytes stand for."""

    pieces: tuple[bytes, ...]
    ending: Ending
    codec: str

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def read_input(data: bytes) -> Input:
    """All but the end is what the client sends, as it is. The last byte says how, and before it are the places at which
    that is cut, in two bytes each.
    """
    how = data[-1] if data else 0
    data = data[:-1]
    places = []
    for _ in range(min(how >> 3 & MOST_CUTS, len(data) // 2)):
        places.append(int.from_bytes(data[-2:], "big"))
        data = data[:-2]
    ending = Ending((how & 3) % len(Ending))
    pieces = cut(data, [place % (len(data) + 1) for place in places])
    return Input(tuple(pieces), ending, "httptools" if how & 4 else "h11")


def write_input(
    data: bytes, places: Sequence[int] = (), ending: Ending = Ending.HALF_CLOSES, codec: str = "h11"
) -> bytes:
    """The reverse of read_input."""
    how = len(places) << 3 | (codec == "httptools") << 2 | ending.value
    return data + b"".join(place.to_bytes(2, "big") for place in places) + bytes([how])


# The codecs


def check_codecs(data: bytes, codecs: Mapping[str, MakeCodec] | None = None) -> None:
    """Both codecs read the same, wherever it is cut, hold no more than they may, and raise nothing but ProtocolError.

    ``codecs`` are others to be checked in the place of ours.
    """
    pieces = read_input(data).pieces
    codecs = codecs or fresh_codecs()
    check_alike([b"".join(pieces)], codecs)
    check_cuts(pieces, codecs)  # with heads that are known already


# The whole server


class Meant(Exception):
    """What the application raises on purpose."""


class Application:
    """Answers a request with itself, unless its path begins with something else to do."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await plain_lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await self._echo_messages(receive, send)
            return
        if await Neighbour.is_answered(scope, send):
            return
        call = Call(scope["method"], scope["raw_path"], scope["query_string"])
        self.calls.append(call)
        if call.word == b"i":  # ignores the body
            await respond(send, b"ignored")
        elif call.word == b"r":
            raise Meant
        elif call.word == b"b":  # breaks off
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise Meant
        elif call.word == b"n":  # says nothing
            return
        elif await self._read(call, receive):
            await self._answer(call, send)

    async def _read(self, call: Call, receive: Receive) -> bool:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                call.body = body
                return True
        return False

    async def _answer(self, call: Call, send: Send) -> None:
        if call.word == b"e":
            await send({"type": "http.response.start", "status": 204})
            await send({"type": "http.response.body"})
        elif call.word == b"s":  # streams
            await send({"type": "http.response.early_hint", "links": [b"</style.css>"]})
            await send({"type": "http.response.start", "status": 200})
            for piece in (call.target, b"", call.body or b""):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        else:
            await respond(send, call.echo)

    async def _echo_messages(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})


def check_server(data: bytes, app: ASGIApp | None = None) -> None:
    """What the server answers is a row of valid responses to the requests that the codec reads; its other client gets
    its own, and when both have left nothing else is there. ``app`` is another application than ours.
    """
    trio_run(_check_server, read_input(data), app)


async def _check_server(given: Input, app: ASGIApp | None) -> None:
    application = Application()
    recorder = Recorder()
    async with memory_server(app or application, recorder=recorder, config=CONFIGS[given.codec]) as server:
        neighbour = Neighbour(server)
        answer = await _talk(server, given, neighbour)
        await neighbour.check()
        await neighbour.aclose()
    # Also what the server says of an application that says nothing.
    meant = (Meant, MessageError) if any(call.word == b"n" for call in application.calls) else Meant
    unmeant = [error for error in recorder.errors if not isinstance(error, meant)]
    assert not unmeant, unmeant
    if given.ending is not Ending.VANISHES:
        reading = read(fresh_codecs()[given.codec](), given.pieces)
        Oracle(reading, application.calls, waits=given.ending is Ending.WAITS).check(answer)


async def _talk(server: RunningServer, given: Input, neighbour: Neighbour) -> bytes:
    """Send each piece once the server has taken the one before; returns all that it answers."""
    client = await server.connect()
    try:
        try:
            for piece in given.pieces:
                await neighbour.check_in_between()
                await client.raw(piece)
                await trio.testing.wait_all_tasks_blocked()
            if given.ending is Ending.HALF_CLOSES:
                await client.stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the server has closed before the end
        return b"" if given.ending is Ending.VANISHES else await client.receive_rest()
    finally:
        await client.aclose()
