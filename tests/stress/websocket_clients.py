"""Good clients over WebSockets: fragments, compression, pings, and every message checked."""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Sequence

import trio
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage
from wsproto.utilities import RemoteProtocolError

from ..support import Answer
from ..websocket_client import WebSocketClient, handshake_bytes, open_handshake
from .app import PREFIX
from .clients import PAUSE, IsOver
from .content import content
from .http_client import PATIENCE, Address, Broken, WrongBytes, open_stream, port_of
from .ledger import Ledger, Life

PATHS = ("echo", "echo", "echo", "fail", "refuse", "push")

MOST = 60_000  # bytes of a message; the attacks want a low limit
GOING = 1012  # RFC 6455 §7.4: service restart


class Left(Exception):
    """The server has closed the WebSocket, as one does that leaves."""


class WebSocketTalker:
    """Opens one WebSocket after the other, and talks."""

    def __init__(self, number: int, addresses: Sequence[Address], ledger: Ledger, chance: random.Random) -> None:
        self._address = addresses[number % len(addresses)]
        self._number = number
        self._ledger = ledger
        self._chance = chance
        self.life = Life("")

    async def run(self, is_over: IsOver) -> None:
        while not is_over():
            await self.talk(is_over, self._chance.choice(PATHS))
            await trio.sleep(self._chance.uniform(0, 2 * PAUSE))

    async def talk(self, is_over: IsOver, path: str) -> None:
        """One WebSocket from its beginning to its end."""
        kind, ledger = f"WebSocket {path}", self._ledger
        self.life = Life(f"{self._address.scheme} WebSocket {self._number}, {path}")
        began = trio.current_time()
        ledger.sent[kind] += 1
        try:
            # Each wait has its own patience: a talk may be as long as it likes.
            await self._talk(path, is_over)
        except (WrongBytes, RemoteProtocolError) as error:
            ledger.found_wrong(kind, str(error), self.life)
        except Left as error:
            if ledger.is_leaving(self.life.opened):
                ledger.explained["its worker left"] += 1
            else:
                ledger.fail(kind, str(error), self.life, began=self.life.used)
        except (Broken, trio.BrokenResourceError, OSError) as error:
            ledger.fail(kind, f"{type(error).__name__}: {error}", self.life, began=began)
        except trio.TooSlowError:
            ledger.fail(kind, f"nothing came for {PATIENCE} s", self.life, began=trio.current_time())
        else:
            ledger.verify(kind)

    async def _talk(self, path: str, is_over: IsOver) -> None:
        with trio.fail_after(PATIENCE):
            stream = await open_stream(self._address)
        self.life.name += f", from port {port_of(stream)}"
        try:
            with trio.fail_after(PATIENCE):
                opened = await self._open(stream, path)
            if isinstance(opened, WebSocketClient):
                await {"echo": self._echo, "fail": self._see_fail, "push": self._see_pushed}[path](opened, is_over)
        finally:
            await trio.aclose_forcefully(stream)

    async def _open(self, stream: trio.abc.Stream, path: str) -> WebSocketClient | None:
        extensions = []
        if self._chance.random() < 0.5:
            extensions.append((b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits"))
        try:
            opened = await open_handshake(stream, handshake_bytes(PREFIX + path, *extensions))
        except AssertionError as error:
            raise Broken(f"no answer to the handshake: {error}") from error
        if isinstance(opened, WebSocketClient):
            number = await self._receive(opened)
            self.life.worker, self.life.answers = int(number), 1
            if path == "refuse":
                raise WrongBytes("a WebSocket that must be refused is open")
            return opened
        return self._check_refusal(opened, path)

    def _check_refusal(self, answer: Answer, path: str) -> None:
        if answer.status == 503:
            raise Left(f"503: {answer.body[:60]!r}")
        if path != "refuse" or answer.status != 403:
            raise Broken(f"answered {answer.status} {answer.body[:60]!r}")

    async def _echo(self, client: WebSocketClient, is_over: IsOver) -> None:
        chance = self._chance
        for _ in range(chance.randrange(1, 30)):
            messages = [self._make_message() for _ in range(chance.randrange(1, 5))]
            for message in messages:
                self.life.note(f"> {type(message).__name__} of {len(message)}")
                await self._send(client, *self._frames_of(message))
            self._ledger.sent["message"] += len(messages)
            for message in messages:
                came = await self._receive(client)
                if came != message:
                    raise WrongBytes(f"{len(came)} {came[:60]!r} is no echo of {len(message)} {message[:60]!r}")
                self._ledger.verify("message")
            await trio.sleep(chance.uniform(0, PAUSE))
            if is_over():
                break
        await self._close(client)

    def _make_message(self) -> str | bytes:
        chance = self._chance
        data = content(chance.randrange(2**32), 0, int(MOST ** chance.random()) - 1)
        return base64.b85encode(data[: MOST * 3 // 4]).decode() if chance.random() < 0.5 else data

    def _frames_of(self, message: str | bytes) -> list[Event]:
        make = TextMessage if isinstance(message, str) else BytesMessage
        cuts = sorted(self._chance.randrange(len(message) + 1) for _ in range(self._chance.randrange(4)))
        places = [0, *cuts, len(message)]
        frames: list[Event] = []
        for number, (start, end) in enumerate(itertools.pairwise(places)):
            frames.append(make(data=message[start:end], message_finished=number == len(cuts)))
            if self._chance.random() < 0.05:
                frames.append(Ping(payload=b"between"))
        return frames

    async def _see_fail(self, client: WebSocketClient, is_over: IsOver) -> None:
        """An application that raises: 1011."""
        await self._send(client, TextMessage(data="go"))
        event = await self._next(client)
        if not isinstance(event, CloseConnection) or event.code != 1011:
            raise _unexpected(event)

    async def _see_pushed(self, client: WebSocketClient, is_over: IsOver) -> None:
        for number in range(self._chance.randrange(100)):
            if is_over():
                break
            came = await self._receive(client)
            if came != str(number):
                raise WrongBytes(f"{came[:60]!r} instead of {number}")
        if self._chance.random() < 0.5:
            await self._close(client)

    async def _close(self, client: WebSocketClient) -> None:
        await self._send(client, CloseConnection(code=1000))
        while not isinstance(event := await self._next(client), CloseConnection):
            if not isinstance(event, Message):
                raise _unexpected(event)
        if event.code != 1000:
            raise _unexpected(event)

    async def _send(self, client: WebSocketClient, *events: Event) -> None:
        with trio.fail_after(PATIENCE):
            await client.send(*events)

    async def _receive(self, client: WebSocketClient) -> str | bytes:
        pieces = []
        while True:
            event = await self._next(client)
            if not isinstance(event, Message):
                raise _unexpected(event)
            pieces.append(event.data)
            if event.message_finished:
                return "".join(pieces) if isinstance(event, TextMessage) else b"".join(map(bytes, pieces))

    async def _next(self, client: WebSocketClient) -> Event:
        """The next event that is no ping or pong; pings are answered."""
        with trio.fail_after(PATIENCE):
            while isinstance(event := await client.next_event(), Ping | Pong):
                self.life.note(f"< {_describe(event)}")
                if isinstance(event, Ping) and client.wsproto.state is ConnectionState.OPEN:
                    await client.send(event.response())
        self.life.note(f"< {_describe(event)}")
        return event


def _describe(event: Event) -> str:
    if not isinstance(event, Message):
        return repr(event)
    # The text of a whole message costs as much as to check it.
    return f"{type(event).__name__} of {len(event.data)}: {event.data[:60]!r}"


def _unexpected(event: Event) -> Exception:
    if isinstance(event, CloseConnection):
        if event.code == GOING:
            return Left("closed with 1012")
        return Broken(f"closed with {event.code} {event.reason!r}")
    return WrongBytes(f"unexpected: {event!r}")
