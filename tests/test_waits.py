"""What a task waits for, in words, and where."""

from __future__ import annotations

import importlib
import os
import sysconfig
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

import trioserve
from trioserve.inspector import Call, calls_of
from trioserve.waits import WORDS, Wait, find_place, find_wait, to_place

STANDARD = sysconfig.get_path("stdlib")
INSTALLED = os.path.join(sysconfig.get_path("purelib"), "site-packages")


@pytest.mark.parametrize("module", WORDS)
def test_functions_that_have_words_are_there(module: str) -> None:
    """What is told of a function is told of one that exists."""
    for name in WORDS[module]:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found)


async def wait_of(function: Callable[[], Awaitable[object]]) -> Wait:
    """What a task in this function waits for."""

    async def call() -> None:
        await function()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        [task] = nursery.child_tasks
        wait = find_wait(calls_of(task), None)
        nursery.cancel_scope.cancel()
    return wait


async def hold_children() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def own_trap() -> None:
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)


def make_waits() -> dict[str, Callable[[], Awaitable[object]]]:
    full, empty = trio.open_memory_channel[int](0)
    return {
        "a sleep to end": lambda: trio.sleep(1000),
        "its cancellation": trio.sleep_forever,
        "an event": trio.Event().wait,
        "a semaphore": trio.Semaphore(0).acquire,
        "room in a memory channel": lambda: full.send(1),
        "a memory channel": empty.receive,
        "its child tasks": hold_children,
    }


@pytest.mark.parametrize("words", make_waits())
async def test_words(words: str) -> None:
    """A wait is told by what the application called, and where it did."""
    wait = await wait_of(make_waits()[words])
    assert wait.what == words
    assert wait.place is not None
    assert wait.place.code.co_filename == __file__


async def test_wait_without_words() -> None:
    """A wait that nothing is known of is told by its place."""
    wait = await wait_of(own_trap)
    assert wait.what is None
    assert wait.place is not None
    assert wait.place.code is own_trap.__code__


def call(file: str, function: str = "f", module: str = "somewhere") -> Call:
    code = SimpleNamespace(co_filename=file, co_qualname=function)
    return Call(cast("Callable[[], None]", code), 7, {"__name__": module})  # type: ignore[arg-type]


OWN = call(os.path.join(os.path.dirname(trioserve.__file__), "server.py"), "Server.run", "trioserve.server")
DEMO = call(os.path.join(os.path.dirname(trioserve.__file__), "demo.py"), "app", "trioserve.demo")
PYTHON = call(os.path.join(STANDARD, "threading.py"))
FROZEN = call("<frozen runpy>")
LIBRARY = call(os.path.join(INSTALLED, "starlette", "routing.py"), module="starlette.routing")
SHOP = call(os.path.join(INSTALLED, "shop", "app.py"), module="shop.app")
APP = call("/srv/app/main.py", module="main")
SLEEP = call(os.path.join(os.path.dirname(trio.__file__), "_timeouts.py"), "sleep", "trio._timeouts")

PLACES = {
    "the application's innermost": ([OWN, APP, LIBRARY, SLEEP], None, APP),
    "an installed application's": ([OWN, SHOP, LIBRARY, SLEEP], "shop", SHOP),
    "one nobody knows the package of": ([OWN, SHOP, LIBRARY, SLEEP], None, LIBRARY),
    "a library's": ([OWN, LIBRARY, PYTHON, FROZEN], "shop", LIBRARY),
    "the demo's": ([OWN, DEMO, SLEEP], "trioserve", DEMO),
    "none": ([OWN, PYTHON, SLEEP], "main", None),
}


@pytest.mark.parametrize("which", PLACES)
def test_places(which: str) -> None:
    """The place is the application's own, else that of a library, and never one of ours, Trio's or Python's."""
    calls, package, expected = PLACES[which]
    assert find_place(calls, package) is expected


def test_words_of_the_outermost_call_below_the_application() -> None:
    """What the server did above the application is not what that waits for."""
    assert find_wait([OWN, APP, SLEEP], None).what == "a sleep to end"
    assert find_wait([OWN, SLEEP], None).what == "a stop"


def test_place_as_plain_values() -> None:
    """A place is a file, a line and a function."""
    assert to_place(APP) == {"file": "/srv/app/main.py", "line": 7, "function": "f"}
