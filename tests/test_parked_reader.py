"""The one task that waits for a transport's bytes."""

from __future__ import annotations

from math import inf

import pytest
import trio
import trio.testing

from trioserve.clock import Clock
from trioserve.net.parked_reader import ParkedReader
from trioserve.transport import Wake

from .transports import AfterFirstStep

DEADLINE = 5.0
MockClock = trio.testing.MockClock


@pytest.mark.parametrize("reason", [None, Wake.DRAIN, Wake.ENDED])
async def test_the_task_is_woken_with_the_reason(reason: Wake | None) -> None:
    """The wait returns what wake() was given; the first one counts."""
    reader = ParkedReader(Clock())
    reasons: list[Wake | None] = []

    async def wait() -> None:
        reasons.append(await reader.wait(inf))

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert reader.task is not None
            reader.wake(reason)
            assert reader.task is None
            reader.wake(Wake.DEADLINE)
    assert reasons == [reason]


async def test_waking_nobody_does_nothing() -> None:
    """A wake while nobody waits is not kept for the next wait."""
    reader = ParkedReader(Clock())
    reader.wake(Wake.DRAIN)
    with trio.move_on_after(0.01) as scope:
        await reader.wait(inf)
    assert scope.cancelled_caught


async def test_the_wait_ends_at_its_deadline(autojump_clock: MockClock) -> None:
    """A deadline ends the wait when it passes; one that was not reached does not end the next."""
    clock = Clock()
    reader = ParkedReader(clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)
        start = trio.current_time()
        assert await reader.wait(start + 5) is Wake.DEADLINE
        assert trio.current_time() == start + 5
        nursery.start_soon(_wake_after, reader, 1)
        assert await reader.wait(start + 10) is Wake.DRAIN
        nursery.start_soon(_wake_after, reader, 20)
        assert await reader.wait(inf) is Wake.DRAIN
        assert trio.current_time() == start + 26
        nursery.cancel_scope.cancel()


async def _wake_after(reader: ParkedReader, seconds: float) -> None:
    await trio.sleep(seconds)
    reader.wake(Wake.DRAIN)


async def test_a_deadline_is_no_reason_to_a_task_that_yields(autojump_clock: MockClock) -> None:
    """It is that of an earlier wait, which bytes have ended."""
    clock = Clock()
    reader = ParkedReader(clock)
    reasons: list[Wake | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)

        async def read() -> None:
            assert await reader.wait(trio.current_time() + 5) is None
            autojump_clock.jump(10)
            reasons.extend([await reader.let_others_run() for _ in range(10)])

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        reader.wake(None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert reasons == [None] * 10


async def test_a_cancelled_wait_leaves_nobody() -> None:
    """After a cancelled wait there is nobody to be woken, and another task may wait."""
    reader = ParkedReader(Clock())
    with trio.fail_after(DEADLINE):
        with trio.CancelScope() as scope:
            scope.cancel()
            await reader.wait(inf)
        assert scope.cancelled_caught
        assert reader.task is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.wait, inf)
            await trio.testing.wait_all_tasks_blocked()
            reader.wake(None)


async def test_two_cannot_wait() -> None:
    """A second reader is a mistake of ours, and stops there: one of the two would never be woken."""
    reader = ParkedReader(Clock())
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.wait, inf)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(AssertionError):
                await reader.wait(inf)
            reader.wake(None)


async def test_closing_wakes_who_waits(autojump_clock: MockClock) -> None:
    """Closing ends the wait without a reason, and its deadline passes without a trace."""
    clock = Clock()
    reader = ParkedReader(clock)
    reasons: list[Wake | None] = []

    async def wait() -> None:
        reasons.append(await reader.wait(trio.current_time() + 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        reader.close()
        reader.close()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert reasons == [None]


async def test_a_task_is_woken_also_while_it_lets_others_run() -> None:
    """A reason that comes then is not lost; the first one counts, and bytes are none. It is said once."""
    reader = ParkedReader(Clock())
    reasons: list[Wake | None] = []

    async def wait() -> None:
        reasons.append(await reader.let_others_run())
        reasons.append(await reader.let_others_run())

    def wake() -> None:
        for reason in (None, Wake.DRAIN, Wake.ENDED):
            reader.wake(reason)

    instrument = AfterFirstStep("reader", wake)
    trio.lowlevel.add_instrument(instrument)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, name="reader")
    trio.lowlevel.remove_instrument(instrument)
    assert reasons == [Wake.DRAIN, None]
