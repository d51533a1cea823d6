"""A server under test in a thread of its own, for tests of any style."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
import trio.testing

from ..logs import WebSocketRecord
from ..net.binding import bind_all_now
from ..net.listeners import Listener
from ..server import Server
from ..types import AnyValue, ASGIApp
from .flat_nursery import open_flat_nursery
from .location import Location
from .portal import PATIENCE, Portal
from .preparation import Preparation, prepare
from .stuck import ServerStuckError
from .thread_clients import ThreadClients
from .trio_server import TrioServer
from .verdict import raise_errors, strip, tell_errors
from .witness import FinishedRequest, Witness, add_note

if TYPE_CHECKING:
    from .authority import Authority

_MARGIN = 3.0
"""Seconds that the thread may take beyond all deadlines of the server that it runs."""

_QUIET = 1.0
"""Seconds that a look at what has happened waits for a busy server to come to rest."""


class ThreadServer(ThreadClients):
    """A running server, and clients for it. Made by running(); its methods block, and may be called in any thread."""

    def __init__(self, preparation: Preparation, bound: list[Listener]) -> None:
        super().__init__(TrioServer(preparation, Witness()))
        self._inner.on_hopeless = self._give_up
        self._preparation = preparation
        self._bound = bound
        self._thread = threading.Thread(target=self._main, name="trioserve.testing", daemon=True)
        self._settled = threading.Event()  # started, or failed to
        self._ended = threading.Event()
        self._is_over = threading.Event()  # it has ended, or never will
        self._failure: BaseException | None = None
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._root: trio.lowlevel.Task | None = None
        self._portal: Portal | None = None
        self._stop_asked: trio.Event | None = None
        self._is_abandoned = False
        self._settled_at = 0
        self._quiet = _QUIET

    def __repr__(self) -> str:
        return repr(self._inner).replace(type(self._inner).__name__, type(self).__name__)

    # What it is

    @property
    def server(self) -> Server:
        return self._inner.server

    @property
    def location(self) -> Location:
        return self._inner.location

    @property
    def ca(self) -> Authority | None:
        return self._inner.ca

    # What has happened

    @property
    def witness(self) -> Witness:
        return self._inner.witness

    @property
    def requests(self) -> list[FinishedRequest]:
        """Requests that have ended, in that order; may be emptied.

        Once a client has its whole answer, its request is here.
        """
        self.settle()
        return self.witness.requests

    @property
    def websockets(self) -> list[WebSocketRecord]:
        """WebSockets that have closed, in that order; may be emptied."""
        self.settle()
        return self.witness.websockets

    @property
    def errors(self) -> list[BaseException]:
        """What the application raised. Take out what was to be expected: what is left fails the test."""
        self.settle()
        return self.witness.errors

    @property
    def active(self) -> int:
        """Requests, WebSockets too, whose handler is still running."""
        self.settle()
        return self._inner.active

    def wait_idle(self, timeout: float = 5) -> None:
        """Wait until no handler is running; raises TimeoutError, which names those that are, after so many seconds."""
        if not self._ended.is_set():
            self._loop.call(partial(self._inner.wait_idle, timeout), patience=timeout + PATIENCE)

    @property
    def is_running(self) -> bool:
        """False once it has ended, or was given up."""
        return not (self._ended.is_set() or self._is_abandoned)

    @property
    def has_news(self) -> bool:
        """Requests have begun since settle was last called, or are going on."""
        return self.is_running and (self._inner.active > 0 or self.witness.begun != self._settled_at)

    def take_failure(self) -> BaseException | None:
        """Why it has ended by itself, once; None if it has not."""
        if not self._ended.is_set():
            return None
        failure, self._failure = self._failure, None
        return failure

    def settle(self) -> None:
        """Let the server do what it can do at once: an answer reaches its client a moment before it is on record.

        Waits no longer than a second or two for one that is busy, or blocked.
        """
        if not self.is_running or self._loop.is_inside:
            return
        self._settled_at = self.witness.begun
        is_quiet = False
        with contextlib.suppress(ServerStuckError, RuntimeError):
            is_quiet = self._loop.call(partial(_wait_quiet, self._quiet), patience=self._quiet + 0.5)
        # One that never comes to rest is not waited for so long again.
        self._quiet = _QUIET if is_quiet else _QUIET / 50

    # What can be done to it

    def shutdown(self, grace: float | None = None) -> None:
        """Stop the server, and wait until it has ended; it may be called again.

        ``grace``: seconds that running requests may still take; None: ``timeout_graceful_shutdown``, which is 1 here.
        Raises LifespanError if the application could not shut down, ServerStuckError if the server does not end.
        """
        __tracebackhide__ = True
        self._stop(grace)
        self._raise_failure()

    def drop_connections(self) -> None:
        """Lose every open connection at once, as a network that fails does. New ones are accepted."""
        self._loop.call(self._inner.drop_connections)

    # Its life

    def abandon(self) -> None:
        """Cancel the server, and wait no longer than a moment for its end; raises nothing."""
        self._abandon(KeyboardInterrupt())
        self._release()

    @property
    def _loop(self) -> Portal:
        if self._portal is None:
            raise RuntimeError("the server has not started")
        return self._portal

    @classmethod
    def start(cls, app: ASGIApp | str, *, tls: bool = False, **options: AnyValue) -> ThreadServer:
        """As running, but whoever calls this calls shutdown, and asks the witness for errors."""
        __tracebackhide__ = True
        preparation = prepare(app, tls=tls, options=options)
        try:
            server = cls(preparation, bind_all_now(preparation.config))
            server._start()
        except BaseException:
            preparation.resources.close()
            raise
        return server

    def _start(self) -> None:
        __tracebackhide__ = True
        # TrioServer has a deadline for what does not block the loop.
        config = self._preparation.config
        seconds = config.timeout_startup + config.timeout_hard_shutdown + 2 * _MARGIN
        try:
            self._thread.start()
            if not self._settled.wait(_finite(seconds)):
                what = f"the server has not started, as its event loop is blocked, after {seconds:g} s"
                raise ServerStuckError.of(what, self._root, with_threads=True)
        except BaseException as error:
            if self._thread.ident is None:  # nor will there be a thread that closes them
                self._close_bound()
            self._abandon(error)
            raise
        if self._is_over.is_set():
            self._stop(0)
            self._raise_failure()

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except BaseException as error:  # it is raised in the test
            self._failure = self._failure or error
        finally:
            self._close_bound()

    def _close_bound(self) -> None:
        for one in self._bound:
            one.close()
        self._ended.set()
        self._is_over.set()
        self._settled.set()

    async def _run(self) -> None:
        self._root = trio.lowlevel.current_root_task()
        self._stop_asked = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        if self._is_abandoned:
            return
        with self._scope:
            # Clients that are still there see how the server stops.
            async with open_flat_nursery() as clients, self._inner.run(bound=self._bound):
                self._portal = Portal(clients)
                self._settled.set()
                await self._stop_asked.wait()

    def _tell(self, function: Callable[[], object]) -> None:
        """Run a function in the event loop soon, if there is one."""
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function)

    def _stop(self, grace: float | None) -> None:
        if self._portal is not None and self._portal.is_inside:
            raise RuntimeError("a server cannot wait for its own end")
        if self._is_abandoned:
            return
        self._tell(partial(self._ask_to_stop, grace))
        seconds = self._inner.seconds_to_end(grace) + _MARGIN
        try:
            if not self._is_over.wait(_finite(seconds)):
                what = f"the server's thread has not ended {seconds:g} s after it was told to stop"
                raise ServerStuckError.of(what, self._root, with_threads=True)
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self._release()
        if self._ended.is_set():
            self._thread.join()
        else:
            self._is_abandoned = True

    def _give_up(self, stuck: ServerStuckError) -> None:
        """In the event loop: it cannot be ended, so nobody should wait for that."""
        self._failure = stuck
        self._is_over.set()
        self._settled.set()

    def _release(self) -> None:
        self._close_clients()
        self._preparation.resources.close()

    def _ask_to_stop(self, grace: float | None) -> None:
        """In the event loop: begin to stop, or stop sooner."""
        assert self._stop_asked is not None  # the loop runs
        if not self._stop_asked.is_set():
            self._inner.grace = grace
            self._stop_asked.set()
        elif grace is not None and self._portal is not None:
            self.server.shutdown(grace)

    def _abandon(self, error: BaseException) -> None:
        """Do not wait any longer, or only a moment if it is not the server's fault: at Ctrl-C."""
        self._is_abandoned = True
        self._tell(self._scope.cancel)
        if not isinstance(error, ServerStuckError):
            self._ended.wait(_MARGIN)

    def _stop_after(self, error: BaseException) -> None:
        """Stop for an error, and add to it what is wrong with the server."""
        try:
            self._stop(0)
        except ServerStuckError as stuck:
            add_note(error, str(stuck))
        if self._failure is not None:
            add_note(error, str(self._failure))

    def _raise_failure(self) -> None:
        __tracebackhide__ = True
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise strip(failure)
        finally:
            failure = None


def _finite(seconds: float) -> float:
    return min(seconds, threading.TIMEOUT_MAX)


async def _wait_quiet(seconds: float) -> bool:
    """Wait until nothing can go on in this event loop; False if that takes too long."""
    with trio.move_on_after(seconds):
        await trio.testing.wait_all_tasks_blocked()
        return True
    return False


@contextmanager
def running(
    app: ASGIApp | str, *, tls: bool = False, allow_errors: bool = False, **options: AnyValue
) -> Iterator[ThreadServer]:
    """Serve an application, in a thread of its own, for as long as the block.

    ``app``: an ASGI application, or "module:attribute". ``tls``: with a certificate made for this server.
    ``options`` are fields of Config; the port is chosen by the system, and stops are shorter, if they say nothing.

    Raises what keeps the server from starting: AppLoadError, BindError, ConfigError or LifespanError. At the end it
    raises what the application raised in requests, unless the block raised, or ``allow_errors``; ServerStuckError if
    the server does not end.
    """
    __tracebackhide__ = True
    server = ThreadServer.start(app, tls=tls, **options)
    with tell_errors(server.witness):
        try:
            yield server
        except BaseException as error:
            server._stop_after(error)
            raise
        server.shutdown()
    if not allow_errors:
        raise_errors(server.witness.take_errors())
