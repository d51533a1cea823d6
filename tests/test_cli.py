"""The command line, as a user starts it."""

import json
import signal
import socket

import pytest
import trustme

from trioserve.config import options

from .programs import APP, finish, start

SERVE = ("-m", "trioserve")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(APP)
    return tmp_path


def test_serves_until_interrupted(folder):
    """The application is served; Ctrl-C drains, runs lifespan.shutdown and gives exit code 0."""
    with start(*SERVE, "main:app", "--port", "0", cwd=folder) as program:
        program.connect("/").close()
        program.signal()
        assert program.wait() == 0
    assert "lifespan shutdown" in program.output
    assert "stopped: 1 request served" in program.errors


def test_banner_of_a_tls_server(folder):
    """The scheme of the address says that it speaks TLS; nothing else has to."""
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    with start(*SERVE, "main:app", "--port", "0", "--ssl-certfile", "both.pem", cwd=folder) as program:
        program.wait_for(r"listening on https://127\.0\.0\.1:\d+\n")
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0


def test_idle_stop(folder):
    """A stop that waits for nothing only says that it stops."""
    with start(*SERVE, "main:app", "--port", "0", cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0
    assert "info: stopping\n" in program.errors


@pytest.mark.parametrize("name", ["graceful-shutdown", "hard-shutdown", "shutdown"])
@pytest.mark.parametrize("seconds", ["inf", "1e10"])
def test_endless_timeouts_of_a_stop(folder, name, seconds):
    """A timeout may be endless, or too long for the system: an idle server stops at one Ctrl-C all the same."""
    with start(*SERVE, "main:app", "--port", "0", f"--timeout-{name}", seconds, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0
    assert program.errors.endswith("info: stopped: 0 requests served\n")


def test_closed_stdout(folder):
    """Once nobody reads stdout any more there are no access lines: one line says so, and the server goes on."""
    (folder / "quiet.py").write_text(APP + "def print(*words, **keywords): pass\n")
    script = (
        "import os\n"
        "from trioserve.cli import main\n"
        "read, write = os.pipe()\n"
        "os.dup2(write, 1)\n"
        "os.close(write)\n"
        "os.close(read)\n"
        "main()\n"
    )
    with start("-c", script, "quiet:app", "--port", "0", cwd=folder) as program:
        for _ in range(3):
            program.connect("/").close()
        program.wait_for("no more access lines")
        program.signal()
        # 120 would be Python's own last words on a stream that it cannot flush.
        assert program.wait() == 0
    assert "stopped: 3 requests served" in program.errors
    assert program.errors.count("stdout") == 1
    assert "Error" not in program.errors


def test_terminate_drains_too(folder):
    """SIGTERM is the same as Ctrl-C."""
    with start(*SERVE, "main:app", "--port", "0", cwd=folder) as program:
        program.connect("/").close()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0


def test_banner(folder):
    """The start says which version serves what, where, by which codec, from which file, and how to stop it."""
    (folder / "trioserve.toml").write_text("port = 0")
    with start(*SERVE, "main:app", cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 0
    assert "serves main:app" in program.errors
    assert f"HTTP/1.1 by httptools; settings from {folder / 'trioserve.toml'}" in program.errors


def test_first_interrupt_tells_and_the_second_cuts(folder):
    """The first Ctrl-C says what it waits for; the second cancels it, and clean-up and lifespan.shutdown still run."""
    with start(*SERVE, "main:app", "--port", "0", cwd=folder) as program, program.connect("/forever"):
        program.signal()
        program.wait_for(r"waiting for 1 request, oldest GET /forever \d+ s; Ctrl-C again cuts")
        program.signal()
        assert program.wait() == 0
    assert program.output.index("cleaned up") < program.output.index("lifespan shutdown")


def test_third_interrupt_changes_nothing(folder):
    """After the second Ctrl-C clean-up has its time; more of them are answered, and cut nothing short."""
    with start(*SERVE, "main:app", "--port", "0", cwd=folder) as program, program.connect("/linger"):
        for answer in ("waiting for 1 request", "warning: cancelled;", "warning: still cleaning up"):
            program.signal()
            program.wait_for(answer)
        program.process.stdin.close()
        assert program.wait() == 0
    assert "cleaned up" in program.output


def test_requests_that_outlast_the_graceful_timeout_are_cut(folder):
    """Requests still running after timeout_graceful_shutdown are cancelled, and the exit code is 0 all the same."""
    arguments = (*SERVE, "main:app", "--port", "0", "--timeout-graceful-shutdown", "0.1")
    with start(*arguments, cwd=folder) as program, program.connect("/forever"):
        program.signal()
        assert program.wait() == 0
    assert "cleaned up" in program.output


def test_blocked_loop_ends_at_the_hard_deadline(folder):
    """A handler that blocks the loop cannot stop the stop: stacks are printed and the exit code is 1."""
    clocks = ("--timeout-graceful-shutdown", "0.2", "--timeout-hard-shutdown", "0.2")
    with start(*SERVE, "main:app", "--port", "0", *clocks, cwd=folder) as program, program.connect("/block"):
        program.signal()
        assert program.wait() == 1
    assert "most recent call first" in program.errors
    assert "in block" in program.errors


def test_handler_that_refuses_to_end_meets_the_hard_deadline(folder):
    """A handler that shields itself from cancellation is ended after timeout_hard_shutdown, with exit code 1."""
    arguments = (*SERVE, "main:app", "--port", "0", "--timeout-hard-shutdown", "0.3")
    with start(*arguments, cwd=folder) as program, program.connect("/stubborn"):
        program.signal()
        program.wait_for("Ctrl-C again cuts")
        program.signal()
        assert program.wait() == 1
    announced = "cancelled; the process ends in 0.3 s if clean-up takes longer, with every thread's stack\n"
    assert 0 < program.errors.index(announced) < program.errors.index("most recent call first")


LEFT_BEHIND = """
import threading
import time

def left_behind():
    time.sleep(60)  # longer than the test waits

def start():
    threading.Thread(target=left_behind).start()
"""


def test_thread_left_behind_meets_the_hard_deadline(folder):
    """A thread that the application leaves behind keeps a stopped process alive only until the hard deadline."""
    (folder / "threads.py").write_text(APP + LEFT_BEHIND + "\nstart()\n")
    arguments = (*SERVE, "threads:app", "--port", "0", "--timeout-hard-shutdown", "1")
    with start(*arguments, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        program.signal()
        assert program.wait() == 1
    assert 0 < program.errors.index("info: stopped: 0 requests served") < program.errors.index("in left_behind")


def test_thread_left_behind_by_a_cancelled_start(folder):
    """A Ctrl-C while the application is imported ends the process at the hard deadline too."""
    (folder / "threads.py").write_text(LEFT_BEHIND + "\nstart()\nprint('importing', flush=True)\ntime.sleep(600)\n")
    with start(*SERVE, "threads:app", "--timeout-hard-shutdown", "1", cwd=folder) as program:
        program.wait_for("importing")
        program.signal()
        assert program.wait() == 1
    assert 0 < program.errors.index("info: stopped before the start") < program.errors.index("in left_behind")


@pytest.mark.parametrize("others", [[], ["--watchdog", "60"]])
def test_blocked_loop_does_not_hear_a_signal(folder, others):
    """A second Ctrl-C that finds the first unheard says what follows, because the event loop cannot.

    Other threads of ours, which sleep as well, do not take the signals in the place of the main thread.
    """
    clocks = ("--timeout-graceful-shutdown", "60", "--timeout-hard-shutdown", "0.3")
    with start(*SERVE, "main:app", "--port", "0", *clocks, *others, cwd=folder) as program, program.connect("/block"):
        # Signals of one kind that have not been handled yet are one signal.
        program.signal(signal.SIGTERM)
        program.signal(signal.SIGINT)
        assert program.wait() == 1
    announced = "the event loop has not heard the last signal yet; if it never does, the process ends in 0.3 s"
    assert 0 < program.errors.index(announced) < program.errors.index("most recent call first")


@pytest.mark.parametrize("target", ["main:make", "main:Site"])
def test_forgotten_factory(folder, target):
    """What cannot be called as an application is refused at the start, with --factory where that would help."""
    (folder / "main.py").write_text("def make():\n    return make\n\nclass Site:\n    pass\n")
    program = finish(*SERVE, target, "--port", "0", cwd=folder)
    assert program.process.returncode == 3
    assert program.errors.endswith(
        f"error: {target!r} is not an application: it cannot be called with (scope, receive, send): too many "
        "positional arguments; if it returns the application, use the option factory\n"
    )
    assert program.errors.count("\n") == 1


def test_factory_too_many(folder):
    """--factory on the application itself is refused at the start, in one line."""
    program = finish(*SERVE, "main:app", "--factory", "--port", "0", cwd=folder)
    assert program.process.returncode == 3
    assert program.errors.endswith("; if it is the application itself, leave the option factory out\n")
    assert program.errors.count("\n") == 1


def test_missing_attribute_cannot_start(folder):
    """An application that is not there gives exit code 3 and one line, without a trace."""
    program = finish(*SERVE, "main:ap", cwd=folder)
    assert program.process.returncode == 3
    assert "error: 'main' has no attribute 'ap'; did you mean 'main:app'?" in program.errors
    assert program.errors.count("\n") == 1


def test_failing_import_shows_the_users_trace(folder):
    """An application whose module raises gives exit code 3 and a trace that begins in the user's file."""
    (folder / "broken.py").write_text("1 / 0\n")
    program = finish(*SERVE, "broken:app", cwd=folder)
    assert program.process.returncode == 3
    assert "error: module 'broken' was found, but importing it raised ZeroDivisionError" in program.errors
    first, second = program.errors.split("Traceback (most recent call last):\n")[1].split("\n")[:2]
    assert str(folder / "broken.py") in first
    assert second == "    1 / 0"


def test_port_taken(folder):
    """A port in use gives exit code 3 and one line with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = finish(*SERVE, "main:app", "--port", str(port), cwd=folder)
    assert program.process.returncode == 3
    assert f"127.0.0.1:{port}" in program.errors
    assert program.errors.count("\n") == 1


def test_terminate_during_startup(folder):
    """A signal while the application starts cancels the start; that is no failure."""
    (folder / "slow.py").write_text(
        "import trio\n"
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    print('starting', flush=True)\n"
        "    try:\n"
        "        await trio.sleep_forever()\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
    )
    with start(*SERVE, "slow:app", "--port", "0", cwd=folder) as program:
        program.wait_for("starting")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert "cleaned up" in program.output
    assert "stopped before the start" in program.errors
    assert "Traceback" not in program.errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["main"], "APP must be module:attribute, not 'main'; did you mean 'main:app'?"),
        (["main.py"], "APP must be module:attribute, not 'main.py'; did you mean 'main:app'?"),
        ([], "APP is missing: name your application as module:attribute, such as main:app, or try trioserve.demo:app"),
        (["main:app", "--prot", "1"], "there is no option '--prot'; did you mean '--port'?"),
        (["main:app", "--port", "http"], "port must be a whole number from 0 to 65535, not 'http'"),
        (["main:app", "--bind", "localhost"], "bind must be HOST:PORT"),
        (["main:app", "--http", "h3"], "http must be one of auto, h11"),
        (["main:app", "--ssl-keyfile", "key.pem"], "ssl_keyfile needs ssl_certfile"),
        (["main:app", "--config", "none.toml"], "none.toml: cannot read it"),
    ],
)
def test_wrong_usage(folder, arguments, said):
    """Wrong usage gives exit code 2 and a text that says what was expected."""
    program = finish(*SERVE, *arguments, cwd=folder)
    assert program.process.returncode == 2
    assert said in " ".join(program.errors.split())


@pytest.mark.parametrize("name", ["--zzzz", "-z"])
def test_unknown_option_like_no_other(folder, name):
    """Where no option is near, none is proposed: two hyphens in common are no likeness."""
    program = finish(*SERVE, name, "main:app", cwd=folder)
    assert program.process.returncode == 2
    assert program.errors.endswith(f"Error: there is no option '{name}'\n")


def test_wrong_app_in_the_environment_is_wrong_usage(folder):
    """An APP that is not module:attribute is refused wherever it comes from, and the text says where."""
    program = finish(*SERVE, cwd=folder, TRIOSERVE_APP="main")
    assert program.process.returncode == 2
    assert "did you mean 'main:app'? (environment TRIOSERVE_APP)" in program.errors


def test_app_from_the_file(folder):
    """The application may be named in the file."""
    (folder / "trioserve.toml").write_text('app = "main:app"\nport = 0\n')
    with start(*SERVE, cwd=folder) as program:
        program.connect("/").close()
        program.signal()
        assert program.wait() == 0


def test_print_config(folder):
    """--print-config shows each value and where it came from, warns of strange variables, and serves nothing."""
    (folder / "trioserve.toml").write_text('host = "::1"\nport = 1\n')
    variables = {"TRIOSERVE_BACKLOG": "7", "TRIOSERVE_PROT": "1"}
    program = finish(*SERVE, "--port", "2", "--print-config", cwd=folder, **variables)
    assert program.process.returncode == 0
    rows = dict(line.split("#") for line in program.output.splitlines())
    shown = {" ".join(value.split()): source.strip() for value, source in rows.items()}
    assert shown["port = 2"] == "command line"
    assert shown["backlog = 7"] == "environment TRIOSERVE_BACKLOG"
    assert shown['host = "::1"'] == f"file {folder / 'trioserve.toml'}"
    assert shown["date_header = true"] == "default"
    assert "TRIOSERVE_PROT is ignored: there is no such option; did you mean 'TRIOSERVE_PORT'?" in program.errors


def test_values_read_from_the_command_line(folder):
    """Each kind of option is read as declared; a repeated one is not split at commas."""
    arguments = ["--no-access-log", "--use-colors", "--header", "A: b, c", "--header", "D: e", "--bind", "unix:s"]
    arguments += ["--uds-permissions", "660", "--timeout-disconnect-grace", "none"]
    program = finish(*SERVE, *arguments, "--print-config", cwd=folder)
    shown = [line.split("#")[0].strip() for line in program.output.splitlines() if "command line" in line]
    assert shown == [
        'bind = ["unix:s"]',
        "uds_permissions = 0o660",
        'header = ["A: b, c", "D: e"]',
        'timeout_disconnect_grace = "none"',
        "access_log = false",
        "use_colors = true",
    ]


def test_help_shows_every_option_under_its_heading(folder):
    """--help lists each option below the heading of its group, with its default."""
    program = finish(*SERVE, "--help", cwd=folder, COLUMNS="110")
    assert program.process.returncode == 0
    lines = program.output.splitlines()
    for one in options():
        (at,) = (number for number, line in enumerate(lines) if line.strip().startswith(f"{one.flag} "))
        heading = next(line for line in reversed(lines[:at]) if line and not line.startswith(" "))
        assert heading == f"{one.group.value}:"
    assert "[default: 8000]" in program.output
    assert "[default: on]" in program.output


def test_version(folder):
    """--version prints the name and the version."""
    program = finish(*SERVE, "--version", cwd=folder)
    assert program.process.returncode == 0
    assert program.output.startswith("trioserve ")


def test_json_log(folder):
    """--log-format json makes every line a JSON object: what the server says on stderr, access lines on stdout."""
    with start(*SERVE, "main:app", "--port", "0", "--log-format", "json", cwd=folder) as program:
        with program.connect("/") as client:
            while client.recv(4096):
                pass
        program.signal()
        assert program.wait() == 0
    assert all(json.loads(line)["logger"] == "trioserve" for line in program.errors.splitlines())
    (access,) = (json.loads(line) for line in program.output.splitlines() if line.startswith("{"))
    assert (access["logger"], access["target"], access["status"]) == ("trioserve.access", "/", 200)
