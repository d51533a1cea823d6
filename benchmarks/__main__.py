"""The command: runs every server in turn, several times, and prints the tables."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import TypeVar

from . import echo_table, table, workers
from .measure import ECHOES, REQUESTS, Sample, Workload
from .servers import SERVERS, WEBSOCKET_SERVERS, WORKER_SERVERS, Server, running

QUICK_ROUNDS, QUICK_SECONDS = 2, 2
SUBJECTS = {"http": SERVERS, "websocket": WEBSOCKET_SERVERS, "workers": WORKER_SERVERS}
W = TypeVar("W", bound=Workload)


def main() -> None:
    """Read the command line, measure, print."""
    options = parse_arguments()
    if options.subject != "websocket" and shutil.which("wrk") is None:
        sys.exit("The benchmarks need wrk: `apt-get install wrk`, `brew install wrk`, or https://github.com/wg/wrk")
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmarks read CPU times from /proc, which only Linux has")
    servers = [server for server in SUBJECTS[options.subject] if not options.only or server.name in options.only]
    if options.subject == "http":
        results = run_rounds([REQUESTS], servers, options.rounds, options.seconds)[REQUESTS]
        print(table.report(results, options.rounds, options.seconds))
    elif options.subject == "workers":
        shared = run_rounds(workers.WORKLOADS, servers, options.rounds, options.seconds)
        print(workers.report(shared, options.rounds, options.seconds))
    else:
        echoes = run_rounds(ECHOES, servers, options.rounds, options.seconds)
        print(echo_table.report(echoes, options.rounds, options.seconds))


def parse_arguments() -> argparse.Namespace:
    """``subject``, ``rounds``, ``seconds`` and ``only``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure trioserve beside its peers.")
    parser.add_argument(
        "subject",
        nargs="?",
        choices=SUBJECTS,
        default="http",
        help="HTTP requests (default), a WebSocket echo, or several workers",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured (default: 5)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds of each measurement (default: 5)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS} s")
    parser.add_argument("--only", action="append", metavar="SERVER", help="measure this one; repeatable")
    options = parser.parse_args()
    names = [server.name for server in SUBJECTS[options.subject]]
    for name in options.only or ():
        if name not in names:
            parser.error(f"--only: {name!r} is none of {', '.join(map(repr, names))}")
    if options.quick:
        options.rounds, options.seconds = QUICK_ROUNDS, QUICK_SECONDS
    if options.rounds < 1 or options.seconds < 1:
        parser.error("at least one round of one second")
    return options


def run_rounds(
    workloads: Sequence[W], servers: list[Server], rounds: int, seconds: int
) -> dict[W, dict[Server, list[Sample]]]:
    """Measure the servers in turn; every round begins with another one, so that none always has the same neighbour."""
    results: dict[W, dict[Server, list[Sample]]] = {
        workload: {server: [] for server in servers} for workload in workloads
    }
    for number in range(rounds):
        first = number % len(servers)
        for workload in workloads:
            for server in servers[first:] + servers[:first]:
                sample = run_once(workload, server, seconds)
                results[workload][server].append(sample)
                show(f"round {number + 1}/{rounds}  {server.name:25}", workload, sample)
    return results


def run_once(workload: Workload, server: Server, seconds: int) -> Sample:
    """Start one server, measure it, stop it."""
    with running(server) as started:
        return workload.measure(started.pid, started.url, seconds)


def show(place: str, workload: Workload, sample: Sample) -> None:
    """Print one line of progress."""
    name = f"{workload.name:14} " if workload.name else ""
    figures = f"{sample.cpu:6.1f} µs CPU per {workload.unit}, {sample.rate:7.0f} {workload.unit}s/s"
    busy = sample.cpu * sample.rate / 1e6  # where this is far below 100 %, the load is what limits the rate
    print(f"{place} {name}{figures}, {busy:4.0%} of a core", file=sys.stderr)


if __name__ == "__main__":
    main()
