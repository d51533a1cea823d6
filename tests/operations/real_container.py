"""README's container file: its commands in a virtual environment, and trioserve as process 1 of a namespace."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ..programs import ProcessStatus, Program, start, wait_until
from ..readme import blocks
from .guide import GUIDE, OWN, find, free_port, write_main

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]

# Starts a program that starts another one, and ends before it: that is process 1's from then on.
ORPHANS = """
import subprocess

async def orphan(scope, receive, send):
    await trio.run_process(["sh", "-c", "(sleep 0.1 &)"])
    await respond(send, "done")

WAYS["/orphan"] = orphan
"""


def instructions(name: str) -> list[str]:
    """What follows each instruction of this name in the container file."""
    (text,) = blocks("dockerfile", GUIDE, "### A container")
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


class Container:
    """The server, as process 1; ``pid`` is its number outside."""

    def __init__(self, program: Program, port: int, check: list[str]) -> None:
        self.program = program
        self.port = port
        self._check = check
        wait_until(program.children, "process 1")
        (self.pid,) = program.children()

    def is_healthy(self) -> bool:
        """What HEALTHCHECK finds."""
        return subprocess.run(self._check, capture_output=True, check=False).returncode == 0

    def zombies(self) -> list[int]:
        return [one.pid for one in ProcessStatus.all() if one.parent == self.pid and one.state == "Z"]

    def get(self, path: str) -> str:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=30).text

    def stop(self, number: int) -> None:
        os.kill(self.pid, number)
        assert self.program.wait() == 0, self.program.errors


@contextmanager
def container(folder: Path, server: Path, *options: str) -> Iterator[Container]:
    """CMD in a namespace of processes of its own, with other ports."""
    (command,) = instructions("CMD")
    arguments = json.loads(command)
    port, metrics = free_port(), free_port()
    assert arguments.pop(0) == "trioserve"
    arguments = [one.replace("0.0.0.0", "127.0.0.1").replace(":9100", f":{metrics}") for one in arguments]
    ((_, _, check),) = [one.partition(" CMD ") for one in instructions("HEALTHCHECK")]
    check = [one.replace(":9100", f":{metrics}") for one in json.loads(check)]
    assert check.pop(0) == "python"
    isolate = ("--pid", "--fork", "--mount-proc", "--kill-child", str(server))
    command = [*isolate, *arguments, "--port", str(port), *options]
    with start(*command, executable=find("unshare"), cwd=folder) as program:
        made = Container(program, port, [str(server.with_name("python")), *check])
        yield made


def test_each_command_of_the_build(tmp_path: Path) -> None:
    """The build's commands make an environment in which CMD serves, and HEALTHCHECK says so."""
    write_main(tmp_path)
    requirements = f"--constraint {ROOT / 'constraints.txt'}\ntrioserve[fast,metrics] @ {ROOT.as_uri()}\n"
    (tmp_path / "requirements.txt").write_text(requirements)
    for line in instructions("RUN"):
        program, *arguments = shlex.split(line.replace("/srv", str(tmp_path)))
        subprocess.run([sys.executable if program == "python" else program, *arguments], check=True, cwd=tmp_path)
    with container(tmp_path, tmp_path / "venv" / "bin" / "trioserve") as one:
        one.program.wait_for("Ctrl-C stops")
        assert "HTTP/1.1 by httptools" in one.program.errors
        assert one.get("/echo/1").startswith("1 ")
        assert one.is_healthy()
        one.stop(signal.SIGTERM)


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_is_stopped(tmp_path: Path, options: tuple[str, ...], number: int) -> None:
    """TERM and INT stop process 1, which has no default for them, and nothing is left."""
    write_main(tmp_path)
    with container(tmp_path, OWN, *options) as one:
        assert not one.is_healthy()
        one.program.wait_for("Ctrl-C stops")
        assert one.is_healthy()
        one.stop(number)
        assert one.program.left_over() == []
        assert not one.is_healthy()


def test_process_1_takes_care_of_its_workers(tmp_path: Path) -> None:
    """Workers that are replaced, or killed, leave no zombie."""
    write_main(tmp_path)
    with container(tmp_path, OWN, "--workers", "2") as one:
        one.program.wait_for("Ctrl-C stops")
        os.kill(one.pid, signal.SIGHUP)
        one.program.wait_for("all workers are replaced")
        workers = {each.pid for each in ProcessStatus.all() if each.parent == one.pid}
        os.kill(min(workers), signal.SIGKILL)
        one.program.wait_for("was ended by signal SIGKILL")
        wait_until(lambda: one.zombies() == [], "no zombie is left")
        one.stop(signal.SIGTERM)


def test_strangers_need_an_init(tmp_path: Path) -> None:
    """Why README names --init: nobody waits for a program whose own parent has gone."""
    write_main(tmp_path)
    with (tmp_path / "main.py").open("a") as file:
        file.write(ORPHANS)
    with container(tmp_path, OWN) as one:
        one.program.wait_for("Ctrl-C stops")
        assert one.get("/orphan") == "done"
        wait_until(one.zombies, "the stranger has ended")
        one.stop(signal.SIGTERM)
