"""Sockets handed over by a service manager, and what it is told; the manager is played by a small program."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from trioserve.errors import ConfigError
from trioserve.process.systemd import Notifier, receive_descriptors

from .programs import APP, PATIENCE, Program, finish, start

pytestmark = pytest.mark.timeout(50)

# Like systemd: sockets from descriptor 3 on, the variables, and the program in this same process. NAMES are its first
# argument, "-" for one socket whose name is not told; the rest is what Python is to run.
MANAGER = """
import fcntl, os, socket, sys

names, *arguments = sys.argv[1:]
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names.split(":")]
print("ports", *(one.getsockname()[1] for one in sockets), flush=True)
# First out of the way: they have the numbers that they are to get, in another order.
copies = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in sockets]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
    os.close(copy)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ.setdefault("LISTEN_FDS", str(len(sockets)))
if names != "-":
    os.environ["LISTEN_FDNAMES"] = names
os.execv(sys.executable, [sys.executable, *arguments])
"""

RECEIVER = """
import json, os, sys
from trioserve.errors import ConfigError
from trioserve.process.systemd import receive_descriptors

try:
    found = receive_descriptors()
except ConfigError as error:
    sys.exit(str(error))
print(json.dumps({
    "found": found,
    "variables": [name for name in os.environ if name.startswith("LISTEN_")],
    "inheritable": [os.get_inheritable(number) for number, _ in found],
    "again": receive_descriptors(),
}))
"""

needs_descriptors = pytest.mark.skipif(
    sys.platform == "win32", reason="only POSIX has descriptors that are handed over"
)
needs_abstract = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract unix sockets")


def receive(names, *, cwd, **variables):
    """What a program receives that is started with sockets of these names."""
    program = finish("-c", MANAGER, names, "-c", RECEIVER, cwd=cwd, **variables)
    assert program.process.returncode == 0, program.errors
    return json.loads(program.output.splitlines()[-1])


# Receiving


@needs_descriptors
def test_descriptors_come_with_their_names(tmp_path):
    """What is handed over begins at descriptor 3 and has the names of FileDescriptorName=, which may be empty."""
    assert receive("http:admin:", cwd=tmp_path)["found"] == [[3, "http"], [4, "admin"], [5, ""]]


@needs_descriptors
def test_descriptors_without_names_are_unknown(tmp_path):
    """Where no names are told the descriptors have the name that systemd's own library gives them."""
    assert receive("-", cwd=tmp_path)["found"] == [[3, "unknown"]]


@needs_descriptors
def test_children_of_the_application_do_not_take_them_for_their_own(tmp_path):
    """Once received, the variables are gone and the descriptors are closed in programs started later."""
    received = receive("http:admin", cwd=tmp_path)
    assert received["variables"] == []
    assert received["inheritable"] == [False, False]
    assert received["again"] == []


@needs_descriptors
def test_number_of_descriptors_that_are_not_there_is_refused(tmp_path):
    """LISTEN_FDS may not count descriptors that are not open, however many."""
    program = finish("-c", MANAGER, "http", "-c", RECEIVER, cwd=tmp_path, LISTEN_FDS="9" * 20)
    assert re.fullmatch(
        r"LISTEN_FDS must be the number of open descriptors from 3 on, not '9{20}': \d+ is not open\n", program.errors
    )


@needs_descriptors
def test_names_that_are_not_one_for_each_are_refused(tmp_path):
    """LISTEN_FDNAMES must have as many names as there are descriptors."""
    program = finish("-c", MANAGER, "http:admin", "-c", RECEIVER, cwd=tmp_path, LISTEN_FDS="1")
    assert program.errors == "LISTEN_FDNAMES must be 1 names with colons between them, not 'http:admin'\n"


def test_nothing_is_handed_over():
    """Without the variables there is nothing, and that is no error."""
    assert receive_descriptors() == ()


@pytest.mark.parametrize("process", ["1", "x", ""])
def test_descriptors_of_another_process_are_ignored(monkeypatch, process):
    """Variables for another process are ignored, also nonsense, and removed all the same."""
    monkeypatch.setenv("LISTEN_PID", process)
    monkeypatch.setenv("LISTEN_FDS", "nonsense")
    monkeypatch.setenv("LISTEN_FDNAMES", "a:b")
    assert receive_descriptors() == ()
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()


def test_number_that_is_missing(monkeypatch):
    """LISTEN_PID alone hands nothing over."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert receive_descriptors() == ()


@pytest.mark.parametrize("count", ["", "0", "-1", "two", "1.5", "²", "9" * 5000])
def test_number_that_makes_no_sense_is_refused(monkeypatch, count):
    """LISTEN_FDS must be a number if it is meant for this process."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(ConfigError) as caught:
        receive_descriptors()
    assert str(caught.value) == f"LISTEN_FDS must be a whole number of at least 1, not {count!r}"


# Serving


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "main.py").write_text(APP)
    return tmp_path


def ports_of(program: Program) -> list[int]:
    program.wait_for("Ctrl-C stops")
    return [int(port) for port in program.wait_for(r"ports([\d ]+)\n")[1].split()]


def ask(port: int, context: ssl.SSLContext | None = None) -> bytes:
    """The whole response to one request."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        client = plain if context is None else context.wrap_socket(plain, server_hostname="localhost")
        with client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(4096), b""))


def stop(program: Program) -> None:
    program.signal(signal.SIGTERM)
    assert program.wait() == 0


@needs_descriptors
def test_all_that_is_handed_over_is_served(folder):
    """Without an address every socket that was handed over is served, and nothing else."""
    with start("-c", MANAGER, "http:admin", "-m", "trioserve", "main:app", cwd=folder) as program:
        ports = ports_of(program)
        for port in ports:
            assert ask(port).startswith(b"HTTP/1.1 200 ")
        stop(program)
    assert re.findall(r"listening on http://127\.0\.0\.1:(\d+)", program.errors) == [str(port) for port in ports]


@needs_descriptors
def test_plain_and_tls_side_by_side_by_name(folder):
    """Each socket is served as the option says that names it, whatever their order; what none names is warned of."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    named = ("--bind", "fd:https", "--insecure-bind", "fd:http", "--ssl-certfile", "both.pem")
    with start("-c", MANAGER, "http:admin:https", "-m", "trioserve", "main:app", *named, cwd=folder) as program:
        plain, _, tls = ports_of(program)
        assert ask(plain).startswith(b"HTTP/1.1 200 ")
        assert ask(tls, context).startswith(b"HTTP/1.1 200 ")
        stop(program)
    assert "warning: systemd handed over the socket 'admin' (fd 4), which nothing listens on\n" in program.errors


@needs_descriptors
def test_name_that_was_not_handed_over(folder):
    """A name that systemd did not give is wrong usage, and the text says which names it gave."""
    program = finish(
        "-c", MANAGER, "http:admin", "-m", "trioserve", "main:app", "--bind", "fd:https", cwd=folder, COLUMNS="200"
    )
    assert program.process.returncode == 2
    assert "bind names the socket 'https', but systemd handed over 'http', 'admin'\n" in program.errors


# Notifying


class Manager:
    """The service manager's end: a datagram socket, and what came in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name.replace("@", "\0", 1))
        self.socket.setblocking(False)

    def received(self) -> list[str]:
        """All that has been sent so far: a unix datagram has arrived when sending it returns."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def fill(self) -> None:
        """Put in messages until no more fit."""
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sender:
            sender.setblocking(False)
            while True:
                try:
                    sender.sendto(b"", self.socket.getsockname())
                except OSError:  # BlockingIOError on Linux, ENOBUFS elsewhere
                    return


@pytest.fixture(autouse=True)
def no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a manager that runs the tests are not theirs."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    # pytest's own folders have names too long for a unix socket on macOS.
    with tempfile.TemporaryDirectory(prefix="ts") as name:
        yield Path(name)


@pytest.fixture(params=["path", pytest.param("abstract", marks=needs_abstract)])
def manager(request, short_folder, monkeypatch):
    """A manager that NOTIFY_SOCKET names, by a path and by an abstract name."""
    made = Manager(str(short_folder / "notify") if request.param == "path" else f"@{short_folder.name}/notify")
    monkeypatch.setenv("NOTIFY_SOCKET", made.name)
    with closing(made.socket):
        yield made


def tell_everything(notifier: Notifier) -> None:
    notifier.ready("serving")
    notifier.watchdog()
    notifier.status("busy")
    notifier.reloading()
    notifier.stopping("stopping")


def test_each_notification(manager):
    """Each state is one datagram of assignments, as sd_notify(3) has them."""
    notifier = Notifier.from_environment()
    notifier.ready("1 request served")
    notifier.watchdog()
    notifier.status("2 connections")
    notifier.stopping("waiting for 1 request")
    assert manager.received() == [
        "READY=1\nSTATUS=1 request served",
        "WATCHDOG=1",
        "STATUS=2 connections",
        "STOPPING=1\nSTATUS=waiting for 1 request",
    ]


def test_reload_is_told_with_its_time(manager):
    """Type=notify-reload wants the monotonic time in microseconds in the message that says RELOADING=1."""
    before = time.monotonic_ns() // 1000
    Notifier.from_environment().reloading()
    (message,) = manager.received()
    moment = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", message)
    assert before <= int(moment[1]) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nREADY=1\r\nb", "STATUS=a READY=1 b"),
        ("caf\xe9", "STATUS=caf\xe9"),
        ("\udc80", "STATUS=\\udc80"),
        ("", "STATUS="),
    ],
)
def test_status_is_one_line(manager, text, line):
    """A status begins no other assignment, whatever is in it, and can always be sent."""
    Notifier.from_environment().status(text)
    assert manager.received() == [line]


def test_environment_is_read_once_and_left(manager, monkeypatch):
    """The variables stay for who else needs them, and the notifier does not need them any more."""
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    notifier = Notifier.from_environment()
    assert os.environ["NOTIFY_SOCKET"] == manager.name
    assert os.environ["WATCHDOG_USEC"] == "1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notifier.watchdog()
    assert manager.received() == ["WATCHDOG=1"]


@pytest.mark.parametrize("timeout", [None, 600.0])
def test_manager_that_does_not_read_is_not_waited_for(manager, timeout):
    """A notification that finds no room is lost at once, also where the program has set a default timeout."""
    notifier = Notifier.from_environment()
    manager.fill()
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)
    try:
        tell_everything(notifier)
    finally:
        socket.setdefaulttimeout(previous)
    assert not any(manager.received())
    notifier.watchdog()
    assert manager.received() == ["WATCHDOG=1"]


@pytest.mark.parametrize("name", ["gone", "x" * 200])
def test_manager_that_is_gone_stops_nothing(short_folder, monkeypatch, name):
    """An address where nobody listens, or that cannot be one, is no error."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_folder / name))
    tell_everything(Notifier.from_environment())


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative/path"])
def test_without_a_usable_address_nothing_is_told(monkeypatch, address):
    """Without NOTIFY_SOCKET, or with one that is no unix socket's, every call does nothing."""
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier.from_environment()
    assert notifier == Notifier()
    tell_everything(notifier)


def test_system_without_unix_sockets_tells_nothing(monkeypatch):
    """Where there are no unix sockets every call does nothing."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.delattr(socket, "AF_UNIX")
    tell_everything(Notifier.from_environment())


@pytest.mark.parametrize(
    ("microseconds", "interval"),
    [("30000000", 15.0), ("1", 5e-7), (None, None), ("", None), ("0", None), ("-1", None), ("soon", None), ("²", None)],
)
def test_watchdog_is_called_at_half_its_time(monkeypatch, microseconds, interval):
    """The interval is half of WATCHDOG_USEC in seconds; what is no number above 0 is no watchdog."""
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert Notifier.from_environment().watchdog_interval == interval


@pytest.mark.parametrize("process", ["1", "x", ""])
def test_watchdog_of_one_process(monkeypatch, process):
    """With WATCHDOG_PID only that process is watched."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Notifier.from_environment().watchdog_interval == 1
    monkeypatch.setenv("WATCHDOG_PID", process)
    assert Notifier.from_environment().watchdog_interval is None
