"""The exit codes, and what is said when a process ends with one of them."""

from __future__ import annotations

import logging

from ..errors import AppLoadError, LifespanError, TrioserveError
from ..foreign_loop import tell_of_asyncio
from ..logs import server_log
from .loader import user_traceback

EXIT_DRAINED = 0
EXIT_CRASHED = 1
EXIT_WRONG_USAGE = 2
EXIT_CANNOT_START = 3


def report_failure(error: TrioserveError, code: int) -> int:
    """Log why the process ends, with a trace only where the application raised; return the code it ends with."""
    cause = error.__cause__ if isinstance(error, AppLoadError | LifespanError) else None
    trace = None if cause is None else user_traceback(cause.__traceback__)
    # A module with a syntax error has no frame of its own, and is the user's all the same.
    is_users = cause is not None and (trace is not None or isinstance(error, AppLoadError))
    exc_info = (type(cause), cause, trace) if cause is not None and is_users else None
    server_log.log(logging.CRITICAL, "%s", error, exc_info=exc_info)
    tell_of_asyncio(error)
    return code
