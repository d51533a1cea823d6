"""Where the application's code waits, and for what."""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable
from types import ModuleType

import anyio
import pytest
import trio
import trio.testing
from starlette.concurrency import run_in_threadpool

from trioserve import whereabouts
from trioserve.types import AnyValue
from trioserve.whereabouts import TASKS_AT_MOST, Whereabouts, find_wait

pytestmark = pytest.mark.timeout(20)

Function = Callable[[], Awaitable[object]]


async def look(function: Function) -> Whereabouts:
    """Start it in a task, wait until nothing moves, and look."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function, name="looked at")
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        found = find_wait(task)
        nursery.cancel_scope.cancel()
    return found


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


async def receives() -> None:
    sending, receiving = trio.open_memory_channel[int](0)
    async with sending:
        await receiving.receive()


async def uses_anyio() -> None:
    await anyio.sleep(100)


async def generates() -> None:
    async def generator() -> AnyValue:
        await sleeps()
        yield

    async for _ in generator():
        pass


@pytest.mark.parametrize(
    ("function", "where", "offset", "waits_for"),
    [
        (sleeps, sleeps, 1, "trio.sleep"),
        (calls_what_sleeps, sleeps, 1, "trio.sleep"),
        (waits_for_a_lock, enters, 1, "trio.Lock.acquire"),
        (receives, receives, 3, "trio.MemoryReceiveChannel.receive"),
        (uses_anyio, uses_anyio, 1, "anyio.sleep"),
        (generates, sleeps, 1, "trio.sleep"),
        (waits_for_its_tasks, waits_for_its_tasks, 1, "its tasks"),
    ],
)
async def test_the_innermost_of_the_application(
    autojump_clock: trio.testing.MockClock, function: Function, where: AnyValue, offset: int, waits_for: str
) -> None:
    """The place is the last line before a library's, and the wait what that calls, by its public name."""
    assert await look(function) == Whereabouts(line_of(where, offset), waits_for)


async def test_a_task_below() -> None:
    """A middleware waits for the task in which the rest of the application runs: that is where to look."""

    async def middleware() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever, name="a listener")
            nursery.start_soon(calls_what_sleeps, name="b handler")

    assert await look(middleware) == Whereabouts(line_of(sleeps, 1), "trio.sleep")


async def test_what_tells_more_is_chosen() -> None:
    """A task of a framework below says less than a wait that is known, or than the application's code."""

    async def listener() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await sleeps()

    assert await look(listener) == Whereabouts(line_of(sleeps, 1), "trio.sleep")
    framework = module_at("/x/site-packages/starlette/routing.py", "starlette.routing", WITH_CHILD)
    assert await look(framework.call) == Whereabouts(None, "its tasks")


async def test_more_tasks_than_anyone_looks_at() -> None:
    """Only so many are looked at."""

    async def deep(depth: int) -> None:
        async with trio.open_nursery() as nursery:
            if depth:
                nursery.start_soon(deep, depth - 1)
            else:
                nursery.start_soon(sleeps)

    assert (await look(functools.partial(deep, TASKS_AT_MOST - 3))).waits_for == "trio.sleep"
    assert (await look(functools.partial(deep, TASKS_AT_MOST))).waits_for == "its tasks"


def block(release: threading.Event) -> None:
    release.wait(10)


def wrapper(*, function: AnyValue, arguments: AnyValue) -> None:
    function(**arguments)


@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize("way", [run_in_threadpool, trio.to_thread.run_sync])
async def test_a_function_in_a_thread(way: AnyValue, is_wrapped: bool) -> None:
    """The function is named, also where a framework has wrapped it, and no code of the application awaits it."""
    release = threading.Event()
    function = functools.partial(functools.partial(block, release))
    if is_wrapped:
        function = functools.partial(wrapper, function=block, arguments={"release": release})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(way, function)
        await trio.testing.wait_all_tasks_blocked(0.01)
        (task,) = nursery.child_tasks
        found = find_wait(task)
        release.set()
    assert found == Whereabouts(line_of(block, 0), "its thread")


async def test_a_function_in_a_thread_that_the_application_awaits() -> None:
    """The place is where it is awaited, and the function is named."""
    release = threading.Event()

    async def handler() -> None:
        await trio.to_thread.run_sync(block, release)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler)
        await trio.testing.wait_all_tasks_blocked(0.01)
        (task,) = nursery.child_tasks
        found = find_wait(task)
        release.set()
    assert found == Whereabouts(line_of(handler, 1), f"{__name__}.block in a thread")


async def test_a_function_in_a_thread_that_is_not_python_s() -> None:
    """Of one without a line there is the name."""
    lock = threading.Lock()
    lock.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lock.acquire)
        await trio.testing.wait_all_tasks_blocked(0.01)
        (task,) = nursery.child_tasks
        found = find_wait(task)
        lock.release()
    assert found.place is not None
    assert found.place.endswith("lock.acquire")
    assert found.waits_for == "its thread"


async def test_no_application_at_all() -> None:
    """Of a task without the application's code there is only what it waits for."""
    assert await look(trio.sleep_forever) == Whereabouts(None, "trio.sleep_forever")


async def test_a_wait_without_a_library() -> None:
    """What waits by itself waits for what nobody can tell."""

    class Bare:
        def __await__(self) -> AnyValue:
            return trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED).__await__()

    async def waits() -> None:
        await Bare()

    assert await look(waits) == Whereabouts(line_of(waits, 1), None)


def module_at(path: str, name: str, source: str) -> ModuleType:
    """A module as if it had been imported from there."""
    module = ModuleType(name)
    exec(compile(source, path, "exec"), vars(module))
    return module


WITH_CHILD = """import trio
async def call():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
"""
SOURCE = "import trio\nasync def call(next=trio.sleep_forever):\n    await next()\n"


@pytest.mark.parametrize(
    "path", ["/srv/.venv/lib/python3/site-packages/client.py", "/usr/lib/python3/dist-packages/client.py", "<made>"]
)
async def test_what_is_installed_is_not_the_application(path: str) -> None:
    """A client library is what the application waits for."""
    client = module_at(path, "client", SOURCE)

    async def handler() -> None:
        await client.call()

    assert await look(handler) == Whereabouts(line_of(handler, 1), "client.call")


async def test_an_application_that_is_installed() -> None:
    """Where all is installed the application is what is no framework."""
    application = module_at("/x/site-packages/shop/main.py", "shop.main", SOURCE)
    framework = module_at("/x/site-packages/starlette/routing.py", "starlette.routing", SOURCE)
    found = await look(functools.partial(framework.call, application.call))
    assert found == Whereabouts("/x/site-packages/shop/main.py:3 in call", "trio.sleep_forever")


async def test_the_standard_library_is_not_the_application() -> None:
    """Neither is what comes with Python."""
    path = f"{whereabouts._STANDARD_LIBRARY}something.py"
    assert "python" in path
    module = module_at(path, "something", SOURCE)

    async def handler() -> None:
        await module.call()

    assert (await look(handler)).place == line_of(handler, 1)


async def test_the_demo_is_an_application() -> None:
    """trioserve.demo is one, though it lies among the server's modules."""
    demo = module_at("/x/site-packages/trioserve/demo.py", "trioserve.demo", SOURCE)
    assert (await look(demo.call)).place == "/x/site-packages/trioserve/demo.py:3 in call"
