"""The PROXY protocol: what a load balancer says of the connection that it passes on, before its first byte.

Source: "The PROXY protocol, versions 1 & 2" (HAProxy, 2020), the sections named below.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass

from ..drain import Drain, DrainKind
from ..errors import ProtocolError, Refusal
from ..exchange import Address
from ..transport import Transport, Wake
from ..trust import read_address

LONGEST_LINE = 107
"""Bytes of a line of version 1, with its end (§2.1)."""

LONGEST_HEADER = 4096
"""Bytes of a header of version 2. The addresses take 36, what balancers add to them (§2.2) some hundred."""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")
_LINE = re.compile(rb"PROXY (TCP[46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_LOCAL, _PROXY = 0x20, 0x21
_FAMILIES = {0x1: (4, socket.AF_INET), 0x2: (16, socket.AF_INET6)}  # §2.2: the upper half of the byte
_UNIX, _UNIX_LENGTH = 0x3, 216
_TLS, _CLIENT_TLS = 0x20, 0x01  # §2.2.5: PP2_TYPE_SSL, PP2_CLIENT_SSL


@dataclass(frozen=True)
class Passed:
    """The connection that a balancer has accepted.

    ``client`` and ``server`` are its two ends, None where they are not told. ``is_secured``: the client spoke TLS,
    which the balancer has undone. ``is_own``: there is no client, the balancer speaks for itself, as in a health check.
    """

    client: Address | None = None
    server: Address | None = None
    is_secured: bool = False
    is_own: bool = False


async def receive_header(transport: Transport, *, deadline: float, drain: Drain) -> tuple[Passed, bytes] | None:
    """Receive the header with which a connection begins; returns what it says, and what came behind it.

    None if the peer closes before anything has come, or the server stops. Raises ProtocolError for what is no such
    header, and for one that is not whole at the deadline or the peer's end.
    """

    def hurry() -> None:
        transport.wake(Wake.DRAIN)

    drain.register(hurry)
    try:
        data = b""
        while drain.kind is not DrainKind.STOP:
            came = await transport.receive(deadline)
            if isinstance(came, bytes):
                if not came:
                    break
                data += came
                found = parse_header(data)
                if found is not None:
                    passed, length = found
                    return passed, data[length:]
            elif came is Wake.DEADLINE:
                raise ProtocolError(408, "the PROXY header did not come in time", why=Refusal.PROXY_TIME)
        if data and drain.kind is not DrainKind.STOP:
            raise ProtocolError(400, "the PROXY header is cut short")
        return None
    finally:
        drain.unregister(hurry)


def parse_header(data: bytes) -> tuple[Passed, int] | None:
    """Read the header at the beginning of ``data``: what it says, and its length in bytes; None if more must come.

    Raises ProtocolError for what is no such header.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _parse_binary(data)
    if b"PROXY "[: len(data)] == data[:6]:
        return _parse_line(data)
    raise ProtocolError(400, "there is no PROXY header")


def _parse_line(data: bytes) -> tuple[Passed, int] | None:
    end = data.find(b"\n", 0, LONGEST_LINE)
    if end < 0:
        if len(data) >= LONGEST_LINE:
            raise ProtocolError(400, "the PROXY line is too long")
        return None
    line = data[: end + 1]
    if _UNKNOWN.fullmatch(line):
        return Passed(), len(line)
    told = _LINE.fullmatch(line)
    if told is None:
        raise ProtocolError(400, "the PROXY line is not PROXY TCP4 or TCP6, two addresses and two ports")
    version = int(told[1][3:])
    client, server = (_read_end(told[n], told[n + 2], version) for n in (2, 3))
    return Passed(client, server), len(line)


def _read_end(host: bytes, port: bytes, version: int) -> Address:
    address = read_address(host.decode("ascii"))
    if address is None or (b":" in host) is not (version == 6) or int(port) > 0xFFFF:
        raise ProtocolError(400, f"an address in the PROXY line is none of TCP{version}")
    return str(address), int(port)


def _parse_binary(data: bytes) -> tuple[Passed, int] | None:
    if len(data) < _FIXED.size:
        return None
    _, command, family, length = _FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ProtocolError(400, f"the PROXY header's version and command are {command:#04x}, not 0x20 or 0x21")
    end = _FIXED.size + length
    if end > LONGEST_HEADER:
        raise ProtocolError(400, "the PROXY header is too long")
    if len(data) < end:
        return None
    return Passed(is_own=True) if command == _LOCAL else _read_passed(family, data[_FIXED.size : end]), end


def _read_passed(family: int, rest: bytes) -> Passed:
    client = server = None
    kind = family >> 4
    if kind in _FAMILIES:
        size, version = _FAMILIES[kind]
        taken = 2 * size + 4
        if len(rest) < taken:
            raise ProtocolError(400, "the PROXY header is too short for its addresses")
        ports = struct.unpack_from("!HH", rest, 2 * size)
        client, server = (
            (str(read_address(socket.inet_ntop(version, rest[n * size : (n + 1) * size]))), ports[n]) for n in (0, 1)
        )
    else:
        # §2.2: other families must be accepted, and their addresses left alone.
        taken = _UNIX_LENGTH if kind == _UNIX else len(rest)
    return Passed(client, server, _was_secured(rest[taken:]))


def _was_secured(additions: bytes) -> bool:
    """Whether what follows the addresses, in records of type, length and value, says that the client spoke TLS."""
    position = 0
    while position + 3 <= len(additions):
        kind, length = struct.unpack_from("!BH", additions, position)
        position += 3
        if kind == _TLS and length > 0 and position < len(additions):
            return bool(additions[position] & _CLIENT_TLS)
        position += length
    return False
