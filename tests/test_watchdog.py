"""The watchdog: real blocked loops, and loops that only seem blocked."""

import ctypes
import logging
import os
import re
import signal
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from trioserve.logs import server_log
from trioserve.process.watchdog import Limit, Watchdog

from .programs import PATIENCE, start
from .support import LINUX, open_descriptors
from .transports import until


class Log(logging.Handler):
    """What the server logs, as lines "LEVEL text"."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def log():
    handler = Log()
    server_log.addHandler(handler)
    yield handler
    server_log.removeHandler(handler)


@pytest.fixture(autouse=True)
def _no_thread_left():
    """Each test ends by proving that no thread of a watchdog is left, and no descriptor."""
    before = open_descriptors()
    yield
    for thread in threads():
        thread.join(PATIENCE)
    assert threads() == []
    assert open_descriptors() == before


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("trioserve watchdog")]


class Reports:
    """What the watchdog reports: the seconds of each blockage."""

    def __init__(self):
        self.seconds = []
        self._news = threading.Semaphore(0)

    def __call__(self, seconds):
        self.seconds.append(seconds)
        self._news.release()

    def block(self):
        """Block the calling thread, and so its event loop, until the next report."""
        assert self._news.acquire(timeout=PATIENCE)


def block_for(seconds):
    """Block the event loop for a time, where no event can end it: the time is what the test is about."""
    time.sleep(seconds)


@asynccontextmanager
async def watched(seconds=0.1, **options):
    """A watchdog over this event loop, whose timeout is ``seconds``, and its reports."""
    reports = Reports()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Watchdog(Limit(seconds, reports), **options).run, name="the watchdog's own")
            # Once this block has waited for the first time the watchdog has begun.
            await until(lambda: bool(threads()))
            yield reports
            nursery.cancel_scope.cancel()


@contextmanager
def pipe():
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def going_on(log):
    return [line for line in log.lines if line.startswith("WARNING the event loop goes on after ")]


def blockages(log):
    return [line for line in log.lines if line.startswith("ERROR the event loop has been blocked for ")]


async def test_blocked_loop_is_reported(log):
    """A blockage gives one error, with its length, and then one report of the same length."""
    async with watched() as reports:
        reports.block()
        assert len(log.lines) == 1
        (seconds,) = reports.seconds
        assert seconds > 0.1
        assert log.lines[0].startswith(f"ERROR the event loop has been blocked for {seconds:.1f} s in the task ")


async def test_dump_names_the_blocking_call(log):
    """The dump shows the very line that blocks, in the main thread, and the tasks, of which one is running."""

    async def block_here():
        reports.block()  # the blocking call

    async def wait():
        await trio.sleep_forever()

    async with watched() as reports, trio.open_nursery() as nursery:
        nursery.start_soon(wait, name="the patient one")
        nursery.start_soon(block_here, name="the guilty one")
        await until(lambda: bool(blockages(log)))
        nursery.cancel_scope.cancel()
    (dump,) = blockages(log)
    code = block_here.__code__
    place = re.escape(f"{__file__}:{code.co_firstlineno + 1} in {code.co_qualname}: reports.block()")
    assert re.search(rf"^    {place}  # the blocking call$", dump, re.MULTILINE)
    assert re.search(r"- the guilty one.*\n +running$", dump, re.MULTILINE)
    assert re.search(rf"- the patient one.*\n +{re.escape(__file__)}:\d+ in .*\.wait$", dump, re.MULTILINE)
    assert "- the watchdog's own" in dump


async def test_the_end_of_a_blockage_is_told(log):
    """When the loop goes on, a warning says after how long, which is longer than what was reported."""
    async with watched() as reports:
        reports.block()
        await until(lambda: len(log.lines) == 2)
    seconds = float(re.fullmatch(r"WARNING the event loop goes on after ([\d.]+) s", log.lines[1])[1])
    assert seconds >= round(reports.seconds[0], 1)


async def test_a_blockage_that_goes_on_is_reported_once(log):
    """However long a blockage is, it is reported once."""
    async with watched() as reports:
        reports.block()
        block_for(0.5)  # five timeouts more
        await until(lambda: bool(going_on(log)))
    assert len(reports.seconds) == len(blockages(log)) == 1


async def test_several_limits(log):
    """Each limit is told of once in each blockage, the shorter one first; limits reached together are told of once."""
    shorter, longer, longest = Reports(), Reports(), Reports()
    limits = [Limit(0.6, longer), Limit(0.1, shorter), Limit(0.6, longest), Limit(100, Reports())]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Watchdog(*limits).run)
            for count in (1, 2):
                await until(lambda: bool(threads()))
                shorter.block()
                assert len(blockages(log)) == 2 * count - 1
                longest.block()
                assert len(blockages(log)) == 2 * count
                await until(lambda count=count: len(going_on(log)) == count)
            nursery.cancel_scope.cancel()
    assert len(shorter.seconds) == len(longer.seconds) == len(longest.seconds) == 2
    assert longer.seconds == longest.seconds
    assert all(seconds > 0.6 for seconds in longer.seconds)


async def test_what_is_served_is_told(log):
    """What is noted of the running task is told with the blockage, and of every task in the tree."""
    notes = {}
    async with watched(activities=lambda: notes) as reports, trio.open_nursery() as nursery:

        async def serve():
            notes[trio.lowlevel.current_task()] = "10.0.0.1:5 GET /slow, 3.0 s"
            async with trio.open_nursery() as inner:
                inner.start_soon(block)

        async def block():
            reports.block()

        nursery.start_soon(serve, name="serving")
        await until(lambda: bool(blockages(log)))
    first, *rest = blockages(log)[0].splitlines()
    assert re.fullmatch(r"ERROR the event loop has been blocked for \d\.\d s in 10\.0\.0\.1:5 GET /slow, 3\.0 s", first)
    assert any(re.fullmatch(r" *- serving.*: 10\.0\.0\.1:5 GET /slow, 3\.0 s", line) for line in rest)


async def test_a_blockage_that_cannot_be_described(log):
    """Whatever goes wrong with the description, the blockage is told and reported."""

    def fail():
        raise RecursionError("too deep")

    async with watched(activities=fail) as reports:
        reports.block()
    [line] = blockages(log)
    assert re.search(r"for \d\.\d s, and cannot be described: RecursionError\('too deep'\)$", line)


async def test_native_code_that_keeps_the_lock_and_sleeps(log):
    """Where no thread could run, and no processor time was used, the watchdog says at least for how long."""
    async with watched():
        ctypes.PyDLL(None).usleep(600_000)
        await until(lambda: any("the process did not run for 0." in line for line in log.lines))
    assert blockages(log) == []


async def test_how_late_the_loop_is():
    """Each beat tells how late it is: hardly, or by how long the loop was blocked when it was due."""
    late = []
    async with watched(seconds=2, on_beat=late.append):
        assert late == [pytest.approx(0, abs=0.1)]
        block_for(1)  # and the next beat is due in a quarter of a second
        await until(lambda: len(late) == 2)
    assert late[1] >= 0.75 - 0.1


async def test_two_blockages(log):
    """After a blockage the watchdog is armed anew."""
    async with watched() as reports:
        for count in (1, 2):
            reports.block()
            await until(lambda count=count: len(going_on(log)) == count)
    assert len(reports.seconds) == 2
    assert [line.partition(" the")[0] for line in log.lines] == ["ERROR", "WARNING"] * 2


async def test_blocked_until_cancelled(log):
    """A cancellation is a sign of life too: the end of a blockage is told even if nothing comes after it."""
    async with watched() as reports:
        reports.block()
    await until(lambda: not threads())
    assert len(going_on(log)) == 1


async def test_short_blockages(log):
    """Blockages shorter than the timeout are not reported, however many."""
    async with watched(seconds=2) as reports:
        for _ in range(10):
            block_for(0.25)
            await trio.lowlevel.checkpoint()
    assert reports.seconds == log.lines == []


@contextmanager
def busy_neighbours():
    """Threads that fight for the interpreter's lock."""
    rest = threading.Event()

    def work():
        while not rest.is_set():
            sum(range(1000))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        rest.set()
        for worker in workers:
            worker.join(PATIENCE)


async def test_healthy_loop_under_load(log):
    """A loop that has to share the processor still beats, four times in a timeout, and is never reported."""
    beats = []
    with busy_neighbours():
        async with watched(seconds=1, on_beat=lambda late: beats.append(time.monotonic())) as reports:
            await until(lambda: len(beats) == 13)
    assert reports.seconds == log.lines == []
    assert beats[-1] - beats[0] >= 12 / 4 * 0.99


async def test_beats_are_told_in_the_loop():
    """on_beat is called by the watchdog's own task, at once and then again and again, also after a blockage."""
    tasks = []
    async with watched(on_beat=lambda late: tasks.append(trio.lowlevel.current_task().name)) as reports:
        assert tasks == ["the watchdog's own"]
        reports.block()
        before = len(tasks)
        await until(lambda: len(tasks) >= before + 3)
    assert set(tasks) == {"the watchdog's own"}


async def test_thread_ends_promptly(log):
    """The thread ends with the task, however long its timeout is, and says nothing."""
    async with watched(seconds=1000):
        (thread,) = threads()
        assert thread.daemon
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert log.lines == []


async def test_native_code_that_keeps_the_lock(log):
    """Native code that lets no thread run is reported as soon as it is done, and its line is named."""
    async with watched():
        # Again, if the system let this thread go on before the watchdog's had its look.
        while not any("sum(range(30_000_000))  # about half a second" in dump for dump in blockages(log)):
            sum(range(30_000_000))  # about half a second, in one call
            with trio.move_on_after(1):
                await until(lambda: bool(blockages(log)))


async def test_held_logging_lock(log):
    """If the blocked thread holds a logging handler's lock, the dump goes to the output, and the report follows."""
    with pipe() as (reading, writing):
        async with watched(output=writing) as reports:
            with log.lock:
                reports.block()
                written = os.read(reading, 1 << 16).decode()
            # What waited for the lock is logged after all.
            await until(lambda: bool(blockages(log) and going_on(log)))
    assert written.startswith("error: the event loop has been blocked for ")
    assert "reports.block()" in written
    assert written.endswith("\n")


async def test_neither_logging_nor_output(log):
    """If the output takes nothing either, the report comes all the same."""
    with pipe() as (reading, writing):
        size = fill(writing)
        async with watched(output=writing) as reports:
            with log.lock:
                reports.block()
            while size > 0:
                size -= len(os.read(reading, size))
            await until(lambda: bool(going_on(log)))
            await until(lambda: len(threads()) == 1)


def fill(writing):
    """Fill a pipe; return how much it holds."""
    os.set_blocking(writing, False)
    size = 0
    with pytest.raises(BlockingIOError):
        while True:
            size += os.write(writing, bytes(1 << 12))
    os.set_blocking(writing, True)
    return size


async def test_output_that_is_gone(log):
    """If nobody reads the output any more, the report comes all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    async with watched(output=writing) as reports:
        with log.lock:
            reports.block()
        await until(lambda: bool(going_on(log)))
    os.close(writing)


@pytest.mark.skipif(not LINUX, reason="needs a stack size that the system takes, and then cannot give")
async def test_no_thread_to_be_had(log):
    """If no thread can be started for the log, the report comes all the same."""
    async with watched() as reports:
        before = threading.stack_size(1 << 50)
        try:
            reports.block()
        finally:
            threading.stack_size(before)
    assert blockages(log) == []


STOPPED = """
import os, signal, time
from functools import partial
import trio
from trioserve.process.watchdog import Limit, Watchdog

async def main():
    beats = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Watchdog(Limit(1, partial(print, "reported")), on_beat=beats.append).run)
        await trio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGSTOP)
        # Blocked, but not for long: the watchdog looks before the loop can beat.
        time.sleep(0.5)
        count = len(beats) + 8
        while len(beats) < count:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

trio.run(main)
print("done", flush=True)
"""


def wait_until_stopped(process):
    deadline = time.monotonic() + PATIENCE
    while os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not LINUX, reason="os.waitid")
def test_stopped_process(tmp_path):
    """A process that was stopped as a whole, for longer than the timeout, and continued is not reported."""
    with start("-c", STOPPED, cwd=tmp_path) as program:
        wait_until_stopped(program.process)
        time.sleep(1.5)  # the stop itself
        program.signal(signal.SIGCONT)
        program.wait_for("done")
        assert program.wait() == 0
    # That it did not run at all is told, and is nobody's fault.
    [line] = program.errors.splitlines()
    assert re.fullmatch(r"the process did not run for \d\.\d s: it was stopped, or starved, or native code .*", line)
    assert "reported" not in program.output
