"""Clients that mean harm: each gets what it deserves, others are served meanwhile, and nothing of it is left."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import trio

from trioserve.asgi import session

from .attacks import ATTACKS, Attack
from .attacks.host import attackable, good_neighbour

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
    async with attackable(tmp_path, tls=tls, ws_ping_timeout=1) as (server, target):
        async with good_neighbour(target):
            await attack(target, random.Random(attack.name))
        with trio.fail_after(10):
            while server.server.statistics().connections:
                await trio.sleep(0.01)
        assert server.errors == []
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
