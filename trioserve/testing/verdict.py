"""What becomes of the errors of an application under test."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from ..errors import TrioserveError
from ..process.loader import user_traceback
from .witness import Witness, add_note

E = TypeVar("E", bound=BaseException)


def raise_errors(errors: Sequence[BaseException]) -> None:
    """Raise what an application raised, its trace cut to its own frames; several as a group."""
    __tracebackhide__ = True
    if errors:
        bare = [_tame(trim(error)) for error in errors]
        raise bare[0] if len(bare) == 1 else BaseExceptionGroup(f"{len(bare)} errors in the application", bare)


@contextmanager
def tell_errors(witness: Witness) -> Iterator[None]:
    """Add what the application raised to an error that leaves the block, which it may well explain."""
    try:
        yield
    except (trio.Cancelled, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # pytest.fail() raises one that is no Exception
        for one in witness.take_errors():
            if one is not error:
                add_note(error, describe_errors([one]))
        raise


def describe_errors(errors: Sequence[BaseException]) -> str:
    """The errors with their traces, as Python prints them."""
    return "\n".join("".join(traceback.format_exception(trim(error))).rstrip() for error in errors)


def _tame(error: BaseException) -> BaseException:
    """An error that can be raised in a test: SystemExit would end the program that runs it."""
    if isinstance(error, Exception | BaseExceptionGroup):
        return error
    # Not str(), which an exception of the application's may not survive.
    what = "".join(traceback.format_exception_only(type(error), error)).splitlines()[0]
    failure = TrioserveError(f"the application raised {what}")
    failure.__cause__ = error
    return failure


def strip(failure: E) -> E:
    """Take the server's frames out of why a server has failed, to show only those of the test and the application."""
    if isinstance(failure, TrioserveError):
        if failure.__cause__ is not None:
            trim(failure.__cause__)
        return failure.with_traceback(None)
    return failure


def trim(error: BaseException) -> BaseException:
    """Cut the server's frames from the beginning of an error's trace; all of it, if the error is the server's."""
    if isinstance(error, TrioserveError):
        return strip(error)
    return error.with_traceback(user_traceback(error.__traceback__))
