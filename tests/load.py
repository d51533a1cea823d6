"""A load of keep-alive clients, which check every answer and count what the server owes them.

Each request has a number that its answer must repeat, so that a wrong, cut or mixed-up answer shows. What becomes of a
request is counted in the words of RFC 9110 §9.2.2: one that was sent on a *reused* connection which closed before the
first byte of the answer may be *retried*, as the client cannot tell a close from an answer that is late. Everything
else that is not the right answer has *failed*: a wrong or cut one, and a new connection that is refused or closed
unanswered. Either is sent again on a new connection, until it is answered.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h11
import trio

from .programs import ProcessStatus, Program, start, wait_until

CLIENTS = 200

DEADLINE = 50.0
"""Seconds for one test; on two free cores none of them takes half of it."""

ANSWER_PATIENCE = 10.0
"""Seconds for one answer; a request that waits longer has failed."""

PAUSE = 0.25
"""Seconds between an answer and a client's next request, on average: at each moment some connections are idle and some
are not.
"""

FEW = 5
"""Requests after which every fourth client goes on with a new connection."""

_RETRY_PAUSE = 0.05  # seconds; a port that refuses must not be asked as fast as the machine can

APP = '''
import os

WORKER = b"%d" % os.getpid()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await echo_messages(receive, send)
    else:
        await echo(scope, receive, send)

async def echo(scope, receive, send):
    """Answer with the number in the path and the body, in two pieces."""
    answer = scope["path"].removeprefix("/echo/").encode() + b" "
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        answer += message["body"]
        more = message["more_body"]
    headers = [(b"worker", WORKER)]
    if scope["query_string"] != b"chunked":
        headers.append((b"content-length", b"%d" % len(answer)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    middle = len(answer) // 2
    await send({"type": "http.response.body", "body": answer[:middle], "more_body": True})
    await send({"type": "http.response.body", "body": answer[middle:]})

async def echo_messages(receive, send):
    """Repeat each message, with the worker's number before it."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})
'''


def write_app(folder: Path) -> str:
    """Write the application that the load is for; returns its name for the command line."""
    (folder / "load_app.py").write_text(APP)
    return "load_app:app"


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Program]:
    """The application in two workers, of which one serves when the block begins."""
    command = ("-m", "trioserve", write_app(folder), "--workers", "2", "--port", "0", *options)
    with start(*command, cwd=folder) as program:
        program.wait_for("listening on")
        program.wait_for_children(2)
        yield program


@dataclass(frozen=True)
class Request:
    """One request of the load. A third have a body, half want the answer in chunks."""

    client: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.client}-{self.number}"

    @property
    def body(self) -> bytes:
        if self.number % 3:
            return b""
        return (self.name.encode() + b"\n") * (1 + (self.client + self.number) % 800)

    @property
    def wants_chunks(self) -> bool:
        return self.number % 2 == 1

    @property
    def events(self) -> list[h11.Event]:
        body = self.body
        target = f"/echo/{self.name}" + ("?chunked" if self.wants_chunks else "")
        headers = [("Host", "load"), *([("Content-Length", str(len(body)))] if body else [])]
        head = h11.Request(method="POST" if body else "GET", target=target, headers=headers)
        return [head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]

    @property
    def answer(self) -> bytes:
        return self.name.encode() + b" " + self.body


@dataclass(frozen=True)
class Loss:
    """A request that was not answered, or not as it must be. ``port`` is the client's own; None if it never had one."""

    request: Request
    reason: str
    port: int | None
    may_retry: bool


class _Lost(Exception):
    pass


class _Connection:
    """A client's end of one connection. ``answers`` is how many came through it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.port: int = stream.socket.getsockname()[1]
        self.answers = 0
        self.has_bytes = False  # of the answer that is being waited for
        self.worker = 0
        self._h11 = h11.Connection(h11.CLIENT)

    @property
    def is_reusable(self) -> bool:
        return self._h11.our_state is h11.IDLE

    @property
    def is_readable(self) -> bool:
        """The server has closed the idle connection, or sent what nobody asked for."""
        looking = select.poll()
        looking.register(self.stream.socket.fileno(), select.POLLIN)
        return bool(looking.poll(0))

    async def exchange(self, request: Request) -> None:
        """Send a request and check the whole answer; raises _Lost."""
        self.has_bytes = False
        data = b"".join(self._h11.send(event) or b"" for event in request.events)
        try:
            with trio.fail_after(ANSWER_PATIENCE):
                await self.stream.send_all(data)
                await self._check_answer(request)
        except trio.TooSlowError:
            raise _Lost(f"no whole answer in {ANSWER_PATIENCE} s") from None
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise _Lost(f"{error}: {error.__cause__}") from error
        self.answers += 1
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()

    async def _check_answer(self, request: Request) -> None:
        head = await self._next_event()
        if not isinstance(head, h11.Response):
            raise _Lost(f"not a response: {head!r}")
        fields = dict(head.headers)
        body = b""
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
        framing = fields.get(b"transfer-encoding") if request.wants_chunks else fields.get(b"content-length")
        expected = b"chunked" if request.wants_chunks else b"%d" % len(request.answer)
        if head.status_code != 200 or body != request.answer or framing != expected:
            raise _Lost(f"wrong answer: {head!r} {body[:100]!r}")
        if self._h11.trailing_data[0]:
            raise _Lost(f"more than the answer: {self._h11.trailing_data[0]!r}")
        self.worker = int(fields[b"worker"])

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            data = await self.stream.receive_some()
            self.has_bytes = self.has_bytes or bool(data)
            self._h11.receive_data(data)
        return event


@dataclass
class Load:
    """What the clients have sent and got so far. ``workers`` counts the answers of each process."""

    address: tuple[str, int]
    clients: int
    sent: int = 0
    answered: int = 0
    connections: int = 0
    dropped: int = 0
    """Connections that the server closed while they were idle, before the client sent its next request."""
    losses: list[Loss] = field(default_factory=list)
    workers: Counter[int] = field(default_factory=Counter)
    idle: set[int] = field(default_factory=set)
    """The clients' ports of the connections on which nothing is asked now."""
    is_ending: bool = False

    @property
    def retried(self) -> int:
        return sum(loss.may_retry for loss in self.losses)

    @property
    def failed(self) -> int:
        return len(self.losses) - self.retried

    def __str__(self) -> str:
        return (
            f"{self.clients} clients, {len(self.workers)} workers: {self.sent} sent, {self.answered} answered, "
            f"{self.retried} retried, {self.failed} failed; "
            f"{self.connections} connections, {self.dropped} closed while idle"
        )

    async def wait_answered(self, more: int) -> None:
        """Wait for so many answers from now on."""
        goal = self.answered + more
        while self.answered < goal:
            await trio.sleep(0.01)

    async def wait_for_workers(self, pids: Iterable[int]) -> None:
        """Wait until each of these processes has answered something."""
        wanted = set(pids)
        while not wanted <= self.workers.keys():
            await trio.sleep(0.01)


@asynccontextmanager
async def loaded(program: Program) -> AsyncIterator[Load]:
    """A load on all workers of a program, while the block runs.

    The block begins when each worker has answered.
    """
    async with loading(program.address, lambda: program.errors) as load:
        await load.wait_for_workers(program.children())
        yield load


@asynccontextmanager
async def loading(address: tuple[str, int], errors: Callable[[], str]) -> AsyncIterator[Load]:
    """A load on this address, while the block runs; ``errors`` is what the servers have said.

    At its end each client gets the answer to its last request, and leaves; then the figures are printed, and all that
    was sent has been answered.
    """
    load = Load(address, CLIENTS)
    with trio.move_on_after(DEADLINE) as patience:
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(Client(load, number).run)
            yield load
            await load.wait_answered(CLIENTS)
            load.is_ending = True
    print(load)
    assert not patience.cancelled_caught, f"not done in {DEADLINE} s\n{errors()}"
    assert load.answered == load.sent


def assert_nothing_lost(load: Load) -> None:
    """Nothing failed, nothing was sent twice, and nothing would have been by a client that sends at a bad moment."""
    assert load.losses == []
    assert load.dropped == 0


class Client:
    """One client, with one connection at a time."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._random = random.Random(number)  # the same pauses in each run
        self._connection: _Connection | None = None

    async def run(self, count: int | None = None) -> None:
        """Send requests, one after the other, until the load ends or it has been so many."""
        for number in itertools.count() if count is None else range(count):
            if self._load.is_ending:
                break
            self._load.sent += 1
            await self._ask(Request(self._number, number))
            connection = self._connection
            assert connection is not None
            if not connection.is_reusable or (self._number % 4 == 0 and connection.answers == FEW):
                await self._disconnect()
            await trio.sleep(self._random.uniform(0, 2 * PAUSE))
        await self._disconnect()

    async def _ask(self, request: Request) -> None:
        """Send a request until it is answered."""
        load = self._load
        while True:
            try:
                connection = self._connection = await self._connected()
                load.idle.discard(connection.port)
                await connection.exchange(request)
            except (_Lost, OSError) as error:
                port, may_retry = None, False
                if self._connection is not None:
                    port = self._connection.port
                    may_retry = self._connection.answers > 0 and not self._connection.has_bytes
                load.losses.append(Loss(request, str(error), port, may_retry))
                await self._disconnect()
                await trio.sleep(_RETRY_PAUSE)
            else:
                load.idle.add(connection.port)
                load.answered += 1
                load.workers[connection.worker] += 1
                return

    async def _connected(self) -> _Connection:
        """The open connection, or a new one; raises OSError."""
        connection = self._connection
        if connection is not None and connection.is_readable:
            try:
                surplus = await connection.stream.receive_some()
            except trio.BrokenResourceError:
                surplus = b""
            if surplus:
                raise _Lost(f"bytes nobody asked for: {surplus!r}")
            self._load.dropped += 1
            await self._disconnect()
            connection = None
        if connection is not None:
            return connection
        sock = trio.socket.socket()
        try:
            with trio.move_on_after(ANSWER_PATIENCE) as patience:
                await sock.connect(self._load.address)
            if patience.cancelled_caught:
                raise _Lost(f"no connection in {ANSWER_PATIENCE} s")
        except BaseException:
            sock.close()
            raise
        self._load.connections += 1
        return _Connection(trio.SocketStream(sock))

    async def _disconnect(self) -> None:
        if self._connection is not None:
            self._load.idle.discard(self._connection.port)
            await self._connection.stream.aclose()
            self._connection = None


# What the kernel shows


ESTABLISHED, LISTEN = 1, 10  # states in the kernel's numbers


@dataclass(frozen=True)
class KernelSocket:
    """A TCP socket over IPv4 as /proc/net/tcp has it; ``queue`` is what a listener has not accepted yet."""

    port: int
    peer_port: int
    state: int
    queue: int
    inode: int

    @classmethod
    def all(cls) -> list[KernelSocket]:
        found = []
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, own, peer, state, queues, _, _, _, _, inode, *_ = line.split()
            numbers = (own.rpartition(":")[2], peer.rpartition(":")[2], state, queues.rpartition(":")[2])
            found.append(cls(*(int(one, 16) for one in numbers), int(inode)))
        return found


def listening_sockets(port: int) -> list[KernelSocket]:
    return [one for one in KernelSocket.all() if one.state == LISTEN and one.port == port]


def socket_inodes(pid: int) -> set[int]:
    """The sockets that a process has open."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            kind, _, inode = os.readlink(f"/proc/{pid}/fd/{name}").partition(":")
        except FileNotFoundError:  # closed since
            continue
        if kind == "socket":
            inodes.add(int(inode.strip("[]")))
    return inodes


def suspend(pid: int) -> None:
    """Stop a process where it is, and wait until it is stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: any(one.pid == pid and one.state == "T" for one in ProcessStatus.all()), f"{pid} is stopped")


def kill_and_wait(pid: int) -> None:
    """Kill a process that need not be our child, and wait until it has closed everything."""
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        looking = select.poll()
        looking.register(handle, select.POLLIN)
        assert looking.poll(5000), f"{pid} has not ended"
    finally:
        os.close(handle)


def clients_of(pid: int) -> set[int]:
    """The clients' ports of the connections that a process has accepted, and that neither side has closed."""
    inodes = socket_inodes(pid)
    return {one.peer_port for one in KernelSocket.all() if one.inode in inodes and one.state == ESTABLISHED}


# Waiting for a program from an event loop


async def wait_for(program: Program, pattern: str, *, times: int = 1) -> None:
    """Wait until the program has printed something so many times."""
    await trio.to_thread.run_sync(program.wait_for, rf"(?s)(?:(?:{pattern}).*?){{{times}}}", abandon_on_cancel=True)


async def wait_for_children(program: Program, count: int, *, but: Iterable[int] = ()) -> set[int]:
    """Wait until the program has as many processes, none of which is one of ``but``."""
    while len(found := program.children()) != count or not found.isdisjoint(but):
        await trio.sleep(0.02)
    return found
