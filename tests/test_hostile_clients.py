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

from .attacks import Attack
from .attacks.host import ON_BOTH, attackable, good_neighbour
from .attacks.peer import peer, request
from .support import http_app, send_text
from .websocket_servers import server_on

pytestmark = pytest.mark.timeout(40)


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


BOUND = 256 * 1024
"""What the server, and the small buffers of the kernel, may hold of one client's requests."""


@pytest.mark.parametrize("kind", ["lockstep", "socket", "tls"])
@pytest.mark.parametrize("answers", [True, False], ids=["answered", "unanswered"])
async def test_who_pipelines_and_never_reads_is_not_read(kind: str, answers: bool) -> None:
    """The server takes requests from the client only as it takes the answers, and holds little of what waits."""
    poured = 0

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        if answers:
            await send_text(send, b"x" * 10_000)
        else:
            await trio.sleep_forever()

    async def pour(stream: trio.abc.Stream) -> None:
        nonlocal poured
        while True:
            await stream.send_all(request("/") * 25)
            poured += len(request("/") * 25)

    async with server_on(kind, http_app(handler), narrow=True) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, client.stream)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert 0 < poured < BOUND
            assert server.server.statistics().requests == 1
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(client.stream)
