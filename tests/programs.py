"""Runs trioserve as a program, for the tests of the command line and of run()."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 30  # seconds; every wait in here ends by then

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


class Program:
    """A running program; its standard error is read as it comes."""

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

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the program's end and return its exit code."""
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        return code


@contextmanager
def start(*arguments: str, cwd: os.PathLike[str], **variables: str) -> Iterator[Program]:
    """Start Python with these arguments; the program does not outlive the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**inherited, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        program = Program(process)
        try:
            yield program
        finally:
            if process.poll() is None:
                process.kill()
            program.wait()


def finish(*arguments: str, cwd: os.PathLike[str], **variables: str) -> Program:
    """Run Python with these arguments to its end."""
    with start(*arguments, cwd=cwd, **variables) as program:
        program.wait()
    return program
