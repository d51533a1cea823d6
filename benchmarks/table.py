"""Shows a run as Markdown: the targets, and a table for each workload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .results import Figure, Run, Sample, cpu, extra, spread
from .servers import DEFAULTS, SERVERS, TRIOSERVE
from .targets import TARGETS
from .workloads import GROWTH, WORKLOADS, Workload

Column = tuple[str, Figure, int]  # its head, its figure, and how many digits after the point

NOTES = {
    "tls-close": "Whole handshakes, by a generator of our own, as wrk resumes its sessions.",
    "idle": (
        "Each connection has had one answer before it is idle. The CPU is that of 64 busy ones while the idle ones are "
        "held; *alone* is before these were opened. Idle connections that a server closed are errors."
    ),
    "workers-close": (
        "An accept that finds nothing is the last look before a worker waits, or one for a connection that another "
        "worker got, as every idle worker is woken for it."
    ),
}
GROWING = {f"growth-{number}" for number in GROWTH}
MORE: dict[str, tuple[Column, ...]] = {
    "idle": (
        ("CPU µs alone", extra("alone"), 1),
        ("busy to alone", extra("busy"), 2),
        ("KiB per idle connection", extra("memory"), 1),
        ("CPU µs per idle second", extra("idle"), 0),
    ),
    "workers-close": (
        ("share of the busiest", extra("busiest"), 2),
        ("accepts that found nothing, per connection", extra("empty"), 2),
        ("the same, one connection at a time", extra("paced"), 2),
    ),
}


def report(run: Run) -> str:
    """The whole report."""
    shown = [workload for workload in WORKLOADS.values() if run.servers(workload.key)]
    parts = [
        "# What trioserve costs, beside its peers",
        "" if run.complete else "**This run was cut short: not all rounds are here.**",
        conditions(run),
        targets(run),
    ]
    for workload in shown:
        if workload.key not in GROWING:
            parts += [f"## {workload.title}", NOTES.get(workload.key, ""), figures(run, workload)]
    parts += growth(run)
    parts += ["## Command lines", commands(run, shown)]
    return "\n\n".join(part for part in parts if part) + "\n"


def conditions(run: Run) -> str:
    """How it was measured, and on what."""
    machine = ", ".join(f"{name} {value}" if name != "Python" else value for name, value in run.environment.items())
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    rounds = f"{run.rounds} round{'s' * (run.rounds > 1)}"
    return (
        f"Medians of {rounds} of {run.seconds} s, after a second of warming up, with the least and the "
        "most; in each round each server is started anew, and another one is first. CPU is user and system time of all "
        "of the server's processes, per exchange that was answered well. Everything runs on one machine over loopback, "
        "so requests/s and times are also the load generator's; the CPU is the server's alone. The access log is off "
        "unless the title says that it is on. wrk opens its connections within its run; with 512 of them a shorter run "
        "is taken off a longer one, so that only requests are left. For WebSockets, growth and idle connections, they "
        "are open before the measurement.\n\n"
        f"{machine}. {versions}."
    )


def targets(run: Run) -> str:
    """What is asked, what was measured, and whether that is met."""
    rows: list[tuple[str, ...]] = []
    for target in TARGETS:
        if run.servers(target.workload):
            measured = target.measured(run)
            rows.append(
                (
                    target.what,
                    target.peer or "—",
                    "as low as it goes" if target.asked is None else f"{target.asked:.2f}",
                    "—" if measured is None else span(*measured, 2),
                    target.verdict(run),
                )
            )
    if not rows:
        return ""
    header = ("trioserve's CPU", "as a share of", "asked, at most", "measured", "met?")
    return "## What is asked\n\n" + markdown(header, rows)


def figures(run: Run, workload: Workload) -> str:
    """One row for each server, the best first."""
    columns: tuple[Column, ...] = (
        (f"CPU µs per {workload.unit}", cpu, 1),
        (f"{workload.unit}s/s", lambda sample: sample.rate, 0),
        ("p50 ms", lambda sample: sample.p50, 2),
        ("p99 ms", lambda sample: sample.p99, 2),
        *MORE.get(workload.key, ()),
    )
    ours = bool(run.samples(workload.key, TRIOSERVE))
    header = ["server", *(name for name, _, _ in columns), *(["CPU to trioserve's"] if ours else []), "errors"]
    rows: list[list[str]] = []
    for server in ranked(run, workload.key):
        samples = run.samples(workload.key, server)
        row = [emphasised(server)]
        row += [
            span(*spread([figure(sample) for sample in samples]), digits) if samples else "—"
            for _, figure, digits in columns
        ]
        if ours:
            row.append(to_ours(run, workload.key, server))
        rows.append([*row, errors(samples, run.problems(workload.key, server))])
    return markdown(header, rows)


def ranked(run: Run, workload: str) -> list[str]:
    """The servers, those with the least CPU first, and those without a figure last."""

    def key(server: str) -> float:
        value = run.value(workload, server, cpu)
        return float("inf") if value is None else value

    return sorted(run.servers(workload), key=key)


def to_ours(run: Run, workload: str, server: str) -> str:
    """How a server's median stands to trioserve's."""
    theirs, ours = run.value(workload, server, cpu), run.value(workload, TRIOSERVE, cpu)
    return f"{theirs / ours:.2f}" if theirs is not None and ours else "—"


def errors(samples: Sequence[Sample], problems: Iterable[str]) -> str:
    """What went wrong in all rounds."""
    count = sum(sample.errors for sample in samples)
    words = list(dict.fromkeys(problems))
    return "; ".join([*([f"**{count}**" if count else "0"] if samples else []), *words])


def growth(run: Run) -> list[str]:
    """The cost per request as connections grow: one table for all numbers of them."""
    keys = [key for key in WORKLOADS if key in GROWING and run.servers(key)]
    if not keys:
        return []
    servers = list(dict.fromkeys(server for key in reversed(keys) for server in ranked(run, key)))
    rows = []
    for server in servers:
        cells = [cell(run, key, server) for key in keys]
        samples = [sample for key in keys for sample in run.samples(key, server)]
        problems = [problem for key in keys for problem in run.problems(key, server)]
        rows.append([emphasised(server), *cells, errors(samples, problems)])
    numbers = [f"{int(key.removeprefix('growth-')):,}" for key in keys]
    return ["## CPU µs per request, as connections grow", markdown(["server \\ connections", *numbers, "errors"], rows)]


def cell(run: Run, workload: str, server: str) -> str:
    """One server's CPU under one workload."""
    samples = run.samples(workload, server)
    return span(*spread([sample.cpu for sample in samples]), 1) if samples else "—"


def commands(run: Run, workloads: Iterable[Workload]) -> str:
    """Each server's command line, and what some workloads add to it."""
    lines: list[str] = []
    for name in dict.fromkeys(server for workload in workloads for server in run.servers(workload.key)):
        server = SERVERS[name]
        ways = (
            ("access log on", f"`{server.access_log}`" if server.access_log else f"without `{server.quiet}`"),
            ("TLS", f"`{server.tls}`"),
            ("idle connections and growth", f"`{server.keep}`"),
        )
        lines.append(f"- {name}: `python -m {server.arguments(DEFAULTS)}`")
        lines.append("  - " + "; ".join(f"{word}: {option}" for word, option in ways))
    apps = {workload.variant.app: workload.title for workload in workloads if workload.variant != DEFAULTS}
    lines += [f"- the application of “{title}” is `{app}`" for app, title in apps.items() if app != DEFAULTS.app]
    return "\n".join(lines)


def emphasised(server: str) -> str:
    """A server as the first column names it."""
    return f"**{server}**" if server.startswith(TRIOSERVE) else server


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column holds names and whose others hold figures."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def span(middle: float, least: float, most: float, digits: int) -> str:
    """Median (least-most)."""
    return f"{middle:.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"
