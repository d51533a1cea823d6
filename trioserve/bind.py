"""The four ways to name a listening address, read from text."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from .errors import ConfigError

# systemd allows nearly all of ASCII; these need no quotes in a shell and look like no list. What has no letter and
# no underscore is a number gone wrong, such as -1.
_DESCRIPTOR_NAME = re.compile(r"(?![\d.-]+\Z)[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class TCPBind:
    """A host name or address and a port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixBind:
    """The path of a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class DescriptorBind:
    """The number of an inherited file descriptor that is a listening or bound stream socket."""

    number: int

    def __str__(self) -> str:
        return f"fd:{self.number}"


@dataclass(frozen=True)
class NamedDescriptorBind:
    """The name that systemd gave to inherited file descriptors (FileDescriptorName=); settings turn it into numbers."""

    name: str

    def __str__(self) -> str:
        return f"fd:{self.name}"


Bind = TCPBind | UnixBind | DescriptorBind | NamedDescriptorBind


def parse_bind(text: str) -> Bind:
    """Read ``HOST:PORT``, ``[v6]:PORT``, ``unix:PATH``, ``fd:N`` or ``fd:NAME``; raises ConfigError."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return UnixBind(rest)
    if kind == "fd" and _is_number(rest):
        return DescriptorBind(int(rest))
    if kind == "fd" and _DESCRIPTOR_NAME.fullmatch(rest):
        return NamedDescriptorBind(rest)
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if host and _is_number(port) and int(port) <= 65535:
        return TCPBind(host, int(port))
    raise ConfigError(f"bind must be HOST:PORT, [v6]:PORT, unix:PATH, fd:N or fd:NAME, not {text!r}")


def is_local(bind: Bind) -> bool:
    """Whether it is for this machine alone: a unix socket, localhost or a loopback address."""
    if not isinstance(bind, TCPBind):
        return isinstance(bind, UnixBind)
    if bind.host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind.host).is_loopback
    except ValueError:  # another name
        return False


def _is_number(text: str) -> bool:
    # isdigit() alone also takes digits of other scripts, and superscripts that int() refuses, as it does thousands of
    # digits.
    return text.isascii() and text.isdigit() and len(text) < 10
