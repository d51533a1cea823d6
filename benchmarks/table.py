"""Shows what was measured, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from statistics import median

from .measure import CONNECTIONS, Sample
from .servers import SERVERS, Server

Results = Mapping[Server, Sequence[Sample]]


def report(results: Results, rounds: int, seconds: int) -> str:
    """The whole report: the figures, the ratios, and what was run."""
    conditions = (
        f"Medians of {rounds} rounds of {seconds} s in turn, with the least and the most; {CONNECTIONS} keep-alive "
        "connections over loopback, `Hello, world!`, no access log. CPU is user and system time of all the server's "
        f"processes. {platform.python_implementation()} {platform.python_version()}, Trio {version('trio')}, "
        f"h11 {version('h11')}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}."
    )
    parts = (figures(results), ratios(results), conditions, commands(results))
    return "\n\n".join(part for part in parts if part)


def figures(results: Results) -> str:
    """One line per server."""
    lines = [
        "| server | CPU µs per request | requests/s | p50 ms | p99 ms | errors |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for server, samples in results.items():
        cells = [
            f"{server.name} {server.version}",
            spread(samples, lambda sample: sample.cpu_per_request, 1),
            spread(samples, lambda sample: sample.requests_per_second, 0),
            spread(samples, lambda sample: sample.p50, 1),
            spread(samples, lambda sample: sample.p99, 1),
            str(sum(sample.errors for sample in samples)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(results: Results) -> str:
    """How the first server stands to each peer.

    Ratios are taken within a round, since the machine's mood changes from one to the next.
    """
    ours, *peers = results
    if ours != SERVERS[0] or not peers:
        return ""
    lines = [f"| {ours.name} to | CPU per request | requests/s |", "| --- | --: | --: |"]
    for peer in peers:
        pairs = list(zip(results[ours], results[peer], strict=True))
        cpu = [our.cpu_per_request / their.cpu_per_request for our, their in pairs]
        rate = [our.requests_per_second / their.requests_per_second for our, their in pairs]
        lines.append(f"| {peer.name} | {span(cpu, 2)} | {span(rate, 2)} |")
    return "\n".join(lines)


def commands(results: Results) -> str:
    """The command line of each server."""
    return "\n".join(f"- `{server.command}`" for server in results)


def spread(samples: Sequence[Sample], value: Callable[[Sample], float], digits: int) -> str:
    """Median, least and most of one figure."""
    return span([value(sample) for sample in samples], digits)


def span(values: Sequence[float], digits: int) -> str:
    """Median (least-most)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
