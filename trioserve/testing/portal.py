"""From any thread into the event loop of a server, with a deadline for everything."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

import trio

from .stuck import ServerStuckError

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that the event loop may take to do what has no deadline of its own."""


class Portal:
    """Runs functions in the event loop in which it was made; ``nursery`` owns their tasks."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._root = trio.lowlevel.current_root_task()
        self._thread = threading.current_thread()

    @property
    def is_inside(self) -> bool:
        """Whether this is the event loop's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
        """Run an async function in the event loop and return what it returns, or raise what it raises.

        After ``patience`` seconds it is cancelled, and this raises ServerStuckError.
        """
        self.refuse_inside()
        result: Future[T] = Future()
        scope = trio.CancelScope()
        self._start(self._resolve, result, function, result, scope)
        return self._wait(result, patience, scope)

    @contextmanager
    def hold(self, manager: AbstractAsyncContextManager[T], *, patience: float = PATIENCE) -> Iterator[T]:
        """Keep an async context manager open, in a task of the event loop, for as long as this block."""
        self.refuse_inside()
        opened: Future[T] = Future()
        closed: Future[None] = Future()
        closing = trio.Event()
        scope = trio.CancelScope()

        async def keep() -> None:
            async with manager as value:
                opened.set_result(value)
                await closing.wait()

        async def run() -> None:
            try:
                await self._resolve(keep, closed, scope)
            finally:
                if not opened.done():
                    error = None if closed.cancelled() else closed.exception()
                    opened.set_exception(error if error is not None else CancelledError())

        self._start(run, opened)
        value = self._wait(opened, patience, scope)
        try:
            yield value
        except BaseException:
            with contextlib.suppress(Exception):  # what happened in the block matters more
                self._close(closing, closed, patience, scope)
            raise
        self._close(closing, closed, patience, scope)

    def _close(self, closing: trio.Event, closed: Future[None], patience: float, scope: trio.CancelScope) -> None:
        if not closed.done():
            self.tell(closing.set)
        # The server may have ended meanwhile, and with it the task.
        if not closed.cancelled():
            self._wait(closed, patience, scope)

    def tell(self, function: Callable[[], object]) -> None:
        """Run a function in the event loop soon; nothing happens if that has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def refuse_inside(self) -> None:
        """Raise RuntimeError if this is the event loop's own thread."""
        if self.is_inside:
            raise RuntimeError("this waits for the server, so it cannot be called in the server's own thread")

    def _start(self, function: Callable[..., Awaitable[None]], result: Future[T], *arguments: object) -> None:
        def start() -> None:
            try:
                self._nursery.start_soon(function, *arguments)
            except RuntimeError:  # the nursery has closed
                result.cancel()

        try:
            self._token.run_sync_soon(start)
        except trio.RunFinishedError:
            result.cancel()

    async def _resolve(self, function: Callable[[], Awaitable[T]], result: Future[T], scope: trio.CancelScope) -> None:
        try:
            with scope:
                result.set_result(await function())
        except trio.Cancelled:
            result.cancel()
            raise
        except BaseException as error:  # it is raised where the result is waited for
            result.set_exception(error)
        else:
            if scope.cancelled_caught:
                result.cancel()

    def _wait(self, result: Future[T], patience: float, scope: trio.CancelScope) -> T:
        try:
            return result.result(min(patience, threading.TIMEOUT_MAX))
        except CancelledError:
            raise RuntimeError("the server has ended") from None
        except TimeoutError:
            if result.done():  # its own
                raise
            what = f"the server's event loop has not done in {patience:g} s what it was asked for"
            stuck = ServerStuckError.of(what, self._root, with_threads=True)
            self.tell(scope.cancel)
            raise stuck from None
        except BaseException:
            self.tell(scope.cancel)  # Ctrl-C
            raise
