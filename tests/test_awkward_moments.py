"""Signals, deaths and deletions at moments that nobody has planned for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time

import pytest

from .programs import WORKER_APP, finish, start
from .support import LINUX
from .test_reload import start_on_terminal

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not LINUX, reason="looks at processes through /proc"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0", "--no-access-log")
PROCESSES = [(), ("--workers", "2"), ("--reload",)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(WORKER_APP)
    return tmp_path


@pytest.mark.parametrize("options", ["", "workers=2, ", "reload=True, "])
def test_a_script_without_a_guard(folder, options):
    """run() at the top of the module that it names is refused, with what to do, instead of running for ever."""
    script = f"from trioserve import run\nasync def app(*_): ...\nrun('script:app', {options}port=0)\n"
    (folder / "script.py").write_text(script)
    said = (
        "trioserve.run() was called while the application was imported; put the call under if __name__ == '__main__':"
    )
    with start("script.py", cwd=folder) as program:
        program.wait_for("importing it raised RuntimeError: " + re.escape(said))
        if options == "reload=True, ":
            program.wait_for("waiting for a change")
            program.signal()
            assert program.wait() == 0
        else:
            assert program.wait() == 3


@pytest.mark.parametrize("options", PROCESSES)
@pytest.mark.parametrize("gap", [0.02, 0.06, 0.12, 0.2])
def test_ctrl_c_again_while_all_ends(folder, options, gap):
    """A second Ctrl-C while the processes end is no crash: exit code 0, no trace, no error."""
    with start(*SERVE, *options, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal_group()
        time.sleep(gap)  # not to wait for anything: these are the moments
        program.signal_group()
        assert program.wait() == 0
    assert "error" not in program.errors
    assert "Traceback" not in program.errors


@pytest.mark.parametrize("name", ["HUP", "USR1"])
def test_signals_during_the_import(folder, name):
    """In one process HUP and USR1 do nothing before the server serves."""
    importing = "import sys\nprint('importing', flush=True)\nsys.stdin.readline()\n"
    (folder / "main.py").write_text(importing + WORKER_APP)
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("importing")
        program.signal(getattr(signal, f"SIG{name}"))
        program.process.stdin.write("\n")
        program.process.stdin.flush()
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0


def test_the_terminal_goes_during_the_import(folder):
    """A HUP then is not one that renews certificates: in one process the end of the terminal ends the start."""
    (folder / "main.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(1000)\n")
    with start_on_terminal(*SERVE, cwd=folder) as (program, terminal):
        program.wait_for("importing")
        terminal.close()
        assert program.wait() == 0
    assert "info: stopped before the start\n" in program.errors


def test_an_application_with_a_signal_handler_of_its_own(folder):
    """One that an application sets when it is imported does not keep Ctrl-C from stopping the server; the log says."""
    handler = "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('mine', flush=True))\n"
    (folder / "main.py").write_text(handler + WORKER_APP)
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0
    assert "warning: the application's handler of SIGINT is not called: the signal stops the server\n" in program.errors
    assert "mine" not in program.output


def test_a_folder_that_is_made_again(folder):
    """A release folder that is made again is where the next workers start; while it is gone the old ones stay."""
    release = folder / "release"
    release.mkdir()
    (release / "main.py").write_text(WORKER_APP)
    with start(*SERVE, "--workers", "2", cwd=release) as program:
        old = program.wait_for_answers(2)
        shutil.rmtree(release)
        program.signal(signal.SIGHUP)
        program.wait_for("error: the current folder does not exist any more\n")
        program.wait_for("the new worker cannot start, so the old ones stay")
        release.mkdir()
        (release / "main.py").write_text(WORKER_APP)
        program.signal(signal.SIGHUP)
        program.wait_for("all workers are replaced")
        program.wait_for_answers(2, but=old)
        program.signal()
        assert program.wait() == 0


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_a_folder_that_is_gone_at_the_start(folder, options):
    """A server that is started in a folder that has been removed says so, and ends with exit code 3."""
    gone = folder / "gone"
    gone.mkdir()
    # Imported before: without a current folder some releases of Python cannot import at all.
    script = "import os, sys\nfrom trioserve.cli import main\nos.rmdir(os.getcwd())\nmain(sys.argv[1:])\n"
    program = finish("-c", script, "main:app", "--port", "0", *options, cwd=gone)
    assert program.process.returncode == 3
    assert "error: the current folder does not exist any more\n" in program.errors
    assert "Traceback" not in program.errors


def test_all_of_many_workers_die_at_once(folder):
    """Five young workers that are killed together are replaced: one event is no crash loop."""
    with start(*SERVE, "--workers", "5", cwd=folder) as program:
        old = program.wait_for_answers(5)
        for worker in old:
            os.kill(worker, signal.SIGKILL)
        program.wait_for_answers(5, but=old)
        program.signal()
        assert program.wait() == 0
    assert "in a row" not in program.errors


STUCK = """
import time

_app = app

async def app(scope, receive, send):
    if scope.get("path") == "/stuck":
        print("stuck", flush=True)
        time.sleep(1000)
    await _app(scope, receive, send)
"""


def test_stacks_of_a_worker_that_outlives_its_supervisor(folder):
    """A worker's hard deadline shows its stacks where the supervisor's errors went, though that has been killed."""
    (folder / "main.py").write_text(WORKER_APP + STUCK)
    options = ("--workers", "2", "--timeout-graceful-shutdown", "0.2", "--timeout-hard-shutdown", "0.3")
    with start(*SERVE, *options, cwd=folder) as program:
        program.wait_for_answers(2)
        client = program.open()
        client.request("GET", "/stuck")
        program.wait_for("stuck")
        program.signal(signal.SIGKILL)
        program.wait_for("Timeout")
        program.wait_for(r'main.py", line \d+ in app')
        client.close()
        program.wait()
