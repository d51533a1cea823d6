"""Renewing certificates while the server runs: what new handshakes see, what the old ones keep, and what is said."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from trioserve import CertificateError, Config
from trioserve.net.listeners import Listener
from trioserve.process.certificates import CertificateKeeper, sign_files
from trioserve.testing.memory_server import MemoryServer

from .support import (
    Client,
    Recorder,
    RunningServer,
    http_app,
    memory_server,
    nothing_left,
    open_descriptors,
    prepare_fully,
    respond,
    run_server,
    send_text,
    socket_server,
)

pytestmark = pytest.mark.timeout(30)

ticks = itertools.count(1)


class Files:
    """A private authority and, as files, the newest of its certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chain, self.key, self.authorities = folder / "chain.pem", folder / "key.pem", folder / "ca.pem"
        self.ca = trustme.CA()
        self.write(self.authorities, self.ca.cert_pem.bytes())
        self.leaf = self.issue()

    def write(self, path: Path, data: bytes) -> None:
        """Write a file in place."""
        path.write_bytes(data)
        # Virtual time passes without the file system's, which counts in steps of some milliseconds.
        tick = next(ticks)
        os.utime(path, ns=(tick, tick))

    def write_pair(self, leaf: trustme.LeafCert) -> None:
        self.write(self.chain, b"".join(one.bytes() for one in leaf.cert_chain_pems))
        self.write(self.key, leaf.private_key_pem.bytes())

    def issue(self) -> trustme.LeafCert:
        """Make a new certificate, and the files its."""
        self.leaf = self.ca.issue_cert("localhost")
        self.write_pair(self.leaf)
        return self.leaf

    def config(self, **options: object) -> Config:
        return Config.from_plain({"ssl_certfile": str(self.chain), "ssl_keyfile": str(self.key), **options})

    def config_of_factory(self) -> Config:
        return self.config(ssl_context_factory=f"{__name__}:make_context")

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def der_of(leaf: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


made: list[ssl.SSLContext] = []
refusals: list[Exception] = []


def make_context(config: Config, standard: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """An ssl_context_factory that keeps what it made, and first raises what it was told to."""
    if refusals:
        raise refusals.pop()
    made.append(standard())
    return made[-1]


@pytest.fixture(autouse=True)
def _forget():
    made.clear()
    refusals.clear()


@asynccontextmanager
async def secured_server(config: Config, app=None) -> AsyncIterator[RunningServer]:
    """A server that does its handshakes on memory streams, so that virtual time passes none of them by."""
    recorder = Recorder()
    server = MemoryServer(prepare_fully(app or respond(), config, {}), recorder)
    with nothing_left():
        async with run_server(server, recorder, bound=[Listener.from_listener(server.listener, tls=True)]) as running:
            yield running


async def connect(server: RunningServer, context: ssl.SSLContext) -> Client:
    """A client whose handshake is done."""
    with trio.fail_after(5):
        client = await server.connect()
        client.stream = trio.SSLStream(client.stream, context, server_hostname="localhost", https_compatible=True)
        await client.stream.do_handshake()
        return client


async def served(server: RunningServer, files: Files) -> bytes:
    """The certificate that a new client is shown, as DER."""
    client = await connect(server, files.client())
    certificate = client.stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(client.stream)
    return certificate


@pytest.fixture
def lines(caplog) -> Callable[[], list[str]]:
    """What was logged, as "level: text"; a function, because each phase of a test has records of its own."""
    caplog.set_level(logging.INFO, "trioserve")
    return lambda: [
        f"{one.levelname.lower()}: {one.getMessage()}"
        for one in caplog.records
        if one.name in ("trioserve", "trioserve.error")
    ]


REFUSAL = "error: the new certificates cannot be used, so the old ones stay: "


def renewed(files: Files) -> str:
    return f"info: certificates renewed from {files.chain}"


# Ways to break a pair: each leaves files that cannot be used, and gives the words of the reason.


def break_match(files: Files) -> str:
    files.write(files.key, files.ca.issue_cert("localhost").private_key_pem.bytes())
    return "the private key does not belong to the certificate"


def remove_key(files: Files) -> str:
    files.key.unlink()
    return "no such file or directory"


def write_garbage(files: Files) -> str:
    files.write(files.chain, bytes(range(256)))
    return "no certificate in PEM in it"


def write_half(files: Files) -> str:
    files.write(files.chain, files.chain.read_bytes()[:300])
    return "no certificate in PEM in it"


def damage(files: Files) -> str:
    files.write(files.chain, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return "OpenSSL cannot use the certificate or the private key"


def empty(files: Files) -> str:
    files.write(files.key, b"")
    return "no private key in PEM in it"


def encrypt_key(files: Files) -> str:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    files.write(files.key, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return "the private key is encrypted; give ssl_keyfile_password"


BREAKAGES = (break_match, remove_key, write_garbage, write_half, damage, empty, encrypt_key)
ON_EACH_BREAKAGE = pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda one: one.__name__)


# The server: reload_certificates()


async def test_a_new_client_sees_the_new_certificate(files):
    """Over real sockets: after reload_certificates() a handshake shows the new certificate, before it the old one."""
    old = files.leaf
    async with socket_server(respond(), config=files.config(port=0)) as server:
        assert await served(server, files) == der_of(old)
        new = files.issue()
        assert await served(server, files) == der_of(old)
        server.server.reload_certificates()
        assert await served(server, files) == der_of(new)


async def test_the_application_is_told_the_certificate_of_its_connection(files):
    """The tls extension names the certificate that the connection's own handshake showed."""

    async def tell(scope, receive, send):
        await send_text(send, scope["extensions"]["tls"]["server_cert"])

    old = files.leaf
    async with secured_server(files.config(), http_app(tell)) as server:
        before = await connect(server, files.client())
        new = files.issue()
        server.server.reload_certificates()
        after = await connect(server, files.client())
        for client, leaf in ((before, old), (after, new)):
            assert ssl.PEM_cert_to_DER_cert((await client.get()).body.decode()) == der_of(leaf)


async def test_an_open_connection_survives(files):
    """Over real sockets: a connection that was kept alive across a renewal still answers."""
    async with socket_server(respond(), config=files.config(port=0)) as server:
        with trio.fail_after(5):
            client = await connect(server, files.client())
            assert (await client.get()).status == 200
            files.issue()
            server.server.reload_certificates()
            assert (await client.get()).status == 200
            await client.aclose()


async def test_a_handshake_begun_before_completes(files):
    """A client in the middle of its handshake gets the certificate with which it was begun."""
    old = files.leaf
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = files.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    async with secured_server(files.config()) as server:
        stream = await server.connect_stream()
        await stream.send_all(hello[:20])
        await trio.testing.wait_all_tasks_blocked()
        new = files.issue()
        server.server.reload_certificates()
        await stream.send_all(hello[20:])
        with trio.fail_after(5):
            while not client.version():
                incoming.write(await stream.receive_some())
                with suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                await stream.send_all(outgoing.read())
        assert client.getpeercert(binary_form=True) == der_of(old)
        assert await served(server, files) == der_of(new)


async def test_the_authorities_of_clients_are_renewed(files):
    """ssl_ca_certs is read again as well: clients of a new authority are let in, those of the old one no more."""
    other = trustme.CA()
    async with secured_server(files.config(ssl_ca_certs=str(files.authorities), ssl_cert_reqs="required")) as server:
        for authority in (files.ca, other):
            files.write(files.authorities, authority.cert_pem.bytes())
            server.server.reload_certificates()
            for one in (files.ca, other):
                context = files.client()
                context.maximum_version = ssl.TLSVersion.TLSv1_2  # a client of 1.3 learns of a refusal only later
                one.issue_cert("client@example.org").configure_cert(context)
                if one is authority:
                    assert (await (await connect(server, context)).get()).status == 200
                else:
                    with pytest.raises(trio.BrokenResourceError):
                        await connect(server, context)


@ON_EACH_BREAKAGE
async def test_a_broken_pair_is_refused(files, breakage):
    """reload_certificates() raises CertificateError for files that cannot be used, and the old ones stay."""
    old = files.leaf
    async with secured_server(files.config()) as server:
        files.issue()
        reason = breakage(files)
        with pytest.raises(CertificateError, match=reason):
            server.server.reload_certificates()
        assert await served(server, files) == der_of(old)


async def test_a_file_that_vanishes_while_it_is_read(files, monkeypatch):
    """A file that goes between our look at it and OpenSSL's is one that cannot be used, and the old ones stay."""
    load = ssl.SSLContext.load_cert_chain

    def load_late(context, *arguments):
        files.key.unlink()
        return load(context, *arguments)

    async with secured_server(files.config()) as server:
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_late)
        with pytest.raises(CertificateError, match="changed while they were read: .*No such file"):
            server.server.reload_certificates()
        assert await served(server, files) == der_of(files.leaf)


async def test_each_renewal_has_a_context_of_its_own(files):
    """A renewal makes a new SSLContext; the one before is as it was, whether the renewal succeeds or fails."""
    old = files.leaf
    async with secured_server(files.config_of_factory()) as server:
        new = files.issue()
        server.server.reload_certificates()
        break_match(files)
        with pytest.raises(CertificateError):
            server.server.reload_certificates()
        first, second = made
        for context, leaf in ((first, old), (second, new)):
            near, far = trio.testing.memory_stream_pair()
            client = trio.SSLStream(far, files.client(), server_hostname="localhost")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.SSLStream(near, context, server_side=True).do_handshake)
                with trio.fail_after(5):
                    await client.do_handshake()
            assert client.getpeercert(binary_form=True) == der_of(leaf)


async def test_a_server_without_tls_stays_one():
    """Without TLS reload_certificates() does nothing."""
    async with memory_server(respond()) as server:
        server.server.reload_certificates()
        assert (await (await server.connect()).get()).status == 200


async def test_many_renewals_leave_nothing(files):
    """Of 20 renewals, each with a client, no context is left but the current one, and no descriptor."""
    async with socket_server(respond(), config=files.config_of_factory().replace(port=0)) as server:
        await served(server, files)
        await wait_no_connection(server)
        descriptors = open_descriptors()
        for _ in range(20):
            new = files.issue()
            server.server.reload_certificates()
            assert await served(server, files) == der_of(new)
        await wait_no_connection(server)
        assert open_descriptors() == descriptors
        # Not the one of the start, to which serve() holds on.
        contexts = [weakref.ref(one) for one in made[1:]]
        made.clear()
        gc.collect()
        assert [one() is not None for one in contexts] == [False] * 19 + [True]


async def wait_no_connection(server: RunningServer) -> None:
    with trio.fail_after(5):
        while server.server.statistics().connections:
            await trio.sleep(0.005)


# The signature of the files


def test_the_signature_has_the_files_that_are_set(files):
    """Only files that an option names are looked at, in the order of the options."""
    alone = sign_files(Config(ssl_certfile=str(files.chain)))
    every = sign_files(files.config(ssl_ca_certs=str(files.authorities)))
    assert (len(alone), len(every), len(set(every))) == (1, 3, 3)
    assert alone == every[:1]
    assert sign_files(Config()) == ()


def test_a_file_in_a_file_is_missing(files):
    """Whatever the system says against a path, its file is missing, like one that is not there."""
    assert sign_files(Config(ssl_certfile=str(files.chain / "inner"), ssl_keyfile="nowhere")) == (None, None)


def test_a_change_that_keeps_size_time_and_inode_shows(files):
    """A file written in place that keeps its size, and is given its old time again, has another signature."""
    before, status = sign_files(files.config()), files.key.stat()
    deadline = time.monotonic() + 5
    # The file system's clock has steps, in each of which all changes look the same.
    while sign_files(files.config()) == before:
        assert time.monotonic() < deadline
        files.key.write_bytes(bytes(status.st_size))
        os.utime(files.key, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.key.stat().st_mtime_ns == status.st_mtime_ns


# The keeper, in virtual time: it looks after 1, 2, 3 ... seconds, and all else happens between two looks


@asynccontextmanager
async def kept_server(config: Config) -> AsyncIterator[tuple[RunningServer, CertificateKeeper]]:
    """A server whose files a keeper watches; half a second after it began to."""
    async with secured_server(config) as server:
        keeper = CertificateKeeper(server.server, config)
        server.nursery.start_soon(keeper.run)
        await trio.sleep(0.5)
        yield server, keeper


async def test_changed_files_are_loaded_once_they_rest(autojump_clock, files, lines):
    """Files that changed are loaded at the second look that finds them so, and that is said in one line."""
    old = files.leaf
    async with kept_server(files.config()) as (server, _):
        new = files.issue()
        await trio.sleep(1)
        assert await served(server, files) == der_of(old)
        assert lines() == []
        await trio.sleep(1)
        assert await served(server, files) == der_of(new)
        await trio.sleep(60)
        assert lines() == [renewed(files)]


async def test_files_at_rest_are_left_alone(autojump_clock, files, lines):
    """While nothing changes nothing is loaded."""
    async with kept_server(files.config_of_factory()):
        await trio.sleep(3600)
    assert len(made) == 1
    assert lines() == []


async def test_files_that_keep_changing_are_waited_for(autojump_clock, files, lines):
    """While the files change from look to look none is tried, however long that takes; then they are, once."""
    async with kept_server(files.config_of_factory()) as (server, _):
        for breakage in BREAKAGES * 2:
            files.issue()
            breakage(files)
            await trio.sleep(1)
        new = files.issue()
        await trio.sleep(60)
        assert await served(server, files) == der_of(new)
    assert len(made) == 2
    assert lines() == ["info: certificates renewed"]


@ON_EACH_BREAKAGE
async def test_a_pair_that_stays_broken_is_said_once(autojump_clock, files, lines, breakage):
    """Files that cannot be used are tried at three looks, then there is one line; the old certificate is served on."""
    old = files.leaf
    async with kept_server(files.config()) as (server, _):
        files.issue()
        reason = breakage(files)
        await trio.sleep(3)
        assert lines() == []
        await trio.sleep(1)
        (line,) = lines()
        assert line.startswith(REFUSAL)
        assert reason in line
        await trio.sleep(3600)
        assert lines() == [line]
        assert await served(server, files) == der_of(old)


async def test_a_mended_pair_is_loaded(autojump_clock, files, lines):
    """After files that could not be used, the next change is tried like any other."""
    async with kept_server(files.config()) as (server, _):
        break_match(files)
        await trio.sleep(10)
        new = files.issue()
        await trio.sleep(2)
        assert await served(server, files) == der_of(new)
    assert [line.partition(":")[0] for line in lines()] == ["error", "info"]


@pytest.mark.parametrize("count", [1, 2])
async def test_an_attempt_that_fails_is_repeated(autojump_clock, files, lines, count):
    """An attempt or two that fail are not spoken of if the next succeeds, although the files have not changed since."""
    async with kept_server(files.config_of_factory()) as (server, _):
        refusals.extend(OSError(5, "Input/output error") for _ in range(count))
        new = files.issue()
        await trio.sleep(2 + count)
        assert await served(server, files) == der_of(new)
    assert lines() == ["info: certificates renewed"]


async def test_each_change_has_all_its_attempts(autojump_clock, files, lines):
    """A change amid the attempts begins them anew: three failures of one state and two of another are one line."""
    async with kept_server(files.config()):
        break_match(files)
        await trio.sleep(3)  # two attempts
        break_match(files)
        await trio.sleep(3)  # two more
        assert lines() == []
        await trio.sleep(1)
        assert len(lines()) == 1


async def test_links_are_followed(autojump_clock, tmp_path, lines):
    """Files behind a link to their folder are renewed when another link takes its place, as Kubernetes does it."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = Files(tmp_path / "first"), Files(tmp_path / "second")
    data = tmp_path / "data"
    data.symlink_to("first")
    config = Config(ssl_certfile=str(data / "chain.pem"), ssl_keyfile=str(data / "key.pem"))
    async with kept_server(config) as (server, _):
        assert await served(server, first) == der_of(first.leaf)
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").replace(data)
        await trio.sleep(2)
        assert await served(server, second) == der_of(second.leaf)
    assert lines() == [f"info: certificates renewed from {data / 'chain.pem'}"]


async def test_a_file_system_that_is_away_for_a_moment(autojump_clock, tmp_path, lines):
    """Files that are gone for less than the attempts take, and come back as they were, change nothing."""
    (tmp_path / "here").mkdir()
    files = Files(tmp_path / "here")
    async with kept_server(files.config_of_factory()):
        files.folder.rename(tmp_path / "away")
        await trio.sleep(3)
        (tmp_path / "away").rename(files.folder)
        await trio.sleep(60)
    assert len(made) == 1
    assert lines() == []


async def test_a_file_system_that_comes_back_late(autojump_clock, tmp_path, lines):
    """Files that were gone for long are spoken of, and again when they are back."""
    (tmp_path / "here").mkdir()
    files = Files(tmp_path / "here")
    async with kept_server(files.config()) as (server, _):
        files.folder.rename(tmp_path / "away")
        await trio.sleep(60)
        (tmp_path / "away").rename(files.folder)
        await trio.sleep(2)
        assert await served(server, files) == der_of(files.leaf)
    assert lines() == [f"{REFUSAL}ssl_certfile {str(files.chain)!r}: no such file or directory", renewed(files)]


async def test_a_change_during_the_start_is_not_missed(autojump_clock, files, lines):
    """Files that changed after the server read them, and before it had a keeper, are renewed at the second look."""
    config = files.config()
    before = sign_files(config)
    async with secured_server(config) as server:
        new = files.issue()
        server.nursery.start_soon(CertificateKeeper(server.server, config, loaded_from=before).run)
        await trio.sleep(2.5)
        assert await served(server, files) == der_of(new)
    assert lines() == [renewed(files)]


@pytest.mark.parametrize("options", [{}, {"ssl_context_factory": f"{__name__}:make_plain_context"}])
async def test_without_files_there_is_nothing_to_watch(options):
    """Without TLS, and with a factory that alone knows where its certificates are, run() returns at once."""
    async with memory_server(respond(), **options) as server:
        with trio.fail_after(5):
            await CertificateKeeper(server.server, Config(**options)).run()


def make_plain_context(config: Config, standard: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


# The keeper, when asked


async def test_renewing_on_request(autojump_clock, files, lines):
    """renew() loads the files at once, in one line, and the looks after it find nothing left to do."""
    async with kept_server(files.config()) as (server, keeper):
        new = files.issue()
        keeper.renew()
        assert await served(server, files) == der_of(new)
        await trio.sleep(60)
    assert lines() == [renewed(files)]


async def test_renewing_what_has_not_changed(autojump_clock, files, lines):
    """renew() loads files that have not changed as well: who asks may know more than the file system tells."""
    async with kept_server(files.config_of_factory()) as (_, keeper):
        keeper.renew()
    assert len(made) == 2
    assert lines() == ["info: certificates renewed"]


@ON_EACH_BREAKAGE
async def test_a_broken_pair_on_request(autojump_clock, files, lines, breakage):
    """renew() says at once, in one line, that files cannot be used; they are not tried again until they change."""
    old = files.leaf
    async with kept_server(files.config()) as (server, keeper):
        files.issue()
        reason = breakage(files)
        keeper.renew()
        (line,) = lines()
        assert line.startswith(REFUSAL)
        assert reason in line
        await trio.sleep(60)
        assert await served(server, files) == der_of(old)
        assert lines() == [line]
        new = files.issue()
        await trio.sleep(2)
        assert await served(server, files) == der_of(new)


async def test_renewing_amid_the_attempts(autojump_clock, files, lines):
    """A request while a broken pair is being tried ends the attempts: one line in all."""
    async with kept_server(files.config()) as (_, keeper):
        break_match(files)
        await trio.sleep(2)
        assert lines() == []
        keeper.renew()
        await trio.sleep(60)
    assert len(lines()) == 1


async def test_renewing_without_tls(lines):
    """renew() says that there is nothing to renew if TLS is off."""
    async with memory_server(respond()) as server:
        CertificateKeeper(server.server, Config()).renew()
    assert lines() == ["info: there are no certificates to renew: TLS is off"]


async def test_renewing_for_a_server_that_has_stopped(files):
    """A request that comes when the server has stopped already does no harm."""
    async with secured_server(files.config()) as server:
        keeper = CertificateKeeper(server.server, files.config())
    with nothing_left():
        keeper.renew()
        break_match(files)
        keeper.renew()
