"""``trioserve inspect``, as a user calls it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trioserve import cli_inspect as module
from trioserve.cli import main
from trioserve.process import inspector_folder
from trioserve.process.inspection import Inspection
from trioserve.process.inspector_client import NoAnswer
from trioserve.process.inspector_folder import Found
from trioserve.process.inspector_socket import offer
from trioserve.types import PlainValues

from .programs import PATIENCE, WORKER_APP, Program, finish, start, wait_until

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.skipif(sys.platform == "win32", reason="Python has no unix sockets there"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0")
INSPECT = ("-m", "trioserve", "inspect")
NO_PROCESS = 2**22 + 1


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where programs run, and have their sockets."""
    # Not tmp_path: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="i") as made:
        Path(made, "main.py").write_text(WORKER_APP)
        yield Path(made)


@pytest.fixture
def inspection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inspection]:
    """This process, which can be inspected."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(inspector_folder, "gettempdir", lambda: str(folder))
    made = Inspection("server", "shop:app")
    with offer(made, wanted=True):
        yield made
    monkeypatch.undo()


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["inspect", *arguments])


# In this process


def test_the_only_server(inspection: Inspection) -> None:
    """Without a PID the only server is shown."""
    shown = inspect()
    assert shown.exit_code == 0
    assert re.match(rf"server {os.getpid()}  shop:app  starting, \d\.\d s, trioserve ", shown.stdout)
    assert inspect(str(os.getpid())).exit_code == 0


def test_json(inspection: Inspection) -> None:
    """For scripts there is one object."""
    values = json.loads(inspect("--json").stdout)
    assert values["schema"] == 1
    assert (values["kind"], values["pid"]) == ("server", os.getpid())


def test_no_such_process(inspection: Inspection) -> None:
    """A PID that is no process's, or another's, gets the reason."""
    shown = inspect(str(NO_PROCESS))
    assert (shown.exit_code, shown.stderr) == (1, f"Error: there is no process {NO_PROCESS}\n")
    shown = inspect(str(os.getppid()))
    assert shown.exit_code == 1
    assert shown.stderr.startswith(f"Error: process {os.getppid()} cannot be inspected: it is no trioserve server")
    assert inspect("nonsense").exit_code == 2


def test_a_process_of_somebody_else(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process is told as such."""
    real = os.geteuid()
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    shown = inspect(str(os.getpid()))
    assert shown.exit_code == 1
    assert f"belongs to another user, number {real}" in shown.stderr


def test_a_system_that_tells_nothing_of_owners(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc the rest of the reason must do."""

    def fail(path: str) -> os.stat_result:
        raise FileNotFoundError

    monkeypatch.setattr(module.os, "stat", fail)
    assert "cannot be inspected" in inspect(str(os.getppid())).stderr


def test_no_server(folder: Path, inspection: Inspection) -> None:
    """Where none runs that is said, and where it was looked."""
    (folder / "other").mkdir()
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(inspector_folder, "gettempdir", lambda: str(folder / "other"))
        shown = inspect()
        assert shown.exit_code == 1
        assert f"there is no socket of one in {folder / 'other'}/trioserve-{os.geteuid()}\n" in shown.stderr
        changed.setattr(module, "folders", list)
        assert inspect().stderr.endswith("there is no socket of one in any folder\n")


def test_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without unix sockets that is said."""
    monkeypatch.setattr(module, "SUPPORTED", False)
    shown = inspect()
    assert (shown.exit_code, shown.stderr) == (
        1,
        "Error: this needs unix sockets, which Python does not have on this system\n",
    )


def test_several_servers(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several servers one has to be named; they are listed, also those that do not answer."""
    here = inspector_folder.find_sockets()
    dead = Found("supervisor", 5, Path("/nowhere"))
    monkeypatch.setattr(module, "find_sockets", lambda: [*here, dead])
    shown = inspect()
    assert shown.exit_code == 2
    *_, first, second = shown.stderr.splitlines()
    assert first == "  5  supervisor: cannot be asked: No such file or directory"
    assert re.fullmatch(rf"  {os.getpid()}  server of shop:app, starting, \d\.\d s, ", second)
    monkeypatch.setattr(module, "find_sockets", lambda: [dead])
    shown = inspect()
    assert (shown.exit_code, shown.stderr) == (1, "Error: process 5 cannot be asked: No such file or directory\n")


class Naps:
    """Stands in for the pause between two pictures: does something in each, and then is a Ctrl-C."""

    def __init__(self, *actions: object) -> None:
        self.actions = list(actions)
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if not self.actions:
            raise KeyboardInterrupt
        action = self.actions.pop(0)
        if callable(action):
            action()


def test_watch(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch shows it again and again, until Ctrl-C, which is no error."""
    naps = Naps(None)
    monkeypatch.setattr(module.time, "sleep", naps)
    shown = inspect("--watch")
    assert shown.exit_code == 0
    assert shown.stdout.count("server ") == 2
    assert naps.seconds == [1.0, 1.0]
    naps = Naps()
    monkeypatch.setattr(module.time, "sleep", naps)
    shown = inspect("--watch", "0.5", "--json")
    assert naps.seconds == [0.5]
    assert json.loads(shown.stdout)["pid"] == os.getpid()


def test_watch_goes_on_while_there_is_no_answer(inspection: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer for a while is told as such; one that has ended ends the watch."""
    ask_whole, answers = module.ask_whole, [True, False, False]

    def ask_seldom(*arguments: object) -> PlainValues:
        if answers.pop(0):
            return ask_whole(*arguments)  # type: ignore[arg-type]
        raise NoAnswer("does not answer")

    monkeypatch.setattr(module, "ask_whole", ask_seldom)
    monkeypatch.setattr(
        module.time, "sleep", Naps(None, lambda: monkeypatch.setattr(module, "has_ended", lambda found: True))
    )
    shown = inspect("--watch")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1] == f"server {os.getpid()}  does not answer"
    assert shown.stderr == f"process {os.getpid()} has ended\n"


def test_ended(folder: Path) -> None:
    """A process has ended when its socket is gone, or nobody listens on it."""
    path = folder / "a"
    assert module.has_ended(Found("server", 1, path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        assert module.has_ended(Found("server", 1, path))
        dead.listen()
        assert not module.has_ended(Found("server", 1, path))


def test_help() -> None:
    """The command has a help of its own, which that of the server points to."""
    assert "--stacks" in inspect("--help").stdout
    assert "trioserve inspect [PID]" in CliRunner().invoke(main, ["--help"]).stdout


# Real programs


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Program]:
    with start(*SERVE, *arguments, cwd=folder, TMPDIR=str(folder), XDG_RUNTIME_DIR="") as program:
        program.wait_for("Ctrl-C stops")
        yield program
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert sockets_of(folder) == []


def sockets_of(folder: Path) -> list[Path]:
    return list((folder / f"trioserve-{os.geteuid()}").glob("*"))


def ask(folder: Path, *arguments: str) -> PlainValues:
    program = finish(*INSPECT, *arguments, "--json", cwd=folder, TMPDIR=str(folder), XDG_RUNTIME_DIR="")
    assert program.process.returncode == 0, program.errors
    found: PlainValues = json.loads(program.output)
    return found


def requests_of(values: PlainValues) -> list[str]:
    tasks = [task for one in values["connections"]["shown"] for task in one["tasks"]]
    return [task["exchange"]["target"] for task in tasks if "exchange" in task]


def test_a_server_that_serves(folder: Path) -> None:
    """A request is there while it runs, with what it waits for; its application's name tells which code is its own."""
    with serving(folder) as program, program.hold() as held:
        [task] = ask(folder)["connections"]["shown"][0]["tasks"]
        assert task["exchange"]["method"] == "POST"
        assert task["exchange"]["status"] == 200
        assert task["waits_for"] == "the request body"
        assert (Path(task["at"]["file"]).name, task["at"]["function"]) == ("main.py", "app")
        held.release()
        wait_until(lambda: not requests_of(ask(folder)), "the end of the request")


def test_a_blocked_server(folder: Path) -> None:
    """While a handler blocks everything the answer comes, and names it."""
    (folder / "main.py").write_text(WORKER_APP.replace("time.sleep(60)", "os.read(0, 1)"))
    with serving(folder) as program, contextlib.closing(program.open()) as client:
        client.request("GET", "/block")
        program.wait_for("blocks")
        loop = ask(folder)["loop"]
        assert loop["runs"] is False
        assert " GET /block, " in loop["running"]
        assert loop["at"]["function"] == "block"
        assert program.process.stdin is not None
        program.process.stdin.write("x")
        program.process.stdin.flush()
        assert client.getresponse().status == 200


def test_many_connections(folder: Path) -> None:
    """Of a thousand connections those are shown that are asked for, and all are counted."""
    with serving(folder) as program, contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(program.address, PATIENCE))
        wait_until(lambda: ask(folder)["connections"]["open"] == 300, "all connections")
        connections = ask(folder, "--limit", "3")["connections"]
        assert connections["by_state"] == {"idle": 300}
        assert len(connections["shown"]) == 3


def test_workers(folder: Path) -> None:
    """The supervisor is asked, and shows all its workers; one that is stopped is told as such, and one that is killed
    leaves nothing.
    """
    with serving(folder, "--workers", "2") as program:
        workers = program.wait_for_answers(2)
        stopped, other = sorted(workers)
        values = ask(folder)
        assert values["kind"] == "supervisor"
        assert {one["pid"] for one in values["workers"]} == workers
        assert all(one["state"] == "serving" and one["loop"]["runs"] for one in values["workers"])
        assert ask(folder, str(other))["kind"] == "worker"
        os.kill(stopped, signal.SIGSTOP)
        told = {one["pid"]: one for one in ask(folder)["workers"]}
        assert told[stopped]["error"].startswith("does not answer")
        assert "error" not in told[other]
        os.kill(stopped, signal.SIGKILL)
        program.wait_for_answers(2, but=[stopped])
        assert [one for one in sockets_of(folder) if str(stopped) in one.name] == []


def test_a_server_that_does_not_want_to(folder: Path) -> None:
    """With --no-inspector there is no socket, and no thread."""
    with serving(folder, "--no-inspector") as program:
        assert sockets_of(folder) == []
        shown = finish(*INSPECT, str(program.process.pid), cwd=folder, TMPDIR=str(folder), XDG_RUNTIME_DIR="")
        assert shown.process.returncode == 1
        assert "--no-inspector" in shown.errors


def test_watch_on_a_terminal(folder: Path) -> None:
    """A watch uses the whole terminal, and gives it back when the server ends, which it says."""
    ours, theirs = pty.openpty()
    with start(*SERVE, cwd=folder, TMPDIR=str(folder), XDG_RUNTIME_DIR="") as program:
        program.wait_for("Ctrl-C stops")
        environment = {**os.environ, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": "", "COLUMNS": "60", "LINES": "20"}
        command: Sequence[str] = [sys.executable, *INSPECT, "--watch", "0.1"]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as watch:
            os.close(theirs)
            shown = read_until(ours, "server itself")
            program.signal(signal.SIGTERM)
            assert program.wait() == 0
            shown += read_until(ours, "has ended")
            assert watch.wait(PATIENCE) == 0
    os.close(ours)
    assert shown.startswith("\x1b[?1049h")
    assert shown.rstrip().endswith(f"\x1b[?1049lprocess {program.process.pid} has ended")


def read_until(descriptor: int, text: str) -> str:
    shown, deadline = "", time.monotonic() + PATIENCE
    while text not in shown:
        assert time.monotonic() < deadline, shown
        shown += os.read(descriptor, 4096).decode("utf-8", "replace")
    return shown
