"""The server's log, read line by line, and judged: what in it nobody has asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import trio

from .ledger import Ledger

_URL = re.compile(r"(https?)://127\.0\.0\.1:(\d+)")
_END = re.compile(r"worker (\d+) (?:was ended by (?:signal )?(\w+)|ended with exit code (\d+))")
_ASKED = ("/stress/fail", "/stress/anything", "/stress/abandon")
"""Requests for errors, in the words of the log."""

BROKEN_TREE = "a connection ended in an error"

DUMPS = ("has been blocked for", "the event loop does not run", "has not ended in time", "stands still for")
"""What the watchdogs say."""


class Output:
    """What came on the server's standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = trio.Event()
        self.ended = trio.Event()

    async def read(self, stream: trio.abc.ReceiveStream) -> None:
        rest = b""
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            self.take(*(line.decode(errors="replace") for line in lines))
        self.take(*([rest.decode(errors="replace")] if rest else []))
        self.ended.set()

    def take(self, *lines: str) -> None:
        self.lines += lines
        self._news.set()
        self._news = trio.Event()

    async def wait_for(self, *texts: str, since: int = 0) -> None:
        """Wait until a line with one of these has come, from line ``since`` on."""
        while not any(text in line for line in self.lines[since:] for text in texts):
            await self._news.wait()

    @property
    def urls(self) -> list[tuple[str, int]]:
        """Where it says that it listens: scheme and port."""
        return [
            (found[1], int(found[2])) for line in self.lines if "listening on" in line for found in _URL.finditer(line)
        ]


@dataclass(frozen=True)
class Record:
    """A line of the log."""

    level: str
    message: str
    request_line: str
    exception: str


def read_records(lines: list[str]) -> Iterator[Record | str]:
    """The log's records, and as text what is none: each run of such lines is one."""
    strange: list[str] = []
    for line in lines:
        record = _read_record(line)
        if record is None:
            strange.append(line)
            continue
        if strange:
            yield "\n".join(strange)
            strange = []
        yield record
    if strange:
        yield "\n".join(strange)


def _read_record(line: str) -> Record | None:
    try:
        values: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or "message" not in values:
        return None
    return Record(values["level"], values["message"], values.get("request_line", ""), values.get("exception", ""))


def judge_output(lines: list[str], ledger: Ledger) -> list[str]:
    """What in the log nobody has asked for, each in words."""
    found = []
    breaks = 0
    cut = 0  # lines of workers that were killed while they wrote
    for record in read_records(lines):
        if isinstance(record, str):
            if record.startswith('{"time"') and "\n" not in record:
                cut += 1
            else:
                is_dump = any(text in record for text in DUMPS)
                found.append(f"{'a watchdog' if is_dump else 'an output that is no log'}: {record[:4000]}")
        elif any(text in record.message for text in DUMPS):
            found.append(f"a watchdog: {record.message[:4000]}")
        elif record.message.startswith(BROKEN_TREE):
            breaks += 1
        elif (reason := _judge_record(record, ledger)) is not None:
            found.append(reason)
    if breaks > ledger.breakers:
        found.append(f"{breaks} connections ended in an error, {ledger.breakers} were asked to")
    if cut > len(ledger.kills):
        found.append(f"{cut} lines of the log are cut, {len(ledger.kills)} workers were killed")
    return found


def _judge_record(record: Record, ledger: Ledger) -> str | None:
    if end := _END.match(record.message):
        pid, killer, code = int(end[1]), end[2], end[3]
        if code == "0" or (killer == "SIGKILL" and pid in ledger.killed_workers):
            return None
        return record.message
    is_bad = record.level in ("error", "critical") or record.exception
    if is_bad and not any(path in record.request_line for path in _ASKED):
        return f"{record.level}: {record.message} {record.exception[-3000:]}"
    return None


def count_messages(lines: list[str]) -> Counter[str]:
    """How often the log says what, without numbers and names."""
    records = [one for one in read_records(lines) if isinstance(one, Record)]
    return Counter(f"{one.level}: {re.sub(r'[0-9.]+', 'N', one.message.partition(': ')[0])[:80]}" for one in records)
