"""--reload: what starts the application anew, what is answered meanwhile, and how it all ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_websocket

from .programs import PATIENCE, Program, finish, start, wait_until

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.skipif(sys.platform == "win32", reason="the programs are driven by POSIX signals and terminals"),
]

PORT = ("--port", "0")
RELOAD = ("--reload", "--reload-delay", "0.05")
SERVE = ("-m", "trioserve", "main:app", *PORT, *RELOAD)

APP = """
import os
import sys
import trio

VERSION = 1

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan shutdown of version", VERSION, flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    else:
        text = await WAYS[scope["path"]](send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(text).encode()})

async def version(send):
    return VERSION

async def worker(send):
    return os.getpid()

async def read_line(send):
    return await trio.to_thread.run_sync(sys.stdin.readline)

async def debug(send):
    answer = 0
    breakpoint()
    return answer

async def stream(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: begun", "more_body": True})
    await trio.sleep_forever()

async def die(send):
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)

async def die_silently(send):
    os._exit(7)

WAYS = {
    "/": version,
    "/worker": worker,
    "/line": read_line,
    "/debug": debug,
    "/stream": stream,
    "/die": die,
    "/die-silently": die_silently,
}
"""

# At the top of the application: its import takes until the test says so, in a file.
GATE = """
import os
import time
print("importing", os.getpid(), flush=True)
while not os.path.exists("go"):
    time.sleep(0.005)
"""


def write_file(path: Path, text: str, *, moment: int | None = None) -> None:
    """Write a file that is never seen half-written; ``moment``: its time of change in nanoseconds."""
    whole = path.with_name(f".{path.name}")
    whole.write_text(text)
    if moment is not None:
        os.utime(whole, ns=(moment, moment))
    whole.replace(path)


def write_app(folder: Path, version: int, *, before: str = "", moment: int | None = None) -> None:
    write_file(folder / "main.py", before + APP.replace("VERSION = 1", f"VERSION = {version}"), moment=moment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_app(tmp_path, 1)
    return tmp_path


# Clients


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: dict[str, str]
    serial: str | None
    """The serial number of the certificate, with TLS."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def exchange(client: http.client.HTTPConnection, path: str = "/", **headers: str) -> Answer:
    """Send one request, close, and return the answer; headers are written with _ for -."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(client):
        client.request("GET", path, headers={"Connection": "close", **fields})
        serial = client.sock.getpeercert()["serialNumber"] if isinstance(client.sock, ssl.SSLSocket) else None
        response = client.getresponse()
        return Answer(response.status, response.read().decode(), dict(response.getheaders()), serial)


def ask(program: Program, path: str = "/", **headers: str) -> Answer:
    return exchange(program.open(), path, **headers)


def pid_of_worker(program: Program) -> int:
    return int(ask(program, "/worker").body)


# Changes


ENDED = r"worker \d+ (has ended|ended with|was ended)"


def wait_for_count(program: Program, pattern: str, count: int) -> None:
    """Wait until the program has logged something so many times."""
    wait_until(lambda: len(re.findall(pattern, program.errors)) >= count, f"{count} times {pattern!r}")


@contextlib.contextmanager
def restarting(program: Program) -> Iterator[None]:
    """What is done in the block makes the worker end; at the end of the block no request can come to it any more."""
    before = len(re.findall(ENDED, program.errors))
    yield
    wait_for_count(program, ENDED, before + 1)


def renew(program: Program, folder: Path, version: int) -> None:
    """Change the application; returns once the former version cannot answer any more."""
    with restarting(program):
        write_app(folder, version)


def heal(program: Program, folder: Path, version: int) -> None:
    """Mend what could not start; returns once the page is gone."""
    before = program.errors.count("starting anew")
    write_app(folder, version)
    wait_for_count(program, "starting anew", before + 1)
    assert ask(program).body == str(version)


def stop(program: Program, number: int = signal.SIGTERM) -> None:
    program.signal(number)
    assert program.wait() == 0
    assert program.left_over() == []


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **variables: str) -> Iterator[Program]:
    """The application under --reload, from when it serves to its clean stop."""
    with start(*SERVE, *arguments, cwd=folder, **variables) as program:
        program.wait_for("Ctrl-C stops")
        yield program
        stop(program)


def test_change_starts_anew(folder):
    """A changed file is named in the log, the worker stops as on a Ctrl-C, and another serves what changed."""
    with serving(folder) as program:
        assert ask(program).body == "1"
        first = pid_of_worker(program)
        for version in (2, 3):
            renew(program, folder, version)
            assert ask(program).body == str(version)
        assert pid_of_worker(program) != first
    assert f"info: watching {folder}\n" in program.errors
    assert program.errors.count("info: main.py changed: starting anew\n") == 2
    for version in (1, 2, 3):
        assert program.output.count(f"lifespan shutdown of version {version}\n") == 1
    assert program.errors.count("listening on") == 1
    assert program.errors.endswith("info: stopped\n")


def test_change_within_the_second_that_keeps_the_size(folder):
    """What Python would take from its cache, which knows whole seconds and the size, is read anew all the same."""
    second = 1_700_000_000 * 10**9
    write_app(folder, 1, moment=second)
    with serving(folder, PYTHONDONTWRITEBYTECODE="") as program:
        assert ask(program).body == "1"
        for version in (2, 3):
            with restarting(program):
                write_app(folder, version, moment=second + version)
            assert ask(program).body == str(version)


def test_several_changes_at_once_are_one(folder):
    """Files that change together start it anew once, and the log says how many there were."""
    with serving(folder) as program:
        with restarting(program):
            for name in ("a.py", "b.py", "c.py"):
                write_file(folder / name, "")
        assert ask(program).body == "1"
    assert program.errors.count("info: a.py and 2 more changed: starting anew\n") == 1
    assert program.errors.count("starting anew") == 1


def test_file_outside_the_current_folder(folder, tmp_path_factory):
    """A file that changes elsewhere is named with its whole path."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with serving(folder, "--reload-dir", str(elsewhere)) as program:
        with restarting(program):
            write_file(elsewhere / "a.py", "")
        assert ask(program).body == "1"
    assert f"info: {elsewhere / 'a.py'} changed: starting anew\n" in program.errors


def test_which_files_count(folder):
    """Only what is in reload_dir counts, if reload_include names it and reload_exclude does not."""
    (folder / "templates").mkdir()
    watched = ("--reload-dir", "templates", "--reload-include", "*.html", "--reload-exclude", "draft*")
    with serving(folder, *watched) as program:
        with restarting(program):
            # Were one of these seen, it would be named in the log, alone or together with the last.
            write_app(folder, 2)
            write_file(folder / "templates" / "draft.html", "")
            write_file(folder / "templates" / "draft.py", "")
            write_file(folder / "templates" / "notes.txt", "")
            write_file(folder / "templates" / "page.html", "")
        assert ask(program).body == "2"
    assert f"info: watching {folder / 'templates'}\n" in program.errors
    assert re.findall(r"info: (.*): starting anew", program.errors) == ["templates/page.html changed"]


def test_without_watchfiles(folder, tmp_path_factory):
    """Without watchfiles one line says how to get it, and the files are looked at again and again."""
    missing = tmp_path_factory.mktemp("missing")
    (missing / "watchfiles.py").write_text("raise ImportError('not installed')")
    with serving(folder, PYTHONPATH=str(missing)) as program:
        for version in (2, 3):
            renew(program, folder, version)
            assert ask(program).body == str(version)
    hint = "info: watchfiles is not installed, so files are looked at every 0.05 s; pip install 'trioserve[reload]'\n"
    assert program.errors.count(hint) == 1


def test_with_watchfiles_there_is_no_hint(folder):
    """With watchfiles installed nothing is said of it."""
    with serving(folder) as program:
        pass
    assert "pip install" not in program.errors


# Where it serves


class Certificates:
    """A private authority, and its newest certificate for 127.0.0.1 as a file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "both.pem"
        self._authority = trustme.CA()
        self.context = ssl.create_default_context()
        self._authority.configure_trust(self.context)
        self.issue()

    def issue(self) -> None:
        write_file(self.file, self._authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes().decode())

    def damage(self) -> None:
        write_file(self.file, "nonsense")

    def ask(self, program: Program, path: str = "/") -> Answer:
        client = http.client.HTTPSConnection(*program.address, timeout=PATIENCE, context=self.context)
        return exchange(client, path)


def test_tls(folder):
    """With TLS a change is served with the same certificate, and with the new one once its files are changed, too.

    A client that connects while the worker restarts has its handshake with the new one. The page is served by TLS as
    well.
    """
    certificates = Certificates(folder)
    with serving(folder, "--ssl-certfile", "both.pem") as program:
        first = certificates.ask(program)
        with restarting(program):
            write_app(folder, 2, before=GATE)
        with socket.create_connection(program.address, PATIENCE) as plain:
            (folder / "go").touch()
            with certificates.context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                during = secured.getpeercert()["serialNumber"]
        after = certificates.ask(program)
        assert (first.body, after.body) == ("1", "2")
        assert first.serial == during == after.serial
        certificates.issue()
        renew(program, folder, 3)
        renewed = certificates.ask(program)
        assert renewed.body == "3"
        assert renewed.serial != first.serial
        with restarting(program):
            write_file(folder / "main.py", "(")
        page = certificates.ask(program)
        assert page.status == 503
        assert "SyntaxError" in page.body
        assert page.serial == renewed.serial
    assert "listening on https://" in program.errors


def test_certificate_that_is_broken_meanwhile(folder):
    """With a certificate that cannot be used there is no page either, but the log says why, and a change heals it."""
    certificates = Certificates(folder)
    with serving(folder, "--ssl-certfile", "both.pem") as program:
        certificates.damage()
        renew(program, folder, 2)
        wait_for_count(program, "error: ssl_certfile 'both.pem': no certificate in PEM in it\n", 2)
        # Nobody accepts it yet: it waits in the listener's queue.
        with socket.create_connection(program.address, PATIENCE) as plain:
            certificates.issue()
            write_app(folder, 3)
            certificates.context.wrap_socket(plain, server_hostname="127.0.0.1").close()
        assert certificates.ask(program).body == "3"


def test_unix_socket(folder):
    """A unix socket is kept from the first start to the stop, and so is a client that waits on it."""
    # pytest's own folders have names too long for a unix socket on macOS.
    with tempfile.TemporaryDirectory(prefix="ts") as short:
        path = Path(short) / "socket"
        with start("-m", "trioserve", "main:app", "--uds", str(path), *RELOAD, cwd=folder) as program:
            program.wait_for("Ctrl-C stops")
            inode = path.stat().st_ino
            for version in (1, 2):
                assert exchange(UnixConnection(str(path))).body == str(version)
                renew(program, folder, version + 1)
            with restarting(program):
                write_file(folder / "main.py", "(")
            program.wait_for("waiting for a change")
            assert exchange(UnixConnection(str(path))).status == 503
            assert path.stat().st_ino == inode
            stop(program)
        assert not path.exists()


def test_factory(folder):
    """With --factory each worker calls the factory, and the page, which is no factory, is served as it is."""
    factory = "\ndef make():\n    return app\n"
    write_file(folder / "main.py", APP + factory)
    with start("-m", "trioserve", "main:make", "--factory", *PORT, *RELOAD, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        assert ask(program).body == "1"
        with restarting(program):
            write_file(folder / "main.py", APP.replace("VERSION = 1", "VERSION = 2") + factory)
        assert ask(program).body == "2"
        with restarting(program):
            write_file(folder / "main.py", APP + "\ndef make():\n    raise ValueError('no settings')\n")
        page = ask(program)
        assert page.status == 503
        assert "ValueError: no settings" in page.body
        stop(program)


def test_request_during_the_restart_waits(folder):
    """A client that connects while no worker serves is not refused: it waits in the queue, and is answered."""
    with serving(folder) as program:
        with restarting(program):
            write_app(folder, 2, before=GATE)
        clients = [program.open() for _ in range(5)]
        for client in clients:
            client.request("GET", "/", headers={"Connection": "close"})
        (folder / "go").touch()
        for client in clients:
            with contextlib.closing(client):
                response = client.getresponse()
                assert (response.status, response.read()) == (200, b"2")


# Clients that stay

# Seconds that a restart may take: 2 are its grace, the rest is for a busy machine; without --reload the grace is 30.
BOUND = 20


def test_open_stream_holds_a_restart_for_two_seconds_at_most(folder):
    """An event stream that never ends is cut after the two seconds of grace under --reload."""
    with serving(folder) as program, contextlib.closing(program.open()) as client:
        client.request("GET", "/stream")
        response = client.getresponse()
        assert response.read(11) == b"data: begun"
        write_app(folder, 2)
        program.wait_for("starting anew")
        began = time.monotonic()
        assert ask_until(program, "2")
        assert time.monotonic() - began < BOUND
        program.wait_for(r"worker \d+: stopping: waiting for 1 request, oldest GET /stream")
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def ask_until(program: Program, body: str) -> bool:
    """Ask once the former worker has ended."""
    program.wait_for(ENDED)
    return ask(program).body == body


def test_open_websocket_holds_no_restart(folder):
    """A WebSocket is closed with 1012 (service restart), and the application starts anew."""
    with serving(folder) as program:
        host, port = program.address
        with connect_websocket(f"ws://{host}:{port}/", proxy=None, open_timeout=PATIENCE) as client:
            write_app(folder, 2)
            program.wait_for("starting anew")
            began = time.monotonic()
            with pytest.raises(ConnectionClosed) as caught:
                client.recv(timeout=PATIENCE)
            assert caught.value.rcvd.code == 1012
        assert ask_until(program, "2")
        assert time.monotonic() - began < BOUND


# What cannot start


REPORTS_A_FAILURE = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""

BROKEN = {
    "syntax": ("x = '<b>' +\n", r"SyntaxError: "),
    "import": ("import no_such_module\n", r"ModuleNotFoundError: No module named 'no_such_module'"),
    "raise": ("raise ValueError('no settings')\n", r"ValueError: no settings"),
    "attribute": ("x = 1\n", r"'main' has no attribute 'app'"),
    "lifespan": (
        "async def app(scope, receive, send):\n    await receive()\n    raise ValueError('no database')\n",
        r"ValueError: no database",
    ),
    "failed": (REPORTS_A_FAILURE, r"no database"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_application_that_cannot_start(folder, broken):
    """The reason is in the log once, and on a page with 503, from the very start on; the next change heals it."""
    source, reason = BROKEN[broken]
    write_file(folder / "main.py", source)
    lifespan = ("--lifespan", "on") if "receive" in source else ()
    with serving(folder, *lifespan) as program:
        page = ask(program)
        assert page.status == 503
        assert page.headers["content-type"] == "text/plain; charset=utf-8"
        assert page.body.startswith("The application does not start\n\n")
        assert re.search(reason, page.body)
        assert len(re.findall(reason, program.errors)) == len(re.findall(reason, page.body))
        program.wait_for("until then every request gets 503 and the reason\n")
        # The page has what the log has, as the worker wrote it.
        assert page.body.removeprefix("The application does not start\n\n") in program.errors
        assert program.errors.count("waiting for a change; until then every request gets 503 and the reason\n") == 1
        heal(program, folder, 2)
        assert "info: main.py changed: starting anew\n" in program.errors


def test_trace_of_a_syntax_error(folder):
    """The trace of a syntax error is the user's own: it begins at the file, and is escaped on a page of HTML."""
    with serving(folder) as program:
        with restarting(program):
            write_file(folder / "main.py", BROKEN["syntax"][0])
        program.wait_for("waiting for a change")
        text, page = ask(program), ask(program, Accept="text/html,*/*;q=0.8")
    assert program.errors.count(f'  File "{folder / "main.py"}", line 1\n') == 1
    assert program.errors.count("SyntaxError: invalid syntax\n") == 1
    assert f"  File \"{folder / 'main.py'}\", line 1\n    x = '<b>' +\n" in text.body
    assert page.status == 503
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1>The application does not start</h1>" in page.body
    assert "x = &#x27;&lt;b&gt;&#x27; +\n" in page.body
    assert "<b>" not in page.body


def test_broken_changes_in_a_row(folder):
    """However often it is broken, the reloader goes on, and the page has the reason of the last attempt alone."""
    with serving(folder) as program:
        for number in range(4):
            write_file(folder / "main.py", f"raise ValueError('attempt {number}')\n")
            wait_for_count(program, "waiting for a change", number + 1)
            page = ask(program)
            assert page.status == 503
            assert set(re.findall(r"ValueError: attempt \d", page.body)) == {f"ValueError: attempt {number}"}
        heal(program, folder, 2)


@pytest.mark.parametrize(
    ("path", "said", "shown"),
    [
        ("/die", r"worker \d+ ended with exit code 7; its last error line: last words\n", r"last words\n"),
        ("/die-silently", r"worker \d+ ended with exit code 7\n", r"worker \d+ ended with exit code 7"),
    ],
)
def test_worker_that_dies(folder, path, said, shown):
    """A worker that dies while it serves is not started again until a change: the page says how it ended."""
    with serving(folder) as program:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(program, path)
        program.wait_for("waiting for a change")
        page = ask(program)
        assert page.status == 503
        assert re.fullmatch(f"The application has ended\n\n{shown}", page.body)
        heal(program, folder, 2)
    assert re.search(f"error: {said}", program.errors)


def test_process_that_cannot_be_started(folder):
    """If the system starts no process, the log and the page say why, and the next change tries again."""
    python = folder / "python"

    def allow() -> None:
        write_file(python, f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)

    allow()
    script = "import sys\nsys.executable = sys.argv.pop(1)\nfrom trioserve.cli import main\nmain()\n"
    with start("-c", script, str(python), "main:app", *PORT, *RELOAD, cwd=folder) as program:
        program.wait_for("Ctrl-C stops")
        python.unlink()
        renew(program, folder, 2)
        program.wait_for("waiting for a change")
        page = ask(program)
        assert page.status == 503
        assert page.body == "The application does not start\n\ncannot start a worker: No such file or directory"
        assert "cannot start a worker: No such file or directory\n" in program.errors
        allow()
        heal(program, folder, 3)
        stop(program)


@pytest.mark.parametrize("field", ["Via", "Forwarded", "X_Forwarded_For", "X_Real_IP"])
def test_page_tells_nothing_through_a_proxy(folder, field):
    """A request that came through a proxy gets the page without the trace."""
    write_file(folder / "main.py", "raise ValueError('secret')\n")
    with serving(folder) as program:
        for accept in ("text/html", "*/*"):
            page = ask(program, Accept=accept, **{field: "1.1 proxy"})
            assert page.status == 503
            assert "The application does not start" in page.body
            assert "secret" not in page.body
            assert "secret" in ask(program, Accept=accept).body


def test_page_tells_nothing_where_there_are_proxies(folder):
    """Where proxies are named nobody gets the trace, whatever the request looks like."""
    write_file(folder / "main.py", "raise ValueError('secret')\n")
    with serving(folder, "--forwarded-allow-ips", "10.0.0.1") as program:
        page = ask(program)
        assert page.status == 503
        assert "The application does not start" in page.body
        assert "secret" not in page.body
        assert "secret" in program.errors


def test_websocket_while_the_page_is_shown(folder):
    """A WebSocket is denied with the page."""
    write_file(folder / "main.py", "raise ValueError('no settings')\n")
    with serving(folder) as program:
        page = ask(
            program,
            Connection="Upgrade",
            Upgrade="websocket",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
            Sec_WebSocket_Version="13",
        )
    assert page.status == 503
    assert "ValueError: no settings" in page.body


def test_page_has_no_limit_of_requests(folder):
    """What limits the application's requests does not end the page."""
    write_file(folder / "main.py", "(")
    with serving(folder, "--limit-max-requests", "1", "--limit-max-requests-jitter", "1") as program:
        for _ in range(4):
            assert ask(program).status == 503


STUBBORN = """
import threading
while True:
    try:
        print("importing", flush=True)
        threading.Event().wait()
    except BaseException:
        pass
"""


def test_import_that_does_not_end(folder):
    """An import that goes on for ever, whatever it is told, holds a restart until the hard deadline, no longer."""
    write_file(folder / "main.py", STUBBORN)
    with start(*SERVE, "--timeout-hard-shutdown", "1", cwd=folder) as program:
        program.wait_for("importing")
        renew(program, folder, 2)
        assert ask(program).body == "2"
        stop(program)


# The terminal

# Makes standard input the terminal of the session, and becomes the program.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@contextlib.contextmanager
def start_on_terminal(*arguments: str, cwd: os.PathLike[str], nohup: bool = False) -> Iterator[tuple[Program, FileIO]]:
    """As ``start``, with a terminal of its own as standard input; gives also the end that a person would sit at."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    with (
        FileIO(ours, "r+") as terminal,
        subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, "nohup" if nohup else "", *arguments],
            cwd=cwd,
            env=variables,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        os.close(theirs)
        program = Program(process)
        try:
            yield program, terminal
        finally:
            program.end()


def test_worker_reads_the_terminal(folder):
    """The worker's standard input is the terminal that the program was started in."""
    with start_on_terminal(*SERVE, cwd=folder) as (program, terminal):
        program.wait_for("Ctrl-C stops")
        with contextlib.closing(program.open()) as client:
            client.request("GET", "/line", headers={"Connection": "close"})
            terminal.write(b"typed\n")
            assert client.getresponse().read() == b"typed\n"
        stop(program)


def test_breakpoint(folder):
    """breakpoint() stops in the debugger, which can be talked to, and the request goes on as it says."""
    with start_on_terminal(*SERVE, cwd=folder) as (program, terminal):
        program.wait_for("Ctrl-C stops")
        with contextlib.closing(program.open()) as client:
            client.request("GET", "/debug", headers={"Connection": "close"})
            program.wait_for(r"main\.py\(\d+\)debug\(\)")
            terminal.write(b"p 6*7\n")
            program.wait_for(r"(?m)\b42$")
            terminal.write(b"answer = 6*9\nc\n")
            assert client.getresponse().read() == b"54"
        stop(program)


def test_debugger_is_no_blocked_loop(folder):
    """However long somebody sits in the debugger, the worker is not killed for it."""
    with start_on_terminal(*SERVE, "--timeout-worker-healthcheck", "0.1", cwd=folder) as (program, terminal):
        program.wait_for("Ctrl-C stops")
        worker = pid_of_worker(program)
        with contextlib.closing(program.open()) as client:
            client.request("GET", "/debug", headers={"Connection": "close"})
            program.wait_for(r"main\.py\(\d+\)debug\(\)")
            # Beyond the last moment at which a supervisor would kill it: 0.1 s, and 2 s and 1 s of patience.
            terminal.write(b"import time; time.sleep(3.5); print('slept', 6*7)\n")
            program.wait_for(r"slept 42")
            terminal.write(b"c\n")
            assert client.getresponse().read() == b"0"
        assert pid_of_worker(program) == worker
        stop(program)
    assert "has been blocked" not in program.errors


def test_debugger_holds_no_restart(folder):
    """A worker that is in the debugger when a file changes is ended by its hard deadline, and another starts."""
    deadlines = ("--timeout-graceful-shutdown", "0.2", "--timeout-hard-shutdown", "2")
    with start_on_terminal(*SERVE, *deadlines, cwd=folder) as (program, _):
        program.wait_for("Ctrl-C stops")
        with contextlib.closing(program.open()) as client:
            client.request("GET", "/debug")
            program.wait_for(r"main\.py\(\d+\)debug\(\)")
            renew(program, folder, 2)
            assert ask(program).body == "2"
        stop(program)


# Signals


def test_hangup_starts_anew(folder):
    """SIGHUP starts the application anew, also where nothing has changed."""
    with serving(folder) as program:
        first = pid_of_worker(program)
        with restarting(program):
            program.signal(signal.SIGHUP)
        assert pid_of_worker(program) != first
    assert program.errors.count("info: SIGHUP: starting anew\n") == 1


def test_hangup_ends_the_page(folder):
    """SIGHUP tries again what could not start: what was missing may not be a file that is watched."""
    write_file(folder / "main.py", "open('database').close()\n" + APP)
    with serving(folder) as program:
        assert "FileNotFoundError" in ask(program).body
        (folder / "database").touch()
        program.signal(signal.SIGHUP)
        program.wait_for("info: SIGHUP: starting anew\n")
        assert ask(program).body == "1"


@pytest.mark.parametrize("name", ["TTIN", "TTOU"])
def test_number_of_workers_is_fixed(folder, name):
    """TTIN and TTOU are ignored, and the log says so."""
    with serving(folder) as program:
        program.signal(getattr(signal, f"SIG{name}"))
        program.wait_for(f"warning: signal {name} is ignored: with --reload there is one worker\n")
        assert ask(program).body == "1"
        assert len(program.children()) == 1


def test_dump(folder):
    """USR1 logs the worker's tasks, and it serves on."""
    with serving(folder) as program:
        worker = pid_of_worker(program)
        program.signal(signal.SIGUSR1)
        program.wait_for(f"warning: worker {worker}: Tasks, each with where it waits, the most recent call last:\n")
        assert pid_of_worker(program) == worker


def test_worn_worker_is_replaced(folder):
    """After limit_max_requests the application starts anew."""
    with serving(folder, "--limit-max-requests", "2") as program:
        first = pid_of_worker(program)
        with restarting(program):
            assert pid_of_worker(program) == first
        assert pid_of_worker(program) != first
    assert program.errors.count(f"info: worker {first} has served limit_max_requests: starting anew\n") == 1


def test_worker_that_is_terminated_is_replaced(folder):
    """A SIGTERM for the worker alone makes it finish, and another starts."""
    with serving(folder) as program:
        first = pid_of_worker(program)
        with restarting(program):
            os.kill(first, signal.SIGTERM)
        assert pid_of_worker(program) != first
    assert f"info: worker {first} has ended\n" in program.errors


# The end


@pytest.mark.parametrize("watchfiles", ["there", "missing"])
@pytest.mark.parametrize("moment", ["interpreter", "import", "serving", "restart", "page", "stream"])
def test_interrupt_at_any_moment(folder, moment, watchfiles):
    """A Ctrl-C, which all processes of the terminal hear, ends everything, without a trace and with exit code 0."""
    variables = {}
    if watchfiles == "missing":
        (folder / "hooks").mkdir()
        variables["PYTHONPATH"] = str(folder / "hooks")
        (folder / "hooks" / "watchfiles.py").write_text("raise ImportError('not installed')")
    if moment == "interpreter":
        (folder / "hooks").mkdir(exist_ok=True)
        hook = "import sys\nif 'trioserve.process.worker' in sys.orig_argv:\n" + textwrap.indent(GATE, "    ")
        (folder / "hooks" / "sitecustomize.py").write_text(hook)
        variables["PYTHONPATH"] = str(folder / "hooks")
    if moment == "import":
        write_app(folder, 1, before=GATE)
    elif moment == "page":
        write_file(folder / "main.py", "(")
    with start(*SERVE, cwd=folder, **variables) as program, contextlib.ExitStack() as stack:
        if moment in ("interpreter", "import"):
            program.wait_for("importing")
        elif moment == "page":
            assert ask(program).status == 503
        elif moment == "restart":
            program.wait_for("Ctrl-C stops")
            write_app(folder, 2, before=GATE)
            program.wait_for("importing")
        else:
            assert ask(program).body == "1"
        if moment == "stream":
            client = stack.enter_context(contextlib.closing(program.open()))
            client.request("GET", "/stream")
            assert client.getresponse().read(11) == b"data: begun"
        program.signal_group(signal.SIGINT)
        if moment == "interpreter":
            program.wait_for("info: stopping 1 worker")
            (folder / "go").touch()
        assert program.wait() == 0
        assert program.left_over() == []
    assert "KeyboardInterrupt" not in program.errors
    assert "SyntaxError" in program.errors if moment == "page" else "Traceback" not in program.errors
    announced = moment not in ("interpreter", "import")
    assert program.errors.endswith("info: stopped\n" if announced else "info: stopped before the start\n")


def test_second_interrupt_cuts(folder):
    """A second Ctrl-C does not wait for the grace, and lifespan.shutdown runs all the same."""
    grace = ("--timeout-graceful-shutdown", str(10 * PATIENCE))
    with start(*SERVE, *grace, cwd=folder) as program, contextlib.closing(program.open()) as client:
        client.request("GET", "/stream")
        assert client.getresponse().read(11) == b"data: begun"
        program.signal_group(signal.SIGINT)
        program.wait_for(r"worker \d+: stopping: waiting for 1 request")
        program.signal_group(signal.SIGINT)
        assert program.wait() == 0
        assert program.left_over() == []
    assert "lifespan shutdown of version 1" in program.output


def test_interrupt_before_the_event_loop(folder):
    """A Ctrl-C that comes before the event loop listens for it ends the program as cleanly."""
    (folder / "watchfiles.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    program = finish(*SERVE, cwd=folder, PYTHONPATH=str(folder))
    assert program.process.returncode == 0
    assert re.fullmatch(r"[\d :.-]+ info: stopped before the start\n", program.errors)


@pytest.mark.parametrize("moment", ["serving", "import", "page"])
def test_nothing_outlives_the_reloader(folder, moment):
    """If the program is killed, its worker notices and stops, also during the import."""
    if moment == "import":
        write_app(folder, 1, before=GATE)
    elif moment == "page":
        write_file(folder / "main.py", "(")
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("importing" if moment == "import" else "Ctrl-C stops")
        program.signal(signal.SIGKILL)
        assert program.process.wait(PATIENCE) == -signal.SIGKILL
        wait_until(lambda: not program.left_over(), "the end of the worker")
    if moment != "page":
        assert re.search(r"worker \d+: the supervisor has ended, so this worker stops, too\n", program.errors)


def test_folder_that_goes_and_comes_back(folder):
    """The current folder may be deleted and made anew, as by a fresh checkout: the reloader says what it sees."""
    with serving(folder) as program:
        shutil.rmtree(folder)
        program.wait_for("waiting for a change")
        assert ask(program).status == 503
        folder.mkdir()
        write_app(folder, 2)
        wait_for_count(program, "starting anew", 2)


# Wrong usage


def test_folder_that_does_not_exist(folder):
    """A folder to watch that is not there is wrong usage."""
    program = finish(*SERVE, "--reload-dir", "nowhere", cwd=folder)
    assert program.process.returncode == 2
    assert program.errors.endswith(f"error: reload_dir {folder / 'nowhere'} is not a folder\n")
    assert program.errors.count("\n") == 1


def test_several_workers_cannot_be_reloaded(folder):
    """--reload runs one worker, so with --workers 2 it is wrong usage."""
    program = finish(*SERVE, "--workers", "2", cwd=folder, COLUMNS="200")
    assert program.process.returncode == 2
    assert "reload runs one worker, so it cannot go with workers=2\n" in program.errors


def test_application_must_be_text(folder):
    """run() with an application itself cannot import it anew, and says what it needs."""
    script = "from trioserve import run\nfrom main import app\nrun(app, port=0, reload=True)\n"
    program = finish("-c", script, cwd=folder)
    assert program.process.returncode == 2
    said = 'reload needs the application as text, such as "main:app", because each worker imports it for itself'
    assert program.errors == f"error: {said}\n"
