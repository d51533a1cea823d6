"""Binding, listening, accepting and closing, on real sockets."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from trioserve.config import Config
from trioserve.errors import BindError
from trioserve.net import bound_sockets, listeners
from trioserve.net.binding import bind_all
from trioserve.net.listeners import ACCEPT_BATCH, Accepted, Listener, Socket, accept_forever, aclose_all


@asynccontextmanager
async def bound(config: Config, *sockets: Socket, bind_default: bool = True) -> AsyncIterator[list[Listener]]:
    listeners = await bind_all(config, sockets, bind_default=bind_default)
    try:
        yield listeners
    finally:
        await aclose_all(listeners)


@asynccontextmanager
async def listening(config: Config, *sockets: Socket) -> AsyncIterator[list[Listener]]:
    async with bound(config, *sockets) as listeners:
        for one in listeners:
            one.listen(16)
        yield listeners


async def exchange(listener: Listener) -> None:
    """A client connects, and what it sends arrives."""
    with trio.fail_after(5):
        if isinstance(listener.raw_address, tuple):
            client: trio.SocketStream = await trio.open_tcp_stream(*listener.raw_address)
        else:
            assert listener.raw_address is not None
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            await sock.connect(listener.raw_address.replace("@", "\0", 1))
            client = trio.SocketStream(sock)
        async with client:
            with await accept_one(listener) as server:
                await client.send_all(b"hello")
                assert server.recv(5) == b"hello"


async def accept_one(listener: Listener) -> socket.socket:
    """The one connection that waits, or the next one; non-blocking."""
    [accepted] = await listener.accept()
    assert isinstance(accepted, socket.socket)
    assert not accepted.getblocking()
    return accepted


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders have names too long for a unix socket on macOS.
    with tempfile.TemporaryDirectory(prefix="ts") as name:
        yield Path(name)


def is_there(path: str | Path) -> bool:
    return os.path.lexists(path)


def mode_of(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def remove(path: str) -> None:
    Path(path).unlink()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Names(trio.abc.HostnameResolver):
    """A resolver for the host names of a test; ``addresses`` are what every name means."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        return [one for address in self.addresses for one in socket.getaddrinfo(address, port, family, type)]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


# ---- TCP


async def test_tcp_address_is_served_and_told() -> None:
    """A TCP listener accepts, and says where it is; port 0 becomes the port the system chose."""
    async with listening(Config(port=0)) as [listener]:
        assert isinstance(listener.raw_address, tuple)
        host, port = listener.raw_address
        assert host == "127.0.0.1"
        assert port != 0
        assert listener.address == f"127.0.0.1:{port}"
        assert listener.url == f"http://127.0.0.1:{port}"
        assert not listener.tls
        await exchange(listener)


async def test_ipv6_address_is_served_and_told() -> None:
    """An IPv6 listener has brackets in its words and two parts in its raw address."""
    async with listening(Config(bind=("[::1]:0",))) as [listener]:
        assert isinstance(listener.raw_address, tuple)
        host, port = listener.raw_address
        assert host == "::1"
        assert listener.address == f"[::1]:{port}"
        assert listener.url == f"http://[::1]:{port}"
        await exchange(listener)


async def test_ipv6_stands_beside_ipv4_on_one_port() -> None:
    """All of IPv6 and all of IPv4 can be bound on one port (IPV6_V6ONLY)."""
    port = free_port()
    async with listening(Config(bind=(f"[::]:{port}", f"0.0.0.0:{port}"))) as [six, four]:
        assert six.raw_address == ("::", port)
        assert four.raw_address == ("0.0.0.0", port)
        with trio.fail_after(5):
            for listener, host in ((six, "::1"), (four, "127.0.0.1")):
                async with await trio.open_tcp_stream(host, port):
                    (await accept_one(listener)).close()


async def test_plain_stands_beside_tls() -> None:
    """insecure_bind listens without TLS beside an address with it, and the URLs say so."""
    config = Config(bind=("127.0.0.1:0",), insecure_bind=("127.0.0.1:0",), ssl_certfile="unused.pem")
    async with listening(config) as [secure, plain]:
        assert secure.tls
        assert secure.url is not None
        assert secure.url.startswith("https://127.0.0.1:")
        assert not plain.tls
        assert plain.url is not None
        assert plain.url.startswith("http://127.0.0.1:")


async def test_nobody_connects_before_listen() -> None:
    """A bound address refuses connections until it listens, so start-up may take its time."""
    async with bound(Config(port=0)) as [listener]:
        assert isinstance(listener.raw_address, tuple)
        with pytest.raises(OSError, match="127.0.0.1"):
            await trio.open_tcp_stream(*listener.raw_address)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_address_in_use_is_refused() -> None:
    """A second server on a port is refused with the address and the system's reason."""
    async with listening(Config(port=0)) as [first]:
        assert isinstance(first.raw_address, tuple)
        with pytest.raises(BindError) as caught:
            await bind_all(Config(port=first.raw_address[1]))
    assert str(caught.value) == f"cannot listen on {first.address}: address already in use"
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.address == first.address


async def test_address_taken_between_bind_and_listen_is_refused() -> None:
    """Of two servers starting at once on one port the second is refused with that text, by listen() at last."""
    async with bound(Config(port=0)) as [first]:
        assert isinstance(first.raw_address, tuple)
        config = Config(port=first.raw_address[1])

        async def start_second() -> None:
            async with bound(config) as [second]:
                first.listen(16)
                second.listen(16)

        with pytest.raises(BindError) as caught:
            await start_second()
    assert str(caught.value) == f"cannot listen on {first.address}: address already in use"
    assert caught.value.errno == errno.EADDRINUSE


async def test_failure_closes_what_was_bound_before() -> None:
    """If one address cannot be bound, those before it are free again, and given sockets are closed."""
    port = free_port()
    given = socket.create_server(("127.0.0.1", 0))
    async with listening(Config(port=0)) as [taken]:
        with pytest.raises(BindError):
            await bind_all(Config(bind=(f"127.0.0.1:{port}", taken.address)), [given])
    assert given.fileno() == -1
    async with listening(Config(port=port)):
        pass


async def test_name_means_all_its_addresses_on_one_port() -> None:
    """A host name is bound in both families; port 0 is one port for both."""
    trio.socket.set_custom_hostname_resolver(Names("127.0.0.1", "::1"))
    async with listening(Config(host="two.test", port=0)) as [four, six]:
        assert isinstance(four.raw_address, tuple)
        assert isinstance(six.raw_address, tuple)
        assert [four.raw_address[0], six.raw_address[0]] == ["127.0.0.1", "::1"]
        assert four.raw_address[1] == six.raw_address[1]


async def test_address_named_twice_is_bound_once() -> None:
    """/etc/hosts may give a name the same address twice."""
    trio.socket.set_custom_hostname_resolver(Names("127.0.0.1", "127.0.0.1"))
    async with listening(Config(host="twice.test", port=0)) as listeners:
        assert len(listeners) == 1


class FakeBind:
    """Stands in for binding one address; refuses as the test says, and binds otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: str, number: int, times: int) -> None:
        self.host, self.number, self.times = host, number, times
        self.bind_one = bound_sockets.bind_one
        monkeypatch.setattr(bound_sockets, "bind_one", self)

    def __call__(self, family: int, name: tuple[object, ...], *, shares_port: bool) -> socket.socket:
        if name[0] == self.host and self.times:
            self.times -= 1
            raise BindError(self.number, "as the test says", str(name[0]))
        return self.bind_one(family, name, shares_port=shares_port)


async def test_port_taken_in_one_family_is_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the port the system chose for the first address is taken for the second, another is tried."""
    trio.socket.set_custom_hostname_resolver(Names("127.0.0.1", "::1"))
    fake = FakeBind(monkeypatch, "::1", errno.EADDRINUSE, times=3)
    async with listening(Config(host="two.test", port=0)) as listeners:
        assert len(listeners) == 2
        assert fake.times == 0


async def test_choosing_a_port_ends_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no port is free for all addresses the server gives up after ten attempts."""
    trio.socket.set_custom_hostname_resolver(Names("127.0.0.1", "::1"))
    fake = FakeBind(monkeypatch, "::1", errno.EADDRINUSE, times=100)
    with pytest.raises(BindError):
        await bind_all(Config(host="two.test", port=0))
    assert fake.times == 90


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_family_the_machine_lacks_is_skipped_for_a_name(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A name is served on its IPv4 address where IPv6 is switched off."""
    trio.socket.set_custom_hostname_resolver(Names("::1", "127.0.0.1"))
    FakeBind(monkeypatch, "::1", number, times=1)
    async with listening(Config(host="two.test", port=0)) as [listener]:
        assert listener.address.startswith("127.0.0.1:")


async def test_family_the_machine_lacks_is_an_error_for_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """An explicit IPv6 address is refused where IPv6 is switched off."""
    FakeBind(monkeypatch, "::1", errno.EADDRNOTAVAIL, times=1)
    with pytest.raises(BindError, match="as the test says"):
        await bind_all(Config(host="::1", port=0))


async def test_foreign_address_is_refused() -> None:
    """An address of another machine is refused."""
    with pytest.raises(BindError, match=r"^cannot listen on 192\.0\.2\.1:80: ") as caught:
        await bind_all(Config(host="192.0.2.1", port=80))
    assert caught.value.errno == errno.EADDRNOTAVAIL


class Unresolved(Names):
    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def test_name_that_does_not_resolve_is_refused() -> None:
    """A host name that does not resolve is refused with the resolver's reason, whose number is not errno's."""
    trio.socket.set_custom_hostname_resolver(Unresolved())
    with pytest.raises(BindError) as caught:
        await bind_all(Config(host="no.test"))
    assert str(caught.value) == (
        "cannot listen on no.test:8000: the name cannot be resolved (name or service not known)"
    )
    assert caught.value.errno is None


async def test_impossible_name_is_refused() -> None:
    """A host name that no DNS can hold is refused, without an error from the codec."""
    with pytest.raises(BindError, match="^cannot listen on x"):
        await bind_all(Config(host="x" * 100))


async def test_low_port_without_the_right_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port below 1024 that the system denies is explained."""

    class Denied(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(bound_sockets.socket, "socket", Denied)
    with pytest.raises(BindError) as caught:
        await bind_all(Config(port=80))
    assert str(caught.value) == ("cannot listen on 127.0.0.1:80: permission denied (ports below 1024 need a privilege)")
    assert caught.value.errno == errno.EACCES


# ---- unix sockets


async def test_unix_socket_is_served_and_its_file_removed(folder: Path) -> None:
    """A unix socket accepts, says where it is, and takes its file away when it closes."""
    path = str(folder / "s")
    async with listening(Config(uds=path)) as [listener]:
        assert listener.address == listener.url == f"unix:{path}"
        assert listener.raw_address == path
        await exchange(listener)
    assert not is_there(path)


async def test_unix_socket_has_the_mode_asked_for(folder: Path) -> None:
    """uds_permissions is the file's mode before anybody can connect."""
    path = str(folder / "s")
    async with bound(Config(uds=path, uds_permissions=0o640)):
        assert mode_of(path) == 0o640


async def test_stale_socket_file_is_replaced(folder: Path) -> None:
    """The file of a server that ended without removing it is replaced."""
    path = str(folder / "s")
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(path)
        dead.listen()
    async with listening(Config(uds=path)) as [listener]:
        await exchange(listener)


async def test_live_unix_socket_is_refused(folder: Path) -> None:
    """The socket of a running server is refused and left alone."""
    config = Config(uds=str(folder / "s"))
    async with listening(config) as [listener]:
        with pytest.raises(BindError) as caught:
            await bind_all(config)
        assert str(caught.value) == f"cannot listen on unix:{folder}/s: another server is listening there"
        assert caught.value.errno == errno.EADDRINUSE
        (await accept_one(listener)).close()  # what the second server asked with
        await exchange(listener)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses connections")
async def test_live_unix_socket_with_a_full_queue_is_refused(folder: Path) -> None:
    """A server too busy to accept is alive all the same, and asking it does not block."""
    path = str(folder / "s")
    with ExitStack() as opened:
        busy = opened.enter_context(closing(socket.socket(socket.AF_UNIX)))
        busy.bind(path)
        busy.listen(0)
        for _ in range(64):
            client = opened.enter_context(closing(socket.socket(socket.AF_UNIX)))
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        with pytest.raises(BindError, match="another server is listening there"):
            await bind_all(Config(uds=path))
        assert is_there(path)


async def test_file_that_is_no_socket_is_refused(folder: Path) -> None:
    """A file at the path is refused and left alone."""
    path = folder / "s"
    path.write_text("precious")
    with pytest.raises(BindError, match="the path exists and is not a socket"):
        await bind_all(Config(uds=str(path)))
    assert path.read_text() == "precious"


async def test_symbolic_link_is_refused(folder: Path) -> None:
    """A link at the path is refused, also one that leads nowhere."""
    path = folder / "s"
    path.symlink_to(folder / "nothing")
    with pytest.raises(BindError, match="the path exists and is not a socket"):
        await bind_all(Config(uds=str(path)))
    assert path.is_symlink()


async def test_too_long_path_is_refused(folder: Path) -> None:
    """A path longer than a unix address is refused with the reason."""
    with pytest.raises(BindError, match="path too long"):
        await bind_all(Config(uds=str(folder / ("x" * 200))))


async def test_nul_in_a_path_is_refused(folder: Path) -> None:
    """A path with NUL, which a TOML file can hold, is refused."""
    with pytest.raises(BindError, match="null"):
        await bind_all(Config(uds=f"{folder}/a\0b"))


async def test_missing_folder_is_refused(folder: Path) -> None:
    """A path in a folder that is not there is refused with the system's reason."""
    with pytest.raises(BindError, match=r"/s: no such file or directory$"):
        await bind_all(Config(uds=str(folder / "missing" / "s")))


async def test_denied_path_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denied path has the system's reason, and no hint about ports."""

    def deny(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", deny)
    with pytest.raises(BindError, match=r": operation not permitted$"):
        await bind_all(Config(uds=str(folder / "80"), uds_permissions=0o600))
    assert not is_there(folder / "80")


async def test_file_of_another_server_is_not_removed(folder: Path) -> None:
    """A server whose file was replaced by another server's leaves that one alone when it closes."""
    path = str(folder / "s")
    async with listening(Config(uds=path)):
        remove(path)
        other = socket.socket(socket.AF_UNIX)
        other.bind(path)
    with closing(other):
        assert is_there(path)


async def test_removed_file_is_noticed_at_listen(folder: Path) -> None:
    """A server whose file was removed during start-up does not start, as nobody could connect; closing it is fine."""
    path = folder / "s"
    async with bound(Config(uds=str(path))) as [listener]:
        path.unlink()
        with pytest.raises(BindError, match="the path has been removed"):
            listener.listen(16)


async def test_path_taken_between_bind_and_listen_is_refused(folder: Path) -> None:
    """Of two servers that start at once on one path the one that lost the file is refused by listen()."""
    config = Config(uds=str(folder / "s"))
    async with bound(config) as [first], listening(config) as [second]:
        with pytest.raises(BindError, match="taken by another server") as caught:
            first.listen(16)
        assert caught.value.errno == errno.EADDRINUSE
        await first.aclose()
        await exchange(second)


async def test_relative_path_is_removed_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a relative path is removed also after the program has changed its folder."""
    monkeypatch.chdir(folder)
    async with bound(Config(uds="s")):
        assert is_there(folder / "s")
        monkeypatch.chdir("/")
    assert not is_there(folder / "s")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets exist only on Linux")
async def test_abstract_socket_is_served() -> None:
    """unix:@name is an abstract socket: it has no file."""
    name = f"@trioserve-test-{os.getpid()}"
    async with listening(Config(bind=(f"unix:{name}",))) as [listener]:
        assert listener.address == listener.url == f"unix:{name}"
        assert listener.raw_address == name
        await exchange(listener)
        assert not is_there(name)


async def test_abstract_socket_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems an abstract name is refused instead of becoming a file."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BindError, match="only on Linux"):
        await bind_all(Config(uds="@name"))


async def test_unix_socket_is_refused_where_there_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without unix sockets says so."""
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(BindError, match="no unix sockets"):
        await bind_all(Config(uds=str(folder / "s")))


# ---- descriptors and ready sockets


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("already", [False, True])
async def test_descriptor_tells_its_family(host: str, already: bool) -> None:
    """An inherited TCP socket is served in its own family, whether it listens already or not."""
    inherited = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    inherited.bind((host, 0))
    if already:
        inherited.listen()
    port = inherited.getsockname()[1]
    number = inherited.detach()
    async with listening(Config(fd=number)) as [listener]:
        assert listener.address == f"fd:{number}"
        assert listener.raw_address == (host, port)
        assert listener.url is not None
        assert listener.url.startswith("http://")
        await exchange(listener)


async def test_inherited_unix_socket_keeps_its_file(folder: Path) -> None:
    """The file of an inherited unix socket belongs to who made it."""
    path = str(folder / "s")
    inherited = socket.socket(socket.AF_UNIX)
    inherited.bind(path)
    async with listening(Config(fd=inherited.detach())) as [listener]:
        assert listener.url == f"unix:{path}"
        await exchange(listener)
    assert is_there(path)


async def test_descriptor_that_is_no_socket_is_refused() -> None:
    """A file is refused by name and stays open."""
    with tempfile.TemporaryFile() as file:
        with pytest.raises(BindError) as caught:
            await bind_all(Config(fd=file.fileno()))
        assert str(caught.value) == f"cannot listen on fd:{file.fileno()}: the descriptor is not a socket"
        file.write(b"still open")


async def test_closed_descriptor_is_refused() -> None:
    """A number that is no descriptor is refused with the system's reason."""
    with pytest.raises(BindError, match=r"^cannot listen on fd:999999: bad file descriptor$"):
        await bind_all(Config(fd=999999))


async def test_datagram_descriptor_is_refused() -> None:
    """A UDP socket is refused and stays open."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        with pytest.raises(BindError, match="not a stream socket"):
            await bind_all(Config(fd=datagrams.fileno()))
        assert datagrams.getsockname()[1] != 0


async def test_descriptor_named_twice_is_refused() -> None:
    """Two listeners never own one descriptor."""
    number = socket.create_server(("127.0.0.1", 0)).detach()
    with pytest.raises(BindError, match="named twice"):
        await bind_all(Config(bind=(f"fd:{number}", f"fd:{number}")))


async def test_name_of_a_descriptor_is_refused() -> None:
    """A name means nothing where nobody has asked systemd for its number; what was bound before is free again."""
    port = free_port()
    with pytest.raises(BindError) as caught:
        await bind_all(Config(bind=(f"127.0.0.1:{port}", "fd:http")))
    assert str(caught.value) == "cannot listen on fd:http: there is no inherited descriptor of this name"
    assert caught.value.errno == errno.EBADF
    async with listening(Config(port=port)):
        pass


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_unbound_socket_is_refused(family: int) -> None:
    """A socket without an address is refused: listen() would choose any port on all interfaces."""
    with closing(socket.socket(family)) as unbound, pytest.raises(BindError, match="the socket is not bound"):
        await bind_all(Config(), [unbound], bind_default=False)


async def test_ready_sockets_are_served_beside_named_addresses() -> None:
    """Sockets of the standard library and of Trio are served; named addresses too."""
    ready = socket.create_server(("127.0.0.1", 0))
    trios = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", 0)))
    expected = [ready.getsockname(), trios.getsockname()]
    async with listening(Config(bind=("127.0.0.1:0",)), ready, trios) as listeners:
        assert [one.raw_address for one in listeners[1:]] == expected
        for one in listeners:
            await exchange(one)


async def test_default_address_is_left_out_where_others_are_given() -> None:
    """With bind_default=False host and port are bound only if nothing else would be named in the configuration."""
    async with bound(Config(port=0), bind_default=False) as listeners:
        assert listeners == []
    async with bound(Config(bind=("127.0.0.1:0",)), bind_default=False) as listeners:
        assert len(listeners) == 1


# ---- accepting and closing


class FakeListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener that is no socket: gives what the test put in, then waits until it is closed."""

    def __init__(self, *outcomes: trio.abc.Stream | OSError) -> None:
        self.outcomes = list(outcomes)
        self.closed = trio.Event()

    async def accept(self) -> trio.abc.Stream:
        if not self.outcomes:
            await self.closed.wait()
            raise trio.ClosedResourceError
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        self.closed.set()
        await trio.lowlevel.checkpoint()


async def test_foreign_listener_is_served() -> None:
    """Any Trio listener can be served; it has words, but neither URL nor address."""
    stream = memory_stream_pair()[0]
    listener = Listener.from_listener(FakeListener(stream), tls=False)
    listener.listen(16)
    assert await listener.accept() == [stream]
    assert (listener.address, listener.url, listener.raw_address) == ("FakeListener", None, None)
    await aclose_all([listener])


async def test_socket_listener_of_trio_tells_its_address() -> None:
    """A trio.SocketListener is known by its socket."""
    [made] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = Listener.from_listener(made, tls=True)
    listener.listen(16)
    assert listener.url is not None
    assert listener.url.startswith("https://127.0.0.1:")
    await exchange(listener)
    await aclose_all([listener])


async def test_closing_ends_accepting_and_frees_the_address() -> None:
    """accept_forever returns when its listener is closed; closing twice is allowed."""
    async with trio.open_nursery() as nursery:
        [listener] = await bind_all(Config(port=0))
        listener.listen(16)
        nursery.start_soon(accept_forever, listener, lambda accepted: None)
        await trio.testing.wait_all_tasks_blocked()
        await aclose_all([listener])
        await aclose_all([listener])
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    assert isinstance(listener.raw_address, tuple)
    async with listening(Config(port=listener.raw_address[1])):
        pass


async def test_closing_works_in_a_cancelled_scope() -> None:
    """Every listener is closed, foreign ones too, although the closing task is cancelled."""
    fakes = [FakeListener(), FakeListener()]
    listeners = await bind_all(Config(port=0))
    listeners += [Listener.from_listener(one, tls=False) for one in fakes]
    with trio.CancelScope() as scope:
        scope.cancel()
        await aclose_all(listeners)
        await aclose_all(listeners)
    assert all(one.closed.is_set() for one in fakes)
    with pytest.raises(trio.ClosedResourceError):
        await listeners[0].accept()


async def test_accepted_streams_go_to_the_handler() -> None:
    """accept_forever hands over each stream, and ends when it is cancelled."""
    streams = [memory_stream_pair()[0] for _ in range(3)]
    listener = Listener.from_listener(FakeListener(*streams), tls=False)
    handled: list[Accepted] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, handled.append)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert handled == streams


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_accepting_survives_exhaustion(
    number: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors or memory the server warns once, waits a tenth of a second each time, and goes on."""
    stream = memory_stream_pair()[0]
    full = OSError(number, os.strerror(number))
    listener = Listener.from_listener(FakeListener(full, full, full, stream), tls=False)
    handled: list[Accepted] = []
    start = trio.current_time()
    with caplog.at_level(logging.WARNING, "trioserve.error"):
        async with trio.open_nursery() as nursery:

            def handle(accepted: Accepted) -> None:
                handled.append(accepted)
                nursery.cancel_scope.cancel()

            nursery.start_soon(accept_forever, listener, handle)
    assert handled == [stream]
    assert trio.current_time() - start == pytest.approx(0.3)
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("cannot accept connections on FakeListener: ")


async def test_each_exhaustion_is_warned_of(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """After a connection was accepted, running out again is a new warning."""
    stream = memory_stream_pair()[0]
    full = OSError(errno.EMFILE, "Too many open files")
    fake = FakeListener(full, stream, full, stream)
    with trio.move_on_after(10):
        await accept_forever(Listener.from_listener(fake, tls=False), lambda accepted: None)
    assert len(caplog.records) == 2


async def test_other_errors_of_accept_are_raised() -> None:
    """An error that waiting cannot heal is not hidden."""
    listener = Listener.from_listener(FakeListener(OSError(errno.EINVAL, "Invalid argument")), tls=False)
    with pytest.raises(OSError, match="Invalid argument"):
        await accept_forever(listener, lambda accepted: None)


async def test_accepted_tcp_connections_send_at_once() -> None:
    """Accepted TCP sockets have TCP_NODELAY: small writes are not held back for the client's acknowledgement."""
    async with listening(Config(port=0)) as [listener]:
        assert isinstance(listener.raw_address, tuple)
        async with await trio.open_tcp_stream(*listener.raw_address):
            with await accept_one(listener) as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def connect(opened: ExitStack, listener: Listener, count: int) -> list[int]:
    """So many clients, which the kernel has accepted; their ports."""
    assert isinstance(listener.raw_address, tuple)
    clients = [opened.enter_context(socket.create_connection(listener.raw_address)) for _ in range(count)]
    return [one.getsockname()[1] for one in clients]


def ports_of(accepted: Sequence[Accepted], opened: ExitStack) -> list[int]:
    """The clients' ports, in order; the sockets are closed with the rest."""
    ports = []
    for one in accepted:
        assert isinstance(one, socket.socket)
        ports.append(opened.enter_context(one).getpeername()[1])
    return ports


async def test_all_that_wait_are_accepted_together() -> None:
    """One accept takes every connection that waits, in the order of their coming."""
    async with listening(Config(port=0)) as [listener]:
        with ExitStack() as opened, trio.fail_after(5):
            expected = connect(opened, listener, 3)
            assert ports_of(await listener.accept(), opened) == expected


async def test_a_batch_has_an_end() -> None:
    """Of more connections than a batch takes the rest is accepted next, after others had their turn."""
    async with bound(Config(port=0)) as [listener]:
        listener.listen(2 * ACCEPT_BATCH)
        with ExitStack() as opened, trio.fail_after(5):
            expected = connect(opened, listener, ACCEPT_BATCH + 1)
            assert ports_of(await listener.accept(), opened) == expected[:-1]
            with trio.testing.assert_checkpoints():
                rest = await listener.accept()
            assert ports_of(rest, opened) == expected[-1:]


class Acceptor:
    """Accepts from a real socket, but first fails as the test says: None stands for a real accept."""

    def __init__(self, acceptor: socket.socket, outcomes: list[int | None]) -> None:
        self._acceptor = acceptor
        self._outcomes = outcomes

    def accept(self) -> tuple[socket.socket, object]:
        number = self._outcomes.pop(0) if self._outcomes else None
        if number is not None:
            raise OSError(number, os.strerror(number))
        return self._acceptor.accept()

    def close(self) -> None:
        self._acceptor.close()


def let_accept_fail(monkeypatch: pytest.MonkeyPatch, *outcomes: int | None) -> None:
    """Let the system say so, in this order, of the connections that are accepted."""
    dup_listening = listeners._dup_listening
    monkeypatch.setattr(listeners, "_dup_listening", lambda one: Acceptor(dup_listening(one), list(outcomes)))


@pytest.mark.parametrize("number", sorted(listeners._ABORTED))
async def test_a_lost_connection_does_not_stop_the_batch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """An error of one connection that was lost before it was accepted keeps no other waiting."""
    let_accept_fail(monkeypatch, None, number, None)
    async with listening(Config(port=0)) as [listener]:
        with ExitStack() as opened, trio.fail_after(5):
            expected = connect(opened, listener, 2)
            assert ports_of(await listener.accept(), opened) == expected


async def test_what_was_accepted_before_an_error_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of descriptors in the middle of a batch hands over the first half of it; the next accept raises."""
    let_accept_fail(monkeypatch, None, errno.EMFILE, errno.EMFILE, None)
    async with listening(Config(port=0)) as [listener]:
        with ExitStack() as opened, trio.fail_after(5):
            expected = connect(opened, listener, 2)
            assert ports_of(await listener.accept(), opened) == expected[:1]
            with pytest.raises(OSError, match="Too many open files"):
                await listener.accept()
            assert ports_of(await listener.accept(), opened) == expected[1:]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of descriptors counts their numbers")
async def test_clients_wait_until_there_are_descriptors_again(caplog: pytest.LogCaptureFixture) -> None:
    """With the process really out of descriptors, connections are accepted as soon as others are closed."""
    handled: list[Accepted] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with listening(Config(port=0)) as [listener]:
        with ExitStack() as opened, trio.fail_after(10):
            connect(opened, listener, 3)
            async with trio.open_nursery() as nursery:
                with closing(socket.socket()) as lowest:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 1, hard))
                    opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
                    nursery.start_soon(accept_forever, listener, handled.append)
                    while not caplog.records:
                        await trio.sleep(0.01)
                    assert handled == []
                while not handled:
                    await trio.sleep(0.01)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                while len(handled) < 3:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            ports_of(handled, opened)


async def test_others_may_have_been_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that several processes accept from may have nothing for one that was woken: it goes on waiting."""
    handled: list[Accepted] = []
    let_accept_fail(monkeypatch, errno.EAGAIN, None)
    async with listening(Config(port=0)) as [listener]:
        with ExitStack() as opened, trio.fail_after(5):
            expected = connect(opened, listener, 1)
            async with trio.open_nursery() as nursery:

                def handle(accepted: Accepted) -> None:
                    handled.append(accepted)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(accept_forever, listener, handle)
            assert ports_of(handled, opened) == expected


class BeforeNextStep(trio.abc.Instrument):
    """Does something once, before the next task runs."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        trio.lowlevel.remove_instrument(self)
        self.then()


async def test_a_listener_closed_after_a_client_came_accepts_nobody() -> None:
    """Woken for a client, but closed before its turn came, an accept says that it is closed."""

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with listening(Config(port=0)) as [listener]:
        with ExitStack() as opened, trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                await trio.testing.wait_all_tasks_blocked()
                connect(opened, listener, 1)
                # Only the client can wake a task now.
                trio.lowlevel.add_instrument(BeforeNextStep(listener.close))


async def test_a_socket_of_trio_stays_its_owner_s_too() -> None:
    """Who gave a trio.SocketListener may ask it for its address; closing it ends accepting, and nobody can connect."""
    [made] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = Listener.from_listener(made, tls=False)
    listener.listen(16)
    await exchange(listener)
    assert made.socket.getsockname() == listener.raw_address
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, lambda accepted: None)
        await trio.testing.wait_all_tasks_blocked()
        await made.aclose()
    assert isinstance(listener.raw_address, tuple)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.raw_address)
