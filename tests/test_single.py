"""One server in one process: what signals, certificates, terminals and service managers ask of it.

What a supervisor of several workers answers to terminals and service managers is here, too, side by side with it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .programs import NAP, PATIENCE, WORKER_APP, Program, finish, read_pid, start, wait_until
from .test_reload import Certificates, exchange, start_on_terminal
from .test_systemd import MANAGER, Manager, ports_of

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.skipif(sys.platform == "win32", reason="the programs are driven by POSIX signals and terminals"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0")
TLS = ("--ssl-certfile", "both.pem")
NO_CERTIFICATES = "info: there are no certificates to renew: TLS is off\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(WORKER_APP)
    return tmp_path


@pytest.fixture
def certificates(folder: Path) -> Certificates:
    return Certificates(folder)


def stop(program: Program, number: int = signal.SIGTERM) -> None:
    program.signal(number)
    assert program.wait() == 0
    assert program.left_over() == []


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **variables: str) -> Iterator[Program]:
    """The application, from when it serves to its clean stop."""
    with start(*SERVE, *arguments, cwd=folder, **variables) as program:
        program.wait_for("Ctrl-C stops")
        yield program
        stop(program)


# Certificates


def test_hangup_renews_the_certificates(folder, certificates):
    """SIGHUP gives new clients the new certificate; connections that are open keep what they have."""
    with serving(folder, *TLS) as program:
        connection = http.client.HTTPSConnection(*program.address, timeout=PATIENCE, context=certificates.context)
        with closing(connection) as kept:
            kept.request("GET", "/")
            assert read_pid(kept.getresponse()) == program.process.pid
            first, socket = kept.sock.getpeercert()["serialNumber"], kept.sock
            certificates.issue()
            program.signal(signal.SIGHUP)
            program.wait_for("info: certificates renewed from both.pem\n")
            assert certificates.ask(program).serial != first
            kept.request("GET", "/")
            assert read_pid(kept.getresponse()) == program.process.pid
            assert kept.sock is socket
    assert program.errors.count("certificates renewed") == 1


def test_broken_certificates_are_left(folder, certificates):
    """A pair that cannot be used is one line, the old one stays, and a good one is taken later."""
    with serving(folder, *TLS) as program:
        first = certificates.ask(program).serial
        certificates.damage()
        program.signal(signal.SIGHUP)
        program.wait_for("the new certificates cannot be used")
        assert certificates.ask(program).serial == first
        certificates.issue()
        program.signal(signal.SIGHUP)
        program.wait_for("info: certificates renewed")
        assert certificates.ask(program).serial != first
    said = "error: the new certificates cannot be used, so the old ones stay: "
    assert program.errors.count(f"{said}ssl_certfile 'both.pem': no certificate in PEM in it\n") == 1
    assert program.errors.count("cannot be used") == 1
    assert "Traceback" not in program.errors


def test_changed_certificates_are_renewed_without_a_signal(folder, certificates):
    """Files that change are found, whoever renews them says so or not."""
    with serving(folder, *TLS) as program:
        first = certificates.ask(program).serial
        certificates.issue()
        program.wait_for("info: certificates renewed from both.pem\n")
        assert certificates.ask(program).serial != first


def test_certificates_that_change_during_the_start(folder, certificates):
    """Files that change after they were read, while the application starts, are found as well."""
    (folder / "main.py").write_text(
        WORKER_APP.replace(
            "        await receive()\n",
            "        await receive()\n        __import__('shutil').copyfile('next.pem', 'both.pem')\n",
            1,
        )
    )
    old = certificates.file.read_bytes()
    certificates.issue()
    certificates.file.rename(folder / "next.pem")
    certificates.file.write_bytes(old)
    with serving(folder, *TLS) as program:
        program.wait_for("info: certificates renewed from both.pem\n")


def test_hangup_without_tls(folder):
    """Without TLS a SIGHUP changes nothing, and says so."""
    with serving(folder) as program:
        program.signal(signal.SIGHUP)
        program.wait_for(NO_CERTIFICATES)
        assert program.ask() == program.process.pid


# The terminal


@pytest.mark.parametrize("workers", [1, 2])
def test_end_of_the_terminal_is_a_stop(folder, workers):
    """When the terminal goes that it was started in, everything stops as on a SIGTERM."""
    with start_on_terminal(*SERVE, "--workers", str(workers), cwd=folder) as (program, terminal):
        program.wait_for_answers(workers)
        terminal.close()
        assert program.wait() == 0
        assert program.left_over() == []
    assert program.output.count("lifespan shutdown") == workers
    assert "info: stopping" in program.errors
    assert "Traceback" not in program.errors


@pytest.mark.parametrize(("workers", "said"), [(1, NO_CERTIFICATES), (2, "info: all workers are replaced\n")])
@pytest.mark.parametrize("terminal_is", ["there", "gone under nohup"])
def test_hangup_that_is_no_end_of_the_terminal(folder, workers, said, terminal_is):
    """A SIGHUP that somebody sent is none while the terminal is there; under nohup the terminal does not count."""
    nohup = terminal_is != "there"
    with start_on_terminal(*SERVE, "--workers", str(workers), cwd=folder, nohup=nohup) as (program, terminal):
        program.wait_for_answers(workers)
        if nohup:
            terminal.close()
        else:
            program.signal(signal.SIGHUP)
        program.wait_for(said)
        program.ask()
        stop(program)


# The task tree


def test_dump(folder):
    """SIGUSR1 logs what every task waits for, and the server goes on."""
    with serving(folder) as program, program.hold() as held:
        program.signal(signal.SIGUSR1)
        program.wait_for("warning: Tasks, each with where it waits, the most recent call last:\n")
        program.wait_for(r"System tasks: .*\n")
        held.release()
        assert program.ask() == program.process.pid
    assert f"{folder / 'main.py'}:" in program.errors
    assert "trioserve lifespan" in program.errors


def test_dump_tells_of_connections_and_threads(folder):
    """SIGUSR1 also tells each connection with what it does and for how long, every thread's stack, and figures."""
    (folder / "main.py").write_text(WORKER_APP + THREAD)
    with serving(folder) as program, program.hold() as held, closing(program.open()) as idle:
        idle.request("GET", "/thread")
        assert idle.getresponse().read().endswith(b"ended")
        program.signal(signal.SIGUSR1)
        program.wait_for(r"Open: connections 2, requests 1, WebSockets 0\n")
        held.release()
    assert re.search(r"- trioserve connection: 127\.0\.0\.1:\d+ POST /, \d\.\d s\n", program.errors)
    assert re.search(r"- trioserve connection: 127\.0\.0\.1:\d+ idle, \d\.\d s\n", program.errors)
    assert re.search(r"- the application's own\n(    .*\n)*    .*main\.py:\d+ in rest: time\.sleep\(", program.errors)


THREAD = """
import threading

def rest():
    time.sleep(600)

async def begin():
    threading.Thread(target=rest, name="the application's own", daemon=True).start()

WAYS["/thread"] = begin
"""


def test_dump_of_a_blocked_loop(folder):
    """SIGUSR1 shows where the event loop is blocked, too."""
    (folder / "main.py").write_text(WORKER_APP + NAP)
    with serving(folder) as program, closing(program.open()) as client:
        client.request("GET", "/nap")
        program.wait_for(r"naps \d+")
        program.signal(signal.SIGUSR1)
        running = r"127\.0\.0\.1:\d+ GET /nap, \d\.\d s"
        program.wait_for(
            rf"warning: the event loop does not run; what runs is {running}\nTasks, each with where it waits"
        )
        program.wait_for(r"main\.py:\d+ in nap: time\.sleep\(3\)\n")
        assert client.getresponse().read().endswith(b"ended")


# The watchdog


def test_watchdog(folder):
    """--watchdog says where the event loop is blocked, and by which request; how late it was is kept."""
    (folder / "main.py").write_text(WORKER_APP + NAP)
    with serving(folder, "--watchdog", "0.2") as program, closing(program.open()) as client:
        client.request("GET", "/nap")
        program.wait_for(
            r"error: the event loop has been blocked for \d\.\d s in 127\.0\.0\.1:\d+ GET /nap, \d\.\d s\n"
            r"Threads, the most recent call last:\n- MainThread\n(    .*\n)*"
            r"    .*main\.py:\d+ in nap: time\.sleep\(3\)\n"
        )
        program.wait_for(r"warning: the event loop goes on after 3\.\d s\n")
        assert client.getresponse().read().endswith(b"ended")
        program.signal(signal.SIGUSR1)
        late = program.wait_for(r"; the event loop was late by \d\.\d\d\d s, at most by (\d\.\d+) s\n")[1]
    assert 2.7 < float(late) < 10
    assert program.errors.count("has been blocked") == 1


@pytest.mark.parametrize("arguments", [(), ("--workers", "2", "--timeout-worker-healthcheck", "0.5")])
def test_watchdog_in_the_start(folder, arguments):
    """An application that blocks while it starts is told of, and not killed for it."""
    (folder / "main.py").write_text(
        WORKER_APP.replace("        await receive()\n", "        await receive()\n        time.sleep(1)\n", 1)
    )
    with serving(folder, "--watchdog", "0.2", *arguments) as program:
        program.ask()
        program.wait_for(r"error: the event loop has been blocked for \d\.\d s in the task trioserve lifespan\n")
    assert "is killed" not in program.errors


def test_a_fatal_signal_shows_the_stacks(folder):
    """What crashes a process, such as native code that goes wrong, ends it with every thread's stack."""
    with start(*SERVE, cwd=folder) as program:
        program.ask()
        program.signal(signal.SIGSEGV)
        assert program.wait() == -signal.SIGSEGV
    assert re.search(r"Fatal Python error: Segmentation fault\n\n(Current t|T)hread 0x", program.errors)


def test_a_fatal_signal_in_a_worker_or_its_supervisor(folder):
    """The same of each process: a worker is replaced, and after the supervisor's crash the workers end."""
    with start(*SERVE, "--workers", "2", cwd=folder) as program:
        crashed = min(program.wait_for_answers(2))
        os.kill(crashed, signal.SIGSEGV)
        program.wait_for(rf"error: worker {crashed} was ended by signal SIGSEGV")
        program.wait_for_answers(2, but=[crashed])
        assert program.errors.count("Fatal Python error: Segmentation fault\n") == 1
        program.signal(signal.SIGSEGV)
        assert program.wait() == -signal.SIGSEGV
        wait_until(lambda: program.left_over() == [], "the workers notice it, and end")
    assert program.errors.count("Fatal Python error: Segmentation fault\n") == 2


SLOW = """
import os
import trio

async def app(scope, receive, send):
    await receive()
    print("starting", flush=True)
    while not os.path.exists("go"):
        await trio.sleep(0.005)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""


def test_signals_during_the_start(folder):
    """While the application starts SIGHUP is nothing, as all is read anew, and SIGUSR1 tells what it waits for."""
    (folder / "main.py").write_text(SLOW)
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("starting")
        program.signal(signal.SIGHUP)
        program.signal(signal.SIGUSR1)
        program.wait_for(r"System tasks: .*\n")
        (folder / "go").touch()
        program.wait_for("Ctrl-C stops")
        stop(program)
    assert "renew" not in program.errors


# The end


def test_worn_server_ends(folder):
    """After limit_max_requests the process drains and ends with exit code 0, for a service manager to start it anew."""
    with start(*SERVE, "--limit-max-requests", "2", cwd=folder) as program:
        with program.hold() as held:
            assert program.ask() == program.process.pid
            held.release()
        assert program.wait() == 0
    assert program.errors.endswith("info: stopped: 2 requests served\n")
    assert "lifespan shutdown" in program.output


IN_A_THREAD = """
import threading
from trioserve import run

thread = threading.Thread(target=run, args=["main:app"], kwargs={"port": 0, "limit_max_requests": 1})
thread.start()
thread.join()
print("the thread has ended")
"""


def test_outside_the_main_thread(folder):
    """In another thread, where Python takes no signals, run() serves without them."""
    with start("-c", IN_A_THREAD, cwd=folder) as program:
        assert program.ask() == program.process.pid
        assert program.wait() == 0
    assert program.output.endswith("the thread has ended\n")


# The service manager


class Notices:
    """A service manager, and all that it was told so far."""

    def __init__(self, folder: str) -> None:
        self.manager = Manager(f"{folder}/notify")
        self.variables = {"NOTIFY_SOCKET": self.manager.name}
        self.all: list[str] = []

    def wait_for(self, beginning: str, count: int = 1) -> int:
        """Wait for as many notices that begin so; returns the index of the last."""

        def find() -> list[int]:
            self.all += self.manager.received()
            return [index for index, one in enumerate(self.all) if one.startswith(beginning)]

        wait_until(lambda: len(find()) >= count, f"{count} times {beginning!r}")
        return find()[-1]

    @property
    def states(self) -> list[str]:
        """The first assignment of each but the watchdog's, in order."""
        self.all += self.manager.received()
        return [one.partition("\n")[0] for one in self.all if one != "WATCHDOG=1"]


@pytest.fixture
def notices() -> Iterator[Notices]:
    # pytest's own folders have names too long for a unix socket on macOS.
    with tempfile.TemporaryDirectory(prefix="ts") as short:
        made = Notices(short)
        with closing(made.manager.socket):
            yield made


def test_service_manager_is_told(folder, notices):
    """READY comes once connections are accepted, RELOADING and READY round a SIGHUP, and STOPPING at the stop."""
    with start(*SERVE, cwd=folder, **notices.variables) as program:
        notices.wait_for("READY=1\nSTATUS=serving")
        assert program.ask() == program.process.pid
        program.signal(signal.SIGHUP)
        notices.wait_for("READY=1\nSTATUS=serving", 2)
        stop(program)
    notices.wait_for("STOPPING=1\nSTATUS=stopping")
    assert notices.states == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_nothing_is_ready_before_the_start_or_after_the_stop(folder, notices):
    """A SIGHUP makes no server ready that has not started or that stops."""
    (folder / "main.py").write_text(
        WORKER_APP.replace("        await receive()\n", "        await receive()\n        await wait()\n", 1)
        + '\nasync def wait():\n    print("starting", flush=True)\n'
        + '    while not os.path.exists("go"):\n        await trio.sleep(0.005)\n'
    )
    with start(*SERVE, cwd=folder, **notices.variables) as program:
        program.wait_for("starting")
        program.signal(signal.SIGHUP)
        program.signal(signal.SIGUSR1)
        program.wait_for(r"System tasks: .*\n")
        assert notices.states == []
        (folder / "go").touch()
        with program.hold() as held:
            program.signal(signal.SIGTERM)
            notices.wait_for("STOPPING=1")
            program.signal(signal.SIGHUP)
            program.signal(signal.SIGUSR1)
            wait_until(lambda: program.errors.count("System tasks: ") == 2, "the second tree")
            held.release()
        assert program.wait() == 0
    assert notices.states == ["READY=1", "STOPPING=1"]


def test_service_manager_is_told_of_workers(folder, notices):
    """With several workers READY comes with the first, and RELOADING and READY round the replacement of all."""
    with start(*SERVE, "--workers", "2", cwd=folder, **notices.variables) as program:
        notices.wait_for("READY=1")
        program.ask()
        workers = program.wait_for_answers(2)
        program.signal(signal.SIGHUP)
        begun = notices.wait_for("RELOADING=1")
        program.wait_for("info: all workers are replaced\n")
        assert program.wait_for_children(2, but=workers)
        stop(program)
    stopped = notices.wait_for("STOPPING=1\nSTATUS=waiting for the workers")
    assert any(one.startswith("READY=1\n") for one in notices.all[begun:stopped])
    assert set(notices.states[: notices.states.index("RELOADING=1")]) == {"READY=1"}
    assert notices.states[-1] == "STOPPING=1"


SECOND_WAITS = """
async def follow():
    # The first of the new workers makes the mark, and the second waits.
    if os.path.exists("rolls"):
        try:
            open("first", "x").close()
        except FileExistsError:
            say("the second starts")
            while not os.path.exists("go"):
                await trio.sleep(0.005)
"""


def test_service_manager_is_told_of_a_whole_roll(folder, notices):
    """After a SIGHUP READY comes once, and only when the last worker is replaced."""
    app = WORKER_APP.replace("        await receive()\n", "        await receive()\n        await follow()\n", 1)
    (folder / "main.py").write_text(app + SECOND_WAITS)
    with start(*SERVE, "--workers", "2", cwd=folder, **notices.variables) as program:
        notices.wait_for("READY=1\nSTATUS=2 workers serve")
        old = program.children()
        (folder / "rolls").touch()
        program.signal(signal.SIGHUP)
        program.wait_for("the second starts\n")
        assert notices.states[-1] == "RELOADING=1"
        begun = len(notices.states)
        (folder / "go").touch()
        notices.wait_for("READY=1\n", begun)  # all but one of those before were the same
        program.wait_for_children(2, but=old)
        stop(program)
    assert notices.states[begun:] == ["READY=1", "STOPPING=1"]


def test_watchdog_is_fed(folder, notices):
    """The service manager's watchdog hears of one server all the time, also during the start and the drain."""
    with start(*SERVE, cwd=folder, WATCHDOG_USEC="100000", **notices.variables) as program:
        notices.wait_for("READY=1")
        notices.wait_for("WATCHDOG=1", len(notices.all) + 5)
        with program.hold() as held:
            program.signal(signal.SIGTERM)
            stopping = notices.wait_for("STOPPING=1")
            notices.wait_for("WATCHDOG=1", stopping + 5)
            held.release()
        assert program.wait() == 0


def test_watchdog_is_fed_for_workers(folder, notices):
    """It hears of several workers as long as one of them beats, and also while they are replaced."""
    beats = ("--workers", "2", "--timeout-worker-healthcheck", "4")
    with start(*SERVE, *beats, cwd=folder, WATCHDOG_USEC="2000000", **notices.variables) as program:
        notices.wait_for("READY=1")
        program.wait_for_answers(2)
        notices.wait_for("WATCHDOG=1", len(notices.all) + 2)
        program.signal(signal.SIGHUP)
        begun = notices.wait_for("RELOADING=1")
        program.wait_for("info: all workers are replaced\n")
        notices.wait_for("WATCHDOG=1", begun + 2)
        stop(program)


@pytest.mark.parametrize("moment", ["serving", "page"])
def test_watchdog_is_fed_under_reload(folder, notices, moment):
    """Under --reload it is fed, too, though nobody checks the worker, and though there may be none."""
    if moment == "page":
        (folder / "main.py").write_text("(")
    with start(*SERVE, "--reload", cwd=folder, WATCHDOG_USEC="100000", **notices.variables) as program:
        notices.wait_for("READY=1")
        notices.wait_for("WATCHDOG=1", len(notices.all) + 20)
        stop(program)


@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_of_the_service_manager(folder, workers):
    """Workers serve the sockets that a service manager has handed over, and leave them open at a roll."""
    arguments = ("-m", "trioserve", "main:app", "--workers", str(workers))
    with start("-c", MANAGER, "http:admin", *arguments, cwd=folder) as program:
        ports = ports_of(program)
        workers_seen = program.wait_for_answers(workers)
        for port in ports:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            assert int(exchange(client).body.split("\n")[0]) in workers_seen | program.children()
        if workers > 1:
            program.signal(signal.SIGHUP)
            program.wait_for("info: all workers are replaced\n")
            program.wait_for_children(2, but=workers_seen)
            for port in ports:
                client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
                assert int(exchange(client).body.split("\n")[0]) not in workers_seen
        stop(program)


def test_sockets_are_not_handed_on(folder):
    """What a worker starts has neither the variables nor the sockets."""
    (folder / "main.py").write_text(
        WORKER_APP.replace(
            "async def answer():\n    pass\n",
            "async def answer():\n"
            "    import subprocess, sys\n"
            "    code = \"import os; print('sees', [n for n in os.environ if n.startswith('LISTEN_')], \" \\\n"
            "        \"[n for n in range(3, 50) if os.path.exists(f'/proc/self/fd/{n}') \" \\\n"
            "        \"and 'socket' in os.readlink(f'/proc/self/fd/{n}')], flush=True)\"\n"
            "    await trio.run_process([sys.executable, '-c', code])\n",
        )
    )
    with start("-c", MANAGER, "http", "-m", "trioserve", "main:app", "--workers", "2", cwd=folder) as program:
        ports_of(program)
        program.ask()
        program.wait_for(r"sees \[\] \[\]\n")
        stop(program)


def test_wrong_number_of_sockets(folder):
    """A number of sockets that makes no sense is wrong usage also with several workers."""
    arguments = ("-m", "trioserve", "main:app", "--workers", "2")
    program = finish("-c", MANAGER, "http", *arguments, cwd=folder, LISTEN_FDS="0", COLUMNS="200")
    assert program.process.returncode == 2
    assert "LISTEN_FDS must be a whole number of at least 1, not '0'\n" in program.errors
