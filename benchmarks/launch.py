"""Starts a server under test, and stops it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from .servers import Server, Variant

PORTS = range(18000, 28000)
START_DEADLINE = 20.0
STOP_DEADLINE = 10.0


@dataclass(frozen=True)
class Running:
    """A server that accepts connections."""

    pid: int
    url: str  # ends with a slash


@contextmanager
def running(server: Server, variant: Variant, certificates: Path) -> Iterator[Running]:
    """Start a server, wait until it accepts connections, and stop it in the end.

    Raises RuntimeError with what the server said if it ends or does not accept within START_DEADLINE.
    """
    port = free_port()
    command = server.command(
        variant, PORT=str(port), CERT=str(certificates / "cert.pem"), KEY=str(certificates / "key.pem")
    )
    process = None
    with TemporaryFile() as output:
        try:
            with signals_held_back():  # or Ctrl-C at this moment would leave a process that we do not know yet
                # In a session of its own, so that Ctrl-C reaches only us, who then stop it in order.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            wait_until_accepting(server, process, port, output)
            yield Running(process.pid, f"{'https' if variant.tls else 'http'}://127.0.0.1:{port}/")
        finally:
            if process is not None:
                with signals_held_back():
                    stop(process)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Hear SIGINT and SIGTERM only at the end of this block, of which nothing is then left out.

    Blocking them would not do, since a process that is started meanwhile would inherit that.
    """
    heard: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: heard.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


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
    process.terminate()
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group is still its own, as nobody has reaped its leader
        process.wait()
