"""The folder of the inspectors' sockets, and who is not let near it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trioserve.process import inspector_folder as module
from trioserve.process.inspector_folder import (
    Found,
    SocketFile,
    find_sockets,
    folders,
    has_died,
    is_alive,
    open_folder,
    peer_is_ours,
    sweep_folders,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Python has no unix sockets there")

NO_PROCESS = 2**22 + 1  # Linux gives no number above 2**22


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; there is no folder of the session."""
    # Not tmp_path: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="i") as folder:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(module, "gettempdir", lambda: folder)
        yield Path(folder)
        monkeypatch.undo()


@pytest.fixture
def folder(temporary: Path) -> Path:
    made = temporary / f"trioserve-{os.geteuid()}"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def bound(temporary: Path) -> Iterator[SocketFile]:
    made = SocketFile("server")
    yield made
    made.remove()
    made.socket.close()


def leave(path: Path) -> Path:
    """A socket's file that nobody listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    return path


def test_a_socket_of_the_user(bound: SocketFile, temporary: Path) -> None:
    """The folder and the socket are the user's alone; the socket is found by its process, and removed at the end."""
    assert bound.path == temporary / f"trioserve-{os.geteuid()}" / f"server-{os.getpid()}.sock"
    assert bound.path.parent.stat().st_mode & 0o777 == 0o700
    assert bound.path.stat().st_mode & 0o777 == 0o600
    (bound.path.parent / "notes").touch()
    assert find_sockets() == [Found("server", os.getpid(), bound.path)]
    assert not has_died(bound.path)
    assert not bound.socket.get_inheritable()
    bound.remove()
    assert find_sockets() == []
    bound.remove()


def test_the_session_has_a_better_folder(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_RUNTIME_DIR is the first choice if it can be used; sockets are sought in both."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert len(folders()) == 1
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary / "missing"))
    first = SocketFile("server")
    assert first.path.parent.parent == temporary
    (temporary / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(temporary / "run"))
    second = SocketFile("worker")
    assert second.path.parent == temporary / "run" / "trioserve"
    assert {one.path for one in find_sockets()} == {first.path, second.path}
    for one in (first, second):
        one.remove()
        one.socket.close()


def test_a_path_that_is_too_long(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes only so long a path: then the next folder must do."""
    long = temporary / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    made = SocketFile("server")
    assert made.path.parent.parent == temporary
    made.remove()
    made.socket.close()


def test_a_system_without_unix_sockets(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no folder, and nothing to be swept."""
    monkeypatch.setattr(module, "SUPPORTED", False)
    assert folders() == []
    assert find_sockets() == []
    sweep_folders()


def test_no_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written there is no socket, and that is an OSError."""

    def fail() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(module, "gettempdir", fail)
    assert folders() == []
    with pytest.raises(OSError, match="there is no folder"):
        SocketFile("server")


def test_a_folder_that_others_can_open(folder: Path) -> None:
    """One that is open to others is refused."""
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="other users can open it"):
        SocketFile("server")
    assert list(folder.iterdir()) == []
    (folder / "server-1.sock").touch()
    assert find_sockets() == []


def test_a_folder_of_somebody_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another user has put there is refused, by who makes sockets and by who seeks them."""
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="it belongs to another user"), open_folder(folder):
        pass


def test_a_link_in_the_place_of_the_folder(temporary: Path, tmp_path: Path) -> None:
    """A symlink is refused, also one to a folder of our own."""
    (tmp_path / "real").mkdir(mode=0o700)
    (temporary / f"trioserve-{os.geteuid()}").symlink_to(tmp_path / "real")
    with pytest.raises(NotADirectoryError):
        SocketFile("server")
    assert list((tmp_path / "real").iterdir()) == []


def test_something_else_under_the_name(folder: Path) -> None:
    """Whatever stands where the socket is to be is left alone."""
    (folder / f"server-{os.getpid()}.sock").write_text("mine")
    with pytest.raises(OSError, match="in use"):
        SocketFile("server")
    assert (folder / f"server-{os.getpid()}.sock").read_text() == "mine"


def test_a_folder_that_is_exchanged_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the socket does not turn up in the folder that was looked at, it is none."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    name = f"server-{os.getpid()}.sock"
    (folder / name).touch()  # what is found there instead

    @contextlib.contextmanager
    def open_another(path: Path) -> Iterator[int]:
        with open_folder(folder) as opened:
            yield opened

    monkeypatch.setattr(module, "folders", lambda: [elsewhere])
    monkeypatch.setattr(module, "open_folder", open_another)
    with pytest.raises(FileExistsError):
        SocketFile("server")


def test_what_the_dead_have_left(folder: Path) -> None:
    """Sockets of dead processes are removed by the next that starts; nothing else is."""
    dead = leave(folder / f"worker-{NO_PROCESS}.sock")
    recycled = leave(folder / f"server-{os.getpid()}.sock")
    begins = leave(folder / f"worker-{os.getppid()}.sock")
    other = folder / "notes"
    other.touch()
    made = SocketFile("server")
    assert not dead.exists()
    assert begins.exists()
    assert other.exists()
    assert made.path == recycled
    made.remove()
    made.socket.close()
    again = leave(dead)
    sweep_folders()
    assert not again.exists()
    assert begins.exists()


def test_a_file_that_another_has_taken_over(bound: SocketFile) -> None:
    """Who ends removes only its own socket."""
    bound.path.unlink()
    leave(bound.path)
    bound.remove()
    assert bound.path.exists()
    bound.path.unlink()


def test_a_child_does_not_remove_its_parents(bound: SocketFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was forked is not who made the socket."""
    monkeypatch.setattr(module.os, "getpid", lambda: 1)
    bound.remove()
    monkeypatch.undo()
    assert bound.path.exists()
    bound.path.unlink()


def test_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process lives if there is one, whoever's it is."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    assert is_alive(os.getpid())
    assert not is_alive(NO_PROCESS)
    assert not is_alive(10**30)
    monkeypatch.setattr(module.os, "kill", refuse)
    assert is_alive(1)


def test_a_path_without_a_socket(folder: Path) -> None:
    """What is not there, or is no socket, has not died."""
    (folder / "file").touch()
    assert not has_died(folder / "file")
    assert not has_died(folder / "missing")


def test_who_is_at_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells whose process the other is; where it does not, the folder is all there is."""
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_is_ours(one)
        with monkeypatch.context() as changed:
            changed.setattr(module.os, "geteuid", lambda: 12345)
            assert peer_is_ours(one) is not hasattr(socket, "SO_PEERCRED")
        monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
        assert peer_is_ours(one)
