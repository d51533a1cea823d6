"""A worker's link to its supervisor: two pipes, one of orders and one of reports."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from ..figures import Figures
from .job import Job, Order, Report, figures_lines, read_order, report_line
from .pipes import open_inherited
from .signals import deaf_threads


class SupervisorLink:
    """The worker's ends of the pipes. ``report`` may be called from any thread, and in a signal handler.

    The orders are read in a thread, so that they, and the end of the supervisor, are heard during imports and while
    the event loop is blocked.
    """

    def __init__(self, number: int) -> None:
        # Not a file object, whose lock the thread would hold when the interpreter ends.
        self._lines = _read_lines(open_inherited(number, writes=False))
        self._reports = self._errors = -1
        self._known: Figures = {}

    def read_job(self) -> Job | None:
        """Wait for the job; None if the supervisor ended before it gave one."""
        line = next(self._lines, None)
        if line is None:
            return None
        job = Job.from_line(line)
        self._reports = open_inherited(job.reports, writes=True)
        self._errors = open_inherited(job.errors, writes=False)
        return job

    def listen(self, take: Callable[[Order], None], lost: Callable[[], None]) -> None:
        """Call ``take`` for each order, and ``lost`` when the supervisor has ended, in a thread of ours."""
        with deaf_threads():
            threading.Thread(target=self._listen, args=(take, lost), name="trioserve orders", daemon=True).start()

    def _listen(self, take: Callable[[Order], None], lost: Callable[[], None]) -> None:
        for line in self._lines:
            take(read_order(line))
        # The supervisor showed what we wrote there, and is gone.
        with contextlib.suppress(OSError):
            os.dup2(self._errors, 2)
        lost()

    def report(self, report: Report) -> None:
        """Tell the supervisor; what it cannot take is lost, as the beats for one that is stopped."""
        self._write(report_line(report))

    def tell_figures(self, figures: Figures) -> None:
        """Tell the supervisor those that it does not know yet; for one thread, and not in a signal handler."""
        news = {key: value for key, value in figures.items() if self._known.get(key) != value}
        for line, told in figures_lines(news):
            if self._write(line):
                self._known.update(told)

    def _write(self, line: bytes) -> bool:
        # Never more than the pipe takes as a whole: others write to it, too, and one of them may be the signal handler
        # that has interrupted us here.
        try:
            os.write(self._reports, line)
        except OSError:
            return False
        return True


def _read_lines(descriptor: int) -> Iterator[bytes]:
    """The whole lines that come, until the other end is closed."""
    rest = b""
    while data := os.read(descriptor, 65536):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
