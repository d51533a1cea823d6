"""Runs of pytest inside the tests, to see what users of the fixtures see."""

import gc
import os
import textwrap
import threading
from pathlib import Path

import pytest

from .support import open_descriptors

# What a run inside this process imports is forgotten after it: all of this is imported once, for all runs. And there
# must be only one Trio in a process.
for _name in (
    "anyio.pytest_plugin",
    "hypothesis",
    "pytest_trio.plugin",
    "trustme",
    "trio.testing",
    "trioserve.testing",
):
    __import__(_name)

# The path says what happens. ``released`` is an event for threads, which ends what "/wait" waits for.
APPS = """
import http.client
import threading
import time

import trio

reached = threading.Event()
released = threading.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})
    else:
        await WAYS[scope["path"]](send)

async def no_start(scope, receive, send):
    await receive()
    raise RuntimeError("no database")

async def no_shutdown(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("the database is gone")
    await answer(send)

def create():
    return app

async def answer(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

async def broken(send):
    raise ValueError("the shelf is empty")

async def late(send):
    await answer(send)
    await trio.to_thread.run_sync(released.wait)
    raise ValueError("too late")

async def block(send):
    reached.set()
    time.sleep(600)

async def shielded(send):
    with trio.CancelScope(shield=True):
        reached.set()
        await trio.sleep_forever()

async def forever(send):
    reached.set()
    await trio.sleep_forever()

WAYS = {
    "/": answer,
    "/broken": broken,
    "/late": late,
    "/block": block,
    "/shielded": shielded,
    "/forever": forever,
}

def ask(server, path):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    if server.url.startswith("https"):
        connection = http.client.HTTPSConnection(
            server.host, server.port, timeout=20, context=server.ca.client_context()
        )
    connection.request("GET", path, headers={"Connection": "close"})
    return connection

def get(server, path="/"):
    connection = ask(server, path)
    try:
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()

async def fetch(server, path="/"):
    stream = await server.connect()
    await stream.send_all(b"GET " + path.encode() + b" HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n")
    data = b""
    while more := await stream.receive_some(65536):
        data += more
    await server.wait_idle()
    return int(data.split()[1]), data.partition(b"\\r\\n\\r\\n")[2]
"""

# A conftest.py that writes down what a run has left in its process, and what it has changed there.
LOOK = """
import gc
import logging
import os
import signal
import sys
import threading
import warnings

import pytest

def look():
    gc.collect()
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.add(name + " " + os.readlink("/proc/self/fd/" + name))
        except FileNotFoundError:
            pass
    loggers = [logging.getLogger(name) for name in ("", *sorted(logging.root.manager.loggerDict))]
    usual = (0, [], True, False)
    return {
        "descriptors": descriptors,
        # Trio keeps threads for the next that needs one.
        "threads": [one.name for one in threading.enumerate() if not one.name.startswith("Trio thread")],
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "path": list(sys.path),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.get_asyncgen_hooks()),
        "logging": {
            logger.name: found
            for logger in loggers
            if (found := (logger.level, list(logger.handlers), logger.propagate, logger.disabled)) != usual
        },
        "warnings": list(warnings.filters),
    }

def pytest_collection_finish(session):
    session.before = look()

@pytest.hookimpl(trylast=True)  # after pytest has torn down what is left
def pytest_sessionfinish(session):
    if not session.config.getoption("numprocesses", None):  # else the workers do it
        after = look()
        found = [f"{name}: {value} -> {after[name]}" for name, value in session.before.items() if after[name] != value]
        (session.config.rootpath / f"changes-{os.getpid()}.txt").write_text("\\n".join(found))
"""


class Project:
    """A folder with tests, in which pytest can be run; each run ends by showing that it has left nothing."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pytester = pytester
        for name in list(os.environ):
            if name.startswith("PYTEST_") and name != "PYTEST_CURRENT_TEST":
                monkeypatch.delenv(name)
        self.path: Path = pytester.path
        self.configure("addopts = -p no:cacheprovider -p no:timeout -p no:randomly")
        self.write("apps.py", APPS)
        # What programs leave there is seen.
        (self.path / "temporary").mkdir()
        monkeypatch.setenv("TMPDIR", str(self.path / "temporary"))

    def configure(self, *lines: str) -> None:
        self.write("pytest.ini", "\n".join(["[pytest]", "filterwarnings = error", *lines]))

    def add_option(self, line: str) -> None:
        with (self.path / "pytest.ini").open("a") as file:
            file.write(f"\n{line}\n")

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(textwrap.dedent(text))

    def write_test(self, text: str) -> None:
        self.write("test_it.py", "import pytest\nfrom apps import *\n\n" + textwrap.dedent(text))

    def run(self, text: str, *arguments: str) -> pytest.RunResult:
        """Run these tests in this process."""
        self.write_test(text)
        return self.run_here(*arguments)

    def run_here(self, *arguments: str) -> pytest.RunResult:
        before = open_descriptors()
        result = self._pytester.runpytest_inprocess(*arguments)
        gc.collect()
        assert open_descriptors() == before, "descriptors are left"
        assert not [thread for thread in threading.enumerate() if thread.name == "trioserve.testing"]
        return result

    def run_apart(self, text: str | None, *arguments: str, timeout: float = 50) -> pytest.RunResult:
        """Run these tests, or those that are there, in a process of their own."""
        if text is not None:
            self.write_test(text)
        return self._pytester.runpytest_subprocess(*arguments, timeout=timeout)

    def watch_for_changes(self) -> None:
        """Let the next runs that are apart write down what they leave and change."""
        self.write("conftest.py", LOOK)

    def changes(self) -> list[str]:
        """What each process that was watched has left and changed."""
        assert not list(self.path.glob("temporary/trioserve-*")), "folders are left"
        return [path.read_text() for path in self.path.glob("changes-*.txt")]


def trace_of(result: pytest.RunResult, title: str) -> str:
    """What is shown of the failure with this title, up to what the test has printed and logged."""
    lines = result.outlines
    begin = next(number for number, line in enumerate(lines) if line.strip("_ ") == title and line.startswith("_"))
    end = next(number for number in range(begin + 1, len(lines)) if lines[number].startswith(("---", "===", "___")))
    return "\n".join(lines[begin:end])


def shows_only_the_application(trace: str) -> bool:
    """Whether no frame of the server's, of the plugin's, of pytest's or of pluggy's is shown."""
    foreign = ("trioserve/", "pytest_plugin", "pluggy", "_pytest", "__tracebackhide__", "site-packages", "contextlib")
    return not [word for word in foreign if word in trace]


def without_message(trace: str) -> str:
    """The trace without the text of its error, which may itself tell of tasks and stacks."""
    head, _, _ = trace.partition("\nE ")
    return head
