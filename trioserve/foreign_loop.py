"""Tells an application that needs asyncio's event loop that it runs on Trio, and what to do."""

from __future__ import annotations

import functools
import logging

from .errors import LifespanError

_HINT = (
    "the application needs asyncio, and runs on Trio: use anyio or a library for Trio in its place, or open a "
    "trio-asyncio loop in the lifespan and call it through aio_as_trio (README, 'When your application needs asyncio')"
)


def tell_of_asyncio(error: BaseException | None) -> None:
    """Log one line, once per process, if this error of the application's is a complaint that there is no asyncio."""
    if needs_asyncio(error):
        _tell_once()


def needs_asyncio(error: BaseException | None) -> bool:
    """Whether the error, one of its group or one behind it complains that Trio is not asyncio."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if _complains(one):
            return True
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return False


@functools.cache
def _tell_once() -> None:
    logging.getLogger("trioserve").error(_HINT)


def _complains(error: BaseException) -> bool:
    # Exactly these classes: one of the application's own may run code of its own when it is asked for its text.
    # LifespanError: Quart catches what is raised and says it in words.
    text = str(error) if type(error) in (RuntimeError, TypeError, LifespanError) else ""
    if type(error) is AttributeError:
        # asyncio's locks, events and queues use the loop without a look whether there is one.
        return _innermost_module(error).startswith("asyncio.")
    return (
        "no running event loop" in text
        or "no current event loop" in text
        or text.startswith("trio.run received unrecognized yield message")
    )


def _innermost_module(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__"))
