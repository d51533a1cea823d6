"""One measurement: the load's figures, and the CPU time the server's processes used meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar, Protocol

from .processes import cpu_time

CONNECTIONS = 64
WARM_UP = 1  # seconds of load before each measurement
MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


@dataclass(frozen=True)
class Sample:
    """One run of a load against one server; an exchange is a request or a message with its answer."""

    cpu: float  # µs per exchange
    rate: float  # exchanges per second
    p50: float  # ms
    p99: float  # ms
    errors: int  # failed exchanges


class Workload(Protocol):
    """What servers are loaded with."""

    unit: ClassVar[str]

    @property
    def name(self) -> str:
        """What distinguishes it from others measured in the same run."""
        ...

    def measure(self, pid: int, url: str, seconds: int) -> Sample:
        """Warm up the server with this pid, then load it for some seconds."""
        ...


@dataclass(frozen=True)
class Requests:
    """HTTP requests, made by wrk."""

    unit: ClassVar[str] = "request"
    name: str = ""

    def measure(self, pid: int, url: str, seconds: int) -> Sample:
        """See Workload."""
        run_wrk(url, WARM_UP)
        before = cpu_time(pid)
        output = run_wrk(url, seconds)
        used = cpu_time(pid) - before
        return take_sample(output, used)


@dataclass(frozen=True)
class Echo:
    """WebSocket messages that are echoed, sent by ``benchmarks.load``."""

    unit: ClassVar[str] = "message"
    size: int
    deflate: bool = False

    @property
    def name(self) -> str:
        """See Workload."""
        return f"{self.size_shown}{' deflate' if self.deflate else ''}"

    @property
    def size_shown(self) -> str:
        """The size as people write it."""
        return f"{self.size >> 10} KiB" if self.size >= 1 << 10 else f"{self.size} B"

    def measure(self, pid: int, url: str, seconds: int) -> Sample:
        """See Workload. Raises RuntimeError with what the load generator said if it fails."""
        command = [sys.executable, "-m", "benchmarks.load", url, f"--pid={pid}", f"--size={self.size}"]
        command += [f"--warm-up={WARM_UP}", f"--seconds={seconds}", *(["--deflate"] if self.deflate else [])]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=WARM_UP + seconds + 60)
        if done.returncode:
            raise RuntimeError(f"{self.name}: the load generator failed:\n{done.stderr.strip()}")
        sys.stderr.write(done.stderr)
        return Sample(**json.loads(done.stdout))


REQUESTS = Requests()
ECHOES = tuple(Echo(size, deflate) for size in (16, 1 << 10, 1 << 16) for deflate in (False, True))


def take_sample(output: str, used: float) -> Sample:
    """What wrk printed, and the microseconds of CPU that the server used meanwhile."""
    requests = int(find(r"(\d+) requests in", output))
    return Sample(
        cpu=used / requests if requests else float("inf"),
        rate=float(find(r"Requests/sec:\s+([\d.]+)", output)),
        p50=latency(50, output),
        p99=latency(99, output),
        errors=count_errors(output),
    )


def run_wrk(url: str, seconds: int, *more: str) -> str:
    """Run wrk and return what it printed."""
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", "--latency", *more, url]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout


def find(pattern: str, output: str) -> str:
    """Return the first group of the pattern."""
    found = re.search(pattern, output)
    if found is None:
        raise RuntimeError(f"wrk printed no {pattern!r}:\n{output}")
    return found[1]


def latency(percentile: int, output: str) -> float:
    """Read a line of wrk's latency distribution, as milliseconds."""
    text = find(rf"\b{percentile}%\s+([\d.]+(?:us|ms|s|m))\b", output)
    number = text.rstrip("ums")
    return float(number) * MICROSECONDS[text.removeprefix(number)] / 1e3


def count_errors(output: str) -> int:
    """Count wrk's socket errors and its answers other than 2xx and 3xx."""
    sockets = re.search(r"Socket errors: (.*)", output)
    statuses = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    counts = re.findall(r"\d+", sockets[1]) if sockets else []
    return sum(map(int, counts)) + (int(statuses[1]) if statuses else 0)
