"""Starts nginx, HAProxy and trioserve, each in the foreground, and ends them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..programs import PATIENCE, Program, start

ROOT = Path(__file__).parents[2]
SBIN = "/usr/sbin"  # where they are installed, which is on no ordinary user's path


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        return one.getsockname()[1]


@contextmanager
def application(name: str, *options: str) -> Iterator[Program]:
    """trioserve with an application of apps.py."""
    with start("-m", "trioserve", f"tests.proxies.apps:{name}", *options, cwd=ROOT) as program:
        program.wait_for("Ctrl-C stops")
        yield program
        program.signal()
        assert program.wait() == 0, program.errors
    assert "Traceback" not in program.errors


@contextmanager
def nginx(folder: Path, port: int, server: str) -> Iterator[None]:
    """nginx, with this inside ``server { }``, on the loopback."""
    folders = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "" if os.geteuid() else "user root;\n"  # else its worker is nobody, who may not enter this folder
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/pid; error_log stderr; worker_processes 1; events {{}}\n"
        f"http {{ access_log off; {folders}\n"
        "map $http_upgrade $connection_upgrade { default upgrade; '' close; }\n"
        f"server {{ listen 127.0.0.1:{port}; {server} }} }}\n"
    )
    with running("nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), port=port):
        yield


@contextmanager
def haproxy(folder: Path, port: int, text: str) -> Iterator[None]:
    """HAProxy, with this as its configuration after the time-outs."""
    defaults = "defaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
    (folder / "haproxy.cfg").write_text(defaults + text)
    with running("haproxy", "-db", "-f", str(folder / "haproxy.cfg"), port=port):
        yield


@contextmanager
def running(name: str, *arguments: str, port: int) -> Iterator[None]:
    """A proxy, from when it listens there."""
    program = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], SBIN]))
    assert program is not None, f"{name} is not installed"
    with subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not _answers(port):
                assert process.poll() is None, f"{name} has ended"
                assert time.monotonic() < deadline, f"{name} does not listen"
                time.sleep(0.01)
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _answers(port: int) -> bool:
    with closing(socket.socket()) as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
