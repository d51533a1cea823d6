"""systemd's own tools with the units of README, and a manager that keeps the socket over restarts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import trio

from ..load import loading
from ..programs import Program, start
from ..test_single import Notices
from .guide import exec_start, find, free_port, settings, unit, write_main

pytestmark = pytest.mark.timeout(120)

# What systemd does once it has the sockets: the variables, and the service in this same process.
ACTIVATE = """
import os, sys
number = int(sys.argv[1])
if number != 3:
    os.dup2(number, 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "shop.socket"}
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_main(tmp_path)
    return tmp_path


@pytest.fixture
def notices() -> Iterator[Notices]:
    with tempfile.TemporaryDirectory(prefix="ts") as short:
        made = Notices(short)
        with closing(made.manager.socket):
            yield made


def test_the_units_are_verified(folder: Path) -> None:
    """systemd-analyze finds nothing wrong with either file, once the program and its folder are there."""
    command = " ".join(exec_start())
    for name in ("shop.socket", "shop.service"):
        text = unit(name).replace("/srv/shop/.venv/bin/trioserve main:app --workers 4", command)
        (folder / name).write_text(text.replace("/srv/shop", str(folder)))
    done = subprocess.run(
        [find("systemd-analyze"), "verify", "--man=no", folder / "shop.socket", folder / "shop.service"],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "shop" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_a_wrong_line_would_be_found(folder: Path) -> None:
    """systemd-analyze does look: a setting that there is not is told."""
    (folder / "shop.service").write_text(unit("shop.service").replace("WatchdogSec=", "WatchDog="))
    done = subprocess.run(
        [find("systemd-analyze"), "verify", "--man=no", folder / "shop.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Unknown key 'WatchDog'" in done.stderr


def test_socket_activation(folder: Path, notices: Notices) -> None:
    """systemd-socket-activate opens the unit's socket and starts the service at the first connection, as it stands."""
    named = settings(unit("shop.socket"), "Socket")["ListenStream"]
    address = ("127.0.0.1", free_port())
    assert named == "127.0.0.1:8000"
    seconds = int(settings(unit("shop.service"), "Service")["WatchdogSec"])
    passed = [f"--setenv={name}" for name in ("NOTIFY_SOCKET", "PATH", "WATCHDOG_USEC")]
    variables = {**notices.variables, "WATCHDOG_USEC": str(seconds * 1_000_000)}
    listen = f"--listen={named.replace('8000', str(address[1]))}"
    command = [listen, *passed, *exec_start()]
    with start(*command, executable=find("systemd-socket-activate"), cwd=folder, **variables) as program:
        program.wait_for("Listening on")
        assert ask(address).startswith(b"HTTP/1.1 200 ")
        notices.wait_for("READY=1\nSTATUS=4 workers serve")
        notices.wait_for("WATCHDOG=1")
        program.signal(reload_signal())
        notices.wait_for("RELOADING=1\nMONOTONIC_USEC=")
        program.wait_for("all workers are replaced")
        assert ask(address).startswith(b"HTTP/1.1 200 ")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        notices.wait_for("STOPPING=1")
        assert program.left_over() == []
    states = notices.states
    reloading = states.index("RELOADING=1")
    assert states[reloading + 1 :] == ["READY=1", "STOPPING=1"]


def reload_signal() -> int:
    """What ExecReload= sends to the main process."""
    command = settings(unit("shop.service"), "Service")["ExecReload"]
    name = re.fullmatch(r"/bin/kill -(\w+) \$MAINPID", command)
    assert name is not None
    return signal.Signals[f"SIG{name[1]}"]


def ask(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, 30) as client:
        client.sendall(b"GET /echo/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))


@contextmanager
def activated(folder: Path, listener: socket.socket) -> Iterator[Program]:
    number = str(listener.fileno())
    command = ("-c", ACTIVATE, number, *exec_start())
    with start(*command, cwd=folder, pass_fds=[listener.fileno()]) as program:
        yield program


async def test_restarts_refuse_nobody(folder: Path) -> None:
    """`systemctl restart` three times under load: the socket stays, so that no request fails."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        errors: list[str] = []
        with ExitStack() as last:
            async with loading(listener.getsockname(), lambda: "\n".join(errors)) as load:
                for _ in range(3):
                    with activated(folder, listener) as program:
                        await load.wait_answered(500)
                        await stop(program)
                        errors.append(program.errors)
                program = last.enter_context(activated(folder, listener))
                await load.wait_answered(500)
            await stop(program)
        assert load.failed == 0, load.losses
        assert len(load.workers) >= 4  # one of each service at least


async def stop(program: Program) -> None:
    program.signal(signal.SIGTERM)
    assert await trio.to_thread.run_sync(program.wait) == 0
