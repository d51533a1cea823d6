"""What the kernel tells about processes: their CPU time, their memory and their children."""

from __future__ import annotations

import os
from pathlib import Path

TICK = 1e6 / os.sysconf("SC_CLK_TCK")


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


def memory(pid: int) -> int:
    """Bytes of memory that a process and its descendants hold (RSS); what they share counts for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in process_tree(pid)) * page
