"""What a balancer says before a connection's first byte: read from any bytes, believed from nobody but the trusted."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from hypothesis import given
from hypothesis import strategies as st

from trioserve.errors import ProtocolError
from trioserve.net.proxy_protocol import LONGEST_HEADER, LONGEST_LINE, Passed, parse_header
from trioserve.net.reactor import SUPPORTED as REACTOR_SUPPORTED
from trioserve.types import Receive, Scope, Send

from .support import RunningServer, http_app, memory_server, send_text, socket_server

pytestmark = pytest.mark.timeout(20)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
LINE = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n"
PASSED = Passed(("192.0.2.7", 4711), ("10.0.0.1", 443))


def binary(family: int, rest: bytes, *, command: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def ends(client: str, server: str, ports: tuple[int, int] = (4711, 443)) -> bytes:
    kind = socket.AF_INET6 if ":" in client else socket.AF_INET
    return socket.inet_pton(kind, client) + socket.inet_pton(kind, server) + struct.pack("!HH", *ports)


def record(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


V4 = ends("192.0.2.7", "10.0.0.1")
V6 = ends("2001:db8::7", "fd00::1")
PASSED_V6 = Passed(("2001:db8::7", 4711), ("fd00::1", 443))
TLS = record(0x20, b"\x01\x00\x00\x00\x00" + record(0x21, b"TLSv1.3"))

GOOD = [
    (LINE, PASSED),
    (b"PROXY TCP6 2001:db8::7 fd00::1 4711 443\r\n", PASSED_V6),
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 0 65535\r\n", Passed(("192.0.2.7", 0), ("10.0.0.1", 65535))),
    (b"PROXY UNKNOWN\r\n", Passed()),
    (b"PROXY UNKNOWN ffff:f::1 ffff::1 65535 65535\r\n", Passed()),
    (binary(0x11, V4), PASSED),
    (binary(0x21, V6), PASSED_V6),
    (binary(0x11, V4 + TLS), Passed(PASSED.client, PASSED.server, is_secured=True)),
    (binary(0x11, V4 + record(0x04, b"\0" * 9) + TLS), Passed(PASSED.client, PASSED.server, is_secured=True)),
    (binary(0x11, V4 + record(0x20, b"\x02\x00\x00\x00\x00")), PASSED),
    (binary(0x11, V4 + record(0x20, b"")), PASSED),
    (binary(0x11, V4 + b"\x20\x00\x05"), PASSED),  # cut off
    (binary(0x11, V4 + b"\x20"), PASSED),
    (binary(0x00, b""), Passed()),
    (binary(0x00, b"anything"), Passed()),
    (binary(0x12, V4), PASSED),  # UDP
    (binary(0x22, V6), PASSED_V6),
    (binary(0x21, ends("::ffff:192.0.2.7", "fd00::1")), Passed(("192.0.2.7", 4711), ("fd00::1", 443))),
    (binary(0x31, bytes(216)), Passed()),
    (binary(0x31, bytes(216) + TLS), Passed(is_secured=True)),
    (binary(0x11, V4, command=0x20), Passed(is_own=True)),
    (binary(0x00, b"", command=0x20), Passed(is_own=True)),
]

BAD = [
    (b"GET / HTTP/1.1\r\n", "there is no PROXY header"),
    (b"PROXY\r\n", "there is no PROXY header"),
    (b"proxy TCP4 192.0.2.7 10.0.0.1 4711 443\r\n", "there is no PROXY header"),
    (b"\x16\x03\x01", "there is no PROXY header"),
    (b"PROXY TCP5 192.0.2.7 10.0.0.1 4711 443\r\n", "the PROXY line is not"),
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\n", "the PROXY line is not"),
    (b"PROXY TCP4  192.0.2.7 10.0.0.1 4711 443\r\n", "the PROXY line is not"),
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n", "the PROXY line is not"),
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 04711 443\r\n", "the PROXY line is not"),
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 443\r\n", "the PROXY line is not"),
    (b"PROXY TCP4 localhost 10.0.0.1 4711 443\r\n", "the PROXY line is not"),
    (b"PROXY UNKNOWN\n", "the PROXY line is not"),
    (b"PROXY TCP4 192.0.2.777 10.0.0.1 4711 443\r\n", "an address in the PROXY line is none"),
    (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 65536\r\n", "an address in the PROXY line is none of TCP4"),
    (b"PROXY TCP4 2001:db8::7 fd00::1 4711 443\r\n", "an address in the PROXY line is none of TCP4"),
    (b"PROXY TCP6 192.0.2.7 10.0.0.1 4711 443\r\n", "an address in the PROXY line is none of TCP6"),
    (b"PROXY UNKNOWN " + b"x" * LONGEST_LINE, "the PROXY line is too long"),
    (binary(0x11, V4, command=0x11), "the PROXY header's version and command are 0x11"),
    (binary(0x11, V4, command=0x22), "the PROXY header's version and command are 0x22"),
    (binary(0x11, V4[:-1]), "the PROXY header is too short"),
    (binary(0x21, V4), "the PROXY header is too short"),
    (binary(0x11, b"", length=0xFFFF), "the PROXY header is too long"),
]


@pytest.mark.parametrize(("header", "passed"), GOOD)
def test_headers(header: bytes, passed: Passed) -> None:
    """A whole header is read, and what follows is left; until it is whole nothing is said."""
    assert parse_header(header) == (passed, len(header))
    assert parse_header(header + REQUEST) == (passed, len(header))
    assert all(parse_header(header[:size]) is None for size in range(len(header)))


@pytest.mark.parametrize(("header", "reason"), BAD)
def test_what_is_no_header(header: bytes, reason: str) -> None:
    """Anything else is refused, with the reason."""
    with pytest.raises(ProtocolError, match=reason):
        parse_header(header)


@given(st.binary(max_size=300), st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21", b"PROXY ", b"PROXY TCP4 "]))
def test_any_bytes(rest: bytes, begin: bytes) -> None:
    """Whatever comes is read, refused or waited for, and what is waited for is bounded."""
    try:
        found = parse_header(begin + rest)
    except ProtocolError:
        return
    if found is None:
        assert len(begin + rest) < LONGEST_HEADER
    else:
        assert 0 < found[1] <= len(begin + rest)


# Through a server


async def tell_scope(scope: Scope, receive: Receive, send: Send) -> None:
    await send_text(send, repr((scope["client"], scope["server"], scope["scheme"])))


@asynccontextmanager
async def server_behind_proxy(**options: object) -> AsyncIterator[RunningServer]:
    trust = {"forwarded_allow_ips": ["127.0.0.1"], "proxy_protocol": True}
    async with socket_server(http_app(tell_scope), **{**trust, **options}) as server:
        yield server


async def exchange(server: RunningServer, *pieces: bytes) -> bytes:
    """Send these pieces, each on its way before the next; returns all that comes back."""
    stream = await server.connect_stream()
    async with stream:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        answer = b""
        async for data in stream:
            answer += data
    return answer


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        (LINE, "(('192.0.2.7', 4711), ('10.0.0.1', 443), 'http')"),
        (binary(0x21, V6), "(('2001:db8::7', 4711), ('fd00::1', 443), 'http')"),
        (binary(0x11, V4 + TLS), "(('192.0.2.7', 4711), ('10.0.0.1', 443), 'https')"),
        (b"PROXY UNKNOWN\r\n", "(None, ('127.0.0.1', "),
        (binary(0x00, b"", command=0x20), "(('127.0.0.1', "),
    ],
)
async def test_the_application_sees_the_client(header: bytes, seen: str) -> None:
    """The scope has the client that the balancer names, or the balancer itself, however the bytes come."""
    async with server_behind_proxy() as server:
        for pieces in ([header + REQUEST], [header, REQUEST], [header[:9], header[9:] + REQUEST[:9], REQUEST[9:]]):
            answer = await exchange(server, *pieces)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert seen in answer.decode()


async def test_behind_it_tls(tmp_path: Path) -> None:
    """The header comes before the TLS handshake, also in one piece with its beginning."""
    path, authority = str(tmp_path / "both.pem"), trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    class Led(trio.abc.Stream):
        """A stream whose first bytes have the header in front."""

        def __init__(self, stream: trio.abc.Stream) -> None:
            self.stream, self.header = stream, LINE

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            header, self.header = self.header, b""
            await self.stream.send_all(header + bytes(data))

        async def wait_send_all_might_not_block(self) -> None:
            await self.stream.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await self.stream.receive_some(max_bytes)

        async def aclose(self) -> None:
            await self.stream.aclose()

    async with server_behind_proxy(ssl_certfile=path) as server:
        stream = await server.connect_stream()
        secured = trio.SSLStream(Led(stream), context, server_hostname="localhost", https_compatible=True)
        await secured.send_all(REQUEST)
        answer = b""
        async for data in secured:
            answer += data
        assert b"(('192.0.2.7', 4711), ('10.0.0.1', 443), 'https')" in answer
        await secured.aclose()


async def test_who_is_not_trusted_speaks_for_himself() -> None:
    """From anybody else a header is no request, and a request needs no header."""
    async with server_behind_proxy(forwarded_allow_ips=["10.0.0.0/8"]) as server:
        assert (await exchange(server, LINE + REQUEST)).startswith(b"HTTP/1.1 400 ")
        assert b"(('127.0.0.1', " in await exchange(server, REQUEST)


@pytest.mark.parametrize(("header", "reason"), [BAD[0], BAD[4], BAD[-1]])
async def test_a_wrong_header_ends_its_connection(caplog: pytest.LogCaptureFixture, header: bytes, reason: str) -> None:
    """Nothing is answered, as nobody knows in what; the log says why, and the next connection is served."""
    caplog.set_level(logging.INFO, "trioserve")
    async with server_behind_proxy() as server:
        assert await exchange(server, header) == b""
        assert b"192.0.2.7" in await exchange(server, LINE + REQUEST)
        assert server.server.statistics().rejected == {400: 1}
    [line] = [message for message in caplog.messages if "closed a connection" in message]
    assert line.startswith("closed a connection from 127.0.0.1:")
    assert reason in line


async def test_a_header_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    """Who does not say whose connection it is loses it, also one byte at a time."""
    caplog.set_level(logging.INFO, "trioserve")
    async with server_behind_proxy(timeout_proxy_protocol=0.2) as server:
        assert await exchange(server) == b""
        assert await exchange(server, LINE[:7]) == b""
        assert server.server.statistics().rejected == {408: 2}
    assert caplog.text.count("the PROXY header did not come in time") == 2


async def test_who_leaves_before_or_in_the_header(caplog: pytest.LogCaptureFixture) -> None:
    """A check that only connects is nothing to tell of; a header that is cut short is."""
    caplog.set_level(logging.INFO, "trioserve")
    async with server_behind_proxy() as server:
        for piece in (b"", LINE[:7]):
            stream = await server.connect_stream()
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()
            while server.server.statistics().connections or server.server.statistics().connections_total == 0:
                await trio.sleep(0.005)
        assert server.server.statistics().rejected == {400: 1}
    assert caplog.text.count("the PROXY header is cut short") == caplog.text.count("closed a connection") == 1


@pytest.mark.skipif(not REACTOR_SUPPORTED, reason="a socket that has gone is told by the reactor's transport")
async def test_a_check_that_has_gone_already(caplog: pytest.LogCaptureFixture) -> None:
    """Of a client that has reset nobody knows the address; what it may have sent is no request."""
    caplog.set_level(logging.INFO, "trioserve")
    async with server_behind_proxy() as server:
        for _ in range(5):
            gone = socket.create_connection(server.server.addresses[0])
            gone.sendall(binary(0x00, b"", command=0x20))
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
        assert b"192.0.2.7" in await exchange(server, LINE + REQUEST)
        assert server.server.statistics().rejected == {}
    assert "refused" not in caplog.text


async def test_a_stop_waits_for_no_header() -> None:
    """A stop closes a connection whose header has not come, or not whole, at once."""
    async with server_behind_proxy(timeout_proxy_protocol=100) as server:
        streams = [await server.connect_stream() for _ in range(2)]
        await streams[1].send_all(LINE[:7])
        while len(told := list(server.server.activities().values())) < 2:
            await trio.sleep(0.005)
        assert all(" PROXY header, " in words for words in told)
        await trio.testing.wait_all_tasks_blocked()
        server.server.shutdown()
        with trio.fail_after(5):
            assert [await stream.receive_some() for stream in streams] == [b"", b""]
        assert server.server.statistics().rejected == {}
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (LINE, "('192.0.2.7', 4711)"),
        (b"PROXY UNKNOWN\r\n", "None"),
        (binary(0x00, b""), "None"),
        (b"PROXY TCP4 127.0.0.1 10.0.0.1 4711 443\r\n", "('192.0.2.66', 0)"),
        (binary(0x00, b"", command=0x20), "('192.0.2.66', 0)"),
    ],
)
async def test_fields_behind_the_header(header: bytes, client: str) -> None:
    """What a request says counts only if it comes from a proxy that is trusted, not from a balancer's client."""
    told = REQUEST.replace(b"Host: a\r\n", b"Host: a\r\nX-Forwarded-For: 192.0.2.66\r\n")
    async with server_behind_proxy() as server:
        assert f"({client}, " in (await exchange(server, header + told)).decode()


async def test_dropped_in_the_header() -> None:
    """A connection whose header has not come is lost with the others."""
    async with server_behind_proxy() as server:
        stream = await server.connect_stream()
        await stream.send_all(LINE[:7])
        while not any(" PROXY header, " in words for words in server.server.activities().values()):
            await trio.sleep(0.005)
        await server.server.drop_connections()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()


async def test_memory_streams() -> None:
    """A stream that is no socket's is believed where everybody is."""
    options = {"forwarded_allow_ips": ["*"], "proxy_protocol": True}
    async with memory_server(http_app(tell_scope), **options) as server:
        client = await server.connect()
        await client.raw(LINE)
        assert b"192.0.2.7" in (await client.get()).body
        await client.aclose()
        wrong = await server.connect()
        await wrong.raw(REQUEST)
        with trio.fail_after(5):
            assert await wrong.receive_rest() == b""
