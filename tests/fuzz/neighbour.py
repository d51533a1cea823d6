"""What every fuzzed connection has beside it: a server in virtual time, and another client that must notice nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf

import trio
import trio.testing

from trioserve.types import AnyValue, Scope, Send

from ..support import Client, RunningServer

PATIENCE = 3600.0
"""Seconds of virtual time, above all the server's own deadlines."""

IDLE = 60.0
"""Seconds after which the neighbour comes with a new connection: less than timeout_keep_alive."""

OFTEN = 3


def trio_run(function: Callable[..., Awaitable[None]], *arguments: AnyValue) -> None:
    """Run it in virtual time."""

    async def within_time() -> None:
        with trio.fail_after(PATIENCE):
            await function(*arguments)

    trio.run(within_time, clock=trio.testing.MockClock(autojump_threshold=0))


class Neighbour:
    """Another client of the same server, which asks again and again and must always be told its own number."""

    PATH = "/_neighbour_of_each_fuzzed_connection"

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._client: Client | None = None
        self._asked = 0
        self._last = -inf

    async def check(self) -> None:
        now = trio.current_time()
        if self._client is None or now - self._last > IDLE:
            await self.aclose()
            self._client = await self._server.connect()
        self._last = now
        self._asked += 1
        answer = await self._client.get(f"{self.PATH}?{self._asked}")
        assert (answer.status, answer.body) == (200, b"%d" % self._asked), answer

    async def check_in_between(self) -> None:
        """The same, but only a few times: there may be many pieces, and this costs as much as they do."""
        if self._asked < OFTEN:
            await self.check()

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    @classmethod
    async def is_answered(cls, scope: Scope, send: Send) -> bool:
        """Answer the request if it is the neighbour's; for the application."""
        if scope["type"] != "http" or scope["path"] != cls.PATH:
            return False
        await respond(send, scope["query_string"])
        return True


async def respond(send: Send, body: bytes) -> None:
    """A whole response with its length."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
