"""One run: every server in turn, several times, with what goes wrong noted and not fatal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from trustme import CA

from .launch import running
from .results import Record, Run, Sample, environment, versions
from .servers import SERVERS
from .workloads import WORKLOADS, Workload

START_AND_STOP = 1.5  # seconds that a server needs for both, more or less


@dataclass(frozen=True)
class Measurement:
    """One server under one workload in one round."""

    workload: Workload
    server: str
    round: int

    @property
    def is_possible(self) -> bool:
        """Whether all that the server needs is installed."""
        return not SERVERS[self.server].missing


def plan(workloads: Sequence[str], servers: Sequence[str], rounds: int) -> list[Measurement]:
    """All measurements in their order: every round begins with another server, so that none always follows the same."""
    measurements: list[Measurement] = []
    for number in range(rounds):
        for workload in map(WORKLOADS.__getitem__, workloads):
            chosen = [server for server in workload.servers if server in servers]
            first = number % len(chosen) if chosen else 0
            measurements += (Measurement(workload, server, number + 1) for server in chosen[first:] + chosen[:first])
    return measurements


def expected_seconds(measurements: Sequence[Measurement], seconds: int) -> float:
    """How long these take, more or less."""
    return sum(
        START_AND_STOP + measurement.workload.load.expected_seconds(seconds)
        for measurement in measurements
        if measurement.is_possible
    )


def carry_out(measurements: Sequence[Measurement], rounds: int, seconds: int, limit: float, folder: Path) -> Run:
    """Measure all, for ``limit`` seconds at most, or until Ctrl-C; ``folder`` is for what lasts no longer."""
    make_certificates(folder)
    records: list[Record] = []
    try:
        measure_all(measurements, seconds, time.monotonic() + limit, folder, records)
    except KeyboardInterrupt:
        print("Interrupted: what there is, is written", file=sys.stderr)
    complete = len(records) == len(measurements)
    return Run(environment(), dict(versions()), rounds, seconds, complete, tuple(records))


def measure_all(
    measurements: Sequence[Measurement], seconds: int, deadline: float, folder: Path, records: list[Record]
) -> None:
    """Measure one after the other, add each to the records, and say on standard error what came out."""
    for number, measurement in enumerate(measurements, 1):
        needed = START_AND_STOP + measurement.workload.load.expected_seconds(seconds)
        if time.monotonic() + needed > deadline:
            print("The time is up: what there is, is written", file=sys.stderr)
            return
        record = measure(measurement, seconds, folder)
        records.append(record)  # before it is told, so that what has been told is kept
        place = f"{number}/{len(measurements)} round {measurement.round} {record.workload:15} {record.server:20}"
        print(place, shown(record, measurement.workload.unit), file=sys.stderr, flush=True)


def measure(measurement: Measurement, seconds: int, folder: Path) -> Record:
    """Start a server, measure it, stop it. What is wrong with it is told, in full on standard error only."""
    workload, server = measurement.workload, SERVERS[measurement.server]
    sample, problem = None, ""
    if server.missing:
        problem = f"not installed: {', '.join(server.missing)}"
    else:
        started = False
        try:
            with running(server, workload.variant, folder) as target:
                started = True
                sample = workload.load.measure(target, seconds)
        except (RuntimeError, OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            print(error, file=sys.stderr)
            problem = "the measurement failed" if started else "does not start"
    return Record(workload.key, server.name, measurement.round, sample, problem)


def shown(record: Record, unit: str) -> str:
    """One line of progress."""
    sample: Sample | None = record.sample
    if sample is None:
        return record.problem
    busy = sample.cpu * sample.rate / 1e6  # where this is far below 100 %, the load is what limits the rate
    more = "".join(f", {name} {value:.2f}" for name, value in sample.more.items())
    wrong = f", {sample.errors} ERRORS" if sample.errors else ""
    return f"{sample.cpu:8.1f} µs CPU per {unit}, {sample.rate:7.0f} {unit}s/s, {busy:4.0%} of a core{more}{wrong}"


def make_certificates(folder: Path) -> None:
    """Write a certificate and its key, in the one form that every server reads."""
    issued = CA().issue_cert("127.0.0.1", "localhost")
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
