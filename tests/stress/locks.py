"""Finds threads that stand still: that wait for a lock, say, for longer than an event loop may be blocked."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOOKS = 5
"""Looks of the sampler in one limit."""

IDLE = (
    ("trio/_core/_io_epoll.py", "EpollIOManager.get_events"),  # an event loop with nothing to do
    ("trio/_core/_thread_cache.py", "WorkerThread._work"),  # a thread that waits for the next to_thread.run_sync
    ("trioserve/process/watchdog.py", "Watchdog._is_stopped_in_wait"),  # between two looks
    ("trioserve/process/link.py", "_read_lines"),  # what the supervisor orders, which is mostly nothing
    ("trioserve/process/inspector_socket.py", "InspectorSocket._listen"),  # until somebody asks what the process does
    ("tests/stress/control.py", "Control._serve"),  # waits for the driver's next question
    ("tests/stress/control.py", "Control._take_figures"),  # waits for the event loop: which has a watchdog of its own
)
"""Where a thread may stand for as long as it likes: file and function of its innermost frame."""

# Through which the standard library waits for those who call it.
_WRAPPERS = ("/threading.py", "/socket.py", "/selectors.py")


@dataclass(frozen=True)
class Place:
    """Where a thread is. Two looks that find the same place have found a thread that did not move."""

    frame: int
    instruction: int
    switches: int | None
    """How often the system took the processor from it, or it gave it up: one that waits does neither."""


class StandstillWatch:
    """A thread that looks at all others, and tells of each that stands in one place for longer than ``limit`` seconds.

    ``report`` is called in that thread, once for each standstill, with what to tell.
    """

    def __init__(self, limit: float, report: Callable[[str], None]) -> None:
        self._limit = limit
        self._report = report
        self._since: dict[int, tuple[Place, float]] = {}
        self._told: set[tuple[int, Place]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="standstill watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        period = self._limit / LOOKS
        began = time.monotonic()
        while not self._ended.wait(period):
            now = time.monotonic()
            if now - began > 2 * period:
                self._since.clear()  # the machine, or native code with the interpreter's lock, kept all from running
            self.look(now)
            began = time.monotonic()

    def look(self, now: float) -> None:
        """One look; ``now`` is the time by whatever clock."""
        own = threading.get_ident()
        numbers = {thread.ident: thread.native_id for thread in threading.enumerate()}
        frames = sys._current_frames()
        before, self._since = self._since, {}
        for identifier, frame in frames.items():
            if identifier == own or is_idle(frame):
                continue
            place = Place(id(frame), frame.f_lasti, _switches_of(numbers.get(identifier)))
            old, since = before.get(identifier, (place, now))
            self._since[identifier] = (place, since if old == place else now)
            if now - self._since[identifier][1] > self._limit and (identifier, place) not in self._told:
                self._told.add((identifier, place))
                self._tell(identifier, frame, now - since)
        # Frames hold what is in them, and this call's variables would hold them until the next look.
        del frames

    def _tell(self, identifier: int, frame: FrameType, seconds: float) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stack = "".join(traceback.format_stack(frame))
        self._report(f"a thread stands still for {seconds:.1f} s: {names.get(identifier, identifier)}\n{stack}")


def is_idle(frame: FrameType) -> bool:
    """Whether a thread may stand there."""
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename.endswith(_WRAPPERS):
        caller = caller.f_back
    code = (caller or frame).f_code
    return any(code.co_filename.endswith(file) and code.co_qualname == name for file, name in IDLE)


def _switches_of(number: int | None) -> int | None:
    if number is None:  # a thread that Python has not started
        return None
    with contextlib.suppress(OSError):  # it has ended, or this is no Linux
        text = Path(f"/proc/self/task/{number}/status").read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)
    return None
