"""Tasks that serve connections, each one after the other.

To start and end the two tasks and the nursery of a connection costs as much as a small request, and a client that
connects for every request would pay it each time. So the task in which an application runs says nothing of the client,
as it says nothing of the request on a connection that is kept: who needs to know that an owner has gone, such as a
trio.Lock that a handler forgot to release, learns it when the lane ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from .context import ServerContext

TASK_NAME = "trioserve connection"
"""The same text for every connection: Trio would make one for each."""

PATIENCE = 0.1
"""Seconds that a lane waits for its next connection; it may be twice as long."""

Job = TypeVar("Job")


class Lanes(Generic[Job]):
    """The lanes of one server.

    ``serve`` serves one connection, in a task that is alone in the nursery it gets; what it starts there belongs to the
    connection. ``closed`` is called when nothing of the connection runs any more; ``failed`` with what came out of it,
    and raises again what must pass.
    """

    def __init__(
        self,
        server: ServerContext,
        serve: Callable[[Job, trio.Nursery], Awaitable[None]],
        closed: Callable[[Job], Awaitable[None]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.server = server
        self.serve = serve
        self.closed = closed
        self.failed = failed
        self.idle: dict[_Lane[Job], None] = {}
        self._tired: set[_Lane[Job]] = set()  # idle since before the timer last fired
        self._timer = server.clock.timer(self._end_tired)
        server.drain.register(self._end_idle)

    def start(self, nursery: trio.Nursery, job: Job) -> None:
        """Serve it, in a task of this nursery, which is the same each time."""
        if self.idle:
            lane, _ = self.idle.popitem()
            self._tired.discard(lane)
            lane.take(job)
        else:
            nursery.start_soon(_Lane(self, job).run, name=TASK_NAME)

    async def serve_one(self, job: Job) -> None:
        """Serve it in this task and a child of it."""
        await _Lane(self, job, serves_more=False).run()

    def rest(self, lane: _Lane[Job]) -> None:
        """It waits for its next connection."""
        if not self.idle:
            self._timer.set(trio.current_time() + PATIENCE)
        self.idle[lane] = None

    def _end_tired(self) -> None:
        for lane in self._tired.intersection(self.idle):
            del self.idle[lane]
            lane.take(None)
        self._tired = set(self.idle)
        if self.idle:
            self._timer.set(trio.current_time() + PATIENCE)

    def _end_idle(self) -> None:
        for lane in self.idle:
            lane.take(None)
        self.idle.clear()


class _Lane(Generic[Job]):
    """A task with a nursery, and in that a task that serves.

    An application can break the task tree so that Trio raises when the task *ends*, beyond every try in it. So the
    application runs in a child task, and what comes out of that ends in the parent.
    """

    __slots__ = ("_job", "_lanes", "_serves_more", "_task")

    def __init__(self, lanes: Lanes[Job], job: Job, *, serves_more: bool = True) -> None:
        self._lanes = lanes
        self._job: Job | None = job
        self._task: trio.lowlevel.Task | None = None  # while it waits for its next connection
        self._serves_more = serves_more

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._start(nursery)
        except BaseException as error:  # noqa: BLE001 - the boundary that nothing a client does gets past
            self._lanes.failed(error)
        finally:
            if self._job is not None:
                await self._lanes.closed(self._job)

    def _start(self, nursery: trio.Nursery) -> None:
        # In a function of its own, so that an idle connection does not hold what this makes.
        base = self._lanes.server.base
        base.copy().run(lambda: nursery.start_soon(self._serve_each, nursery, name=TASK_NAME))

    async def _serve_each(self, nursery: trio.Nursery) -> None:
        lanes = self._lanes
        place = _find_place()
        while self._job is not None:
            try:
                await lanes.serve(self._job, nursery)
            finally:
                if _find_place() is not place:
                    raise RuntimeError("the application has left a cancel scope or a nursery open")
            # What a connection has left behind ends before another one begins.
            if nursery.cancel_scope.cancel_called or len(nursery.child_tasks) > 1 or place is None:
                return
            job, self._job = self._job, None
            await lanes.closed(job)
            del job
            if self._serves_more and lanes.server.drain.kind is None:
                await self._wait()

    async def _wait(self) -> None:
        """Wait for the next connection, in fresh context variables."""
        self._lanes.server.reset_context_variables()
        self._lanes.rest(self)
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def take(self, job: Job | None) -> None:
        """Serve this next, or end. The lane is idle no more."""
        assert self._task is not None
        task, self._task = self._task, None
        self._job = job
        trio.lowlevel.reschedule(task)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        del self._lanes.idle[self]
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


def _find_place() -> object:
    """What tells whether the current task is in the same cancel scope as before; None: nobody can tell.

    Trio tells nobody. Without this attribute of its own lanes serve one connection each.
    """
    return getattr(trio.lowlevel.current_task(), "_cancel_status", None)
