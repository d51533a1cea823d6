"""The rest of a request body that the application has not read, which stands before the next request."""

from __future__ import annotations

import trio

from ..errors import ProtocolError
from ..transport import Transport, Wake
from .codec import Codec

# Unread request body that is swallowed to keep a connection: most of it sits in the kernel already, and reading it
# costs less than the client's next TLS handshake.
DISCARD_LIMIT = 64 * 1024
DISCARD_PATIENCE = 1.0

# What a piece counts that took so long to read that others had to have their turn: tiny chunks cost far more than their
# bytes.
_MUCH = DISCARD_LIMIT // 8


async def discard_body(codec: Codec, transport: Transport) -> bool:
    """Swallow the rest of a request body; False if it is too much, or does not come."""
    left = DISCARD_LIMIT
    deadline = trio.current_time() + DISCARD_PATIENCE
    try:
        while not codec.body_read and trio.current_time() < deadline:
            piece = codec.next_body()
            if piece is not None:
                left -= max(len(piece[0]), _MUCH if codec.was_much else 0)
                if left < 0:
                    return False
                if codec.was_much:
                    await trio.lowlevel.checkpoint()
                continue
            came = await transport.receive(deadline)
            if isinstance(came, bytes) and came:
                codec.feed(came)
            elif came is not Wake.DRAIN:
                return False
    except ProtocolError:
        return False
    return codec.body_read
