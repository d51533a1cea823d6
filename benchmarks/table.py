"""Shows what was measured, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from statistics import median

from .measure import CONNECTIONS, Sample
from .servers import SERVERS, Server

Results = Mapping[Server, Sequence[Sample]]
Figure = Callable[[Sample], float]


def report(results: Results, rounds: int, seconds: int) -> str:
    """The whole report: the figures, the ratios, and what was run."""
    conditions = (
        f"Medians of {rounds} rounds of {seconds} s in turn, with the least and the most; {CONNECTIONS} keep-alive "
        "connections over loopback, `Hello, world!`, no access log. CPU is user and system time of all the server's "
        f"processes. {machine()}"
    )
    parts = (figures(results), ratios(results), conditions, commands(results))
    return "\n\n".join(part for part in parts if part)


def figures(results: Results) -> str:
    """One line per server."""
    return markdown(
        ("server", "CPU µs per request", "requests/s", "p50 ms", "p99 ms", "errors"),
        (
            (
                shown(server),
                spread(samples, lambda sample: sample.cpu, 1),
                spread(samples, lambda sample: sample.rate, 0),
                spread(samples, lambda sample: sample.p50, 1),
                spread(samples, lambda sample: sample.p99, 1),
                count_errors(samples),
            )
            for server, samples in results.items()
        ),
    )


def ratios(results: Results) -> str:
    """How the first server stands to each peer."""
    ours, *peers = results
    if ours != SERVERS[0] or not peers:
        return ""
    return markdown(
        (f"{ours.name} to", "CPU per request", "requests/s"),
        (
            (
                peer.name,
                ratio(results[ours], results[peer], lambda sample: sample.cpu),
                ratio(results[ours], results[peer], lambda sample: sample.rate),
            )
            for peer in peers
        ),
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column holds names and whose others hold figures."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def shown(server: Server) -> str:
    """A server as the first column names it."""
    return f"{server.name} {server.version}"


def count_errors(samples: Iterable[Sample]) -> str:
    """The errors of all these runs."""
    return str(sum(sample.errors for sample in samples))


def machine() -> str:
    """What everything ran on."""
    return (
        f"{platform.python_implementation()} {platform.python_version()}, Trio {version('trio')}, "
        f"h11 {version('h11')}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}."
    )


def commands(servers: Iterable[Server]) -> str:
    """The command line of each server."""
    return "\n".join(f"- `{server.command}`" for server in servers)


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], value: Figure) -> str:
    """How one figure stands to another.

    Ratios are taken within a round, since the machine's mood changes from one to the next.
    """
    return span([value(our) / value(their) for our, their in zip(ours, theirs, strict=True)], 2)


def spread(samples: Sequence[Sample], value: Figure, digits: int) -> str:
    """Median, least and most of one figure."""
    return span([value(sample) for sample in samples], digits)


def span(values: Sequence[float], digits: int) -> str:
    """Median (least-most)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
