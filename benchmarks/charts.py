"""What the charts show: which workloads and servers, and their figures. `drawing` draws them."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Run, cpu, extra, spread
from .table import ranked
from .workloads import GROWTH, WORKLOADS


@dataclass(frozen=True)
class Bar:
    """One server: the median, the least and the most."""

    server: str
    middle: float
    least: float
    most: float


@dataclass(frozen=True)
class Panel:
    """Bars beside each other."""

    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Line:
    """One server's figure at each number of connections."""

    server: str
    points: tuple[tuple[int, float], ...]


# Each chart: its name, what its bars say, and for each panel the workload and its title.
CHARTS = (
    (
        "overview",
        "CPU µs per exchange (least is best)",
        {
            "hello-64": "Hello, world!",
            "tls-hello-64": "Hello, world! over TLS",
            "close": "A connection per request",
            "fastapi": "FastAPI, JSON",
            "stream-4MiB": "4 MiB streamed",
            "ws-16B": "WebSocket echo, 16 B",
        },
    ),
    (
        "hello",
        "CPU µs per request (least is best)",
        {
            "hello-1": "1 connection",
            "hello-64": "64 connections",
            "hello-512": "512 connections",
            "headers": "10 header fields",
            "hello-logged": "64 connections, access log on",
            "close": "A connection per request",
        },
    ),
    (
        "bodies",
        "CPU µs per request (least is best)",
        {"stream-64KiB": "64 KiB streamed", "stream-4MiB": "4 MiB streamed", "upload-1MiB": "1 MiB uploaded"},
    ),
    (
        "tls",
        "CPU µs per request over TLS (least is best)",
        {
            "tls-hello-64": "64 connections",
            "tls-close": "A handshake per request",
            "tls-stream-4MiB": "4 MiB streamed",
            "tls-upload-1MiB": "1 MiB uploaded",
        },
    ),
    (
        "websocket",
        "CPU µs per WebSocket message and its echo (least is best)",
        {"ws-16B": "16 B", "ws-1KiB": "1 KiB", "ws-64KiB": "64 KiB"},
    ),
)


def panels(run: Run, titles: dict[str, str]) -> list[Panel]:
    """The panels of one chart, of those that were measured."""
    found = (Panel(title, bars(run, key)) for key, title in titles.items())
    return [panel for panel in found if panel.bars]


def bars(run: Run, workload: str) -> tuple[Bar, ...]:
    """The CPU of each server under a workload, the least first."""
    measured = ((server, run.samples(workload, server)) for server in ranked(run, workload))
    return tuple(Bar(server, *spread([sample.cpu for sample in samples])) for server, samples in measured if samples)


def memory_panels(run: Run) -> list[Panel]:
    """What idle connections hold of memory, the least first; and what they cost the busy ones."""
    found: list[Panel] = []
    figures = (
        ("KiB of memory per idle connection", "memory"),
        ("CPU per request, with 10,000 idle to without", "busy"),
    )
    for title, name in figures:
        measured = ((server, run.samples("idle", server)) for server in run.servers("idle"))
        rows = [
            Bar(server, *spread([extra(name)(sample) for sample in samples])) for server, samples in measured if samples
        ]
        found.append(Panel(title, tuple(sorted(rows, key=lambda bar: bar.middle))))
    return [panel for panel in found if panel.bars]


def lines(run: Run) -> list[Line]:
    """The CPU of each server as connections grow."""
    keys = [(number, f"growth-{number}") for number in GROWTH]
    servers = WORKLOADS[keys[0][1]].servers
    found: list[Line] = []
    for server in servers:
        values = [(number, run.value(key, server, cpu)) for number, key in keys]
        points = tuple((number, value) for number, value in values if value is not None)
        if len(points) > 1:
            found.append(Line(server, points))
    return found
