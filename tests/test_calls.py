"""The calls that a task is in, and whose code each is."""

from __future__ import annotations

import functools
import gc
import os
import sysconfig
import threading
import weakref
from types import ModuleType, SimpleNamespace
from typing import cast

import anyio.to_thread
import pytest
import trio
import trio.testing
from starlette.concurrency import run_in_threadpool

import trioserve
from trioserve.calls import Call, Function, calls_of, find_place
from trioserve.types import AnyValue

pytestmark = pytest.mark.timeout(20)

STANDARD = sysconfig.get_path("stdlib")
INSTALLED = os.path.join(sysconfig.get_path("purelib"), "site-packages")
PACKAGE = os.path.dirname(trioserve.__file__)


def call(file: str, function: str = "f", module: str = "somewhere") -> Call:
    code = SimpleNamespace(co_filename=file, co_qualname=function, co_name=function.rpartition(".")[2])
    return Call(cast("AnyValue", code), 7, {"__name__": module})


OWN = call(os.path.join(PACKAGE, "server.py"), "Server.run", "trioserve.server")
DEMO = call(os.path.join(PACKAGE, "demo.py"), "app", "trioserve.demo")
PYTHON = call(os.path.join(STANDARD, "threading.py"))
FROZEN = call("<frozen runpy>")
FRAMEWORK = call(os.path.join(INSTALLED, "starlette", "routing.py"), module="starlette.routing")
ANYIO = call(os.path.join(INSTALLED, "anyio", "to_thread.py"), module="anyio.to_thread")
LIBRARY = call(os.path.join("", "usr", "dist-packages", "client.py"), "Client.get", "client._api")
SHOP = call(os.path.join(INSTALLED, "shop", "app.py"), module="shop.app")
APP = call("/srv/app/main.py", module="main")
SLEEP = call(os.path.join(os.path.dirname(trio.__file__), "_timeouts.py"), "sleep", "trio._timeouts")

PLACES = {
    "the application's innermost": ([OWN, APP, APP, LIBRARY, FRAMEWORK, SLEEP], None, APP),
    "an installed application's": ([OWN, SHOP, LIBRARY, SLEEP], "shop", SHOP),
    "an installed application's that nobody knows": ([OWN, FRAMEWORK, SHOP, FRAMEWORK, SLEEP], None, SHOP),
    "a library's": ([OWN, LIBRARY, PYTHON, FROZEN], "shop", LIBRARY),
    "a framework's": ([OWN, FRAMEWORK, ANYIO, PYTHON, SLEEP], None, FRAMEWORK),
    "the demo's": ([OWN, DEMO, SLEEP], "trioserve", DEMO),
    "none": ([OWN, PYTHON, FROZEN, SLEEP], "main", None),
    "none at all": ([], "main", None),
}


@pytest.mark.parametrize("which", PLACES)
def test_places(which: str) -> None:
    """The place is the application's own, else that of a library, and never one of ours, Trio's or Python's."""
    calls, package, expected = PLACES[which]
    assert find_place(calls, package) is expected


def test_place_as_plain_values_and_as_text() -> None:
    """A place is a file, a line, if there is one, and a function."""
    assert APP.to_plain() == {"file": "/srv/app/main.py", "line": 7, "function": "f"}
    assert str(APP) == "/srv/app/main.py:7 in f"
    assert str(Call(APP.code, None, {})) == "/srv/app/main.py:? in f"


def test_names() -> None:
    """A function is named as its users know it."""
    assert LIBRARY.name == "client.Client.get"


PRIVATE = """import trio
class _Common:
    async def call(self):
        await trio.sleep_forever()
    async def other(this):
        await trio.sleep_forever()
class Client(_Common):
    pass
"""


def module_at(path: str, name: str, source: str) -> ModuleType:
    """A module as if it had been imported from there."""
    module = ModuleType(name)
    exec(compile(source, path, "exec"), vars(module))
    return module


async def outermost(function: AnyValue, *arguments: AnyValue, closely: bool = True) -> Call:
    """The outermost call of a task in this function."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function, *arguments)
        await trio.testing.wait_all_tasks_blocked()
        [task] = nursery.child_tasks
        found = calls_of(task, closely=closely)[0]
        nursery.cancel_scope.cancel()
    return found


async def test_names_of_methods_that_private_classes_define() -> None:
    """Of a library's the name is that of the object's class, where somebody looks closely."""
    client = module_at("/x/site-packages/client/_api.py", "client._api", PRIVATE).Client()
    assert (await outermost(client.call)).name == "client.Client.call"
    assert (await outermost(client.call, closely=False)).name == "client._Common.call"
    assert (await outermost(client.other)).name == "client._Common.other"
    # The application's own are told by their place: their variables are left alone, as are those of frameworks.
    for path, module in (("/srv/app/main.py", "main"), ("/x/site-packages/starlette/x.py", "starlette.x")):
        assert (await outermost(module_at(path, module, PRIVATE).Client().call)).owner is None


def block(release: threading.Event) -> None:
    release.wait(10)


def wrapper(*, function: AnyValue, arguments: AnyValue) -> None:
    function(**arguments)


class Blocks:
    """Something to call that is no function."""

    def __init__(self, release: threading.Event) -> None:
        self.release = release

    def run(self) -> None:
        self.release.wait(10)

    def __call__(self) -> None:
        self.run()


def function_of(function: AnyValue) -> Function:
    """What is told of a Python function."""
    code = function.__code__
    place = Call(code, code.co_firstlineno, function.__globals__)
    return Function(f"{__name__}.{function.__qualname__}", place)


WAYS = [run_in_threadpool, anyio.to_thread.run_sync, trio.to_thread.run_sync]
FUNCTIONS = {
    "partial": (lambda release: functools.partial(functools.partial(block, release)), function_of(block)),
    "of FastAPI": (
        lambda release: functools.partial(wrapper, function=block, arguments={"release": release}),
        function_of(block),
    ),
    "method": (lambda release: Blocks(release).run, function_of(Blocks.run)),
    "object": (Blocks, Function(f"{__name__}.Blocks", None)),
}


async def in_thread(way: AnyValue, function: AnyValue, end: AnyValue, *, closely: bool = True) -> list[Call]:
    """The calls of a task while it waits for a function in a thread."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(way, function)
        await trio.testing.wait_all_tasks_blocked()
        [task] = nursery.child_tasks
        calls = calls_of(task, closely=closely)
        end()
    return calls


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_function_in_a_thread(way: AnyValue, which: str) -> None:
    """The function is told, also where a framework has wrapped it."""
    make, expected = FUNCTIONS[which]
    release = threading.Event()
    calls = await in_thread(way, make(release), release.set)
    assert next(one.function for one in calls if one.function is not None) == expected


@pytest.mark.parametrize("way", WAYS)
async def test_a_function_that_is_not_python_s(way: AnyValue) -> None:
    """Of one without a line there is the name."""
    lock = threading.Lock()
    lock.acquire()
    calls = await in_thread(way, lock.acquire, lock.release)
    assert next(one.function for one in calls if one.function is not None) == Function("lock.acquire", None)


async def test_a_function_in_a_thread_is_told_on_request() -> None:
    """Who does not ask for it reads no variables."""
    release = threading.Event()
    calls = await in_thread(trio.to_thread.run_sync, functools.partial(block, release), release.set, closely=False)
    assert [one.function for one in calls if one.function is not None] == []


async def test_variables_are_not_kept() -> None:
    """Whoever has the calls keeps nothing alive of what the task works with."""
    blocks = Blocks(threading.Event())
    kept = weakref.ref(blocks)
    calls = await in_thread(run_in_threadpool, blocks.run, blocks.release.set)
    del blocks
    gc.collect()
    assert calls
    assert kept() is None
