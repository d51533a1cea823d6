"""Several workers, as a user starts them: real processes, real sockets, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.process.job import Job, PassedSocket
from trioserve.server import serve

from .programs import WORKER_APP, Program, finish, read_pid, start, wait_until
from .support import LINUX
from .test_config import PLAIN

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not LINUX, reason="looks at processes through /proc"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0", "--no-access-log")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(WORKER_APP)
    return tmp_path


@contextlib.contextmanager
def serving(folder: Path, *options: str, **variables: str) -> Iterator[tuple[Program, set[int]]]:
    """A server with two workers, once both have answered; ends by proving that nothing is left of it."""
    with start(*SERVE, "--workers", "2", *options, cwd=folder, **variables) as program:
        yield program, program.wait_for_answers(2)
        assert program.process.poll() is not None
        program.wait()
        wait_until(lambda: not program.left_over(), "the end of all that was started")


def is_refused(program: Program) -> bool:
    try:
        socket.create_connection(program.address, 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # in the queue of a listener that was just closed
    return False


def arguments_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


# Workers


def test_both_workers_answer(folder):
    """Connections are served by the two workers, which are the server's children, and never by the server itself."""
    with serving(folder) as (program, workers):
        assert workers == program.children()
        assert program.process.pid not in workers
        program.signal()
        assert program.wait() == 0
    assert "serves main:app with 2 workers\n" in program.errors


def test_workers_are_started_afresh(folder):
    """A worker is an interpreter of its own, told by one argument, the number of a pipe, where it gets its job."""
    with serving(folder) as (program, workers):
        for worker in workers:
            executable, *flags, option, module, number = arguments_of(worker)
            assert executable == sys.executable
            assert (option, module) == ("-m", "trioserve.process.worker")
            assert number.isdecimal()
            assert set(flags) <= {"-B", "-P"}
        program.signal()
        assert program.wait() == 0


def test_flags_of_the_interpreter_are_passed_on(folder):
    """What the interpreter was started with holds in the workers too: -O, -W, -X and the rest."""
    (folder / "main.py").write_text(
        WORKER_APP
        + "import sys\n"
        + "say('flags', sys.flags.optimize, sys.flags.bytes_warning, sys._xoptions, sys.warnoptions)\n"
    )
    flags = ("-OO", "-P", "-b", "-W", "ignore::ImportWarning", "-X", "utf8=1", "-X", "faulthandler")
    with start(*flags, *SERVE, "--workers", "2", cwd=folder) as program:
        program.wait_for_answers(2)
        program.signal()
        assert program.wait() == 0
    said = [line for line in program.output.splitlines() if line.startswith("flags")]
    assert len(said) == 2
    for line in said:
        assert line.startswith("flags 2 1 ")
        assert "'utf8': '1'" in line
        assert "'faulthandler': True" in line
        assert "'ignore::ImportWarning'" in line


def test_nothing_of_the_parent_is_in_a_worker(folder):
    """A worker is no copy of its parent: what the parent did to a module before is not there."""
    (folder / "main.py").write_text(WORKER_APP + "mark = 'fresh'\ndef show(): say('mark', mark)\n")
    (folder / "site_a.py").write_text("import main\nfrom main import app\nmain.show()\n")
    script = "import main\nfrom trioserve import run\nmain.mark = 'parent'\nrun('site_a:app', workers=2, port=0)\n"
    with start("-c", script, cwd=folder) as program:
        program.wait_for_answers(2)
        program.signal()
        assert program.wait() == 0
    assert program.output.count("mark fresh") == 2
    assert "mark parent" not in program.output


def test_script_that_runs_workers(folder):
    """run() with workers needs no guard in the script, and the workers find what the script finds."""
    site = folder / "site"
    site.mkdir()
    (folder / "main.py").rename(site / "main.py")
    library = folder / "library"
    library.mkdir()
    (library / "helper.py").write_text("")
    (site / "main.py").write_text("import helper\n" + WORKER_APP)
    (site / "script.py").write_text(
        f"import sys\nsys.path.append({str(library)!r})\n"
        "from trioserve import run\nrun('main:app', workers=2, port=0)\nprint('went on', flush=True)\n"
    )
    with start("site/script.py", cwd=folder) as program:
        program.wait_for_answers(2)
        program.signal()
        assert program.wait() == 0
    assert program.output.count("went on") == 1
    assert program.output.endswith("went on\n")


def test_application_that_is_no_text(folder):
    """run() refuses an object with several workers: each has to import the application for itself."""
    program = finish("-c", "from main import app\nfrom trioserve import run\nrun(app, workers=2)", cwd=folder)
    assert program.process.returncode == 2
    assert program.errors == (
        'error: workers=2 needs the application as text, such as "main:app", because each worker imports it for'
        " itself\n"
    )


async def test_workers_are_not_for_serve():
    """serve() is one server in this process, and refuses to be more."""

    async def app(scope, receive, send):
        raise NotImplementedError

    with pytest.raises(ConfigError) as caught:
        await serve(app, workers=2)
    assert str(caught.value) == ("workers=2 is for the command line and run(): serve() is one server in this process")


def test_one_worker_is_the_process_itself(folder):
    """With one worker there is no other process."""
    with start(*SERVE, "--workers", "1", cwd=folder) as program:
        assert program.ask() == program.process.pid
        assert program.children() == set()
        program.signal()
        assert program.wait() == 0


LOOK = """
import subprocess, sys

LOOK = '''
import contextlib, os
found = []
for number in range(3, 100):
    with contextlib.suppress(OSError):
        found.append(os.readlink("/proc/self/fd/%d" % number).partition(":")[0])
print(who, "has", *sorted({"pipe", "socket"}.intersection(found)), "and so on", flush=True)
'''

def look():
    exec(LOOK, {"who": "worker"})
    subprocess.run([sys.executable, "-c", "who = 'child'" + LOOK], close_fds=False, check=True)
"""


def test_what_a_worker_inherits_ends_with_it(folder):
    """Whatever the application starts, and however, has neither the worker's sockets nor its pipes."""
    app = WORKER_APP.replace("        await receive()\n", "        await receive()\n        look()\n", 1)
    (folder / "main.py").write_text(app + LOOK)
    with serving(folder) as (program, _):
        program.signal()
        assert program.wait() == 0
    assert program.output.count("worker has pipe socket and so on\n") == 2
    assert program.output.count("child has and so on\n") == 2


# How many


def test_number_from_the_platform(folder):
    """WEB_CONCURRENCY is the number of workers if nothing else says it."""
    with start(*SERVE, cwd=folder, WEB_CONCURRENCY="2") as program:
        assert len(program.wait_for_answers(2)) == 2
        program.signal()
        assert program.wait() == 0


@pytest.mark.parametrize("source", ["command line", "environment", "file"])
def test_number_of_ours_overrules_the_platform(folder, source):
    """--workers, TRIOSERVE_WORKERS and the file each go before WEB_CONCURRENCY."""
    options = ("--workers", "1") if source == "command line" else ()
    variables = {"TRIOSERVE_WORKERS": "1"} if source == "environment" else {}
    if source == "file":
        (folder / "trioserve.toml").write_text("workers = 1\n")
    with start(*SERVE, *options, cwd=folder, WEB_CONCURRENCY="2", **variables) as program:
        assert program.ask() == program.process.pid
        program.signal()
        assert program.wait() == 0


@pytest.mark.parametrize(("text", "shown"), [("0", "0"), ("two", "'two'"), ("1.5", "'1.5'")])
def test_number_that_is_none(folder, text, shown):
    """A wrong WEB_CONCURRENCY is wrong usage, and named."""
    program = finish(*SERVE, cwd=folder, WEB_CONCURRENCY=text)
    assert program.process.returncode == 2
    assert program.errors.endswith(
        f"Error: WEB_CONCURRENCY: workers must be a whole number of at least 1, not {shown}\n"
    )


def test_number_from_the_platform_and_reload(folder):
    """--reload runs one worker, whatever the platform says."""
    program = finish(*SERVE, "--reload", "--print-config", cwd=folder, WEB_CONCURRENCY="2")
    assert program.process.returncode == 0
    assert re.search(r"^workers = 1 +# default$", program.output, re.MULTILINE)


# The job


SOCKETS = st.builds(
    PassedSocket,
    address=st.text(),
    tls=st.booleans(),
    number=st.none() | st.integers(0),
    shared=st.none() | st.text(),
)


@given(
    config=PLAIN.map(Config.from_plain),
    sockets=st.lists(SOCKETS, max_size=3).map(tuple),
    path=st.lists(st.text(), max_size=3),
    rest=st.fixed_dictionaries(
        {"app": st.text(), "reports": st.integers(0), "errors": st.integers(0)}
        | dict.fromkeys(["colors", "checks_health"], st.booleans())
    ),
)
def test_a_job_is_one_line_of_plain_values(config, sockets, path, rest):
    """All that a worker is given is one line of JSON, whatever the options, and reads back the same.

    So no SSLContext, socket, logger or callable can be in it: the worker makes its own from the paths.
    """
    job = Job(config=config, sockets=sockets, path=path, **rest)
    line = job.to_line()
    assert line.index(b"\n") == len(line) - 1
    assert json.loads(line)["config"] == config.to_plain()
    assert Job.from_line(line) == job


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_drains_all_workers(folder, number):
    """A stop refuses new connections at once, and lets what runs in any worker finish; then nothing is left."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        held = program.hold_in_each(workers, stack)
        program.signal(number)
        program.wait_for("stopping 2 workers; Ctrl-C again cuts what they still do\n")
        wait_until(lambda: is_refused(program), "the end of listening")
        for worker in workers:
            program.wait_for(f"worker {worker}: stopping: waiting for 1 request, oldest POST / ")
        program.signal(signal.SIGHUP)  # from now on this does nothing
        program.signal(signal.SIGUSR1)
        for worker in workers:
            program.wait_for(f"worker {worker}: Tasks, each with where it waits")
        assert program.children() == workers
        for one in held.values():
            one.release()
        assert program.wait() == 0
    for worker in workers:
        assert f"lifespan shutdown {worker}\n" in program.output
        assert f"worker {worker} has ended\n" in program.errors
    assert "replacing" not in program.errors
    assert program.errors.endswith("info: stopped\n")


def test_stop_closes_idle_connections(folder):
    """A stop closes at once what is idle in any worker, however long connections may be idle and draining may take."""
    clocks = ("--timeout-keep-alive", "600", "--timeout-graceful-shutdown", "600")
    with serving(folder, *clocks) as (program, workers), contextlib.ExitStack() as stack:
        idle = program.hold_in_each(workers, stack)
        for one in idle.values():
            one.client.send(b"x")
            assert one.response.read() == b"ended"
        program.signal(signal.SIGTERM)
        for one in idle.values():
            assert one.client.sock.recv(1) == b""
        assert program.wait() == 0
    assert program.errors.endswith("info: stopped\n")


def test_second_signal_cancels(folder):
    """A second signal cancels what still runs; clean-up and lifespan.shutdown run in every worker all the same."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        program.hold_in_each(workers, stack)
        program.signal()
        program.wait_for("stopping 2 workers")
        program.signal()
        assert program.wait() == 0
    assert "warning: cancelling what the workers still do\n" in program.errors
    for worker in workers:
        assert program.output.index(f"cleaned up {worker}") < program.output.index(f"lifespan shutdown {worker}")
        assert f"worker {worker} has ended\n" in program.errors


def test_ctrl_c_to_all(folder):
    """A terminal sends its Ctrl-C to the workers too, which leave it to the server: it is one stop, not several."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        held = program.hold_in_each(workers, stack)
        program.signal_group()
        program.wait_for("stopping 2 workers")
        for one in held.values():
            one.release()
        assert program.wait() == 0
    assert "cancelling" not in program.errors
    assert "KeyboardInterrupt" not in program.errors
    assert "Traceback" not in program.errors


def listens_to_signals(program: Program) -> bool:
    """Whether the supervisor has taken over the signals, which is just before it starts the first worker."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{program.process.pid}/status").read_text())
    return bool(int(caught[1], 16) >> (signal.SIGUSR1 - 1) & 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # a name is looked up in a thread, which is used again
@pytest.mark.parametrize("seconds", [0, 0.02, 0.05, 0.1, 0.3, 0.8])
def test_ctrl_c_while_workers_start(folder, host, seconds):
    """A Ctrl-C to all while workers are being started is a clean stop, whenever it comes."""
    with start(*SERVE, "--workers", "3", "--host", host, cwd=folder) as program:
        wait_until(lambda: listens_to_signals(program), "the supervisor")
        time.sleep(seconds)  # to hit different moments, not to wait for anything
        program.signal_group()
        assert program.wait() == 0
        assert program.left_over() == []
    assert "Traceback" not in program.errors
    assert "KeyboardInterrupt" not in program.errors
    assert "was ended by" not in program.errors
    assert len(re.findall("info: stopping( 1 worker| [23] workers|\n)", program.errors)) == 1
    assert re.search(r"info: stopped( before the start)?\n$", program.errors)


def test_ctrl_c_after_workers_were_started_together(folder):
    """However many workers are started at the same time, the server hears a Ctrl-C afterwards."""
    with start(*SERVE, "--workers", "5", cwd=folder) as program:
        program.wait_for_children(5)
        program.wait_for_answers(5)
        program.signal()
        program.wait_for("stopping 5 workers")
        assert program.wait() == 0


def test_ctrl_c_while_the_first_worker_imports(folder):
    """A stop ends an import that takes long, and nothing else is started."""
    (folder / "main.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    with start(*SERVE, "--workers", "2", cwd=folder) as program:
        program.wait_for("importing")
        program.signal_group()
        assert program.wait() == 0
        assert program.left_over() == []
    assert "Traceback" not in program.errors
    assert program.output.count("importing") == 1
    assert program.errors.endswith("info: stopped before the start\n")


# Replacing


def test_hangup_replaces_every_worker(folder):
    """SIGHUP starts a new worker for each old one, and retires that only then: nothing that runs is lost.

    An idle connection stays, too: its next request is answered, with the news that it is the last one.
    """
    with serving(folder) as (program, old), contextlib.ExitStack() as stack:
        held = program.hold_in_each(old, stack)
        idle = stack.enter_context(contextlib.closing(program.open()))
        idle.request("GET", "/")
        assert read_pid(idle.getresponse()) in old
        program.signal(signal.SIGHUP)
        program.wait_for("all workers are replaced\n")
        new = program.wait_for_answers(2, but=old)
        assert program.children() == old | new
        idle.request("GET", "/")
        answer = idle.getresponse()
        assert answer.getheader("Connection") == "close"
        assert read_pid(answer) in old
        for one in held.values():
            one.release()
        program.wait_for_children(2, but=old)
        program.signal()
        assert program.wait() == 0
    assert program.errors.count("replacing 2 workers, one after the other\n") == 1
    for worker in old:
        assert f"worker {worker} has ended\n" in program.errors
        assert f"lifespan shutdown {worker}\n" in program.output


def test_hangup_with_a_broken_application(folder):
    """If the application cannot be imported any more the old workers stay, and the log says so."""
    with serving(folder) as (program, old):
        (folder / "main.py").write_text("1 / 0\n")
        program.signal(signal.SIGHUP)
        program.wait_for("error: the new worker cannot start, so the old ones stay\n")
        assert program.wait_for_answers(2) == old
        (folder / "main.py").write_text(WORKER_APP)
        program.signal(signal.SIGHUP)
        program.wait_for("all workers are replaced\n")
        program.wait_for_children(2, but=old)
        program.signal()
        assert program.wait() == 0
    assert "error: module 'main' was found, but importing it raised ZeroDivisionError" in program.errors
    assert program.errors.count("Traceback") == 1


def test_one_more_and_one_fewer(folder):
    """SIGTTIN starts another worker and SIGTTOU lets one finish; the last one stays."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        program.signal(signal.SIGTTIN)
        program.wait_for("one worker more: 3\n")
        three = program.wait_for_answers(3)
        assert three > workers
        held = program.hold_in_each(three, stack)
        program.signal(signal.SIGTTOU)
        program.wait_for("one worker fewer: 2\n")
        program.signal(signal.SIGTTOU)
        program.wait_for("one worker fewer: 1\n")
        program.signal(signal.SIGTTOU)
        program.wait_for("warning: the last worker stays; to stop the server use SIGTERM\n")
        for one in held.values():
            one.release()
        (last,) = program.wait_for_children(1)
        assert last in three
        assert program.ask() == last
        program.signal()
        assert program.wait() == 0


def test_every_worker_tells_what_it_does(folder):
    """SIGUSR1 writes the tree of tasks of each worker to the log; the server goes on."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        program.hold_in_each(workers, stack)
        program.signal(signal.SIGUSR1)
        for worker in workers:
            program.wait_for(rf"warning: worker {worker}: Tasks, each with where it waits")
        wait_until(lambda: len(re.findall(r"main\.py:\d+ in app\n", program.errors)) >= 2, "the line of each request")
        assert program.wait_for_answers(2) == workers
        program.signal()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


def test_one_worker_tells_what_it_does(folder):
    """SIGUSR1 to a worker is answered by that one, and ends nothing."""
    with serving(folder) as (program, workers):
        asked, other = workers
        os.kill(asked, signal.SIGUSR1)
        program.wait_for(rf"warning: worker {asked}: Tasks, each with where it waits")
        program.wait_for(r"Open: connections \d+, requests 0, WebSockets 0; the event loop was late by ")
        assert program.wait_for_answers(2) == workers
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert f"worker {other}: Tasks" not in program.errors


def test_terminated_worker_is_replaced(folder):
    """A worker that gets a SIGTERM of its own finishes, and only once there is another."""
    with serving(folder) as (program, old), contextlib.ExitStack() as stack:
        held = program.hold_in_each(old, stack)
        gone, stays = old
        os.kill(gone, signal.SIGTERM)
        assert program.wait_for_answers(2, but=[gone]) > {stays}
        held[gone].release()
        held[stays].release()
        assert stays in program.wait_for_children(2, but=[gone])
        program.signal()
        assert program.wait() == 0
    assert f"worker {gone} has ended\n" in program.errors
    assert "error" not in program.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_of_the_terminal_are_nothing_to_a_worker(folder, number):
    """SIGINT and SIGHUP are for the server alone: a worker goes on."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        held = program.hold_in_each(workers, stack)
        for worker in workers:
            os.kill(worker, number)
        for one in held.values():
            one.release()
        assert program.wait_for_answers(2) == workers
        program.signal()
        assert program.wait() == 0


# After so many requests


def test_worn_workers_are_replaced(folder):
    """With limit_max_requests each worker has a successor before it leaves: no request fails."""
    with start(*SERVE, "--workers", "2", "--limit-max-requests", "5", cwd=folder) as program:
        program.wait_for_answers(5)  # which fails at the first that is refused or cut
        program.signal()
        assert program.wait() == 0
    assert "error" not in program.errors


def test_worn_process_ends(folder):
    """In one process limit_max_requests is a stop like any other."""
    with start(*SERVE, "--limit-max-requests", "2", cwd=folder) as program:
        program.ask()
        program.ask()
        assert program.wait() == 0
    assert program.output.count("lifespan shutdown") == 1
    assert program.errors.endswith("info: stopped: 2 requests served\n")


# Violence


def test_killed_server(folder):
    """If the server itself is killed its workers drain and end, and the port is free."""
    with serving(folder) as (program, workers), contextlib.ExitStack() as stack:
        held = program.hold_in_each(workers, stack)
        program.signal(signal.SIGKILL)
        for worker in workers:
            program.wait_for(f"worker {worker}: the supervisor has ended, so this worker stops, too\n")
        wait_until(lambda: is_refused(program), "the end of listening")
        for one in held.values():
            one.release()
        assert program.wait() == -signal.SIGKILL
        wait_until(lambda: not program.left_over(), "the end of the workers")
        socket.create_server(program.address).close()
    for worker in workers:
        assert f"lifespan shutdown {worker}\n" in program.output


def test_killed_worker_is_replaced(folder):
    """A worker that is killed is replaced, and the log says by what it ended."""
    with serving(folder) as (program, old):
        gone, stays = old
        os.kill(gone, signal.SIGKILL)
        program.wait_for(f"error: worker {gone} was ended by signal SIGKILL\n")
        assert stays in program.wait_for_answers(2, but=[gone])
        program.signal()
        assert program.wait() == 0


def test_closed_input(folder):
    """The end of the server's input ends nothing: workers wait for the end of a pipe of their own."""
    with serving(folder) as (program, workers):
        program.process.stdin.close()
        for worker in workers:
            assert str(Path(f"/proc/{worker}/fd/0").readlink()).startswith("pipe:")
        assert program.wait_for_answers(2) == workers
        program.signal()
        assert program.wait() == 0
