"""--reuse-port: a listener for each slot, which stays as long as the slot."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
import trio

from trioserve.config import Config
from trioserve.errors import BindError
from trioserve.net.binding import bind_all
from trioserve.net.listeners import Listener, aclose_all
from trioserve.process.sockets import Sockets

from .load import (
    assert_nothing_lost,
    kill_and_wait,
    listening_sockets,
    loaded,
    served,
    socket_inodes,
    suspend,
    wait_for,
    wait_for_children,
    write_app,
)
from .programs import PATIENCE, Program, finish, start, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the listeners are found in /proc")


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders may have names too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="ts") as name:
        yield Path(name)


def connect(address: tuple[str, int] | str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    made.settimeout(PATIENCE)
    made.connect(address)
    return made


REQUEST = b"GET /echo/1-1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def read_worker(client: socket.socket) -> int:
    """Read the whole answer; returns the process that gave it."""
    answer = b""
    while data := client.recv(65536):
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    assert body == b"1-1 "
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    return int(fields[b"worker"])


def ask(address: tuple[str, int] | str) -> int:
    """A request on a connection of its own; returns the process that answered."""
    with closing(connect(address)) as client:
        client.sendall(REQUEST)
        return read_worker(client)


def wait_for_answers(address: tuple[str, int] | str, pids: set[int]) -> None:
    """Ask until each of these processes has answered, and nobody else."""
    seen: set[int] = set()

    def have_answered() -> bool:
        seen.add(ask(address))
        return seen >= pids

    wait_until(have_answered, f"answers of {pids}")
    assert seen == pids


def listeners_of(program: Program) -> set[int]:
    """The inodes of all sockets that listen on the program's port."""
    return {one.inode for one in listening_sockets(program.address[1])}


# The slots' listeners


def test_without_it_all_workers_share_one_listener(folder: Path) -> None:
    """By default there is one listener, which all workers and the supervisor have open."""
    with served(folder) as program:
        workers = program.children()
        wait_for_answers(program.address, workers)
        [shared] = listeners_of(program)
        assert all(shared in socket_inodes(pid) for pid in (program.process.pid, *workers))


def test_each_slot_has_a_listener(folder: Path) -> None:
    """With --reuse-port each worker listens on a socket of its own, on one port also if that is chosen by the system;
    all answer, and the supervisor keeps the listeners open.
    """
    with served(folder, "--reuse-port") as program:
        workers = program.children()
        wait_for_answers(program.address, workers)
        listeners = listeners_of(program)
        assert len(listeners) == 2
        assert listeners <= socket_inodes(program.process.pid)
        own = [listeners & socket_inodes(pid) for pid in workers]
        assert [len(one) for one in own] == [1, 1]
        assert own[0] != own[1]


def test_listener_outlives_its_worker(folder: Path) -> None:
    """Connections made to the listener of a worker that has been killed wait for its replacement, which answers them:
    none is reset.
    """
    count = 32
    with served(folder, "--reuse-port") as program, ExitStack() as clients:
        workers = program.children()
        wait_for_answers(program.address, workers)
        listeners = listeners_of(program)
        killed, other = workers
        suspend(killed)  # what comes to its listener from here on is not accepted
        waiting = [clients.enter_context(closing(connect(program.address))) for _ in range(count)]
        for client in waiting:
            client.sendall(REQUEST)

        def have_arrived() -> bool:
            """Each has been answered by the other worker, or waits in the queue."""
            queued = sum(one.queue for one in listening_sockets(program.address[1]))
            return queued > 0 and queued + len(select.select(waiting, [], [], 0)[0]) == count

        wait_until(have_arrived, "all clients are answered or wait")
        kill_and_wait(killed)
        answered = {read_worker(client) for client in waiting}
        assert answered == {other, *program.wait_for_children(2, but=[killed])} - {killed}
        assert len(answered) == 2
        assert listeners_of(program) == listeners


def test_more_and_fewer_listeners(folder: Path) -> None:
    """SIGTTIN opens a listener for the new slot; SIGTTOU closes it, and the log warns of what that may do."""
    with served(folder, "--reuse-port") as program:
        two = program.children()
        wait_for_answers(program.address, two)
        before = listeners_of(program)
        program.signal(signal.SIGTTIN)
        three = program.wait_for_children(3)
        wait_for_answers(program.address, three)
        assert len(listeners_of(program)) == 3
        assert listeners_of(program) > before
        assert "may be reset" not in program.errors
        program.signal(signal.SIGTTOU)
        program.wait_for("warning: connections that wait in the queue of its listener may be reset")
        program.wait_for(r"worker \d+ has ended")
        wait_until(lambda: listeners_of(program) == before, "the listener of the slot is closed")
        assert program.children() == two
        wait_for_answers(program.address, two)


async def test_roll_under_load_loses_nothing(folder: Path) -> None:
    """SIGHUP hands each slot's listener to the next worker: no request fails nor has to be retried."""
    with served(folder, "--reuse-port") as program:
        async with loaded(program) as load:
            listeners = listeners_of(program)
            for number in range(3):
                old = program.children()
                program.signal(signal.SIGHUP)
                await wait_for(program, "all workers are replaced", times=number + 1)
                await load.wait_for_workers(await wait_for_children(program, 2, but=old))
            assert listeners_of(program) == listeners
        assert_nothing_lost(load)


def listening_unix_sockets(path: Path) -> set[int]:
    accepts = "00010000"  # the flag of a socket that listens, in /proc/net/unix
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {int(line[6]) for line in lines if line[3] == accepts and line[7:] == [str(path)]}


def test_unix_sockets_are_shared(folder: Path) -> None:
    """A unix socket cannot be bound twice: beside the slots' own listeners it is one that all share."""
    path = folder / "app.sock"
    with served(folder, "--reuse-port", "--bind", "127.0.0.1:0", "--bind", f"unix:{path}") as program:
        workers = program.children()
        wait_for_answers(program.address, workers)
        wait_for_answers(str(path), workers)
        assert len(listeners_of(program)) == 2
        [shared] = listening_unix_sockets(path)
        assert all(shared in socket_inodes(pid) for pid in workers)


INHERITING = """
import os
import socket
import sys

inherited = socket.create_server(("127.0.0.1", 0))
inherited.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-m", "trioserve", *sys.argv[1:], "--fd", str(inherited.fileno())])
"""


def test_inherited_socket_is_shared_if_it_must(folder: Path) -> None:
    """A socket from outside that was bound without SO_REUSEPORT allows no second listener on its port, so all workers
    share it.
    """
    command = ("-c", INHERITING, write_app(folder), "--workers", "2", "--reuse-port")
    with start(*command, cwd=folder) as program:
        program.wait_for("listening on")
        wait_for_answers(program.address, program.wait_for_children(2))


async def test_inherited_socket_without_the_option_has_no_twin() -> None:
    """A second socket could not be bound beside it."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert Listener.from_socket(given, tls=False).twin() is None


# Servers of one process


def test_servers_share_a_port(folder: Path) -> None:
    """Two servers that know nothing of each other can share a port, if both have --reuse-port."""
    command = ("-m", "trioserve", write_app(folder), "--reuse-port", "--port")
    with start(*command, "0", cwd=folder) as first:
        address = first.address
        with start(*command, str(address[1]), cwd=folder) as second:
            second.wait_for("listening on")
            wait_for_answers(address, {first.process.pid, second.process.pid})


@pytest.mark.parametrize("option", [[], ["--reuse-port"]], ids=["neither", "the first alone"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_port_is_refused_without_the_option(folder: Path, option: list[str], workers: str) -> None:
    """Without --reuse-port a port that is taken is an error, whatever the server that has it was told: exit code 3."""
    command = ("-m", "trioserve", write_app(folder), "--port")
    with start(*command, "0", *option, cwd=folder) as first:
        port = first.address[1]
        second = finish(*command, str(port), "--workers", workers, cwd=folder)
        assert second.process.returncode == 3
        assert f"127.0.0.1:{port}" in second.errors
        assert "address already in use" in second.errors


# Listener.twin


@asynccontextmanager
async def bound(config: Config, *sockets: socket.socket) -> AsyncIterator[list[Listener]]:
    listeners = await bind_all(config, sockets)
    try:
        yield listeners
    finally:
        await aclose_all(listeners)


@asynccontextmanager
async def closing_all(*listeners: Listener) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await aclose_all(listeners)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_twin_listens_on_the_same_port(host: str) -> None:
    """A twin has the address and the port of its original, and each gets some of the connections."""
    async with bound(Config(bind=(f"{host}:0",), reuse_port=True)) as [listener]:
        twin = listener.twin()
        assert twin is not None
        async with closing_all(twin):
            assert twin.raw_address == listener.raw_address
            assert (twin.address, twin.url, twin.tls) == (listener.address, listener.url, listener.tls)
            for one in (listener, twin):
                one.listen(64)
            assert isinstance(listener.raw_address, tuple)
            with ExitStack() as clients, trio.fail_after(5):
                for _ in range(64):
                    clients.enter_context(closing(socket.create_connection(listener.raw_address)))
                for one in (listener, twin):
                    for accepted in await one.accept():
                        assert isinstance(accepted, socket.socket)
                        clients.enter_context(accepted)


async def test_twin_of_a_listener_with_tls_has_tls() -> None:
    """A twin's connections begin with a handshake if those of its original do."""
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bare.bind(("127.0.0.1", 0))
    listener = Listener.from_socket(bare, tls=True)
    twin = listener.twin()
    assert twin is not None
    async with closing_all(listener, twin):
        assert twin.tls
        assert twin.url == listener.url
        assert str(twin.url).startswith("https://")


async def test_twin_outlives_its_original() -> None:
    """Closing one of two twins leaves the other listening."""
    async with bound(Config(port=0, reuse_port=True)) as [listener]:
        twin = listener.twin()
        assert twin is not None
        async with closing_all(twin):
            twin.listen(16)
            await listener.aclose()
            assert isinstance(twin.raw_address, tuple)
            with closing(socket.create_connection(twin.raw_address)), trio.fail_after(5):
                [accepted] = await twin.accept()
                assert isinstance(accepted, socket.socket)
                accepted.close()


async def test_listener_of_another_kind_has_no_twin(folder: Path) -> None:
    """A unix socket and a listener of another make have no port to share."""
    async with bound(Config(uds=str(folder / "app.sock"))) as [listener]:
        assert listener.twin() is None
    stranger = Listener.from_listener(Stranger(), tls=False)
    async with closing_all(stranger):
        assert stranger.twin() is None


class Stranger(trio.abc.Listener[trio.abc.Stream]):
    """A listener that is no socket."""

    async def accept(self) -> trio.abc.Stream:
        raise AssertionError("nobody accepts here")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Inside, this process can open so many descriptors more."""
    opened = [os.dup(2) for _ in range(count + 1)]  # in the lowest numbers that are free
    for number in opened:
        os.close(number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_twin_that_cannot_be_opened_is_a_bind_error() -> None:
    """Where the system gives no second socket there is a BindError with the address, and no socket is left open."""
    async with bound(Config(port=0, reuse_port=True)) as [listener]:
        before = socket_inodes(os.getpid())
        with descriptors_left(0), pytest.raises(BindError) as caught:
            listener.twin()
        assert caught.value.errno == errno.EMFILE
        assert listener.address in str(caught.value)
        assert socket_inodes(os.getpid()) == before


# Sockets


@asynccontextmanager
async def sockets_of(config: Config) -> AsyncIterator[Sockets]:
    """The sockets of a supervisor; none is left open at the end."""
    before = socket_inodes(os.getpid())
    sockets = Sockets(config)
    await sockets.bind()
    try:
        yield sockets
    finally:
        await sockets.aclose()
    assert socket_inodes(os.getpid()) == before


def inodes(listeners: object) -> list[int]:
    assert isinstance(listeners, list)
    return [os.fstat(one.raw_socket.fileno()).st_ino for one in listeners]


async def test_slots_share_their_sockets_by_default() -> None:
    """Without reuse_port every slot gets the same listeners."""
    async with sockets_of(Config(bind=("127.0.0.1:0", "[::1]:0"))) as sockets:
        assert inodes(sockets.of_slot(0)) == inodes(sockets.of_slot(1)) == inodes(sockets.of_slot(7))
        await sockets.close_slot(1)
        assert all(one.raw_socket.fileno() >= 0 for one in sockets.of_slot(0))


async def test_slots_have_their_own_sockets_with_reuse_port() -> None:
    """With reuse_port each slot gets other listeners on the same ports, and always the same ones."""
    async with sockets_of(Config(bind=("127.0.0.1:0", "[::1]:0"), reuse_port=True)) as sockets:
        slots = [sockets.of_slot(number) for number in range(3)]
        assert len({inode for one in slots for inode in inodes(one)}) == 6
        assert len({tuple(one.address for one in listeners) for listeners in slots}) == 1
        assert [inodes(sockets.of_slot(number)) for number in range(3)] == [inodes(one) for one in slots]
        assert sockets.urls == [one.url for one in slots[0]]


async def test_closed_slot_leaves_the_others(folder: Path) -> None:
    """Closing a slot closes its own listeners alone; a slot of the same number would get new ones."""
    bind = ("127.0.0.1:0", f"unix:{folder / 'app.sock'}")
    async with sockets_of(Config(bind=bind, reuse_port=True)) as sockets:
        first, second = sockets.of_slot(0), sockets.of_slot(1)
        assert second[0] is not first[0]
        assert second[1] is first[1]
        await sockets.close_slot(1)
        await sockets.close_slot(1)
        assert second[0].raw_socket.fileno() == -1
        assert [one.raw_socket.fileno() >= 0 for one in first] == [True, True]
        assert sockets.of_slot(1)[0] is not second[0]


async def test_closing_ends_all_slots(folder: Path) -> None:
    """Closing the sockets closes those of every slot and removes the files of unix sockets; it may be repeated."""
    path = folder / "app.sock"
    async with sockets_of(Config(bind=("127.0.0.1:0", f"unix:{path}"), reuse_port=True)) as sockets:
        listeners = [*sockets.of_slot(0), *sockets.of_slot(1), *sockets.of_slot(2)]
        await sockets.aclose()
        assert {one.raw_socket.fileno() for one in listeners} == {-1}
        assert not path.exists()


async def test_nobody_listens_before_a_worker() -> None:
    """The supervisor binds and does not listen: a client is refused as long as there is no worker to answer."""
    async with sockets_of(Config(port=0, reuse_port=True)) as sockets:
        [listener] = sockets.of_slot(1)
        assert isinstance(listener.raw_address, tuple)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.raw_address)


async def test_slot_that_cannot_be_opened_leaves_nothing_open() -> None:
    """If the second listener of a slot cannot be opened there is a BindError, and the first is closed again."""
    async with sockets_of(Config(bind=("127.0.0.1:0", "127.0.0.1:0"), reuse_port=True)) as sockets:
        before = socket_inodes(os.getpid())
        with descriptors_left(1), pytest.raises(BindError) as caught:
            sockets.of_slot(1)
        assert caught.value.errno == errno.EMFILE
        assert socket_inodes(os.getpid()) == before
