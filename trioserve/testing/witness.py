"""What a server under test tells: its requests, and what went wrong in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from ..exchange import Address, Request
from ..logs import ExchangeRecord, Outcome, WebSocketRecord
from ..observer import Observer, Phase


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A request that has ended, well or not.

    ``path`` and ``query`` are as the client sent them, percent-encoded. ``status`` is None if no response was begun.
    ``bytes`` is the size of the response's body, ``received`` that of the request's. ``duration`` is in seconds.
    ``outcome`` compares with text: "ok", "client left", "deadline", "error", "shutdown". A WebSocket is a request with
    status 101 here, and has a record of its own among ``websockets``.
    """

    method: str
    path: str
    query: str
    status: int | None
    bytes: int
    received: int
    duration: float
    outcome: Outcome
    client: str

    @classmethod
    def of(cls, record: ExchangeRecord) -> FinishedRequest:
        path, _, query = record.target.partition("?")
        return cls(
            method=record.method,
            path=path,
            query=query,
            status=record.status,
            bytes=record.sent,
            received=record.received,
            duration=record.duration,
            outcome=record.outcome,
            client=record.client,
        )


class Witness(Observer):
    """Keeps what a server tells. Told in the server's loop; the lists may be read, and emptied, from any thread."""

    def __init__(self) -> None:
        self.requests: list[FinishedRequest] = []
        self.websockets: list[WebSocketRecord] = []
        self.errors: list[BaseException] = []
        self._active: dict[int, Request] = {}
        self._changed = trio.Event()
        self.begun = 0
        """Requests that have begun."""
        self._phase = Phase.STARTING
        self._expected: list[tuple[bytes, Address | None, trio.Event]] = []
        self._taken: list[BaseException] = []

    @property
    def has_drained(self) -> bool:
        """The server has begun to stop, or has stopped."""
        return self._phase not in (Phase.STARTING, Phase.SERVING)

    @property
    def handlers_have_ended(self) -> bool:
        return self._phase in (Phase.STOPPING, Phase.STOPPED)

    @property
    def has_ended(self) -> bool:
        return self._phase is Phase.STOPPED

    @property
    def active(self) -> list[Request]:
        """Requests whose application has not returned, the oldest first."""
        return list(self._active.values())

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until this holds; looked at again when a request begins or ends, or the server enters another phase."""
        while not condition():
            await self._changed.wait()

    @contextmanager
    def expect(self, target: bytes, client: Address | None) -> Iterator[trio.Event]:
        """An event that is set when a request for this target begins; ``client`` is what the server calls its client.

        With the same target and client, as on memory streams, each event stands for one request.
        """
        expected = (target, client, trio.Event())
        self._expected.append(expected)
        try:
            yield expected[2]
        finally:
            if expected in self._expected:
                self._expected.remove(expected)

    def take_errors(self) -> list[BaseException]:
        """The errors that are still in ``errors`` and were not taken before; they stay there."""
        new: list[BaseException] = []
        for error in list(self.errors):
            if not any(error is one for one in (*self._taken, *new)):
                new.append(error)
        # Only those that are still in the list: their traces keep much alive.
        self._taken = [error for error in self._taken if any(error is one for one in self.errors)] + new
        return new

    def _ring(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def phase_changed(self, phase: Phase) -> None:
        self._phase = phase
        self._ring()

    def exchange_began(self, request: Request) -> None:
        self._active[id(request)] = request
        self.begun += 1
        for expected in self._expected:
            if expected[:2] == (request.target, request.endpoint.client):
                expected[2].set()
                self._expected.remove(expected)
                break
        self._ring()

    def exchange_left(self, request: Request) -> None:
        del self._active[id(request)]
        self._ring()

    def exchange_ended(self, record: ExchangeRecord) -> None:
        self.requests.append(FinishedRequest.of(record))

    def websocket_closed(self, record: WebSocketRecord) -> None:
        self.websockets.append(record)

    def application_failed(self, error: BaseException, request: Request | None) -> None:
        note = "raised in the application" if request is None else f"raised in the application by {request.line}"
        if type(error) is RuntimeError and str(error) == "no running event loop":
            note += "; it runs on Trio, so use trio or anyio in it, not asyncio"
        if note not in getattr(error, "__notes__", ()):
            add_note(error, note)
        self.errors.append(error)


def add_note(error: BaseException, text: str) -> None:
    """Add a note, if the error takes one: it may be a frozen dataclass."""
    with contextlib.suppress(Exception):
        error.add_note(text)
