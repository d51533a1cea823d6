"""What this process tells of itself to ``trioserve inspect`` and to the page, as plain values, from any thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from ..calls import Call, find_place
from ..inspector import describe_running, name_stacks, take_stacks
from ..observer import Phase
from ..server import Server
from ..snapshot import Births, Request, Scene, Snapshot
from ..types import PlainValues
from .banner import read_version

SCHEMA = 1
"""Of the values; raised when a name that is there changes its meaning or goes."""

PATIENCE = 0.25
"""Seconds that the event loop has to show that it runs."""


class Loop:
    """The event loop of this process, once there is one; ``births`` goes to trio.run."""

    def __init__(self) -> None:
        self.births = Births()
        self.root: trio.lowlevel.Task | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._clock: trio.abc.Clock | None = None
        self._thread = 0
        self._asked: float | None = None  # when it was asked something that it has not answered yet
        self._answered = threading.Event()

    def attach(self) -> None:
        """In a task of it: this is the one that is asked about."""
        self.root, self._token = trio.lowlevel.current_root_task(), trio.lowlevel.current_trio_token()
        self._clock, self._thread = trio.lowlevel.current_clock(), threading.get_ident()

    def now(self) -> float:
        """The time on Trio's clock."""
        assert self._clock is not None
        return self._clock.current_time()

    def seconds_blocked(self) -> float | None:
        """How long it has not run, at least; None if it runs. Waits for up to PATIENCE."""
        asked = self._asked
        if asked is None:
            assert self._token is not None
            asked = self._asked = time.monotonic()
            self._answered.clear()
            try:
                self._token.run_sync_soon(self._answer)
            except trio.RunFinishedError:
                return 0.0
        return None if self._answered.wait(PATIENCE) else time.monotonic() - asked

    def _answer(self) -> None:
        self._asked = None
        self._answered.set()

    def calls(self, stacks: Mapping[int, Sequence[Call]]) -> Sequence[Call]:
        """Those that its running task is in, of all threads' stacks, the innermost last."""
        found: list[Call] = []
        for call in stacks.get(self._thread, ()):
            if call.code.co_name == "unrolled_run":  # Trio's loop, and what has called that is no task's
                break
            found.append(call)
        return found[::-1]


class Inspection:
    """What is known of this process. ``kind`` is server, worker or supervisor; ``app`` the application's name.

    ``server`` and ``phase`` are to be set as they change. ``workers`` gives what a supervisor knows of each of its own.
    """

    def __init__(
        self, kind: str, app: str, *, workers: Callable[[], tuple[Sequence[str], list[PlainValues]]] | None = None
    ) -> None:
        self.kind = kind
        self.loop = Loop()
        self.server: Server | None = None
        self.phase = Phase.STARTING
        self._app = app
        self._package = app.partition(":")[0].partition(".")[0]
        self._workers = workers
        self._began = time.monotonic()

    def describe(self, request: Request | None) -> PlainValues:
        """What this process does; None asks only what it is. Waits a moment for a loop that is blocked."""
        server = self.server
        values: PlainValues = {
            "schema": SCHEMA,
            "kind": self.kind,
            "pid": os.getpid(),
            "app": self._app,
            "version": read_version(),
            "phase": self.phase.name.lower(),
            "age": round(time.monotonic() - self._began, 3),
            "urls": [] if server is None else list(server.urls),
        }
        if self._workers is not None:
            values["urls"], values["workers"] = self._workers()
        return values if request is None or self.loop.root is None else values | self._describe(request, self.loop.root)

    def _describe(self, request: Request, root: trio.lowlevel.Task) -> PlainValues:
        loop, server = self.loop, self.server
        seconds = loop.seconds_blocked()
        stacks = take_stacks()
        running = loop.calls(stacks)
        scene = Scene(root, loop.now(), loop.births, self._package, running)
        snapshot = Snapshot(scene, request, () if server is None else server.look())
        values: PlainValues = {"loop": self._describe_loop(root, seconds, running)}
        if server is not None:
            connections = snapshot.connections()
            counts = connections.pop("by_listener")
            values["statistics"] = _plain_statistics(server)
            values["listeners"] = [
                {"address": address, "url": url, "connections": counts.get(address, 0)}
                for address, url in server.listeners
            ]
            values["connections"] = connections
        values["tasks"] = snapshot.tasks()
        if request.stacks:
            values["threads"] = [
                {"name": one.name, "stack": [str(call) for call in one.calls]} for one in name_stacks(stacks)
            ]
        return values

    def _describe_loop(self, root: trio.lowlevel.Task, seconds: float | None, calls: Sequence[Call]) -> PlainValues:
        if seconds is None:
            return {"runs": True, "seconds": 0.0, "running": None, "at": None}
        notes = {} if self.server is None else self.server.activities()
        place = find_place(calls, self._package)
        return {
            "runs": False,
            "seconds": round(seconds, 3),
            "running": describe_running(root, notes),
            "at": None if place is None else place.to_plain(),
        }


def _plain_statistics(server: Server) -> PlainValues:
    figures = server.statistics()
    return {
        "connections": figures.connections,
        "connections_total": figures.connections_total,
        "requests": figures.requests,
        "requests_total": figures.requests_total,
        "websockets": figures.websockets,
        "websockets_total": figures.websockets_total,
        "rejected": {str(status): count for status, count in figures.rejected.items()},
        "handshake_failures": [
            {"listener": listener, "reason": reason, "count": count}
            for (listener, reason), count in figures.handshake_failures.items()
        ],
        "application_errors": figures.application_errors,
        "loop_lag": figures.loop_lag,
        "loop_lag_max": figures.loop_lag_max,
    }
