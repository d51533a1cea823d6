"""What a server counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Running totals of one server, changed where things happen."""

    connections: int = 0
    connections_total: int = 0
    requests: int = 0
    requests_total: int = 0
    websockets: int = 0
    websockets_total: int = 0
    rejected: dict[int, int] = field(default_factory=dict)
    handshake_failures: dict[tuple[str, str], int] = field(default_factory=dict)
    application_errors: int = 0
    loop_lag: float | None = None
    loop_lag_max: float | None = None

    def count_rejected(self, status: int, count: int = 1) -> None:
        self.rejected[status] = self.rejected.get(status, 0) + count

    def count_handshake_failure(self, listener: str, reason: str) -> None:
        key = (listener, reason)
        self.handshake_failures[key] = self.handshake_failures.get(key, 0) + 1

    def note_loop_lag(self, seconds: float) -> None:
        self.loop_lag = seconds
        self.loop_lag_max = max(seconds, self.loop_lag_max or 0)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A server's figures at one moment.

    ``connections``, ``requests`` and ``websockets`` are open now, ``*_total`` since the start. A WebSocket is among the
    requests, too, for as long as it is open. ``rejected`` counts requests that the server answered itself, by status.
    ``handshake_failures`` counts failed TLS handshakes by (listener, reason). ``loop_lag`` is how many seconds late the
    event loop last came to something whose time was known, ``loop_lag_max`` the most since the start; None where nobody
    watches it, which workers always do, others with the option ``watchdog``.
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


def take_statistics(counters: Counters) -> Statistics:
    return Statistics(
        connections=counters.connections,
        connections_total=counters.connections_total,
        requests=counters.requests,
        requests_total=counters.requests_total,
        websockets=counters.websockets,
        websockets_total=counters.websockets_total,
        rejected=dict(counters.rejected),
        handshake_failures=dict(counters.handshake_failures),
        application_errors=counters.application_errors,
        loop_lag=counters.loop_lag,
        loop_lag_max=counters.loop_lag_max,
    )
