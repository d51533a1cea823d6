"""One task that keeps every deadline of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import trio
import trio.testing

from trioserve.clock import COMPACT_AT, Clock, Timer


class Alarm:
    """A timer that notes when it fires."""

    def __init__(self, clock: Clock) -> None:
        self.times: list[float] = []
        self.timer: Timer = clock.timer(self._note)

    def _note(self) -> None:
        self.times.append(trio.current_time())


@asynccontextmanager
async def running_clock() -> AsyncIterator[Clock]:
    clock = Clock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)
        await trio.testing.wait_all_tasks_blocked()
        yield clock
        nursery.cancel_scope.cancel()


MockClock = trio.testing.MockClock


async def test_a_timer_fires_once_and_exactly(autojump_clock: MockClock) -> None:
    """A timer fires when its deadline passes, to the instant, and not again."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        alarm.timer.set(start + 5)
        await trio.sleep(100)
        assert alarm.times == [start + 5]
        assert alarm.timer.deadline == inf


async def test_timers_fire_in_order(autojump_clock: MockClock) -> None:
    """Timers fire each at its own time, in whatever order they were set; those of one time in that of setting."""
    async with running_clock() as clock:
        start = trio.current_time()
        fired: list[int] = []
        for number, seconds in enumerate([7, 3, 5, 3]):
            clock.timer(lambda number=number: fired.append(number)).set(start + seconds)  # type: ignore[misc]
        await trio.sleep(10)
        assert fired == [1, 3, 2, 0]


async def test_an_earlier_deadline_brings_the_clock_forward(autojump_clock: MockClock) -> None:
    """A deadline before the one that the clock sleeps for is kept."""
    async with running_clock() as clock:
        start = trio.current_time()
        late, early = Alarm(clock), Alarm(clock)
        late.timer.set(start + 50)
        await trio.sleep(1)
        early.timer.set(start + 2)
        await trio.sleep(100)
        assert (early.times, late.times) == ([start + 2], [start + 50])


async def test_a_deadline_that_has_passed_fires_at_once(autojump_clock: MockClock) -> None:
    """A deadline in the past, or now, is due."""
    async with running_clock() as clock:
        alarm = Alarm(clock)
        alarm.timer.set(trio.current_time() - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(alarm.times) == 1


async def test_a_timer_moved_later_fires_later(autojump_clock: MockClock) -> None:
    """A deadline that is moved again and again fires once, at the last."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        for second in range(10):
            alarm.timer.set(start + second + 5)
            await trio.sleep(1)
        await trio.sleep(100)
        assert alarm.times == [start + 14]


async def test_a_later_deadline_costs_no_entry(autojump_clock: MockClock) -> None:
    """Moving a deadline back leaves the heap as it is: the entry is moved when it comes up."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        for second in range(5, 1000):
            alarm.timer.set(start + second)
        assert len(clock._heap) == 1
        await trio.sleep(6)
        assert [entry[0] for entry in clock._heap] == [start + 999]


async def test_a_timer_moved_earlier_fires_earlier(autojump_clock: MockClock) -> None:
    """A deadline that is brought forward fires once, at the earlier time."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        alarm.timer.set(start + 50)
        alarm.timer.set(start + 5)
        await trio.sleep(100)
        assert alarm.times == [start + 5]


async def test_a_disarmed_timer_does_not_fire(autojump_clock: MockClock) -> None:
    """Infinity disarms, and the timer can be set again."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        alarm.timer.set(start + 5)
        alarm.timer.set(inf)
        await trio.sleep(10)
        assert alarm.times == []
        alarm.timer.set(start + 20)
        await trio.sleep(100)
        assert alarm.times == [start + 20]


async def test_a_timer_may_set_itself_again_when_it_fires(autojump_clock: MockClock) -> None:
    """What a timer calls may set it anew."""
    times: list[float] = []
    async with running_clock() as clock:
        start = trio.current_time()

        def fire() -> None:
            times.append(trio.current_time() - start)
            if len(times) < 3:
                timer.set(trio.current_time() + 5)

        timer = clock.timer(fire)
        timer.set(start + 5)
        await trio.sleep(100)
        assert times == [5, 10, 15]


async def test_a_closed_timer_does_not_fire(autojump_clock: MockClock) -> None:
    """A closed timer is disarmed; closing one that was never set, or twice, does nothing."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        alarm.timer.close()
        alarm.timer.set(start + 5)
        alarm.timer.close()
        alarm.timer.close()
        await trio.sleep(100)
        assert alarm.times == []


async def test_closed_timers_are_swept(autojump_clock: MockClock) -> None:
    """Many closed timers do not stay in the heap until their time comes, and those still set are kept."""
    async with running_clock() as clock:
        start = trio.current_time()
        kept = Alarm(clock)
        kept.timer.set(start + 50)
        for _ in range(10 * COMPACT_AT):
            closed = clock.timer(lambda: None)
            closed.set(start + 1000)
            closed.close()
        assert len(clock._heap) <= 2 * COMPACT_AT
        await trio.sleep(60)
        assert kept.times == [start + 50]


async def test_few_closed_timers_among_many_are_left(autojump_clock: MockClock) -> None:
    """A sweep costs as much as there are timers: it waits until half of them are closed."""
    async with running_clock() as clock:
        start = trio.current_time()
        timers = [clock.timer(lambda: None) for _ in range(4 * COMPACT_AT)]
        for timer in timers:
            timer.set(start + 1000)
        for timer in timers[: COMPACT_AT + 1]:
            timer.close()
        assert len(clock._heap) == 4 * COMPACT_AT


async def test_a_clock_without_timers_does_not_wake() -> None:
    """With nothing set the clock sleeps without a deadline."""
    async with running_clock() as clock:
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == inf
        timer = clock.timer(lambda: None)
        timer.set(trio.current_time() + 0.01)
        await trio.sleep(0.05)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == inf


async def test_what_came_in_time_is_looked_at_first(autojump_clock: MockClock) -> None:
    """Before a timer fires, what has come meanwhile is looked at, and may move the deadline."""
    async with running_clock() as clock:
        alarm, start = Alarm(clock), trio.current_time()
        looks: list[float] = []

        def look() -> None:
            if not looks:
                alarm.timer.set(start + 30)
            looks.append(trio.current_time())

        clock.look = look
        alarm.timer.set(start + 5)
        await trio.sleep(100)
        assert looks[0] == start + 5
        assert alarm.times == [start + 30]
