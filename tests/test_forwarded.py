"""Who the client is and how it asked, as trusted proxies tell it, and as nobody else can."""

from __future__ import annotations

import socket
import time

import pytest
import trio

from trioserve.config import Config
from trioserve.errors import ConfigError
from trioserve.exchange import Endpoint, Request
from trioserve.forwarded import Forwarded
from trioserve.trust import Trust, parse_network
from trioserve.types import Receive, Scope, Send

from .support import Recorder, http_app, send_text, socket_server
from .websocket_client import handshake_bytes, open_handshake

pytestmark = pytest.mark.timeout(20)

PROXY = ("10.0.0.1", 5000)
ALL = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix")


def read(*fields: str, peer: tuple[str, int | None] | None = PROXY, **options: object) -> Request:
    """A request with these fields beside ``Host: own:8000``, from a proxy at 10.0.0.1, as an application sees it."""
    config = Config.from_plain({"forwarded_allow_ips": ["10.0.0.0/8", "fd00::/8"], **options})
    headers = [(b"host", b"own:8000")]
    for field in fields:
        name, _, value = field.partition(": ")
        headers.append((name.encode(), value.encode("latin-1")))
    endpoint = Endpoint(client=peer, server=("10.0.0.9", 8000))
    endpoint.is_proxy = Trust(config.forwarded_allow_ips).covers_peer(endpoint)
    request = Request("GET", b"/", headers, "1.1", endpoint)
    forwarded = Forwarded.from_config(config)
    assert forwarded is not None
    forwarded.apply(request)
    return request


# Whose word counts


@pytest.mark.parametrize(
    ("names", "host", "trusted"),
    [
        (["10.0.0.1"], "10.0.0.1", True),
        (["10.0.0.1"], "10.0.0.2", False),
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["fd00::/8"], "fd12::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["fd00::/8"], "10.0.0.1", False),
        (["unix"], "192.0.2.1", False),
        (["10.0.0.0/8"], "localhost", False),
        (["10.0.0.0/8"], "unknown", False),
    ],
)
def test_who_is_trusted(names: list[str], host: str, trusted: bool) -> None:
    """Addresses and networks are trusted by name, IPv4 also when it is told as IPv6."""
    trust = Trust(names)
    assert trust.names(host) is trusted
    assert trust.covers_peer(Endpoint(client=(host, 80), server=("10.0.0.9", 80))) is trusted


def test_everybody_who_connects() -> None:
    """``*`` believes whoever connects, but nobody that they name is a proxy for that."""
    trust = Trust(["*"])
    assert trust.covers_peer(Endpoint(client=("192.0.2.1", 80)))
    assert trust.covers_peer(Endpoint())
    assert not trust.names("192.0.2.1")


@pytest.mark.parametrize(
    ("endpoint", "trusted"),
    [
        (Endpoint(client=None, server=("/run/app.sock", None)), True),
        (Endpoint(client=("192.0.2.1", 80), server=("10.0.0.9", 80)), False),
        (Endpoint(), False),  # a TCP client that has gone, or a stream that is no socket's
    ],
)
def test_unix_sockets(endpoint: Endpoint, trusted: bool) -> None:
    """The peer of a unix socket has no address, and a name of its own; not all without an address are one."""
    assert Trust(["unix"]).covers_peer(endpoint) is trusted
    assert not Trust(["10.0.0.0/8"]).covers_peer(endpoint)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "300.1.1.1", "localhost", "", "10.0.0.0/99"])
def test_names_that_are_none(text: str) -> None:
    """What is no network is named, with what is wrong about it."""
    with pytest.raises(ConfigError, match=r"^forwarded_allow_ips must be an address, a network such as .*, not "):
        parse_network(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"proxy_headers": True}, "proxy_headers needs forwarded_allow_ips: the proxies"),
        ({"proxy_protocol": True}, "proxy_protocol needs forwarded_allow_ips: the proxies"),
        ({"forwarded_headers": ["x-real-ip"]}, "forwarded_headers must be among x-forwarded-for, "),
        ({"forwarded_headers": ["forwarded", "x-forwarded-for"]}, "forwarded_headers must be forwarded alone"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_plain(options)
    assert str(caught.value).startswith(text)


def test_off_unless_somebody_is_trusted() -> None:
    """The fields count once a network is named, unless they are turned off."""
    assert Forwarded.from_config(Config()) is None
    assert Forwarded.from_config(Config(forwarded_allow_ips=("10.0.0.1",))) is not None
    assert Forwarded.from_config(Config(forwarded_allow_ips=("10.0.0.1",), proxy_headers=False)) is None


# X-Forwarded


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        (["x-forwarded-for: 192.0.2.7"], ("192.0.2.7", 0)),
        (["x-forwarded-for: 192.0.2.7:4711"], ("192.0.2.7", 4711)),
        (["x-forwarded-for: 2001:db8::1"], ("2001:db8::1", 0)),
        (["x-forwarded-for: [2001:db8::1]:4711"], ("2001:db8::1", 4711)),
        (["x-forwarded-for: [2001:db8::1]"], ("2001:db8::1", 0)),
        # The right-most that is no proxy of ours: what stands left of it is the client's own invention.
        (["x-forwarded-for: 198.51.100.9, 192.0.2.7"], ("192.0.2.7", 0)),
        (["x-forwarded-for: 198.51.100.9, 192.0.2.7, 10.0.0.5, fd00::1"], ("192.0.2.7", 0)),
        (
            ["x-forwarded-for: 198.51.100.9", "x-forwarded-for: 192.0.2.7", "x-forwarded-for: 10.0.0.5"],
            ("192.0.2.7", 0),
        ),
        (["x-forwarded-for: 10.0.0.7, 10.0.0.5"], ("10.0.0.7", 0)),
        (["x-forwarded-for: 192.0.2.7, unknown, 10.0.0.5"], None),
        (["x-forwarded-for: _hidden"], None),
        (["x-forwarded-for: 999.1.1.1"], None),
        (["x-forwarded-for: [1.2.3.4.5]"], None),
        (["x-forwarded-for: 192.0.2.7:99999"], ("192.0.2.7", 0)),
        (["x-forwarded-for: ::ffff:192.0.2.7"], ("192.0.2.7", 0)),
        (['x-forwarded-for: ::1%a" 200 \x9b2J'], None),
        (["x-forwarded-for: [fe80::1%eth0]:80"], None),
        (["x-forwarded-for: 192.0.2.66, " + "10.0.0.7, " * 40 + "10.0.0.8"], ("10.0.0.7", 0)),
        (["x-forwarded-for:  , ,"], PROXY),
        (["x-forwarded-for: "], PROXY),
        (["x-real-ip: 192.0.2.7"], PROXY),
        ([], PROXY),
    ],
)
def test_whose_request_it_is(fields: list[str], client: tuple[str, int] | None) -> None:
    """The client is the right-most address that is not a proxy's."""
    assert read(*fields).endpoint.client == client


@pytest.mark.parametrize("peer", [("192.0.2.1", 5), None, ("/run/app.sock", None)])
def test_nobody_else_is_believed(peer: tuple[str, int | None] | None) -> None:
    """What a peer says that is not trusted changes nothing, and stays for the application to see."""
    fields = ["x-forwarded-for: 192.0.2.7", "x-forwarded-proto: https", "x_forwarded_for: 1.1.1.1"]
    request = read(*fields, peer=peer, forwarded_headers=list(ALL))
    assert request.endpoint == Endpoint(client=peer, server=("10.0.0.9", 8000))
    assert len(request.headers) == 4


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        (["https"], "https"),
        (["HTTPS"], "https"),
        (["wss"], "https"),
        (["ws"], "http"),
        (["http"], "http"),
        (["gopher"], "http"),
        ([""], "http"),
        (["https, http"], "http"),  # the nearest proxy's word, if nobody can tell whose which is
        (["http", "https"], "https"),
    ],
)
def test_the_scheme(values: list[str], scheme: str) -> None:
    assert read(*(f"x-forwarded-proto: {value}" for value in values)).endpoint.scheme == scheme


def test_the_scheme_of_the_client_s_hop() -> None:
    """Who writes a scheme for each hop means, for the client's hop, that one."""
    chain = "x-forwarded-for: 198.51.100.9, 192.0.2.7, 10.0.0.5"
    assert read(chain, "x-forwarded-proto: http, https, http").endpoint.scheme == "https"
    assert read(chain, "x-forwarded-proto: https, http").endpoint.scheme == "http"
    assert read(chain, "x-forwarded-proto: https, https, https, http").endpoint.scheme == "http"


@pytest.mark.parametrize(
    ("fields", "host", "server"),
    [
        (["host: example.org"], b"example.org", ("example.org", 80)),
        (["host: example.org:8443"], b"example.org:8443", ("example.org", 8443)),
        (["host: example.org", "proto: https"], b"example.org", ("example.org", 443)),
        (["host: example.org:443", "proto: https"], b"example.org", ("example.org", 443)),
        (["host: [2001:db8::1]:81"], b"[2001:db8::1]:81", ("2001:db8::1", 81)),
        (["host: example.org:8000", "port: 8443"], b"example.org:8443", ("example.org", 8443)),
        (["port: 443", "proto: https"], b"own", ("own", 443)),
        (["port: nonsense"], b"own:8000", ("own", 8000)),
        (["port: 99999"], b"own:8000", ("own", 8000)),
        (["port: " + "1" * 5000], b"own:8000", ("own", 8000)),
        (["host: a b"], b"own:8000", ("10.0.0.9", 8000)),
        (["host: user@evil"], b"own:8000", ("10.0.0.9", 8000)),
        (["host: evil, example.org"], b"example.org", ("example.org", 80)),
    ],
)
def test_the_host(fields: list[str], host: bytes, server: tuple[str, int]) -> None:
    """The Host field becomes what the client asked for, and the server what that names."""
    request = read(*(f"x-forwarded-{field}" for field in fields), forwarded_headers=list(ALL))
    assert [value for name, value in request.headers if name == b"host"] == [host]
    assert request.endpoint.server == server


@pytest.mark.parametrize(
    ("value", "root_path"),
    [
        ("/api", "/api"),
        ("/api/", "/api"),
        ("/api/v1", "/api/v1"),
        ("/", None),
        ("api", None),
        ("//evil.example", None),
        ("/a b", None),
        ("/a?b", None),
        ("/a%2fb", None),
    ],
)
def test_the_prefix(value: str, root_path: str | None) -> None:
    """A prefix that the proxy has taken off becomes the root path; what could be a URL of another host does not."""
    assert read(f"x-forwarded-prefix: {value}", forwarded_headers=list(ALL)).root_path == root_path


def test_only_what_the_proxy_is_said_to_set() -> None:
    """What a client sends goes through a proxy that does not set it, so it does not count."""
    fields = ("host: evil", "port: 1", "prefix: /evil", "proto: https", "for: 192.0.2.7")
    request = read(*(f"x-forwarded-{field}" for field in fields), "forwarded: for=1.2.3.4")
    assert request.endpoint == Endpoint(client=("192.0.2.7", 0), server=("10.0.0.9", 8000), scheme="https")
    assert request.headers[0] == (b"host", b"own:8000")
    assert request.root_path is None


def test_underscores_behind_a_proxy() -> None:
    """Names with underscores, which an application could take for the proxy's own, are dropped."""
    request = read("x_forwarded_for: 1.1.1.1", "x-forwarded_host: a", "remote_user: me", "x_y: z", "x-y: z")
    assert [name for name, _ in request.headers] == [b"host", b"x-y"]
    assert request.endpoint.client == PROXY


# RFC 7239


@pytest.mark.parametrize(
    ("lines", "client", "scheme"),
    [
        (["for=192.0.2.7"], ("192.0.2.7", 0), "http"),
        (["For=192.0.2.7;PROTO=https"], ("192.0.2.7", 0), "https"),
        (['for="192.0.2.7:4711" ; proto=https'], ("192.0.2.7", 4711), "https"),
        (['for="[2001:db8::1]:4711"'], ("2001:db8::1", 4711), "http"),
        (
            ["for=198.51.100.9;proto=https, for=192.0.2.7;proto=http, for=10.0.0.5;proto=https"],
            ("192.0.2.7", 0),
            "http",
        ),
        (["for=198.51.100.9", "for=192.0.2.7;proto=https", "for=10.0.0.5"], ("192.0.2.7", 0), "https"),
        (["for=unknown"], None, "http"),
        (["for=_gazonk"], None, "http"),
        (["proto=https"], None, "https"),
        (['for="a,b;c", for=192.0.2.7'], ("192.0.2.7", 0), "http"),
        (['for="192.0.2.\\7"'], ("192.0.2.7", 0), "http"),
        # What cannot be read hides the client, and invents none.
        (['for="open, for=192.0.2.7'], None, "http"),
        (['for=192.0.2.7, for=10.0.0.7" , for=10.0.0.5'], None, "http"),
        (["for=192.0.2.7;=x"], None, "http"),
        (["nonsense"], None, "http"),
        ([" , ,"], PROXY, "http"),
        ([""], PROXY, "http"),
    ],
)
def test_forwarded(lines: list[str], client: tuple[str, int] | None, scheme: str) -> None:
    """Each proxy adds an element; that of the right-most client counts (RFC 7239 §4, §7.4)."""
    endpoint = read(*(f"forwarded: {line}" for line in lines), forwarded_headers=["forwarded"]).endpoint
    assert (endpoint.client, endpoint.scheme) == (client, scheme)


@pytest.mark.parametrize(
    "text", ['"' + '\\"' * 32000, "a=b," * 16000, '"' * 65000, "for=10.0.0.7," * 5000, "=" * 65000]
)
def test_what_a_client_sends_costs_little(text: str) -> None:
    """No value of 64 KiB takes long, whatever is in it."""
    began = time.process_time()
    read(f"forwarded: {text}", forwarded_headers=["forwarded"])
    read(f"x-forwarded-for: {text}")
    assert time.process_time() - began < 0.5
    # The end of it counts, where the proxies write.
    assert read(f"x-forwarded-for: {text}", "x-forwarded-for: 192.0.2.7").endpoint.client == ("192.0.2.7", 0)
    assert read("x-forwarded-for: 192.0.2.7", f"x-forwarded-for: {text}").endpoint.client is None


def test_the_host_in_forwarded() -> None:
    request = read('forwarded: for=192.0.2.7;host="example.org:8443"', forwarded_headers=["forwarded"])
    assert request.headers[0] == (b"host", b"example.org:8443")
    assert request.endpoint.server == ("example.org", 8443)


# Through a server


async def test_a_tcp_client_that_has_gone_is_no_unix_peer() -> None:
    """Of a client that resets before it is accepted nobody knows the address; nor is it a unix socket's."""
    seen: list[tuple[object, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["client"], scope["scheme"]))
        await send_text(send, b"")

    lie = b"X-Forwarded-For: 192.0.2.66\r\nX-Forwarded-Proto: https\r\n"
    async with socket_server(http_app(app), forwarded_allow_ips=["unix"]) as server:
        for _ in range(20):
            gone = socket.create_connection(server.server.addresses[0])
            gone.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + lie + b"Content-Length: 0\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
        client = await server.connect()
        await client.get()
        await client.aclose()
    assert all(client is None or client[0] == "127.0.0.1" for client, _ in seen)
    assert {scheme for _, scheme in seen} == {"http"}


async def test_what_an_application_and_the_log_see() -> None:
    """The scopes, also of WebSockets, and the records have what the proxy told, for each request of a connection."""
    scopes = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            await send_text(send, b"")

    recorder = Recorder()
    options = {"forwarded_allow_ips": ["127.0.0.0/8"], "forwarded_headers": list(ALL), "root_path": "/own"}
    async with socket_server(http_app(app), recorder=recorder, **options) as server:
        client = await server.connect()
        told = [("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Prefix", "/api")]
        await client.request("GET", "/a", told)
        await client.request("GET", "/b", [("X-Forwarded-For", "192.0.2.8")])
        await client.get("/c")
        own = client.stream.socket.getsockname()
        upgrade = handshake_bytes("/d", *((name.encode(), value.encode()) for name, value in told))
        await open_handshake(client.stream, upgrade)
        await client.aclose()
        while len(recorder.records) < 4:
            await trio.sleep(0.005)
    seen = [(s["client"], s["scheme"], s["path"], s["root_path"]) for s in scopes]
    assert seen == [
        (("192.0.2.7", 0), "https", "/api/a", "/api"),
        (("192.0.2.8", 0), "http", "/own/b", "/own"),
        (own, "http", "/own/c", "/own"),
        (("192.0.2.7", 0), "wss", "/api/d", "/api"),
    ]
    assert [record.client for record in recorder.records] == [
        "192.0.2.7",
        "192.0.2.8",
        f"{own[0]}:{own[1]}",
        "192.0.2.7",
    ]
