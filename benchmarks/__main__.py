"""The command: runs every server in turn, several times, and writes the report and the charts."""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from . import results, rounds, table, wrk
from .loads import raise_file_limit
from .servers import DEFAULTS, GRANIAN, H11, HYPERCORN, SERVERS, TRIOSERVE, UVICORN
from .workloads import WORKLOADS

ROUNDS, SECONDS = 3, 2
LIMIT = 6 * 3600.0  # seconds, in which a whole run must have ended
QUICK_ROUNDS, QUICK_SECONDS, QUICK_LIMIT = 1, 1, 110.0
QUICK_WORKLOADS = ("hello-64", "tls-hello-64", "ws-16B", "close", "stream-4MiB")  # should time run out, the last go
QUICK_SERVERS = (TRIOSERVE, H11, UVICORN, GRANIAN, HYPERCORN)
FOLDER = Path(__file__).with_name("results")


def main() -> None:
    """Read the command line, measure, write."""
    options = parse_arguments()
    folder: Path = options.results
    if options.render:
        write(results.read(folder / "latest.json"), folder)
        return
    if wrk.is_missing():
        sys.exit(wrk.HOW_TO_GET_IT)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmarks read CPU times from /proc, which only Linux has")
    folder.mkdir(parents=True, exist_ok=True)
    raise_file_limit()
    measurements = rounds.plan(options.only, options.servers, options.rounds)
    for name in dict.fromkeys(measurement.server for measurement in measurements):
        note = f"   # not installed: {', '.join(SERVERS[name].missing)}" if SERVERS[name].missing else ""
        print(f"{name}: python -m {SERVERS[name].arguments(DEFAULTS)}{note}")
    expected = rounds.expected_seconds(measurements, options.seconds)
    length = f"{expected:.0f} s" if expected < 180 else f"{expected / 60:.0f} minutes"
    print(f"{len(measurements)} measurements, about {length}; Ctrl-C ends it and keeps what there is")
    sys.stdout.flush()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with TemporaryDirectory() as temporary:
        run = rounds.carry_out(measurements, options.rounds, options.seconds, options.limit, Path(temporary))
    if run.records:
        results.write(run, folder / "latest.json")
        write(run, folder)
    if not run.complete:
        sys.exit(1)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Let what runs end in order; whoever asks again would leave a server behind, so that is not heard."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def write(run: results.Run, folder: Path) -> None:
    """Write the report, print it, and draw the charts if that is possible."""
    text = table.report(run)
    (folder / "latest.md").write_text(text)
    print(text)
    if importlib.util.find_spec("matplotlib") is None:
        print("There are no charts, as matplotlib is not installed", file=sys.stderr)
        return
    from . import drawing  # noqa: PLC0415 - an extra

    drawn = drawing.draw(run, folder)
    print(f"Written: latest.md, latest.json, {', '.join(path.name for path in drawn)}", file=sys.stderr)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """``only`` and ``servers`` (names), ``rounds``, ``seconds``, ``limit``, ``results`` and ``render``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure trioserve beside its peers. Workloads: " + ", ".join(WORKLOADS),
    )
    parser.add_argument("--only", action="append", metavar="WORKLOAD", help="names or patterns such as 'tls-*'")
    parser.add_argument("--servers", action="append", metavar="A,B", help="names or patterns: " + ", ".join(SERVERS))
    parser.add_argument("--rounds", type=int, help=f"how often each is measured (default: {ROUNDS})")
    parser.add_argument("--seconds", type=int, help=f"seconds of each measurement (default: {SECONDS})")
    parser.add_argument("--quick", action="store_true", help="what matters most, in under two minutes")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to write")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the report of latest.json anew")
    options = parser.parse_args(arguments)
    whole = not (options.quick or options.only or options.servers)
    options.results = options.results or (FOLDER if whole or options.render else FOLDER / "partial")
    options.limit = QUICK_LIMIT if options.quick else LIMIT
    options.only = choose(parser, options.only, WORKLOADS, QUICK_WORKLOADS if options.quick else None)
    options.servers = choose(parser, options.servers, SERVERS, QUICK_SERVERS if options.quick else None)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    if options.rounds < 1 or options.seconds < 1:
        parser.error("at least one round of one second")
    return options


def choose(
    parser: argparse.ArgumentParser,
    patterns: list[str] | None,
    names: Iterable[str],
    default: tuple[str, ...] | None,
) -> list[str]:
    """The names that these patterns, separated by commas, mean; without patterns the default, or all."""
    if patterns is None:
        return list(default or names)
    chosen: list[str] = []
    for pattern in ",".join(patterns).split(","):
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            parser.error(f"{pattern!r} is none of {', '.join(map(repr, names))}")
        chosen += found
    return [name for name in names if name in chosen]


if __name__ == "__main__":
    main()
