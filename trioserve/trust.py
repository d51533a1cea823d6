"""Which peers are believed in what they say of others: the networks that ``forwarded_allow_ips`` names."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .errors import ConfigError
from .exchange import Endpoint

EVERYBODY = "*"
UNIX = "unix"

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> _Network | None:
    """Read an address or a network; None for ``*`` and ``unix``. Raises ConfigError."""
    if text in (EVERYBODY, UNIX):
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(
            f"forwarded_allow_ips must be an address, a network such as 10.0.0.0/8, unix or *, not {text!r}: {error}"
        ) from None


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def read_address(text: str) -> _Address | None:
    """Read an address as somebody tells it; None for what is none.

    An IPv4 address in the form of an IPv6 one, as a socket for both versions has it, is an IPv4 address.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.scope_id is not None:
        return None  # an interface of this machine, in words of any kind, is no place that somebody else can name
    return address.ipv4_mapped or address


class Trust:
    """The peers that are believed: ``names`` are addresses, networks, ``unix`` for unix sockets, ``*`` for all."""

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._networks = [network for network in map(parse_network, names) if network is not None]
        self._trusts_all = EVERYBODY in names
        self._trusts_unix = UNIX in names

    def covers_peer(self, endpoint: Endpoint) -> bool:
        """Whether who has connected is believed.

        A peer without an address is on a unix socket, whose own end has a path; or it has gone already, or is no
        socket's, and then nobody can tell who it is.
        """
        if self._trusts_all:
            return True
        if endpoint.client is not None:
            return self.names(endpoint.client[0])
        return self._trusts_unix and endpoint.server is not None and endpoint.server[1] is None

    def names(self, host: str) -> bool:
        """Whether this is the address of a proxy that was named, for which ``*`` is not enough."""
        address = read_address(host.partition("%")[0])
        return address is not None and any(address in network for network in self._networks)
