"""One connection: its addresses, its TLS handshake, and the boundary that nothing gets past."""

from __future__ import annotations

import datetime
import errno
import gc
import logging
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from trioserve import Config, serve
from trioserve.connection import Connections
from trioserve.context import ServerContext
from trioserve.exchange import Endpoint
from trioserve.net.parked_reader import ParkedReader
from trioserve.net.reactor import SUPPORTED as REACTOR_SUPPORTED
from trioserve.net.reactor import Reactor
from trioserve.net.socket_transport import SocketTransport
from trioserve.net.tls import load_tls
from trioserve.observer import Phase
from trioserve.wire.http11 import HTTP11Connection

from .support import Client, Recorder, http_app, memory_server, open_descriptors, respond, send_text, socket_server

pytestmark = [pytest.mark.timeout(20), pytest.mark.both_codecs]


class Authority:
    """A private certificate authority, its certificates as files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.folder = folder
        self.file = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str = "localhost", *, expired: bool = False) -> str:
        """A file with key and chain for this name."""
        now = datetime.datetime.now(datetime.UTC)
        more = {"not_after": now - datetime.timedelta(days=1)} if expired else {}
        path = str(self.folder / f"{name}.pem")
        self.ca.issue_cert(name, **more).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def client(self, certificate: trustme.LeafCert | None = None, *, trusts: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if trusts:
            self.ca.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path)


async def connect(server, context: ssl.SSLContext, name: str = "localhost") -> Client:
    stream = trio.SSLStream(await server.connect_stream(), context, server_hostname=name, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return Client(stream)


async def settled(server, count: int = 1) -> dict[tuple[str, str], int]:
    """The counters of failed handshakes, once there are so many."""
    with trio.fail_after(5):
        while sum((found := server.server.statistics().handshake_failures).values()) < count:
            await trio.sleep(0.005)
    return found


def handshake_lines(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if "TLS handshake" in one.getMessage()]


async def echo_scope(scope, receive, send):
    seen.append(scope)
    await send_text(send, "Hi")


seen: list[dict] = []


@pytest.fixture(autouse=True)
def _forget():
    seen.clear()


# Addresses


async def test_addresses_of_a_tcp_connection():
    """client and server are host and port of either end; the scheme is http, and there is no tls extension."""
    async with socket_server(http_app(echo_scope)) as server:
        client = await server.connect()
        await client.get()
        (scope,) = seen
        assert scope["client"] == client.stream.socket.getsockname()
        assert scope["server"] == server.server.addresses[0]
        assert scope["scheme"] == "http"
        assert "tls" not in scope["extensions"]
        await client.aclose()


async def test_addresses_of_an_ipv6_connection():
    """With IPv6 too they are two values: ASGI knows no flow and no zone."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with socket_server(http_app(echo_scope), bind=["[::1]:0"]) as server:
        client = await server.connect()
        await client.get()
        (scope,) = seen
        assert scope["client"] == client.stream.socket.getsockname()[:2]
        assert scope["server"] == server.server.addresses[0]
        await client.aclose()


async def test_addresses_of_a_unix_connection(tmp_path):
    """Over a unix socket there is no client address, and the server's is the path and None."""
    path = str(tmp_path / "s")
    async with socket_server(http_app(echo_scope), bind=[f"unix:{path}"]) as server:
        client = await server.connect()
        await client.get()
        assert (seen[0]["client"], seen[0]["server"]) == (None, (path, None))
        await client.aclose()


async def test_addresses_of_an_abstract_unix_connection():
    """An abstract address, which comes as bytes, becomes a text."""
    name = f"@trioserve-test-{id(seen)}"
    async with socket_server(http_app(echo_scope), bind=[f"unix:{name}"]):
        stream = trio.SocketStream(trio.socket.socket(socket.AF_UNIX))
        await stream.socket.connect("\0" + name[1:])
        await Client(stream).get()
        assert seen[0]["client"] is None
        assert seen[0]["server"][0].lstrip("\0@") == name[1:]
        assert isinstance(seen[0]["server"][0], str)
        await stream.aclose()


async def test_a_foreign_stream_has_no_addresses(autojump_clock):
    """A stream that is no socket has neither client nor server."""
    async with memory_server(http_app(echo_scope)) as server:
        client = await server.connect()
        await client.get()
        assert (seen[0]["client"], seen[0]["server"], seen[0]["scheme"]) == (None, None, "http")


async def test_a_client_that_is_gone_before_it_is_served():
    """A client that resets before it is accepted costs nothing and harms nobody."""
    async with socket_server(respond()) as server:
        for _ in range(5):
            gone = socket.create_connection(server.server.addresses[0])
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
        client = await server.connect()
        assert (await client.get()).status == 200
        await client.aclose()
        with trio.fail_after(5):
            while server.server.statistics().connections:
                await trio.sleep(0.005)
        assert server.errors == []


@pytest.mark.skipif(not REACTOR_SUPPORTED, reason="only Linux has epoll")
@pytest.mark.parametrize("ending", ["the server closes", "the client closes", "the client resets"])
async def test_an_ended_connection_leaves_nothing_to_the_garbage_collector(ending):
    """What was made for a connection is freed when it ends: at a connection per request, cycles would be a collection
    every few dozen requests.
    """
    made = (trio.lowlevel.Task, trio.Nursery, SocketTransport, HTTP11Connection, ParkedReader, Endpoint)

    def alive() -> Counter[type]:
        return Counter(type(one) for one in gc.get_objects() if type(one) in made)

    async def visit(server):
        client = await server.connect()
        headers = [("Connection", "close")] if ending == "the server closes" else []
        assert (await client.request(headers=headers)).status == 200
        if ending == "the client resets":
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.aclose()
        with trio.fail_after(5):
            while server.server.statistics().connections:
                await trio.sleep(0.005)
        await trio.testing.wait_all_tasks_blocked()

    async with socket_server(respond()) as server:
        await visit(server)
        gc.collect()
        gc.disable()
        try:
            before = alive()
            await visit(server)
            assert alive() - before == Counter()
        finally:
            gc.enable()


async def test_systems_without_a_reactor_serve_sockets_too(monkeypatch):
    """Where there is no epoll, sockets are served like any other stream."""
    monkeypatch.setattr("trioserve.connection.REACTOR_SUPPORTED", False)
    async with socket_server(http_app(echo_scope), timeout_keep_alive=0.05) as server:
        client = await server.connect()
        assert (await client.get()).body == b"Hi"
        with trio.fail_after(5):
            assert await client.receive_rest() == b""
        assert seen[0]["client"] == client.stream.socket.getsockname()
        await client.aclose()


@pytest.mark.skipif(not REACTOR_SUPPORTED, reason="elsewhere there is nothing that could run out")
async def test_a_socket_that_cannot_be_watched_is_closed(monkeypatch, caplog):
    """epoll watches only so many sockets of a user: one too many is closed, and not called the application's doing."""

    def refuse(self, transport):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with socket_server(respond()) as server:
        with monkeypatch.context() as full:
            full.setattr(Reactor, "register", refuse)
            client = await server.connect()
            with trio.fail_after(5):
                assert await client.receive_rest() == b""
            await client.aclose()
        assert "closed a connection that cannot be watched: [Errno 28] No space left on device" in caplog.text
        assert server.errors == []
        client = await server.connect()
        assert (await client.get()).status == 200
        await client.aclose()


# The boundary of the client


async def test_nothing_a_client_sends_gets_past_its_connection(autojump_clock, caplog):
    """Whatever bytes a client sends, the server serves on, and no application error is logged."""
    junk = [b"\x00" * 100, b"\xff" * 70_000, b"GET", b"\r\n" * 50, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00"]
    async with memory_server(respond()) as server:
        for data in junk:
            client = await server.connect()
            await client.raw(data)
            await client.stream.send_eof()
            await client.receive_rest()
            await client.aclose()
        client = await server.connect()
        assert (await client.get()).status == 200
        assert server.errors == []
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


async def test_a_stream_that_raises_is_logged_and_hurts_nobody(autojump_clock, caplog):
    """A foreign stream with an error of its own ends its connection, in one record, and no other."""

    class Broken(trio.abc.Stream):
        async def receive_some(self, max_bytes=None):
            raise LookupError("the channel is confused")

        async def send_all(self, data):
            raise LookupError("the channel is confused")

        async def wait_send_all_might_not_block(self):
            raise LookupError("the channel is confused")

        async def aclose(self):
            await trio.lowlevel.checkpoint()

    async with memory_server(respond()) as server:
        server.listener._send.send_nowait(Broken())
        await trio.testing.wait_all_tasks_blocked()
        assert server.server.statistics().connections == 0
        client = await server.connect()
        assert (await client.get()).status == 200
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "LookupError: the channel is confused" in caplog.text
    assert record.exc_info is not None


# TLS


async def test_requests_over_tls(authority):
    """A client that trusts the authority makes requests; the scheme is https, the url says so, ALPN picks http/1.1."""
    async with socket_server(http_app(echo_scope), ssl_certfile=authority.issue()) as server:
        assert server.server.urls[0].startswith("https://127.0.0.1:")
        context = authority.client()
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = await connect(server, context)
        assert client.stream.selected_alpn_protocol() == "http/1.1"
        for _ in range(2):
            assert (await client.get()).body == b"Hi"
        assert seen[0]["scheme"] == "https"
        assert seen[0]["client"] == client.stream.transport_stream.socket.getsockname()
        await client.aclose()


async def test_the_tls_extension(authority):
    """The scope tells the server's certificate, the TLS version and the cipher; without a client certificate, none."""
    async with socket_server(http_app(echo_scope), ssl_certfile=authority.issue()) as server:
        client = await connect(server, authority.client())
        await client.get()
        tls = seen[0]["extensions"]["tls"]
        der = client.stream.getpeercert(binary_form=True)
        assert ssl.PEM_cert_to_DER_cert(tls["server_cert"]) == der
        assert tls["tls_version"] == 0x0304
        assert isinstance(tls["cipher_suite"], int)
        assert (tls["client_cert_chain"], tls["client_cert_name"], tls["client_cert_error"]) == ([], None, None)
        await client.aclose()


async def test_a_client_certificate_is_told(authority):
    """With a client certificate the scope has its chain and its name."""
    certificate = authority.ca.issue_cert("client@example.org", common_name="Client")
    options = {"ssl_ca_certs": authority.file, "ssl_cert_reqs": "required"}
    async with socket_server(http_app(echo_scope), ssl_certfile=authority.issue(), **options) as server:
        client = await connect(server, authority.client(certificate))
        assert (await client.get()).status == 200
        tls = seen[0]["extensions"]["tls"]
        own = certificate.cert_chain_pems[0].bytes().decode()
        assert ssl.PEM_cert_to_DER_cert(tls["client_cert_chain"][0]) == ssl.PEM_cert_to_DER_cert(own)
        assert "CN=Client" in tls["client_cert_name"]
        await client.aclose()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_missing_client_certificate_is_refused(authority, caplog, version):
    """A client without the certificate that is required learns why, and never reaches the application."""
    caplog.set_level(logging.INFO, "trioserve")
    options = {"ssl_ca_certs": authority.file, "ssl_cert_reqs": "required"}
    async with socket_server(http_app(echo_scope), ssl_certfile=authority.issue(), **options) as server:
        context = authority.client()
        context.maximum_version = version
        with pytest.raises(trio.BrokenResourceError) as caught:
            client = await connect(server, context)
            try:
                # With TLS 1.3 the client's own handshake is over before it hears of it.
                await client.stream.receive_some()
            finally:
                await trio.aclose_forcefully(client.stream)
        assert "ALERT" in str(caught.value.__cause__).upper()
        ((_, reason),) = await settled(server)
        assert reason == "peer did not return a certificate"
    assert seen == []
    assert len(handshake_lines(caplog)) == 1


async def test_an_optional_client_certificate_may_be_missing(authority):
    """With ssl_cert_reqs=optional a client without one is served."""
    options = {"ssl_ca_certs": authority.file, "ssl_cert_reqs": "optional"}
    async with socket_server(respond(), ssl_certfile=authority.issue(), **options) as server:
        client = await connect(server, authority.client())
        assert (await client.get()).status == 200
        await client.aclose()


async def refuse_handshake(server, context, name="localhost") -> str:
    with pytest.raises(trio.BrokenResourceError) as caught:
        await connect(server, context, name)
    return str(caught.value.__cause__)


async def test_a_client_that_refuses_the_server_leaves_a_trace(authority, caplog):
    """A client that does not trust the authority, or finds another name or an expired certificate, refuses; each is one
    log line with its address, the listener and a reason, one count, and disturbs no other connection.
    """
    caplog.set_level(logging.INFO, "trioserve")
    good, expired = authority.issue(), authority.issue("expired.example", expired=True)
    async with socket_server(respond(), ssl_certfile=expired) as late:
        assert "expired" in await refuse_handshake(late, authority.client(), "expired.example")
        await settled(late)
    async with socket_server(respond(), ssl_certfile=good) as server:
        neighbour = await connect(server, authority.client())
        assert "hostname" in (await refuse_handshake(server, authority.client(), "other.example")).lower()
        assert "issuer" in await refuse_handshake(server, authority.client(trusts=False))
        failures = await settled(server, 2)
        assert {listener for listener, _ in failures} == {f"127.0.0.1:{server.server.addresses[0][1]}"}
        assert (await neighbour.get()).status == 200
        assert server.errors == []
        await neighbour.aclose()
    lines = handshake_lines(caplog)
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(r"TLS handshake with 127\.0\.0\.1:\d+ on 127\.0\.0\.1:\d+ failed: .+", line)


async def test_what_a_client_says_when_it_refuses_is_the_reason(authority, caplog):
    """A client that sends an alert (Python's own ssl, browsers, curl) gives OpenSSL's reason for the line and the
    count."""
    caplog.set_level(logging.INFO, "trioserve")

    def refuse(address) -> None:
        with socket.create_connection(address, timeout=5) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")

    async with socket_server(respond(), ssl_certfile=authority.issue()) as server:
        await trio.to_thread.run_sync(refuse, server.server.addresses[0])
        listener = f"127.0.0.1:{server.server.addresses[0][1]}"
        assert await settled(server) == {(listener, "tlsv1 alert unknown ca"): 1}
    (line,) = handshake_lines(caplog)
    assert line.endswith(f" on {listener} failed: tlsv1 alert unknown ca")


async def test_junk_instead_of_a_handshake(authority, caplog):
    """Bytes that are no TLS are one line with peer, listener and OpenSSL's reason, one count, and disturb nobody."""
    caplog.set_level(logging.INFO, "trioserve")
    async with socket_server(respond(), ssl_certfile=authority.issue()) as server:
        neighbour = await connect(server, authority.client())
        client = await server.connect()
        host, port = client.stream.socket.getsockname()
        await client.raw(b"\x00\x01\x02 this is no TLS, whatever it is\r\n\r\n" * 10)
        listener = f"127.0.0.1:{server.server.addresses[0][1]}"
        ((key, count),) = (await settled(server)).items()
        assert (key[0], count) == (listener, 1)
        assert key[1]
        await client.aclose()
        assert handshake_lines(caplog) == [f"TLS handshake with {host}:{port} on {listener} failed: {key[1]}"]
        assert (await neighbour.get()).status == 200
        await neighbour.aclose()
    assert [one for one in caplog.records if one.levelno > logging.INFO] == []


@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
async def test_plain_http_on_a_tls_port_gets_a_clear_answer(authority, method):
    """A client that forgot the s is told so in plain HTTP, and never gets an answer of the application."""
    async with socket_server(http_app(echo_scope), ssl_certfile=authority.issue()) as server:
        client = await server.connect()
        # More than one read takes, so that closing at once would reset the connection.
        await client.raw(method + b" / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n")
        received = await client.receive_rest()
        assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert received.endswith(b"This port speaks HTTPS; the request was plain HTTP.\n")
        await client.aclose()
        assert [reason for _, reason in await settled(server)] == ["http request"]
    assert seen == []


async def test_a_client_that_leaves_in_the_handshake(authority, caplog):
    """A client that connects and goes, as port scanners do, is a failed handshake: connection lost."""
    caplog.set_level(logging.INFO, "trioserve")
    async with socket_server(respond(), ssl_certfile=authority.issue()) as server:
        client = await server.connect()
        await client.aclose()
        assert [reason for _, reason in await settled(server)] == ["connection lost"]
    assert handshake_lines(caplog)[0].endswith("failed: connection lost")


async def test_a_handshake_has_a_deadline(authority, caplog):
    """A client that does not finish its handshake within timeout_tls_handshake is closed."""
    caplog.set_level(logging.INFO, "trioserve")
    async with socket_server(respond(), ssl_certfile=authority.issue(), timeout_tls_handshake=0.1) as server:
        client = await server.connect()
        await client.raw(b"\x16\x03")
        with trio.fail_after(5):
            assert await client.receive_rest() == b""
        await client.aclose()
        assert [reason for _, reason in await settled(server)] == ["timed out"]
    assert handshake_lines(caplog)[0].endswith("failed: timed out")


async def test_cancelling_in_a_handshake_closes_the_connection(authority):
    """A server that is cancelled during a handshake leaves no socket, and counts no failure."""
    async with socket_server(respond(), ssl_certfile=authority.issue()) as server:
        client = await server.connect()
        with trio.fail_after(5):
            while not server.server.statistics().connections:
                await trio.sleep(0.005)
        server.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            while Phase.STOPPED not in server.recorder.phases:
                await trio.sleep(0.005)
            await client.receive_rest()
            await client.aclose()
        assert server.server.statistics().handshake_failures == {}


async def test_a_failed_handshake_over_a_unix_socket_names_no_address(authority, caplog, tmp_path):
    """Where the client has no address the line says "a client"."""
    caplog.set_level(logging.INFO, "trioserve")
    path = tmp_path / "s"
    async with socket_server(respond(), bind=[f"unix:{path}"], ssl_certfile=authority.issue()) as server:
        client = await server.connect()
        await client.aclose()
        await settled(server)
    assert handshake_lines(caplog) == [f"TLS handshake with a client on unix:{path} failed: connection lost"]


async def test_plain_beside_tls(authority):
    """insecure_bind serves without TLS beside a TLS port, and its scheme is http."""
    certificate = authority.issue()
    options = {"bind": ["127.0.0.1:0"], "insecure_bind": ["127.0.0.1:0"], "ssl_certfile": certificate}
    async with socket_server(http_app(echo_scope), **options) as server:
        secured = await connect(server, authority.client())
        await secured.get()
        plain = await trio.open_tcp_stream(*server.server.addresses[1])
        await Client(plain).get()
        assert [one["scheme"] for one in seen] == ["https", "http"]
        await secured.aclose()
        await plain.aclose()


async def test_tls_bytes_on_a_plain_port_get_a_clear_answer(authority):
    """A TLS client on a plain port is answered with a plain 400, not with silence."""
    async with socket_server(respond()) as server:
        client = await server.connect()
        hello = trio.SSLStream(client.stream, authority.client(), server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await hello.do_handshake()
        assert "WRONG_VERSION_NUMBER" in str(caught.value.__cause__) or "wrong version" in str(caught.value.__cause__)
        await trio.aclose_forcefully(hello)
        assert server.server.statistics().rejected == {400: 1}


async def test_many_failed_handshakes_leave_no_descriptor(authority):
    """Failed handshakes give their sockets back while the server runs."""
    async with socket_server(respond(), ssl_certfile=authority.issue()) as server:
        before = len(open_descriptors())
        for _ in range(20):
            client = await server.connect()
            await client.raw(b"junk" * 10)
            await client.aclose()
        await settled(server, 20)
        with trio.fail_after(5):
            while server.server.statistics().connections:
                await trio.sleep(0.005)
        assert len(open_descriptors()) <= before + 1


async def test_a_stream_that_is_tls_already_is_https(authority):
    """A listener whose streams are Trio's SSLStream over TCP gives addresses and the scheme https."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue())
    listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1", https_compatible=True)
    address = listeners[0].transport_listener.socket.getsockname()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, http_app(echo_scope), listeners=listeners))
        stream = await trio.open_ssl_over_tcp_stream(
            "localhost", address[1], ssl_context=authority.client(), https_compatible=True
        )
        await Client(stream).get()
        assert (seen[0]["scheme"], seen[0]["server"]) == ("https", address)
        await stream.aclose()
        server.shutdown()


async def test_a_stream_that_is_tls_already_and_no_socket_is_https(autojump_clock, authority):
    """TLS over a stream that is no socket has the scheme https and no addresses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue())
    async with memory_server(http_app(echo_scope)) as server:
        far, near = trio.testing.memory_stream_pair()
        secured = trio.SSLStream(near, context, server_side=True, https_compatible=True)
        server.listener._send.send_nowait(secured)
        client = trio.SSLStream(far, authority.client(), server_hostname="localhost", https_compatible=True)
        await Client(client).get()
        assert (seen[0]["scheme"], seen[0]["client"]) == ("https", None)
        await client.aclose()


async def test_a_plain_client_that_resets_instead_of_reading_the_answer(authority):
    """A client that speaks plain HTTP to a TLS port and resets at once disturbs nobody."""
    async with socket_server(respond(), ssl_certfile=authority.issue()) as server:
        for _ in range(5):
            gone = socket.create_connection(server.server.addresses[0])
            gone.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
        await settled(server, 5)
        with trio.fail_after(5):
            while server.server.statistics().connections:
                await trio.sleep(0.005)
        assert server.errors == []


class Bare(trio.abc.Stream):
    """A stream that can do no more than a Stream must: half of it cannot be closed. Gives this, then raises that."""

    def __init__(self, gives: bytes, error: Exception | None = None) -> None:
        self.gives = gives
        self.error = error
        self.took = b""
        self.is_closed = False

    async def receive_some(self, max_bytes=None):
        await trio.lowlevel.checkpoint()
        if self.error is not None and not self.gives:
            raise self.error
        gives, self.gives = self.gives, b""
        return gives

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        self.took += data

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def aclose(self):
        self.is_closed = True
        await trio.lowlevel.checkpoint()


@pytest.fixture
def secured_connections(authority, monkeypatch) -> Callable[[], Connections]:
    """What serves streams with TLS, without a server round it, and without a reactor, which only sockets need."""
    monkeypatch.setattr("trioserve.connection.REACTOR_SUPPORTED", False)
    config = Config(ssl_certfile=authority.issue())
    return lambda: Connections(ServerContext(respond(), config, observer=Recorder()), load_tls(config))


async def test_a_failed_handshake_on_a_stream_that_cannot_half_close(secured_connections, caplog):
    """Any stream may begin with a handshake; one that fails is answered and closed."""
    caplog.set_level(logging.INFO, "trioserve")
    stream = Bare(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await secured_connections().serve(stream, True)
    assert stream.took.startswith(b"HTTP/1.1 400 ")
    assert stream.is_closed
    assert handshake_lines(caplog) == ["TLS handshake with a client on a stream failed: http request"]


async def test_a_stream_that_raises_in_the_handshake(secured_connections, caplog):
    """An error of the stream's own during the handshake closes it and is logged; it gets no further."""
    stream = Bare(b"", LookupError("the channel is confused"))
    await secured_connections().serve(stream, True)
    assert stream.is_closed
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "LookupError: the channel is confused" in caplog.text
    assert record.name == "trioserve.error"
