"""Clients in a loop: good ones over HTTP, those that annoy, and those that attack."""

from __future__ import annotations

import itertools
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import trio

from . import catalogue
from .http_client import Address, Broken, Connection, Request, WrongBytes, open_stream
from .ledger import Ledger, Life

IsOver = Callable[[], bool]
Attack = Callable[[random.Random], Awaitable[None]]
Attacks = Mapping[str, Attack]

PAUSE = 0.05
"""Seconds between an answer and the next request of a good client, on average."""


class GoodClient:
    """Sends requests one after the other, on connections that it keeps or not, and checks every byte of the answers."""

    def __init__(self, number: int, addresses: Sequence[Address], ledger: Ledger, chance: random.Random) -> None:
        self._address = addresses[number % len(addresses)]
        self._number = number
        self._ledger = ledger
        self._chance = chance
        self._keeps = number % 3 != 0
        self._connection: Connection | None = None

    async def run(self, is_over: IsOver) -> None:
        try:
            while not is_over():
                await self.ask(catalogue.choose(self._chance))
                await trio.sleep(self._chance.uniform(0, 2 * PAUSE))
        finally:
            await self._disconnect()

    async def wait_for_deadlines(self, is_over: IsOver) -> None:
        """Ask only for what never comes: each time until the server has had enough of it."""
        while not is_over():
            await self.ask([catalogue.hang(self._chance)])

    async def ask(self, requests: Sequence[Request]) -> None:
        """Send requests until they are answered, or it is known why not, or that there is no reason."""
        self._ledger.sent.update(one.kind for one in requests)
        while requests:
            requests = await self._try(requests)

    async def _try(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Send them; returns those that are to be sent again, on a new connection."""
        began = trio.current_time()
        try:
            connection = await self._connected()
            idle, old = began - connection.life.asked, connection.life.answers
            try:
                await connection.exchange(requests)
            finally:
                done = requests[: connection.life.answers - old]
                self._ledger.verified.update(one.kind for one in done)
        except WrongBytes as error:
            assert self._connection is not None  # on which they came
            self._ledger.found_wrong(requests[0].kind, str(error), self._connection.life)
            await self._disconnect()
            return ()
        except Broken as error:
            await self._disconnect()
            return self._sort_out(requests[len(done) :], error, connection, idle, began)
        if not (self._keeps and connection.is_reusable):
            await self._disconnect()
        # Of pipelined requests those behind an answer that closes the connection are nobody's.
        return requests[len(done) :]

    def _sort_out(
        self, requests: Sequence[Request], error: Broken, connection: Connection, idle: float, began: float
    ) -> Sequence[Request]:
        ledger, life = self._ledger, connection.life
        if life.answers and not connection.has_bytes:
            # It cannot be told from an idle connection that was closed just when we sent.
            cause = ledger.explain_close(life, idle) or ledger.explain(life, began)
            if cause is not None:
                ledger.retried[cause] += 1
                return requests
        for request in requests:
            ledger.fail(request.kind, str(error), life, began=began)
        return ()

    async def _connected(self) -> Connection:
        """The kept connection, if the server has kept it too, or a new one."""
        kept = self._connection
        if kept is not None and await kept.is_closed():
            cause = self._ledger.explain_close(kept.life, trio.current_time() - kept.life.asked)
            if cause is None:
                self._ledger.fail("an idle connection", "it was closed", kept.life, began=trio.current_time())
            await self._disconnect()
        if self._connection is None:
            self._connection = Connection(self._address, self._number)
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.vanish()
            self._connection = None


async def annoy(addresses: Sequence[Address], ledger: Ledger, chance: random.Random, is_over: IsOver) -> None:
    """Ask for what the application does badly, and leave at any moment, in any way."""
    while not is_over():
        target = catalogue.choose_annoyance(chance)
        ledger.left += 1
        ledger.breakers += "abandon" in target
        try:
            with trio.move_on_after(5):
                await _annoy_once(chance.choice(addresses), target, chance)
        except (OSError, trio.BrokenResourceError):
            pass  # its worker was killed, say; nobody here wants to know
        await trio.sleep(chance.uniform(0, 4 * PAUSE))


async def _annoy_once(address: Address, target: str, chance: random.Random) -> None:
    stream = await open_stream(address)
    raw = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(raw, trio.SocketStream)
    try:
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        with trio.move_on_after(chance.uniform(0, 0.6)):
            while chance.random() < 0.9 and await stream.receive_some(4096):
                pass
            await trio.sleep_forever()
        if chance.random() < 0.3:
            await raw.send_eof()
            await trio.sleep(chance.uniform(0, 0.3))
        if chance.random() < 0.5:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # an RST
    finally:
        await trio.aclose_forcefully(stream)


class Turns:
    """Whose turn it is: all in a random order, and then again in another; first of all those that had none in full."""

    def __init__(self, names: Sequence[str], chance: random.Random | None = None) -> None:
        self.names = names
        self._chance = chance or random.Random()
        self._ahead: list[str] = []

    def take(self) -> str:
        self._ahead = self._ahead or self._chance.sample(self.names, len(self.names))
        return self._ahead.pop()

    def give_back(self, name: str) -> None:
        self._ahead.append(name)


async def attack(run: Attacks, turns: Turns, ledger: Ledger, chance: random.Random, times: int | None = None) -> None:
    """Attack in one way after the other; each raises if the server did not do with it what it must."""
    for _ in itertools.count() if times is None else range(times):
        name = turns.take()
        has_ended = False
        try:
            await _attack_once(name, run[name], ledger, chance)
            has_ended = True
        finally:
            if not has_ended:
                turns.give_back(name)
                ledger.cut_short += 1


async def _attack_once(name: str, run: Attack, ledger: Ledger, chance: random.Random) -> None:
    life = Life(f"the attack {name}")
    try:
        await run(chance)
    except* (AssertionError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as errors:
        life.note(", ".join(f"{type(error).__name__}: {error}" for error in _flat(errors)))
        _sort_out_attack(name, life, ledger)
    else:
        ledger.survived[name] += 1


def _flat(errors: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(error)
        else:
            yield error


def _sort_out_attack(name: str, life: Life, ledger: Ledger) -> None:
    cause = ledger.explain(life, life.opened)
    if cause is None and ledger.is_leaving(life.opened):
        cause = "its worker left, which has other clocks"
    if cause is None:
        ledger.unmet.append(f"{name}: {life}")
    else:
        ledger.explained[f"attack: {cause}"] += 1
