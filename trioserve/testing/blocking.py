"""Clients for tests without an event loop: each call runs in the server's loop, and waits for that here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TypeVar

import trio
from trio_websocket import WebSocketConnection

from .clients import SlowClient
from .portal import PATIENCE, Portal

T = TypeVar("T")

_MARGIN = 5.0
"""Seconds that the event loop may be late for a deadline before it counts as stuck."""


def call_within(portal: Portal, seconds: float, what: str, function: Callable[[], Awaitable[T]]) -> T:
    """Run an async function in the server's loop; raises TimeoutError, which says ``what`` took longer."""

    async def run() -> T:
        with trio.move_on_after(seconds):
            return await function()
        raise TimeoutError(f"{what} took longer than {seconds:g} s")

    return portal.call(run, patience=seconds + _MARGIN)


class BlockingWebSocket:
    """A trio-websocket connection whose methods block; ``connection`` is that connection.

    All of them raise trio_websocket.ConnectionClosed once it has closed, and TimeoutError after ``timeout`` seconds.
    """

    def __init__(self, portal: Portal, connection: WebSocketConnection) -> None:
        self._portal = portal
        self.connection = connection

    @property
    def subprotocol(self) -> str | None:
        return self.connection.subprotocol

    def send_message(self, message: str | bytes, timeout: float = PATIENCE) -> None:
        call_within(self._portal, timeout, "send_message", partial(self.connection.send_message, message))

    def get_message(self, timeout: float = PATIENCE) -> str | bytes:
        return call_within(self._portal, timeout, "get_message", self.connection.get_message)

    def ping(self, payload: bytes | None = None, timeout: float = PATIENCE) -> None:
        """Send a ping, and wait for its pong."""
        call_within(self._portal, timeout, "ping", partial(self.connection.ping, payload))

    def close(self, code: int = 1000, reason: str | None = None, timeout: float = PATIENCE) -> None:
        call_within(self._portal, timeout, "close", partial(self.connection.aclose, code, reason))


class WebSocketOpening(AbstractContextManager[BlockingWebSocket], AbstractAsyncContextManager[WebSocketConnection]):
    """A WebSocket that is opened by ``with``, for blocking calls, or in a Trio loop by ``async with``."""

    def __init__(self, portal: Portal, opening: Callable[[], AbstractAsyncContextManager[WebSocketConnection]]) -> None:
        self._portal = portal
        self._opening = opening
        self._held: AbstractContextManager[WebSocketConnection] | None = None
        self._opened: AbstractAsyncContextManager[WebSocketConnection] | None = None

    def __enter__(self) -> BlockingWebSocket:
        self._held = self._portal.hold(self._opening(), patience=2 * PATIENCE)
        return BlockingWebSocket(self._portal, self._held.__enter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._held is not None
        return self._held.__exit__(kind, error, trace)

    async def __aenter__(self) -> WebSocketConnection:
        self._opened = self._opening()
        return await self._opened.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._opened is not None
        return await self._opened.__aexit__(kind, error, trace)


class BlockingClient:
    """A client of the server's loop that reads slowly, or not at all."""

    def __init__(self, portal: Portal, client: SlowClient) -> None:
        self._portal = portal
        self._client = client

    @property
    def received(self) -> bytes:
        """What it has read, head and body."""
        return bytes(self._client.received)

    def wait(self, timeout: float = PATIENCE) -> bytes:
        """Wait until the response has ended, or the connection was lost; returns all that was read."""
        return call_within(self._portal, timeout, "the response", self._client.wait)
