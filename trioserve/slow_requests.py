"""Tells of requests that take long, and where they wait, while they still do; or afterwards, if they blocked all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Protocol

import trio

from .clock import Clock
from .exchange import Request
from .logs import SlowRecord, contain, log_slow, slow_log
from .waits import Wait, find_deepest_wait

PAUSE = 1.0
"""Seconds between two lines at least; what is not said meanwhile is counted."""

SPACING = 0.05
"""Seconds between two looks at least: each goes through all requests that run."""


class ActiveExchange(Protocol):
    """A request whose application runs."""

    @property
    def request(self) -> Request: ...

    @property
    def started(self) -> float:
        """On Trio's clock."""
        ...

    @property
    def status(self) -> int | None: ...

    @property
    def ended(self) -> bool: ...


ActiveExchanges = Mapping[ActiveExchange, trio.lowlevel.Task | None]
"""Those of a server, oldest first, each with its task."""


class SlowRequests:
    """Those of one server: it looks when the oldest that it has not looked at is due, and never while there is none.

    WebSockets do not count, and neither does what an application does after its response.
    """

    def __init__(self, limit: float, clock: Clock, active: ActiveExchanges) -> None:
        self._limit = limit
        self._clock = clock
        self._active = active
        self._timer = clock.timer(self._look)
        # When the last one began that was counted, and the last that was said or counted in a line.
        self._looked_to = self._said_to = -inf
        self._unsaid = 0
        self._next_line = -inf

    def began(self, exchange: ActiveExchange) -> None:
        if self._timer.deadline == inf and exchange.request.protocol is None:
            self._timer.set(exchange.started + self._limit)

    def ended(self, exchange: ActiveExchange) -> None:
        """Its response has. If it took long and nobody has looked at it, nothing could look: then tell of it now."""
        now = self._clock.now()
        is_slow = now - exchange.started > self._limit and exchange.request.protocol is None
        if not is_slow or exchange.started <= self._looked_to:
            return
        self._unsaid += 1
        # Else it was the pause between two lines, or two looks, that kept us from it, and the next one counts it.
        if now >= max(self._timer.deadline, self._next_line):
            log_slow(self._record(exchange, None, now, self._take_unsaid(now) - 1))

    def _look(self) -> None:
        now = self._clock.now()
        due, next_look = self._find_due(now)
        fresh = [one.started for one in due if one.started > self._looked_to]
        if fresh:
            self._unsaid += len(fresh)
            self._looked_to = fresh[-1]
        if self._unsaid and now < self._next_line:
            next_look = min(next_look, self._next_line)
        elif self._unsaid:
            self._say(due, now)
        if next_look != inf:
            self._timer.set(max(next_look, now + SPACING))

    def _find_due(self, now: float) -> tuple[list[ActiveExchange], float]:
        """Those that are due and not said, and when the next one will be."""
        due: list[ActiveExchange] = []
        for exchange in self._active:
            if exchange.started <= self._said_to or exchange.ended or exchange.request.protocol is not None:
                continue
            if exchange.started + self._limit > now:
                return due, exchange.started + self._limit
            due.append(exchange)
        return due, inf

    def _say(self, due: Sequence[ActiveExchange], now: float) -> None:
        """Tell of the oldest, and of how many it stands for."""
        count = self._take_unsaid(now)
        if due:
            # Reading the frames of foreign code may raise, and this is the task of every clock of the server.
            contain(due[0].request.id, self._tell, due[0], now, count - 1)
        else:
            text = "%d more %s taken longer than %g s"
            contain(None, slow_log.warning, text, count, "request has" if count == 1 else "requests have", self._limit)

    def _take_unsaid(self, now: float) -> int:
        """How many the line stands for that is said now."""
        count, self._unsaid = self._unsaid, 0
        self._said_to = self._looked_to
        self._next_line = now + PAUSE
        return count

    def _tell(self, exchange: ActiveExchange, now: float, more: int) -> None:
        task = self._active[exchange]
        log_slow(self._record(exchange, Wait() if task is None else find_deepest_wait(task), now, more))

    def _record(self, exchange: ActiveExchange, wait: Wait | None, now: float, more: int) -> SlowRecord:
        """``wait``: None if it waits no more."""
        request = exchange.request
        return SlowRecord(
            client=request.endpoint.client_name,
            method=request.method,
            target=request.target.decode("ascii"),
            http_version=request.http_version,
            status=exchange.status,
            age=now - exchange.started,
            place=None if wait is None or wait.place is None else str(wait.place),
            waits_for=None if wait is None else wait.what,
            more=more,
            ended=wait is None,
            request_id=request.id,
        )
