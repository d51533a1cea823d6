"""What a server counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import Refusal, usual_refusal


@dataclass(slots=True)
class Counters:
    """Running totals of one server, changed where things happen."""

    connections: int = 0
    connections_total: int = 0
    requests: int = 0
    requests_total: int = 0
    websockets: int = 0
    websockets_total: int = 0
    rejected: dict[tuple[int, Refusal], int] = field(default_factory=dict)
    handshakes: dict[str, int] = field(default_factory=dict)
    handshake_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    application_errors: int = 0
    loop_lag: float | None = None
    loop_lag_max: float | None = None
    loop_lag_total: float = 0.0

    def count_rejected(self, status: int, why: Refusal | None = None, count: int = 1) -> None:
        """``why``: None for what is usual with this status."""
        key = (status, why or usual_refusal(status))
        self.rejected[key] = self.rejected.get(key, 0) + count

    def count_handshake(self, listener: str) -> None:
        self.handshakes[listener] = self.handshakes.get(listener, 0) + 1

    def count_handshake_failure(self, listener: str, reason: str) -> None:
        key = (listener, reason)
        self.handshake_failures[key] = self.handshake_failures.get(key, 0) + 1

    def note_loop_lag(self, seconds: float) -> None:
        self.loop_lag = seconds
        self.loop_lag_max = max(seconds, self.loop_lag_max or 0)
        self.loop_lag_total += seconds


@dataclass(frozen=True, slots=True)
class Statistics:
    """A server's figures at one moment.

    ``connections``, ``requests`` and ``websockets`` are open now, ``*_total`` since the start. A WebSocket is among the
    requests, too, for as long as it is open. ``rejected`` counts requests that the server answered itself, by status,
    and ``rejected_by`` the same by (status, reason), the latter an option such as "limit_concurrency", or "malformed",
    "unsupported", "draining" or "no_descriptors". ``handshakes`` counts TLS handshakes by listener, and
    ``handshake_failures`` those that failed by (listener, reason). ``loop_lag`` is how many seconds late the event loop
    last came to something whose time was known, ``loop_lag_max`` the most since the start; None where nobody watches
    it, which workers always do, others with the options ``watchdog`` or ``metrics_bind``.
    """

    connections: int
    connections_total: int
    requests: int
    requests_total: int
    websockets: int
    websockets_total: int
    rejected: dict[int, int]
    handshake_failures: dict[tuple[str, str], int]
    application_errors: int
    loop_lag: float | None
    loop_lag_max: float | None
    rejected_by: dict[tuple[int, str], int] = field(default_factory=dict)
    handshakes: dict[str, int] = field(default_factory=dict)


def take_statistics(counters: Counters) -> Statistics:
    rejected: dict[int, int] = {}
    for (status, _), count in counters.rejected.items():
        rejected[status] = rejected.get(status, 0) + count
    return Statistics(
        connections=counters.connections,
        connections_total=counters.connections_total,
        requests=counters.requests,
        requests_total=counters.requests_total,
        websockets=counters.websockets,
        websockets_total=counters.websockets_total,
        rejected=rejected,
        handshake_failures=dict(counters.handshake_failures),
        application_errors=counters.application_errors,
        loop_lag=counters.loop_lag,
        loop_lag_max=counters.loop_lag_max,
        rejected_by={(status, why.value): count for (status, why), count in counters.rejected.items()},
        handshakes=dict(counters.handshakes),
    )
