"""What the supervisor and a worker say to each other: lines of JSON, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..config import Config
from ..types import PlainValues


class Order(StrEnum):
    """What a worker is told after its job."""

    RETIRE = "retire"  # a successor is ready: finish, and let idle connections be until their next request
    STOP = "stop"  # finish
    CANCEL = "cancel"  # finish now
    DUMP = "dump"  # log the task tree


class Report(StrEnum):
    """What a worker tells."""

    READY = "ready"  # its application has started, and it accepts
    BEAT = "beat"  # its event loop runs
    WORN = "worn"  # it has served limit_max_requests and wants a successor
    RETIRING = "retiring"  # it was asked to stop by a signal of its own
    BLOCKED = "blocked"  # its event loop does not run; where is in the log


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
