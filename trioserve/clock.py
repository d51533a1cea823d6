"""One task that keeps every deadline of a server.

A deadline belongs to a wait: setting one must cost less than a cancel scope (5 µs), since every request sets several. A
timer is only a number until the clock sees it pass. Each timer has at most one entry in the heap that matters; a later
deadline leaves the old entry where it is, to be moved when it comes up, so that setting it again for the next request
costs one comparison.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

import trio

COMPACT_AT = 256
"""Heap entries below which stale ones are not worth sweeping."""


def _nothing() -> None: ...


class Timer:
    """Calls ``fire`` once when Trio's clock passes its deadline."""

    __slots__ = ("_clock", "_fire", "deadline", "entry")

    def __init__(self, clock: Clock, fire: Callable[[], None]) -> None:
        self._clock = clock
        self._fire = fire
        self.entry = inf  # the time of the heap entry that counts
        self.deadline = inf

    def set(self, deadline: float) -> None:
        """Set or move the deadline; inf disarms."""
        self.deadline = deadline
        if deadline < self.entry:
            self.entry = deadline
            self._clock.push(deadline, self)

    def close(self) -> None:
        """Disarm for good, and let the clock drop what it keeps."""
        self.deadline = inf
        self._fire = _nothing  # the clock may keep this timer for long, and must not keep what it belongs to
        if self.entry != inf:
            self.entry = inf
            self._clock.note_stale()

    def pass_entry(self, time: float, now: float) -> None:
        """The clock has reached this timer's heap entry: fire, move the entry, or drop it."""
        if time != self.entry:
            return
        self.entry = inf
        if self.deadline <= now:
            self.deadline = inf
            self._fire()
        elif self.deadline != inf:
            self.set(self.deadline)


class Clock:
    """The timers of one server; ``run`` is its task."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = trio.lowlevel.current_clock().current_time
        """The time on Trio's clock, as trio.current_time tells it, for a third of what that costs."""
        self.look: Callable[[], object] = _nothing
        """Called before anything fires: what came in time while the loop was blocked must win over its deadline."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = 0  # orders entries of the same time, and keeps heapq from comparing timers
        self._stale = 0
        self._sleep = trio.CancelScope()
        self._until = inf

    def timer(self, fire: Callable[[], None]) -> Timer:
        return Timer(self, fire)

    def push(self, time: float, timer: Timer) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, timer))
        if time < self._until:
            self._until = time
            self._sleep.deadline = time

    def note_stale(self) -> None:
        """A closed timer's entry would keep its connection alive until its time comes: sweep when they are many."""
        self._stale += 1
        if self._stale > COMPACT_AT and self._stale * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item[0] == item[2].entry]
            heapq.heapify(self._heap)
            self._stale = 0

    async def run(self) -> None:
        """Fire timers until cancelled."""
        while True:
            self._until = self._heap[0][0] if self._heap else inf
            with trio.CancelScope(deadline=self._until) as self._sleep:
                await trio.sleep_forever()
            # After a loop that was blocked, Trio's own sockets are looked at here, ours in look().
            await trio.lowlevel.checkpoint()
            self.look()
            self._fire_due(trio.current_time())

    def _fire_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            time, _, timer = heapq.heappop(self._heap)
            timer.pass_entry(time, now)
