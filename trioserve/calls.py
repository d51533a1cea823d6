"""The calls that a task is in, and whose code each is."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, GeneratorType, MethodType

import trio

from .types import AnyValue, PlainValues


class Origin(IntEnum):
    """Whose code it is, in the order in which somebody who looks is likely to be after it."""

    SERVER = 0  # with Trio, Python and what adapts Trio for frameworks
    FRAMEWORK = 1
    LIBRARY = 2  # or an application that is installed as they are, while nobody knows its name
    APPLICATION = 3


# They lie between the server and the application, or between the application and what that waits for.
_FRAMEWORKS = {
    *("starlette", "fastapi", "litestar", "quart", "quart_trio", "werkzeug", "hypercorn", "sse_starlette", "mcp"),
}
_PACKAGES = {
    **dict.fromkeys(_FRAMEWORKS, Origin.FRAMEWORK),
    **dict.fromkeys(("anyio", "outcome", "sniffio", "asgiref"), Origin.SERVER),
}
_OWN = os.path.dirname(__file__)
_OURS = tuple(os.path.join(folder, "") for folder in (_OWN, os.path.dirname(trio.__file__)))
_DEMOS = os.path.join(_OWN, "demo")
_STANDARD_LIBRARY = tuple({os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")})
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

_IN_THREADS = {
    "starlette.concurrency.run_in_threadpool": "func",
    "anyio.to_thread.run_sync": "func",
    "trio._threads.to_thread_run_sync": "sync_fn",
}
"""What runs a function in a thread, and its variable that has the function."""


@dataclass(frozen=True)
class Function:
    """One that runs in a thread.

    ``start`` is where it begins, None if it is not written in Python; ``calls`` are those that its thread is in, from
    its own to the innermost: none if nobody can tell, as no thread runs it, or several do.
    """

    name: str
    start: Call | None
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Call:
    """Where a function has got to. Not its frame: whoever holds that keeps the function's variables alive.

    Known only where it was looked at closely: ``owner``, the class of a method that is defined in a private one, and
    ``function``, which it runs in a thread.
    """

    code: CodeType
    line: int | None  # None between two lines, at code that belongs to none
    module: dict[str, AnyValue]
    owner: str | None = None
    function: Function | None = None

    @classmethod
    def of(cls, frame: FrameType, line: int | None, *, closely: bool = False) -> Call:
        """``closely`` reads variables of the few functions where they tell something."""
        # Not of all: up to Python 3.12 whoever reads one makes the frame keep what all of them are now, until it ends.
        # It may be done in any thread: nothing of the application's runs for it, and what is found is not held.
        call = cls(frame.f_code, line, frame.f_globals)
        variable = call._find_variable() if closely else None
        value = None if variable is None else frame.f_locals.get(variable)
        if value is None:
            return call
        if variable == "self":
            return cls(call.code, line, call.module, owner=type(value).__qualname__)
        return cls(call.code, line, call.module, function=_describe_function(value))

    def _find_variable(self) -> str | None:
        code = self.code
        if code.co_qualname.startswith("_") and code.co_varnames[:1] == ("self",):
            return "self" if origin_of(self, None) is Origin.LIBRARY else None
        return _IN_THREADS.get(f"{self.module_name}.{code.co_name}")

    @property
    def module_name(self) -> str:
        return str(self.module.get("__name__"))

    @property
    def package(self) -> str:
        return self.module_name.partition(".")[0]

    @property
    def name(self) -> str:
        """As its users know it: httpx.AsyncClient.get, and not httpx._client.AsyncClient.get."""
        name = self.code.co_qualname if self.owner is None else f"{self.owner}.{self.code.co_name}"
        return f"{self.package}.{name}"

    def to_plain(self) -> PlainValues:
        return {"file": self.code.co_filename, "line": self.line, "function": self.code.co_qualname}

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.line or '?'} in {self.code.co_qualname}"


def calls_of(task: trio.lowlevel.Task, *, closely: bool = False) -> list[Call]:
    """The calls that a task waits in, the innermost last. For any thread."""
    calls: list[Call] = []
    # The task may go on while it is looked at: then a generator that it waited in can lose its frame under Trio's
    # hands, and what was found so far is all there is to tell.
    with contextlib.suppress(AttributeError):
        calls += (Call.of(*one, closely=closely) for one in task.iter_await_frames())
    return calls


def find_place(calls: Sequence[Call], package: str | None) -> Call | None:
    """The innermost call of the application, else of a library that it uses, else of a framework. None if all are the
    server's own; the innermost is the last.

    ``package`` is the application's, which may be installed among the libraries; None if nobody knows.
    """
    origin, number = find_innermost(calls, package)
    return calls[number] if origin else None


def find_innermost(calls: Sequence[Call], package: str | None) -> tuple[Origin, int]:
    """As find_place: whose it is, and its number."""
    origins = ((origin_of(call, package), number) for number, call in enumerate(calls))
    return max(origins, default=(Origin.SERVER, 0))


def origin_of(call: Call, package: str | None) -> Origin:
    file = call.code.co_filename
    # By the file: the module of a worker's is __main__.
    if _is_server(file):
        return Origin.SERVER
    if call.package == package or not _is_installed(file):
        return Origin.APPLICATION
    return _PACKAGES.get(call.package, Origin.LIBRARY)


@functools.lru_cache(maxsize=4096)
def _is_server(file: str) -> bool:
    """What trioserve has for trying it out is an application."""
    if file.startswith(_OURS):
        return not file.startswith(_DEMOS)
    return file.startswith(("<", *_STANDARD_LIBRARY)) and not _is_installed(file)


def _is_installed(file: str) -> bool:
    return any(part in file for part in _INSTALLED)


def _describe_function(function: AnyValue) -> Function:
    while isinstance(function, functools.partial):
        # FastAPI hands a `def` endpoint to a function of its own, by this name.
        handed = function.keywords.get("function")
        function = handed if callable(handed) else function.func
    if isinstance(function, MethodType):
        generator = _find_generator(function.__self__)
        # One that has ended has no frame.
        frame = None if generator is None else generator.gi_frame
        if frame is not None:
            name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
            return _describe_code(name, frame.f_code, frame.f_globals)
        function = function.__func__
    if isinstance(function, FunctionType):
        name = f"{function.__module__}.{function.__qualname__}"
        return _describe_code(name, function.__code__, function.__globals__)
    # Of any other object no attributes are read: that may run its code.
    named = function if isinstance(function, BuiltinFunctionType) else type(function)
    return Function(".".join(filter(None, (named.__module__, named.__qualname__))), None)


def _find_generator(manager: object) -> GeneratorType[AnyValue, AnyValue, AnyValue] | None:
    """That of a @contextmanager: FastAPI enters and leaves in a thread what a `def` dependency with a yield makes."""
    if not isinstance(manager, contextlib._GeneratorContextManager):
        return None
    generator = vars(manager).get("gen")
    return generator if isinstance(generator, GeneratorType) else None


def _describe_code(name: str, code: CodeType, module: dict[str, AnyValue]) -> Function:
    return Function(name, Call(code, _find_first_line(code), module), _find_calls(code))


def _find_calls(code: CodeType) -> tuple[Call, ...]:
    """As Function has them."""
    frames = sys._current_frames()
    # Our own would also make a cycle with this call's variables, and keep whatever they refer to.
    del frames[threading.get_ident()]
    found = [calls for top in frames.values() if (calls := _calls_down_to(code, top))]
    return found[0] if len(found) == 1 else ()


def _calls_down_to(code: CodeType, top: FrameType) -> tuple[Call, ...]:
    """Those of a thread from the one with this code to the innermost; none if it is not there."""
    calls: list[Call] = []
    for frame, line in traceback.walk_stack(top):
        calls.append(Call.of(frame, line))
        if frame.f_code is code:
            return tuple(reversed(calls))
    return ()


def _find_first_line(code: CodeType) -> int:
    """Where its body begins. What Python has as its first line is that of its first decorator."""
    first = code.co_firstlineno
    return next((line for _, _, line in code.co_lines() if line is not None and line > first), first)
