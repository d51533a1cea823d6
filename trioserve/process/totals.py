"""The figures of all workers together, those that have ended included."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import trio

from ..figures import Figures, lasting, lateness, sum_up
from .child import Worker

PATIENCE = 1.0
"""Seconds that workers have to tell their figures; of one whose event loop is blocked the last count."""


class Restart(StrEnum):
    """Why a worker was started in the place of another."""

    CRASHED = "crashed"  # it ended by itself
    KILLED = "killed"  # by a signal that was not ours
    BLOCKED = "blocked"  # by us, as its event loop did not run for timeout_worker_healthcheck
    FAILED_START = "failed_start"  # it, or its successor, never served
    WORN = "limit_max_requests"
    ROLLED = "rolled"  # by a SIGHUP, or by --reload
    RETIRED = "retired"  # by a SIGTERM of its own


class Totals:
    """What the workers of one supervisor have counted and count."""

    def __init__(self) -> None:
        self._ended: Figures = {}
        self._restarts = dict.fromkeys(Restart, 0)

    def count_restart(self, why: Restart) -> None:
        self._restarts[why] += 1

    def keep(self, worker: Worker) -> None:
        """It has ended; what it has counted stays."""
        self._ended = sum_up([self._ended, lasting(worker.figures)])

    async def take(self, workers: Sequence[Worker]) -> Figures:
        """The figures of this moment; ``workers`` are all that run, and may change meanwhile."""
        with trio.move_on_after(PATIENCE):
            for told in [worker.ask_figures() for worker in workers]:
                await told.wait()
        figures = sum_up([self._ended, *map(_figures_of, workers)])
        for state in ("starting", "serving", "leaving"):
            figures["workers", state] = sum(state_of(worker) == state for worker in workers)
        for why, count in self._restarts.items():
            figures["worker_restarts", why.value] = count
        return figures


def _figures_of(worker: Worker) -> Figures:
    """What it has told, and what its silence tells: one whose event loop is blocked says nothing of that."""
    late = worker.seconds_late
    return sum_up([worker.figures, lateness(late)]) if late else worker.figures


def state_of(worker: Worker) -> str:
    """In a word, for counting."""
    if worker.serves:
        return "serving"
    return "starting" if worker.ready_at is None and not worker.is_leaving else "leaving"


def why_ended(worker: Worker) -> Restart:
    """Why one that has ended needs a successor."""
    assert worker.exit_code is not None
    if worker.ready_at is None:
        return Restart.FAILED_START
    if worker.is_blocked:
        return Restart.BLOCKED
    if worker.is_leaving:
        return why_leaving(worker)
    return Restart.KILLED if worker.exit_code < 0 else Restart.CRASHED


def why_leaving(worker: Worker) -> Restart:
    """Why one that runs, and was not asked to, needs a successor."""
    return Restart.WORN if worker.is_worn else Restart.RETIRED
