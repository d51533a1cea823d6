"""What is dear to make is made for many at once."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioserve.process.sharing import Shared


class Maker:
    """Makes numbers, one more each time, when it is told to."""

    def __init__(self):
        self.made, self.failures = 0, []
        self.running, self.gate = 0, trio.Semaphore(0)

    async def make(self):
        assert not self.running
        self.running += 1
        try:
            await self.gate.acquire()
        finally:
            self.running -= 1
        if self.failures:
            raise self.failures.pop()
        self.made += 1
        return self.made


@pytest.fixture
def maker():
    return Maker()


async def test_who_asks_meanwhile_gets_the_next(maker):
    """Nobody gets what was begun before the question, and all who asked since share one."""
    shared, got = Shared(maker.make), []

    async def ask():
        got.append(await shared.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        maker.gate.release()
        await trio.testing.wait_all_tasks_blocked()
        assert got == [1]
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        maker.gate.release()
        maker.gate.release()
    assert got == [1] + [2] * 10 + [3]


async def test_the_first_who_asks_leaves(maker):
    """Another of those who wait makes it in his place."""
    shared, got, scope = Shared(maker.make), [], trio.CancelScope()

    async def leave():
        with scope:
            await shared.get()

    async def ask():
        got.append(await shared.get())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        maker.gate.release()
    assert (got, maker.made) == ([1, 1], 1)


async def test_a_failure_is_for_one_who_asks(maker):
    """The next who asks has it made anew."""
    shared = Shared(maker.make)
    maker.failures.append(LookupError("once"))
    for _ in range(2):
        maker.gate.release()
    with pytest.raises(LookupError, match="once"):
        await shared.get()
    assert await shared.get() == 1
