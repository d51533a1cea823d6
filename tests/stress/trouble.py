"""What the driver does to the server's processes while clients are there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable

import trio

from .ledger import Ledger
from .program import START_PATIENCE, Served

_ROLLED = ("all workers are replaced", "the new worker cannot start, so the old ones stay")
_ROLL_PATIENCE = 60.0


async def make_trouble(
    server: Served, ledger: Ledger, chance: random.Random, workers: int, is_over: Callable[[], bool]
) -> None:
    """Kill, roll, and resize, one after the other, each at least once; each leaves as many workers as there were."""
    ahead = len(ESSENTIAL)
    troubles = chance.sample(ESSENTIAL, ahead)
    while ahead > 0 or not is_over():
        ahead -= 1
        troubles = troubles or chance.sample(TROUBLES, len(TROUBLES))
        await trio.sleep(chance.uniform(0.2, 1.0))
        # Never a second death before the first is made up for: to lose all of them is another story.
        await server.wait_for_ready(workers)
        await troubles.pop()(server, ledger, chance)


def judge_trouble(ledger: Ledger) -> list[str]:
    """What is wrong with a run in which nothing happened."""
    counts = {"killed": len(ledger.kills), "rolled": ledger.rolls, "resized": ledger.resizes}
    return [f"no worker was {what}, so that this shows little" for what, count in counts.items() if not count]


async def kill(server: Served, ledger: Ledger, chance: random.Random) -> None:
    pid = chance.choice(sorted(server.ready))
    ledger.killed(pid)
    with contextlib.suppress(ProcessLookupError):  # it has just left
        os.kill(pid, signal.SIGKILL)


async def roll(server: Served, ledger: Ledger, chance: random.Random) -> None:
    """Replace all workers."""
    since = len(server.output.lines)
    ledger.rolls += 1
    leaving = ledger.begin_leaving()
    server.signal(signal.SIGHUP)
    with trio.fail_after(_ROLL_PATIENCE):
        await server.output.wait_for(*_ROLLED, since=since)
    leaving.ended = trio.current_time()


async def roll_and_kill(server: Served, ledger: Ledger, chance: random.Random) -> None:
    """Kill one while they are replaced."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(roll, server, ledger, chance)
        await trio.sleep(chance.uniform(0, 1.5))
        await kill(server, ledger, chance)


async def resize(server: Served, ledger: Ledger, chance: random.Random) -> None:
    """One worker more, and then one fewer."""
    before = server.workers
    ledger.resizes += 1
    server.signal(signal.SIGTTIN)
    with trio.fail_after(START_PATIENCE):
        while server.ready <= before:
            await trio.sleep(0.05)
    await trio.sleep(chance.uniform(0.2, 1))
    since = len(server.output.lines)
    leaving = ledger.begin_leaving()
    server.signal(signal.SIGTTOU)
    with trio.fail_after(_ROLL_PATIENCE):
        await server.output.wait_for("one worker fewer", since=since)
    leaving.ended = trio.current_time()


async def retire_one(server: Served, ledger: Ledger, chance: random.Random) -> None:
    """Ask one worker to leave, past its supervisor."""
    pid = chance.choice(sorted(server.ready))
    leaving = ledger.begin_leaving()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    leaving.ended = trio.current_time() + 1  # its signal handler has run by then


Trouble = Callable[[Served, Ledger, random.Random], Awaitable[None]]
ESSENTIAL: tuple[Trouble, ...] = (kill, roll, resize)
TROUBLES: tuple[Trouble, ...] = (kill, roll, kill, resize, roll_and_kill, retire_one)
