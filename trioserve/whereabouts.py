"""Where the application's code waits in a task, and for what, in words."""

from __future__ import annotations

import functools
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import trio

from .types import AnyValue

TASKS_AT_MOST = 100
"""Tasks below one that are looked at: handlers may have started thousands."""

# Frames of these lie between the server and the application, or between the application and what it waits for.
_FRAMEWORKS = {
    *("trio", "trioserve", "anyio", "outcome", "sniffio", "asgiref", "starlette", "fastapi", "litestar", "quart"),
    *("quart_trio", "werkzeug", "hypercorn", "sse_starlette", "mcp", "contextlib", "functools"),
}
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep


@dataclass(frozen=True)
class Whereabouts:
    """``place`` is "file:line in function", the innermost of the application's, None if it has none on the way;
    ``waits_for`` is None where nobody can tell.
    """

    place: str | None = None
    waits_for: str | None = None


@dataclass(frozen=True)
class _Call:
    frame: FrameType
    line: int | None

    @property
    def module(self) -> str:
        return str(self.frame.f_globals.get("__name__", ""))

    @property
    def name(self) -> str:
        """As its users know it: trio.sleep, and not trio._timeouts.sleep."""
        name = self.frame.f_code.co_qualname
        if name.startswith("_") and "self" in self.frame.f_locals:
            # A private class may be what several public ones have in common.
            name = f"{type(self.frame.f_locals['self']).__qualname__}.{self.function}"
        return f"{self.module.partition('.')[0]}.{name}"

    @property
    def function(self) -> str:
        return self.frame.f_code.co_name

    @property
    def is_framework(self) -> bool:
        return self.module.partition(".")[0] in _FRAMEWORKS and not self.module.startswith("trioserve.demo")

    @property
    def is_installed(self) -> bool:
        path = self.frame.f_code.co_filename
        return path.startswith(("<", _STANDARD_LIBRARY)) or any(part in path for part in _INSTALLED)

    def __str__(self) -> str:
        return f"{self.frame.f_code.co_filename}:{self.line or '?'} in {self.frame.f_code.co_qualname}"


def find_wait(task: trio.lowlevel.Task) -> Whereabouts:
    """Where the application waits in this task, or below it, if it has started others there and waits for them."""
    found, weight = Whereabouts(), -1
    ahead = [task]
    for _ in range(TASKS_AT_MOST):
        if not ahead:
            break
        one = ahead.pop()
        here = _find_in([_Call(*place) for place in one.iter_await_frames()])
        # Of several that tell as much the last, which is the deepest: above it there are middlewares that wait for it.
        if _weigh(here) >= weight:
            found, weight = here, _weigh(here)
        # Names make the choice the same each time; a set of tasks has no order.
        children = [child for nursery in one.child_nurseries for child in nursery.child_tasks]
        ahead += sorted(children, key=lambda child: child.name, reverse=True)
    return found


def _weigh(found: Whereabouts) -> int:
    """How much it tells: most, if it names the application's code."""
    return 2 if found.place is not None else int(found.waits_for in _KNOWN.values())


def _find_in(calls: Sequence[_Call]) -> Whereabouts:
    places = [place for place, call in enumerate(calls) if not call.is_framework]
    # An application that is itself installed is the innermost that is none of the frameworks we know.
    place = max((place for place in places if not calls[place].is_installed), default=max(places, default=None))
    if place is None:
        function = _find_function(calls)
        if function is not None:
            return Whereabouts(_place_of(function), "its thread")
        return Whereabouts(None, _describe_wait(calls))
    return Whereabouts(str(calls[place]), _describe_wait(calls[place + 1 :]))


def _describe_wait(calls: Sequence[_Call]) -> str | None:
    """In words, from the calls below the application's."""
    for call in calls:
        words = _KNOWN.get(call.frame.f_code.co_qualname) if call.module.startswith(("trio.", "trioserve.")) else None
        if words is not None:
            return words
    function = _find_function(calls)
    if function is not None:
        return f"{_name_of(function)} in a thread"
    named = [call.name for call in calls if not call.function.startswith("__")]
    return named[0] if named else None


_KNOWN = {
    "HTTP11Exchange.receive_body": "the request body",
    "HTTP11Exchange.wait_disconnect": "the client to leave",
    "HTTP11Exchange.send_body": "the client to read",
    "HTTP11Exchange.send_file": "the client to read",
    "Nursery._nested_child_finished": "its tasks",
}


_IN_THREADS = {"starlette.concurrency.run_in_threadpool": "func", "trio._threads.to_thread_run_sync": "sync_fn"}


def _find_function(calls: Sequence[_Call]) -> AnyValue:
    """The function for which these calls wait, while it runs in a thread; None if they wait for none."""
    for call in calls:
        variable = _IN_THREADS.get(f"{call.module}.{call.function}")
        if variable is not None:
            function: AnyValue = call.frame.f_locals.get(variable)
            while isinstance(function, functools.partial):
                # FastAPI hands a `def` endpoint to a function of its own, by this name.
                handed = function.keywords.get("function")
                function = handed if callable(handed) else function.func
            return function
    return None


def _name_of(function: AnyValue) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"


def _place_of(function: AnyValue) -> str:
    """Where a function begins; its name, if it is not written in Python."""
    code = getattr(function, "__code__", None)
    if code is None:
        return _name_of(function)
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_qualname}"
