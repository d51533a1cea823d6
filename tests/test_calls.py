"""The calls that a task is in, and whose code each is."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import cast

import anyio.to_thread
import pytest
import trio
import trio.testing
from starlette.concurrency import run_in_threadpool

import trioserve
from trioserve import calls as calls_module
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


class Gate:
    """Stops threads in one line, once ``wait`` has returned."""

    def __init__(self, threads: int = 1) -> None:
        self.begun = threading.Barrier(threads + 1)
        self.release = threading.Event()

    def wait(self) -> None:
        self.begun.wait(10)

    def open(self) -> None:
        self.release.set()


def block(gate: Gate) -> None:
    gate.release.wait(10 + gate.begun.wait(10))


def decorated_as(_: object) -> Callable[[AnyValue], AnyValue]:
    return lambda function: function


@decorated_as(
    "/a path",
)
def calls_block(
    gate: Gate,
) -> None:
    block(gate)


@contextlib.contextmanager
def managed(gate: Gate) -> Iterator[None]:
    block(gate)
    yield


def wrapper(*, function: AnyValue, arguments: AnyValue) -> None:
    function(**arguments)


class Blocks:
    """Something to call that is no function."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def run(self) -> None:
        block(self.gate)

    def __call__(self) -> None:
        self.run()


def line_in(function: AnyValue, offset: int) -> Call:
    code = getattr(function, "__wrapped__", function).__code__
    return Call(code, code.co_firstlineno + offset, vars(sys.modules[__name__]))


WAYS = [run_in_threadpool, anyio.to_thread.run_sync, trio.to_thread.run_sync]
FUNCTIONS: dict[str, tuple[Callable[[Gate], AnyValue], str, Call | None]] = {
    "partial": (lambda gate: functools.partial(functools.partial(block, gate)), "block", line_in(block, 1)),
    "decorated": (lambda gate: functools.partial(calls_block, gate), "calls_block", line_in(calls_block, 6)),
    "of FastAPI": (
        lambda gate: functools.partial(wrapper, function=block, arguments={"gate": gate}),
        "block",
        line_in(block, 1),
    ),
    "method": (lambda gate: Blocks(gate).run, "Blocks.run", line_in(Blocks.run, 1)),
    "generator": (lambda gate: managed(gate).__enter__, "managed", line_in(managed, 2)),
    "object": (Blocks, "Blocks", None),
}


async def in_thread(way: AnyValue, function: AnyValue, gate: Gate | None = None, *, closely: bool = True) -> list[Call]:
    """The calls of a task while it waits for a function in a thread."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(way, function)
        await trio.testing.wait_all_tasks_blocked()
        if gate is not None:
            gate.wait()
        [task] = nursery.child_tasks
        calls = calls_of(task, closely=closely)
        if gate is not None:
            gate.open()
        nursery.cancel_scope.cancel()
    return calls


def function_in(calls: list[Call]) -> Function:
    return next(one.function for one in calls if one.function is not None)


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_function_in_a_thread(way: AnyValue, which: str) -> None:
    """The function is told, also where a framework has wrapped it, with where it begins, which is below its decorators,
    and the calls that its thread is in.
    """
    make, name, start = FUNCTIONS[which]
    gate = Gate()
    found = function_in(await in_thread(way, make(gate), gate))
    assert found.name == f"{__name__}.{name}"
    assert found.start == start
    if start is None:
        assert found.calls == ()
    else:
        assert found.calls[0] == start
        assert find_place(found.calls, None) == line_in(block, 1)


async def test_a_function_in_several_threads() -> None:
    """Which of them is the task's nobody can tell."""
    gate = Gate(2)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(trio.to_thread.run_sync, block, gate)
        await trio.testing.wait_all_tasks_blocked()
        gate.wait()
        found = [function_in(calls_of(task, closely=True)) for task in nursery.child_tasks]
        gate.open()
    assert found == [Function(f"{__name__}.block", line_in(block, 1))] * 2


def ended(gate: Gate) -> AnyValue:
    manager: AnyValue = managed(gate)
    manager.gen.close()
    return manager


def without_generator(gate: Gate) -> AnyValue:
    manager: AnyValue = managed(gate)
    del manager.gen
    return manager


@pytest.mark.parametrize("make", [ended, without_generator])
async def test_a_context_manager_without_a_generator_that_goes_on(make: Callable[[Gate], AnyValue]) -> None:
    """Of one that has ended, or has none, there is Python's own method."""
    limiter = trio.CapacityLimiter(1)
    await limiter.acquire()
    way = functools.partial(trio.to_thread.run_sync, limiter=limiter)
    found = function_in(await in_thread(way, make(Gate()).__enter__))
    assert found.name == "contextlib._GeneratorContextManager.__enter__"
    assert found.start is not None
    assert found.calls == ()


def test_where_a_function_begins_that_is_one_line() -> None:
    """Without a line of its own the body begins in that of the head."""
    function: AnyValue = eval("lambda: 1")
    assert Function("a", Call(function.__code__, 1, {})) == calls_module._describe_code("a", function.__code__, {})


@pytest.mark.parametrize("way", WAYS)
async def test_a_function_that_is_not_python_s(way: AnyValue) -> None:
    """Of one without a line there is the name."""
    lock = threading.Lock()
    lock.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(way, lock.acquire)
        await trio.testing.wait_all_tasks_blocked()
        [task] = nursery.child_tasks
        found = function_in(calls_of(task, closely=True))
        lock.release()
    assert found == Function("lock.acquire", None)


async def test_a_function_in_a_thread_is_told_on_request() -> None:
    """Who does not ask for it reads no variables."""
    gate = Gate()
    calls = await in_thread(trio.to_thread.run_sync, functools.partial(block, gate), gate, closely=False)
    assert [one.function for one in calls if one.function is not None] == []


async def test_variables_are_not_kept() -> None:
    """Whoever has the calls keeps nothing alive of what the task works with."""
    blocks = Blocks(Gate())
    kept = weakref.ref(blocks)
    calls = await in_thread(run_in_threadpool, blocks.run, blocks.gate)
    del blocks
    gc.collect()
    assert function_in(calls).calls
    assert kept() is None
