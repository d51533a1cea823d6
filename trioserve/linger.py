"""Closing in a way that lets the client read the last thing it was told."""

from __future__ import annotations

import trio

from .errors import ClientDisconnected
from .transport import Channel, Wake

# A client that is still sending would be reset by a close before it has read the answer (RFC 9112 §9.6). What it sends
# meanwhile is thrown away, for this long.
PATIENCE = 2.0


async def linger(channel: Channel) -> None:
    """Say that nothing more will come, and throw away what the client sends until it closes too."""
    try:
        await channel.flush()
    except ClientDisconnected:
        return
    await channel.send_eof()
    deadline = trio.current_time() + PATIENCE
    came: bytes | Wake = Wake.DRAIN
    while came and came is not Wake.DEADLINE and trio.current_time() < deadline:
        came = await channel.receive(deadline)
