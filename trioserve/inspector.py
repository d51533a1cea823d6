"""What a process is doing, as text: the tasks of its event loop and the stacks of its threads.

Both may be asked for from any thread, whether the event loop is blocked, waiting or running. What is told of a loop
that goes on meanwhile is no picture of one moment: a task that moves can be missed or told twice.
"""

from __future__ import annotations

import linecache
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import trio

from .calls import Call, calls_of

TASK_LIMIT = 2000
"""Tasks that are shown with where they wait; of the others, what is noted of them, and how many they are."""

FRAME_LIMIT = 12
"""Frames shown of each task, the innermost. A wait for a socket takes eight of them inside Trio."""

# Trio's root task nests three nurseries: that of TrioToken.run_sync_soon, that of the system tasks, that of main.
SYSTEM_NURSERIES = 2
_SYSTEM_TASK_LIMIT = 20


@dataclass(frozen=True)
class Place:
    """A task in the tree. ``nursery`` says which of its parent's nurseries it is in, if that has several."""

    depth: int
    task: trio.lowlevel.Task
    nursery: str

    @property
    def is_running(self) -> bool:
        return self.task.coro.cr_running


Notes = Mapping[trio.lowlevel.Task, str]
"""What tasks are for, in words, where there is more to say than their names."""


def format_task_tree(root: trio.lowlevel.Task, notes: Notes | None = None) -> str:
    """Describe all tasks under Trio's root task: each in a line, below it where it waits, the innermost frame last.

    ``root`` is what ``trio.lowlevel.current_root_task()`` returns in the event loop. The line of a task that waits for
    its children is that of the nursery's ``async with``. A running task has no place where it waits: it says
    "running", and the stack of the event loop's thread says the rest. Of system tasks there are only the names.
    """
    notes = notes or {}
    nurseries = root.child_nurseries
    places = walk(nurseries[SYSTEM_NURSERIES:])
    lines = ["Tasks, each with where it waits, the most recent call last:"]
    for place in islice(places, TASK_LIMIT):
        lines += _describe_task(place, notes)
    # The rest of the same walk. One of them may be the one that the reader is after.
    rest = list(places)
    if rest:
        lines.append(f"... and {len(rest)} more")
        lines += [_describe_briefly(place, notes) for place in rest if place.is_running or place.task in notes]
    system = [name_of(child.task) for child in children_in(nurseries[:SYSTEM_NURSERIES], 0)]
    more = f", and {len(system) - _SYSTEM_TASK_LIMIT} more" if len(system) > _SYSTEM_TASK_LIMIT else ""
    lines.append(f"System tasks: {', '.join(system[:_SYSTEM_TASK_LIMIT])}{more}")
    return "\n".join(lines)


def describe_running(root: trio.lowlevel.Task, notes: Notes) -> str | None:
    """Say which task runs, by what is noted of it or of the nearest task above it, else by its name.

    None if none does, as when the event loop itself runs. ``root`` as for format_task_tree.
    """
    # System tasks, too: what is sent to the event loop from other threads is called by one.
    running = next((place.task for place in walk(root.child_nurseries) if place.is_running), None)
    task = running
    while task is not None:
        if task in notes:
            return notes[task]
        task = None if task.parent_nursery is None else task.parent_nursery.parent_task
    return None if running is None else f"the task {name_of(running)}"


def walk(nurseries: Sequence[trio.Nursery]) -> Iterator[Place]:
    """All tasks in these nurseries, each before its children."""
    # Not recursive: nurseries nest as deep as programs like.
    ahead = children_in(nurseries, 0)
    while ahead:
        place = ahead.pop()
        yield place
        ahead += children_in(place.task.child_nurseries, place.depth + 1)[::-1]


def children_in(nurseries: Sequence[trio.Nursery], depth: int) -> list[Place]:
    found = []
    for number, nursery in enumerate(nurseries, 1):
        words = f" (nursery {number} of {len(nurseries)})" if len(nurseries) > 1 else ""
        # Trio keeps a set and hands out a copy. Copying a set runs no Python code, so the event loop, which may be
        # running in its own thread, cannot change it in between.
        tasks = sorted(nursery.child_tasks, key=name_of)
        found += [Place(depth, task, words) for task in tasks]
    return found


def name_of(task: trio.lowlevel.Task) -> str:
    """Its name, on one line."""
    # A name is any text of the application's: without the escapes of repr() it could be several lines.
    return repr(task.name)[1:-1]


def _describe_briefly(place: Place, notes: Notes) -> str:
    note = notes.get(place.task)
    return f"{'running: ' if place.is_running else '- '}{name_of(place.task)}{'' if note is None else ': ' + note}"


def _describe_task(place: Place, notes: Notes) -> list[str]:
    margin = "  " * place.depth
    note = notes.get(place.task)
    lines = [f"{margin}- {name_of(place.task)}{place.nursery}{'' if note is None else ': ' + note}"]
    if place.is_running:
        return [*lines, f"{margin}    running"]
    calls = calls_of(place.task)
    if len(calls) > FRAME_LIMIT:
        lines.append(f"{margin}    ...")
    return lines + [f"{margin}    {call}" for call in calls[-FRAME_LIMIT:]]


def format_thread_stacks() -> str:
    """Describe what every thread is doing, the main thread first; the thread that asks is left out."""
    lines = ["Threads, the most recent call last:"]
    for thread in name_stacks(take_stacks()):
        lines.append(f"- {thread.name}")
        for call in thread.calls:
            source = linecache.getline(call.code.co_filename, call.line or 0, call.module).strip()
            lines.append(f"    {call}{': ' if source else ''}{source}")
    return "\n".join(lines)


@dataclass(frozen=True)
class ThreadStack:
    """The calls that a thread is in, the innermost last."""

    name: str
    calls: Sequence[Call]


def name_stacks(stacks: Mapping[int, Sequence[Call]]) -> list[ThreadStack]:
    """What take_stacks has found, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    ordered = sorted(stacks, key=lambda one: one != main)
    # A thread that was not started from Python has no name.
    return [ThreadStack(str(names.get(one, one)), stacks[one][::-1]) for one in ordered]


def take_stacks() -> dict[int, list[Call]]:
    """The calls that all threads but this one are in, innermost first, by the threads' identifiers."""
    # All at once, before anything is done with them: reading a source file lets the other threads run on.
    frames = sys._current_frames()
    # Our own would also make a cycle with this call's variables, and keep whatever they refer to.
    del frames[threading.get_ident()]
    return {identifier: [Call.of(*one) for one in traceback.walk_stack(top)] for identifier, top in frames.items()}
