"""Stopping while under attack: the deadlines hold, whatever clients do."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.asgi import session
from trioserve.types import Receive, Scope, Send

from .attacks import ATTACKS, Attack, Target
from .attacks.app import PIECE
from .attacks.host import ON_BOTH, attackable
from .attacks.peer import peer, raw_peer, request
from .support import RunningServer, http_app, send_text

pytestmark = pytest.mark.timeout(100)

GRACE = 0.3
PATIENCE = 1.0
"""What a head or a handshake in progress has at a stop, and a goodbye after the cancelling."""

LINGERING = 2.0
"""In which a client that was refused may read why."""

MARGIN = 2.0
"""For a machine that is busy with something else."""


async def keep_attacking(attack: Attack, target: Target, number: int) -> None:
    """Do it again and again; what the attack misses of a server that is stopping is no matter here."""
    chance = random.Random(number)
    while True:
        try:
            await attack.run(target, chance)
        except* (AssertionError, OSError):
            # Refused connections come at once.
            await trio.sleep(0.01)


@asynccontextmanager
async def under_attack(server: RunningServer, target: Target, attacks: list[Attack], times: int) -> AsyncIterator[None]:
    """In the block each attack is going on, so many times."""
    async with trio.open_nursery() as nursery:
        for attack in attacks:
            for number in range(times):
                nursery.start_soon(keep_attacking, attack, target, number)
        with trio.fail_after(10):
            while server.server.statistics().connections_total < len(attacks) * times:
                await trio.sleep(0.01)
        yield
        nursery.cancel_scope.cancel()


async def stop(server: RunningServer, grace: float) -> float:
    """Seconds that it took."""
    began = trio.current_time()
    await server.handle.shutdown(grace)
    return trio.current_time() - began


@pytest.mark.parametrize(("attack", "tls"), ON_BOTH)
async def test_a_stop_amid_an_attack(attack: Attack, tls: bool, tmp_path: Path) -> None:
    """What still runs at the end of the grace is cut, and then nothing holds the server up for long."""
    async with (
        attackable(tmp_path, tls=tls) as (server, target),
        under_attack(server, target, [attack], 3),
    ):
        assert await stop(server, GRACE) < GRACE + PATIENCE + MARGIN
        assert server.errors == []


ON_EACH_PORT = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@ON_EACH_PORT
async def test_attackers_do_not_use_up_the_grace(tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attack ends by its own clock while the server drains: a long grace is for honest clients."""
    monkeypatch.setattr(session, "CLOSE_PATIENCE", 1.0)
    attacks = [attack for attack in ATTACKS.values() if tls or not attack.needs_tls]
    async with (
        attackable(tmp_path, tls=tls) as (server, target),
        under_attack(server, target, attacks, 1),
    ):
        assert await stop(server, 50) < 25  # all of them are in this process, too, which keeps it busy


@ON_EACH_PORT
async def test_a_handler_that_ends_does_not_wait_for_attackers(tls: bool, tmp_path: Path) -> None:
    """Silent connections, begun heads and begun handshakes hold up a stop for a moment, whatever the grace."""
    may_end = trio.Event()

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await may_end.wait()
        await send_text(send, "done")

    slow = dict.fromkeys(("timeout_request_head", "timeout_keep_alive", "timeout_tls_handshake"), 60)
    async with (
        attackable(tmp_path, tls=tls, app=http_app(handler), **slow) as (server, target),
        AsyncExitStack() as stack,
    ):
        client = await stack.enter_async_context(peer(target))
        await client.send(request("/"))
        for begun in (b"", b"GET / HTTP/1.1\r\n", b"\r\n") * 3:
            await (await stack.enter_async_context(peer(target))).send(begun)
            await (await stack.enter_async_context(raw_peer(target))).send(begun[:1])
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.server.shutdown(30)
        may_end.set()
        assert await stop(server, 30) < PATIENCE + LINGERING + MARGIN
        assert (await client.receive_rest()).endswith(b"done")


@ON_EACH_PORT
async def test_zero_window_readers_are_cut_at_the_grace(tls: bool, tmp_path: Path) -> None:
    """Clients that take nothing of a response hold a stop up for the grace, not for timeout_write."""
    stuck = 0

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal stuck
        await send({"type": "http.response.start", "status": 200, "headers": []})
        stuck += 1
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})

    async with (
        attackable(tmp_path, tls=tls, app=http_app(handler), timeout_write=60) as (server, target),
        AsyncExitStack() as stack,
    ):
        for _ in range(5):
            client = await stack.enter_async_context(peer(target, is_narrow=True))
            await client.send(request("/"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert stuck == 5
        assert GRACE <= await stop(server, GRACE) < GRACE + PATIENCE + MARGIN
        assert server.errors == []
