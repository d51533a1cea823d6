"""Tasks that serve connections, each one after the other."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

import pytest
import trio
import trio.testing

from trioserve import serve
from trioserve.config import Config
from trioserve.context import ServerContext
from trioserve.drain import DrainKind
from trioserve.lanes import PATIENCE, Lanes
from trioserve.observer import Observer
from trioserve.types import Receive, Scope, Send

from .support import RunningServer, http_app, respond, send_text, socket_server

pytestmark = pytest.mark.timeout(20)

Job = Callable[[trio.Nursery], Awaitable[None]]
variable: ContextVar[str] = ContextVar("variable", default="fresh")


class Street:
    """Lanes for jobs that are functions. ``tasks`` has the task of each, ``closed`` the jobs that have ended."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.context = ServerContext(respond(), Config(), observer=Observer())
        self.lanes: Lanes[Job] = Lanes(self.context, self._serve, self._close, self.errors_append)
        self.errors: list[BaseException] = []
        self.tasks: list[trio.lowlevel.Task] = []
        self.closed: list[Job] = []
        self._nursery = nursery

    def errors_append(self, error: BaseException) -> None:
        if not isinstance(error, trio.Cancelled):
            self.errors.append(error)

    async def _serve(self, job: Job, nursery: trio.Nursery) -> None:
        self.tasks.append(trio.lowlevel.current_task())
        await job(nursery)

    async def _close(self, job: Job) -> None:
        self.closed.append(job)

    async def drive(self, job: Job) -> None:
        """Start a job, and wait until nothing can happen without time passing."""
        self.lanes.start(self._nursery, job)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_street() -> AsyncIterator[Street]:
    async with trio.open_nursery() as nursery:
        street = Street(nursery)
        nursery.start_soon(street.context.clock.run)
        yield street
        nursery.cancel_scope.cancel()


async def nothing(_: trio.Nursery) -> None:
    await trio.lowlevel.checkpoint()


async def test_a_lane_serves_one_after_the_other(autojump_clock: trio.testing.MockClock) -> None:
    """The next connection is served by the task that has just become free, and each is closed before the next."""
    async with open_street() as street:
        for number in range(3):
            await street.drive(nothing)
            assert len(street.closed) == number + 1
        assert len(set(street.tasks)) == 1


async def test_each_is_served_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """Connections never wait for each other."""
    async with open_street() as street:
        for _ in range(3):
            await street.drive(lambda _: trio.sleep(1))
        assert len(set(street.tasks)) == 3


async def test_a_lane_ends_soon(autojump_clock: trio.testing.MockClock) -> None:
    """Without another connection the tasks end."""
    async with open_street() as street:
        before = trio.lowlevel.current_statistics().tasks_living
        await street.drive(nothing)
        await street.drive(lambda _: trio.sleep(PATIENCE))
        await trio.sleep(4 * PATIENCE)
        assert trio.lowlevel.current_statistics().tasks_living == before
        await street.drive(nothing)
        assert len(street.closed) == 3


async def test_a_busy_lane_does_not_end(autojump_clock: trio.testing.MockClock) -> None:
    """A lane that served a connection just now waits for the next, however long ago it began."""
    async with open_street() as street:
        for _ in range(10):
            await street.drive(nothing)
            await trio.sleep(PATIENCE * 0.6)
        assert len(set(street.tasks)) == 1


async def test_idle_lanes_end_when_a_server_drains(autojump_clock: trio.testing.MockClock) -> None:
    """A stop waits for no lane."""
    async with open_street() as street:
        before = trio.lowlevel.current_statistics().tasks_living
        await street.drive(nothing)
        began = trio.current_time()
        street.context.drain.begin(DrainKind.STOP)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
        await street.drive(nothing)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert trio.current_time() == began


async def test_what_a_connection_started_ends_before_it_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """A lane whose connection has other tasks serves no other, and closes it when they have ended."""
    async with open_street() as street:

        async def leaves_a_task(nursery: trio.Nursery) -> None:
            nursery.start_soon(trio.sleep, 1)

        await street.drive(leaves_a_task)
        assert street.closed == []
        await street.drive(nothing)
        assert len(set(street.tasks)) == 2
        await trio.sleep(2)
        assert street.closed == [nothing, leaves_a_task]


async def test_an_error_ends_its_lane_alone(autojump_clock: trio.testing.MockClock) -> None:
    """What comes out of a connection is told, and the next gets other tasks."""

    async def fails(_: trio.Nursery) -> None:
        raise ValueError("no")

    async with open_street() as street:
        for _ in range(2):
            await street.drive(fails)
        assert [type(one.exceptions[0]) for one in street.errors if isinstance(one, ExceptionGroup)] == [ValueError] * 2
        assert street.closed == [fails, fails]
        assert len(set(street.tasks)) == 2


async def test_a_cancelled_connection_ends_its_lane_alone(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever cancels the nursery of a connection stops that one; it is closed outside of the cancelled scope."""

    async def cancels(nursery: trio.Nursery) -> None:
        nursery.cancel_scope.cancel()

    async def is_cancelled(nursery: trio.Nursery) -> None:
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    async with open_street() as street:
        for job in (cancels, is_cancelled, nothing):
            await street.drive(job)
        assert street.closed == [cancels, is_cancelled, nothing]
        assert len(set(street.tasks)) == 3
        assert street.errors == []


@pytest.mark.parametrize("opens", [trio.CancelScope, trio.open_nursery])
async def test_what_is_left_open_is_nobody_else_s(
    autojump_clock: trio.testing.MockClock, opens: Callable[[], object]
) -> None:
    """A scope that an application has left open cannot cancel the connection that comes next: that gets other tasks."""
    opened = []

    async def leaves_open(_: trio.Nursery) -> None:
        opened.append(opens())
        if isinstance(opened[0], trio.CancelScope):
            opened[0].__enter__()
        else:
            await opened[0].__aenter__()  # type: ignore[attr-defined]  # the other is a nursery

    async with open_street() as street:
        await street.drive(leaves_open)
        assert len(street.errors) == 1
        await street.drive(nothing)
        assert len(set(street.tasks)) == 2
        assert street.closed == [leaves_open, nothing]


async def test_without_trio_s_word_a_lane_serves_one(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Trio does not tell in which scope a task is, no task serves two connections."""
    monkeypatch.setattr("trioserve.lanes._find_place", lambda: None)
    async with open_street() as street:
        for _ in range(2):
            await street.drive(nothing)
        assert len(set(street.tasks)) == 2


async def test_context_variables_are_fresh(autojump_clock: trio.testing.MockClock) -> None:
    """What one connection sets, the next in the same task does not see."""
    found: list[str] = []

    async def sets(_: trio.Nursery) -> None:
        found.append(variable.get())
        variable.set("set")

    async with open_street() as street:
        for _ in range(2):
            await street.drive(sets)
        assert len(set(street.tasks)) == 1
        assert found == ["fresh", "fresh"]


# In a server


async def ask(server: RunningServer, path: str = "/") -> bytes:
    client = await server.connect()
    body = (await client.request("GET", path, [("Connection", "close")])).body
    await client.aclose()
    return body


async def test_connections_of_a_server_share_tasks() -> None:
    """Clients that connect for each request are served by the same task; its variables are fresh for each."""
    tasks: list[trio.lowlevel.Task] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks.append(trio.lowlevel.current_task())
        text, _ = variable.get(), variable.set("set")
        await send_text(send, text)

    async with socket_server(http_app(app)) as server:
        for _ in range(20):
            assert await ask(server) == b"fresh"
    # A machine that has much else to do can be slow enough for a lane to end.
    assert len(set(tasks)) < 10


async def test_a_scope_left_open_hurts_no_other_client(caplog: pytest.LogCaptureFixture) -> None:
    """An application that leaves a scope open, and cancels it when another connection is served, hurts nobody."""
    scopes: list[trio.CancelScope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/leaves":
            scopes.append(trio.CancelScope())
            scopes[0].__enter__()
        else:
            scopes[0].cancel()
            await trio.lowlevel.checkpoint()
        await send_text(send, b"fine")

    async with socket_server(http_app(app)) as server:
        assert await ask(server, "/leaves") == b"fine"
        assert await ask(server, "/next") == b"fine"
    (error,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "did the application break the task tree?" in error.getMessage()


async def test_a_busy_lane_outlives_an_idle_one(autojump_clock: trio.testing.MockClock) -> None:
    """Of two lanes the one that has nothing to do ends, while the other goes on."""
    async with open_street() as street:
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(2):
            street.lanes.start(street._nursery, lambda _: trio.sleep(0.01))
        await trio.sleep(0.02)
        street.tasks.clear()
        for _ in range(20):
            await street.drive(nothing)
            await trio.sleep(PATIENCE * 0.6)
        assert len(set(street.tasks)) == 1
        assert trio.lowlevel.current_statistics().tasks_living == before + 2  # a lane is two tasks


async def test_what_a_stopped_handler_has_sent_is_not_cut() -> None:
    """All that a handler sends although it was to be stopped reaches a client that is slow to take it."""
    answered = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.1)
            await send_text(send, b"x" * 60_000)
            answered.set()

    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    bound.bind(("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        start = partial(serve, http_app(app), sockets=[bound], timeout_request=0.05, access_log=False)
        server = await nursery.start(start)
        with trio.socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await client.connect(server.addresses[0])
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            await answered.wait()
            await trio.testing.wait_all_tasks_blocked()
            answer = b""
            while data := await client.recv(4096):
                answer += data
        assert answer.endswith(b"x" * 60_000)
        server.shutdown()
