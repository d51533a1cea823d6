"""The server as its user starts it: one program, whose output is read and whose processes are looked at."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trustme

from ..programs import ProcessStatus
from .app import FOLDER, LIMIT
from .control import memory_of, socket_of
from .http_client import Address
from .output import Output

ROOT = Path(__file__).parents[2]

ACCESS = "access.log"
"""The file with what the server wrote on its standard output."""

START_PATIENCE = 60.0
_QUESTION_PATIENCE = 30.0
_LAST_WORDS = 5.0  # seconds for what it has left in its pipe
_INHERITED = ("TRIOSERVE_", "WEB_CONCURRENCY")  # what is set for somebody else's server


@dataclass(frozen=True)
class Settings:
    """How the server is run. ``limit``: seconds that an event loop may be blocked, or a thread stand still."""

    options: Mapping[str, object]
    workers: int
    limit: float


@dataclass(frozen=True)
class Figures:
    """What a worker tells of itself. Memory is in MiB, lag in seconds."""

    pid: int
    tasks: int
    peak_tasks: int
    threads: int
    descriptors: list[str]
    objects: int
    blocks: int
    memory: float
    lag: float
    """The most that its event loop has ever been late."""
    types: Mapping[str, int]


@dataclass
class Served:
    """The running server, and what the driver can do to it."""

    process: trio.Process
    folder: Path
    output: Output
    addresses: list[Address] = field(default_factory=list)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def workers(self) -> set[int]:
        """The processes it has started, and that run."""
        return {one.pid for one in ProcessStatus.all() if one.parent == self.process.pid and one.state != "Z"}

    @property
    def ready(self) -> set[int]:
        """Workers that have started the application."""
        return {pid for pid in self.workers if socket_of(self.folder, pid).exists()}

    async def wait_for_ready(self, count: int) -> None:
        """Wait until at least so many are ready."""
        with trio.fail_after(START_PATIENCE):
            while len(self.ready) < count:
                await trio.sleep(0.05)

    async def wait_for_workers(self, count: int) -> set[int]:
        """Wait until there are so many, and all are ready."""
        with trio.fail_after(START_PATIENCE):
            while len(found := self.workers) != count or found != self.ready:
                await trio.sleep(0.05)
        return found

    @property
    def group(self) -> set[int]:
        """All that run of its process group."""
        return {one.pid for one in ProcessStatus.all() if one.group == self.process.pid and one.state != "Z"}

    def memory(self) -> dict[int, float]:
        """MiB of each of its processes."""
        return {pid: memory_of(pid) for pid in self.group}

    async def ask(self, pid: int) -> Figures:
        """The figures of a worker; raises OSError if it has ended."""
        return await ask_worker(self.folder, pid)


async def ask_worker(folder: Path, pid: int) -> Figures:
    """The figures of a worker whose socket is in this folder; raises OSError if it has ended."""
    data = b""
    with trio.fail_after(_QUESTION_PATIENCE):
        async with await trio.open_unix_socket(str(socket_of(folder, pid))) as stream:
            async for piece in stream:
                data += piece
    if not data:
        raise ConnectionResetError(f"worker {pid} has ended")
    return Figures(**json.loads(data))


@asynccontextmanager
async def served(settings: Settings, folder: Path) -> AsyncIterator[Served]:
    """Start the server, and wait until it listens; neither it nor what it starts outlives the block."""
    authority = trustme.CA()
    certificate = folder / "certificate.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with trio.open_nursery() as nursery:
        process = await _start(settings, folder, certificate)
        output = Output()
        try:
            assert process.stderr is not None
            nursery.start_soon(output.read, process.stderr)
            server = Served(process, folder, output)
            await _find_addresses(server, context)
            yield server
        except BaseException:
            print("the end of the server's log:", *output.lines[-30:], sep="\n", file=sys.stderr)
            raise
        finally:
            for pid in server.group:
                os.kill(pid, signal.SIGKILL)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_WORDS):
                await process.wait()
                await output.ended.wait()
            nursery.cancel_scope.cancel()


async def _start(settings: Settings, folder: Path, certificate: Path) -> trio.Process:
    options = {
        **settings.options,
        "workers": settings.workers,
        "port": 0,
        "insecure_bind": "127.0.0.1:0",
        "ssl_certfile": certificate,
        "log_format": "json",
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}
    # One arena: what a thread has freed can be given back, and is no growth.
    variables |= {FOLDER: str(folder), LIMIT: str(settings.limit), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "trioserve", "tests.stress.app:app", *words]
    with (folder / ACCESS).open("wb") as access:
        return await trio.lowlevel.open_process(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=access,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


async def _find_addresses(server: Served, context: ssl.SSLContext) -> None:
    with trio.fail_after(START_PATIENCE):
        while len(found := server.output.urls) < 2:
            if server.process.poll() is not None:
                raise RuntimeError("the server has not started:\n" + "\n".join(server.output.lines))
            await trio.sleep(0.05)
    for scheme, port in found:
        server.addresses.append(Address("127.0.0.1", port, context if scheme == "https" else None))
