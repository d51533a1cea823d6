"""WebSocket for the load generator: the bytes it sends, made once beforehand, and the frames it reads.

It shares nothing with the servers under test, so that a mistake of theirs is not repeated here.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import zlib
from dataclasses import dataclass

BINARY, CLOSE, PING, PONG = 0x2, 0x8, 0x9, 0xA
CONTROL = 0x8  # this bit of an opcode distinguishes control frames
FINAL, COMPRESSED = 0x80, 0x40  # bits of a frame's first byte
MASKED = 0x80  # bit of its second
MASK = bytes.fromhex("37fa213d")
KEY = base64.b64encode(b"trioserve-bench!")
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEFLATE = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
FLUSH = b"\x00\x00\xff\xff"  # ends each deflated message and is not sent


class ProtocolError(Exception):
    """The server sent what it must not send."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a frame's payload; the payload is at ``start`` to ``end`` of the bytes it was read from."""

    opcode: int
    final: bool
    compressed: bool
    start: int
    end: int


def payload(size: int) -> bytes:
    """JSON as feeds send it: names and layout repeat, values differ."""
    text = b"["
    for number in itertools.count(1):
        if len(text) >= size:
            return text[:size]
        bid = 90 + number * 7919 % 2003 / 100
        text += (
            b'{"id":%d,"symbol":"T%02d","bid":%.2f,"ask":%.2f,"size":%d,"time":"2025-01-01T12:%02d:%02d.%03dZ"},'
        ) % (
            number * 104729,
            number * 31 % 97,
            bid,
            bid + number * 13 % 7 / 100,
            number * 37 % 40 * 100,
            number // 60 % 60,
            number % 60,
            number * 617 % 1000,
        )
    raise AssertionError("it counts for ever")


def deflated(data: bytes) -> bytes:
    """Compress a message as if it were the first of its connection."""
    compress = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return (compress.compress(data) + compress.flush(zlib.Z_SYNC_FLUSH)).removesuffix(FLUSH)


def inflated(data: bytes) -> bytes:
    """Undo ``deflated``."""
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(data + FLUSH)


def frame(opcode: int, data: bytes, *, compressed: bool = False) -> bytes:
    """One masked frame."""
    if len(data) < 126:
        length = bytes([MASKED | len(data)])
    elif len(data) < 1 << 16:
        length = bytes([MASKED | 126]) + len(data).to_bytes(2, "big")
    else:
        length = bytes([MASKED | 127]) + len(data).to_bytes(8, "big")
    mask = (MASK * (len(data) // len(MASK) + 1))[: len(data)]
    masked = int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")
    first = FINAL | (COMPRESSED if compressed else 0) | opcode
    return bytes([first]) + length + MASK + masked.to_bytes(len(data), "big")


def read_head(data: bytes, at: int) -> Head | None:
    """Read the head of the frame that begins at this index, or return None if it is not there completely."""
    available = len(data) - at
    if available < 2:
        return None
    first, length = data[at], data[at + 1]
    extended = {126: 2, 127: 8}.get(length, 0)
    start = at + 2 + extended
    if available < 2 + extended:
        return None
    if length & MASKED:
        raise ProtocolError("a server's frame is masked")
    if extended:
        length = int.from_bytes(data[at + 2 : start], "big")
    return Head(first & 0x0F, bool(first & FINAL), bool(first & COMPRESSED), start, start + length)


def opening(host: str, *, deflate: bool) -> bytes:
    """The client's half of the handshake."""
    lines = [
        "GET / HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Key: {KEY.decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    if deflate:
        lines.append(f"Sec-WebSocket-Extensions: {DEFLATE}")
    return "\r\n".join([*lines, "", ""]).encode()


def check_answer(answer: bytes, *, deflate: bool) -> None:
    """Raise ProtocolError unless the server accepted exactly what was offered."""
    status, *lines = answer.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accept = base64.b64encode(hashlib.sha1(KEY + GUID, usedforsecurity=False).digest()).decode()
    if not status.startswith("HTTP/1.1 101") or fields.get("sec-websocket-accept") != accept:
        raise ProtocolError(f"the server does not accept WebSockets: {status}")
    extensions = fields.get("sec-websocket-extensions", "")
    if deflate and not ("permessage-deflate" in extensions and "server_no_context_takeover" in extensions):
        raise ProtocolError(f"the server does not accept permessage-deflate as offered: {extensions!r}")
    if extensions and not deflate:
        raise ProtocolError(f"the server accepts extensions that nobody offered: {extensions!r}")
