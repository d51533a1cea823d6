"""permessage-deflate (RFC 7692), with a bound on what a message may inflate to."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

NAME = "permessage-deflate"

# A window of 4 KiB and the smaller of zlib's state tables: 64 KiB for each open WebSocket instead of 320, at nearly the
# same compression for messages of usual size.
WINDOW_BITS = 12
MEMORY_LEVEL = 5

# RFC 7692 §7.2.1: each message is flushed, and these bytes at its end are left out.
_TAIL = b"\x00\x00\xff\xff"

MAX_STREAMS = 64
"""Ends of a stream within a message; each costs as much as a frame, and fits into two bytes."""

_RAW_BITS_LEAST = 9  # zlib cannot write a raw stream with a window of 256 bytes


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides have agreed on."""

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_window_bits: int = WINDOW_BITS
    client_window_bits: int = 15
    names_client_window: bool = False

    @property
    def field(self) -> bytes:
        """The value of Sec-WebSocket-Extensions."""
        parts = [NAME]
        if self.server_no_context_takeover:
            parts.append("server_no_context_takeover")
        if self.client_no_context_takeover:
            parts.append("client_no_context_takeover")
        parts.append(f"server_max_window_bits={self.server_window_bits}")
        if self.names_client_window:
            parts.append(f"client_max_window_bits={self.client_window_bits}")
        return "; ".join(parts).encode("ascii")


def negotiate(offers: str) -> Agreement | None:
    """Choose the first offer that we can take; None if there is none. Source: RFC 7692 §5, §7.1."""
    for offer in offers.split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if name == NAME:
            agreement = _read_parameters(parameters)
            if agreement is not None:
                return agreement
    return None


def _read_parameters(parameters: list[str]) -> Agreement | None:
    """None for an offer that MUST be declined: unknown, repeated or impossible parameters (RFC 7692 §7.1)."""
    values: dict[str, str | None] = {}
    for parameter in parameters:
        key, equals, value = (part.strip() for part in parameter.partition("="))
        if key in values:
            return None
        values[key] = value.strip('"') if equals else None
    server_bits = _read_bits(values, "server_max_window_bits", bare=None)
    client_bits = _read_bits(values, "client_max_window_bits", bare=15)
    switches = ("server_no_context_takeover", "client_no_context_takeover")
    known = {*switches, "server_max_window_bits", "client_max_window_bits"}
    if server_bits is None or client_bits is None or server_bits < _RAW_BITS_LEAST or values.keys() - known:
        return None
    if any(values.get(switch) is not None for switch in switches):
        return None
    names_client_window = "client_max_window_bits" in values
    return Agreement(
        server_no_context_takeover="server_no_context_takeover" in values,
        client_no_context_takeover="client_no_context_takeover" in values,
        server_window_bits=min(server_bits, WINDOW_BITS),
        # Only a client that names the parameter can be told to use less.
        client_window_bits=min(client_bits, WINDOW_BITS) if names_client_window else 15,
        names_client_window=names_client_window,
    )


def _read_bits(values: dict[str, str | None], key: str, *, bare: int | None) -> int | None:
    """Return 8 to 15; 15 if the parameter is absent, ``bare`` if it has no value, None if that is not a window."""
    if key not in values:
        return 15
    text = values[key]
    if text is None:
        return bare
    return int(text) if text in {"8", "9", "10", "11", "12", "13", "14", "15"} else None


class BoundedDeflate(Extension):
    """wsproto's side of permessage-deflate, as agreed. A message that inflates to more than ``limit`` fails (1009).

    wsproto's own inflates first and lets others count afterwards: 100 KiB can make 100 MiB.
    """

    name = NAME

    def __init__(self, agreement: Agreement, limit: int) -> None:
        self._agreement = agreement
        self._limit = limit
        self._is_compressed = False  # the message that is coming in
        self._in_message = False  # it has begun and is not complete
        self._is_foreign = False  # the frame that is coming in is no part of it
        self._discards = self._skips = False
        self._inflated = self._streams = 0  # of that message
        self._decompressor: zlib._Decompress | None = self._new_decompressor()
        self._compressor: zlib._Compress | None = None  # made late: many a WebSocket only listens

    def _new_decompressor(self) -> zlib._Decompress:
        # zlib's raw inflate takes what was written with any smaller window; it cannot be told 8.
        return zlib.decompressobj(-max(self._agreement.client_window_bits, _RAW_BITS_LEAST))

    def _new_compressor(self) -> zlib._Compress:
        bits = -self._agreement.server_window_bits
        return zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, bits, MEMORY_LEVEL)

    def enabled(self) -> bool:
        return True

    def offer(self) -> str:
        raise NotImplementedError  # a client's; asked for by the abstract base

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        # May be called again for the same frame, if its mask has not come yet.
        begins = opcode in (Opcode.TEXT, Opcode.BINARY)
        # wsproto refuses a fragment that is out of place once it has some of it, which is not to be inflated before.
        self._is_foreign = opcode.iscontrol() or begins is self._in_message
        if begins and not self._in_message:
            self._is_compressed, self._skips = rsv.rsv1, self._discards
            self._inflated = self._streams = 0
        elif rsv.rsv1:
            return CloseReason.PROTOCOL_ERROR  # RFC 7692 §6: only the first frame of a message has the bit
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        if self._is_foreign or not self._is_compressed:
            return data
        return b"" if self._skips else self._inflate(data)

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:
        if self._is_foreign:
            return None
        self._in_message = not fin
        if not fin or not self._is_compressed or self._skips:
            return None
        data = self._inflate(_TAIL)
        if self._agreement.client_no_context_takeover:
            self._decompressor = self._new_decompressor()
        return data

    def discard_messages(self) -> None:
        """Inflate no message that has not begun: nobody wants it any more."""
        self._discards = True

    def release(self) -> None:
        """Give back the memory of both directions."""
        self._discards = self._skips = True
        self._compressor = self._decompressor = None

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        pieces = []
        try:
            while True:
                assert self._decompressor is not None  # released only when nothing more is read
                piece = self._decompressor.decompress(data, self._limit - self._inflated + 1)
                self._inflated += len(piece)
                pieces.append(piece)
                if self._inflated > self._limit:
                    return CloseReason.MESSAGE_TOO_BIG
                # RFC 7692 §7.2.3.4: a sender may end its stream within a message; the next bytes begin another.
                data = self._decompressor.unused_data
                if self._decompressor.eof:
                    self._decompressor = self._new_decompressor()
                    self._streams += 1
                    if self._streams > MAX_STREAMS:
                        return CloseReason.INVALID_FRAME_PAYLOAD_DATA
                if not data:
                    return b"".join(pieces)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA

    def frame_outbound(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, data: bytes, fin: bool
    ) -> tuple[RsvBits, bytes]:
        # Messages go out in one frame each.
        if opcode.iscontrol():
            return rsv, data
        if self._compressor is None:
            self._compressor = self._new_compressor()
        deflated = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if self._agreement.server_no_context_takeover:
            self._compressor = None
        return RsvBits(True, rsv.rsv2, rsv.rsv3), deflated[: -len(_TAIL)]
