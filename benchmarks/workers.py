"""What several workers make of two cores: requests, new connections, and how evenly these are shared."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .measure import CONNECTIONS, WARM_UP, Requests, Sample, Workload, run_wrk, take_sample
from .processes import cpu_time
from .servers import Server
from .table import commands, machine, markdown, spread

TRIES = 60  # requests without an unknown worker after which all are taken to be known
Counts = dict[int, tuple[int, int]]  # of each worker: accepted, found nothing


@dataclass(frozen=True)
class Shares(Sample):
    """A sample of new connections. ``busiest`` is the share of the worker that accepted most, ``empty`` how often a
    worker looked for a connection and found none, per connection.
    """

    busiest: float
    empty: float


@dataclass(frozen=True)
class Connections:
    """HTTP requests by wrk, each on a connection of its own."""

    unit: ClassVar[str] = "connection"
    name: str = "new connections"

    def measure(self, pid: int, url: str, seconds: int) -> Sample:
        """See Workload."""
        close = ("--header", "Connection: close")
        run_wrk(url, WARM_UP, *close)
        counts = ask_counts(url)
        before = cpu_time(pid)
        output = run_wrk(url, seconds, *close)
        sample = take_sample(output, cpu_time(pid) - before)
        later = ask_counts(url)
        accepted = [later[one][0] - counts.get(one, (0, 0))[0] for one in later]
        empty = [later[one][1] - counts.get(one, (0, 0))[1] for one in later]
        return Shares(**vars(sample), busiest=max(accepted) / sum(accepted), empty=sum(empty) / sum(accepted))


KEPT: Workload = Requests("kept connections")
NEW: Workload = Connections()
WORKLOADS = (KEPT, NEW)
Results = Mapping[Workload, Mapping[Server, Sequence[Sample]]]


def ask_counts(url: str) -> Counts:
    """The counts of every worker that answers."""
    found: Counts = {}
    unheard = 0
    while unheard < TRIES:
        with urllib.request.urlopen(f"{url}accepts", timeout=10) as answer:  # noqa: S310 - it is ours
            values = json.load(answer)
        unheard = unheard + 1 if values["pid"] in found else 0
        found[values["pid"]] = (values["accepted"], values["empty"])
    return found


def report(results: Results, rounds: int, seconds: int) -> str:
    """The whole report."""
    kept, new = results[KEPT], results[NEW]
    rows = (
        (
            server.name,
            spread(kept[server], lambda sample: sample.cpu, 1),
            spread(kept[server], lambda sample: sample.rate, 0),
            spread(new[server], lambda sample: sample.cpu, 1),
            spread(new[server], lambda sample: sample.rate, 0),
            spread(new[server], lambda sample: shares(sample).busiest, 2),
            spread(new[server], lambda sample: shares(sample).empty, 2),
            str(sum(sample.errors for sample in [*kept[server], *new[server]])),
        )
        for server in kept
    )
    header = (
        "server",
        "CPU µs per request, kept connections",
        "requests/s",
        "CPU µs per request, new connection each",
        "connections/s",
        "share of the busiest worker",
        "accepts that found nothing, per connection",
        "errors",
    )
    conditions = (
        f"Medians of {rounds} rounds of {seconds} s in turn, with the least and the most; {CONNECTIONS} connections "
        "over loopback, which wrk makes on one of the cores. CPU is user and system time of all the server's "
        f"processes. {', '.join(dict.fromkeys(f'{one.package} {one.version}' for one in kept))}, {machine()}"
    )
    return "\n\n".join((markdown(header, rows), conditions, commands(kept)))


def shares(sample: Sample) -> Shares:
    """The sample as the one of new connections that it is."""
    assert isinstance(sample, Shares)
    return sample
