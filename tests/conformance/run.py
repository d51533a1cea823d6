"""Runs the Autobahn test suite's fuzzing client against a server: `python -m tests.conformance.run --help`.

It fails unless every case passes, every case ran, the server logged no traceback, and the server stopped when told to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CASES = tuple(f"{section}.*" for section in (1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13))  # the suite has no others
SERVER = (sys.executable, "-m", "trioserve", "tests.conformance.echo:app", "--port", "0", "--no-access-log")
PATIENCE = 30  # seconds for a server's start and stop
YEAR = 365 * 24 * 3600  # seconds
AGENT = "server"  # what the reports call the server
EXPLAINED = 20  # failed cases that are told in full

# The suite gives INFORMATIONAL, whatever happens, to 7.1.6, 7.13.1 and 7.13.2: RFC 6455 leaves their outcome open.
ACCEPTED = {"OK", "INFORMATIONAL"}
# Cases that may also be NON-STRICT: the server broke no rule, but an error overtook the message before it (as in 3.2)
# or was seen late (6.4). None is accepted now; one that has to be is listed here with its reason.
NON_STRICT: dict[str, str] = {}


@dataclass
class Case:
    """What came of one case: the suite judges the messages, and how the connection was closed."""

    id: str
    behavior: str
    behavior_close: str
    seconds: float
    report: Path

    @property
    def section(self) -> int:
        return int(self.id.split(".")[0])

    @property
    def order(self) -> list[int]:
        return [int(number) for number in self.id.split(".")]

    @property
    def passed(self) -> bool:
        accepted = ACCEPTED | {"NON-STRICT"} if self.id in NON_STRICT else ACCEPTED
        return self.behavior in accepted and self.behavior_close in accepted

    @property
    def informational(self) -> bool:
        return self.passed and "INFORMATIONAL" in (self.behavior, self.behavior_close)


class Failure(Exception):
    """The cases could not be run to their end."""


@contextmanager
def serve(command: list[str], log: Path, problems: list[str]) -> Iterator[str]:
    """Start the server, and give the URL that it says it listens on; what goes wrong as it stops is a problem too."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRIOSERVE_")}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=REPOSITORY, env=inherited, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield wait_for_url(process, log)
            if process.poll() is not None:
                problems.append(f"the server ended by itself, with exit code {process.returncode}")
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                problems.append(f"the server did not stop within {PATIENCE} s of SIGTERM")
                process.kill()


def wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the line in which a server names its port."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+\b", log.read_text(errors="replace")):
            return found[0].replace("http", "ws", 1)
        time.sleep(0.05)
    raise Failure(f"the server named no URL:\n{log.read_text(errors='replace')}")


def fuzz(wstest: str, url: str, patterns: list[str], folder: Path, deadline: float) -> list[str]:
    """Run the fuzzing client to its end, and give the ids of the cases it meant to run."""
    specification = folder / "fuzzingclient.json"
    specification.write_text(
        json.dumps({"outdir": str(folder), "servers": [{"agent": AGENT, "url": url}], "cases": patterns})
    )
    said = []
    section = None
    with subprocess.Popen(
        [wstest, "--mode", "fuzzingclient", "--spec", str(specification)],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},  # its progress is shown as it comes
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        too_late = threading.Event()
        timer = threading.Timer(deadline, lambda: (too_late.set(), process.kill()))
        timer.start()
        try:
            for line in process.stdout:
                said.append(line)
                if (running := re.match(r"Running test case ID (\d+)", line)) and running[1] != section:
                    section = running[1]
                    print(f"section {section} ...", flush=True)
            process.wait()
        finally:
            timer.cancel()
            process.kill()  # does nothing to one that has ended
    (folder / "wstest.log").write_text("".join(said))
    end = "".join(said[-20:])
    if too_late.is_set():
        raise Failure(f"the cases took longer than {deadline:g} s; the last lines of wstest:\n{end}")
    planned = next((re.findall(r"'([\d.]+)'", line) for line in said if line.startswith("Cases = ")), [])
    if process.returncode != 0 or not planned:
        raise Failure(f"wstest ran no cases, or failed (exit code {process.returncode}):\n{end}")
    return planned


def read_results(folder: Path) -> list[Case]:
    """The cases that ran, in their order."""
    try:
        found = json.loads((folder / "index.json").read_text())[AGENT]
    except (FileNotFoundError, KeyError):
        raise Failure("wstest left no results") from None
    cases = []
    for name, result in found.items():
        seconds = result["duration"] / 1000
        if seconds > YEAR:
            seconds = 0.0  # without a handshake the suite counts from 1970
        cases.append(Case(name, result["behavior"], result["behaviorClose"], seconds, folder / result["reportfile"]))
    return sorted(cases, key=lambda case: case.order)


def table(cases: list[Case]) -> str:
    """How many cases passed, section by section."""
    sections = defaultdict(list)
    for case in cases:
        sections[f"{case.section}"].append(case)
    sections["all"] = cases
    lines = ["section  passed  informational  failed  seconds"]
    for name, members in sections.items():
        informational = sum(case.informational for case in members)
        failed = sum(not case.passed for case in members)
        passed = len(members) - informational - failed
        seconds = sum(case.seconds for case in members)
        lines.append(f"{name:>7}  {passed:6}  {informational:13}  {failed:6}  {seconds:7.1f}")
    return "\n".join(lines)


def explain(case: Case) -> str:
    """What a case did, what should have come of it, and what did."""
    report = json.loads(case.report.read_text(errors="replace"))
    close = report["expectedClose"]
    rows = {
        "case": report["description"],
        "should": report["expectation"],
        "messages": f"{case.behavior}: {report['result']}",
        "expected": report["expected"],
        "received": report["received"],
        "close": f"{case.behavior_close}: {report['resultClose']}",
        "code": f"{report['remoteCloseCode']}, should be in {close.get('closeCode')}, clean: {report['wasClean']}"
        f" {report['wasNotCleanReason'] or ''}",
    }
    lines = [f"{case.id} failed in {case.seconds:.1f} s"]
    for name, value in rows.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"    {name + ':':10}{textwrap.shorten(re.sub(r'<[^>]*>', ' ', text), 400)}")
    return "\n".join(lines)


def check(options: argparse.Namespace, folder: Path) -> bool:
    """Run the cases and say what came of them; whether all is well."""
    (folder / "index.json").unlink(missing_ok=True)  # an earlier run's
    log = folder / "server.log"
    problems: list[str] = []
    with serve(options.server_command, log, problems) as url:
        print(f"server at {url}", flush=True)
        planned = fuzz(options.autobahn, url, options.cases, folder, options.deadline)
    cases = read_results(folder)
    failed = [case for case in cases if not case.passed]
    ran = {case.id for case in cases}
    if missing := [name for name in planned if name not in ran]:
        problems.append(f"these cases did not run: {' '.join(missing)}")
    said = log.read_text(errors="replace")
    if "Traceback" in said:
        beginning = max(0, said.index("Traceback") - 400)
        problems.append(f"the server logged a traceback:\n{said[beginning : beginning + 3000]}")
    if rest := failed[EXPLAINED:]:
        problems.append(f"these cases failed too: {' '.join(case.id for case in rest)}")
    print("\n".join(["", table(cases), "", *map(explain, failed[:EXPLAINED]), *problems]))
    print(f"conformance: {len(cases) - len(failed)} passed, {len(failed)} failed")
    return not failed and not problems


def main() -> int:
    """The exit code is 0 if all is well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__)
    parser.add_argument("--autobahn", required=True, metavar="WSTEST", help="the path of Autobahn's wstest")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="PATTERN", help="such as '1.*' or 7.1.6 (all)")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="keep Autobahn's report and the logs here")
    parser.add_argument("--deadline", type=float, default=3600, metavar="SECONDS", help="for all cases (%(default)s)")
    parser.add_argument(
        "--server-command",
        type=shlex.split,
        default=SERVER,
        metavar="COMMAND",
        help="another server to test; it must print the http:// URL it listens on, with 127.0.0.1 and the port",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.report or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return 0 if check(options, folder) else 1
        except Failure as failure:
            print(f"conformance: {failure}")
            return 1


if __name__ == "__main__":
    sys.exit(main())
