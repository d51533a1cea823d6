"""What HTTP/1.1 adds to a WebSocket's opening handshake: the upgrade, and the key that proves it was meant.

Source: RFC 6455 §4.2.1, RFC 9110 §7.8.
"""

from __future__ import annotations

import base64
import hashlib
import re

from ..errors import ProtocolError
from ..types import Headers
from .request_reader import Head
from .rules import tokens

_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
# What a 101 says, and a 426, too: RFC 9110 §15.5.22 and §7.8.
UPGRADE_FIELDS = ((b"upgrade", b"websocket"), (b"connection", b"Upgrade"))

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


def wants_websocket(head: Head) -> bool:
    """Whether the request asks to upgrade to a WebSocket.

    An Upgrade field that Connection does not name was meant for another hop, and is ignored.
    """
    upgrade = connection = b""
    for name, value in head.headers:
        if name == b"upgrade":
            upgrade += b"," + value
        elif name == b"connection":
            connection += b"," + value
    return b"websocket" in tokens(upgrade) and b"upgrade" in tokens(connection)


def check_upgrade(head: Head) -> None:
    """Check what the WebSocket itself does not see of a request that wants one. Raises ProtocolError 400 or 405."""
    if head.http_version != "1.1":
        # Most often a proxy that passes the fields on and forgets the version.
        raise ProtocolError(400, f"A WebSocket needs HTTP/1.1, and this request is HTTP/{head.http_version}.")
    if head.method != "GET":
        raise ProtocolError(405, f"A WebSocket begins with GET, not {head.method}.", (b"allow", b"GET"))
    if head.length != 0:
        raise ProtocolError(400, "A request to open a WebSocket has no body.")
    keys = [value for name, value in head.headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise ProtocolError(400, "Sec-WebSocket-Key must be there once, with 16 bytes in base64.")


def upgrade_fields(request_headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return what makes a 101 of a response to a request that check_upgrade has let through."""
    key = next(value for name, value in request_headers if name == b"sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return [*UPGRADE_FIELDS, (b"sec-websocket-accept", accept)]
