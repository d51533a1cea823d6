"""What is measured for metrics: which figures there are, and how those of several servers become one."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from .logs import ExchangeRecord, Outcome, WebSocketRecord
from .metrics import Counters

Figures = dict[tuple[str, ...], float]
"""Plain values by (name, label, label ...), in the order of the family's labels. Of a histogram the only label is the
upper bound of a bucket, whose value counts what is in this bucket alone, or "sum". What is 0 may be left out.
"""


class Kind(Enum):
    COUNTER = auto()
    HISTOGRAM = auto()
    GAUGE = auto()  # those of several servers add up
    WORST = auto()  # a gauge of which the greatest counts


@dataclass(frozen=True)
class Family:
    """Figures of one name. ``bounds`` are the upper bounds of a histogram's buckets, but for the last, which has none.

    The name is without the prefix, and without the suffix that the kind gives it.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BYTES = (0, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)

FAMILIES = (
    Family("build_info", Kind.GAUGE, "What serves.", ("version", "codec", "python")),
    Family("start_time_seconds", Kind.GAUGE, "When the server was started, in seconds since the epoch."),
    Family(
        "requests",
        Kind.COUNTER,
        "Requests that have ended, those included that were refused before their head was read (method other).",
        ("method", "status", "outcome"),
    ),
    Family("requests_active", Kind.GAUGE, "Requests and WebSockets whose handler runs."),
    Family(
        "request_duration_seconds",
        Kind.HISTOGRAM,
        "From the end of a request's head to the end of its response; of a WebSocket to its accept.",
        bounds=_SECONDS,
    ),
    Family("request_body_bytes", Kind.HISTOGRAM, "Bytes of request bodies that were read.", bounds=_BYTES),
    Family("response_body_bytes", Kind.HISTOGRAM, "Bytes of response bodies that were sent.", bounds=_BYTES),
    Family(
        "rejected",
        Kind.COUNTER,
        "Requests that the server has answered itself, by status and by the limit that was the reason.",
        ("status", "reason"),
    ),
    Family("connections_open", Kind.GAUGE, "Open connections, by what they do.", ("state",)),
    Family("connections_accepted", Kind.COUNTER, "Connections since the start."),
    Family("websockets_open", Kind.GAUGE, "Open WebSockets."),
    Family("websockets_opened", Kind.COUNTER, "WebSockets that were accepted."),
    Family("websockets_closed", Kind.COUNTER, "WebSockets that have closed, by close code.", ("code",)),
    Family("tls_handshakes", Kind.COUNTER, "TLS handshakes that were completed.", ("listener",)),
    Family("tls_handshake_failures", Kind.COUNTER, "TLS handshakes that failed.", ("listener", "reason")),
    Family("application_errors", Kind.COUNTER, "Exceptions that left the application."),
    Family(
        "event_loop_lag_seconds",
        Kind.WORST,
        "How late the event loop was at its last beat, or how long one is overdue.",
    ),
    Family("event_loop_lag_max_seconds", Kind.WORST, "How late the event loop was at worst since its start."),
    Family("event_loop_late_seconds", Kind.COUNTER, "How late all beats of the event loop were together."),
    Family("tasks", Kind.GAUGE, "Trio tasks that are alive, the server's own included."),
    Family("workers", Kind.GAUGE, "Processes that serve, or will, or did; one where there are no workers.", ("state",)),
    Family("worker_restarts", Kind.COUNTER, "Workers that were started in the place of another.", ("reason",)),
)
"""All families, in the order in which they are shown."""

_BY_NAME = {family.name: family for family in FAMILIES}

_METHODS = {
    name: name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
}
_STATUSES = ("none", *(f"{hundreds}xx" for hundreds in range(1, 10)))
_OUTCOMES = {outcome: outcome.value.replace(" ", "_") for outcome in Outcome}


class _Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, family: str) -> None:
        self.bounds = _BY_NAME[family].bounds
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def figures(self, name: str) -> Figures:
        found: Figures = {
            (name, bound): count for bound, count in zip(bound_labels(self.bounds), self.counts, strict=True) if count
        }
        if found:
            found[name, "sum"] = self.total
        return found


def bound_labels(bounds: Iterable[float]) -> list[str]:
    """What a histogram's buckets are called."""
    return [*map(str, map(float, bounds)), "+Inf"]


class Measures:
    """What is measured of each exchange and each WebSocket once it has ended."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str], int] = {}
        self._closed: dict[str, int] = {}
        self._durations = _Histogram("request_duration_seconds")
        self._received = _Histogram("request_body_bytes")
        self._sent = _Histogram("response_body_bytes")

    def exchange_ended(self, record: ExchangeRecord) -> None:
        # What a client chooses must not become a label: any word is a method.
        key = (
            _METHODS.get(record.method, "other"),
            _STATUSES[(record.status or 0) // 100],
            _OUTCOMES[record.outcome],
        )
        requests = self._requests
        requests[key] = requests.get(key, 0) + 1
        self._durations.note(record.duration)
        self._received.note(record.received)
        self._sent.note(record.sent)

    def websocket_closed(self, record: WebSocketRecord) -> None:
        code = _code_label(record.code)
        self._closed[code] = self._closed.get(code, 0) + 1

    def figures(self) -> Figures:
        found: Figures = {("requests", *key): count for key, count in self._requests.items()}
        found.update({("websockets_closed", code): count for code, count in self._closed.items()})
        found.update(self._durations.figures("request_duration_seconds"))
        found.update(self._received.figures("request_body_bytes"))
        found.update(self._sent.figures("response_body_bytes"))
        return found


def _code_label(code: int) -> str:
    # RFC 6455 §7.4: up to 1015 they have names, the rest is for libraries (3000) and applications (4000).
    if 1000 <= code <= 1015:
        return str(code)
    return f"{code // 1000}xxx" if 3000 <= code < 5000 else "other"


# OpenSSL has hundreds of words, many of which a client can choose to cause. These are the ones that say what to do.
_HANDSHAKE_REASONS = frozenset(
    {
        # ours
        "timed out",
        "connection lost",
        "http request",
        "the connection was dropped",
        # the two have nothing in common
        "unsupported protocol",
        "wrong version number",
        "no shared cipher",
        "no suitable key share",
        "no suitable signature algorithm",
        "no application protocol",
        # the client's certificate
        "peer did not return a certificate",
        "certificate has expired",
        "certificate is not yet valid",
        "certificate revoked",
        "self-signed certificate",
        "self-signed certificate in certificate chain",
        "unable to get local issuer certificate",
        "unable to verify the first certificate",
        "unsuitable certificate purpose",
        # what the client says against ours
        "alert unknown ca",
        "alert bad certificate",
        "alert certificate unknown",
        "alert certificate expired",
        "alert certificate revoked",
        "alert unsupported certificate",
        "alert handshake failure",
        "alert protocol version",
        "alert decrypt error",
        "alert access denied",
        "alert internal error",
    }
)


def handshake_label(reason: str) -> str:
    """One of few words for why a handshake failed, whatever OpenSSL calls it in the version at hand."""
    words = re.sub(r"^(?:ssl/tls|sslv3|tlsv1|tlsv13) alert ", "alert ", reason).replace("self signed", "self-signed")
    return words if words in _HANDSHAKE_REASONS else "other"


def figures_of(counters: Counters) -> Figures:
    """What a server counts in any case."""
    found: Figures = {
        ("requests_active",): counters.requests,
        ("connections_accepted",): counters.connections_total,
        ("websockets_open",): counters.websockets,
        ("websockets_opened",): counters.websockets_total,
        ("application_errors",): counters.application_errors,
        ("event_loop_late_seconds",): counters.loop_lag_total,
    }
    if counters.loop_lag is not None and counters.loop_lag_max is not None:
        found["event_loop_lag_seconds",] = counters.loop_lag
        found["event_loop_lag_max_seconds",] = counters.loop_lag_max
    for (status, why), count in counters.rejected.items():
        found["rejected", str(status), why.value] = count
    for listener, count in counters.handshakes.items():
        found["tls_handshakes", listener] = count
    for (listener, reason), count in counters.handshake_failures.items():
        key = ("tls_handshake_failures", listener, handshake_label(reason))
        found[key] = found.get(key, 0) + count
    return found


def lateness(seconds: float) -> Figures:
    """Those of an event loop that is known to be late by so much at least."""
    return {("event_loop_lag_seconds",): seconds, ("event_loop_lag_max_seconds",): seconds}


def is_known(key: tuple[str, ...]) -> bool:
    """Whether there may be a figure of this name with so many labels."""
    family = _BY_NAME.get(key[0]) if key else None
    return family is not None and len(key) - 1 == len(family.labels or family.bounds[:1])


def lasting(figures: Figures) -> Figures:
    """Those that still count when the server they came from has ended."""
    kinds = (Kind.COUNTER, Kind.HISTOGRAM)
    return {key: value for key, value in figures.items() if _BY_NAME[key[0]].kind in kinds}


def sum_up(several: Iterable[Mapping[tuple[str, ...], float]]) -> Figures:
    """The figures of several servers as if they were one."""
    found: Figures = {}
    for figures in several:
        for key, value in figures.items():
            if key not in found:
                found[key] = value
            elif _BY_NAME[key[0]].kind is Kind.WORST:
                found[key] = max(found[key], value)
            else:
                found[key] += value
    return found
