"""What several workers make of the cores: new connections, and how evenly these are shared."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, replace

from .launch import Running
from .loads import Requests
from .processes import process_tree
from .results import Sample

TRIES = 10_000  # requests in which every worker must have answered one
PACED = 400  # connections that come one after the other
Counts = dict[int, tuple[int, int]]  # of each worker: accepted, found nothing


@dataclass(frozen=True)
class Shares:
    """HTTP requests by wrk, each on a connection of its own, to ``benchmarks.accepts``.

    The sample has more: ``busiest`` is the share of the worker that accepted most, ``empty`` how often a worker looked
    for a connection and found none, per connection, and ``paced`` the same of connections that come one after the
    other, to workers that wait.
    """

    requests: Requests

    def measure(self, target: Running, seconds: int) -> Sample:
        """See Load."""
        before = ask_counts(target)
        sample = self.requests.measure(target, seconds)
        after = ask_counts(target)
        for _ in range(PACED):
            urllib.request.urlopen(target.url, timeout=10).close()  # noqa: S310 - it is ours
        accepted, empty = difference(after, before)
        paced_accepted, paced_empty = difference(ask_counts(target), after)
        more = {
            "busiest": max(accepted) / sum(accepted),
            "empty": sum(empty) / sum(accepted),
            "paced": sum(paced_empty) / sum(paced_accepted),
        }
        return replace(sample, more=more)

    def expected_seconds(self, seconds: int) -> float:
        """See Load."""
        return self.requests.expected_seconds(seconds) + 0.5


def difference(after: Counts, before: Counts) -> tuple[list[int], list[int]]:
    """What each worker has accepted in between, and how often it found nothing."""
    workers = after.keys() & before.keys()
    return [after[one][0] - before[one][0] for one in workers], [after[one][1] - before[one][1] for one in workers]


def ask_counts(target: Running) -> Counts:
    """The counts of every worker; raises RuntimeError if one does not answer."""
    workers = process_tree(target.pid)[1:] or [target.pid]
    found: Counts = {}
    for _ in range(TRIES):
        with urllib.request.urlopen(f"{target.url}accepts", timeout=10) as answer:  # noqa: S310 - it is ours
            values = json.load(answer)
        found[values["pid"]] = (values["accepted"], values["empty"])
        if len(found) == len(workers):
            return found
    raise RuntimeError(f"of the workers {workers} only {list(found)} answered")
