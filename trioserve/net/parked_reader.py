"""The one task that waits for a transport's bytes."""

from __future__ import annotations

import trio

from ..clock import Clock
from ..transport import Wake


class ParkedReader:
    """Suspends a task until bytes have come, a deadline passes, or someone wakes it with a reason.

    No cancel scope and no channel, since every request waits here at least once.
    """

    __slots__ = ("_reason", "_timer", "task")

    def __init__(self, clock: Clock) -> None:
        self.task: trio.lowlevel.Task | None = None
        """The task that waits; None if none does."""
        self._reason: Wake | None = None
        self._timer = clock.timer(self._pass_deadline)

    async def wait(self, deadline: float) -> Wake | None:
        """Wait; returns the reason of ``wake``."""
        assert self.task is None  # two readers: one would never be woken
        self.task = trio.lowlevel.current_task()
        self._timer.set(deadline)
        await trio.lowlevel.wait_task_rescheduled(self._abort)
        return self._reason

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self, reason: Wake | None) -> None:
        """Wake the task, if one waits; None means that bytes or the end of them have come."""
        if self.task is not None:
            task, self.task, self._reason = self.task, None, reason
            trio.lowlevel.reschedule(task)

    def _pass_deadline(self) -> None:
        self.wake(Wake.DEADLINE)

    def close(self) -> None:
        self._timer.close()
        self.wake(None)
