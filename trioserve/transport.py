"""What carries bytes to and from a client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

import trio

READ_AHEAD = 64 * 1024
"""Bytes that may wait unread, or unsent, in a transport."""

# Messages and chunks of 64 KiB are common, and their heads come in front: to read one at once costs a third less than
# in two reads.
READ_AT_ONCE = READ_AHEAD + 64
"""Bytes that are read from a socket at a time."""


PARTS_FROM = 16 * 1024
"""Bytes from which it is cheaper to hand over the parts of a message than to join them.

Head, 64 KiB and the end of a chunk over loopback: 11 µs instead of 64 for two copies; a head and 64 KiB: no worse. What
is small is better joined: each part costs the kernel a look.
"""


class Wake(Enum):
    """Why a wait for bytes ended without any."""

    DEADLINE = auto()
    DRAIN = auto()
    ENDED = auto()  # the exchange that waits for its body has ended


@dataclass(frozen=True, slots=True)
class FilePiece:
    """``count`` bytes of an open descriptor from ``offset``, with what frames them."""

    before: bytes
    file: int
    offset: int
    count: int
    after: bytes


class Channel(Protocol):
    """Bytes both ways, with one reader that can be woken with a reason, and which knows at once that its peer has left.

    A connection's Transport is one; what an exchange becomes when it switches protocols is another, or the same.
    """

    has_waited: bool
    """Set by a receive that suspended its task; whoever wants to know clears it before."""

    def tell(self, *, left: Callable[[], None], unread: Callable[[], None]) -> None:
        """Call ``left`` once, when the peer has left, and ``unread`` when bytes come for which nobody waits.

        In whichever task notices it; both must not wait. For one owner of the connection at a time.
        """
        ...

    @property
    def has_left(self) -> bool:
        """The peer has closed its side, or the connection is lost. Bytes may still wait to be received."""
        ...

    @property
    def has_unread(self) -> bool:
        """A receive may find something without waiting."""
        ...

    @property
    def is_broken(self) -> bool:
        """Nothing can be sent any more."""
        ...

    @property
    def has_stalled(self) -> bool:
        """It is broken because the peer took nothing for too long."""
        ...

    async def receive(self, deadline: float) -> bytes | Wake:
        """Return what has arrived, ``b""`` after the last byte, or why the wait ended before any.

        Does not wait, and makes no checkpoint, if something is there. One task at a time. ``deadline`` is on Trio's
        clock.
        """
        ...

    def receive_nowait(self) -> bytes | None:
        """As receive, but None where that would wait. Not while a task waits in receive."""
        ...

    async def send(self, data: bytes, stall: float) -> None:
        """Send all of it, whether this waits for that or not; ``stall`` is how long the peer may take nothing.

        Several tasks may send: pieces keep their order. Raises ClientDisconnected when the peer is gone or stalled.
        """
        ...

    def send_nowait(self, data: bytes, stall: float) -> None:
        """As send, but wait for nothing. Only after write_in. Whoever sends much waits for room before."""
        ...

    async def wait_room(self) -> None:
        """Wait until less than READ_AHEAD is unsent. Raises ClientDisconnected."""
        ...

    @property
    def is_congested(self) -> bool:
        """More than READ_AHEAD is unsent, so that wait_room would wait."""
        ...

    def write_in(self, nursery: trio.Nursery | None) -> None:
        """Let tasks of this nursery write what is sent, where that is needed for a send that is cancelled to lose
        nothing. They go on even if the nursery is cancelled, until this is called with None: then each task writes what
        it sends, which is cheaper; cut, it leaves the channel broken.
        """
        ...

    async def flush(self) -> None:
        """Wait until the peer's side has taken all that was sent. Raises ClientDisconnected."""
        ...

    def wake(self, reason: Wake) -> None:
        """End the reader's wait with this reason, and every wait_left."""
        ...

    async def send_eof(self) -> None:
        """Say that no more will be sent, where the stream can; never raises."""
        ...

    async def aclose(self, *, reset: bool = False) -> None:
        """Close within a second, whatever the peer does; with ``reset`` in a way it cannot mistake for an end."""
        ...


class Transport(Channel, Protocol):
    """What carries a connection."""

    async def send_parts(self, parts: Sequence[bytes], stall: float, more: bool) -> None:
        """As send of these few joined, without the copy that joining makes where the kernel can do without.

        Worth it from PARTS_FROM bytes on. Nobody may change the parts any more. ``more``: others will follow, so that
        these may be held back until the task waits, to go out together.
        """
        ...

    @property
    def can_send_files(self) -> bool: ...

    async def send_file(self, piece: FilePiece, stall: float) -> None:
        """As send, and returns when all of it is sent. Raises EOFError if the file is shorter than said."""
        ...

    async def lose(self) -> None:
        """As if the network had failed: whoever uses this learns that the peer has left, and the peer that we have."""
        ...

    async def wait_left(self) -> None:
        """Wait until the peer has left or ``wake`` was called; whoever waits looks again. Any number may wait."""
        ...
