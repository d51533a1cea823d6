"""What trioserve is asked to reach, and whether a run has shown it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .results import Figure, Run, cpu, extra, spread
from .servers import GRANIAN, H11, HYPERCORN, TRIOSERVE, UVICORN, UVICORN_H11, UVICORN_WSPROTO


@dataclass(frozen=True)
class Target:
    """At most so much: of a ratio to a peer, or, without one, of a figure itself. None asks for nothing, and shows."""

    what: str
    workload: str
    asked: float | None
    peer: str | None = None
    ours: str = TRIOSERVE
    figure: Figure = cpu

    def measured(self, run: Run) -> tuple[float, float, float] | None:
        """The median, and the least and most of the rounds; None if it was not measured.

        A ratio is that of the medians; its least and most are those of the ratios within each round.
        """
        ours = [self.figure(sample) for sample in run.samples(self.workload, self.ours)]
        if self.peer is None:
            return spread(ours) if ours else None
        ratios = run.ratios(self.workload, self.ours, self.peer, self.figure)
        if not ratios:
            return None
        theirs = [self.figure(sample) for sample in run.samples(self.workload, self.peer)]
        return median(ours) / median(theirs), min(ratios), max(ratios)

    def verdict(self, run: Run) -> str:
        """Whether the median, as it is shown, is met."""
        measured = self.measured(run)
        if measured is None:
            return "not measured"
        if self.asked is None:
            return "—"
        return "yes" if round(measured[0], 2) <= self.asked else "**no**"


def to(what: str, workload: str, ours: str = TRIOSERVE, **asked: float | None) -> list[Target]:
    """The CPU per exchange to that of several peers."""
    return [Target(what, workload, value, PEERS[peer], ours) for peer, value in asked.items()]


PEERS = {
    "uvicorn": UVICORN,
    "uvicorn_h11": UVICORN_H11,
    "wsproto": UVICORN_WSPROTO,
    "granian": GRANIAN,
    "hypercorn": HYPERCORN,
}
TARGETS = (
    *to("Hello, world!", "hello-64", uvicorn=0.95, granian=1.0, hypercorn=0.06),
    *to("the same, access log on", "hello-logged", uvicorn=None, granian=None, hypercorn=None),
    *to("Hello, world!, h11", "hello-64", H11, uvicorn_h11=0.80, hypercorn=0.18),
    *to("the same, access log on", "hello-logged", H11, uvicorn_h11=None, hypercorn=None),
    *to("a connection per request", "close", uvicorn=0.90),
    *to("4 MiB streamed", "stream-4MiB", uvicorn=1.0, hypercorn=0.35),
    *to("1 MiB uploaded", "upload-1MiB", uvicorn=1.1, hypercorn=0.35),
    *to("TLS, Hello, world!", "tls-hello-64", uvicorn=1.0, hypercorn=0.15),
    *to("TLS, a handshake per request", "tls-close", uvicorn=0.95),
    *to("WebSocket, 16 B", "ws-16B", hypercorn=0.30, wsproto=0.90, uvicorn=None),
    Target("KiB of memory per idle connection", "idle", 10.0, figure=extra("memory")),
    Target("CPU per request with 10,000 idle connections to without", "idle", 1.10, figure=extra("busy")),
)
