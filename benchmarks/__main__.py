"""The command: runs every server in turn, several times, and prints the table."""

from __future__ import annotations

import argparse
import shutil
import sys

from .measure import Sample, measure
from .servers import SERVERS, Server, running
from .table import report

QUICK_ROUNDS, QUICK_SECONDS = 2, 2
WARM_UP = 1  # seconds of load before each measurement


def main() -> None:
    """Read the command line, measure, print."""
    options = parse_arguments()
    if shutil.which("wrk") is None:
        sys.exit("The benchmarks need wrk: `apt-get install wrk`, `brew install wrk`, or https://github.com/wg/wrk")
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmarks read CPU times from /proc, which only Linux has")
    servers = [server for server in SERVERS if not options.only or server.name in options.only]
    results = run_rounds(servers, options.rounds, options.seconds)
    print(report(results, options.rounds, options.seconds))


def parse_arguments() -> argparse.Namespace:
    """``rounds``, ``seconds`` and ``only``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure trioserve beside its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured (default: 5)")
    parser.add_argument("--seconds", type=int, default=5, help="seconds of each measurement (default: 5)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS} s")
    parser.add_argument(
        "--only", action="append", choices=[server.name for server in SERVERS], help="measure this one; repeatable"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = QUICK_ROUNDS, QUICK_SECONDS
    if options.rounds < 1 or options.seconds < 1:
        parser.error("at least one round of one second")
    return options


def run_rounds(servers: list[Server], rounds: int, seconds: int) -> dict[Server, list[Sample]]:
    """Measure the servers in turn; every round begins with another one, so that none always has the same neighbour."""
    results: dict[Server, list[Sample]] = {server: [] for server in servers}
    for number in range(rounds):
        first = number % len(servers)
        for server in servers[first:] + servers[:first]:
            sample = run_once(server, seconds)
            results[server].append(sample)
            line = f"{sample.cpu_per_request:6.1f} µs CPU per request, {sample.requests_per_second:7.0f} requests/s"
            print(f"round {number + 1}/{rounds}  {server.name:20} {line}", file=sys.stderr)
    return results


def run_once(server: Server, seconds: int) -> Sample:
    """Start one server, warm it up, measure it, stop it."""
    with running(server) as started:
        measure(started.pid, started.url, WARM_UP)
        return measure(started.pid, started.url, seconds)


if __name__ == "__main__":
    main()
