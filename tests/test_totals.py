"""The figures of workers: how they come through the pipe, what stays of those that ended, why they were replaced."""

from __future__ import annotations

import os
import select
from contextlib import closing, contextmanager

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.process.child import Worker
from trioserve.process.job import (
    WHOLE,
    Job,
    Order,
    Report,
    figures_lines,
    order_line,
    read_figures,
    read_report,
    report_line,
)
from trioserve.process.link import SupervisorLink
from trioserve.process.totals import PATIENCE, Restart, Totals, state_of, why_ended, why_leaving

from .programs import PATIENCE as PROGRAM_PATIENCE
from .programs import WORKER_APP

MANY = {("requests", method, f"{status}xx", "ok"): status * 1000 for method in ("GET", "PUT") for status in range(2, 6)}
MANY |= {("tls_handshakes", f"unix:/run/{number:090}"): number + 0.5 for number in range(100)}

# Lines


def test_figures_survive_the_pipe():
    """However many there are, each line is one that a pipe takes as a whole, and stands for itself."""
    lines = list(figures_lines(MANY))
    assert len(lines) > 2
    found = {}
    for line, told in lines:
        assert line.index(b"\n") == len(line) - 1
        assert len(line) <= WHOLE
        assert read_figures(line) == told
        assert read_report(line) is None
        found.update(told)
    assert found == MANY
    assert getattr(select, "PIPE_BUF", 512) == WHOLE


def test_a_figure_that_is_too_long_has_its_own_line():
    """A name that fills a pipe is told all the same."""
    long = ("tls_handshakes", "x" * WHOLE)
    lines = [told for _, told in figures_lines({("tasks",): 1, long: 2, ("websockets_open",): 3})]
    assert lines == [{("tasks",): 1}, {long: 2}, {("websockets_open",): 3}]
    assert list(figures_lines({})) == []


@pytest.mark.parametrize(
    "entries",
    [
        "3",
        '"tasks"',
        "[]",
        '["tasks"]',
        '["tasks", "1"]',
        '["tasks", true]',
        '["tasks", null]',
        '["tasks", NaN]',
        '["tasks", Infinity]',
        '["tasks", 1' + "0" * 400 + "]",
        '["tasks", "x", 1]',
        '["surf", 1]',
        "[1, 1]",
        '{"tasks": 1}',
        '["tasks", 1], "',
    ],
)
def test_what_are_no_figures(entries):
    """An application may write anything into the pipe; what is not known is not taken for figures."""
    assert read_figures(b'{"figures": [' + entries.encode() + b"]}") is None
    assert read_figures(report_line(Report.BEAT)) is None


# The worker's side


@contextmanager
def linked():
    """A link as a worker has it, and the end at which its reports come out."""
    orders, tell = os.pipe()
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    errors = os.dup(2)
    os.write(tell, Job("main:app", Config(), (), [], writing, errors, colors=False, checks_health=True).to_line())
    link = SupervisorLink(orders)
    link.read_job()
    try:
        yield link, reading
    finally:
        for descriptor in (orders, tell, reading, writing, errors):
            os.close(descriptor)


def take(reading):
    try:
        return [read_figures(line) for line in os.read(reading, 1 << 20).splitlines()]
    except BlockingIOError:
        return []


def test_only_news_are_told():
    """What the supervisor knows already is not told again."""
    with linked() as (link, reading):
        link.tell_figures({("tasks",): 1, ("websockets_open",): 2})
        assert take(reading) == [{("tasks",): 1, ("websockets_open",): 2}]
        link.tell_figures({("tasks",): 1, ("websockets_open",): 3})
        assert take(reading) == [{("websockets_open",): 3}]
        link.tell_figures({("tasks",): 1, ("websockets_open",): 3})
        assert take(reading) == []


def test_what_a_stopped_supervisor_cannot_take_is_told_later():
    """A full pipe holds up no worker; what did not fit comes whole, with what is news by then."""
    with linked() as (link, reading):
        while link._write(report_line(Report.BEAT)):
            pass
        link.tell_figures(MANY)
        link.tell_figures(MANY | {("tasks",): 7})
        text = b""
        while data := _read(reading):
            text += data
        assert set(text.splitlines()) == {report_line(Report.BEAT).strip()}
        link.tell_figures(MANY | {("tasks",): 8})
        found = {}
        for figures in take(reading):
            found |= figures
        assert found == MANY | {("tasks",): 8}


def _read(reading):
    try:
        return os.read(reading, 1 << 16)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("bind", ["127.0.0.1:0", None])
async def test_beats_tell_the_counts(tmp_path, monkeypatch, bind):
    """A worker tells its counts unasked, so that little is lost when it is killed, and all at its end.

    What has to be looked for is told only when somebody asks. Without metrics nothing is told.
    """
    (tmp_path / "main.py").write_text(WORKER_APP)
    monkeypatch.chdir(tmp_path)
    beats = []

    class Heard(Worker):
        def _take_report(self, report):
            super()._take_report(report)
            beats.append(report)

    worker = Heard("main:app", Config(port=0, metrics_bind=bind), (), lambda: None, folder=str(tmp_path))
    with trio.fail_after(PROGRAM_PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            while beats.count(Report.BEAT) < 2:
                await trio.sleep(0.01)
            assert (("connections_accepted",) in worker.figures) is (bind is not None)
            assert ("tasks",) not in worker.figures
            worker.order(Order.STOP)
    assert worker.exit_code == 0
    assert (beats[-1] is Report.FIGURES) is (("tasks",) in worker.figures) is (bind is not None)


# The supervisor's side


class Fake(Worker):
    """A worker without a process: what it is told can be read, and the test answers in its place."""

    def __init__(self, figures=(), *, serves=True):
        super().__init__("main:app", Config(metrics_bind="127.0.0.1:0"), (), lambda: None)
        self.reading, self._orders = os.pipe()
        os.set_blocking(self.reading, False)
        self._process = object()  # only asked whether it is there
        self.figures = dict(figures)
        if serves:
            self.ready_at = trio.current_time()

    def told(self):
        return _read(self.reading)

    def close(self):
        os.close(self.reading)
        os.close(self._orders)


async def test_what_is_heard():
    """Figures and reports come in any pieces; what is neither is passed over."""
    with closing(Fake(serves=False)) as worker:
        sending, receiving = trio.testing.memory_stream_one_way_pair()
        (line, figures), *_ = figures_lines(MANY)
        for piece in (line[:10], line[10:] + b"nonsense\n", b'{"figures": 3}\n' + report_line(Report.READY)):
            await sending.send_all(piece)
        await sending.aclose()
        await worker._hear(receiving)
        assert worker.figures == figures
        assert worker.serves


async def test_workers_are_asked_for_what_they_count_now(autojump_clock):
    """The figures are those that each worker tells when it is asked."""
    with closing(Fake({("tasks",): 1})) as first, closing(Fake({("tasks",): 2})) as second:
        begin = trio.current_time()

        async def answer(worker, number):
            await trio.sleep(number / 10)
            assert worker.told() == order_line(Order.FIGURES)
            worker.figures["tasks",] = number * 10
            worker._take_report(Report.FIGURES)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, first, 1)
            nursery.start_soon(answer, second, 2)
            figures = await Totals().take([first, second])
        assert figures["tasks",] == 30
        assert figures["workers", "serving"] == 2
        assert trio.current_time() - begin == pytest.approx(0.2)


async def test_a_worker_that_does_not_answer(autojump_clock):
    """It costs a second, its last figures count, and it is not asked again before it has answered."""
    with closing(Fake({("tasks",): 3})) as worker:
        totals, begin = Totals(), trio.current_time()
        for _ in range(3):
            assert (await totals.take([worker]))["tasks",] == 3
        assert trio.current_time() - begin == pytest.approx(3 * PATIENCE)
        assert worker.told() == order_line(Order.FIGURES)
        worker._take_report(Report.FIGURES)
        await totals.take([worker])
        assert worker.told() == order_line(Order.FIGURES)


async def test_a_worker_that_cannot_answer_is_not_asked(autojump_clock):
    """One that starts, or has ended, costs no time."""
    begin = trio.current_time()
    with closing(Fake(serves=False)) as starting, closing(Fake()) as ended:
        ended.exit_code = 0
        figures = await Totals().take([starting, ended])
        assert (starting.told(), ended.told()) == (b"", b"")
    assert figures["workers", "starting"] == 1
    assert figures["workers", "leaving"] == 1
    assert trio.current_time() == begin


async def test_what_a_dead_worker_has_counted_stays(autojump_clock):
    """Sums never go down when a worker ends: its counts stay, and what it was goes."""
    totals = Totals()
    counted = {("connections_accepted",): 7, ("tasks",): 3, ("event_loop_lag_seconds",): 9}
    with closing(Fake(counted)) as first, closing(Fake({("connections_accepted",): 1})) as second:
        for worker in (first, second):
            worker.exit_code = -9
            totals.keep(worker)
    figures = await totals.take([])
    assert figures["connections_accepted",] == 8
    assert ("tasks",) not in figures
    assert ("event_loop_lag_seconds",) not in figures


def ended_worker(code, **attributes):
    worker = Worker("main:app", Config(), (), lambda: None)
    worker.ready_at = 0.0
    worker.exit_code = code
    for name, value in attributes.items():
        setattr(worker, name, value)
    return worker


@pytest.mark.parametrize(
    ("code", "attributes", "why"),
    [
        (3, {"ready_at": None}, Restart.FAILED_START),
        (-9, {"is_blocked": True}, Restart.BLOCKED),
        (-11, {}, Restart.KILLED),
        (9, {}, Restart.CRASHED),
        (0, {}, Restart.CRASHED),
        (0, {"is_leaving": True}, Restart.RETIRED),
        (0, {"is_leaving": True, "is_worn": True}, Restart.WORN),
    ],
)
def test_why_a_worker_has_ended(code, attributes, why):
    """What a worker that has ended needs a successor for."""
    assert why_ended(ended_worker(code, **attributes)) is why


def test_why_a_worker_leaves():
    """One that goes on serving until its successor is ready was worn, or told to go by a signal of its own."""
    assert why_leaving(ended_worker(None, is_worn=True)) is Restart.WORN
    assert why_leaving(ended_worker(None, is_leaving=True)) is Restart.RETIRED


async def test_states_of_workers():
    """A worker starts, serves, and leaves."""
    worker = Worker("main:app", Config(), (), lambda: None)
    assert state_of(worker) == "starting"
    worker.ready_at = trio.current_time()
    assert state_of(worker) == "serving"
    worker.is_blocked = True
    assert state_of(worker) == "leaving"
    early = Worker("main:app", Config(), (), lambda: None)
    early.is_leaving = True
    assert state_of(early) == "leaving"


def test_restarts_are_counted_from_nothing():
    """Every reason is shown from the start, so that a first restart is a rise."""
    totals = Totals()
    totals.count_restart(Restart.ROLLED)
    figures = trio.run(totals.take, [])
    assert {key[1]: value for key, value in figures.items() if key[0] == "worker_restarts"} == {
        why.value: float(why is Restart.ROLLED) for why in Restart
    }
