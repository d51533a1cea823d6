"""What comes from a trusted proxy: headers of the PROXY protocol, through a whole server, and fields of requests."""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise

import trio
import trio.testing
from hypothesis import strategies as st

from trioserve.config import Config
from trioserve.errors import ProtocolError
from trioserve.exchange import Endpoint, Request
from trioserve.forwarded import Forwarded
from trioserve.net.proxy_protocol import LONGEST_HEADER, Passed, parse_header
from trioserve.types import ASGIApp, Receive, Scope, Send

from ..support import http_app, memory_server
from .neighbour import respond, trio_run

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
NAMES = tuple(f"x-forwarded-{what}" for what in ("for", "proto", "host", "port", "prefix"))
PROXY = ("10.0.0.1", 5000)
HOST = re.compile(rb"[-A-Za-z0-9._~\[\]:]+")


@dataclass(frozen=True)
class Scenario:
    """``header`` begins a connection, and is cut at ``places``; ``fields`` come with a request from a proxy."""

    header: bytes = b""
    places: tuple[int, ...] = ()
    fields: tuple[tuple[bytes, bytes], ...] = ()


async def tell_client(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, repr((scope["client"], scope["server"], scope["scheme"])).encode())


def check(given: Scenario, app: ASGIApp | None = None) -> None:
    """A header is believed as it is or ends its connection alone; fields change a request to what it may be."""
    trio_run(_check_header, given, app or http_app(tell_client))
    for names in (NAMES, ("forwarded",)):
        check_fields(given.fields, names)


async def _check_header(given: Scenario, app: ASGIApp) -> None:
    try:
        found = parse_header(given.header + REQUEST)
    except ProtocolError:
        found = None
    if found is not None:
        assert 0 < found[1] <= LONGEST_HEADER
    options = {"forwarded_allow_ips": ["*"], "proxy_protocol": True}
    async with memory_server(app, **options) as server:
        neighbour = await server.connect_stream()
        await neighbour.send_all(b"PROXY UNKNOWN\r\n")
        client = await server.connect_stream()
        sent = given.header + REQUEST
        cuts = [0, *sorted(place % len(sent) for place in given.places), len(sent)]
        for begin, end in pairwise(cuts):
            try:
                await client.send_all(sent[begin:end])
            except trio.BrokenResourceError:
                break  # it has been refused
            await trio.testing.wait_all_tasks_blocked()
        answer = await _read_all(client)
        if found is None:
            assert answer == b""
        elif sent[found[1] :] == REQUEST:
            assert answer.endswith(_as_told(found[0])), answer
        await neighbour.send_all(REQUEST)
        assert (await _read_all(neighbour)).startswith(b"HTTP/1.1 200 ")
        await client.aclose()
        await neighbour.aclose()


def _as_told(passed: Passed) -> bytes:
    return repr((passed.client, passed.server, "https" if passed.is_secured else "http")).encode()


async def _read_all(stream: trio.abc.Stream) -> bytes:
    answer = b""
    try:
        async for data in stream:
            answer += data
    except trio.BrokenResourceError:
        pass
    return answer


def check_fields(fields: tuple[tuple[bytes, bytes], ...], names: tuple[str, ...]) -> None:
    config = Config(forwarded_allow_ips=("10.0.0.0/8", "fd00::/8"), forwarded_headers=names)
    request = Request("GET", b"/", [(b"host", b"own"), *fields], "1.1", Endpoint(client=PROXY, is_proxy=True))
    forwarded = Forwarded.from_config(config)
    assert forwarded is not None
    forwarded.apply(request)
    client = request.endpoint.client
    if client is not None:
        assert str(ip_address(client[0])) == client[0]
        assert client[1] is not None
        assert 0 <= client[1] <= 0xFFFF
    assert request.endpoint.scheme in ("http", "https")
    [host] = [value for name, value in request.headers if name == b"host"]
    assert HOST.fullmatch(host), host
    if request.root_path is not None:
        assert re.fullmatch(r"(/[^/?#%\\\s]+)+", request.root_path), request.root_path
    nodes = [node.strip() for name, value in fields if name == b"x-forwarded-for" for node in value.split(b",")]
    if "x-forwarded-for" in names and nodes and nodes[-1].startswith(b"192.0.2."):
        assert client is None or client[0].startswith("192.0.2.")  # nobody else can have been the client


# What is drawn

addresses = st.sampled_from(["192.0.2.7", "192.0.2.8", "10.0.0.5", "::1", "2001:db8::7", "fd00::5", "0.0.0.0", "::"])
ports = st.one_of(st.integers(0, 65535), st.sampled_from([-1, 65536, 10**9]))


def _binary(command: int, family: int, rest: bytes, more: int) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, max(0, min(0xFFFF, len(rest) + more))) + rest


def _ends(client: str, server: str) -> bytes:
    def pack(text: str) -> bytes:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)

    return pack(client) + pack(server) + b"\x12\x34\x01\xbb"


def _line(version: str, client: str, server: str, first: int, second: int, end: str) -> bytes:
    return f"PROXY {version} {client} {server} {first} {second}{end}".encode()


records = st.builds(
    lambda kind, value, more: struct.pack("!BH", kind, max(0, len(value) + more)) + value,
    st.sampled_from([0x01, 0x04, 0x20, 0x30]),
    st.binary(max_size=9),
    st.sampled_from([0, 0, 0, 1, -1, 500]),
)
headers = st.one_of(
    st.builds(
        _line,
        *(st.sampled_from(["TCP4", "TCP6", "UNKNOWN", "TCP5", ""]), addresses, addresses, ports, ports),
        st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "", " \r\n"]),
    ),
    st.builds(
        _binary,
        st.sampled_from([0x20, 0x21, 0x21, 0x21, 0x22, 0x11]),
        st.sampled_from([0x00, 0x11, 0x11, 0x21, 0x21, 0x12, 0x31]),
        st.builds(
            lambda ends, more: ends + b"".join(more),
            st.one_of(st.builds(_ends, addresses, addresses), st.binary(max_size=40)),
            st.lists(records, max_size=3),
        ),
        st.sampled_from([0, 0, 0, 0, 1, -1, 4000, 70000]),
    ),
    st.binary(max_size=40),
)
texts = st.one_of(
    st.lists(
        st.one_of(
            *(addresses, st.text('0123456789abcdef.:[]"\\=;, \t\xe9_', max_size=20)),
            st.builds(
                'for="{}";proto=https;host={}'.format, addresses, st.sampled_from(["a", "a:1", '"a', "a b", "@"])
            ),
            st.sampled_from(
                ["for=192.0.2.7", "https", "http", "unknown", "/api", "//evil", "example.org:8443", "99999"]
            ),
        ),
        max_size=5,
    ).map(lambda parts: ", ".join(parts).encode("latin-1")),
    st.binary(max_size=30),
)
fields = st.lists(
    st.tuples(st.sampled_from([name.encode() for name in (*NAMES, "forwarded", "x_forwarded_for")]), texts), max_size=6
)


def scenarios() -> st.SearchStrategy[Scenario]:
    places = st.lists(st.integers(0, 200), max_size=3).map(tuple)
    return st.builds(Scenario, header=headers, places=places, fields=fields.map(tuple))
