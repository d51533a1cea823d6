"""Runs trioserve as a program, for the tests of the command line, of run() and of workers."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30  # seconds; every wait in here ends by then

if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    # The tests run under nohup, but the programs must not: what is ignored stays so in them, while what has a handler
    # is at its default. And the tests themselves still outlive their terminal.
    signal.signal(signal.SIGHUP, lambda number, frame: None)

APP = """
import sys
import time
import trio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan shutdown", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    try:
        await WAYS[scope["path"]]()
    finally:
        print("cleaned up", flush=True)
    await send({"type": "http.response.body", "body": b""})

async def answer():
    pass

async def forever():
    await trio.sleep_forever()

async def block():
    time.sleep(600)

async def linger():
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(sys.stdin.read)  # until the test closes it

async def refuse_to_end():
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()

WAYS = {"/": answer, "/forever": forever, "/block": block, "/linger": linger, "/stubborn": refuse_to_end}
"""


# Every answer names the process that gave it. A POST is answered once its body has come, which is up to the client.
WORKER_APP = """
import os
import time
import trio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        say("lifespan shutdown", os.getpid())
        await send({"type": "lifespan.shutdown.complete"})
        return
    await WAYS.get(scope["path"], answer)()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d\\n" % os.getpid(), "more_body": True})
    if scope["method"] == "POST":
        try:
            while (await receive()).get("more_body"):
                pass
        finally:
            say("cleaned up", os.getpid())
    await send({"type": "http.response.body", "body": b"ended"})

def say(*words, to=1):
    # In one piece: several processes write to the same pipe.
    os.write(to, (" ".join(map(str, words)) + "\\n").encode())

async def answer():
    pass

async def block():
    say("blocks", os.getpid())
    time.sleep(60)

async def die():
    say("last words of", os.getpid(), to=2)
    os._exit(9)

WAYS = {"/block": block, "/die": die}
"""

# To be added to WORKER_APP: a request that blocks the event loop for a while.
NAP = """
async def nap():
    say("naps", os.getpid())
    time.sleep(3)

WAYS["/nap"] = nap
"""


# Warnings are errors, but for the one that trio-asyncio 0.16 gives when it is imported by Python 3.12 and newer.
STRICT = ("-W", "error", "-W", "ignore:'AbstractChildWatcher' is deprecated:DeprecationWarning")


@dataclass(frozen=True)
class ProcessStatus:
    """What the system tells of a process. ``state`` is one letter, such as T for stopped and Z for ended."""

    pid: int
    state: str
    parent: int
    group: int

    @classmethod
    def all(cls) -> "list[ProcessStatus]":
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            # It may end while we look.
            with contextlib.suppress(OSError):
                state, parent, group = (folder / "stat").read_text().rpartition(") ")[2].split()[:3]
                found.append(cls(int(folder.name), state, int(parent), int(group)))
        return found


def wait_until(condition: Callable[[], object], what: str, *, every: float = 0.005) -> None:
    """Wait for what tells nobody, such as the state of a process that is not our child; what is dear to ask, not often.

    ``every`` is in seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in {PATIENCE} s this did not come: {what}"
        time.sleep(every)


class Program:
    """A running program, in a process group of its own; its standard error is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.errors = ""
        self.output = ""
        self._news = threading.Condition()
        self._open = 2  # streams that can still bring something
        self._threads = [threading.Thread(target=self._read_errors), threading.Thread(target=self._read_output)]
        for thread in self._threads:
            thread.start()

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            with self._news:
                self.errors += line
                self._news.notify_all()
        self._end_stream()

    def _read_output(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self.output += line
                self._news.notify_all()
        self._end_stream()

    def _end_stream(self) -> None:
        with self._news:
            self._open -= 1
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the program has printed something, on either stream."""
        with self._news:
            self._news.wait_for(lambda: self._open == 0 or re.search(pattern, self.errors + self.output), PATIENCE)
            found = re.search(pattern, self.errors + self.output)
        assert found, f"{pattern!r} did not come:\n{self.errors}\n{self.output}"
        return found

    def connect(self, path: str) -> socket.socket:
        """Wait for the server, send a request, and return once its response has begun."""
        url = self.wait_for(r"listening on http://([\d.]+):(\d+)")
        client = socket.create_connection((url[1], int(url[2])), PATIENCE)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while b"begun" not in received:
            received += client.recv(4096) or b"begun too early an end"
        return client

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it has said so."""
        url = self.wait_for(r"listening on https?://([\d.]+):(\d+)")
        return url[1], int(url[2])

    def open(self) -> http.client.HTTPConnection:
        """A client, not connected yet."""
        return http.client.HTTPConnection(*self.address, timeout=PATIENCE)

    def ask(self, path: str = "/") -> int:
        """Send a request on a connection of its own; returns the process that answered."""
        client = self.open()
        with contextlib.closing(client):
            client.request("GET", path, headers={"Connection": "close"})
            return read_pid(client.getresponse())

    def signal_group(self, number: int = signal.SIGINT) -> None:
        """Signal the program and all that it has started, as a terminal does at Ctrl-C."""
        os.killpg(self.process.pid, number)

    def hold(self) -> "HeldRequest":
        """Send a request that runs until it is released."""
        return HeldRequest(self.open())

    def wait_for_answers(self, count: int, *, but: Iterable[int] = ()) -> set[int]:
        """Wait until as many processes have answered, beside those of ``but``; returns their numbers."""
        found: set[int] = set()
        wait_until(lambda: found.add(self.ask()) or len(found.difference(but)) == count, f"{count} answer, but {but}")
        return found.difference(but)

    def hold_in_each(self, workers: Iterable[int], stack: contextlib.ExitStack) -> "dict[int, HeldRequest]":
        """A request that runs until it is released, in each of these processes."""
        held: dict[int, HeldRequest] = {}
        missing = set(workers)

        def hold() -> bool:
            one = self.hold()
            if one.worker in missing:
                missing.remove(one.worker)
                held[one.worker] = stack.enter_context(one)
            else:
                one.release()
            return not missing

        wait_until(hold, f"an answer of each of {workers}")
        return held

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the program's end, and that of its output; returns its exit code."""
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        return code

    # What it has started

    def children(self) -> set[int]:
        """The processes that it has started itself, and that run."""
        return {one.pid for one in ProcessStatus.all() if one.parent == self.process.pid and one.state != "Z"}

    def wait_for_children(self, count: int, *, but: Iterable[int] = ()) -> set[int]:
        """Wait until it has as many children, none of which is one of ``but``."""
        found: set[int] = set()

        def are_there() -> bool:
            found.clear()
            found.update(self.children())
            return len(found) == count and found.isdisjoint(but)

        wait_until(are_there, f"{count} children, none of {but}")
        return found

    def left_over(self) -> list[str]:
        """The command lines of all in its process group that run; the program itself is one as long as it runs."""
        group = self.process.pid
        return [_command_of(one.pid) for one in ProcessStatus.all() if one.group == group and one.state != "Z"]

    def end(self) -> None:
        """Kill what is left of it."""
        # Only now may the number become another's: as long as one of the group is left it is taken.
        if self.process.poll() is None or self.left_over():
            with contextlib.suppress(ProcessLookupError):
                self.signal_group(signal.SIGKILL)
        self.wait()


class HeldRequest:
    """A request to WORKER_APP that ``worker`` has begun to answer, and whose end it waits for."""

    def __init__(self, client: http.client.HTTPConnection) -> None:
        self.client = client
        client.putrequest("POST", "/")
        client.putheader("Content-Length", "1")
        client.endheaders()
        self.response = client.getresponse()
        self.worker = int(self.response.readline())

    def release(self) -> None:
        """Let it end, and check the rest of the answer."""
        self.client.send(b"x")
        assert self.response.read() == b"ended"
        self.client.close()

    def __enter__(self) -> "HeldRequest":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()


def read_pid(response: http.client.HTTPResponse) -> int:
    """Read a whole answer of WORKER_APP; returns the process that gave it."""
    pid, end = response.read().split(b"\n")
    assert end == b"ended"
    return int(pid)


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return "ended just now"


_SETTINGS = (
    "TRIOSERVE_",
    "WEB_CONCURRENCY",
    "FORWARDED_ALLOW_IPS",
    "UVICORN_",
)  # in the environment of the tests, which is not that of the programs


@contextmanager
def start(
    *arguments: str,
    cwd: os.PathLike[str],
    executable: str = sys.executable,
    pass_fds: Iterable[int] = (),
    **variables: str,
) -> Iterator[Program]:
    """Start Python, or another program, with these arguments; neither it nor what it starts outlives the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    with subprocess.Popen(
        [executable, *arguments],
        cwd=cwd,
        env={**inherited, **variables},
        pass_fds=tuple(pass_fds),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A Ctrl-C in the terminal of the tests is not for it; and what is left of the group at the end is its.
        start_new_session=True,
    ) as process:
        program = Program(process)
        try:
            yield program
        finally:
            program.end()


def finish(*arguments: str, cwd: os.PathLike[str], **variables: str) -> Program:
    """Run Python with these arguments to its end."""
    with start(*arguments, cwd=cwd, **variables) as program:
        program.wait()
    return program
