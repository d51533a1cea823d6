"""One run, from the start of the server to its end: a rough part, and two steady ones between which nothing grows."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from ..attacks import ATTACKS, CLOCKS, LIMIT, Target
from .app import PREFIX
from .clients import Attacks, GoodClient, Turns, annoy, attack
from .growth import judge_end, judge_pairs
from .http_client import PATIENCE, Address, open_stream
from .ledger import Clocks, Ledger
from .output import judge_output
from .program import Figures, Served, Settings, served
from .trouble import judge_trouble, make_trouble, roll
from .websocket_clients import WebSocketTalker

WORKERS = 2
GOOD, TALKERS, ANNOYING, ATTACKING = 16, 6, 5, 8
"""Clients of each kind at once."""

GRACEFUL, HARD = 4.0, 10.0
"""Seconds of the server's own deadlines for those that it waits for when it stops; a busy machine is slow to end."""

KEEP_ALIVE = 3.0
"""Seconds that the server keeps an idle connection."""

READERS = 20
"""Clients that read nothing, and are there when the server stops."""

HANGING = 4
"""Of these, for whom the application never ends: the server has to cancel it."""

_QUIET = 20.0
"""Seconds in which all that was served for clients that have left must have ended."""

_TROUBLE = 2.0  # seconds that one more would take: to start a worker, say

_METER = 0.25  # seconds between two looks at memory and descriptors


@dataclass(frozen=True)
class Plan:
    """What is asked of a run. It takes some fifteen seconds more, in which nobody does anything but end."""

    seconds: float = 300.0
    seed: int = 0
    codec: str = "auto"
    limit: float = 3.0
    """Seconds that an event loop may be blocked, or a thread stand still."""

    @property
    def parts(self) -> tuple[float, float, float]:
        """Seconds of the rough part and of the two steady ones."""
        return self.seconds * 0.36, self.seconds * 0.24, self.seconds * 0.24

    @property
    def attacks(self) -> list[str]:
        """All that fit into a part of the run several times."""
        return sorted(name for name, one in ATTACKS.items() if one.clock <= max(3, self.parts[-1] / 2))

    @property
    def settings(self) -> Settings:
        options = {
            **CLOCKS,
            # A busy machine lets clients answer late.
            "timeout_keep_alive": KEEP_ALIVE,
            "ws_ping_interval": 3,
            "ws_ping_timeout": 3,
            "http": self.codec,
            "timeout_request": 10,
            "timeout_graceful_shutdown": GRACEFUL,
            "timeout_hard_shutdown": HARD,
            "watchdog": self.limit,
        }
        return Settings(options, WORKERS, self.limit)

    def chance(self, *words: object) -> random.Random:
        return random.Random(f"{self.seed} {words}")


@dataclass
class Peaks:
    """The most that was seen, of one process or of all together. Memory is in MiB."""

    memory: float = 0.0
    all_memory: float = 0.0
    descriptors: int = 0
    threads: int = 0


@dataclass
class Result:
    """What came of a run. ``faults`` are the reasons why it fails, beside those in the ledger."""

    ledger: Ledger
    attacks: Sequence[str]
    """Those that had to be survived."""
    fresh: list[Figures] = field(default_factory=list)
    first: list[Figures] = field(default_factory=list)
    last: list[Figures] = field(default_factory=list)
    peaks: Peaks = field(default_factory=Peaks)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each part took."""
    stop_seconds: float = 0.0
    exit_code: int | None = None
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def all_faults(self) -> list[str]:
        ledger = self.ledger
        found = list(ledger.examples)
        if ledger.wrong or ledger.failed:
            found.append(f"{ledger.wrong} wrong answers, and {ledger.failed} failures without cause")
        found += [f"an attack was not survived: {one}" for one in ledger.unmet]
        found += [f"never come to its end: the attack {name}" for name in self.attacks if not ledger.survived[name]]
        return [*found, *self.faults]


async def run(plan: Plan, folder: Path) -> Result:
    """Run it all; ``folder`` is for what the server needs."""
    ledger = Ledger(Clocks(KEEP_ALIVE, GRACEFUL))
    result = Result(ledger, plan.attacks)
    began = trio.current_time()
    async with served(plan.settings, folder) as server:
        result.seconds["start"] = trio.current_time() - began
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_peaks, server, result.peaks)
            nursery.start_soon(_watch_own_lateness, ledger)
            await _load(plan, server, result)
            nursery.cancel_scope.cancel()
        await _stop(server, result)
        result.lines = server.output.lines
    result.faults += judge_output(result.lines, ledger) + judge_trouble(ledger)
    return result


async def _load(plan: Plan, server: Served, result: Result) -> None:
    ledger = result.ledger
    rough, first, second = plan.parts
    await server.wait_for_workers(WORKERS)
    turns = Turns(plan.attacks, plan.chance("attacks"))
    with _measured(result, "rough"):
        async with trio.open_nursery() as nursery:
            deadline = trio.current_time() + rough - _TROUBLE
            chance = plan.chance("trouble")
            nursery.start_soon(make_trouble, server, ledger, chance, WORKERS, lambda: trio.current_time() >= deadline)
            await _be_clients(plan, server, ledger, turns, rough)
    # All of one age, and none that has been through what the others have not.
    with _measured(result, "settling"):
        await _settle(server, ledger, plan)
        result.fresh = await _wait_quiet(server, [], result)
    with _measured(result, "first steady part"):
        await _be_clients(plan, server, ledger, turns, first)
        result.first = await _wait_quiet(server, result.fresh, result)
    with _measured(result, "second"):
        await _be_clients(plan, server, ledger, turns, second)
        await _finish_attacks(plan, server.addresses, ledger)
        result.last = await _wait_quiet(server, result.fresh, result)
    result.faults += judge_pairs(result.first, result.last)


@contextmanager
def _measured(result: Result, name: str) -> Iterator[None]:
    began = trio.current_time()
    yield
    result.seconds[name] = trio.current_time() - began


async def _be_clients(plan: Plan, server: Served, ledger: Ledger, turns: Turns, seconds: float) -> None:
    """Be all kinds of clients for so long; returns when each has had its last answer."""
    deadline = trio.current_time() + seconds
    addresses = server.addresses

    def is_over() -> bool:
        return trio.current_time() >= deadline

    run = _all_attacks(addresses)
    async with _bounded(seconds + PATIENCE + LIMIT) as nursery:
        for number in range(GOOD):
            client = GoodClient(number, addresses, ledger, plan.chance("good", number))
            nursery.start_soon(client.run, is_over)
        for number in range(TALKERS):
            talker = WebSocketTalker(number, addresses, ledger, plan.chance("talker", number))
            nursery.start_soon(talker.run, is_over)
        for number in range(ANNOYING):
            nursery.start_soon(annoy, addresses, ledger, plan.chance("annoying", number), is_over)
        for number in range(ATTACKING):
            nursery.start_soon(_attack_until, deadline, run, turns, ledger, plan.chance("attacking", number))
        if seconds > PATIENCE:
            waiter = GoodClient(GOOD, addresses, ledger, plan.chance("waiter"))
            nursery.start_soon(waiter.wait_for_deadlines, is_over)


def _all_attacks(addresses: list[Address]) -> Attacks:
    return {name: partial(_attack_one, name, addresses) for name in ATTACKS}


async def _finish_attacks(plan: Plan, addresses: list[Address], ledger: Ledger) -> None:
    """Attack in the ways that had always been cut short: the machine is too slow for as many."""
    run = _all_attacks(addresses)
    async with trio.open_nursery() as nursery:
        for name in plan.attacks:
            if not ledger.survived[name]:
                nursery.start_soon(partial(attack, run, Turns([name]), ledger, plan.chance(name), times=1))


async def _attack_until(deadline: float, run: Attacks, turns: Turns, ledger: Ledger, chance: random.Random) -> None:
    """An attack that is going on then ends as attacks do whose program is killed."""
    with trio.move_on_at(deadline):
        await attack(run, turns, ledger, chance)


async def _attack_one(name: str, addresses: list[Address], chance: random.Random) -> None:
    one = ATTACKS[name]
    address = chance.choice([each for each in addresses if each.tls is not None or not one.needs_tls])
    await one(Target(address.host, address.port, address.tls), chance)


@asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            yield nursery


async def _settle(server: Served, ledger: Ledger, plan: Plan) -> None:
    """Bring the number of workers back to what it was, and replace all."""
    await trio.sleep(0.5)
    await server.wait_for_ready(WORKERS)
    await roll(server, ledger, plan.chance("settle"))
    await server.wait_for_workers(WORKERS)


async def _wait_quiet(server: Served, fresh: list[Figures], result: Result) -> list[Figures]:
    """Wait until nothing is left of the load in any worker, or it is known what; returns the figures."""
    before = {one.pid: one for one in fresh}
    figures: list[Figures] = []
    left = ["no worker answers"]
    with trio.move_on_after(_QUIET):
        while left:
            await trio.sleep(0.2)
            with suppress(OSError):  # one has ended, and its successor is not ready
                figures = [await server.ask(pid) for pid in sorted(server.workers)]
                left = [text for one in figures if one.pid in before for text in judge_end(before[one.pid], one)]
    result.faults += left
    return figures


async def _stop(server: Served, result: Result) -> None:
    """Stop the server while some clients read nothing; it keeps its deadlines, and nothing of it is left."""
    async with trio.open_nursery() as nursery:
        for number in range(READERS):
            target = "hang?head=yes" if number < HANGING else "download?seed=1&size=100000000"
            await nursery.start(_read_nothing, server.addresses[number % len(server.addresses)], target)
        began = trio.current_time()
        server.signal(signal.SIGTERM)
        with trio.move_on_after(GRACEFUL + HARD + PATIENCE):
            result.exit_code = await server.process.wait()
        result.stop_seconds = trio.current_time() - began
        nursery.cancel_scope.cancel()
    result.faults += judge_stop(result.exit_code, result.stop_seconds, len(server.group))


def judge_stop(exit_code: int | None, seconds: float, left: int) -> list[str]:
    """What is wrong with how the server stopped; ``left`` of its processes were there then."""
    found = []
    if exit_code is None:
        found.append(f"the server has not stopped in {seconds:.1f} s")
    elif exit_code != 0:
        found.append(f"the server stopped with exit code {exit_code}")
    if seconds > GRACEFUL + HARD:
        found.append(f"the server took {seconds:.1f} s to stop, of {GRACEFUL + HARD:g} that it had")
    if left:
        found.append(f"{left} processes of the server are left")
    return found


async def _read_nothing(
    address: Address, target: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    stream = await open_stream(address)
    try:
        await stream.send_all(f"GET {PREFIX}{target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await stream.receive_some(1)
        task_status.started()
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(stream)


async def _watch_peaks(server: Served, peaks: Peaks) -> None:
    while True:
        memory = server.memory()
        peaks.memory = max([peaks.memory, *memory.values()])
        peaks.all_memory = max(peaks.all_memory, sum(memory.values()))
        for pid in memory:
            try:
                peaks.descriptors = max(peaks.descriptors, len(os.listdir(f"/proc/{pid}/fd")))
                peaks.threads = max(peaks.threads, len(os.listdir(f"/proc/{pid}/task")))
            except OSError:  # it has just ended
                continue
        await trio.sleep(_METER)


async def _watch_own_lateness(ledger: Ledger) -> None:
    while True:
        due = trio.current_time() + 0.1
        await trio.sleep_until(due)
        ledger.was_late(trio.current_time() - due)
