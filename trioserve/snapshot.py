"""What a server does at one moment, as plain values: its connections, requests and tasks, each with its age.

It may be taken in any thread, also while the event loop is blocked. Of a loop that goes on meanwhile it is no picture
of one moment: what moves can be missed or told twice.
"""

from __future__ import annotations

import heapq
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import trio

from .activity import ConnectionActivity, OpenExchange
from .asgi.lifespan import Lifespan
from .asgi.websocket import WebSocketCall
from .calls import Call, calls_of, find_place
from .inspector import SYSTEM_NURSERIES, name_of
from .lanes import TASK_NAME
from .types import PlainValues
from .waits import find_wait

TASK_LIMIT = 2000
"""Tasks of a snapshot that are described; the others are counted."""

DEPTH_LIMIT = 40
"""Tasks in each other: JSON's readers do not go much deeper."""

STACK_LIMIT = 100
"""Calls of one stack, the innermost."""

# The tasks that call an application are those with a request and this one. It opens no nursery of the server's, and in
# what the server opens for a request there is but the task that reads for a WebSocket: all others there, with whatever
# is below them, the application has started.
_LIFESPAN = Lifespan.run.__code__
_ATTENDANT = WebSocketCall.attend.__code__

_BUSY = 0.001
_PAUSE = 0.001


class Births(trio.abc.Instrument):
    """Notes when tasks begin, which Trio does not. For trio.run, whose clock it must be asked about."""

    def __init__(self) -> None:
        self._began: weakref.WeakKeyDictionary[trio.lowlevel.Task, float] = weakref.WeakKeyDictionary()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._began[task] = time.perf_counter()

    def age_of(self, task: trio.lowlevel.Task) -> float | None:
        """Its seconds; None if it is older than this."""
        began = self._began.get(task)
        return None if began is None else time.perf_counter() - began


class Pace:
    """Lets the other threads run, who would else wait for the interpreter's lock at each of their system calls."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _BUSY

    def __call__(self) -> None:
        if time.monotonic() >= self._until:
            time.sleep(_PAUSE)
            self._until = time.monotonic() + _BUSY


@dataclass(frozen=True)
class Scene:
    """What a snapshot is taken of.

    ``root`` is Trio's root task and ``now`` the time of Trio's clock; ``package`` is the application's; ``running``
    the calls that the event loop's thread is in, the innermost last.
    """

    root: trio.lowlevel.Task
    now: float
    births: Births
    package: str | None = None
    running: Sequence[Call] = ()


@dataclass(frozen=True)
class Request:
    """What is asked: how many connections are described, and whether with the whole stacks."""

    limit: int = 100
    stacks: bool = False


class Snapshot:
    """Takes one. ``connections`` and ``tasks`` give plain values; ask for the connections first."""

    def __init__(self, scene: Scene, request: Request, connections: Iterable[ConnectionActivity]) -> None:
        self._scene = scene
        self._request = request
        self._pace = Pace()
        self._left = TASK_LIMIT
        self._states: Counter[str] = Counter()
        self._listeners: Counter[str] = Counter()
        # What serves a connection hangs below that, and nowhere else.
        self._apart: set[trio.lowlevel.Task] = set()
        # One by one: to keep what there is to tell of ten thousand calls for the garbage collector, which keeps all
        # others waiting for half a second.
        self._shown = heapq.nsmallest(request.limit, self._count(connections), key=lambda one: one.rank)

    def _count(self, connections: Iterable[ConnectionActivity]) -> Iterator[ConnectionActivity]:
        for one in connections:
            self._pace()
            self._states[one.state.value] += 1
            self._listeners[one.listener] += 1
            if one.task is not None:
                self._apart.add(_root_of(one.task))
            yield one

    def connections(self) -> PlainValues:
        """How many are open, by what they do, and those that matter most, with their tasks."""
        return {
            "open": self._states.total(),
            "by_state": dict(sorted(self._states.items())),
            "by_listener": dict(self._listeners),
            "shown": [self._describe(one) for one in self._shown],
        }

    def _describe(self, one: ConnectionActivity) -> PlainValues:
        now = self._scene.now
        exchanges = {part.task: part.exchange for part in one.parts if part.exchange is not None}
        tasks: list[PlainValues] = []
        if one.task is not None:
            root = _root_of(one.task)
            # The outer of its two tasks only waits for the inner one.
            nurseries = [] if root is one.task else root.child_nurseries
            found = [task for nursery in nurseries for task in self._in_order(nursery)] or [one.task]
            tasks = [self.tree(task, exchanges) for task in found]
        return {
            "client": one.client,
            "listener": one.listener,
            "tls": one.is_secured,
            "state": one.state.value,
            "age": round(now - one.began, 3),
            "state_age": round(now - one.since, 3),
            "requests": one.requests,
            "tasks": tasks,
        }

    def tasks(self) -> list[PlainValues]:
        """The tasks that are not a connection's, as trees."""
        nurseries = self._scene.root.child_nurseries[SYSTEM_NURSERIES:]
        return [self.tree(task, {}) for nursery in nurseries for task in self._in_order(nursery)]

    def tree(
        self, top: trio.lowlevel.Task, exchanges: Mapping[trio.lowlevel.Task, OpenExchange] | None = None
    ) -> PlainValues:
        """A task of the server's, with all that are below it."""
        exchanges = exchanges or {}
        whole = self._node(top, exchanges)
        whole["own"] = True
        # Not recursive: nurseries nest as deep as programs like.
        ahead = [(top, whole, 1)]
        while ahead:
            task, node, depth = ahead.pop()
            nurseries = task.child_nurseries
            hosts = task in exchanges or task.coro.cr_code is _LIFESPAN
            for number, nursery in enumerate(nurseries, 1):
                for child in self._in_order(nursery):
                    if child in self._apart:
                        node["connections"] = node.get("connections", 0) + 1
                    elif self._left <= 0 or depth >= DEPTH_LIMIT:
                        node["more_tasks"] = node.get("more_tasks", 0) + self._count_from(child)
                    else:
                        inner = self._node(child, exchanges)
                        # By where it hangs, and not by its code: an application may start what is Trio's.
                        inner["own"] = node["own"] and (not hosts or child.coro.cr_code is _ATTENDANT)
                        if len(nurseries) > 1:
                            inner["nursery"] = number
                        node["tasks"].append(inner)
                        ahead.append((child, inner, depth + 1))
        return whole

    def _count_from(self, top: trio.lowlevel.Task) -> int:
        """How many tasks it is, with all that are below it."""
        count, ahead = 0, [top]
        while ahead:
            self._pace()
            task = ahead.pop()
            count += 1
            ahead += (one for nursery in task.child_nurseries for one in nursery.child_tasks if one not in self._apart)
        return count

    def _in_order(self, nursery: trio.Nursery) -> list[trio.lowlevel.Task]:
        """Its tasks, the oldest first. Of very many not even that: who has the interpreter's lock for so long?"""
        # Trio keeps a set and hands out a copy. Copying a set runs no Python code, so the event loop, which may be
        # running in its own thread, cannot change it in between.
        tasks = nursery.child_tasks
        if len(tasks) > TASK_LIMIT:
            return list(tasks)
        age_of = self._scene.births.age_of
        return sorted(tasks, key=lambda task: (-(age_of(task) or 0), name_of(task)))

    def _node(self, task: trio.lowlevel.Task, exchanges: Mapping[trio.lowlevel.Task, OpenExchange]) -> PlainValues:
        self._pace()
        self._left -= 1
        scene = self._scene
        age = scene.births.age_of(task)
        node: PlainValues = {"name": name_of(task), "age": None if age is None else round(age, 3)}
        if task.coro.cr_running:
            calls: Sequence[Call] = scene.running
            place = find_place(calls, scene.package)
            node |= {"state": "running", "waits_for": None}
        else:
            calls = calls_of(task, closely=True)
            wait = find_wait(calls, scene.package)
            place = wait.place
            # A coroutine that is neither running nor suspended has not begun.
            state = "waiting" if task.coro.cr_suspended else "not begun"
            node |= {"state": state, "waits_for": wait.what}
        node["at"] = None if place is None else place.to_plain()
        if self._request.stacks:
            node["stack"] = [str(call) for call in calls[-STACK_LIMIT:]]
        exchange = exchanges.get(task)
        if exchange is not None:
            node["exchange"] = exchange.to_plain(scene.now)
        node["tasks"] = []
        return node


def _root_of(task: trio.lowlevel.Task) -> trio.lowlevel.Task:
    """The outermost task of the connection that this one serves."""
    above = None if task.parent_nursery is None else task.parent_nursery.parent_task
    return above if above is not None and above.name == TASK_NAME else task
