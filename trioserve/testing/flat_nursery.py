"""A nursery out of which errors come as they were raised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_flat_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled at the end of its block.

    What the block raises comes out bare, so that ``pytest.raises`` and a failing ``assert`` work across it; else what
    one of its tasks raises, bare if it is the only one.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:  # raised again below
                raised = error
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Cancelled: by the nursery, because of what the group holds.
        if raised is None or isinstance(raised, trio.Cancelled):
            raised = group.exceptions[0] if len(group.exceptions) == 1 else group
    try:
        if raised is not None:
            raise raised
    finally:
        raised = None  # else the error's trace, this frame and the error would keep each other alive
