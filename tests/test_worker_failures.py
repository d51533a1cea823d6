"""What goes wrong with workers, at the start and later: exit codes and words, with the command that shows each."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import sys
import time

import pytest

from .programs import NAP, WORKER_APP, finish, start
from .support import LINUX

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not LINUX, reason="looks at processes through /proc"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0", "--workers", "2", "--no-access-log")

LIFESPAN = """
import trio

async def app(scope, receive, send):
    await receive()
"""

MODULES = {
    "main": WORKER_APP,
    "broken": "1 / 0\n",
    "raises": LIFESPAN + "    raise ValueError('no database')\n",
    "refuses": LIFESPAN + "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n",
    "waits": LIFESPAN + "    await trio.sleep_forever()\n",
    "exits": "import os, sys\nprint('no licence', file=sys.stderr, flush=True)\nos._exit(7)\n",
    "silent": "import os\nos._exit(7)\n",
    "zero": "import os\nos._exit(0)\n",
    "killed": "import os\nos.kill(os.getpid(), 9)\n",
    "crashes": "import ctypes\nctypes.string_at(0)\n",
    "factory": "def make():\n    raise ValueError('no settings')\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


# The command, the exit code, and all that it says: N is a process, FOLDER the current folder.
CANNOT_START = [
    (
        "trioserve mian:app --workers 2",
        3,
        "error: there is no module 'mian' in FOLDER or among the installed packages; did you mean 'main:app'?\n",
    ),
    (
        "trioserve main:ap --workers 2",
        3,
        "error: 'main' has no attribute 'ap'; did you mean 'main:app'?\n",
    ),
    (
        "trioserve broken:app --workers 2",
        3,
        (
            "error: module 'broken' was found, but importing it raised ZeroDivisionError: division by zero\n"
            "Traceback (most recent call last):\n"
            '  File "FOLDER/broken.py", line 1, in <module>\n'
            "    1 / 0\n"
            "    ~~^~~\n"
            "ZeroDivisionError: division by zero\n"
        ),
    ),
    (
        "trioserve raises:app --workers 2",
        3,
        (
            "error: the application's lifespan raised during start-up: ValueError: no database\n"
            "Traceback (most recent call last):\n"
            '  File "FOLDER/raises.py", line 6, in app\n'
            "    raise ValueError('no database')\n"
            "ValueError: no database\n"
        ),
    ),
    (
        "trioserve refuses:app --workers 2",
        3,
        "error: the application could not start: no database\n",
    ),
    (
        "trioserve waits:app --workers 2 --timeout-startup 0.1",
        3,
        "error: the application did not start within 0.1 s\n",
    ),
    (
        "trioserve factory:make --factory --workers 2",
        3,
        (
            "error: the application factory raised ValueError: no settings\n"
            "Traceback (most recent call last):\n"
            '  File "FOLDER/factory.py", line 2, in make\n'
            "    raise ValueError('no settings')\n"
            "ValueError: no settings\n"
        ),
    ),
    (
        "trioserve main:app --factory --workers 2",
        3,
        (
            "error: the application factory must take no arguments: missing a required argument: 'scope'; if it is the"
            " application itself, leave the option factory out\n"
        ),
    ),
    (
        "trioserve exits:app --workers 2",
        3,
        "no licence\nerror: worker N ended with exit code 7 before it was ready; its last error line: no licence\n",
    ),
    (
        "trioserve silent:app --workers 2",
        3,
        "error: worker N ended with exit code 7 before it was ready\n",
    ),
    (
        "trioserve zero:app --workers 2",
        3,
        "error: worker N ended with exit code 0 before it was ready\n",
    ),
    (
        "trioserve killed:app --workers 2",
        3,
        "error: worker N was ended by signal SIGKILL before it was ready\n",
    ),
    (
        "trioserve main:app --workers 2 --port TAKEN",
        3,
        "error: cannot listen on 127.0.0.1:TAKEN: address already in use\n",
    ),
    (
        "trioserve main:app --workers 2 --ssl-certfile none.pem",
        3,
        "error: ssl_certfile 'none.pem': no such file or directory\n",
    ),
    (
        "trioserve main:app --workers 2 --ssl-certfile main.py",
        3,
        "error: ssl_certfile 'main.py': no certificate in PEM in it\n",
    ),
    (
        "trioserve main:app --workers 2 --uds main.py",
        3,
        "error: cannot listen on unix:main.py: the path exists and is not a socket\n",
    ),
    (
        "trioserve main:app --workers 2 --app-dir nowhere",
        3,
        "error: app_dir FOLDER/nowhere is not a folder\n",
    ),
]


@pytest.mark.parametrize(("command", "code", "said"), CANNOT_START, ids=[row[0] for row in CANNOT_START])
def test_cannot_start(folder, command, code, said):
    """What keeps the server from starting is said once, by one worker at most, and nothing is tried again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [port if word == "TAKEN" else word for word in shlex.split(command)[1:]]
        program = finish("-m", "trioserve", *arguments, cwd=folder, TRIOSERVE_PORT="0")
    assert program.left_over() == []
    errors = re.sub(r"^\d{4}-\d\d-\d\d [\d:.]{12} ", "", program.errors, flags=re.MULTILINE)
    errors = re.sub(r"\bworker \d+", "worker N", errors.replace(str(folder), "FOLDER").replace(port, "TAKEN"))
    assert errors == said
    assert program.process.returncode == code


def test_worker_that_crashes(folder):
    """Where the interpreter itself crashes the log has the stack and the signal."""
    program = finish("-m", "trioserve", "crashes:app", "--workers", "2", "--port", "0", cwd=folder)
    assert program.process.returncode == 3
    assert program.errors.startswith("Fatal Python error: Segmentation fault\n")
    assert re.search(r'File ".*crashes\.py", line 2 in <module>\n', program.errors)
    assert re.search(r"worker \d+ was ended by signal SIGSEGV before it was ready; its last error", program.errors)


def test_broken_certificate_starts_no_worker(folder):
    """With TLS files that cannot be used the server fails before it starts a process; an application that cannot be
    imported is heard of only from one.
    """
    python, mark = folder / "python", folder / "started"
    python.write_text(f'#!/bin/sh\ntouch "{mark}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / "broken.pem").write_text("no certificate\n")
    script = "import sys\nsys.executable = sys.argv.pop(1)\nfrom trioserve.cli import main\nmain()\n"
    arguments = ("-c", script, str(python), "broken:app", "--workers", "2", "--port", "0")
    program = finish(*arguments, "--ssl-certfile", "broken.pem", cwd=folder)
    assert program.process.returncode == 3
    assert "broken.pem" in program.errors
    assert not mark.exists()
    program = finish(*arguments, cwd=folder)
    assert program.process.returncode == 3
    assert mark.exists()


@pytest.mark.parametrize("options", [("--workers", "0"), ("--workers", "2", "--reload")])
def test_wrong_usage(folder, options):
    """A number of workers that makes no sense is wrong usage."""
    program = finish("-m", "trioserve", "main:app", *options, cwd=folder)
    assert program.process.returncode == 2
    assert "workers" in program.errors.splitlines()[-1]


# Later


def ask_in_vain(program, path):
    """Send a request that is the end of whoever gets it."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        program.ask(path)


def test_crash_loop_after_a_good_start(folder):
    """Workers that die one after the other, as soon as they serve, stop the server, with the reason."""
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        while program.process.poll() is None:
            ask_in_vain(program, "/die")
        assert program.wait() == 1
        assert program.left_over() == []
    assert re.search(
        r"error: \d+ workers have died in a row, each within seconds, so the server stops: "
        r"worker (\d+) ended with exit code 9; its last error line: last words of \1\n",
        program.errors,
    )


def test_worker_that_dies_under_a_request(folder):
    """It is logged with its exit code and its last words, and replaced, while the other serves on."""
    with start(*SERVE, cwd=folder) as program, contextlib.ExitStack() as stack:
        workers = program.wait_for_answers(2)
        held = program.hold_in_each(workers, stack)
        ask_in_vain(program, "/die")
        said = program.wait_for(r"error: worker (\d+) (ended with .*)\n")
        gone = int(said[1])
        assert said[2] == f"ended with exit code 9; its last error line: last words of {gone}"
        (stays,) = workers - {gone}
        held[stays].release()
        assert stays in program.wait_for_answers(2, but=[gone])
        program.signal()
        assert program.wait() == 0
    assert program.errors.count("error: ") == 1


def test_blocked_worker(folder):
    """A worker whose event loop is blocked says where, and is killed and replaced; the other never stops answering."""
    (folder / "main.py").write_text(
        WORKER_APP.replace("    time.sleep(60)", "    print('blocked', os.getpid(), flush=True)\n    time.sleep(60)")
    )
    with (
        start(*SERVE, "--timeout-worker-healthcheck", "1", cwd=folder) as program,
        contextlib.closing(program.open()) as client,
    ):
        workers = program.wait_for_answers(2)
        client.request("GET", "/block")
        gone = int(program.wait_for(r"blocked (\d+)")[1])
        (stays,) = workers - {gone}
        killed = f"worker {gone}: the event loop has been blocked for more than 1 s, so it is killed\n"
        while killed not in program.errors:
            assert program.ask() == stays
        assert stays in program.wait_for_answers(2, but=[gone])
        program.signal()
        assert program.wait() == 0
    blocked = r"error: the event loop has been blocked for \d\.\d s in 127\.0\.0\.1:\d+ GET /block, \d\.\d s\n"
    assert re.search(blocked, program.errors)
    assert re.search(r"main\.py:\d+ in block: time\.sleep\(60\)\n", program.errors)
    assert "Tasks, each with where it waits" in program.errors
    assert re.search(rf"error: worker {gone} was ended by signal SIGKILL\n", program.errors)


@pytest.mark.parametrize("option", ["--workers=2", "--reload"])
def test_watchdog_warns(folder, option):
    """With --watchdog a blocked event loop is told of long before the worker would be killed, and it serves on."""
    (folder / "main.py").write_text(WORKER_APP + NAP)
    with (
        start("-m", "trioserve", "main:app", "--port", "0", option, "--watchdog", "0.3", cwd=folder) as program,
        contextlib.closing(program.open()) as client,
    ):
        client.request("GET", "/nap?who=x")
        blocked = int(program.wait_for(r"naps (\d+)")[1])
        line = r"error: the event loop has been blocked for \d\.\d s in 127\.0\.0\.1:\d+ GET /nap\?who=x, \d\.\d s\n"
        program.wait_for(line)
        program.wait_for(r"main\.py:\d+ in nap: time\.sleep\(3\)\n")
        program.wait_for(r"warning: the event loop goes on after [3-9]\.\d s\n")
        assert client.getresponse().read().startswith(b"%d\n" % blocked)
        program.signal()
        assert program.wait() == 0
    assert len(re.findall(line, program.errors)) == 1


HOLD = """
import ctypes

async def hold():
    say("holds", os.getpid())
    ctypes.PyDLL(None).sleep(60)  # which, unlike CDLL, does not let go of the interpreter

WAYS["/hold"] = hold
"""


def test_worker_that_keeps_the_interpreter(folder):
    """Where the worker's own watchdog cannot run the interpreter prints the stacks, and the worker is replaced."""
    (folder / "main.py").write_text(WORKER_APP + HOLD)
    with (
        start(*SERVE, "--timeout-worker-healthcheck", "0.5", cwd=folder) as program,
        contextlib.closing(program.open()) as client,
    ):
        workers = program.wait_for_answers(2)
        client.request("GET", "/hold")
        gone = int(program.wait_for(r"holds (\d+)")[1])
        program.wait_for(
            f"error: worker {gone}: the event loop has been blocked for more than 0.5 s, so it is killed\n"
        )
        program.wait_for(f"error: worker {gone} was ended by signal SIGABRT\n")
        assert workers - {gone} < program.wait_for_answers(2, but=[gone])
        program.signal()
        assert program.wait() == 0
    assert "Fatal Python error: Aborted\n" in program.errors
    assert re.search(r'File ".*main\.py", line \d+ in hold\n', program.errors)


def test_stopped_worker(folder):
    """A worker that does not run at all is killed and replaced, although it cannot say anything."""
    with start(*SERVE, "--timeout-worker-healthcheck", "0.5", cwd=folder) as program:
        gone, stays = program.wait_for_answers(2)
        os.kill(gone, signal.SIGSTOP)
        program.wait_for(f"worker {gone}: the event loop has been blocked for more than 0.5 s, so it is killed\n")
        program.wait_for(f"worker {gone} was ended by signal SIGKILL\n")
        assert stays in program.wait_for_answers(2, but=[gone])
        program.signal()
        assert program.wait() == 0


def test_supervisor_that_was_stopped(folder):
    """Beats that waited while the supervisor itself did not run are not held against the workers."""
    with start(*SERVE, "--timeout-worker-healthcheck", "0.5", cwd=folder) as program:
        workers = program.wait_for_answers(2)
        program.signal(signal.SIGSTOP)
        assert program.ask() in workers
        time.sleep(5)  # longer than the supervisor waits for a beat, and for that to be late
        program.signal(signal.SIGCONT)
        program.signal(signal.SIGUSR1)
        for worker in workers:
            program.wait_for(f"worker {worker}: Tasks, each with where it waits")
        assert program.wait_for_answers(2) == workers
        program.signal()
        assert program.wait() == 0
    assert "blocked" not in program.errors.replace(str(folder), "")


def test_worker_that_writes_where_it_should_not(folder):
    """An application that writes into descriptors that are not its own does no harm to its supervisor."""
    (folder / "main.py").write_text(
        WORKER_APP
        + "for number in range(3, 50):\n"
        + "    try:\n"
        + "        os.write(number, b'rubbish\\n')\n"
        + "    except OSError:\n"
        + "        pass\n"
    )
    with start(*SERVE, cwd=folder) as program:
        program.wait_for_answers(2)
        program.signal()
        assert program.wait() == 0
    assert "Traceback" not in program.errors


@pytest.mark.parametrize("where", ["import", "lifespan"])
def test_start_that_takes_long(folder, where):
    """Until a worker is ready nobody asks whether its event loop runs: start-up may block for longer."""
    app = WORKER_APP if where == "lifespan" else WORKER_APP + "time.sleep(3)\n"
    if where == "lifespan":
        app = app.replace("        await receive()\n", "        await receive()\n        time.sleep(3)\n", 1)
    (folder / "main.py").write_text(app)
    with start(*SERVE, "--timeout-worker-healthcheck", "0.5", cwd=folder) as program:
        program.wait_for_answers(2)
        program.signal()
        assert program.wait() == 0
    assert "event loop" not in program.errors
    assert "error" not in program.errors


def test_blocked_worker_of_a_developer(folder):
    """Under --reload the event loop may be blocked: a developer may sit in a debugger."""
    (folder / "main.py").write_text(WORKER_APP + NAP)
    options = ("--reload", "--timeout-worker-healthcheck", "0.2")
    with start("-m", "trioserve", "main:app", "--port", "0", *options, cwd=folder) as program:
        worker = program.ask()
        assert program.ask("/nap") == worker
        assert program.ask() == worker
        program.signal()
        assert program.wait() == 0
    assert "event loop" not in program.errors


# At the end


def test_requests_that_outlast_the_graceful_timeout(folder):
    """What runs in a worker after timeout_graceful_shutdown is cancelled, and the exit code is 0 all the same."""
    options = ("--timeout-graceful-shutdown", "0.2")
    with start(*SERVE, *options, cwd=folder) as program, contextlib.ExitStack() as stack:
        workers = program.wait_for_answers(2)
        program.hold_in_each(workers, stack)
        program.signal()
        assert program.wait() == 0
    for worker in workers:
        assert f"worker {worker}: cancelled what still runs; the process ends in 5 s if that does not" in program.errors
        assert program.output.index(f"cleaned up {worker}") < program.output.index(f"lifespan shutdown {worker}")


def test_worker_that_does_not_stop(folder):
    """A worker whose event loop is blocked meets its hard deadline: its stacks are shown, and the exit code is 1."""
    clocks = ("--timeout-graceful-shutdown", "2.5", "--timeout-hard-shutdown", "0.5")
    with (
        start(*SERVE, *clocks, "--timeout-worker-healthcheck", "2", cwd=folder) as program,
        contextlib.ExitStack() as stack,
    ):
        program.wait_for_answers(2)
        stack.enter_context(contextlib.closing(program.open())).request("GET", "/block")
        blocked = program.wait_for(r"blocks (\d+)")[1]
        program.signal()
        assert program.wait() == 1
        assert program.left_over() == []
    # Its watchdog has spoken before; but what is leaving anyway is not killed for that.
    assert "error: the event loop has been blocked for 2." in program.errors
    assert "so it is killed" not in program.errors
    assert re.search(r'File ".*main\.py", line \d+ in block\n', program.errors)
    assert f"error: worker {blocked} ended with exit code 1; its last error line: " in program.errors
    assert program.output.count("lifespan shutdown") == 1


def test_worker_that_is_stopped_at_the_end(folder):
    """A worker that does not even come to its hard deadline is killed some seconds later, and the exit code is 1."""
    clocks = ("--timeout-graceful-shutdown", "0.1", "--timeout-hard-shutdown", "0.1", "--timeout-shutdown", "0.1")
    with start(*SERVE, *clocks, cwd=folder) as program:
        stopped, _ = program.wait_for_answers(2)
        os.kill(stopped, signal.SIGSTOP)
        program.signal()
        assert program.wait() == 1
        assert program.left_over() == []
    assert f"error: worker {stopped} has not ended in time and is killed\n" in program.errors
    assert f"error: worker {stopped} was ended by signal SIGKILL\n" in program.errors


def test_import_that_cannot_be_interrupted(folder):
    """A worker that is told to stop while it imports stops after that at the latest, before it serves."""
    (folder / "main.py").write_text(
        WORKER_APP + "try:\n    say('importing')\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    say('goes on')\n"
    )
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("importing")
        program.signal()
        assert program.wait() == 0
    assert program.output.startswith("importing\ngoes on\n")
    assert "Ctrl-C stops" not in program.errors
    assert program.errors.endswith("info: stopped before the start\n")


def test_signals_before_the_start(folder):
    """Until the first worker is ready there is nothing to replace, and a signal that asks for it says so."""
    (folder / "main.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("importing")
        for number, name in ((signal.SIGHUP, "HUP"), (signal.SIGTTIN, "TTIN"), (signal.SIGTTOU, "TTOU")):
            program.signal(number)
            program.wait_for(f"warning: signal {name} is ignored until the first worker is ready\n")
        program.signal()
        assert program.wait() == 0


def test_tasks_of_a_blocked_worker(folder):
    """SIGUSR1 shows where a worker is blocked, too."""
    (folder / "main.py").write_text(WORKER_APP + NAP)
    with start(*SERVE, cwd=folder) as program, contextlib.ExitStack() as stack:
        program.wait_for_answers(2)
        stack.enter_context(contextlib.closing(program.open())).request("GET", "/nap")
        blocked = program.wait_for(r"naps (\d+)")[1]
        program.signal(signal.SIGUSR1)
        running = r"127\.0\.0\.1:\d+ GET /nap, \d\.\d s"
        program.wait_for(rf"warning: worker {blocked}: the event loop does not run; what runs is {running}\n")
        program.wait_for(r"main\.py:\d+ in nap: time\.sleep\(3\)\n")
        program.signal()
        assert program.wait() == 0


IN_A_TERMINAL = """
import os, sys

os.open(sys.argv[1], os.O_RDWR)  # the first that the leader of a session opens becomes its own
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_terminal_that_goes(folder):
    """The end of the terminal that the server was started in is a stop; a SIGHUP before that is none."""
    ours, theirs = os.openpty()
    # The leader of a session gets the first terminal that it opens.
    script = (
        "import os, sys\nos.open(sys.argv[1], os.O_RDWR)\nos.execv(sys.executable, [sys.executable] + sys.argv[2:])"
    )
    with start("-c", script, os.ttyname(theirs), *SERVE, cwd=folder) as program:
        os.close(theirs)
        old = program.wait_for_answers(2)
        program.signal(signal.SIGHUP)
        program.wait_for("all workers are replaced\n")
        program.wait_for_children(2, but=old)
        os.close(ours)
        assert program.wait() == 0
        assert program.left_over() == []
    assert program.errors.count("Ctrl-C again cuts what they still do\n") == 1
    assert "Traceback" not in program.errors


def test_terminal_that_goes_from_one_process(folder):
    """The same in one process."""
    ours, theirs = os.openpty()
    with start("-c", IN_A_TERMINAL, os.ttyname(theirs), *SERVE, "--workers", "1", cwd=folder) as program:
        os.close(theirs)
        program.ask()
        os.close(ours)
        assert program.wait() == 0
    assert program.errors.endswith("info: stopped: 1 request served\n")
