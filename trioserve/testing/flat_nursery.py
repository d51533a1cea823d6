"""A nursery out of which errors come as they were raised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

import trio


@asynccontextmanager
async def open_flat_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled at the end of its block.

    What the block raises comes out bare, so that ``pytest.raises`` and a failing ``assert`` work across it; else what
    one of its tasks raises, bare if it is the only one. A KeyboardInterrupt always comes out bare.
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
        if raised is None or isinstance(raised, trio.Cancelled) or group.subgroup(KeyboardInterrupt) is not None:
            raised = _unwrap(group)
    # Cancelled by its own scope, and not from outside: as with any nursery, that ends here.
    if isinstance(raised, trio.Cancelled) and trio.current_effective_deadline() != -inf:
        raised = None
    if raised is None:
        return
    context = raised.__context__
    try:
        raise raised
    finally:
        # Raising sets it to the Cancelled of a block that was cancelled because of this very error.
        raised.__context__ = context
        raised = context = None  # else the error's trace, this frame and the error would keep each other alive


def _unwrap(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to raise in the place of a nursery's group."""
    interrupts = group.subgroup(KeyboardInterrupt)
    if interrupts is not None:
        return _first_of(interrupts)
    _, errors = group.split(trio.Cancelled)
    if errors is None:
        return _first_of(group)
    return errors.exceptions[0] if len(errors.exceptions) == 1 else errors


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
