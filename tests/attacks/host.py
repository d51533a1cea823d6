"""A server of the tests that can be attacked, over plain TCP or TLS, and an honest client beside the attackers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from trioserve.types import AnyValue, ASGIApp

from ..support import Recorder, RunningServer, socket_server
from . import ATTACKS, CLOCKS, Target
from .app import app as default_app
from .peer import be_served

QUICK = {
    **{name: 1 for name in CLOCKS if name.startswith(("timeout_", "ws_ping_"))},
    "timeout_disconnect_grace": 0.2,
}
"""A test waits for most of these clocks, and both sides are in one loop."""


ON_BOTH = [
    pytest.param(attack, tls, id=f"{attack.name}-{'tls' if tls else 'plain'}")
    for attack in ATTACKS.values()
    for tls in (False, True)
    if tls or not attack.needs_tls
]
"""The attacks, each with whether over TLS."""


@asynccontextmanager
async def attackable(
    folder: Path, *, tls: bool, app: ASGIApp = default_app, recorder: Recorder | None = None, **options: AnyValue
) -> AsyncIterator[tuple[RunningServer, Target]]:
    """A server with the clocks that attacks need."""
    context = None
    options = {**CLOCKS, **QUICK, **options}
    if tls:
        authority, pem = trustme.CA(), folder / "both.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
        options["ssl_certfile"] = str(pem)
        context = ssl.create_default_context()
        authority.configure_trust(context)
    async with socket_server(app, recorder=recorder, **options) as server:
        address = server.server.addresses[0]
        assert isinstance(address, tuple)
        yield server, Target(address[0], address[1], context)


@asynccontextmanager
async def good_neighbour(target: Target) -> AsyncIterator[None]:
    """For as long as the block, somebody is served by the same server, again and again."""
    is_over, served = trio.Event(), 0

    async def neighbour() -> None:
        nonlocal served
        while not (is_over.is_set() and served):
            with trio.fail_after(10):
                await be_served(target)
            served += 1
            with trio.move_on_after(0.1):
                await is_over.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour)
        yield
        is_over.set()
