"""Clients that mean harm: each gets what it deserves, others are served meanwhile, and nothing of it is left."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from trioserve.asgi import session
from trioserve.types import Receive, Scope, Send

from .attacks import ATTACKS, Attack
from .attacks.host import attackable, good_neighbour
from .attacks.peer import peer, request
from .support import http_app

pytestmark = pytest.mark.timeout(40)

ON_BOTH = [
    pytest.param(attack, tls, id=f"{attack.name}-{'tls' if tls else 'plain'}")
    for attack in ATTACKS.values()
    for tls in (False, True)
    if tls or not attack.needs_tls
]


@pytest.mark.parametrize(("attack", "tls"), ON_BOTH)
async def test_an_attack(
    attack: Attack, tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server answers, closes or resets as it must, its log is not flooded, and no connection is left."""
    monkeypatch.setattr(session, "CLOSE_PATIENCE", 1.0)
    caplog.set_level(logging.INFO, "trioserve")
    async with attackable(tmp_path, tls=tls) as (server, target):
        async with good_neighbour(target):
            await attack(target, random.Random(attack.name))
        with trio.fail_after(10):
            while server.server.statistics().connections:
                await trio.sleep(0.01)
        assert server.errors == []
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_half_a_record_and_the_end_at_once(tmp_path: Path) -> None:
    """A client that closes in the middle of a record of its body is a disconnect, and no error of the application's."""
    begun, may_receive = trio.Event(), trio.Event()
    heard: list[str] = []

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await may_receive.wait()
        heard.append((await receive())["type"])

    async with attackable(tmp_path, tls=True, app=http_app(handler), timeout_disconnect_grace=5) as (server, target):
        async with peer(target) as client:
            assert isinstance(client.stream, trio.SSLStream)
            await client.send(request("/", "Content-Length: 100", method="POST"))
            await begun.wait()
            client.stream._ssl_object.write(b"x" * 100)
            # Both in one step, so that the server sees both at once.
            client.raw.socket._sock.send(client.stream._outgoing.read()[:50])
            client.send_fin()
            await trio.testing.wait_all_tasks_blocked()
            may_receive.set()
            await client.receive_rest()
        assert heard == ["http.disconnect"]
        assert server.errors == []
