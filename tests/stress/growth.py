"""What must not grow, and how much may: a worker's figures before a load and after it, when all clients have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .program import Figures

MEMORY = 3.0
"""MiB that a worker may grow by in a load, once it has been under the same load before.

Of this, of objects and of blocks a third was seen at the most, in ten runs of thirty seconds and one of five minutes.
"""

OBJECTS = 1000
"""The same for objects of the garbage collector: caches fill up, of regular expressions and of lines of source."""

BLOCKS = 4000
"""The same for all blocks of Python's memory."""

THREADS = 5
"""Threads of Trio's pool that may be left for ten seconds: four for the application, and one of the server's."""


def judge_end(fresh: Figures, now: Figures) -> list[str]:
    """What is left of a load, by the figures of the worker when it was new."""
    found = []
    if now.tasks != fresh.tasks:
        found.append(f"worker {now.pid}: {now.tasks} tasks are left, {fresh.tasks} were there before")
    descriptors = Counter(now.descriptors), Counter(fresh.descriptors)
    if descriptors[0] != descriptors[1]:
        more, fewer = descriptors[0] - descriptors[1], descriptors[1] - descriptors[0]
        found.append(f"worker {now.pid}: descriptors are left: {dict(more)}, and missing: {dict(fewer)}")
    if now.threads > fresh.threads + THREADS:
        found.append(f"worker {now.pid}: {now.threads} threads are left, {fresh.threads} were there before")
    return found


def judge_growth(first: Figures, second: Figures) -> list[str]:
    """What has grown from the end of one load to the end of the next."""
    found = []
    for name, allowed in (("memory", MEMORY), ("objects", OBJECTS), ("blocks", BLOCKS)):
        before, after = getattr(first, name), getattr(second, name)
        if after - before > allowed:
            found.append(
                f"worker {second.pid}: {name} grew from {before:g} to {after:g}; {_describe_growth(first, second)}"
            )
    return found


def _describe_growth(first: Figures, second: Figures) -> str:
    more = Counter(second.types)
    more.subtract(first.types)
    return ", ".join(f"{count} more {name}" for name, count in more.most_common(12) if count > 0)


def judge_pairs(first: Iterable[Figures], second: Iterable[Figures]) -> list[str]:
    """The same for several workers, which must be the same in both."""
    before, after = ({one.pid: one for one in figures} for figures in (first, second))
    if before.keys() != after.keys():
        return [f"workers {sorted(before)} became {sorted(after)}, and nobody had told them"]
    return [reason for pid in before for reason in judge_growth(before[pid], after[pid])]
