"""The three ways to name a listening address, read from text."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError


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


Bind = TCPBind | UnixBind | DescriptorBind


def parse_bind(text: str) -> Bind:
    """Read ``HOST:PORT``, ``[v6]:PORT``, ``unix:PATH`` or ``fd:N``; raises ConfigError."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return UnixBind(rest)
    if kind == "fd" and _is_number(rest):
        return DescriptorBind(int(rest))
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if host and _is_number(port) and int(port) <= 65535:
        return TCPBind(host, int(port))
    raise ConfigError(f"bind must be HOST:PORT, [v6]:PORT, unix:PATH or fd:N, not {text!r}")


def _is_number(text: str) -> bool:
    # isdigit() alone also takes digits of other scripts, and superscripts that int() refuses, as it does thousands of
    # digits.
    return text.isascii() and text.isdigit() and len(text) < 10
