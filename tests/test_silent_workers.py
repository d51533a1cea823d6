"""What a supervisor tells of workers that say nothing: how late they are, and whether the server is ready."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.process.job import Report, figures_lines
from trioserve.process.pid_file import PidFile
from trioserve.process.pool import Pool
from trioserve.process.settings import COMMAND_LINE, Settings
from trioserve.process.supervisor import ANSWER_PATIENCE, Supervisor
from trioserve.process.totals import Totals
from trioserve.process.watchdog import BEAT

from .programs import WORKER_APP, start, wait_until
from .test_metrics_runs import SERVE, Pages
from .test_totals import Fake

LAG, WORST, LATE = ("event_loop_lag_seconds",), ("event_loop_lag_max_seconds",), ("event_loop_late_seconds",)


class Process:
    """What a worker that is killed is asked for."""

    was_killed = False

    def kill(self) -> None:
        self.was_killed = True


async def test_the_lag_of_a_worker_grows_with_its_silence(autojump_clock):
    """It is what it has told last, or its silence beyond one beat; of what it was at worst likewise."""
    with closing(Fake({LAG: 0.01, WORST: 5, LATE: 7})) as worker:
        worker._take_report(Report.BEAT)
        totals, seen = Totals(), []
        for _ in range(3):
            await trio.sleep(2)
            figures = await totals.take([worker])  # which waits a second for it
            seen.append((figures[LAG], figures[WORST], figures[LATE]))
        assert seen == [(pytest.approx(lag), pytest.approx(max(lag, 5)), 7) for lag in (2.75, 5.75, 8.75)]
        worker._take_report(Report.FIGURES)
        await trio.sleep(BEAT / 2)
        assert worker.seconds_late == 0


@pytest.mark.parametrize("state", ["starting", "leaving", "ended"])
async def test_who_need_not_beat_is_not_late(autojump_clock, state):
    """One that is not ready says nothing yet, and one that leaves may have ended its event loop."""
    with closing(Fake({LAG: 0.01}, serves=state != "starting")) as worker:
        worker.is_leaving = state == "leaving"
        worker.exit_code = 0 if state == "ended" else None
        await trio.sleep(30)
        assert worker.seconds_late == 0
        worker.exit_code = 0
        assert (await Totals().take([worker]))[LAG] == 0.01


async def test_what_a_worker_was_late_that_is_killed_as_blocked(autojump_clock):
    """It cannot tell that itself any more, so it is counted for it, once, whatever it still says."""
    with closing(Fake({LAG: 0.01, WORST: 5, LATE: 7, ("connections_accepted",): 1})) as worker:
        worker._process = Process()
        worker._take_report(Report.BEAT)
        await trio.sleep(9)
        worker._take_report(Report.BLOCKED)
        assert worker._process.was_killed
        assert worker.figures == {LAG: 8.75, WORST: 8.75, LATE: 15.75, ("connections_accepted",): 1}
        sending, receiving = trio.testing.memory_stream_one_way_pair()
        for line, _ in figures_lines({LATE: 15.5}):
            await sending.send_all(line)
        await sending.aclose()
        await worker._hear(receiving)
        worker.exit_code = -9
        totals = Totals()
        totals.keep(worker)
        figures = await totals.take([])
    assert figures[LATE] == 15.75
    assert LAG not in figures


async def test_a_worker_that_leaves_is_not_killed_as_blocked(autojump_clock):
    """Nothing is counted for it: it has deadlines of its own."""
    with closing(Fake({LATE: 7})) as worker:
        worker._process = Process()
        worker.is_leaving = True
        await trio.sleep(9)
        worker._take_report(Report.BLOCKED)
        assert not worker._process.was_killed
        assert worker.figures == {LATE: 7}


def supervise(**options):
    config = Config(port=0, **options)
    settings = Settings(config, None, dict.fromkeys(config.to_plain(), COMMAND_LINE))
    return Supervisor("main:app", settings, Pool, PidFile(None))


async def test_ready_is_who_hears_of_one_worker(autojump_clock):
    """While every worker that serves is silent the server is not ready; one that starts or leaves does not count."""
    supervisor = supervise()
    with closing(Fake()) as first, closing(Fake()) as second, closing(Fake(serves=False)) as starting:
        supervisor.workers[:] = [first, second, starting]
        for worker in (first, second):
            worker._take_report(Report.BEAT)
        await trio.sleep(ANSWER_PATIENCE - 0.5)
        second._take_report(Report.BEAT)
        await trio.sleep(0.5)
        assert supervisor._why_not_ready() is None
        starting._take_report(Report.BEAT)
        await trio.sleep(ANSWER_PATIENCE - 0.5)
        assert supervisor._why_not_ready() == "no worker answers"
        first._take_report(Report.BEAT)
        assert supervisor._why_not_ready() is None
        first.is_leaving = True
        assert supervisor._why_not_ready() == "no worker answers"
        second.is_leaving = True
        assert supervisor._why_not_ready() == "starting"


async def test_a_worker_whose_health_is_not_checked_may_be_silent(autojump_clock):
    """Under --reload somebody may sit in a debugger."""
    supervisor = supervise(reload=True)
    with closing(Fake()) as worker:
        worker._checks_health = False
        supervisor.workers.append(worker)
        await trio.sleep(3600)
        assert supervisor._why_not_ready() is None


@pytest.mark.timeout(100)
@pytest.mark.skipif(sys.platform == "win32", reason="the program is driven by POSIX signals")
def test_a_server_whose_workers_are_all_stopped(tmp_path):
    """It says that it is not ready, and how late its workers are, until one goes on."""
    (tmp_path / "main.py").write_text(WORKER_APP)
    options = ("--metrics-bind", "127.0.0.1:0", "--workers", "2", "--timeout-worker-healthcheck", "60")
    with start(*SERVE, *options, cwd=tmp_path) as program:
        pages = Pages(program)
        workers = program.wait_for_answers(2)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: pages.ask("/readyz") == (503, "no worker answers\n"), "that nobody is heard")
        figures = pages.figures()
        assert figures["event_loop_lag_seconds",] >= ANSWER_PATIENCE - BEAT
        assert figures["event_loop_lag_max_seconds",] >= figures["event_loop_lag_seconds",]
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: pages.ask("/readyz") == (200, "ready\n"), "that somebody is heard")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
