"""Metrics, health and drain_delay of whole programs: one process, several workers, and --reload."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from itertools import pairwise

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from .programs import PATIENCE, WORKER_APP, finish, read_pid, start, wait_until
from .test_reload import Certificates, write_file
from .test_single import Notices

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.skipif(sys.platform == "win32", reason="the programs are driven by POSIX signals"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0", "--no-access-log")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
OFTEN = 0.1
"""Seconds from one look at the figures to the next, each of which costs both sides some milliseconds."""

MODES = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(WORKER_APP)
    return tmp_path


@pytest.fixture
def notices():
    # pytest's own folders have names too long for a unix socket on macOS.
    with tempfile.TemporaryDirectory(prefix="ts") as short:
        made = Notices(short)
        with contextlib.closing(made.manager.socket):
            yield made


class Pages:
    """The pages of a program."""

    def __init__(self, program):
        self.program = program

    def ask(self, path, accept=OPENMETRICS):
        """Status and text of an answer."""
        where = self.program.wait_for(r"health and metrics on http://([\d.]+):(\d+)")
        client = http.client.HTTPConnection(where[1], int(where[2]), timeout=PATIENCE)
        with contextlib.closing(client):
            client.request("GET", path, headers={"Accept": accept, "Connection": "close"})
            response = client.getresponse()
            return response.status, response.read().decode()

    def figures(self):
        """Every sample, by its name and its labels in the order of their names."""
        status, text = self.ask("/metrics")
        assert status == 200
        families = openmetrics.text_string_to_metric_families(text)
        return {
            (sample.name.removeprefix("trioserve_"), *(value for _, value in sorted(sample.labels.items()))): (
                sample.value
            )
            for family in families
            for sample in family.samples
        }

    def wait_for(self, *lines):
        """Wait until the older text has these lines, such as 'workers{state="serving"} 2'."""
        wanted = {f"trioserve_{line}.0" for line in lines}
        wait_until(lambda: wanted <= set(self.ask("/metrics", "text/plain")[1].splitlines()), f"{lines}", every=OFTEN)


SERVING, LEAVING = 'workers{{state="serving"}} {}'.format, 'workers{{state="leaving"}} {}'.format
RESTARTS = 'worker_restarts_total{{reason="{}"}} {}'.format


@contextlib.contextmanager
def serving(folder, *arguments, **variables):
    """The application and its pages, from when it serves; it is stopped at the end if it has not been."""
    with start(*SERVE, "--metrics-bind", "127.0.0.1:0", *arguments, cwd=folder, **variables) as program:
        program.wait_for("Ctrl-C stops")
        yield program, Pages(program)
        if program.process.poll() is None:
            program.signal(signal.SIGTERM)
        assert program.wait() == 0
        assert program.left_over() == []


def has_fallen(key, before, after):
    """Whether what only ever counts up has come down."""
    return re.search("_(total|count|sum|bucket)$", key[0]) is not None and after.get(key, -1) < before[key]


def count_requests(figures):
    return sum(value for key, value in figures.items() if key[0] == "requests_total")


# What is shown


# What is refused before anybody knows what it asks for; the rules of README.md leave it out.
STRANGE = (
    b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"GET / HTTP/3.0\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
)


def test_metrics(folder):
    """Every request is counted and shown where it is asked for, in both formats."""
    with serving(folder) as (program, pages):
        for request in STRANGE:
            with socket.create_connection(program.address, PATIENCE) as client:
                client.sendall(request)
                assert re.match(rb"HTTP/1.1 50[15] ", client.recv(65536))
        for _ in range(10):
            program.ask()
        figures = pages.figures()
        assert count_requests(figures) == figures["request_duration_seconds_count",] == 14
        assert figures["requests_total", "other", "error", "5xx"] == 4
        assert figures["rejected_total", "unsupported", "501"] == 3
        assert figures["workers", "serving"] == 1
        assert figures["tasks",] > 1
        wait_until(lambda: ("event_loop_lag_seconds",) in pages.figures(), "a beat", every=OFTEN)
        with program.hold():
            assert pages.figures()["connections_open", "active"] == 1
            assert pages.figures()["requests_active",] == 1
        status, text = pages.ask("/metrics", "text/plain")
        assert status == 200
        names = {family.name for family in text_string_to_metric_families(text)}
        assert names >= {"trioserve_requests", "trioserve_workers", "trioserve_build_info"}
    assert "Traceback" not in program.errors


@contextlib.contextmanager
def watching(pages):
    """Meanwhile no sum is ever less than before."""
    done, watched = threading.Event(), []

    def watch():
        while not done.wait(OFTEN):
            watched.append(pages.figures())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(PATIENCE)
    assert watched
    assert [key for before, after in pairwise(watched) for key in before if has_fallen(key, before, after)] == []


def ask_at_once(program):
    """Four clients at a time; returns how many requests that made."""
    answers = []
    clients = [threading.Thread(target=lambda: answers.extend(program.ask() for _ in range(10))) for _ in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(PATIENCE)
    assert len(answers) == 40
    return len(answers)


def test_workers_that_come_and_go(folder):
    """What two workers count is summed, none of it is lost when one ends, and why it ended is counted.

    One is killed, asked to go, dies, is rolled, and does not start.
    """
    (folder / "main.py").write_text(WORKER_APP + BREAKABLE)
    with serving(folder, "--workers", "2") as (program, pages):
        workers = program.wait_for_answers(2)
        asked = count_requests(pages.figures())
        with watching(pages):
            asked += ask_at_once(program)
            assert count_requests(pages.figures()) == asked
            os.kill(workers.pop(), signal.SIGKILL)
            pages.wait_for(SERVING(2), RESTARTS("killed", 1))
            asked += ask_at_once(program)
            figures = pages.figures()
            assert count_requests(figures) == asked
        assert figures["tasks",] > 2
        wait_until(lambda: ("event_loop_lag_seconds",) in pages.figures(), "a beat", every=OFTEN)
        with program.hold():
            figures = pages.figures()
            assert figures["connections_open", "active"] == figures["requests_active",] == 1

        os.kill(workers.pop(), signal.SIGTERM)
        pages.wait_for(RESTARTS("retired", 1), SERVING(2), LEAVING(0))
        with contextlib.suppress(OSError, http.client.HTTPException):
            program.ask("/die")
        pages.wait_for(RESTARTS("crashed", 1), SERVING(2))
        program.signal(signal.SIGHUP)
        pages.wait_for(RESTARTS("rolled", 2), SERVING(2), LEAVING(0))
        (folder / "broken").touch()
        os.kill(program.ask(), signal.SIGKILL)
        wait_until(lambda: pages.figures()["worker_restarts_total", "failed_start"] >= 1, "a bad start", every=OFTEN)
        (folder / "broken").unlink()
        pages.wait_for(SERVING(2))


def test_a_worker_that_does_not_answer(folder):
    """A worker that is stopped, or blocked, keeps nobody from the figures: what it has told last counts."""

    def check_figures(known):
        for _ in range(2):  # what the first question has left behind is none of the second's
            figures = pages.figures()
            assert count_requests(figures) == known
            assert figures["workers", "serving"] == 2
        assert pages.ask("/readyz")[0] == pages.ask("/livez")[0] == 200

    with serving(folder, "--workers", "2", "--timeout-worker-healthcheck", "60") as (program, pages):
        victim, _ = program.wait_for_answers(2)
        known = count_requests(pages.figures())
        os.kill(victim, signal.SIGSTOP)
        check_figures(known)
        os.kill(victim, signal.SIGCONT)
        program.wait_for_answers(2)
        counted = count_requests(pages.figures())
        assert counted > known

        client = program.open()
        client.request("GET", "/block")
        victim = int(program.wait_for(r"blocks (\d+)")[1])
        client.close()
        check_figures(counted)
        os.kill(victim, signal.SIGKILL)
        pages.wait_for(RESTARTS("killed", 1), SERVING(2))


BREAKABLE = """
if os.path.exists("broken"):
    raise SystemExit("broken")
"""


def test_failed_handshakes(folder):
    """A TLS handshake that fails is counted with its listener and its reason, as is one that does not."""
    certificates = Certificates(folder)
    with serving(folder, "--ssl-certfile", "both.pem") as (program, pages):
        listener = "{}:{}".format(*program.address)
        assert certificates.ask(program).status == 200
        plain = program.open()
        with contextlib.closing(plain):
            plain.request("GET", "/")
            assert plain.getresponse().status == 400
        figures = pages.figures()
        assert figures["tls_handshakes_total", listener] == 1
        assert figures["tls_handshake_failures_total", listener, "http request"] == 1


def test_reload(folder):
    """Under --reload there are figures as well; what was counted stays when a worker is replaced, or ends by itself."""
    with serving(folder, "--reload", "--reload-delay", "0.05", "--limit-max-requests", "3") as (program, pages):
        program.ask()
        assert count_requests(pages.figures()) == 1
        assert pages.figures()["workers", "serving"] == 1
        write_file(folder / "main.py", WORKER_APP + "# changed\n")
        pages.wait_for(RESTARTS("rolled", 1), SERVING(1))
        for _ in range(3):
            program.ask()
        pages.wait_for(RESTARTS("limit_max_requests", 1), SERVING(1))
        with contextlib.suppress(OSError, http.client.HTTPException):
            program.ask("/die")
        program.wait_for("waiting for a change")
        figures = pages.figures()
        assert figures["worker_restarts_total", "crashed"] == 1
        assert figures["workers", "serving"] == 0
        assert count_requests(figures) == 4
        assert figures["event_loop_late_seconds_total",] >= 0
        assert pages.ask("/readyz") == (503, "no worker serves\n")


# Health


WAITS = WORKER_APP.replace("        await receive()\n", "        await receive()\n        await wait()\n", 1) + (
    '\nasync def wait():\n    print("starting", flush=True)\n'
    '    while not os.path.exists("go"):\n        await trio.sleep(0.005)\n'
)


@MODES
def test_ready_while_it_serves(folder, notices, workers):
    """The process lives from the start, and is ready once the application has started, until it is told to stop.

    Then everything goes on for the drain_delay; after it comes the ordinary stop.
    """
    (folder / "main.py").write_text(WAITS)
    arguments = ("--metrics-bind", "127.0.0.1:0", "--workers", str(workers), "--drain-delay", "0.5")
    with start(*SERVE, *arguments, cwd=folder, **notices.variables) as program:
        pages = Pages(program)
        program.wait_for("starting")
        assert pages.ask("/livez") == (200, "alive\n")
        assert pages.ask("/readyz") == (503, "starting\n")
        assert pages.figures()["workers", "starting"] == 1
        (folder / "go").touch()
        program.wait_for("Ctrl-C stops")
        assert pages.ask("/readyz") == (200, "ready\n")
        program.wait_for_answers(workers)
        notices.wait_for("READY=1")
        with program.hold() as held:
            began = time.monotonic()
            program.signal(signal.SIGTERM)
            program.wait_for("info: stopping")
            assert time.monotonic() - began >= 0.5
            assert pages.ask("/readyz") == (503, "draining\n")
            assert pages.ask("/livez")[0] == 200
            assert pages.figures()["workers", "leaving"] >= 1
            held.release()
        assert program.wait() == 0
    said = SERVES_ON.format("0\\.5") + "(.*\n)*.* info: stopping(.*\n)+.* info: stopped"
    assert re.search(said, program.errors)
    notices.wait_for("STOPPING=1\nSTATUS=serving on for 0.5 s")
    assert "READY=1" not in notices.states[notices.states.index("STOPPING=1") :]


def test_stop_before_the_start(folder):
    """A stop during the start waits for no drain_delay: nobody was told that this is ready."""
    (folder / "main.py").write_text(WAITS)
    arguments = ("--workers", "2", "--drain-delay", "60", "--metrics-bind", "127.0.0.1:0")
    with start(*SERVE, *arguments, cwd=folder) as program:
        program.wait_for("starting")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert "serving on" not in program.errors


# The drain_delay

SERVES_ON = "info: not ready any more; serving on for {} s, then stopping; Ctrl-C again cuts both\n"


@MODES
def test_second_signal_cuts_the_delay(folder, notices, workers):
    """Until the delay is over only /readyz has changed; a second signal cancels at once what runs."""
    arguments = ("--workers", str(workers), "--drain-delay", "60")
    with serving(folder, *arguments, **notices.variables) as (program, pages):
        program.wait_for_answers(workers)
        notices.wait_for("READY=1")
        kept = program.open()
        kept.request("GET", "/")
        server = read_pid(kept.getresponse())
        program.signal(signal.SIGTERM)
        program.wait_for(SERVES_ON.format(60))
        assert pages.ask("/readyz") == (503, "draining\n")
        assert pages.ask("/livez")[0] == 200
        kept.request("GET", "/")
        response = kept.getresponse()
        assert (response.getheader("connection"), read_pid(response)) == (None, server)
        kept.close()
        if workers > 1:
            os.kill(program.ask(), signal.SIGKILL)
            pages.wait_for(RESTARTS("killed", 1), SERVING(2))
        with program.hold() as held:
            program.signal(signal.SIGTERM)
            program.wait_for(f"cleaned up {held.worker}")
            with pytest.raises((http.client.IncompleteRead, OSError)):
                held.release()
        assert program.wait() == 0
    assert "info: stopping" not in program.errors
    assert "READY=1" not in notices.states[notices.states.index("STOPPING=1") :]


def test_server_that_ends_by_itself_has_no_delay(folder):
    """One that has served enough is draining already: a signal then begins no delay."""
    with serving(folder, "--limit-max-requests", "1", "--drain-delay", "60") as (program, pages):
        with socket.create_connection(program.address, PATIENCE) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
            wait_until(lambda: pages.ask("/readyz") == (503, "draining\n"), "the drain")
            program.signal(signal.SIGTERM)
            program.wait_for("info: stopping: waiting for 1 request")
            client.sendall(b"x")
            received = b""
            while data := client.recv(65536):
                received += data
        assert b"ended" in received
        assert program.wait() == 0
    assert "serving on" not in program.errors


# What goes wrong


@pytest.mark.parametrize(
    ("library", "arguments", "said"),
    [
        (
            "prometheus_client",
            ("--metrics-bind", "127.0.0.1:0"),
            "metrics_bind needs prometheus-client: pip install 'trioserve[metrics]'",
        ),
        ("httptools", ("--http", "httptools"), "http httptools needs httptools: pip install 'trioserve[fast]'"),
    ],
)
def test_without_the_library(folder, library, arguments, said):
    """One line that says what to install, and the exit code of wrong usage."""
    (folder / f"{library}.py").write_text("raise ImportError\n")
    program = finish(*SERVE, *arguments, cwd=folder)
    assert program.process.returncode == 2
    (line,) = program.errors.splitlines()
    assert line.endswith(f"error: {said}")


@MODES
def test_an_address_that_is_taken(folder, workers):
    """One line, and the exit code of what cannot start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        program = finish(*SERVE, "--workers", str(workers), "--metrics-bind", address, cwd=folder)
    assert program.process.returncode == 3
    (line,) = program.errors.splitlines()
    assert line.endswith(f"error: cannot listen on {address}: address already in use (metrics_bind)")
