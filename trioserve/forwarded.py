"""What the proxies in front say of a request: whose it is, and how it was asked for.

A client can send these fields, too. So they count only from a peer that is trusted, only those count that the proxy is
said to set (else what a client sends would pass through it), and of a chain of proxies only what those wrote that are
trusted: the client is the right-most address that is not one of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .config import Config
from .exchange import Address, Request
from .trust import Trust, read_address

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[-A-Za-z0-9._~]+)(?::([0-9]{1,5}))?")
_PREFIX = re.compile(r"(?:/[-A-Za-z0-9._~!$&'()*+,;=:@]+)+")
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")
_PORT = re.compile(r"[0-9]{1,5}")
_TOKEN = r"[-!#$%&'*+.^_`|~0-9A-Za-z]+"  # noqa: S105 - a token of HTTP
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PAIR = re.compile(rf"\s*({_TOKEN})=({_TOKEN}|{_QUOTED})\s*")
_ELEMENT = re.compile(rf'(?:{_QUOTED}|[^",])*')
_PARTS = re.compile(rf'(?:{_QUOTED}|[^";])+')  # only for an element whose quotes are closed, else it is slow
_UNREADABLE = "="

HOPS_AT_MOST = 32
"""Proxies that a request may have come through. Clients can send longer chains, and somebody has to read them."""

LONGEST = 4096
"""Characters that are read of what a field says, from its end."""


@dataclass(frozen=True)
class _Told:
    """What is told of a request; None for what is not. ``client`` is the text of who sent it."""

    client: str | None = None
    scheme: str | None = None
    host: str | None = None
    port: str | None = None
    prefix: str | None = None


class Forwarded:
    """Puts what trusted proxies say in the place of what the connection tells."""

    def __init__(self, config: Config) -> None:
        self._trust = Trust(config.forwarded_allow_ips)
        self._names = {name.encode("ascii") for name in config.forwarded_headers}

    @classmethod
    def from_config(cls, config: Config) -> Forwarded | None:
        """None if nobody is trusted."""
        return cls(config) if config.uses_proxy_headers else None

    def apply(self, request: Request) -> None:
        """Change the request's endpoint, and its Host field and root path where these are told.

        Names with an underscore are dropped, as nginx does: an application may take them for the proxy's with a hyphen.
        """
        if not request.endpoint.is_proxy:
            return
        fields: dict[bytes, list[str]] = {}
        kept = []
        for field in request.headers:
            name = field[0]
            if name in self._names:
                fields.setdefault(name, []).append(field[1].decode("latin-1"))
            if b"_" not in name:
                kept.append(field)
        request.headers = kept
        if fields:
            lines = fields.get(b"forwarded")
            self._put(request, self._read_fields(fields) if lines is None else self._read_elements(lines))

    # Reading

    def _read_fields(self, fields: dict[bytes, list[str]]) -> _Told:
        """Read the X-Forwarded fields, each a list to which every proxy appends."""
        chains = {name: _split(lines) for name, lines in fields.items()}
        nodes = chains.get(b"x-forwarded-for", [])
        at = self._find_client(nodes)

        def of(name: bytes) -> str | None:
            values = chains.get(name)
            if not values:
                return None
            # Who writes one value for each hop means that of the client's; else the nearest proxy's word counts.
            return values[at] if len(values) == len(nodes) else values[-1]

        return _Told(
            client=nodes[at] if nodes else None,
            scheme=of(b"x-forwarded-proto"),
            host=of(b"x-forwarded-host"),
            port=of(b"x-forwarded-port"),
            prefix=of(b"x-forwarded-prefix"),
        )

    def _read_elements(self, lines: Sequence[str]) -> _Told:
        """Read the field Forwarded (RFC 7239 §4): an element by each proxy."""
        elements = [_read_element(text) for text in _split_elements(lines)[-HOPS_AT_MOST:]]
        if not elements:
            return _Told()
        element = elements[self._find_client([one.get("for", "") for one in elements])]
        return _Told(element.get("for", "unknown"), element.get("proto"), element.get("host"))

    def _find_client(self, nodes: Sequence[str]) -> int:
        """The place of the right-most who is no proxy of ours; of the farthest that counts, if all are."""
        first = max(0, len(nodes) - HOPS_AT_MOST)
        for place in range(len(nodes) - 1, first, -1):
            address = _read_node(nodes[place])
            if address is None or not self._trust.names(address[0]):
                return place
        return first

    # Putting it in place

    def _put(self, request: Request, told: _Told) -> None:
        endpoint = request.endpoint
        client = endpoint.client if told.client is None else _read_node(told.client)
        scheme = _SCHEMES.get((told.scheme or "").lower(), endpoint.scheme)
        request.endpoint = replace(endpoint, client=client, scheme=scheme, is_proxy=False)
        if told.host is not None or told.port is not None:
            self._put_host(request, told, scheme)
        if told.prefix is not None and _PREFIX.fullmatch(prefix := told.prefix.rstrip("/")):
            request.root_path = prefix

    def _put_host(self, request: Request, told: _Told, scheme: str) -> None:
        own = next((value for name, value in request.headers if name == b"host"), b"").decode("latin-1")
        parts = _HOST.fullmatch(own if told.host is None else told.host)
        if parts is None:
            return
        host, written = parts.groups()
        port = _read_port(told.port) or _read_port(written) or _PORTS[scheme]
        named = host if port == _PORTS[scheme] else f"{host}:{port}"
        others = [field for field in request.headers if field[0] != b"host"]
        request.headers = [(b"host", named.encode("ascii")), *others]
        request.endpoint = replace(request.endpoint, server=(host.strip("[]"), port))


def _end_of(lines: Sequence[str]) -> list[str]:
    """The last LONGEST characters of these lines: what proxies of ours have added is there."""
    kept, left = [], LONGEST
    for line in reversed(lines):
        if left > 0:
            kept.append(line[-left:])
            left -= len(line)
    return kept[::-1]


def _split(lines: Sequence[str]) -> list[str]:
    return [part for line in _end_of(lines) for part in (one.strip() for one in line.split(",")) if part]


def _split_elements(lines: Sequence[str]) -> list[str]:
    """The elements as text; what cannot be taken apart is an element that says nothing."""
    elements = []
    for line in _end_of(lines):
        position = 0
        while position <= len(line):
            found = _ELEMENT.match(line, position)
            assert found is not None  # it matches nothing, too
            text, position = found[0], found.end()
            if position < len(line) and line[position] != ",":
                # A quote that is not closed: nothing from here on can be read, and so nobody knows who the client is.
                text, position = _UNREADABLE, len(line)
            if text.strip():
                elements.append(text)
            position += 1
    return elements


def _read_element(text: str) -> dict[str, str]:
    """The pairs of an element; empty if it is malformed."""
    pairs = {}
    for part in _PARTS.findall(text):
        pair = _PAIR.fullmatch(part)
        if pair is None:
            return {}
        name, value = pair.groups()
        pairs[name.lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    return pairs


def _read_node(text: str) -> Address | None:
    """The address and the port, 0 if there is none; None for what is no address, such as ``unknown``."""
    address = read_address(text)
    if address is not None:
        return str(address), 0
    found = _NODE.fullmatch(text.strip('"'))
    if found is None:
        return None
    address = read_address(found[1] or found[2])
    return None if address is None else (str(address), _read_port(found[3]) or 0)


def _read_port(text: str | None) -> int | None:
    return int(text) if text is not None and _PORT.fullmatch(text) and 0 < int(text) <= 0xFFFF else None
