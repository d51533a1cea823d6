"""What happened in a run, and what explains it: everything that is counted, and the judge of every failure."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

import trio

EXAMPLES = 8
"""Failures that are kept with all that is known of them."""

LATE = 0.8
"""Seconds that the driver must have been late itself before it forgives what a server does to clients that are late."""


@dataclass
class Life:
    """What is known of one connection of a client. Times are Trio's."""

    name: str
    opened: float = field(default_factory=trio.current_time)
    worker: int | None = None
    """The process that serves it; None until it has answered."""
    answers: int = 0
    used: float = field(default_factory=trio.current_time)
    """When it last sent or received anything."""
    asked: float = field(default_factory=trio.current_time)
    """When it last sent a request. The server may have been done with it soon after that: kernels hold megabytes that
    the client has yet to read.
    """
    transcript: deque[str] = field(default_factory=lambda: deque(maxlen=12))

    def note(self, text: object) -> None:
        self.used = trio.current_time()
        self.transcript.append(f"{self.used - self.opened:.3f} {text}"[:200])

    def __str__(self) -> str:
        lines = "".join(f"\n      {line}" for line in self.transcript)
        return f"{self.name}, worker {self.worker}, {self.answers} answered{lines}"


@dataclass
class Leaving:
    """A time in which workers are told to leave, one after the other: a roll, or when there are to be fewer."""

    began: float
    ended: float = math.inf


@dataclass(frozen=True)
class Clocks:
    """What the server was told, in seconds: after so long it may close what is idle, or cut what a roll waits for."""

    keep_alive: float
    graceful: float


@dataclass
class Ledger:
    """All that the driver knows of a run."""

    clocks: Clocks
    sent: Counter[str] = field(default_factory=Counter)
    verified: Counter[str] = field(default_factory=Counter)
    left: int = 0
    """Clients that left on purpose, or did not care what they were told."""
    wrong: int = 0
    failed: int = 0
    """Failures without cause."""
    examples: list[str] = field(default_factory=list)
    """The first of what was wrong or failed without cause, with all that is known of them."""
    explained: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    cut_short: int = 0
    """Attacks that had not come to their end when the load did."""
    unmet: list[str] = field(default_factory=list)
    kills: list[tuple[float, int]] = field(default_factory=list)
    leavings: list[Leaving] = field(default_factory=list)
    rolls: int = 0
    resizes: int = 0
    breakers: int = 0
    """Requests that asked to break the task tree."""
    late: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=100))
    """When the driver's own event loop was late, and by how much."""
    lateness: float = 0.0

    # What the driver does

    def killed(self, pid: int) -> None:
        self.kills.append((trio.current_time(), pid))

    def begin_leaving(self) -> Leaving:
        """Workers are told to leave from now on; whoever knows when the last was says so in what this returns."""
        self.leavings.append(Leaving(trio.current_time()))
        return self.leavings[-1]

    def was_late(self, seconds: float) -> None:
        self.lateness = max(self.lateness, seconds)
        if seconds > LATE:
            self.late.append((trio.current_time(), seconds))

    @property
    def killed_workers(self) -> set[int]:
        return {pid for _, pid in self.kills}

    # What becomes of it

    def verify(self, kind: str) -> None:
        self.verified[kind] += 1

    def found_wrong(self, kind: str, reason: str, life: Life) -> None:
        """Bytes that are not what they must be. Nothing explains these."""
        self.wrong += 1
        self._keep(f"wrong bytes: {kind}: {reason}; {life}")

    def fail(self, kind: str, reason: str, life: Life, *, began: float) -> str | None:
        """A failure of a request that began then; returns its cause, or None, and then it counts against the server."""
        cause = self.explain(life, began)
        if cause is None:
            self.failed += 1
            self._keep(f"failed without cause: {kind}: {reason}; {life}")
        else:
            self.explained[cause] += 1
        return cause

    def _keep(self, example: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def explain(self, life: Life, began: float) -> str | None:
        """Why a connection broke in a request that began then, by what the driver did; None: for no reason."""
        now = trio.current_time()
        if self.died(life):
            return "its worker was killed"
        # A worker that leaves lets requests finish, for so long.
        if now - began >= self.clocks.graceful and self.is_leaving(life.opened):
            return "its worker left, and did not wait for longer"
        # What the server says of a slow client is true then.
        if any(at >= began for at, _ in self.late):
            return "the driver itself did not run for a while"
        return None

    def is_leaving(self, since: float) -> bool:
        """Whether any worker was leaving, and finished what it had, at some time since then."""
        return any(one.ended + self.clocks.graceful >= since for one in self.leavings)

    def died(self, life: Life) -> bool:
        """Whether the connection's worker was killed, or may have been, if it is not known."""
        if life.worker is not None:
            return life.worker in self.killed_workers
        return any(at >= life.opened for at, _ in self.kills)

    def explain_close(self, life: Life, idle: float) -> str | None:
        """Why a connection that had been used before was closed after so many idle seconds."""
        if self.died(life):
            return "its worker was killed"
        if idle >= LATE * min(self.clocks.keep_alive, self.clocks.graceful):
            return "it was idle for long"
        # A worker that leaves keeps idle connections until their next request, or for so long.
        now = trio.current_time()
        if any(
            one.began + LATE * self.clocks.graceful <= now <= one.ended + self.clocks.graceful + LATE
            for one in self.leavings
        ):
            return "its worker left, and did not wait for longer"
        return None
