"""The parts that workers are made of, each by itself: what the tests of whole servers do not reach."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.logs import server_log
from trioserve.process import pool
from trioserve.process.child import Worker, _own_errors
from trioserve.process.job import Job, Order, PassedSocket, Report, order_line, read_order, read_report, report_line
from trioserve.process.link import SupervisorLink
from trioserve.process.output import ErrorOutput
from trioserve.process.pid_file import PidFile
from trioserve.process.pool import Pool
from trioserve.process.settings import COMMAND_LINE, Settings
from trioserve.process.signals import Heard, hear_signals, signal_name
from trioserve.process.sockets import Sockets
from trioserve.process.supervisor import Supervisor
from trioserve.process.worker import _open_listener

from .programs import PATIENCE, WORKER_APP, finish, start
from .support import LINUX, open_descriptors

pytestmark = pytest.mark.timeout(100)
linux_only = pytest.mark.skipif(not LINUX, reason="looks at processes through /proc")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text(WORKER_APP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(caplog):
    """What the server logs in this process, as texts."""
    with caplog.at_level("INFO", server_log.name):
        yield lambda: [record.getMessage() for record in caplog.records]


# What is said through the pipes


@pytest.mark.parametrize("order", Order)
def test_orders_survive_the_pipe(order):
    """An order is one line, and reads back the same."""
    line = order_line(order)
    assert line.index(b"\n") == len(line) - 1
    assert read_order(line) is order


@pytest.mark.parametrize("report", Report)
def test_reports_survive_the_pipe(report):
    """A report is one line, and reads back the same."""
    line = report_line(report)
    assert line.index(b"\n") == len(line) - 1
    assert read_report(line) is report


@pytest.mark.parametrize(
    "line", [b"", b"hello", b"[]", b"{}", b'{"is": "fine"}', b'{"is": []}', b"\xff", b"3", b"null"]
)
def test_what_is_no_report_is_none(line):
    """An application may write anything into the pipe of reports; that is not taken for one, and breaks nothing."""
    assert read_report(line) is None


def test_supervisor_that_ends_before_it_gives_a_job():
    """A worker without a job has nothing to do."""
    reading, writing = os.pipe()
    os.write(writing, b'{"app": ')  # cut in the middle
    os.close(writing)
    assert SupervisorLink(reading).read_job() is None
    os.close(reading)


def test_program_without_a_job(tmp_path):
    """The worker's program ends at once, and silently, if the supervisor has gone already."""
    program = finish("-c", WITHOUT_SUPERVISOR, cwd=tmp_path)
    assert program.process.returncode == 0
    assert program.errors == ""


WITHOUT_SUPERVISOR = """
import os, sys
reading, writing = os.pipe()
os.close(writing)
os.set_inheritable(reading, True)
os.execv(sys.executable, [sys.executable, "-m", "trioserve.process.worker", str(reading)])
"""


def test_reports_that_nobody_takes_are_lost():
    """A supervisor that does not read, or is gone, holds up no worker."""
    orders, tell = os.pipe()
    reading, writing = os.pipe()
    errors = os.dup(2)
    job = Job("main:app", Config(), (), [], writing, errors, colors=False, checks_health=True)
    os.write(tell, job.to_line())
    link = SupervisorLink(orders)
    assert link.read_job() == job
    for _ in range(20_000):  # more than any pipe holds
        link.report(Report.BEAT)
    assert os.read(reading, 100).startswith(report_line(Report.BEAT))
    os.close(reading)
    link.report(Report.BEAT)
    for descriptor in (orders, tell, writing, errors):
        os.close(descriptor)


@pytest.mark.skipif(sys.platform == "win32", reason="there they are shared, not inherited")
def test_sockets_are_inherited():
    """Where sockets are inherited none comes in another way."""
    with pytest.raises(AssertionError, match="inherited"):
        _open_listener(PassedSocket("127.0.0.1:80", tls=False, shared="text"))


# The error output


def test_last_line_of_the_errors(capfd):
    """The last line that is not empty is kept word for word, without colours, and all is shown as it came."""
    output = ErrorOutput()
    assert output.last_line is None
    output.take(b"first\n\x1b[31mOSError\x1b[0m: caf\xc3")
    output.take(b"\xa9 \xff is closed \n \n\n")
    assert output.last_line == "OSError: caf\xe9 \ufffd is closed"
    assert capfd.readouterr().err.startswith("first\n\x1b[31mOSError")


def test_only_the_end_of_the_errors_is_kept(capfd):
    """However much a worker writes, 64 KiB of it are kept."""
    output = ErrorOutput()
    for number in range(20_000):
        output.take(b"line %d\n" % number)
    assert len(output.text) == 64 * 1024
    assert output.last_line == "line 19999"


def test_errors_without_a_console(monkeypatch):
    """Where there is no standard error what a worker writes is kept all the same."""
    monkeypatch.setattr(sys, "stderr", None)
    output = ErrorOutput()
    output.take(b"lost\n")
    assert output.last_line == "lost"


def test_copy_of_the_errors_without_a_console(monkeypatch):
    """A worker whose supervisor has no standard error gets one that leads nowhere."""

    def refuse(descriptor):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuse)
        copy = _own_errors()
    assert os.path.samestat(os.fstat(copy), Path(os.devnull).stat())
    os.close(copy)


# Sockets


async def test_one_set_of_sockets_for_all():
    """Without reuse_port every slot has the same sockets, and closing a slot closes none of them."""
    sockets = Sockets(Config(port=0))
    await sockets.bind()
    (shared,) = sockets.of_slot(0)
    assert list(sockets.of_slot(1)) == [shared]
    assert sockets.urls == [shared.url]
    await sockets.close_slot(1)
    assert shared.raw_socket.fileno() >= 0
    await sockets.aclose()
    assert shared.raw_socket.fileno() == -1


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system has no SO_REUSEPORT")
async def test_a_socket_for_each_slot(tmp_path):
    """With reuse_port each slot has a socket of its own for each port, as long as the slot exists.

    What is no TCP port stays shared.
    """
    before = open_descriptors()
    sockets = Sockets(Config(bind=["127.0.0.1:0", f"unix:{tmp_path}/s"], reuse_port=True))
    await sockets.bind()
    first, unix = sockets.of_slot(0)
    own, same_unix = sockets.of_slot(1)
    assert same_unix is unix
    assert own.raw_address == first.raw_address
    assert own.raw_socket.fileno() != first.raw_socket.fileno()
    assert list(sockets.of_slot(1)) == [own, unix]
    await sockets.close_slot(1)
    assert own.raw_socket.fileno() == -1
    assert unix.raw_socket.fileno() >= 0
    sockets.of_slot(2)
    await sockets.aclose()
    assert open_descriptors() == before


# Signals


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "signal SIGTERM"), (200, "signal 200")])
def test_names_of_signals(number, name):
    """A signal has its name in the log, or its number where it has none."""
    assert signal_name(number) == name


def hear_nothing(*wanted):
    """What is heard until a cancellation."""
    heard = []

    async def main():
        with hear_signals(*wanted) as signals, trio.move_on_after(0.05):
            heard.extend([one async for one in signals])

    trio.run(main)
    return heard


def test_another_thread_hears_nothing():
    """Outside the main thread signals cannot be heard, and waiting for them is no error."""
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(hear_nothing()))
    thread.start()
    thread.join(PATIENCE)
    assert seen == [[]]
    assert signal.getsignal(signal.SIGTERM) is before


def test_system_without_such_signals(monkeypatch):
    """Where the system has none of the signals that are asked for, nothing is heard."""
    monkeypatch.delattr(signal, "SIGUSR1")
    assert hear_nothing(Heard.DUMP) == []


def test_signals_are_heard_in_their_meaning():
    """Each signal is given as what it asks; those not named keep their handlers."""
    before = signal.getsignal(signal.SIGTERM)

    async def main():
        with hear_signals(Heard.ROLL, Heard.DUMP) as signals:
            assert signal.getsignal(signal.SIGTERM) is before
            with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
                signal.raise_signal(signal.SIGUSR1)
                async for one in signals:
                    heard.append(one)
                    if one is Heard.DUMP:
                        signal.raise_signal(signal.SIGHUP)
                    else:
                        scope.cancel()

    heard = []
    trio.run(main)
    assert heard == [Heard.DUMP, Heard.ROLL]


# A worker process, and the supervisor's side of it


async def test_cancelled_supervisor_leaves_no_worker(folder):
    """A worker does not outlive the task that runs it."""
    worker = Worker("main:app", Config(port=0), (), lambda: None)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            await nursery.start(worker.run)
        assert not worker.has_ended
        os.kill(worker.pid, 0)
        nursery.cancel_scope.cancel()
    assert worker.exit_code == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


async def test_the_health_of_a_worker_that_leaves_is_not_watched(autojump_clock):
    """A worker may be silent once it has been told to stop."""
    worker = Worker("main:app", Config(port=0), (), lambda: None)
    worker._is_ready.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker._watch_health, None)
        await trio.testing.wait_all_tasks_blocked()
        worker.order(Order.STOP)
        with trio.fail_after(1000):
            while nursery.child_tasks:
                await trio.sleep(1)


async def test_order_before_the_process(folder):
    """A worker that is to stop before it is there is told so with its job."""
    news = []
    worker = Worker("main:app", Config(port=0), (), lambda: news.append(worker.exit_code))
    worker.order(Order.STOP)
    assert worker.is_leaving
    assert worker.to_plain(0)["state"] == "leaving"
    with trio.fail_after(PATIENCE):
        await worker.run()
    assert worker.exit_code == 0
    assert news[-1] == 0
    worker.order(Order.STOP)  # to nobody


async def test_ctrl_c_is_heard_after_several_starts_at_once(folder):
    """A worker is started with SIGINT blocked; this thread hears it afterwards, however the starts overlapped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(Worker("main:app", Config(port=0), (), lambda: None).run)
                await trio.testing.wait_all_tasks_blocked()
                with trio.fail_after(10):
                    while signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []):
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_descriptors_of_a_worker_are_closed(folder):
    """Nothing of the pipes is left in the supervisor, neither of a worker that ran nor of one that could not start."""
    worker = Worker("none:app", Config(port=0), (), lambda: None)
    with trio.fail_after(PATIENCE):
        await worker.run()  # the first takes what Trio needs once
        before = open_descriptors()
        worker = Worker("none:app", Config(port=0), (), lambda: None)
        await worker.run()
        assert worker.exit_code == 3
    assert open_descriptors() == before


async def test_worker_that_cannot_be_started(folder, monkeypatch):
    """Where there is no interpreter to start, that is an error of the system, and nothing is left."""
    monkeypatch.setattr(sys, "executable", str(folder / "none"))
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        await Worker("main:app", Config(port=0), (), lambda: None).run()
    assert open_descriptors() == before


def supervise(**options):
    config = Config(port=0, workers=2, **options)
    settings = Settings(config, None, dict.fromkeys(config.to_plain(), COMMAND_LINE))
    return Supervisor("main:app", settings, Pool, PidFile(None))


async def wait_for_workers(supervisor, count, *, but=None):
    with trio.fail_after(PATIENCE):
        while sum(one.serves and one is not but for one in supervisor.workers) < count:
            await trio.sleep(0.005)


async def test_server_without_an_interpreter(folder, monkeypatch, said):
    """A server that cannot start a worker says so once, and ends with 3."""
    monkeypatch.setattr(sys, "executable", str(folder / "none"))
    with trio.fail_after(PATIENCE):
        assert await supervise().run() == 3
    assert said() == ["cannot start a worker: No such file or directory"]


async def test_worker_that_dies_after_long_service(folder, monkeypatch, said):
    """A worker that has served for a while is replaced at once, and its death is not one of a crash loop."""
    monkeypatch.setattr(pool, "YOUNG", 0)
    supervisor = supervise()
    async with trio.open_nursery() as nursery:
        codes = []
        nursery.start_soon(lambda: append_result(codes, supervisor.run))
        for _ in range(pool.CRASHES_IN_A_ROW + 1):
            await wait_for_workers(supervisor, 2)
            first = supervisor.workers[0]
            os.kill(first.pid, signal.SIGKILL)
            await wait_for_workers(supervisor, 2, but=first)
        supervisor.stop()
    assert codes == [0]
    assert sum("was ended by signal SIGKILL" in text for text in said()) == pool.CRASHES_IN_A_ROW + 1


async def append_result(results, function):
    results.append(await function())


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system has no SO_REUSEPORT")
async def test_one_fewer_with_a_socket_of_its_own(folder, said):
    """With reuse_port one worker fewer may reset connections, and that is said."""
    supervisor = supervise(reuse_port=True)
    async with trio.open_nursery() as nursery:
        codes = []
        nursery.start_soon(lambda: append_result(codes, supervisor.run))
        await wait_for_workers(supervisor, 2)
        supervisor._keeper.heard(Heard.FEWER)
        with trio.fail_after(PATIENCE):
            while len(supervisor.workers) > 1:
                await trio.sleep(0.005)
        supervisor.stop()
    assert codes == [0]
    assert "connections that wait in the queue of its listener may be reset" in said()


async def test_without_an_inspector_nothing_is_swept(folder, monkeypatch, said):
    """A server whose processes offer no sockets leaves those of others alone when a worker has ended."""
    swept = []
    monkeypatch.setattr("trioserve.process.supervisor.sweep_folders", lambda: swept.append(1))
    supervisor = supervise(inspector=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await wait_for_workers(supervisor, 2)
        supervisor.stop()
    assert not swept


async def test_other_signals_are_nothing_to_the_pool(folder, said):
    """A pool is only told of signals about workers; any other would do nothing."""
    supervisor = supervise()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await wait_for_workers(supervisor, 2)
        before = said()
        supervisor._keeper.heard(Heard.DUMP)
        assert said() == before
        supervisor.stop()


async def start_times(lives, monkeypatch):
    """When a slot started its workers, which serve for so many seconds and die; those of None cannot be started."""
    config = Config(port=0)
    supervisor = Supervisor(
        "main:app", Settings(config, None, dict.fromkeys(config.to_plain(), COMMAND_LINE)), Pool, PidFile(None)
    )
    times = []
    scope = trio.CancelScope()

    async def start_worker(slot, on_news):
        times.append(trio.current_time())
        if len(times) > len(lives):
            scope.cancel()
            await trio.sleep_forever()
        seconds = lives[len(times) - 1]
        if seconds is None:
            raise OSError(errno.EAGAIN, "no process is left")
        worker = Worker("main:app", config, (), on_news)
        worker.ready_at = trio.current_time()
        nursery.start_soon(die, worker, seconds, on_news)
        return worker

    async def die(worker, seconds, on_news):
        await trio.sleep(seconds)
        worker.exit_code = 9
        on_news()

    monkeypatch.setattr(supervisor, "start_worker", start_worker)
    async with trio.open_nursery() as nursery:
        with scope:
            await Pool(supervisor).run()
    return times


@pytest.mark.parametrize("life", [None, 1], ids=["cannot be started", "dies after a second"])
async def test_failures_in_a_row_are_followed_by_longer_and_longer_pauses(autojump_clock, monkeypatch, life):
    """A worker's replacement comes 0.25 s after it failed, and after twice the time with each in a row, up to 8 s; one
    that served for long is replaced at once, and begins a new row.
    """
    long = 3 * pool.YOUNG
    lives = [1, *[life] * 6, long, life, life]
    times = await start_times(lives, monkeypatch)
    pauses = [
        after - before - (seconds or 0)
        for (before, after), seconds in zip(itertools.pairwise(times), lives, strict=True)
    ]
    assert pauses == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 8, 0, 0.25, 0.5])


async def test_deaths_beside_one_that_serves_for_long_are_no_crash_loop(autojump_clock, caplog):
    """They are not counted for the time when that one dies as well: from then on it takes five more."""
    config = Config(port=0)
    supervisor = Supervisor(
        "main:app", Settings(config, None, dict.fromkeys(config.to_plain(), COMMAND_LINE)), Pool, PidFile(None)
    )
    keeper = Pool(supervisor)
    keeper.ready()
    old = Worker("main:app", config, (), lambda: None)
    old.ready_at = trio.current_time()
    supervisor.workers.append(old)
    await trio.sleep(pool.YOUNG)
    for _ in range(2 * pool.CRASHES_IN_A_ROW):
        keeper.failed("killed")
    supervisor.workers.remove(old)
    for _ in range(pool.CRASHES_IN_A_ROW - 2):
        keeper.failed("killed")
    assert "in a row" not in caplog.text
    keeper.failed("killed at last")
    keeper.failed("killed after that")
    said = "5 workers have died in a row, each within seconds, so the server stops: killed at last"
    assert [record.message for record in caplog.records if "in a row" in record.message] == [said]


# What a service manager is told of workers


@contextlib.contextmanager
def service_manager():
    """Where a service manager listens; gives the path and the socket."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = f"{short}/s"
        manager.bind(path)
        manager.settimeout(PATIENCE)
        yield path, manager


def wait_for_notice(manager, pattern):
    while not re.search(pattern, notice := manager.recv(4096).decode(), re.MULTILINE):
        pass
    return notice


@linux_only
def test_service_manager_is_told_of_the_workers(folder):
    """It hears when the first worker serves, of a roll from its beginning to its end, and of the stop."""
    with service_manager() as (path, manager):
        arguments = ("-m", "trioserve", "main:app", "--port", "0", "--workers", "2")
        with start(*arguments, cwd=folder, NOTIFY_SOCKET=path) as program:
            wait_for_notice(manager, "^READY=1$")
            program.wait_for_answers(2)
            program.signal(signal.SIGHUP)
            wait_for_notice(manager, "^RELOADING=1$")
            wait_for_notice(manager, "^READY=1$")
            program.signal()
            wait_for_notice(manager, "^STOPPING=1$")
            assert program.wait() == 0


@linux_only
def test_watchdog_of_the_service_manager_is_fed_by_the_workers(folder):
    """As long as the event loop of one worker runs the watchdog is fed, and no longer."""
    with service_manager() as (path, manager):
        arguments = ("-m", "trioserve", "main:app", "--port", "0", "--workers", "2")
        # Beats come every second: two of them in the watchdog's time.
        options = ("--timeout-worker-healthcheck", "4")
        with start(*arguments, *options, cwd=folder, NOTIFY_SOCKET=path, WATCHDOG_USEC="2000000") as program:
            workers = program.wait_for_answers(2)
            wait_for_notice(manager, "^WATCHDOG=1$")
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)
            manager.settimeout(2.9)
            with pytest.raises(TimeoutError):
                while True:
                    manager.recv(4096)
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
            manager.settimeout(PATIENCE)
            wait_for_notice(manager, "^WATCHDOG=1$")
            program.signal()
            assert program.wait() == 0


@linux_only
@pytest.mark.parametrize("options", [("--workers", "2", "--timeout-worker-healthcheck", "60"), ("--reload",)])
def test_watchdog_of_the_service_manager_that_is_faster_than_ours(folder, options):
    """Healthy workers feed the watchdog however short its time is, and under --reload, too."""
    with service_manager() as (path, manager):
        arguments = ("-m", "trioserve", "main:app", "--port", "0")
        with start(*arguments, *options, cwd=folder, NOTIFY_SOCKET=path, WATCHDOG_USEC="1000000") as program:
            wait_for_notice(manager, "^READY=1$")  # until then it is fed whatever happens
            manager.settimeout(5)
            for _ in range(8):
                wait_for_notice(manager, "^WATCHDOG=1$")
            program.signal()
            assert program.wait() == 0
