"""A bell that wakes one task, or the next that listens."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioserve.bell import Bell

DEADLINE = 5.0


async def test_a_ring_wakes_who_waits() -> None:
    """Whoever waits is woken by the first ring, and not before."""
    bell = Bell()
    woken: list[bool] = []

    async def listen() -> None:
        await bell.wait()
        woken.append(True)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            bell.ring()
    assert woken == [True]


async def test_a_ring_that_nobody_hears_is_kept() -> None:
    """A ring before the wait ends it at once, by a checkpoint; several are one."""
    bell = Bell()
    bell.ring()
    bell.ring()
    with trio.fail_after(DEADLINE):
        with trio.testing.assert_checkpoints():
            await bell.wait()
        with trio.move_on_after(0.01) as scope:
            await bell.wait()
    assert scope.cancelled_caught


async def test_a_ring_is_heard_once() -> None:
    """After a wait that a ring has ended the next one waits for another ring."""
    bell = Bell()
    heard: list[int] = []

    async def listen() -> None:
        for number in range(3):
            await bell.wait()
            heard.append(number)

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for number in range(3):
                await trio.testing.wait_all_tasks_blocked()
                assert len(heard) == number
                bell.ring()
    assert heard == [0, 1, 2]


async def test_rings_after_the_first_are_heard_too() -> None:
    """A ring between the one that wakes and the task's turn needs no wait of its own: the task is still to look."""
    bell = Bell()
    waits = 0

    async def listen() -> None:
        nonlocal waits
        while True:
            await bell.wait()
            waits += 1

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            bell.ring()
            bell.ring()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert waits == 1


@pytest.mark.parametrize("rings", [False, True])
async def test_a_cancelled_wait_keeps_the_ring(rings: bool) -> None:
    """Cancelling a wait takes no ring away, and leaves nobody waiting."""
    bell = Bell()
    if rings:
        bell.ring()
    with trio.fail_after(DEADLINE):
        with trio.CancelScope() as scope:
            scope.cancel()
            await bell.wait()
        assert scope.cancelled_caught
        bell.ring()
        await bell.wait()
