"""What was measured: samples, the records of a run, and the file that keeps them."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .servers import installed

PACKAGES = (
    "trioserve",
    "trio",
    "h11",
    "wsproto",
    "httptools",
    "uvicorn",
    "uvloop",
    "websockets",
    "granian",
    "gunicorn",
    "hypercorn",
    "anycorn",
    "fastapi",
    "pydantic",
)


@dataclass(frozen=True)
class Sample:
    """One run of a load against one server; an exchange is a request or a message with its answer."""

    cpu: float  # µs per exchange that was answered well, user and system, of all the server's processes
    rate: float  # exchanges per second
    p50: float  # ms
    p99: float  # ms
    errors: int  # failed exchanges
    more: dict[str, float] = field(default_factory=dict[str, float])  # what only this workload tells


@dataclass(frozen=True)
class Record:
    """One measurement: its sample, or why there is none."""

    workload: str
    server: str
    round: int
    sample: Sample | None
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """All that is known of one run of the benchmarks."""

    environment: dict[str, str]
    versions: dict[str, str]
    rounds: int
    seconds: int
    complete: bool  # false if it was interrupted, or its time was up
    records: tuple[Record, ...]

    def samples(self, workload: str, server: str) -> list[Sample]:
        """The samples of one server under one workload, round by round."""
        return [
            record.sample
            for record in self.records
            if record.workload == workload and record.server == server and record.sample is not None
        ]

    def problems(self, workload: str, server: str) -> list[str]:
        """Why there is no sample, in the rounds where there is none."""
        return [
            record.problem
            for record in self.records
            if record.workload == workload and record.server == server and record.problem
        ]

    def servers(self, workload: str) -> list[str]:
        """The servers under this workload, each once."""
        return list(dict.fromkeys(record.server for record in self.records if record.workload == workload))

    def value(self, workload: str, server: str, figure: Figure) -> float | None:
        """The median of one figure; None if nothing was measured."""
        samples = self.samples(workload, server)
        return median(map(figure, samples)) if samples else None

    def ratios(self, workload: str, ours: str, theirs: str, figure: Figure) -> list[float]:
        """How one server stands to another in each round that has both: the machine's mood changes between rounds."""
        by_round: dict[int, dict[str, Sample]] = {}
        for record in self.records:
            if record.workload == workload and record.sample is not None:
                by_round.setdefault(record.round, {})[record.server] = record.sample
        return [
            figure(samples[ours]) / figure(samples[theirs])
            for samples in by_round.values()
            if ours in samples and theirs in samples and figure(samples[theirs])
        ]


Figure = Callable[[Sample], float]


def cpu(sample: Sample) -> float:
    """The figure that most is about."""
    return sample.cpu


def extra(name: str) -> Figure:
    """A figure that only some workloads have."""
    return lambda sample: sample.more[name]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return median(values), min(values), max(values)


def write(run: Run, path: Path) -> None:
    """Keep a run."""
    path.write_text(json.dumps(asdict(run), indent=1) + "\n")


def read(path: Path) -> Run:
    """Read a run that `write` has kept."""
    values: dict[str, Any] = json.loads(path.read_text())
    records = tuple(
        Record(**{**record, "sample": record["sample"] and Sample(**record["sample"])})
        for record in values.pop("records")
    )
    return Run(**values, records=records)


def environment() -> dict[str, str]:
    """What everything runs on, without the names of the machine and of its folders."""
    return {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "CPUs": f"{os.cpu_count()} of {processor()}",
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "wrk": wrk_version(),
    }


def versions() -> Mapping[str, str]:
    """The versions of all that has a part in it."""
    return installed(PACKAGES)


def processor() -> str:
    """What the kernel calls the processor."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.machine()


def wrk_version() -> str:
    """The version that wrk tells with its usage."""
    program = shutil.which("wrk")
    if program is None:
        return "not installed"
    usage = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=10).stdout
    return usage.split(" [")[0].removeprefix("wrk ").strip()
