"""The one task that waits for a transport's bytes."""

from __future__ import annotations

import trio

from ..clock import Clock
from ..transport import Wake


class ParkedReader:
    """Suspends a task until bytes have come, a deadline passes, or someone wakes it with a reason.

    No cancel scope and no channel, since every request waits here at least once.
    """

    __slots__ = ("_timer", "_woken", "_yields", "reason", "task")

    def __init__(self, clock: Clock) -> None:
        self.task: trio.lowlevel.Task | None = None
        """The task that waits; None if none does."""
        self.reason: Wake | None = None
        """Why the last wait ended; None if for bytes."""
        self._timer = clock.timer(self._pass_deadline)
        self._yields = False
        self._woken: Wake | None = None  # why, while it yields

    async def wait(self, deadline: float) -> Wake | None:
        """Wait; returns the reason of ``wake``."""
        self.begin(deadline)
        await trio.lowlevel.wait_task_rescheduled(self.abort)
        return self.reason

    def begin(self, deadline: float) -> None:
        """As wait, for a task that suspends itself, at once and with ``abort``: a coroutine less for each idle one."""
        assert self.task is None  # two readers: one would never be woken
        self.task = trio.lowlevel.current_task()
        self._timer.set(deadline)

    def abort(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def let_others_run(self) -> Wake | None:
        """Make a checkpoint, for a task that could read on.

        Returns the reason if it was woken meanwhile: nobody would tell it again. Shielded, because what is there is to
        be had even in a cancelled scope.
        """
        self._yields, self._woken = True, None
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._yields = False
        return self._woken

    def wake(self, reason: Wake | None) -> None:
        """Wake the task, if one waits; None means that bytes or the end of them have come."""
        if self._yields:
            self._woken = self._woken or reason
        if self.task is not None:
            task, self.task, self.reason = self.task, None, reason
            trio.lowlevel.reschedule(task)

    def _pass_deadline(self) -> None:
        # Not to a task that yields: this is the deadline of its last wait, which bytes have ended, and it has more to
        # read. An upload that never let it wait again was refused as late.
        if self.task is not None:
            self.wake(Wake.DEADLINE)

    def close(self) -> None:
        self._timer.close()
        self.wake(None)
