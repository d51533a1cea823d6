"""A server under test in the caller's own Trio loop."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from ..exchange import Address
from ..inspector import format_task_tree
from ..logs import WebSocketRecord
from ..net.binding import bind_all
from ..net.listeners import Listener
from ..net.tls import build_client_context
from ..server import Server, serve_observed
from ..types import AnyValue, ASGIApp
from .flat_nursery import open_flat_nursery
from .location import Location, connect_to
from .preparation import Preparation, prepare
from .stuck import ServerStuckError, break_shields
from .trio_clients import HANDSHAKE_PATIENCE, TrioClients
from .verdict import raise_errors, strip, tell_errors
from .witness import FinishedRequest, Witness, add_note

if TYPE_CHECKING:
    from .authority import Authority

_TEARDOWN_MARGIN = 1.0
"""Seconds beyond all of the server's own deadlines after which it is stuck."""

_QUIET = 1.0
"""Seconds that a program may take to come to rest before something is done to its server."""

LAST_WORDS = (
    "Trio waits for the above for ever. Only the end of the process helps. A server in a thread (serve_app, running) "
    "would fail its test instead, and pytest-timeout ends this one."
)

_LATE = 0.9
"""The part of ``timeout_startup`` after which a start-up is looked at."""


class TrioServer(TrioClients):
    """A running server, and clients for it. Made by open_server; all that waits must be called in its Trio loop.

    In one loop a client can have its answer before the server's task has run on: ``await server.wait_idle()`` before
    you look at ``requests`` or ``errors``.
    """

    def __init__(self, preparation: Preparation, witness: Witness) -> None:
        super().__init__(witness)
        self.grace: float | None = None
        """Seconds that running requests get at the end of ``run``; None: what the options say."""
        self.on_hopeless: Callable[[ServerStuckError], None] = _print_last_words
        """Called if a handler lives on after every cancellation, or in a thread: then this loop cannot end either."""
        self._preparation = preparation
        self._server: Server | None = None
        self._task: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._body = trio.CancelScope()
        self._settled = trio.Event()  # started, or failed to
        self._ended = trio.Event()
        self._is_stopping = self._is_hopeless = False
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        where = "not started" if self._server is None else self.unix_path or self.url
        return f"<{type(self).__name__} {where}>"

    # What it is

    @property
    def server(self) -> Server:
        assert self._server is not None  # nobody gets hold of this before the start
        return self._server

    @property
    def location(self) -> Location:
        return Location.of(self.server.addresses[0], uses_tls=self._preparation.config.uses_tls)

    @property
    def ca(self) -> Authority | None:
        return self._preparation.authority

    # What has happened

    @property
    def requests(self) -> list[FinishedRequest]:
        """Requests that have ended, in that order; may be emptied."""
        return self.witness.requests

    @property
    def websockets(self) -> list[WebSocketRecord]:
        """WebSockets that have closed, in that order; may be emptied."""
        return self.witness.websockets

    @property
    def errors(self) -> list[BaseException]:
        """What the application raised. Take out what was to be expected: what is left fails the test."""
        return self.witness.errors

    @property
    def active(self) -> int:
        """Requests, WebSockets too, whose handler is still running."""
        return len(self.witness.active)

    async def wait_idle(self, timeout: float = 5) -> None:  # noqa: ASYNC109 - its error says more than TooSlowError
        """Wait until no handler is running; raises TimeoutError, which names those that are, after so many seconds."""
        with trio.move_on_after(timeout) as scope:
            await self.witness.wait_until(lambda: not self.witness.active)
        if scope.cancelled_caught:
            running = ", ".join(request.line for request in self.witness.active)
            raise TimeoutError(f"still running after {timeout:g} s: {running}")

    # What can be done to it

    async def shutdown(self, grace: float | None = None) -> None:
        """Stop the server, and wait until it has ended; it may be called again.

        ``grace``: seconds that running requests may still take; None: ``timeout_graceful_shutdown``, which is 1 here.
        Raises LifespanError if the application could not shut down, ServerStuckError if the server does not end.
        """
        await self._stop(grace)
        self._raise_failure()

    def cancel(self) -> None:
        """Cancel the server, as a program does that cancels the task of ``serve()``: handlers are cancelled at once."""
        self._scope.cancel()

    async def drop_connections(self) -> None:
        """Lose every open connection at once, as a network that fails does. New ones are accepted."""
        # One that its client has just opened may still wait to be accepted.
        with trio.move_on_after(_QUIET):
            await trio.testing.wait_all_tasks_blocked()
        await self.server.drop_connections()

    # Its life

    async def _open(self, *, reads_little: bool = False) -> tuple[trio.abc.Stream, Address | None]:
        stream = await connect_to(self.location, reads_little=reads_little)
        name = stream.socket.getsockname()
        client = (name[0], name[1]) if isinstance(name, tuple) else None
        if not self.location.uses_tls:
            return stream, client
        context = build_client_context(None if self.ca is None else self.ca.bundle)
        secured = trio.SSLStream(stream, context, server_hostname=self.host, https_compatible=True)
        try:
            with trio.fail_after(HANDSHAKE_PATIENCE):
                await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured, client

    def started(self, value: Server | None = None) -> None:
        """Take note of the start; this is trio.TaskStatus's method, which may do without a value where none is due."""
        self._server = value
        self._settled.set()

    @asynccontextmanager
    async def run(
        self,
        *,
        bound: Sequence[Listener] = (),
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]] = (),
    ) -> AsyncIterator[None]:
        """Serve for as long as the block; raises what keeps the server from starting, or makes it end."""
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._serve, bound, listeners, name="trioserve.testing")
            try:
                await self._wait_settled()
                if self._server is not None:
                    with self._body:
                        yield
            except BaseException as error:
                if not self.witness.has_drained:  # else it ends by itself, and may be why the block has failed
                    self.cancel()  # nobody needs what still runs
                await self._end()
                if self._failure is not None and self._failure is not error:
                    add_note(error, str(self._failure))
                raise
            else:
                await self._end()
        self._raise_failure()

    async def _end(self) -> None:
        # Shielded, as it has deadlines of its own, and a handler that does not end must be told of.
        with trio.CancelScope(shield=True):
            await self._stop(self.grace)
            # Not before: they may be reading what a drain lets them have.
            await self._close_clients()

    async def _wait_settled(self) -> None:
        """Wait until the server has started, or failed to; take down where a start-up hangs that is about to fail."""
        config = self._preparation.config
        with trio.move_on_after(_LATE * config.timeout_startup) as scope:
            await self._settled.wait()
        if not scope.cancelled_caught:
            return
        root = trio.lowlevel.current_root_task()
        assert root is not None  # in a task there is one
        tree = format_task_tree(root)
        seconds = config.timeout_startup + config.timeout_hard_shutdown + _TEARDOWN_MARGIN
        with trio.move_on_after(seconds - _LATE * config.timeout_startup):
            await self._settled.wait()
        if not self._settled.is_set():
            await self._force_end(f"the server has not started, and cannot be stopped, after {seconds:g} s")
        elif self._failure is not None:
            add_note(self._failure, f"A moment before that:\n{tree}")

    async def _serve(self, bound: Sequence[Listener], listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]) -> None:
        self._task = trio.lowlevel.current_task()
        app, config = self._preparation.app, self._preparation.config
        try:
            with self._scope:
                await serve_observed(
                    app, config, bound=bound, listeners=listeners, observer=self.witness, task_status=self
                )
        except Exception as error:  # it is raised in the test
            self._failure = error
            if not self._is_stopping:
                self._body.cancel()
        finally:
            self._ended.set()
            self._settled.set()

    async def _stop(self, grace: float | None) -> None:
        if self._ended.is_set() or self._is_hopeless:
            return
        self._is_stopping = True
        begun = trio.current_time()
        if self._server is not None and not self._scope.cancel_called:
            self._server.shutdown(grace)
        with trio.move_on_after(self._seconds_to_stop(grace)):
            await self.witness.wait_until(lambda: self.witness.handlers_have_ended)
        if self.witness.handlers_have_ended:
            with trio.move_on_after(self._preparation.config.timeout_shutdown + _TEARDOWN_MARGIN):
                await self._ended.wait()
        if not self._ended.is_set():
            seconds = trio.current_time() - begun
            await self._force_end(f"the server has not ended {seconds:.1f} s after it was told to stop")

    def _seconds_to_stop(self, grace: float | None) -> float:
        """Until all handlers must have ended."""
        config = self._preparation.config
        seconds = config.timeout_graceful_shutdown if grace is None else grace
        return seconds + config.timeout_hard_shutdown + _TEARDOWN_MARGIN

    def seconds_to_end(self, grace: float | None) -> float:
        """After which a stop is over, or has failed."""
        return self._seconds_to_stop(grace) + self._preparation.config.timeout_shutdown + 2 * _TEARDOWN_MARGIN

    async def _force_end(self, what: str) -> None:
        """Break the server off; ``what`` is wrong with it becomes its failure, whether that helps or not."""
        assert self._task is not None
        stuck = ServerStuckError.of(what, trio.lowlevel.current_root_task(), with_threads=False)
        self.cancel()
        for _ in range(10):  # clean-up that begins now may put up a new shield
            break_shields(self._task, self._scope)
            with trio.move_on_after(0.1):
                await self._ended.wait()
        self._failure = stuck
        if not self._ended.is_set():
            self._is_hopeless = True
            self.on_hopeless(stuck)

    def _raise_failure(self) -> None:
        __tracebackhide__ = True
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise strip(failure)
        finally:
            failure = None


def _print_last_words(stuck: ServerStuckError) -> None:
    print(f"{stuck}\n\n{LAST_WORDS}", file=sys.__stderr__)


@asynccontextmanager
async def open_server(
    app: ASGIApp | str, *, tls: bool = False, allow_errors: bool = False, **options: AnyValue
) -> AsyncIterator[TrioServer]:
    """Serve an application, in this Trio loop, for as long as the block.

    ``app``: an ASGI application, or "module:attribute". ``tls``: with a certificate made for this server.
    ``options`` are fields of Config; the port is chosen by the system, and stops are shorter, if they say nothing.

    Raises what keeps the server from starting: AppLoadError, BindError, ConfigError or LifespanError. At the end it
    raises what the application raised in requests, unless the block raised, or ``allow_errors``; ServerStuckError if
    the server does not end.
    """
    __tracebackhide__ = True
    preparation = prepare(app, tls=tls, options=options)
    with preparation.resources:
        server = TrioServer(preparation, Witness())
        with tell_errors(server.witness):
            async with server.run(bound=await bind_all(preparation.config)):
                yield server
        if not allow_errors:
            raise_errors(server.witness.take_errors())
