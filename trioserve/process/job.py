"""What the supervisor and a worker say to each other: lines of JSON, and nothing else."""

from __future__ import annotations

import json
import math
import select
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..config import Config
from ..figures import Figures, is_known
from ..types import AnyValue, PlainValues

WHOLE: int = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes as a whole or not at all, whoever else writes to it."""

_BEGIN, _END = b'{"figures": [', b"]}\n"


class Order(StrEnum):
    """What a worker is told after its job."""

    RETIRE = "retire"  # a successor is ready: finish, and let idle connections be until their next request
    STOP = "stop"  # finish
    CANCEL = "cancel"  # finish now
    DUMP = "dump"  # log the task tree
    FIGURES = "figures"  # tell the figures of this moment


class Report(StrEnum):
    """What a worker tells."""

    READY = "ready"  # its application has started, and it accepts
    BEAT = "beat"  # its event loop runs
    WORN = "worn"  # it has served limit_max_requests and wants a successor
    RETIRING = "retiring"  # it was asked to stop by a signal of its own
    BLOCKED = "blocked"  # its event loop does not run; where is in the log
    FIGURES = "figures"  # the figures that were asked for have been told


@dataclass(frozen=True)
class PassedSocket:
    """A listening socket for a worker.

    ``number`` is its descriptor in the worker, or None where ``shared`` is what WSADuplicateSocket made for it, in
    base64. ``address`` is the listener's name in the log.
    """

    address: str
    tls: bool
    number: int | None = None
    shared: str | None = None


@dataclass(frozen=True)
class Job:
    """What a worker is told first. Plain values: file paths, never an SSLContext, a logger or a callable.

    ``path`` is the supervisor's sys.path; ``reports`` and ``errors`` are the worker's descriptors (on Windows its
    handles) for reports and for its error output once the supervisor is gone; ``colors``: the supervisor's error
    output, which shows the worker's, is a terminal that wants colours; ``checks_health``: a blocked loop is reported.
    """

    app: str
    config: Config
    sockets: Sequence[PassedSocket]
    path: Sequence[str]
    reports: int
    errors: int
    colors: bool
    checks_health: bool

    def to_line(self) -> bytes:
        values = vars(self) | {
            "config": self.config.to_plain(),
            "sockets": [vars(one) for one in self.sockets],
            "path": list(self.path),
        }
        return json.dumps(values, allow_nan=False).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Job:
        values: PlainValues = json.loads(line)
        values["config"] = Config.from_plain(values["config"])
        values["sockets"] = tuple(PassedSocket(**one) for one in values["sockets"])
        return cls(**values)


def order_line(order: Order) -> bytes:
    return json.dumps({"do": order}).encode("ascii") + b"\n"


def report_line(report: Report) -> bytes:
    return json.dumps({"is": report}).encode("ascii") + b"\n"


def read_order(line: bytes) -> Order:
    return Order(json.loads(line)["do"])


def read_report(line: bytes) -> Report | None:
    """None for what is no report: an application that mixes up descriptors may write anything there."""
    try:
        return Report(json.loads(line)["is"])
    except (ValueError, LookupError, TypeError):
        return None


def figures_lines(figures: Figures) -> Iterator[tuple[bytes, Figures]]:
    """Lines that tell these figures, each with those that are in it.

    Each can be written as a whole and stands for itself: so no one has to wait, to write on where another writer has
    come between, or to keep what did not fit, and a line that is lost takes nothing with it but its own figures.
    """
    line, told = b"", Figures()
    for key, value in figures.items():
        entry = json.dumps([*key, value], allow_nan=False).encode("ascii")
        if line and len(_BEGIN) + len(line) + 2 + len(entry) + len(_END) > WHOLE:
            yield _BEGIN + line + _END, told
            line, told = b"", Figures()
        line += b", " + entry if line else entry
        told[key] = value
    if line:
        yield _BEGIN + line + _END, told


def read_figures(line: bytes) -> Figures | None:
    """None for what tells no figures; see read_report."""
    if not line.startswith(_BEGIN):
        return None
    try:
        entries = json.loads(line)["figures"]
        figures = {_read_key(entry[:-1]): _read_number(entry[-1]) for entry in entries}
    except (ValueError, LookupError, TypeError, OverflowError):
        return None
    return figures if all(map(is_known, figures)) else None


def _read_key(parts: AnyValue) -> tuple[str, ...]:
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(parts)
    return tuple(parts)


def _read_number(value: AnyValue) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)
