"""Notices that the event loop is blocked, and says where.

Whatever the event loop could say of itself, it cannot while it is blocked. So a thread watches for its beats.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from ..inspector import Notes, describe_running, format_task_tree, format_thread_stacks
from ..logs import server_log
from .signals import deaf_threads

BEATS = 4
"""Beats of the event loop, and looks of the thread, in the shortest limit."""

BEAT = 0.25
"""Seconds between two beats, if not less by that: what is late in between can hide for so long."""

PATIENCE = 1.0
"""Seconds that logging has to take a record, and then the output."""


def _do_nothing(seconds: float) -> None: ...


def _note_nothing() -> Notes:
    return {}


@dataclass(frozen=True)
class Limit:
    """How long the event loop may be silent: after ``seconds`` it is told where it is blocked, once per blockage.

    ``report`` is called with the seconds without a beat after all has been logged, in the watchdog's thread.
    """

    seconds: float
    report: Callable[[float], None] = _do_nothing


async def beat_forever(on_beat: Callable[[float], None]) -> None:
    """As a Watchdog's beats, where no thread watches: call ``on_beat`` four times a second, until cancelled."""
    due = time.monotonic()
    while True:
        now = time.monotonic()
        on_beat(now - due)
        due = now + BEAT
        await trio.sleep(BEAT)


class Watchdog:
    """A thread that notices when the event loop is blocked, and says where.

    limits: at each of them the request that is served, the stacks of all threads and the tree of all tasks are logged;
    and once the loop goes on, that it does.
    activities: what tasks are for, as Server.activities; called in that thread.
    output: a descriptor to write to if logging does not take a record within a second. Not owned.
    on_beat: called in the event loop at each beat, at least four times in the shortest limit, with how many seconds
    late the beat is.
    """

    def __init__(
        self,
        *limits: Limit,
        activities: Callable[[], Notes] = _note_nothing,
        output: int = 2,
        on_beat: Callable[[float], None] = _do_nothing,
    ) -> None:
        self._limits = sorted(limits, key=lambda limit: limit.seconds)
        self._period = self._limits[0].seconds / BEATS
        self._pause = min(self._period, BEAT)
        self._activities = activities
        self._output = output
        self._on_beat = on_beat
        self._last_beat = 0.0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Beat, and be watched, until cancelled. The thread ends then, as soon as what it is saying is said."""
        self._last_beat = time.monotonic()
        ended = threading.Event()
        root = trio.lowlevel.current_root_task()
        assert root is not None  # in a task there is one
        with deaf_threads():
            threading.Thread(target=self._watch, args=(root, ended), name="trioserve watchdog", daemon=True).start()
        task_status.started()
        try:
            due = self._last_beat
            while True:
                self._last_beat = time.monotonic()
                self._on_beat(self._last_beat - due)
                due = self._last_beat + self._pause
                await trio.sleep(self._pause)
        finally:
            # A cancellation is a sign of life too. The thread is not waited for: it may be waiting for the log.
            self._last_beat = time.monotonic()
            ended.set()

    def _watch(self, root: trio.lowlevel.Task, ended: threading.Event) -> None:
        """The thread."""
        alive = silent_since = self._last_beat  # or later, if nothing could beat
        ahead = self._limits  # those that this silence has not reached
        while True:
            was_stopped = self._is_stopped_in_wait(ended)  # after which the silence counts anew
            beat = self._last_beat
            is_blocked = ahead is not self._limits
            if is_blocked and beat > alive:
                is_blocked, ahead = False, self._limits
                self._say(logging.WARNING, f"the event loop goes on after {beat - alive:.1f} s")
            if ended.is_set():
                return
            if was_stopped:
                silent_since = time.monotonic()
            elif not is_blocked:
                silent_since = max(silent_since, beat)
            if not is_blocked:
                alive = silent_since
            silence = time.monotonic() - silent_since
            reached = [limit for limit in ahead if silence > limit.seconds]
            if reached:
                ahead = ahead[len(reached) :]
                self._tell_blockage(root, silence)
            for limit in reached:
                limit.report(silence)

    def _tell_blockage(self, root: trio.lowlevel.Task, silence: float) -> None:
        text = f"the event loop has been blocked for {silence:.1f} s"
        try:
            notes = self._activities()
            running = describe_running(root, notes)
            doing = "" if running is None else f" in {running}"
            text += f"{doing}\n{format_thread_stacks()}\n{format_task_tree(root, notes)}"
        except Exception as error:  # noqa: BLE001 - that it is blocked must be said, and reported, all the same
            text += f", and cannot be described: {error!r}"
        self._say(logging.ERROR, text)

    def _is_stopped_in_wait(self, ended: threading.Event) -> bool:
        """Wait until the next look; True if in the meantime the process as a whole did not run.

        It may have been stopped and continued (SIGSTOP, a frozen container, a suspended laptop), or be starved by the
        rest of the machine. Then this thread wakes late as well, and the loop is not to blame.
        """
        began, used = time.monotonic(), time.process_time()
        ended.wait(self._period)
        late = time.monotonic() - began - self._period
        if late > self._limits[0].seconds:
            # Nobody could see where. That native code keeps the interpreter's lock, and sleeps, is the rarest reason.
            reasons = "it was stopped, or starved, or native code kept all its threads waiting"
            self._say(logging.WARNING, f"the process did not run for {late:.1f} s: {reasons}")
        # This thread also wakes late if native code keeps the interpreter's lock: a search with an unlucky regular
        # expression, say. The loop is blocked by that as well, and the processor time tells the two apart: a process
        # that was stopped can have used no more than what it had until then, one period.
        return late > self._period and time.process_time() - used < self._period

    def _say(self, level: int, text: str) -> None:
        # The blocked thread may hold the lock of a logging handler, or have filled the pipe behind one: then neither
        # logging nor writing would ever return. What logging takes after all, later, is said twice.
        if not _is_done_in_time(lambda: server_log.log(level, "%s", text)):
            line = f"{logging.getLevelName(level).lower()}: {text}\n"
            _is_done_in_time(lambda: _write(self._output, line.encode(errors="backslashreplace")))


def _is_done_in_time(action: Callable[[], None]) -> bool:
    """Do something in a thread of its own, which is left to itself if it takes longer than PATIENCE."""
    done = threading.Event()

    def do() -> None:
        action()
        done.set()

    try:
        threading.Thread(target=do, name="trioserve watchdog's log", daemon=True).start()
    except RuntimeError:  # too many threads or too little memory for one more, or the interpreter is about to end
        return False
    return done.wait(PATIENCE)


def _write(output: int, data: bytes) -> None:
    # Whoever read it may have gone, and there is nobody left to tell.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(output, data) :]
