"""Which peers are believed in what they say of others: the networks that ``forwarded_allow_ips`` names."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .errors import ConfigError
from .exchange import Address

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


class Trust:
    """The peers that are believed: ``names`` are addresses, networks, ``unix`` for unix sockets, ``*`` for all."""

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        self._networks = [network for network in map(parse_network, names) if network is not None]
        self._trusts_all = EVERYBODY in names
        self._trusts_unix = UNIX in names or self._trusts_all
        self._known: dict[str, bool] = {}

    def covers_peer(self, peer: Address | None) -> bool:
        """Whether the other end of a connection is believed; None and a path are a unix socket's."""
        return self._trusts_unix if peer is None or peer[1] is None else self.covers(peer[0])

    def covers(self, host: str) -> bool:
        """Whether this is the address of one who is believed."""
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= _KNOWN_AT_MOST:
                self._known.clear()
            known = self._known[host] = self._trusts_all or self._is_named(host)
        return known

    def _is_named(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # as a socket for both versions tells an IPv4 address
        return any(address in network for network in self._networks)


_KNOWN_AT_MOST = 1000
