"""What an idle connection costs: ``python -m benchmarks.memory``. Memory of each, and CPU time of those that are busy.

Many clients send one request each, read the answer and stay. The server is a process of its own, so that what it grows
by is its own; wrk then keeps other connections busy, as it did before.
"""

from __future__ import annotations

import argparse
import resource
import socket
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .measure import REQUESTS
from .servers import SERVERS, Running, running

REQUEST = b"GET / HTTP/1.1\r\nHost: idle\r\n\r\n"
SPARE = 200  # descriptors that a process needs beside its connections
WARM_UP = 256  # connections that come and go first, so that what the server makes once is there


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000, help="idle ones (default: 10,000)")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of the CPU time (default: 10)")
    parser.add_argument("--seconds", type=int, default=1, help="seconds of each (default: 1)")
    parser.add_argument("--only", action="append", metavar="SERVER", help="measure this one; repeatable")
    options = parser.parse_args()
    count = raise_limit(options.connections)
    for server in SERVERS:
        if not options.only or server.name in options.only:
            with running(server) as lonely, running(server) as crowded:
                memory = measure_memory(crowded, count)
                with idle_clients(crowded.url, count):
                    times = [measure_times(lonely, crowded, options.seconds) for _ in range(options.rounds)]
            print(f"{server.name}: {memory / 1024:.1f} KiB for each of {count} idle connections; {compare(times)}")


def raise_limit(connections: int) -> int:
    """Allow this process, and the server that inherits it, so many; how many there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < wanted:
        print(f"only {limit - SPARE} connections: the limit of descriptors is {hard}", file=sys.stderr)
    return limit - SPARE


def measure_memory(server: Running, count: int) -> float:
    """Bytes that an idle connection makes the server grow by."""
    with idle_clients(server.url, WARM_UP):
        pass
    before = resident(server.pid)
    with idle_clients(server.url, count):
        return (resident(server.pid) - before) / count


def measure_times(lonely: Running, crowded: Running, seconds: int) -> tuple[float, float]:
    """Microseconds of CPU per request without and with idle connections, one at once after the other."""
    one, other = (REQUESTS.measure(server.pid, server.url, seconds).cpu for server in (lonely, crowded))
    return one, other


def compare(times: Sequence[tuple[float, float]]) -> str:
    """What busy connections cost, alone and beside idle ones."""
    alone, beside = (statistics.median(one) for one in zip(*times, strict=True))
    ratio = statistics.median(two / one for one, two in times)
    return f"{alone:.1f} µs CPU per request without them, {beside:.1f} µs beside them, {ratio:.2f} times as much"


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@contextmanager
def idle_clients(url: str, count: int) -> Iterator[None]:
    """So many connections that have each had an answer, and wait."""
    parts = urlsplit(url)
    with ExitStack() as opened:
        for _ in range(count):
            client = opened.enter_context(
                socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), 30)
            )
            client.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"Hello, world!"):
                answer += receive(client)
        yield


def receive(client: socket.socket) -> bytes:
    """Receive what is there; raises ConnectionError at the end."""
    data = client.recv(65536)
    if not data:
        raise ConnectionResetError("the server closed an idle connection")
    return data


if __name__ == "__main__":
    main()
