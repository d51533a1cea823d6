"""How many connections are let in, and what becomes of those for which there is no room or no descriptor."""

from __future__ import annotations

import errno
import logging
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
import trio
import trio.testing

from trioserve.config import Config
from trioserve.net.binding import bind_all
from trioserve.net.door import Door
from trioserve.net.listeners import Accepted, Listener, accept_forever, aclose_all
from trioserve.net.reserve import BUSY_ANSWER, REFUSED_AT_ONCE, Reserve
from trioserve.types import Receive, Scope, Send

from .support import RunningServer, http_app, respond, send_text, socket_server

pytestmark = pytest.mark.timeout(20)


# limit_connections


async def ask(server: RunningServer) -> bytes:
    client = await server.connect()
    body = (await client.get()).body
    await client.aclose()
    return body


async def test_one_more_waits_until_another_has_left(caplog: pytest.LogCaptureFixture) -> None:
    """At the limit nobody is accepted, and nobody refused: who comes is served as soon as somebody has left."""
    async with socket_server(respond(b"Hi"), limit_connections=2) as server, trio.open_nursery() as nursery:
        first, second = await server.connect(), await server.connect()
        await first.get()
        await second.get()
        answers: list[bytes] = []

        async def wait() -> None:
            answers.append(await ask(server))

        for _ in range(3):
            nursery.start_soon(wait)
        while "limit_connections is reached: 2 are open, others wait" not in caplog.text:
            await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.statistics().connections == 2
        assert answers == []
        assert (await first.get()).body == b"Hi"
        await first.aclose()
        while len(answers) < 3:
            await trio.sleep(0.005)
        assert answers == [b"Hi"] * 3
        await second.aclose()


async def test_no_more_than_the_limit_at_once() -> None:
    """However many come together, and at several listeners: never are more open than the limit says."""
    most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most
        most = max(most, server.server.statistics().connections)
        await trio.sleep(0.001)
        await send_text(send, b"")

    binds = ["127.0.0.1:0", "127.0.0.1:0"]
    async with socket_server(http_app(app), limit_connections=5, bind=binds) as server:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(visit, server.server.addresses[number % 2])
        assert server.server.statistics().connections_total >= 60
    assert most == 5


async def visit(address: tuple[str, int]) -> None:
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b""
        async for data in stream:
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_server_at_its_limit_stops(autojump_clock: trio.testing.MockClock) -> None:
    """Who waits to be accepted is waited for by nobody."""
    door = Door(1, lambda: 1)
    with trio.move_on_after(1) as scope:
        await door.wait_room()
    assert scope.cancelled_caught
    door.left()


# The reserve


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """As if only so many more could be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        sockets = [opened.enter_context(closing(socket.socket())) for _ in range(more + 1)]
        limit = sockets[-1].fileno()
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for one in sockets:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        yield


@contextmanager
def clients(listener: Listener, count: int) -> Iterator[list[socket.socket]]:
    """Connections that wait to be accepted; those with a request have sent it."""
    assert isinstance(listener.raw_address, tuple)
    with ExitStack() as opened:
        made = []
        for _ in range(count):
            client = opened.enter_context(closing(socket.create_connection(listener.raw_address)))
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            client.settimeout(5)
            made.append(client)
        yield made


def read_all(client: socket.socket) -> bytes:
    answer = b""
    while data := client.recv(4096):
        answer += data
    return answer


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of descriptors counts their numbers")
@pytest.mark.parametrize(("tls", "answer"), [(False, BUSY_ANSWER), (True, b"")])
async def test_who_comes_when_there_are_no_descriptors_is_told(
    caplog: pytest.LogCaptureFixture, tls: bool, answer: bytes
) -> None:
    """Out of descriptors a server answers 503, or closes where TLS would come first, and serves again afterwards."""
    caplog.set_level(logging.WARNING)
    refused: list[int] = []
    handled: list[Accepted] = []
    [bound] = await bind_all(Config(port=0))
    listener = Listener.from_socket(bound.raw_socket, tls=tls)
    listener.listen(100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, handled.append, Door(refused=refused.append))
        await trio.testing.wait_all_tasks_blocked()
        with clients(listener, 3) as waiting, few_descriptors(0):
            while sum(refused) < 3:
                await trio.sleep(0.01)
            assert [read_all(client) for client in waiting] == [answer] * 3
        assert handled == []
        assert caplog.text.count("trying on") == 1
        with clients(listener, 1):
            while not handled:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    for one in handled:
        assert isinstance(one, socket.socket)
        one.close()
    await aclose_all([listener])


async def test_a_server_counts_whom_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that were refused for want of descriptors are among the rejected, by their status."""
    async with socket_server(respond(b"Hi")) as server:
        await trio.testing.wait_all_tasks_blocked()  # one accept waits already
        with monkeypatch.context() as patch:
            patch.setattr(Listener, "accept", never_accept)
            assert await ask(server) == b"Hi"
            stream = await server.connect_stream()
            answer = b""
            async for data in stream:
                answer += data
            await stream.aclose()
        assert answer == BUSY_ANSWER
        assert server.server.statistics().rejected == {503: 1}
        assert await ask(server) == b"Hi"


async def never_accept(self: Listener, *_: object) -> list[Accepted]:
    """As accept where there are no descriptors."""
    await trio.lowlevel.wait_readable(self.raw_socket)
    raise OSError(errno.EMFILE, "Too many open files")


async def test_so_many_are_refused_at_once() -> None:
    """A flood of connections does not keep the others waiting."""
    [listener] = await bind_all(Config(port=0))
    listener.listen(100)
    with clients(listener, REFUSED_AT_ONCE + 1), Reserve() as reserve:
        assert listener.refuse_waiting(reserve) == REFUSED_AT_ONCE
        assert listener.refuse_waiting(reserve) == 1
        assert listener.refuse_waiting(reserve) == 0
    await aclose_all([listener])
    assert listener.refuse_waiting(reserve) == 0
