"""What a task waits for, in words, and where."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio
import trio.testing
from starlette.concurrency import run_in_threadpool

from trioserve.calls import calls_of
from trioserve.types import AnyValue
from trioserve.waits import TASKS_AT_MOST, WORDS, Wait, find_deepest_wait, find_wait

from .test_calls import APP, FRAMEWORK, LIBRARY, OWN, SLEEP, Gate, block, call, calls_block, managed, module_at

pytestmark = pytest.mark.timeout(20)

Function = Callable[[], Awaitable[object]]
Told = tuple[str | None, str | None]


@pytest.mark.parametrize("module", WORDS)
def test_functions_that_have_words_are_there(module: str) -> None:
    """What is told of a function is told of one that exists."""
    for name in WORDS[module]:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found)


BODY = call(OWN.code.co_filename, "HTTPCall._wait_turn", "trioserve.asgi.http")
NURSERY = call(SLEEP.code.co_filename, "NurseryManager.__aexit__", "trio._core._run")
ENTERED = call(LIBRARY.code.co_filename, "Client.__aenter__", "client._api")
UNKNOWN = call(SLEEP.code.co_filename, "wait_readable", "trio.lowlevel")

WHATS = {
    "below the application": ([OWN, APP, SLEEP], "a sleep to end"),
    "the server's own": ([OWN, SLEEP], "a stop"),
    "what the server itself waits for without words": ([UNKNOWN], None),
    "a library's name": ([OWN, FRAMEWORK, APP, FRAMEWORK, LIBRARY, SLEEP], "client.Client.get"),
    "not a library's name that is Python's": ([OWN, APP, ENTERED, SLEEP], "a sleep to end"),
    "the client, whoever reads": ([OWN, APP, LIBRARY, BODY], "the request body"),
    "below a framework": ([OWN, FRAMEWORK, NURSERY], "its child tasks"),
    "a name where there are no words": ([OWN, APP, UNKNOWN], "trio.wait_readable"),
    "nothing": ([OWN, APP], None),
}


@pytest.mark.parametrize("which", WHATS)
def test_what(which: str) -> None:
    """What the server did above the application is not what that waits for; of the calls below it the outermost says
    most.
    """
    calls, expected = WHATS[which]
    assert find_wait(calls, None).what == expected


# --- tasks


async def look(function: Function, find: Callable[[trio.lowlevel.Task], Wait] = find_deepest_wait) -> Told:
    """Start it in a task, wait until nothing moves, and look: what it waits for, and where."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function, name="looked at")
        await trio.testing.wait_all_tasks_blocked()
        [task] = nursery.child_tasks
        found = find(task)
        nursery.cancel_scope.cancel()
    return found.what, None if found.place is None else str(found.place)


def line_of(function: AnyValue, offset: int) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + offset} in {code.co_qualname}"


async def sleeps() -> None:
    await trio.sleep(100)


async def calls_what_sleeps() -> None:
    await sleeps()


async def waits_for_a_lock() -> None:
    lock = trio.Lock()
    await lock.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enters, lock)


async def enters(lock: trio.Lock) -> None:
    async with lock:
        pass


async def waits_for_its_tasks() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def waits_for_an_event() -> None:
    await trio.Event().wait()


async def waits_for_a_semaphore() -> None:
    await trio.Semaphore(0).acquire()


async def sends() -> None:
    sending, _receiving = trio.open_memory_channel[int](0)
    await sending.send(1)


async def receives() -> None:
    _sending, receiving = trio.open_memory_channel[int](0)
    await receiving.receive()


async def is_forever() -> None:
    await trio.sleep_forever()


async def uses_anyio() -> None:
    await anyio.sleep(100)


async def uses_a_trap() -> None:
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)


async def generates() -> None:
    async def generator() -> AnyValue:
        await sleeps()
        yield

    async for _ in generator():
        pass


@pytest.mark.parametrize(
    ("function", "where", "offset", "what"),
    [
        (sleeps, sleeps, 1, "a sleep to end"),
        (calls_what_sleeps, sleeps, 1, "a sleep to end"),
        (generates, sleeps, 1, "a sleep to end"),
        (uses_anyio, uses_anyio, 1, "a sleep to end"),
        (waits_for_a_lock, enters, 1, "a lock"),
        (waits_for_an_event, waits_for_an_event, 1, "an event"),
        (waits_for_a_semaphore, waits_for_a_semaphore, 1, "a semaphore"),
        (sends, sends, 2, "room in a memory channel"),
        (receives, receives, 2, "a memory channel"),
        (is_forever, is_forever, 1, "its cancellation"),
        (uses_a_trap, uses_a_trap, 1, "trio.wait_task_rescheduled"),
    ],
)
async def test_the_innermost_of_the_application(
    autojump_clock: trio.testing.MockClock, function: Function, where: AnyValue, offset: int, what: str
) -> None:
    """The place is the last line before a library's, and the wait what that calls."""
    assert await look(function) == (what, line_of(where, offset))


async def test_a_task_below() -> None:
    """A middleware waits for the task in which the rest of the application runs: that is where to look."""

    async def middleware() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="a listener")
            nursery.start_soon(calls_what_sleeps, name="b handler")

    assert await look(middleware) == ("a sleep to end", line_of(sleeps, 1))


WITH_CHILD = """import trio
async def call():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
"""
SOURCE = "import trio\nasync def call(next=trio.sleep_forever):\n    await next()\n"


async def test_what_tells_more_is_chosen() -> None:
    """A task without any foreign code below says less than one with a framework's, or with the application's."""

    async def listener() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await sleeps()

    assert await look(listener) == ("a sleep to end", line_of(sleeps, 1))
    assert await look(waits_for_its_tasks) == ("its child tasks", line_of(waits_for_its_tasks, 1))
    path = "/x/site-packages/starlette/routing.py"
    framework = module_at(path, "starlette.routing", WITH_CHILD)
    assert await look(framework.call) == ("its child tasks", f"{path}:3 in call")


async def test_more_tasks_than_anyone_looks_at() -> None:
    """Only so many are looked at."""

    async def deep(depth: int) -> None:
        async with trio.open_nursery() as nursery:
            if depth:
                nursery.start_soon(deep, depth - 1)
            else:
                nursery.start_soon(sleeps)

    assert (await look(functools.partial(deep, TASKS_AT_MOST - 3)))[0] == "a sleep to end"
    assert (await look(functools.partial(deep, TASKS_AT_MOST)))[0] == "its child tasks"


async def test_no_application_at_all() -> None:
    """Of a task without the application's code there is only what it waits for."""
    assert await look(trio.sleep_forever) == ("its cancellation", None)


@pytest.mark.parametrize("path", ["/srv/.venv/lib/python3/site-packages/client.py", "/usr/dist-packages/client.py"])
async def test_what_is_installed_is_not_the_application(path: str) -> None:
    """A client library is what the application waits for."""
    client = module_at(path, "client", SOURCE)

    async def handler() -> None:
        await client.call()

    assert await look(handler) == ("client.call", line_of(handler, 1))


async def test_an_application_that_is_installed() -> None:
    """Where all is installed the application is what is no framework."""
    application = module_at("/x/site-packages/shop/main.py", "shop.main", SOURCE)
    framework = module_at("/x/site-packages/starlette/routing.py", "starlette.routing", SOURCE)
    found = await look(functools.partial(framework.call, application.call))
    assert found == ("its cancellation", "/x/site-packages/shop/main.py:3 in call")


# --- threads


async def look_in_thread(function: Function, gate: Gate, *, closely: bool = True) -> Told:
    def find(task: trio.lowlevel.Task) -> Wait:
        gate.wait()
        found = find_wait(calls_of(task, closely=closely), None)
        gate.open()
        return found

    return await look(function, find)


@pytest.mark.parametrize("way", [run_in_threadpool, anyio.to_thread.run_sync, trio.to_thread.run_sync])
async def test_a_function_in_a_thread(way: AnyValue) -> None:
    """Where no code of the application's awaits the function, the place is the innermost of it in the thread."""
    gate = Gate()
    assert await look_in_thread(lambda: way(calls_block, gate), gate) == ("its thread", line_of(block, 1))


async def test_a_dependency_in_a_thread() -> None:
    """A generator that a framework enters in a thread is the application's code there."""
    gate = Gate()
    told = await look_in_thread(lambda: run_in_threadpool(managed(gate).__enter__), gate)
    assert told == ("its thread", line_of(block, 1))


async def test_a_function_in_a_thread_that_the_application_awaits() -> None:
    """The place is where it is awaited, and the function is named, if it was looked for."""
    gate = Gate()

    async def handler() -> None:
        await trio.to_thread.run_sync(block, gate)

    for closely, what in ((True, "tests.test_calls.block in a thread"), (False, "a thread")):
        gate = Gate()
        assert await look_in_thread(handler, gate, closely=closely) == (what, line_of(handler, 1))


async def test_a_function_that_several_threads_run() -> None:
    """Where nobody can tell which thread is the task's, the place is where the function begins."""
    gate = Gate(2)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_in_threadpool, calls_block, gate)
            nursery.start_soon(run_in_threadpool, calls_block, gate)

    def find(task: trio.lowlevel.Task) -> Wait:
        gate.wait()
        [nursery] = task.child_nurseries
        found = [find_wait(calls_of(child, closely=True), None) for child in nursery.child_tasks]
        gate.open()
        assert found[0] == found[1]
        return found[0]

    assert await look(both, find) == ("its thread", line_of(calls_block, 6))


async def test_a_function_that_has_no_thread_yet() -> None:
    """While it queues for a thread, what runs in another's is not where it is."""
    gate, limiter = Gate(), trio.CapacityLimiter(1)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(trio.to_thread.run_sync, calls_block, gate, limiter=limiter))
            nursery.start_soon(functools.partial(trio.to_thread.run_sync, calls_block, gate, limiter=limiter))

    def find(task: trio.lowlevel.Task) -> Wait:
        gate.wait()
        [nursery] = task.child_nurseries
        found = [find_wait(calls_of(child, closely=True), None) for child in nursery.child_tasks]
        # Cancelled before the first one's thread can end: the second never gets one.
        nursery.cancel_scope.cancel()
        gate.open()
        told = {one.what: str(one.place) for one in found}
        assert told == {"its thread": line_of(block, 1), "a free thread": line_of(calls_block, 6)}
        return next(one for one in found if one.what == "a free thread")

    assert await look(both, find) == ("a free thread", line_of(calls_block, 6))


async def test_a_function_in_a_thread_that_is_not_python_s() -> None:
    """One without a line is no place, and is named."""
    lock = threading.Lock()
    lock.acquire()

    def find(task: trio.lowlevel.Task) -> Wait:
        found = find_wait(calls_of(task, closely=True), None)
        lock.release()
        return found

    what, place = await look(lambda: run_in_threadpool(lock.acquire), find)
    assert what == "lock.acquire in a thread"
    assert place is not None
    assert place.endswith(" in run_in_threadpool")
