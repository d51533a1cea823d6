"""The benchmarks as they are run: short measurements of trioserve alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from benchmarks import results

from .clients import find_tool

ROOT = Path(__file__).parents[2]


def test_a_short_measurement(tmp_path: Path):
    """The report has figures, and nothing that names this machine or its folders."""
    find_tool("wrk")
    command = [sys.executable, "-m", "benchmarks", "--only=hello-64", "--servers=trioserve h11"]
    command += ["--rounds=1", "--seconds=1", f"--results={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert "trioserve h11: python -m trioserve benchmarks.app:app" in done.stdout
    run = results.read(tmp_path / "latest.json")
    (measured,) = run.samples("hello-64", "trioserve h11")
    assert measured.errors == 0
    assert 1 < measured.cpu < 10_000
    written = "".join(path.read_text() for path in (tmp_path / "latest.json", tmp_path / "latest.md"))
    assert re.search(r"\| \*\*trioserve h11\*\* \| \d", written)
    assert set(run.environment) == {"Python", "kernel", "CPUs", "OpenSSL", "wrk"}
    for folder in (ROOT, tmp_path, sys.prefix):
        assert str(folder) not in written


def test_ctrl_c_ends_the_server_and_keeps_what_there_is(tmp_path: Path):
    """Whatever it is doing: nothing of it is left, and what was measured before is in the report."""
    find_tool("wrk")
    mark = str(uuid.uuid4())
    command = [sys.executable, "-m", "benchmarks", "--only=hello-64", "--servers=trioserve h11"]
    command += ["--rounds=50", "--seconds=1", f"--results={tmp_path}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "MARK": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while "1/50 round 1" not in (line := process.stderr.readline()):
            assert line, "it has ended"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "Interrupted" in said
    assert not marked_processes(mark)
    assert "cut short" in (tmp_path / "latest.md").read_text()
    assert len(results.read(tmp_path / "latest.json").records) == 1


def marked_processes(mark: str) -> list[str]:
    """The processes that have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:  # it has just ended, or is another's
            continue
    return found
