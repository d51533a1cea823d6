"""What the tests of this folder share: outside programs as clients, and patience with real time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import ClientConnection, connect

REPOSITORY = Path(__file__).parents[2]
SERVE = ("-m", "trioserve")
PATIENCE = 20  # seconds for what takes milliseconds on an idle machine


def find_tool(name: str) -> str:
    """The path of a program that CI installs; without it the test fails, because a skipped one is never missed."""
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed: apt-get install {name}"
    return path


@dataclass
class CurlAnswer:
    """What curl printed. ``talk`` is its -v output: heads in both directions."""

    code: int
    body: bytes
    talk: str

    @property
    def status(self) -> int:
        """The final response's; 1xx do not count."""
        lines = [line.split()[2] for line in self.talk.splitlines() if line.startswith("< HTTP/")]
        final = [int(status) for status in lines if not status.startswith("1")]
        assert final, f"curl got no response (exit code {self.code}):\n{self.talk}"
        return final[-1]


def _curl_command(arguments: tuple[str, ...]) -> list[str]:
    return [find_tool("curl"), "-sv", "--noproxy", "*", "--max-time", str(PATIENCE), *arguments]


async def curl(*arguments: str, stdin: bytes = b"") -> CurlAnswer:
    """Run curl beside a server in this event loop."""
    done = await trio.run_process(
        _curl_command(arguments), stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
    )
    return CurlAnswer(done.returncode, done.stdout, done.stderr.decode("latin-1"))


def curl_program(*arguments: str, stdin: bytes = b"") -> CurlAnswer:
    """Run curl against a server in another process."""
    done = subprocess.run(_curl_command(arguments), input=stdin, capture_output=True, check=False)
    return CurlAnswer(done.returncode, done.stdout, done.stderr.decode("latin-1"))


async def wait_until(condition: Callable[[], object]) -> None:
    """Look again and again, for what tells nobody that it has happened."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


async def wait(event: trio.Event) -> None:
    with trio.fail_after(PATIENCE):
        await event.wait()


def websocket_to(url: str, **options: object) -> connect:
    """The websockets client on Trio, past any proxy, without a limit to what it receives and pings of its own."""
    return connect(url, **{"proxy": None, "max_size": None, "ping_interval": None, **options})


async def closing_of(websocket: ClientConnection) -> tuple[int, str] | None:
    """Wait until the server closes; returns the code and the reason that it sent, None if it sent none."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await websocket.recv()
    frame = caught.value.rcvd
    return None if frame is None else (frame.code, frame.reason)
