"""Slots, each of which keeps one worker running, and what is done with them together."""

from __future__ import annotations

import itertools

import trio

from ..bell import Bell
from ..logs import server_log
from .child import Worker
from .exits import EXIT_CANNOT_START, EXIT_CRASHED
from .job import Order
from .signals import Heard
from .supervisor import Supervisor
from .totals import Restart, why_ended, why_leaving

YOUNG = 10.0
"""Seconds that a worker must have served, or its death is one of a crash loop."""

CRASHES_IN_A_ROW = 5
"""Young workers that may die in a row, with none that serves, before the server stops; with many slots two for each."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
"""Seconds before a worker that died young is replaced; doubled each time."""


class Pool:
    """The slots. Starts the first worker alone: an application that cannot start is heard of once."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._slots: list[Slot] = []
        self._nursery: trio.Nursery | None = None
        self._has_served = False
        self._numbers = itertools.count()
        self._crashes = 0
        self._has_given_up = False
        self._roll = Bell()
        self._is_rolling = self._has_new_roll = False

    async def run(self) -> None:
        """Keep the workers running until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._add_slot)
            for _ in range(self._supervisor.config.workers - 1):
                self._nursery.start_soon(self._add_slot)
            await self._roll_forever()

    async def _add_slot(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        slot = Slot(next(self._numbers), self, self._supervisor)
        self._slots.append(slot)
        await slot.run(task_status)
        await self._supervisor.sockets.close_slot(slot.number)

    # Signals

    def heard(self, signal: Heard) -> None:
        if not self._has_served:
            server_log.warning("signal %s is ignored until the first worker is ready", signal.value)
        elif signal is Heard.ROLL:
            self._roll_asked()
        elif signal is Heard.MORE:
            assert self._nursery is not None
            self._nursery.start_soon(self._add_slot)
            server_log.info("one worker more: %d", len(self._slots) + 1)
        elif signal is Heard.FEWER:
            self._remove_slot()

    def _remove_slot(self) -> None:
        if len(self._slots) == 1:
            server_log.warning("the last worker stays; to stop the server use SIGTERM")
            return
        slot = self._slots.pop()
        server_log.info("one worker fewer: %d", len(self._slots))
        if self._supervisor.config.reuse_port:
            server_log.warning("connections that wait in the queue of its listener may be reset")
        slot.close()

    def _roll_asked(self) -> None:
        if self._is_rolling:
            # What it starts may be what was to be mended, and may hang.
            server_log.info("beginning to replace the workers once more")
            for slot in self._slots:
                slot.stop_starting()
        self._has_new_roll = True
        self._roll.ring()

    async def _roll_forever(self) -> None:
        while True:
            await self._roll.wait()
            self._has_new_roll, self._is_rolling = False, True
            await self._roll_once()
            self._is_rolling = False
            if not self._has_new_roll:
                self._supervisor.serving()

    async def _roll_once(self) -> None:
        """Replace every worker, one after the other; stop at the first that has no successor."""
        count = len(self._slots)
        server_log.info("replacing %s", "the worker" if count == 1 else f"{count} workers, one after the other")
        self._supervisor.notifier.reloading()
        for slot in list(self._slots):
            is_done = slot not in self._slots or await slot.replace()
            if self._has_new_roll:
                return
            if not is_done:
                server_log.error("the new worker cannot start, so the old ones stay")
                return
        server_log.info("all workers are replaced")

    # What the slots tell

    def ready(self) -> None:
        self._has_served = True
        if not self._is_rolling:  # the end of which is told of
            self._supervisor.serving()

    def lived(self) -> None:
        """A worker has ended that had served for a while, or one was replaced: this is no crash loop."""
        self._crashes = 0

    @property
    def _is_crash_loop(self) -> bool:
        # All may be killed at once, by the system when it is short of memory, say.
        allowed = max(CRASHES_IN_A_ROW, 2 * len(self._slots))
        return self._crashes >= allowed and not any(one.serves for one in self._supervisor.workers)

    def failed(self, why: str) -> None:
        """A worker has died young, or a slot without one could not start one.

        Stops the server if it was the first, or one too many.
        """
        if any(one.serves and one.seconds_served >= YOUNG for one in self._supervisor.workers):
            self._crashes = 0
        self._crashes += 1
        if not self._has_served:
            self._supervisor.stop(EXIT_CANNOT_START)
        elif self._is_crash_loop and not self._has_given_up:
            self._has_given_up = True
            count = self._crashes
            server_log.critical(
                "%d workers have died in a row, each within seconds, so the server stops: %s", count, why
            )
            self._supervisor.stop(EXIT_CRASHED)


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.25, 0.5, and so on to 8."""
    return min(_FIRST_PAUSE * float(2 ** (failures - 1)), _LONGEST_PAUSE)


class Slot:
    """Keeps one worker running, replaces it, and lets its last one finish when the slot closes."""

    def __init__(self, number: int, pool: Pool, supervisor: Supervisor) -> None:
        self.number = number
        self._pool = pool
        self._supervisor = supervisor
        self._scope = trio.CancelScope()
        self._news = Bell()
        self._workers: list[Worker] = []  # the one that serves, and its successor while that starts
        self._asked: _Replacement | None = None
        self._why = ""  # the last start failed
        self._failures = 0  # in a row

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Keep a worker running until the slot closes; ``started`` once the first is ready."""
        try:
            with self._scope:
                await self._fill()
                task_status.started()
                while True:
                    await self._look_after(self._workers[0])
        finally:
            for worker in self._workers:
                worker.order(Order.RETIRE)
            self._answer(is_done=True)  # there is nothing left to replace

    def close(self) -> None:
        self._scope.cancel()

    async def replace(self) -> bool:
        """Start a successor, and retire the worker once that is ready; False, and it stays, if that fails."""
        asked = self._asked = _Replacement()
        self._news.ring()
        await asked.ended.wait()
        return asked.is_done

    async def _fill(self) -> None:
        while await self._start() is None:
            self._answer(is_done=False)  # a roll must not wait for one that may never start
            self._supervisor.totals.count_restart(Restart.FAILED_START)
            await self._fail(self._why)

    async def _fail(self, why: str) -> None:
        self._failures += 1
        self._pool.failed(why)
        await trio.sleep(pause_after(self._failures))

    async def _look_after(self, worker: Worker) -> None:
        if worker.has_ended:
            self._workers.remove(worker)
            self._supervisor.totals.count_restart(why_ended(worker))
            if worker.seconds_served < YOUNG:
                await self._fail(worker.describe_end())
            else:
                self._failures = 0
                self._pool.lived()
            await self._fill()
        elif self._asked is not None or worker.is_worn or worker.is_leaving:
            await self._succeed(worker)
        else:
            await self._news.wait()

    async def _succeed(self, worker: Worker) -> None:
        """Give the worker a successor, and retire it; it stays if that fails."""
        was_asked = self._asked is not None
        successor = await self._start()
        if successor is not None:
            self._supervisor.totals.count_restart(Restart.ROLLED if was_asked else why_leaving(worker))
            worker.order(Order.RETIRE)
            self._workers.remove(worker)
            self._failures = 0
            self._pool.lived()
        if was_asked:  # else whoever has asked meanwhile wants one that starts from now on
            self._answer(is_done=successor is not None)
        elif successor is None:
            # Its own wish, which stands until the next try. Meanwhile it may die, or somebody may ask.
            self._failures += 1
            pause = pause_after(self._failures)
            server_log.error("the new worker cannot start, so the old one stays until the next try, in %g s", pause)
            with trio.move_on_after(pause):
                while self._asked is None and not worker.has_ended:
                    await self._news.wait()

    def stop_starting(self) -> None:
        """Let a start fail that is going on."""
        for worker in self._workers:
            if worker.ready_at is None:
                worker.order(Order.STOP)

    async def _start(self) -> Worker | None:
        """Start a worker, and wait until it is ready; None if it does not come to that."""
        try:
            worker = await self._supervisor.start_worker(self.number, self._news.ring)
        except OSError as error:  # a BindError is one, too
            self._why = f"cannot start a worker: {error.strerror or error}"
            server_log.error("%s", self._why)
            return None
        self._workers.append(worker)
        while not worker.has_ended and worker.ready_at is None:
            await self._news.wait()
        if worker.has_ended:
            self._workers.remove(worker)
            self._why = worker.describe_end()
            return None
        self._pool.ready()
        return worker

    def _answer(self, *, is_done: bool) -> None:
        if self._asked is not None:
            self._asked.is_done = is_done
            self._asked.ended.set()
            self._asked = None


class _Replacement:
    """What one roll asked of a slot."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.is_done = False
