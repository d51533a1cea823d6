"""What a request to open a WebSocket offers, whatever HTTP version carries it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ProtocolError
from ..types import Headers

VERSION = b"13"

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2


@dataclass(frozen=True, slots=True)
class Offer:
    """The subprotocols a client offers, in its order of preference, and the extensions as it wrote them."""

    subprotocols: tuple[str, ...]
    extensions: str


def read_offer(headers: Headers) -> Offer:
    """Read the fields of the opening handshake. Raises ProtocolError 400 or 426.

    Source: RFC 6455 §4.2.1, §4.4 (versions).
    """
    versions, subprotocols, extensions = [], [], []
    for name, value in headers:
        if name == b"sec-websocket-version":
            versions.append(value)
        elif name == b"sec-websocket-protocol":
            subprotocols += [one.strip() for one in value.decode("latin-1").split(",")]
        elif name == b"sec-websocket-extensions":
            extensions.append(value.decode("latin-1"))
    if versions != [VERSION]:
        raise _wrong_version(versions)
    # What is no token cannot be chosen: RFC 6455 §4.1 (10).
    return Offer(tuple(one for one in subprotocols if _TOKEN.fullmatch(one)), ",".join(extensions))


def _wrong_version(versions: list[bytes]) -> ProtocolError:
    ours = (b"sec-websocket-version", VERSION)
    if len(versions) != 1:
        text = f"Sec-WebSocket-Version must be there once, with 13; it is there {len(versions)} times."
        return ProtocolError(400, text, ours)
    came = versions[0][:20].decode("latin-1")
    return ProtocolError(426, f"Sec-WebSocket-Version must be 13, not {came!a}.", ours)
