"""What a connection does at one moment, for those who look at a server from outside; all of it for any thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import trio

from .exchange import Request
from .types import PlainValues


class State(StrEnum):
    """What a connection does, in the order in which one that does several things is told by one of them."""

    SERVES = "serves"
    WEBSOCKET = "WebSocket"
    BEHIND = "works on after its response"
    HEAD = "reads a head"
    IDLE = "idle"
    TLS = "TLS handshake"
    PROXY = "PROXY header"
    BEGINS = "begins"
    CLOSES = "closes"


class OpenExchange(Protocol):
    """A request whose application runs."""

    @property
    def request(self) -> Request: ...

    @property
    def status(self) -> int | None: ...

    @property
    def ended(self) -> bool: ...

    @property
    def started(self) -> float:
        """On Trio's clock."""
        ...

    def describe(self, now: float) -> str:
        """What it is, and for how many seconds it has been, in words; ``now`` is Trio's."""
        ...

    def to_plain(self, now: float) -> PlainValues: ...


@dataclass(frozen=True, slots=True)
class Activity:
    """What one task of a connection does. ``since`` is when it began to read a head, or to wait for one; ``requests``
    are those of its connection so far.
    """

    task: trio.lowlevel.Task
    client: str
    exchange: OpenExchange | None
    since: float | None
    has_begun: bool
    requests: int

    @property
    def state(self) -> State:
        exchange = self.exchange
        if exchange is None:
            if self.since is None:
                return State.CLOSES
            return State.HEAD if self.has_begun else State.IDLE
        if exchange.request.protocol is not None and exchange.status == 101:
            return State.WEBSOCKET
        return State.BEHIND if exchange.ended else State.SERVES

    def describe(self, now: float) -> str:
        """In words; ``now`` is Trio's."""
        if self.exchange is not None:
            return f"{self.exchange.request.endpoint.client_name} {self.exchange.describe(now)}"
        if self.since is None:
            return f"{self.client} {State.CLOSES}"
        return f"{self.client} {self.state}, {now - self.since:.1f} s"


@dataclass(frozen=True, slots=True)
class ConnectionActivity:
    """What a connection does. ``began`` and ``since``, when it began to do that, are on Trio's clock.

    ``task`` is the one that serves it, None before it has begun; ``parts`` are its tasks that speak HTTP, more than one
    where requests are served beside the background tasks of others.
    """

    client: str
    listener: str
    is_secured: bool
    began: float
    since: float
    state: State
    task: trio.lowlevel.Task | None
    parts: Sequence[Activity]

    @property
    def requests(self) -> int:
        """How many it has brought."""
        return max((one.requests for one in self.parts), default=0)

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts those first that somebody who looks is most likely to be after: what is served, the oldest first."""
        return (_ORDER[self.state], self.since)


_ORDER = {state: number for number, state in enumerate(State)}


def sum_up(parts: Sequence[Activity], began: float) -> tuple[State, float]:
    """What a connection does as a whole, and since when; ``began`` is when it did, if nothing tells better."""
    first = min(parts, key=lambda one: _ORDER[one.state])
    if first.exchange is not None:
        return first.state, first.exchange.started
    return first.state, began if first.since is None else first.since
