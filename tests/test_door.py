"""How many connections are let in, and what becomes of those for which there is no room or no descriptor."""

from __future__ import annotations

import errno
import gc
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
from trioserve.net.socket_transport import SocketTransport
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
        most = max(most, accepted_sockets() - before)
        await trio.sleep(0.001)
        await send_text(send, b"")

    binds = ["127.0.0.1:0", "127.0.0.1:0"]
    before = accepted_sockets()
    async with socket_server(http_app(app), limit_connections=5, bind=binds) as server:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(visit, server.server.addresses[number % 2])
        assert server.server.statistics().connections_total >= 60
    assert most == 5


def accepted_sockets() -> int:
    """How many transports are open in this process."""
    return sum(type(one) is SocketTransport and not one._is_closed for one in gc.get_objects())


async def visit(address: tuple[str, int]) -> None:
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b""
        async for data in stream:
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_connection_counts_until_it_is_closed() -> None:
    """Who does not take the last words of a connection that has ended still takes a place."""
    async with socket_server(http_app(never_answer), limit_connections=1, timeout_request=0.05) as server:
        stream = await server.connect_stream()
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert server.server.statistics().connections == 1
        await server.server.drop_connections()
        assert server.server.statistics().connections == 1  # until its task has had its turn
        await stream.aclose()
        while server.server.statistics().connections:
            await trio.sleep(0.005)


async def never_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await trio.sleep_forever()


async def test_one_warning_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is full again and again says so once a minute."""
    async with socket_server(respond(b"Hi"), limit_connections=1) as server, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask, server)
    assert caplog.text.count("limit_connections is reached") == 1


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


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of descriptors counts their numbers")
async def test_without_a_reserve_nobody_is_refused() -> None:
    """Where there was no descriptor to keep, those who come wait."""
    [listener] = await bind_all(Config(port=0))
    listener.listen(100)
    with clients(listener, 1), few_descriptors(0), Reserve() as reserve:
        assert listener.refuse_waiting(reserve) == 0
    await aclose_all([listener])
