"""Runs wrk, and reads what it counted."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from .results import Sample

SCRIPT = Path(__file__).with_name("wrk.lua")
MARK = "COUNTED "
HOW_TO_GET_IT = "The benchmarks need wrk: `apt-get install wrk`, `brew install wrk`, or build github.com/wg/wrk"


@dataclass(frozen=True)
class Counts:
    """What wrk counted; microseconds and bytes."""

    requests: int  # answers, also bad ones
    bytes: int  # with the heads
    microseconds: int
    p50: int
    p99: int
    connect: int
    read: int
    write: int
    timeout: int
    status: int  # answers of 400 and more

    @property
    def errors(self) -> int:
        """All that went wrong."""
        return self.connect + self.read + self.write + self.timeout + self.status

    def without(self, shorter: Counts) -> Counts:
        """What is left of these counts without those of a shorter run; times and errors stay those of the longer."""
        return replace(
            self,
            requests=self.requests - shorter.requests,
            bytes=self.bytes - shorter.bytes,
            microseconds=self.microseconds - shorter.microseconds,
        )


def is_missing() -> bool:
    """Whether there is no wrk."""
    return shutil.which("wrk") is None


def run(
    url: str, connections: int, seconds: int, *, upload: int = 0, headers: tuple[str, ...] = (), varies: bool = False
) -> Counts:
    """Load a server for some seconds; ``upload`` is how many bytes each request brings, 0 makes it a GET.

    ``varies``: no two requests have the same target.
    """
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}s", f"--script={SCRIPT}"]
    command += [f"--header={header}" for header in headers]
    more = [f"upload={upload}"] if upload else []
    if varies:
        more.append("vary")
    done = subprocess.run(
        [*command, url, "--", *more], check=True, capture_output=True, text=True, timeout=seconds + 60
    )
    return parse(done.stdout)


def parse(output: str) -> Counts:
    """Read the line that our script has wrk print; raises RuntimeError if it is not there."""
    for line in output.splitlines():
        if line.startswith(MARK):
            return Counts(**json.loads(line.removeprefix(MARK)))
    raise RuntimeError(f"wrk did not say what it counted:\n{output}")


def take_sample(counts: Counts, used: float, body: int) -> Sample:
    """The sample of these counts, with the CPU that the server used meanwhile, in microseconds.

    ``body`` is how many bytes each answer must bring at least. Where they have brought less together, the missing
    answers count as errors. Raises RuntimeError if nothing was answered well.
    """
    short = max(0, counts.requests - counts.bytes // body)
    good = counts.requests - counts.status - short
    if good <= 0:
        raise RuntimeError(f"nothing was answered well: {counts}")
    return Sample(
        cpu=used / good,
        rate=good / (counts.microseconds / 1e6),
        p50=counts.p50 / 1e3,
        p99=counts.p99 / 1e3,
        errors=counts.errors + short,
    )
