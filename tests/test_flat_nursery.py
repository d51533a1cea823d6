"""The nursery of the clients under test: it ends with its block, and errors come out of it as they were raised."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
import trio.testing

from trioserve.testing.flat_nursery import open_flat_nursery

pytestmark = pytest.mark.timeout(10)


class Broken(Exception):
    """What these blocks and tasks raise."""


async def fail(error: BaseException, *, started: trio.Event | None = None) -> None:
    if started is not None:
        await started.wait()
    raise error


async def fail_when_cancelled(error: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise error


# The end of the block


async def test_the_end_of_the_block_cancels_its_tasks():
    """Tasks that still run at the end of the block are cancelled, and nothing comes out."""
    cancelled = []

    async def run() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(True)
            raise

    async with open_flat_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert cancelled == []
    assert cancelled == [True, True]


async def test_clean_up_at_the_end_of_the_block_may_fail():
    """What a task raises when the end of the block cancels it comes out bare."""
    error = Broken()
    with pytest.raises(Broken) as caught:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, error)
            await trio.testing.wait_all_tasks_blocked()
    assert caught.value is error


# Errors


@pytest.mark.parametrize("kind", [Broken, AssertionError, KeyboardInterrupt, SystemExit, pytest.fail.Exception])
async def test_what_the_block_raises_comes_out_bare(kind):
    """An error of the block, of whatever kind, comes out as the same object while its tasks are cancelled."""
    error = kind("of the block")
    with pytest.raises(kind) as caught:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            raise error
    assert caught.value is error
    assert caught.traceback[-1].name == "test_what_the_block_raises_comes_out_bare"


async def test_what_the_block_raises_goes_before_what_its_tasks_raise():
    """When tasks fail in their clean-up, too, the error of the block is the one that comes out."""
    with pytest.raises(Broken, match="of the block"):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, Broken("of a task"))
            nursery.start_soon(fail_when_cancelled, Broken("of another"))
            await trio.testing.wait_all_tasks_blocked()
            raise Broken("of the block")


async def test_a_group_that_the_block_raises_stays_as_it_is():
    """A group that is the block's own is not taken apart."""
    group = ExceptionGroup("own", [Broken()])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_flat_nursery():
            raise group
    assert caught.value is group


@pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
async def test_what_one_task_raises_comes_out_bare(kind):
    """The error of a task ends the block, and comes out as the same object."""
    error = kind("of a task")
    with pytest.raises(kind) as caught:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, error)
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert caught.value is error


async def test_what_one_task_raises_comes_out_of_a_block_that_has_nothing_to_wait_for():
    """A block that ends by itself while a task fails does not hide that."""
    with pytest.raises(Broken, match="of a task"):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, Broken("of a task"))


async def test_what_several_tasks_raise_comes_out_as_a_group():
    """Several errors have to be a group."""
    with pytest.raises(ExceptionGroup) as caught:
        async with open_flat_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(fail, Broken(number))
            await trio.sleep_forever()
    assert sorted(one.args[0] for one in caught.value.exceptions) == [0, 1]


async def test_a_group_that_a_task_raises_is_unwrapped_once():
    """A task's own group comes out, not a group of that group."""
    group = ExceptionGroup("own", [Broken(), Broken()])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail, group)
            await trio.sleep_forever()
    assert (caught.value.message, caught.value.exceptions) == ("own", group.exceptions)


async def test_nested_blocks_are_flat_too():
    """An error goes through several of these nurseries without being wrapped."""
    with pytest.raises(Broken, match="inmost"):
        async with open_flat_nursery() as outer, open_flat_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(trio.sleep_forever)
            raise Broken("inmost")


# Cancellation from outside


async def test_a_cancellation_from_outside_ends_it_without_an_error():
    """move_on_after round the nursery works as round any other."""
    with trio.move_on_after(0) as scope:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_task_that_fails_when_all_is_cancelled_from_outside():
    """What a task's clean-up raises is not lost because the block was cancelled, too."""
    error = Broken("of a task")
    with trio.move_on_after(0), pytest.raises(Broken) as caught:
        async with open_flat_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, error)
            await trio.sleep_forever()
    assert caught.value is error


async def test_one_task_that_fails_beside_one_that_is_cancelled_from_outside():
    """An error that is the only one comes out bare, whoever else is merely cancelled."""
    error = Broken("of a task")
    with pytest.raises(Broken) as caught:
        with trio.move_on_after(0):
            async with open_flat_nursery() as nursery:
                nursery.start_soon(fail_when_cancelled, error)
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep_forever()
    assert caught.value is error


async def test_a_block_that_fails_when_it_is_cancelled_from_outside():
    """What the block raises in its clean-up comes out bare."""
    with trio.move_on_after(0), pytest.raises(Broken, match="in a finally"):
        async with open_flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await fail_when_cancelled(Broken("in a finally"))


# Memory


async def test_an_error_is_freed_once_it_has_been_handled():
    """Nothing keeps an error, and with it the frames of its trace, alive until the garbage collector comes."""

    async def run() -> weakref.ref[Broken]:
        try:
            async with open_flat_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise Broken
        except Broken as error:
            return weakref.ref(error)
        raise AssertionError("nothing was raised")

    gc.disable()
    try:
        kept = await run()
        await trio.lowlevel.checkpoint()
        assert kept() is None
    finally:
        gc.enable()


async def test_a_nursery_that_is_cancelled_by_its_own_scope():
    """What its own scope cancels ends with it: the code after the block runs."""
    async with open_flat_nursery() as nursery:
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()
    await trio.lowlevel.checkpoint()
    with trio.CancelScope() as outer:
        async with open_flat_nursery() as nursery:
            nursery.cancel_scope.cancel()
            outer.cancel()
            await trio.sleep_forever()
        pytest.fail("what is cancelled from outside goes on")
    assert outer.cancelled_caught
