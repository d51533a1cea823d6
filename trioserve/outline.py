"""A snapshot as nested lines of words, for a terminal and for a page: both show the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import PurePath

from .activity import State
from .types import AnyValue, PlainValues


class Style(StrEnum):
    """What a piece of a line is."""

    PLAIN = "plain"
    TITLE = "title"
    FAINT = "faint"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Line:
    """A line, piece by piece, and those below it. There is nothing in the texts that a terminal would obey."""

    pieces: tuple[tuple[str, Style], ...]
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def of(cls, *pieces: tuple[object, Style], lines: Iterable[Line] = ()) -> Line:
        return cls(tuple((printable(str(text)), style) for text, style in pieces if text), list(lines))

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def to_plain(self) -> PlainValues:
        return {
            "pieces": [[text, style.value] for text, style in self.pieces],
            "lines": [one.to_plain() for one in self.lines],
        }


def printable(text: str) -> str:
    """The text, with escapes for whatever is not meant to be looked at."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def format_age(seconds: float | None) -> str:
    """Such as "0.3 s", "12.0 s", "3 min 5 s", "2 h 10 min" or "3 d 4 h"."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    size, unit, below, lesser = next(each for each in units if whole >= each[0])
    return f"{whole // size} {unit} {whole % size // below} {lesser}"


def format_bytes(count: int) -> str:
    """Such as "812 B", "1.5 KiB" or "3.0 GiB"."""
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}" if power else f"{count} B"


def outline(snapshot: PlainValues) -> Line:
    """The lines of a process."""
    if "error" in snapshot:
        text = f"{snapshot['kind']} {snapshot['pid']}"
        return Line.of((text, Style.TITLE), (f"  {snapshot['error']}", Style.BAD))
    title = [
        (f"{snapshot['kind']} {snapshot['pid']}", Style.TITLE),
        (f"  {snapshot['app']}", Style.PLAIN),
        (f"  {snapshot['phase']}, {format_age(snapshot['age'])}", Style.FAINT),
    ]
    if snapshot["kind"] != "worker":
        title.append((f", trioserve {snapshot['version']}", Style.FAINT))
    return Line.of(*title, lines=_body(snapshot))


def _body(snapshot: PlainValues) -> Iterator[Line]:
    loop = snapshot.get("loop")
    if loop is not None and not loop["runs"]:
        yield from _blockage(loop)
    if "statistics" in snapshot:
        yield _figures(snapshot["statistics"])
    if "workers" in snapshot:
        yield from (Line.of((url, Style.GOOD)) for url in snapshot["urls"])
        yield from map(outline, snapshot["workers"])
    if "connections" in snapshot:
        yield from _connections(snapshot)
    if "tasks" in snapshot:
        yield from _tasks(snapshot["tasks"])
    if "threads" in snapshot:
        shown = [Line.of((one["name"], Style.PLAIN), lines=_stack(one["stack"])) for one in snapshot["threads"]]
        yield Line.of(("threads", Style.TITLE), (", the most recent call last", Style.FAINT), lines=shown)


def _blockage(loop: PlainValues) -> Iterator[Line]:
    what = f", what runs is {loop['running']}" if loop["running"] else ""
    words = f"the event loop does not run, for {format_age(loop['seconds'])} at least{what}"
    yield Line.of((words, Style.BAD), (_at(loop["at"]), Style.BAD))


def _figures(figures: PlainValues) -> Line:
    since = f" ({figures['requests_total']:,} since the start)"
    words = [
        f"requests {figures['requests']:,}{since}",
        f"WebSockets {figures['websockets']:,}",
        *([f"refused {sum(figures['rejected'].values()):,}"] if figures["rejected"] else []),
        *([f"application errors {figures['application_errors']:,}"] if figures["application_errors"] else []),
        *([f"event loop late by at most {figures['loop_lag_max']:.3f} s"] if figures["loop_lag_max"] else []),
    ]
    return Line.of((", ".join(words), Style.PLAIN))


# Connections

_SERVES = (State.SERVES, State.WEBSOCKET, State.BEHIND)


def _connections(snapshot: PlainValues) -> Iterator[Line]:
    connections = snapshot["connections"]
    for one in snapshot["listeners"]:
        name = one["url"] or one["address"]
        yield Line.of((name, Style.GOOD), (f"  {_count(one['connections'], 'connection')}", Style.FAINT))
    states = connections["by_state"]
    if not states:
        yield Line.of(("no connections", Style.FAINT))
        return
    words = ", ".join(f"{count:,} {state}" for state, count in states.items())
    shown = [_connection(one) for one in connections["shown"]]
    if more := connections["open"] - len(shown):
        shown.append(Line.of((f"... and {more:,} more", Style.FAINT)))
    head = (f"connections {connections['open']:,}", Style.TITLE)
    yield Line.of(head, (f": {words}", Style.FAINT), lines=shown)


def _connection(one: PlainValues) -> Line:
    state = one["state"]
    tls = " TLS" if one["tls"] else ""
    words = f"  {state} {format_age(one['state_age'])}"
    requests = f", {_count(one['requests'], 'request')} in {format_age(one['age'])}{tls}"
    style = Style.PLAIN if state in _SERVES else Style.FAINT
    # Of the task of one that serves nothing there is nothing to tell that the state does not.
    tasks = [task for task in one["tasks"] if "exchange" in task or not is_own(task)]
    stacked = [task for task in one["tasks"] if "stack" in task]
    lines = [_task(task) for task in stacked or tasks]
    return Line.of((one["client"], style), (words, style), (requests, Style.FAINT), lines=lines)


def _exchange(one: PlainValues) -> list[tuple[object, Style]]:
    status = one["status"]
    style = Style.FAINT if status is None else Style.GOOD if status < 400 else Style.WARN if status < 500 else Style.BAD
    kind = "WebSocket" if one["websocket"] else one["method"]
    moved = "".join(f", {name} {format_bytes(one[name])}" for name in ("received", "sent") if one[name])
    behind = ", answered" if one["answered"] and not one["websocket"] else ""
    request_id = f", id {one['request_id']}" if one.get("request_id") else ""
    return [
        (f"{kind} {one['target']}", Style.TITLE),
        (f"  {'no status yet' if status is None else status}", style),
        (f"  {format_age(one['age'])}{moved}{behind}{request_id}", Style.PLAIN),
    ]


# Tasks


def is_own(task: PlainValues) -> bool:
    """Whether it, and all below it, was started by the server and is in nothing but the server's own calls."""
    if not task["own"] or task["at"] is not None or "exchange" in task or "more_tasks" in task:
        return False
    return all(map(is_own, task["tasks"]))


def _tasks(tasks: Sequence[PlainValues]) -> Iterator[Line]:
    shows_all = any("stack" in one for one in tasks)
    shown = [_task(one, shows_all=shows_all) for one in tasks if shows_all or not is_own(one)]
    own = sum(map(_count_own, tasks))
    if own and not shows_all:
        if not shown:
            yield Line.of((f"{_count(own, 'task')} of the server itself", Style.FAINT))
            return
        shown.append(Line.of((f"... and {_count(own, 'task')} of the server itself", Style.FAINT)))
    yield Line.of(("tasks", Style.TITLE), (" beside the connections", Style.FAINT), lines=shown)


def _count_own(task: PlainValues) -> int:
    return (1 if is_own(task) else 0) + sum(map(_count_own, task["tasks"]))


def _task(task: PlainValues, *, shows_all: bool = False) -> Line:
    if "exchange" in task:
        head = _exchange(task["exchange"])
    else:
        nursery = f" (nursery {task['nursery']})" if "nursery" in task else ""
        head = [(f"{task['name']}{nursery}", Style.PLAIN), (f"  {format_age(task['age'])}", Style.FAINT)]
    if task["state"] == "waiting":
        waits = (f"  waits for {task['waits_for']}", Style.FAINT) if task["waits_for"] else ("  waits", Style.FAINT)
    else:
        waits = (f"  {task['state']}", Style.WARN)
    below = [_task(one, shows_all=shows_all) for one in task["tasks"] if shows_all or not is_own(one)]
    if more := task.get("more_tasks"):
        below.append(Line.of((f"... and {_count(more, 'task')} more", Style.FAINT)))
    return Line.of(*head, waits, (_at(task["at"]), Style.FAINT), lines=[*_stack(task.get("stack", ())), *below])


def _stack(stack: Iterable[str]) -> list[Line]:
    return [Line.of((call, Style.FAINT)) for call in islice(stack, None)]


def _at(place: PlainValues | None) -> str:
    if place is None:
        return ""
    file = "/".join(PurePath(place["file"]).parts[-2:])
    return f" at {file}:{place['line'] or '?'} in {place['function']}"


def _count(number: int, what: AnyValue) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
