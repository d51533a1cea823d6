"""Upgrades without an outage, each under a load of 200 clients; a restart behind a socket or a proxy is tried there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from ..load import loading, wait_for
from ..programs import PATIENCE, start
from ..readme import section
from .guide import GUIDE, find, write_main

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
ROUNDS = 5


def version(address: tuple[str, int]) -> str:
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b"")).rpartition(b"\r\n")[2].decode()


def write_version(folder: Path, number: int) -> None:
    write_main(folder)
    with (folder / "main.py").open("a") as file:
        file.write(f'\nasync def version(scope, receive, send):\n    await respond(send, "version {number}")\n')
        file.write('\nWAYS["/version"] = version\n')


async def test_new_code_by_hangup(tmp_path: Path) -> None:
    """HUP takes over a new application, and no request fails nor has to be sent twice."""
    write_version(tmp_path, 0)
    with start("-m", "trioserve", "main:app", "--workers", "2", "--port", "0", cwd=tmp_path) as program:
        program.wait_for("Ctrl-C stops")
        async with loading(program.address, lambda: program.errors) as load:
            for number in range(1, ROUNDS + 1):
                write_version(tmp_path, number)
                program.signal(signal.SIGHUP)
                await wait_for(program, "all workers are replaced", times=number)
                assert await trio.to_thread.run_sync(version, program.address) == f"version {number}"
                await load.wait_answered(200)
        assert load.losses == []
        assert load.dropped == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a network of its own")
def test_two_on_one_port(tmp_path: Path) -> None:
    """With --reuse-port and README's setting a new instance takes over from the old one, and no request fails."""
    (setting,) = re.findall(r"`sysctl ([\w.]+=1)`", section(GUIDE))
    name, _, value = setting.partition("=")
    # In a network of its own, because the setting is a whole network's.
    file = "/proc/sys/" + name.replace(".", "/")
    program = shlex.join([sys.executable, "-m", "tests.operations.two_on_one_port", str(tmp_path), str(ROUNDS)])
    command = f"{find('ip')} link set lo up && echo {value} >{file} && exec {program}"
    done = subprocess.run(
        [find("unshare"), "--net", "sh", "-c", command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0
