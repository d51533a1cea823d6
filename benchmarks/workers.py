"""What several workers make of two cores: requests, new connections, and how evenly these are shared."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .measure import CONNECTIONS, WARM_UP, Requests, Sample, Workload, run_wrk, take_sample
from .processes import cpu_time, process_tree
from .servers import Server
from .table import commands, machine, markdown, spread

TRIES = 10_000  # requests in which every worker must have answered one
PACED = 400  # connections that come one after the other
Counts = dict[int, tuple[int, int]]  # of each worker: accepted, found nothing


@dataclass(frozen=True)
class Shares(Sample):
    """A sample of new connections. ``busiest`` is the share of the worker that accepted most, ``empty`` how often a
    worker looked for a connection and found none, per connection, and ``empty_paced`` the same of connections that come
    one after the other, to workers that wait.
    """

    busiest: float
    empty: float
    empty_paced: float


@dataclass(frozen=True)
class Connections:
    """HTTP requests by wrk, each on a connection of its own."""

    unit: ClassVar[str] = "connection"
    name: str = "new connections"

    def measure(self, pid: int, url: str, seconds: int) -> Sample:
        """See Workload."""
        close = ("--header", "Connection: close")
        run_wrk(url, WARM_UP, *close)
        before, used = ask_counts(pid, url), cpu_time(pid)
        sample = take_sample(run_wrk(url, seconds, *close), cpu_time(pid) - used)
        after = ask_counts(pid, url)
        for _ in range(PACED):
            urllib.request.urlopen(url, timeout=10).close()  # noqa: S310 - it is ours
        accepted, empty = difference(after, before)
        paced_accepted, paced_empty = difference(ask_counts(pid, url), after)
        return Shares(
            **vars(sample),
            busiest=max(accepted) / sum(accepted),
            empty=sum(empty) / sum(accepted),
            empty_paced=sum(paced_empty) / sum(paced_accepted),
        )


def difference(after: Counts, before: Counts) -> tuple[list[int], list[int]]:
    """What each worker has accepted in between, and how often it found nothing."""
    workers = after.keys() & before.keys()
    return [after[one][0] - before[one][0] for one in workers], [after[one][1] - before[one][1] for one in workers]


KEPT: Workload = Requests("kept connections")
NEW: Workload = Connections()
WORKLOADS: tuple[Workload, ...] = (KEPT, NEW)
Results = Mapping[Workload, Mapping[Server, Sequence[Sample]]]


def ask_counts(pid: int, url: str) -> Counts:
    """The counts of every worker; raises RuntimeError if one does not answer."""
    workers = process_tree(pid)[1:] or [pid]
    found: Counts = {}
    for _ in range(TRIES):
        with urllib.request.urlopen(f"{url}accepts", timeout=10) as answer:  # noqa: S310 - it is ours
            values = json.load(answer)
        found[values["pid"]] = (values["accepted"], values["empty"])
        if len(found) == len(workers):
            return found
    raise RuntimeError(f"of the workers {workers} only {list(found)} answered")


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
            spread(new[server], lambda sample: shares(sample).empty_paced, 2),
            str(sum(sample.errors for sample in [*kept[server], *new[server]])),
        )
        for server in kept
    )
    header = (
        "trioserve",
        "CPU µs per request, kept connections",
        "requests/s",
        "CPU µs per request, new connection each",
        "connections/s",
        "share of the busiest worker",
        "accepts that found nothing, per connection",
        "the same, one connection at a time",
        "errors",
    )
    conditions = (
        f"Medians of {rounds} rounds of {seconds} s in turn, with the least and the most; {CONNECTIONS} connections "
        "over loopback, which wrk makes on one of the cores. CPU is user and system time of all the server's "
        f"processes. {machine()}"
    )
    return "\n\n".join((markdown(header, rows), conditions, commands(kept)))


def shares(sample: Sample) -> Shares:
    """The sample as the one of new connections that it is."""
    assert isinstance(sample, Shares)
    return sample
