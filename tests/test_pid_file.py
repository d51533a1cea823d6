"""The file with the number of the process to signal: when it is there, and which files it never replaces."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trioserve.errors import StartupError
from trioserve.process.pid_file import PidFile

from .programs import WORKER_APP, Program, finish, start
from .test_single import SLOW

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform == "win32", reason="the programs are driven by POSIX signals, and lock files"),
]

SERVE = ("-m", "trioserve", "main:app", "--port", "0", "--pid-file", "app.pid")

# Holds a pid file until it is told to end; told to fork, it has a child that holds nothing, and told to read, it does.
HOLDER = """
import os, sys
from trioserve.process.pid_file import PidFile

with PidFile(sys.argv[1]) as made:
    made.publish()
    if "reads" in sys.argv:
        open(sys.argv[1]).close()
    if "forks" in sys.argv and not os.fork():
        sys.stdin.read()
        os._exit(0)
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(WORKER_APP)
    return tmp_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.pid"


@contextmanager
def holder(path: Path, *arguments: str) -> Iterator[Program]:
    with start("-c", HOLDER, str(path), *arguments, cwd=path.parent) as program:
        program.wait_for("holds")
        yield program


def hold(path: Path) -> None:
    """Publish a file, and see it go."""
    with PidFile(str(path)) as made:
        made.publish()
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


# What programs do


@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--reload",)])
def test_the_file_is_there_while_it_serves(folder: Path, path: Path, arguments: tuple[str, ...]) -> None:
    """It names the process that was started, and not a worker; at the end it is gone."""
    with start(*SERVE, *arguments, cwd=folder) as program:
        program.ask()
        assert path.read_text() == f"{program.process.pid}\n"
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert not list(folder.glob("app.pid*"))


def test_it_is_not_there_before(folder: Path, path: Path) -> None:
    """As long as the application starts there is none; and none is left of a start that fails."""
    (folder / "main.py").write_text(SLOW)
    with start(*SERVE, cwd=folder) as program:
        program.wait_for("starting")
        assert not path.exists()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    assert not list(folder.glob("app.pid*"))


def test_a_living_server_s_file_is_left(folder: Path, path: Path) -> None:
    """A second server with the same file does not start, and says whose it is; the first one is not touched."""
    with start(*SERVE, cwd=folder) as first:
        first.ask()
        number = first.process.pid
        second = finish(*SERVE, cwd=folder)
        assert second.process.returncode == 3
        assert second.errors.endswith(f" error: pid_file '{path}' is that of process {number}, which runs\n")
        assert second.errors.count("\n") == 1
        assert path.read_text() == f"{number}\n"
        assert first.ask() == number


def test_a_crash_s_file_is_replaced(folder: Path, path: Path) -> None:
    """What a killed server leaves does not keep the next one from starting."""
    with start(*SERVE, cwd=folder) as first:
        first.ask()
        first.signal(signal.SIGKILL)
        first.wait()
        assert path.read_text() == f"{first.process.pid}\n"
    with start(*SERVE, cwd=folder) as second:
        second.ask()
        assert path.read_text() == f"{second.process.pid}\n"
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
    assert not path.exists()


# Which file is replaced


def test_who_reads_its_own_file_keeps_it(path: Path) -> None:
    """A file is a living server's, too, once the application has read it."""
    with (
        holder(path, "reads") as program,
        pytest.raises(StartupError, match=f"is that of process {program.process.pid}"),
    ):
        hold(path)


def test_what_a_process_has_forked_holds_no_file(path: Path) -> None:
    """A file is a living server's as long as that lives, and not what it has forked."""
    with holder(path, "forks") as program:
        with pytest.raises(StartupError, match=f"is that of process {program.process.pid}, which runs"):
            hold(path)
        os.kill(program.process.pid, signal.SIGKILL)
        program.process.wait(30)
        assert program.left_over()
        hold(path)


@pytest.mark.parametrize("text", ["{pid}\n", "1", "", "\n", "4194305\n"])
def test_a_stranger_s_number_is_replaced(path: Path, text: str) -> None:
    """A number that nobody holds is an old one, whoever has it now."""
    path.write_text(text.format(pid=os.getppid()))
    hold(path)


@pytest.mark.parametrize("text", ["import trio\n", "12 13", "-1", "\0" * 200])
def test_another_file_is_left(path: Path, text: str) -> None:
    """A file that is no pid file was named by mistake: it is not replaced."""
    path.write_text(text)
    with pytest.raises(StartupError, match=r"app.pid' holds something else than the number of a process"):
        hold(path)
    assert path.read_text() == text
    assert os.listdir(path.parent) == ["app.pid"]


def test_a_pipe_is_left(path: Path) -> None:
    """So is what is no file at all: /dev/null would be replaced for the whole system."""
    os.mkfifo(path)
    with pytest.raises(StartupError, match=r"app.pid' is no ordinary file"):
        hold(path)
    assert path.is_fifo()


def test_a_link_stays(path: Path) -> None:
    """Where the path is a link the file that it names is written, and the link stays."""
    path.symlink_to("real.pid")
    with PidFile(str(path)) as made:
        made.publish()
        assert path.is_symlink()
        assert (path.parent / "real.pid").read_text() == f"{os.getpid()}\n"
    assert not (path.parent / "real.pid").exists()


def test_what_an_early_death_left_is_replaced(path: Path) -> None:
    """A process that had the same number and was killed while it started is in nobody's way."""
    made = path.with_name(f"app.pid.{os.getpid()}")
    made.write_text("1")
    hold(path)
    assert not made.exists()


# What cannot be written


@pytest.mark.parametrize(
    ("where", "reason"),
    [("missing/app.pid", "No such file or directory"), (".", "Is a directory"), ("file/app.pid", "Not a directory")],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, where: str, reason: str) -> None:
    """It is told at the start, and why."""
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=rf"^cannot write pid_file '{(tmp_path / where).resolve()}': {reason}$"):
        hold(tmp_path / where)


def test_a_program_that_cannot_write_it_does_not_start(folder: Path) -> None:
    """The exit code is that of what cannot start, and there is one line."""
    program = finish(*SERVE, "--pid-file", "missing/app.pid", cwd=folder)
    assert program.process.returncode == 3
    path = folder / "missing" / "app.pid"
    assert program.errors.endswith(f" error: cannot write pid_file '{path}': No such file or directory\n")
    assert program.errors.count("\n") == 1


def test_a_full_disk_leaves_nothing(path: Path) -> None:
    """A file that cannot be written whole is taken away again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StartupError, match="File too large"):
            hold(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(path.parent) == []


def test_a_folder_that_goes_meanwhile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What fails only once the server serves is logged, and the server serves on."""
    folder = tmp_path / "run"
    folder.mkdir()
    with PidFile(str(folder / "app.pid")) as made, caplog.at_level(logging.ERROR, "trioserve"):
        for one in folder.iterdir():
            one.unlink()
        folder.rmdir()
        made.publish()
    assert caplog.messages == [f"cannot write pid_file '{folder / 'app.pid'}': No such file or directory"]


def test_two_that_start_at_the_same_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first one that serves has the file, and the other one says so."""
    with PidFile(str(path)) as made, holder(path) as program, caplog.at_level(logging.ERROR, "trioserve"):
        made.publish()
        assert path.read_text() == f"{program.process.pid}\n"
    assert caplog.messages == [f"pid_file '{path}' is that of process {program.process.pid}, which runs"]
    assert os.listdir(path.parent) == ["app.pid"]


def test_another_s_file_is_not_removed(path: Path) -> None:
    """What somebody has put in its place stays when the server ends."""
    with PidFile(str(path)) as made:
        made.publish()
        path.with_name("other").write_text("1\n")
        path.with_name("other").rename(path)
    assert path.read_text() == "1\n"


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option there is no file."""
    monkeypatch.chdir(tmp_path)
    with PidFile(None) as made:
        made.publish()
        assert os.listdir() == []
