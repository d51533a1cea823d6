"""The ways to load a server that runs, and to measure what it costs."""

from __future__ import annotations

import json
import resource
import ssl
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, replace
from typing import Protocol

from . import wrk
from .app import BODY
from .launch import Running
from .processes import cpu_time, memory
from .results import Sample

WARM_UP = 1  # seconds of load before each measurement
SPARE_FILES = 200  # what a process has open besides its connections


class Load(Protocol):
    """What a server is loaded with."""

    def measure(self, target: Running, seconds: int) -> Sample:
        """Warm the server up, then load it for some seconds; raises RuntimeError or OSError if that fails."""
        ...

    def expected_seconds(self, seconds: int) -> float:
        """How long ``measure`` takes."""
        ...


@dataclass(frozen=True)
class Requests:
    """HTTP requests by wrk."""

    connections: int = 64
    path: str = ""
    body: int = len(BODY)  # bytes of each answer
    upload: int = 0  # bytes of each request
    headers: tuple[str, ...] = ()
    varies: bool = False  # each request has a target of its own
    opening: int = 0  # seconds of the shorter run that is taken off; 0 if there is none

    def measure(self, target: Running, seconds: int) -> Sample:
        """See Load.

        wrk opens its connections within the run. Where that costs much, a run of ``opening`` seconds, in which all of
        them are opened, is measured too, and taken off: what is left has no openings in it. It is noisier, though.
        """
        url = target.url + self.path
        check_answer(url, self.body, self.upload)
        self.run(url, WARM_UP)
        times = [cpu_time(target.pid)]
        shorter = None
        if self.opening:
            shorter = self.run(url, self.opening)
            times.append(cpu_time(target.pid))
        counts = self.run(url, self.opening + seconds)
        times.append(cpu_time(target.pid))
        used = times[-1] - times[-2]
        if shorter is None:
            return wrk.take_sample(counts, used, self.body)
        return wrk.take_sample(counts.without(shorter), used - (times[1] - times[0]), self.body)

    def run(self, url: str, seconds: int) -> wrk.Counts:
        """Have wrk make them."""
        return wrk.run(url, self.connections, seconds, upload=self.upload, headers=self.headers, varies=self.varies)

    def expected_seconds(self, seconds: int) -> float:
        """See Load."""
        return WARM_UP + seconds + 2 * self.opening


def check_answer(url: str, body: int, upload: int) -> None:
    """Make one request, and raise RuntimeError if its answer is not what it should be."""
    request = urllib.request.Request(url, b"x" * upload or None)  # noqa: S310 - it is ours
    context = ssl._create_unverified_context() if url.startswith("https:") else None  # noqa: S323 - and so it is here
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310 - it is ours
        length = len(answer.read())
    if answer.status != 200 or length != body:
        raise RuntimeError(f"the answer is {answer.status} with {length} bytes, not 200 with {body}")


@dataclass(frozen=True)
class Own:
    """What our own generator does: see ``benchmarks.load``."""

    kind: str
    options: tuple[str, ...] = ()
    opening: float = 0  # seconds until its connections are open, more or less
    times: int = 1  # how much longer it is measured than others

    def measure(self, target: Running, seconds: int) -> Sample:
        """See Load."""
        command = [sys.executable, "-m", "benchmarks.load", self.kind, target.url, f"--pid={target.pid}"]
        command += [f"--warm-up={WARM_UP}", f"--seconds={self.times * seconds}", *self.options]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=self.times * seconds + 60)
        if done.returncode:
            raise RuntimeError(f"the load generator failed:\n{done.stderr.strip()}")
        sys.stderr.write(done.stderr)
        return Sample(**json.loads(done.stdout))

    def expected_seconds(self, seconds: int) -> float:
        """See Load."""
        return WARM_UP + self.times * seconds + self.opening + 0.3


@dataclass(frozen=True)
class Idle:
    """Idle connections: what each holds of memory, and what they cost those that are busy.

    The sample is of the busy ones while the idle ones are held.
    """

    connections: int
    busy: Requests = Requests()

    def measure(self, target: Running, seconds: int) -> Sample:
        """See Load."""
        check_files(self.connections)
        alone = self.busy.measure(target, seconds)
        before = memory(target.pid)
        command = [sys.executable, "-m", "benchmarks.load", "hold", target.url, f"--connections={self.connections}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            try:
                assert holder.stdout is not None
                if holder.stdout.readline().strip() != "held":
                    raise RuntimeError(f"{self.connections} idle connections could not be opened")
                held, used, start = memory(target.pid), cpu_time(target.pid), time.perf_counter()
                time.sleep(1)  # what is measured is that nothing happens
                idle = (cpu_time(target.pid) - used) / (time.perf_counter() - start)
                sample = self.busy.measure(target, seconds)
                left = json.loads(holder.communicate(timeout=30)[0])["left"]
            finally:
                holder.kill()
        more = {"alone": alone.cpu, "busy": sample.cpu / alone.cpu, "idle": idle}
        more["memory"] = (held - before) / 1024 / self.connections
        return replace(sample, errors=alone.errors + sample.errors + self.connections - left, more=more)

    def expected_seconds(self, seconds: int) -> float:
        """See Load."""
        return 2 * self.busy.expected_seconds(seconds) + 1 + self.connections / 2000


def raise_file_limit() -> None:
    """Let us and the processes we start have as many files open as the administrator allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_files(connections: int) -> None:
    """Raise RuntimeError if so many connections need more files than a process may have open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < connections + SPARE_FILES:
        raise RuntimeError(f"a process may open {limit} files only, not {connections}: see `ulimit -Hn`")
