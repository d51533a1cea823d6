"""One measurement: wrk's figures, and the CPU time the server's processes used meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 64
MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}
TICK = 1e6 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One run of wrk against one server. Latencies are in milliseconds; ``errors`` counts failed requests."""

    requests: int
    cpu_per_request: float  # µs
    requests_per_second: float
    p50: float
    p99: float
    errors: int


def measure(pid: int, url: str, seconds: int) -> Sample:
    """Load the server with this pid for some seconds."""
    before = cpu_time(pid)
    output = run_wrk(url, seconds)
    used = cpu_time(pid) - before
    requests = int(find(r"(\d+) requests in", output))
    return Sample(
        requests=requests,
        cpu_per_request=used / requests if requests else float("inf"),
        requests_per_second=float(find(r"Requests/sec:\s+([\d.]+)", output)),
        p50=latency(50, output),
        p99=latency(99, output),
        errors=count_errors(output),
    )


def run_wrk(url: str, seconds: int) -> str:
    """Run wrk and return what it printed."""
    command = ["wrk", "--threads=1", f"--connections={CONNECTIONS}", f"--duration={seconds}s", "--latency", url]
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


def cpu_time(pid: int) -> float:
    """Microseconds of CPU, user and system, that a process and its descendants have used."""
    return sum(map(cpu_ticks, process_tree(pid))) * TICK


def cpu_ticks(pid: int) -> int:
    """Clock ticks a process has used; threads that have ended are in it."""
    fields = stat_fields(Path(f"/proc/{pid}/stat"))
    return int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of proc(5)


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat_fields(path)[1])
        except OSError:  # it has just ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    tree = [pid]
    for one in tree:  # grows while it is walked
        tree += children.get(one, [])
    return tree


def stat_fields(path: Path) -> list[str]:
    """The fields of a stat file from the third on; the second, the name, may contain spaces and parentheses."""
    return path.read_text().rpartition(")")[2].split()
