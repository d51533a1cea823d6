"""The servers under test: their command lines, starting and stopping them."""

from __future__ import annotations

import importlib.metadata
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

from .processes import process_tree

APP = "benchmarks.app:app"
PORTS = range(18000, 28000)
START_DEADLINE = 20.0
STOP_DEADLINE = 20.0


@dataclass(frozen=True)
class Server:
    """A server under test. ``arguments`` follow ``python -m``; PORT in them stands for the port."""

    name: str
    package: str
    arguments: str

    @property
    def command(self) -> str:
        """The command line as it is shown."""
        return f"python -m {self.arguments}"

    def command_for(self, port: int) -> list[str]:
        """The command line that serves on this port, with the Python that runs the benchmarks."""
        return [sys.executable, "-m", *self.arguments.replace("PORT", str(port)).split()]

    @property
    def version(self) -> str:
        """The version that is installed."""
        return version_of(self.package)


def version_of(package: str) -> str:
    """The version of a package that is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # trioserve run in a checkout; a peer that is left out
        return "(not installed)"


def uvicorn_websocket(protocol: str) -> Server:
    """uvicorn with one of its WebSocket implementations, on asyncio's own loop."""
    arguments = f"uvicorn {APP} --port PORT --http h11 --loop asyncio --ws {protocol} --no-access-log"
    return Server(f"uvicorn {protocol}", "uvicorn", arguments)


# Each with its defaults, but without access logs, and with h11 where there is a choice.
SERVERS = (
    Server("trioserve", "trioserve", f"trioserve {APP} --port PORT --http h11 --no-access-log"),
    Server("Hypercorn trio", "hypercorn", f"hypercorn {APP} --bind 127.0.0.1:PORT --worker-class trio"),
    Server("Hypercorn asyncio", "hypercorn", f"hypercorn {APP} --bind 127.0.0.1:PORT --worker-class asyncio"),
    Server("uvicorn h11", "uvicorn", f"uvicorn {APP} --port PORT --http h11 --loop asyncio --no-access-log"),
)
WEBSOCKET_SERVERS = (
    Server("trioserve", "trioserve", f"trioserve {APP} --port PORT --http h11 --no-access-log"),
    Server("Hypercorn trio", "hypercorn", f"hypercorn {APP} --bind 127.0.0.1:PORT --worker-class trio"),
    uvicorn_websocket("wsproto"),
    uvicorn_websocket("websockets-sansio"),
)
ACCEPTS = "benchmarks.accepts:app"
WORKER_SERVERS = tuple(
    Server(name, "trioserve", f"trioserve {ACCEPTS} --port PORT --http h11 --no-access-log{more}")
    for name, more in (
        ("1 worker", ""),
        ("2 workers", " --workers 2"),
        ("2 workers, a listener each", " --workers 2 --reuse-port"),
    )
)


@dataclass(frozen=True)
class Running:
    """A server that accepts connections."""

    pid: int
    url: str


@contextmanager
def running(server: Server) -> Iterator[Running]:
    """Start a server, wait until it accepts connections, and stop it in the end.

    Raises RuntimeError with what the server said if it ends or does not accept within START_DEADLINE.
    """
    port = free_port()
    with TemporaryFile() as output:
        process = subprocess.Popen(
            server.command_for(port), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            wait_until_accepting(server, process, port, output)
            yield Running(process.pid, f"http://127.0.0.1:{port}/")
        finally:
            stop(process)


def free_port() -> int:
    """Find a port that nobody listens on.

    Connecting sockets get theirs from another range, and another run of the benchmarks picks at random too, so it stays
    free until the server takes it.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")


def wait_until_accepting(server: Server, process: subprocess.Popen[bytes], port: int, output: IO[bytes]) -> None:
    """Try to connect until it works."""
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    outcome = "does not accept connections" if process.poll() is None else f"ended with {process.returncode}"
    output.seek(0)
    raise RuntimeError(f"{server.name} {outcome}:\n{output.read().decode(errors='replace').strip()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; if it does not, kill it and its children."""
    tree = process_tree(process.pid)
    process.terminate()
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        for pid in tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
